"""`adm-bench train` as a person meets it: what it refuses and how it says so, and what it shows."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adm_bench.ranks import Ranks
from generators.training.network_trainer import NetworkTrainer

Run = Callable[..., Any]
Refuse = Callable[..., str]

STAGES = """
import time
from adm_bench import progress
with progress.stage("train adm128", 1_000_000, "steps", done=123_450) as advance:
    for _ in range(3):
        advance(1, note="loss 0.0253, 1.06e+03 images/s, lr 0.0001, scale 65536, 40.1 GiB, 45% of peak, and more")
    progress.say("step 123453: samples: samples/step_00123453.png")
    with progress.stage("evaluate step 123453", 1000, "images") as inner:
        inner(500)
        time.sleep(0.5)  # the display is drawn ten times a second
    advance(1, note="loss 0.0253")
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of two classes, by their names."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{'ab'[index % 2]}_{index}.png")
    return folder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--steps", "4", "--set", "training.steps=5"], "--steps says training.steps 4, and --set says 5"),
        (["--batch", "4", "--set", "training.batch_size=5"], "--batch says training.batch_size 4, and --set says 5"),
        (["--steps", "4", "--images", "9"], "--steps 4 and --images 9: give one of them"),
        (["--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        (["--hours", "0"], "0.0 is not in the range x>0"),
        (["--preset", "digits8_classifier"], "is for trainer 'classifier', not 'adm'"),
        (["--set", "model.num_classes=5"], "has 10 classes, but model.num_classes is 5; give --set model.num_classes"),
        (["--labels", "none"], "has no labels, but model.num_classes is 10; where names of files begin with their"),
        (["--batch", "1798"], "holds 1797 images, but batch_size is 1798; choose a batch that is no larger"),
        (["--set", "training.stepz=3"], "unknown key 'stepz'; did you mean 'steps'?"),
        (["--from", "nowhere/model000100.pt"], "--from nowhere/model000100.pt: no such file; give a modelNNNNNN.pt"),
        (
            ["--from", "."],
            "--from .: is a folder; give a modelNNNNNN.pt or a weights file, such as the model",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    options: list[str], expected: str, refuse: Refuse, tmp_path: Path
) -> None:
    assert expected in refuse(
        "train", "adm", "--data", "digits", "--out", tmp_path / "run", "--device", "cpu", *options
    )
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_images_decide_the_number_of_steps(run: Run, tmp_path: Path) -> None:
    said = run("train", "adm", "--data", "digits", "--out", tmp_path, "--images", "100", "--batch", "32", "--dry-run")
    assert '"steps": 4' in said.stdout


@pytest.mark.parametrize("size", ["abc", "0", "-4", "[2]", "2.5"])
def test_length_in_images_needs_a_batch(size: str, refuse: Refuse, tmp_path: Path) -> None:
    options = ["--images", "9", "--set", f"training.batch_size={size}", "--dry-run"]
    said = refuse("train", "adm", "--data", "digits", "--out", tmp_path, *options)
    assert "training.batch_size is " in said
    assert "expected 1 or more" in said


def test_of_many_processes_the_first_alone_prints_a_plan(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["train", "adm", "--data", "digits", "--out", tmp_path, "--device", "cpu", "--dry-run"]
    assert run(*command).stdout.startswith("{")
    monkeypatch.setattr("adm_bench.ranks.joined_ranks", lambda *_, **__: nullcontext(Ranks(rank=1)))
    assert run(*command).stdout == ""


def test_memory_that_does_not_suffice_is_an_error_with_a_way_out(
    run: Run, refuse: Refuse, tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "adm", "--data", "digits", "--out", tmp_path / "run", "--steps", "2", *tiny]

    def train_step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")

    with monkeypatch.context() as patch:
        patch.setattr(NetworkTrainer, "train_step", train_step)
        line = refuse(*command)
    said = "CUDA out of memory. Tried to allocate 2.00 GiB; give --set training.microbatch_size=N with fewer images"
    assert line.startswith(f"Error: cpu: {said}")
    run(*command, "--set", "training.microbatch_size=2", "--set", "training.recompute_activations=true")


def test_a_run_that_never_began_stands_in_nobodys_way(
    pictures: Path, run: Run, refuse: Refuse, tiny: Sequence[str], tmp_path: Path
) -> None:
    """An image turns out to be unreadable: the command has to be possible in another way."""
    (pictures / "b_bad.png").write_bytes((pictures / "b_1.png").read_bytes()[:80])
    command = ["train", "adm", "--data", pictures, "--out", tmp_path / "run", "--steps", "2", *tiny]
    assert "has no labels, but model.num_classes is 10" in refuse(*command)
    command += ["--labels", "prefix"]
    assert re.search(r"b_bad.png: not a readable image .*; mend or remove it", refuse(*command))
    run(*command, "--skip-bad", "1")
    line = refuse(*command, "--skip-bad", "1", "--seed", "1")
    assert "holds a run that differs (seed: 0 -> 1); choose another --out" in line


def test_what_a_folder_holds_and_training_leaves_out_is_said(
    pictures: Path, run: Run, tiny: Sequence[str], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for path in pictures.glob("?_?.png"):
        (tmp_path / "set" / path.name[0] / path.name.removesuffix("5.png")).write_bytes(path.read_bytes())
    options = ["--out", tmp_path / "run", *tiny, "--batch", "4", "--dry-run"]
    said = run("train", "adm", "--data", tmp_path / "set", *options).stderr
    assert "set: 1 files that begin as images do are left out" in said
    assert "set: 1 folders hold no images, so they are no classes (such as c): classes are numbered without" in said


def test_validation_images_of_other_classes_are_refused(pictures: Path, refuse: Refuse, tmp_path: Path) -> None:
    """Labels are ranks of names, and would mean other classes."""
    other = tmp_path / "other"
    other.mkdir()
    for path in pictures.iterdir():
        (other / path.name.replace("a_", "c_")).write_bytes(path.read_bytes())
    data = ["--data", pictures, "--labels", "prefix", "--out", tmp_path / "run", "--batch", "4", "--device", "cpu"]
    said = refuse("train", "classifier", *data, "--validation", other, "--set", "model.num_classes=2")
    assert f"--validation {other}: has other classes than {pictures}, such as 'a' on one side only" in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_kind_of_folder_is_left_alone(
    model: Path, refuse: Refuse, reference: Path, tiny: Sequence[str]
) -> None:
    command = ["train", "classifier", "--data", "digits", "--steps", "3", *tiny, "--out"]
    assert "holds a training run of trainer 'adm', not 'classifier'" in refuse(*command, model)
    assert "is no training run but a file of samples or a reference" in refuse(*command, reference)
    assert "is no training run but a folder with other files in it" in refuse(*command, reference.parent)


def test_help_fits_eighty_columns(run: Run) -> None:
    text = run("train", "--help").stdout
    assert max(map(len, text.splitlines())) <= 80


def shown(terminal: str) -> list[str]:
    """Lines as a terminal of 80 columns was sent them, without colours."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", terminal)))


def test_stages_within_stages_fit_a_terminal_of_eighty_columns() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen([sys.executable, "-c", STAGES], env=environment, stderr=theirs) as process:
        os.close(theirs)
        chunks = []
        try:
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)
        except OSError:  # Linux says so that the other side has closed
            pass
    os.close(ours)
    assert process.returncode == 0
    lines = shown(b"".join(chunks).decode())
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"^train adm128 .*123453/1000000 steps, .*left", line) for line in lines)
    assert any(line.startswith("  loss 0.0253, 1.06e+03 images/s, lr 0.0001, scale 65536, 40.1 GiB") for line in lines)
    assert any(re.search(r"^evaluate step 123453 .*500/1000 images", line) for line in lines)
    assert "step 123453: samples: samples/step_00123453.png" in [line.rstrip() for line in lines]
    assert not any("evaluate" in line for line in lines[-4:])


def test_without_a_terminal_lines_are_plain(run: Run, tiny: Sequence[str], tmp_path: Path) -> None:
    done = run(
        "train", "adm", "--data", "digits", "--out", tmp_path / "run", "--steps", "2", *tiny,
        "--samples-every", "2", "--sampling-steps", "2",
    )  # fmt: skip
    assert "\x1b" not in done.output
    assert "step 2: samples: samples/step_00000002.png" in done.stderr.splitlines()
    assert "2 steps, 16 images in" in done.stdout
    assert max(len(line) for line in done.stderr.splitlines()) <= 80
