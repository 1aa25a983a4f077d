"""Killed with SIGKILL and started again, work goes on and ends as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from adm_bench.files import sole_user

SMALL = [
    "--set", "model.num_res_blocks=1", "--set", "model.attention_resolutions=[4]",
    "--set", "model.dropout=0.1", "--batch", "8", "--device", "cpu",
]  # fmt: skip
DEADLINE_SEC = 120


def kill_when(arguments: list[str], ready: Callable[[], bool]) -> None:
    """Start `adm-bench ARGUMENTS` as a process of its own and kill it as soon as `ready()`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adm_bench", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + DEADLINE_SEC
        while not ready():
            assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
            assert time.monotonic() < deadline, "never became ready"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()


def finish(arguments: list[str]) -> str:
    """Run `adm-bench ARGUMENTS` to its end; returns stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adm_bench", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps in one go, and its samples."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(training(folder, steps=60))
    finish(sampling(folder, folder / "run"))
    return folder


def training(folder: Path, steps: int) -> list[str]:
    return [
        "train", "adm", "--data", "digits", "--out", str(folder / "run"),
        "--steps", str(steps), "--checkpoint-every", "10", *SMALL,
    ]  # fmt: skip


def sampling(folder: Path, weights: Path) -> list[str]:
    return [
        "sample", "adm", "--weights", str(weights), "--num", "36", "--batch", "4", "--sampling-steps", "40",
        "--labels", "random", "--out", str(folder / "samples.npz"), "--device", "cpu",
    ]  # fmt: skip


def test_killed_twice_equals_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    kill_when(training(tmp_path, 60), (checkpoints / "step_00000020").is_dir)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert "going on from step" in finish(training(tmp_path, 60))
    ours, theirs = (load_file(folder / "run" / "weights.safetensors") for folder in (tmp_path, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    logs = [(folder / "run" / "log.jsonl").read_text().count('"step"') for folder in (tmp_path, undisturbed)]
    assert logs[0] == logs[1]

    parts = tmp_path / "samples.npz.parts"
    arguments = sampling(tmp_path, tmp_path / "run")
    kill_when(arguments, lambda: len(list(parts.glob("0*.npz"))) >= 2)
    assert not (tmp_path / "samples.npz").exists()
    assert "going on from" in finish(arguments)
    assert not parts.exists()
    with np.load(tmp_path / "samples.npz") as resumed, np.load(undisturbed / "samples.npz") as whole:
        np.testing.assert_array_equal(resumed["arr_0"], whole["arr_0"])
        np.testing.assert_array_equal(resumed["arr_1"], whole["arr_1"])


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = (undisturbed / "run" / "weights.safetensors").stat().st_mtime_ns
    assert "already trained" in finish(training(undisturbed, 60))
    assert (undisturbed / "run" / "weights.safetensors").stat().st_mtime_ns == before


def test_another_plan_is_refused_and_named(undisturbed: Path, refuse: Callable[..., str]) -> None:
    assert "config.training.steps: 60 -> 61" in refuse(*training(undisturbed, 61))
    assert (undisturbed / "run" / "weights.safetensors").exists()


def test_parts_of_other_samples_are_refused(undisturbed: Path, refuse: Callable[..., str], tmp_path: Path) -> None:
    arguments = sampling(tmp_path, undisturbed / "run")
    parts = tmp_path / "samples.npz.parts"
    kill_when(arguments, lambda: len(list(parts.glob("0*.npz"))) >= 1)
    assert "seed: 0 -> 1" in refuse(*arguments, "--seed", "1")
    assert list(parts.glob("0*.npz"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(undisturbed: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    kill_when(training(tmp_path, 60), (checkpoints / "step_00000020").is_dir)
    newest = sorted(checkpoints.glob("step_*"))[-1]
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    said = finish(training(tmp_path, 60))
    assert f"damaged: {newest.name}: model.safetensors has 1000 bytes" in said
    ours, theirs = (load_file(folder / "run" / "weights.safetensors") for folder in (tmp_path, undisturbed))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_two_processes_never_share_a_folder(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with sole_user(tmp_path / "run"):
        assert "another process is at work there" in refuse(*training(tmp_path, 60))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_overwrite_deletes_only_what_is_a_runs(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("precious")
    finish([*training(tmp_path, 2), "--overwrite"])
    assert (tmp_path / "run" / "notes.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
