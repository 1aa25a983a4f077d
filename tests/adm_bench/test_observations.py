"""What is looked at while a network trains: validation, pictures, the curve of FID; looking changes nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from adm_bench.checkpoints import Checkpoints
from adm_bench.images.batches import TrainingBatches
from adm_bench.images.digits import open_digits
from adm_bench.observations import TrainedSamples
from adm_bench.ranks import Ranks
from adm_bench.training import TrainingJob
from adm_bench.training_log import TrainingLog
from generators.adm.presets import preset
from generators.configuration import with_changes
from reports.figures import sample_grid
from reports.records import read_records

Run = Callable[..., Any]
Refuse = Callable[..., str]
OPTIONS = {"sampler": "ddim", "sampling_steps": 2}


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    """Lines of a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def observed(run: Run, tiny: Sequence[str], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, looked at after two and four of them."""
    out = tmp_path_factory.mktemp("observed") / "adm"
    run(
        "train", "adm", "--data", "digits", "--out", out, "--steps", "4", "--checkpoint-every", "2", *tiny,
        "--samples-every", "2", "--evaluate-every", "2", "--reference", reference, "--evaluate-images", "70",
        "--metrics", "fid,recall", "--sampling-steps", "2", "--seed", "3",
    )  # fmt: skip
    return out


def test_observations_change_nothing(observed: Path, run: Run, tiny: Sequence[str], tmp_path: Path) -> None:
    run("train", "adm", "--data", "digits", "--out", tmp_path / "plain", "--steps", "4", *tiny, "--seed", "3")
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (observed, tmp_path / "plain"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_an_evaluation_is_what_sampling_the_checkpoint_gives(
    observed: Path, run: Run, reference: Path, tmp_path: Path
) -> None:
    newest = Checkpoints(observed / "checkpoints").list()[0]
    weights = next(newest.glob("ema_*.safetensors"))
    run(
        "sample", "adm", "--weights", weights, "--sampler", "ddim", "--sampling-steps", "2", "--num", "70",
        "--batch", "8", "--seed", "3", "--out", tmp_path / "samples.npz", "--device", "cpu",
    )  # fmt: skip
    run(
        "evaluate", reference, tmp_path / "samples.npz", "--metrics", "fid,recall", "--device", "cpu",
        "--json", tmp_path / "numbers.json",
    )  # fmt: skip
    expected = {row["quantity"]: row for row in json.loads((tmp_path / "numbers.json").read_text())}
    records = [record for record in read_records(observed / "evaluations.jsonl") if record.settings["step"] == 2]
    assert {record.quantity for record in records} == {"fid", "recall"}
    (row,) = (row for row in rows(observed, "evaluation") if row["step"] == 1)
    for record in records:
        same = expected[record.quantity]
        assert record.value == row[record.quantity] == same["value"]
        assert record.inputs["reference"] == same["inputs"]["reference"]
        assert (
            record.inputs["weights"]
            == json.loads((newest / "manifest.json").read_text())["files"][weights.name]["sha256"]
        )
        for name in ("protocol", "features_sha256", "num_images", "num_reference_images", "seed", "precision"):
            assert getattr(record, name) == same[name]


def test_a_run_made_again_from_a_checkpoint_has_each_evaluation_once(
    observed: Path, run: Run, tiny: Sequence[str], reference: Path, tmp_path: Path
) -> None:
    """Also the one at the checkpoint that it goes on from, which had not been made."""
    out = tmp_path / "again"
    options = ["train", "adm", "--data", "digits", "--out", out, "--steps", "4", "--checkpoint-every", "2", *tiny]
    options += ["--seed", "3"]
    run(*options)
    for path in (out / "result.json", out / "weights.safetensors"):
        path.unlink()
    run(
        *options, "--evaluate-every", "4", "--reference", reference, "--evaluate-images", "70",
        "--metrics", "fid,recall", "--sampling-steps", "2",
    )  # fmt: skip
    (line,) = rows(out, "evaluation")
    (expected,) = (row for row in rows(observed, "evaluation") if row["step"] == 3)
    assert line == expected


def test_a_report_of_a_training_run_is_the_curve_of_its_evaluations(observed: Path, run: Run) -> None:
    first, second = csv.DictReader(run("report", observed, "--format", "csv").stdout.splitlines())
    assert [first["generator"], second["generator"]] == ["step 2", "step 4"]
    expected = [record.value for record in read_records(observed / "evaluations.jsonl") if record.quantity == "fid"]
    assert [float(row["FID"]) for row in (first, second)] == expected
    assert first["settings"].endswith("training images 16")
    page = run("report", observed, "--format", "html").stdout
    assert page.count("data:image/png") == 2
    assert "step 2" in run("report", observed).stdout


def test_a_training_run_without_evaluations_has_no_report_but_a_log(model: Path, refuse: Refuse) -> None:
    line = refuse("report", model)
    assert f"{model}: is a training run without evaluations" in line
    assert f"in log.jsonl, and tensorboard --logdir {model / 'tensorboard'} shows them" in line


def test_a_picture_has_a_column_a_class_of_the_checkpoints_samples(observed: Path, run: Run, tmp_path: Path) -> None:
    weights = next(Checkpoints(observed / "checkpoints").list()[-1].glob("ema_*.safetensors"))
    run(
        "sample", "adm", "--weights", weights, "--sampler", "ddim", "--sampling-steps", "2", "--num", "80",
        "--batch", "8", "--seed", "3", "--out", tmp_path / "samples.npz", "--device", "cpu",
    )  # fmt: skip
    with np.load(tmp_path / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    np.testing.assert_array_equal(labels, np.arange(80) % 10)
    with Image.open(observed / "samples" / "step_00000004.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), sample_grid(images, 10, 4))


def test_validation_of_a_classifier_goes_through_every_image_and_falls_with_noise(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "cls"
    said = run(
        "train", "classifier", "--data", "digits", "--validation", "digits", "--out", out, "--device", "cpu",
        "--steps", "60", "--set", "training.learning_rate=0.002",
    )  # fmt: skip
    (last,) = rows(out, "validation")
    assert (last["step"], last["images"]) == (59, 1797)
    assert last["accuracy_at_1"] < last["accuracy_at_5"]
    by_noise = [last[f"accuracy_at_1_q{quartile}"] for quartile in range(4)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_noise[0] > 0.6
    assert by_noise[3] < 0.5
    assert {f"accuracy_at_5_q{quartile}" for quartile in range(4)} < last.keys()
    assert f"step 60: validation: accuracy_at_1 {last['accuracy_at_1']:.4g}, accuracy_at_5" in said.stderr


def test_an_upsampler_enlarges_reductions_of_the_images_that_training_begins_with(tmp_path: Path) -> None:
    dataset = open_digits(16)
    job = TrainingJob(
        trainer="upsampler", config=preset("digits8_16_upsampler").config, dataset=dataset, device=torch.device("cpu")
    )
    samples = TrainedSamples(job=job, folder=tmp_path, num_images=1800, options=OPTIONS)  # more than there are
    first = next(TrainingBatches(dataset, batch_size=64, seed=0).from_step(0, 1))
    small = F.avg_pool2d(first.images.float(), 2).round()
    np.testing.assert_array_equal(samples.bases(range(64), 8).numpy(), small.numpy())
    assert samples.labels is not None
    assert first.labels is not None
    np.testing.assert_array_equal(samples.labels[:64], first.labels.numpy())
    assert len(samples.labels) == 1800


def test_only_classes_that_the_data_has_are_sampled(tmp_path: Path) -> None:
    config = with_changes(preset("digits8").config, {"model.num_classes": 12})
    job = TrainingJob(trainer="adm", config=config, dataset=open_digits(8), device=torch.device("cpu"))
    labels = TrainedSamples(job=job, folder=tmp_path, num_images=25, options=OPTIONS).labels
    np.testing.assert_array_equal(labels, np.arange(25) % 10)
    unconditional = with_changes(config, {"model.num_classes": None})
    job = TrainingJob(trainer="adm", config=unconditional, dataset=open_digits(8), device=torch.device("cpu"))
    assert TrainedSamples(job=job, folder=tmp_path, num_images=25, options=OPTIONS).labels is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training.batch_size": 100}, [64, 6]),
        ({"training.batch_size": 24}, [24, 24, 22]),
        ({"training.batch_size": 100, "training.microbatch_size": 30}, [30, 30, 10]),
    ],
)
def test_no_more_images_are_sampled_together_than_trained_on(
    changes: dict[str, int], expected: list[int], tmp_path: Path
) -> None:
    """Sides of 512 pixels train by few images a process, and 64 would not fit beside the training."""
    config = with_changes(preset("digits8").config, changes)
    job = TrainingJob(trainer="adm", config=config, dataset=open_digits(8), device=torch.device("cpu"))
    drawn: list[int] = []

    class Blank:
        def sample(self, seeds: Sequence[int], labels: torch.Tensor, evaluated: Any) -> torch.Tensor:
            assert len(seeds) == len(labels)
            evaluated()
            drawn.append(len(set(seeds)))  # what is past the end repeats the last
            return torch.zeros(len(seeds), 3, 8, 8, dtype=torch.uint8)

    samples = TrainedSamples(job=job, folder=tmp_path, num_images=70, options=OPTIONS)
    parts = list(samples.draw(Blank(), Ranks(), lambda: None))  # type: ignore[arg-type]
    assert [len(part) for part in parts] == drawn == expected


def test_a_signal_cuts_an_evaluation_short_which_is_made_when_the_run_goes_on(
    run: Run, tiny: Sequence[str], reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["train", "adm", "--data", "digits", "--out", out, "--steps", "6", "--samples-every", "3", *tiny]
    options += ["--evaluate-every", "3", "--reference", reference, "--sampling-steps"]
    slow = ["500", "--evaluate-images", "5000"]
    command = [sys.executable, "-m", "adm_bench", *map(str, [*options, *slow])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (out / ".weights.partial").exists() and not list(out.glob("checkpoints/*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped and saved after step 3; repeat the command to go on" in errors
    assert [path.name for path in Checkpoints(out / "checkpoints").list()] == ["step_00000003"]
    assert not rows(out, "samples")
    assert not list(out.glob(".*.partial"))
    run(*options, "2", "--evaluate-images", "20")
    assert [row["step"] for row in rows(out, "samples")] == [2, 5]
    assert [row["step"] for row in rows(out, "evaluation")] == [2, 5]


@pytest.mark.parametrize(
    ("trainer", "options", "expected"),
    [
        ("adm", ["--validation", "digits"], "trainer 'adm' cannot be validated, only classifiers can"),
        ("classifier", ["--samples-every", "1"], "a classifier makes no samples; leave --samples-every"),
        ("adm", ["--samples-every", "1", "--sampling-steps", "1001"], "--sampling-steps: "),
        ("adm", ["--evaluate-every", "1"], "--evaluate-every and --reference belong together"),
        ("adm", ["--reference", "REF"], "--evaluate-every and --reference belong together"),
        ("adm", ["--evaluate-every", "1", "--reference", "REF", "--metrics", "fidd"], "did you mean 'fid'"),
        (
            "adm",
            ["--evaluate-every", "1", "--reference", "REF", "--preset", "digits16"],
            "is of images of 8 x 8, but model.image_size is 16; give a reference of that size",
        ),
        (
            "adm",
            ["--evaluate-every", "1", "--reference", "REF", "--evaluate-images", "1"],
            "--evaluate-images 1: FID needs 2",
        ),
    ],
)
def test_what_cannot_be_observed_is_refused_before_training(
    trainer: str, options: list[str], expected: str, refuse: Callable[..., str], reference: Path, tmp_path: Path
) -> None:
    chosen = [str(reference) if option == "REF" else option for option in options]
    line = refuse("train", trainer, "--data", "digits", "--out", tmp_path / "run", "--device", "cpu", *chosen)
    assert expected in line
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_such_a_run_can_be_inspected(observed: Path, run: Run) -> None:
    found = json.loads(run("inspect", observed).stdout)
    assert found["what"] == "training run"
    assert [*found["checkpoints"]] == ["step_00000002", "step_00000004"]


def test_lines_of_a_log_are_json_whatever_was_seen(tmp_path: Path) -> None:
    """Of an averaged network that has diverged, say."""

    def refuse_constant(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    with TrainingLog(tmp_path, 0) as log:
        log.write("validation", 3, {"loss": float("nan"), "loss_q0": -float("inf"), "loss_q1": 0.5, "images": 7})
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse_constant) == {
        "event": "validation", "step": 3, "loss": None, "loss_q0": None, "loss_q1": 0.5, "images": 7,
    }  # fmt: skip
