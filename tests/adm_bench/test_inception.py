"""Inception features from the command line: weights are handed in, and the numbers say what they are of."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.features.inception_network import InceptionNetwork

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as it is before training."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(InceptionNetwork().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two npz files of a few small images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = {name: folder / f"{name}.npz" for name in ("samples", "data")}
    for path in paths.values():
        np.savez(path, arr_0=rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    return paths


@pytest.mark.parametrize(("features", "protocol"), [("inception", "adm"), ("clean", "clean")])
def test_evaluates_with_given_weights(
    features: str, protocol: str, run: Run, weights: Path, images: dict[str, Path], tmp_path: Path
) -> None:
    digest = sha256(weights.read_bytes()).hexdigest()
    chosen = ("--features", features, "--inception-weights", weights, "--device", "cpu")
    made = run("reference", images["data"], "--out", tmp_path / "ref.npz", *chosen)
    assert f"features {features} {digest[:12]}" in made.output
    numbers = tmp_path / "numbers.json"
    result = run("evaluate", tmp_path / "ref.npz", images["samples"], "--metrics", "fid,is", "--json", numbers, *chosen)
    assert f"protocol {protocol} v1, features {features} {digest[:12]}, 6 samples against 6" in result.output
    assert f"{weights} is not the published file" in result.stderr
    records = json.loads(numbers.read_text())
    assert {record["quantity"] for record in records} == {"fid", "is"}
    assert {(record["protocol"], record["features_sha256"]) for record in records} == {(protocol, digest)}
    with np.load(tmp_path / "ref.npz") as arrays:
        assert (arrays["mu"].shape, arrays["mu_s"].shape) == ((2048,), (2023,))


def test_a_reference_of_other_features_is_refused(
    run: Run, refuse: Callable[..., str], weights: Path, images: dict[str, Path], tmp_path: Path
) -> None:
    chosen = ("--inception-weights", weights, "--device", "cpu")
    run("reference", images["data"], "--out", tmp_path / "ref.npz", "--features", "inception", *chosen)
    line = refuse("evaluate", tmp_path / "ref.npz", images["samples"], "--features", "clean", *chosen)
    assert "its statistics are of features inception" in line
