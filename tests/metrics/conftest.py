"""The rules of tests/golden/README.md that make the golden inputs, and small feature sets for everybody."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metrics.features.digits import DigitsFeatures
from metrics.statistics import FeatureBatch, FeatureSet

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "adm-golden/dev/"
CHUNK_ROWS = 500

Shape = tuple[int, ...]
FloatArray = NDArray[np.floating]


def _rng(tag: str) -> np.random.Generator:
    seed = int(hashlib.sha256(tag.encode()).hexdigest()[:8], 16)
    return np.random.Generator(np.random.PCG64(seed))


def _uniform(tag: str, shape: Shape) -> NDArray[np.float64]:
    return _rng(tag).random(shape)


def _gaussian(tag: str, shape: Shape) -> NDArray[np.float64]:
    """`g` of section 1, a few rows at a time: the stream is the same and takes an eighth of the memory."""
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
    return np.floor(members["clusters"] * _uniform(members["tag"] + "/class", (members["n"],))).astype(np.int64)


def _feature_rows(world: Mapping[str, Any], members: Mapping[str, Any]) -> NDArray[np.float32]:
    cube = _uniform(world["tag"] + "/base", (world["d"],)) ** 1
    base = np.rint(1024 * (0.125 + 0.75 * (cube * cube * cube) - world["sparse"])) / 1024
    load = 0.0625 * _gaussian(world["tag"] + "/load", (world["rank"], world["d"]))
    latent = members["zscale"] * _gaussian(members["tag"] + "/latent", (members["n"], world["rank"]))
    latent[:, : len(members["shift"])] += members["shift"]
    x = base + _centres(world)[_classes(members)] + latent @ load
    x += members["sigma"] * _gaussian(members["tag"] + "/noise", (members["n"], world["d"]))
    rows = (np.rint(4096 * np.maximum(x, 0)) / 4096).astype(np.float32)
    assert hashlib.sha256(rows.tobytes()).hexdigest() == members["sha256"], members["tag"]
    return rows


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], dict[str, Any]]:
    """A case of metrics.json by its id."""
    cases = json.loads((GOLDEN / "metrics.json").read_text())["cases"]
    by_id: dict[str, dict[str, Any]] = {case["id"]: case for case in cases}
    return by_id.__getitem__
