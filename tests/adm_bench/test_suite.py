"""The demo in a shrunken form, from end to end, and what a second run does."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.features import dinov2
from metrics.features.dinov2_network import DinoNetwork

ROOT = Path(__file__).parents[2]
ROWS = ["adm", "adm-g", "adm-g-ddim25", "gaussian", "memorizer", "noise"]
METRICS = {"fid", "sfid", "is", "precision", "recall", "copied"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/digits.toml with fewer steps and images."""
    text = (ROOT / "examples" / "digits.toml").read_text()
    shrunken = '"training.steps" = 8, "training.batch_size" = 16, "model.num_res_blocks" = 1 }'
    for old, new in (
        ("num_images = 1797", "num_images = 60"),
        ('preset = "digits8"', f'preset = "digits8"\nset = {{ {shrunken}'),
        ('preset = "digits8_classifier"', f'preset = "digits8_classifier"\nprecision = "bf16"\nset = {{ {shrunken}'),
        ("sampling_steps = 50", "sampling_steps = 5"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("suite") / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(suite: Path, run: Callable[..., object]) -> Path:
    out = suite.parent / "run"
    run("run", suite, "--out", out, "--device", "cpu")
    return out


def numbers(folder: Path) -> dict[tuple[str, str], float]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {(line["generator"], line["quantity"]): line["value"] for line in lines}


def test_every_file_is_there(finished: Path) -> None:
    for name in ("report.md", "report.csv", "report.html", "records.jsonl", "reference.npz", "suite.json"):
        assert (finished / name).stat().st_size > 500, name
    for row in ROWS:
        with np.load(finished / "samples" / f"{row}.npz", allow_pickle=False) as arrays:
            assert arrays["arr_0"].shape == (60, 8, 8, 3)
            assert np.bincount(arrays["arr_1"]).tolist() == [6] * 10
        with Image.open(finished / "grids" / f"{row}.png") as grid:
            assert min(grid.size) > 100
    assert not list(finished.rglob("*.partial"))
    assert not list(finished.rglob("*.parts"))


def test_every_number_has_its_circumstances(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "records.jsonl").read_text().splitlines()]
    found = {(line["generator"], line["quantity"]) for line in lines}
    for row in ROWS:
        assert {(row, metric) for metric in METRICS} <= found
        assert {(row, "sampling_images_per_sec"), (row, "sampling_flops_per_image")} <= found
    assert {("adm", "training_sec"), ("adm", "training_images_per_sec"), ("adm", "parameters")} <= found
    for line in lines:
        if line["quantity"] in METRICS:
            assert (line["protocol"], line["protocol_version"], line["features"]) == ("digits", 1, "digits")
            assert (line["num_images"], line["num_reference_images"]) == (60, 1797)
            assert set(line["inputs"]) == {"samples", "reference"}
        assert line["seed"] == 0
        assert line["provenance"]["versions"]["torch"]


def test_a_network_is_trained_in_the_precision_that_its_table_names(
    suite: Path, finished: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (finished / "records.jsonl").read_text().splitlines()]
    found = {line["generator"]: line["precision"] for line in lines if line["quantity"] == "training_images_per_sec"}
    assert found == {"adm": "fp32", "classifier": "bf16"}
    for name, precision in found.items():
        assert json.loads((finished / "train" / name / "run.json").read_text())["precision"] == precision
    changed = tmp_path / "changed.toml"
    changed.write_text(suite.read_text().replace('"bf16"', '"fp8"'))
    assert "precision" in refuse("run", changed, "--out", tmp_path / "run", "--device", "cpu")


def test_the_baselines_are_where_they_belong(finished: Path) -> None:
    found = numbers(finished)
    fid = {row: found[row, "fid"] for row in ROWS}
    assert min(fid, key=fid.__getitem__) == "memorizer"
    assert fid["noise"] > 10 * fid["gaussian"] > 10 * fid["memorizer"]
    assert (found["memorizer", "copied"], found["gaussian", "copied"]) == (1.0, 0.0)
    assert found["memorizer", "precision"] == 1.0
    assert found["noise", "recall"] < 0.05
    assert found["adm-g", "sampling_flops_per_image"] > found["adm", "sampling_flops_per_image"]
    assert found["adm-g-ddim25", "network_evaluations_per_image"] == 25


class Fetches(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value
            for name, value in attrs
            if value and name in ("src", "href", "srcset", "data") and not value.startswith(("data:", "#"))
        ]
        assert tag not in ("script", "iframe", "link")


def test_the_page_fetches_nothing(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    parser = Fetches()
    parser.feed(page)
    assert parser.found == []
    assert "@import" not in page
    assert page.count("data:image/png;base64,") == len(ROWS)
    assert "<svg" in page
    assert all(row in page for row in ROWS)


def test_tables_agree_with_the_records(finished: Path, run: Callable[..., object]) -> None:
    rows = {row["generator"]: row for row in csv.DictReader(io.StringIO((finished / "report.csv").read_text()))}
    found = numbers(finished)
    for row in ROWS:
        assert float(rows[row]["FID"]) == pytest.approx(found[row, "fid"])
    printed = run("report", finished, "--format", "csv").output  # type: ignore[attr-defined]
    assert printed == (finished / "report.csv").read_text()
    assert "adm-g-ddim25" in run("report", finished).output  # type: ignore[attr-defined]


def test_a_second_run_reuses_everything(suite: Path, finished: Path, run: Callable[..., object]) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")}
    again = run("run", suite, "--out", finished, "--device", "cpu").stderr  # type: ignore[attr-defined]
    assert again.count("reused") == 3 + 2 * len(ROWS)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")} == times


def test_lost_samples_are_made_again_and_the_same(suite: Path, finished: Path, run: Callable[..., object]) -> None:
    path = finished / "samples" / "adm.npz"
    with np.load(path) as arrays:
        before = arrays["arr_0"]
    path.unlink()
    run("run", suite, "--out", finished, "--device", "cpu")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], before)


def test_changed_settings_are_refused_not_overwritten(
    suite: Path, finished: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    changed = tmp_path / "changed.toml"
    changed.write_text(suite.read_text().replace("guidance_scale = 1.0", "guidance_scale = 3.0"))
    samples = (finished / "samples" / "adm-g.npz").read_bytes()
    line = refuse("run", changed, "--out", finished, "--device", "cpu")
    assert "generator.options.guidance_scale: 1.0 -> 3.0" in line
    assert (finished / "samples" / "adm-g.npz").read_bytes() == samples


def test_overwrite_does_changed_stages_again(
    suite: Path, finished: Path, run: Callable[..., object], tmp_path: Path
) -> None:
    changed, copy = tmp_path / "changed.toml", tmp_path / "run"
    shutil.copytree(finished, copy)
    changed.write_text(suite.read_text().replace("guidance_scale = 1.0", "guidance_scale = 3.0"))
    again = run("run", changed, "--out", copy, "--device", "cpu", "--overwrite").stderr  # type: ignore[attr-defined]
    assert "train/adm: reused" in again
    assert "sample/adm-g: reused" not in again
    assert (copy / "samples" / "adm-g.npz").read_bytes() != (finished / "samples" / "adm-g.npz").read_bytes()


def test_dry_run_prints_and_does_nothing(suite: Path, run: Callable[..., object], tmp_path: Path) -> None:
    printed = run("run", suite, "--out", tmp_path / "run", "--dry-run").output  # type: ignore[attr-defined]
    assert json.loads(printed)["train"]["adm"]["training"]["steps"] == 8
    assert not (tmp_path / "run").exists()


@pytest.fixture
def with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A suite of two rows that names the weights of its DINOv2 features, a small network's; replaced `changes`."""
    small = partial(DinoNetwork, width=32, depth=1, num_heads=2)
    monkeypatch.setattr(dinov2, "DinoNetwork", small)
    monkeypatch.delenv("ADM_BENCH_DINOV2", raising=False)
    monkeypatch.setenv("ADM_BENCH_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    torch.save(small().state_dict(), tmp_path / "dino.pth")

    def write(**changes: str) -> Path:
        text = f'''
title = "t"
data = "digits"
image_size = 8
features = "dinov2"
feature_weights = "{tmp_path / "dino.pth"}"
metrics = ["fid", "copied"]
num_images = 40
[train.adm]
preset = "digits8"
set = {{ "training.steps" = 2, "training.batch_size" = 4, "model.num_res_blocks" = 1 }}
[generators.adm]
generator = "adm"
weights = "adm"
options = {{ sampling_steps = 3 }}
[generators.noise]
generator = "noise"
'''
        for old, new in changes.items():
            text = text.replace(old, new)
        path = tmp_path / "suite.toml"
        path.write_text(text)
        return path

    return write


def test_feature_weights_are_named_in_the_suite(
    with_weights: Callable[..., Path], run: Callable[..., object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    printed = run("run", with_weights(), "--out", out, "--device", "cpu").output  # type: ignore[attr-defined]
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    digest = sha256((tmp_path / "dino.pth").read_bytes()).hexdigest()
    assert {line["features_sha256"] for line in lines if line["quantity"] == "fid"} == {digest}
    assert "noise has the best FD-DINOv2" in printed or "adm has the best FD-DINOv2" in printed
    assert json.loads((out / "suite.json").read_text())["feature_weights"] == str(tmp_path / "dino.pth")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dino.pth", "nowhere.pth", "nowhere.pth: no such file; expected weights of features 'dinov2'"),
        ("dino.pth", "suite.toml", "suite.toml: holds more than tensors, whose code is never run"),
        ('"dinov2"', '"digits"', "features digits have weights of their own"),
        ('"fid", "copied"', '"fid", "sfid"', "sFID needs spatial_moments, which features dinov2 do not give"),
        ('metrics = ["fid", "copied"]', "", "sFID needs spatial_moments, which features dinov2 do not give"),
    ],
)
def test_feature_weights_are_checked_before_anything_is_trained(
    old: str, new: str, expected: str, with_weights: Callable[..., Path], refuse: Callable[..., str], tmp_path: Path
) -> None:
    suite = with_weights(**{old: new})
    assert expected in refuse("run", suite, "--out", tmp_path / "run", "--device", "cpu")
    assert not (tmp_path / "run").exists()
