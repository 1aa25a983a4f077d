"""DINOv2 features from the command line, with a small network in place of the large one."""

import json
import re
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.features import dinov2
from metrics.features.dinov2_network import DinoNetwork

SMALL = partial(DinoNetwork, width=32, depth=1, num_heads=2)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dinov2, "DinoNetwork", SMALL)
    monkeypatch.delenv("ADM_BENCH_DINOV2", raising=False)
    monkeypatch.setenv("ADM_BENCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(SMALL().state_dict(), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    paths = {name: tmp_path / f"{name}.npz" for name in ("samples", "data")}
    for path in paths.values():
        np.savez(path, arr_0=rng.integers(0, 256, (6, 16, 20, 3), dtype=np.uint8))
    return paths


def test_evaluates_with_weights_of_the_option_and_of_the_environment(
    run: Callable[..., Any],
    weights: Path,
    images: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = sha256(weights.read_bytes()).hexdigest()
    reference, numbers = tmp_path / "ref.npz", tmp_path / "numbers.json"
    made = run("reference", images["data"], "--out", reference, "--features", "dinov2", "--feature-weights", weights)
    assert f"features dinov2 {digest[:12]}" in made.output
    with np.load(reference) as arrays:
        assert arrays["mu"].shape == (32,)
        assert "mu_s" not in arrays
    monkeypatch.setenv("ADM_BENCH_DINOV2", str(weights))
    result = run("evaluate", reference, images["samples"], "--json", numbers)
    assert f"protocol dinov2 v1, features dinov2 {digest[:12]}, 6 samples against 6" in result.output
    assert re.search("^FD-DINOv2 +[0-9]", result.stdout, re.MULTILINE)
    assert "FID" not in result.output
    assert f"{weights} is not the published file (sha256 d5383ea8f487...)" in result.stderr
    assert "where published numbers of protocol dinov2 are of 50000" in result.stderr
    records = json.loads(numbers.read_text())
    assert {record["quantity"] for record in records} == {"fid", "precision", "recall", "copied"}
    assert {(record["protocol"], record["features_sha256"]) for record in records} == {("dinov2", digest)}


def test_without_weights_it_says_how_to_get_them(refuse: Callable[..., str], images: dict[str, Path]) -> None:
    line = refuse("evaluate", images["data"], images["samples"], "--features", "dinov2")
    assert "weights 'dinov2' are needed and not here" in line
    assert "`adm-bench fetch dinov2`" in line
    assert "--feature-weights PATH or in $ADM_BENCH_DINOV2" in line


def test_spatial_metrics_are_refused(refuse: Callable[..., str], weights: Path, images: dict[str, Path]) -> None:
    arguments = ("--features", "dinov2", "--feature-weights", weights, "--metrics", "sfid", "--device", "cpu")
    assert "spatial" in refuse("evaluate", images["data"], images["samples"], *arguments)


def test_fetch_says_what_it_would_get(run: Callable[..., Any]) -> None:
    result = run("fetch", "dinov2", "--print-urls")
    assert "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth" in result.output
    assert "1,217,586,395 bytes" in result.stderr
    assert "Apache-2.0" in result.stderr
