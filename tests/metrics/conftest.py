"""The rules of tests/golden/README.md that make the golden inputs, and feature sets made of rows."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from metrics.features.digits import DigitsFeatures
from metrics.features.torchvision_import import import_torchvision
from metrics.statistics import FeatureBatch, FeatureSet

GOLDEN = Path(__file__).parents[1] / "golden"
CHUNK_ROWS = 500

Shape = tuple[int, ...]


def _rng(tag: str) -> np.random.Generator:
    seed = int(hashlib.sha256(tag.encode()).hexdigest()[:8], 16)
    return np.random.Generator(np.random.PCG64(seed))


def _uniform(tag: str, shape: Shape) -> NDArray[np.float64]:
    return _rng(tag).random(shape)


def _gaussian(tag: str, shape: Shape) -> NDArray[np.float64]:
    """`g` of section 1, some rows at a time: the same stream in a fraction of the memory."""
    rng, out = _rng(tag), np.empty(shape)
    for start in range(0, shape[0], CHUNK_ROWS):
        block = out[start : start + CHUNK_ROWS]
        v = rng.random((*block.shape, 4))
        total = v[..., 0] + v[..., 1] + v[..., 2] + v[..., 3]
        block[:] = np.rint((total - 2) * 1.7320508075688772 * 1024) / 1024
    return out


def _centres(world: Mapping[str, Any]) -> NDArray[np.float64]:
    shape = (world["clusters"], world["d"])
    return 0.5 * _gaussian(world["tag"] + "/centre", shape) * (_uniform(world["tag"] + "/mask", shape) < 0.25)


def _classes(members: Mapping[str, Any]) -> NDArray[np.int64]:
    u = _uniform(members["tag"] + "/class", (members["n"],))
    return np.floor(members["clusters"] * u).astype(np.int64)


def _feature_rows(world: Mapping[str, Any], members: Mapping[str, Any]) -> NDArray[np.float32]:
    b = _uniform(world["tag"] + "/base", (world["d"],))
    base = np.rint(1024 * (0.125 + 0.75 * (b * b * b) - world["sparse"])) / 1024
    load = 0.0625 * _gaussian(world["tag"] + "/load", (world["rank"], world["d"]))
    latent = members["zscale"] * _gaussian(members["tag"] + "/latent", (members["n"], world["rank"]))
    latent[:, : len(members["shift"])] += members["shift"]
    x = base + _centres(world)[_classes(members)] + latent @ load
    x += members["sigma"] * _gaussian(members["tag"] + "/noise", (members["n"], world["d"]))
    rows = (np.rint(4096 * np.maximum(x, 0)) / 4096).astype(np.float32)
    assert sha256(rows) == members["sha256"], f"the rule of {members['tag']} is not followed"
    return rows


def sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], dict[str, Any]]:
    """A case of metrics.json by its id."""
    cases = json.loads((GOLDEN / "metrics.json").read_text())["cases"]
    by_id: dict[str, dict[str, Any]] = {case["id"]: case for case in cases}
    return by_id.__getitem__


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, NDArray[Any]]:
    """The arrays of metrics.npz."""
    with np.load(GOLDEN / "metrics.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def uniform() -> Callable[[str, Shape], NDArray[np.float64]]:
    """`u` of section 1; the tag is given without its prefix."""
    return lambda tag, shape: _uniform(f"adm-golden/dev/{tag}", shape)


@pytest.fixture(scope="session")
def gaussian() -> Callable[[str, Shape], NDArray[np.float64]]:
    """`g` of section 1; the tag is given without its prefix."""
    return lambda tag, shape: _gaussian(f"adm-golden/dev/{tag}", shape)


@pytest.fixture(scope="session")
def centres() -> Callable[[Mapping[str, Any]], NDArray[np.float64]]:
    """The class centres [clusters, d] of a world."""
    return _centres


@pytest.fixture(scope="session")
def class_numbers() -> Callable[[Mapping[str, Any]], NDArray[np.int64]]:
    """The class number of each row of a set."""
    return _classes


@pytest.fixture(scope="session")
def feature_rows() -> Callable[[Mapping[str, Any], Mapping[str, Any]], NDArray[np.float32]]:
    """The rows of a set in a world, checked against their SHA-256."""
    return _feature_rows


@pytest.fixture(scope="session")
def pr_input(
    golden_case: Callable[[str], dict[str, Any]], feature_rows: Callable[..., NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Reference [3000, 2048] and samples [9000, 2048] of precision and recall; smaller sets are their first rows."""
    case = golden_case("pr_input")
    ref, sample = (feature_rows(case["world"], case["sets"][name]) for name in ("ref", "sample"))
    return ref, sample


@pytest.fixture(scope="session")
def require_sha256() -> Callable[[ArrayLike, str], None]:
    """Fail if an array is not the one that the golden values were made from."""

    def require(array: ArrayLike, expected: str) -> None:
        assert sha256(np.asarray(array)) == expected

    return require


@pytest.fixture(scope="session")
def feature_set() -> Callable[..., FeatureSet]:
    """A feature set of `pool` rows (and `spatial`, `logits`), fed in batches of `batch_size`."""

    def build(
        pool: ArrayLike,
        *,
        spatial: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        batch_size: int = 64,
    ) -> FeatureSet:
        layers = {"pool": pool, "spatial": spatial, "logits": logits}
        tensors = {
            layer: None if rows is None else torch.from_numpy(np.asarray(rows, np.float32))
            for layer, rows in layers.items()
        }
        features = FeatureSet()
        for start in range(0, len(np.asarray(pool)), batch_size):
            batch = slice(start, start + batch_size)
            features.update(FeatureBatch(**{k: None if t is None else t[batch] for k, t in tensors.items()}))
        return features

    return build


@pytest.fixture(scope="session")
def digits_features() -> DigitsFeatures:
    """The packaged digit classifier on the CPU."""
    return DigitsFeatures.load(torch.device("cpu"))


@pytest.fixture(scope="session")
def torch_fidelity() -> ModuleType:
    """The package torch_fidelity, an independent implementation; its submodules are attributes."""
    import_torchvision()
    return importlib.import_module("torch_fidelity")
