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
from metrics.features.inception import InceptionFeatures
from metrics.features.inception_network import InceptionNetwork
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


def _image(tag: str, height: int, width: int) -> NDArray[np.uint8]:
    """`image` of section 1, [height, width, 3]."""
    drawn = {
        name: np.floor(levels * _uniform(f"{tag}/{name}", shape)).astype(np.int64)
        for name, levels, shape in (("par", 256, (3, 5)), ("blocks", 256, (8, 8, 3)), ("noise", 64, (height, width, 3)))
    }
    y, x, p = np.arange(height)[:, None, None], np.arange(width)[:, None], drawn["par"].T
    grad = (p[0] * y // height + p[1] * x // width) // 2
    checker = 64 * ((y // (1 + p[2] % 7) + x // (1 + p[3] % 5)) % 2)
    blocks = drawn["blocks"][y[:, :, 0] * 8 // height, x[:, 0] * 8 // width]
    values = (grad + checker + blocks + drawn["noise"]) * (64 + p[4] // 2) // 256
    return np.clip(values, 0, 255).astype(np.uint8)


def _inception_weight(name: str, shape: Shape) -> NDArray[np.float32]:
    """One entry of the Inception network's weights, of section 1."""
    tag = f"adm-golden/dev/inception/{name}"
    if name.endswith(".conv.weight"):
        weight = _gaussian(tag, shape)
        fan = weight[0].size
        filled = (weight - weight.sum(axis=(1, 2, 3), keepdims=True) / fan) * np.sqrt(2 / fan)
    elif name.endswith((".bn.weight", ".running_var")):
        filled = (0.75 if name.endswith(".weight") else 0.46875) + 0.5 * _uniform(tag, shape)
    else:
        scales = {"bn.bias": 0.0625, "bn.running_mean": 0.03125, "fc.weight": 0.25, "fc.bias": 1.0}
        filled = next(scale for end, scale in scales.items() if name.endswith(end)) * _gaussian(tag, shape)
    return filled.astype(np.float32)


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
def golden_image() -> Callable[[str, int, int], NDArray[np.uint8]]:
    """`image` of section 1, [height, width, 3], by its whole tag."""
    return _image


@pytest.fixture(scope="session")
def inception_state() -> dict[str, torch.Tensor]:
    """The golden weights of the Inception network, by torch-fidelity's names."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in InceptionNetwork().state_dict().items()}
    return {
        name: torch.tensor(0) if name.endswith("batches_tracked") else torch.from_numpy(_inception_weight(name, shape))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def inception_weights(inception_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights as torch-fidelity's releases hold them."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state, path)
    return path


@pytest.fixture(scope="session")
def inception_features(inception_weights: Path) -> InceptionFeatures:
    """The Inception network with the golden weights, on the CPU."""
    return InceptionFeatures.load(torch.device("cpu"), inception_weights)


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
