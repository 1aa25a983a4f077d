"""Whatever ends a training, the same command goes on with it, and it ends as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tensorboardX.proto import event_pb2
from torch import Tensor

from adm_bench.checkpoints import verified
from adm_bench.cli import main
from generators.protocol import StepReport, TrainingBatch
from generators.training.network_trainer import NetworkTrainer

Run = Callable[..., Any]
Refuse = Callable[..., str]
SCRIPT = Path(__file__).with_name("interrupted_trainings.py")
TINY = [
    "--data", "digits", "--device", "cpu", "--batch", "4", "--checkpoint-every", "3", "--log-every", "2",
    "--set", "model.channels=32", "--set", "model.num_res_blocks=1", "--set", "model.channel_mult=[1]",
    "--set", "model.attention_resolutions=[]", "--set", "model.dropout=0.1", "--set", "training.warmup_steps=5",
    "--set", "diffusion.timestep_sampler=loss-second-moment",
]  # fmt: skip
TIMES = ("sec", "images_per_sec")


def training(out: Path, steps: int, *options: str | Path) -> list[str | Path]:
    return ["train", "adm", "--out", out, "--steps", str(steps), *TINY, *options]


def run_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def log(run: Path) -> list[dict[str, Any]]:
    """The rows of a log, without what the clock decides."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def curves(run: Path) -> dict[tuple[str, int], float]:
    """The points that TensorBoard shows: a start at a step drops what earlier files have from there on."""
    points: dict[tuple[str, int], float] = {}
    for path in sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
            place += 12 + size + 4
            if event.HasField("session_log"):
                points = {key: value for key, value in points.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in points, "a step comes twice"
                points[value.tag, event.step] = value.simple_value
    return {key: value for key, value in points.items() if key[0].partition("/")[2] not in TIMES}


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def require_same_end(ours: Path, theirs: Path) -> None:
    """Weights, rows of the log, points of the curves and the last checkpoint, without what the clock decides."""
    assert (ours / "weights.safetensors").read_bytes() == (theirs / "weights.safetensors").read_bytes()
    assert log(ours) == log(theirs)
    assert curves(ours) == curves(theirs)
    assert newest(ours).name == newest(theirs).name
    names = {path.name for path in newest(theirs).iterdir()}
    assert {path.name for path in newest(ours).iterdir()} == names
    for name in names - {"progress.json", "manifest.json"}:
        assert (newest(ours) / name).read_bytes() == (newest(theirs) / name).read_bytes()
    reached = [json.loads((newest(run) / "progress.json").read_text()) for run in (ours, theirs)]
    for found in reached:
        assert found["reached"].pop("training_sec") > 0
    assert reached[0] == reached[1]


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(*training(out, 12))
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped by SIGTERM after 7 steps, between two lines of the log; checkpoints of 3, 6 and 7 steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        result = run_command(*training(out, 12))
    assert (result.exit_code, result.stdout) == (143, "")
    assert result.stderr.splitlines() == [f"{out}: stopped and saved after step 7; repeat the command to go on"]
    return out


def at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Let something happen while a step is taken, counted from 0."""
    take = NetworkTrainer.train_step

    def train_step(self: NetworkTrainer, batch: TrainingBatch) -> StepReport:
        if batch.step == step:
            action()
        return take(self, batch)

    patch.setattr(NetworkTrainer, "train_step", train_step)


def test_interrupted_at_random_moments_it_ends_as_undisturbed(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(seed), "--steps", "75", *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = json.loads(done.stdout)
    assert found["statuses"] == [0, 0], f"seed {seed}"
    rows = found["interrupted"]
    assert len(rows) == 20
    for name in ("SIGKILL", "SIGTERM"):
        assert sum(row["signal"] == name and row["writing"] for row in rows) >= 5
    for row in rows:
        saved = [line for line in row["said"].splitlines() if "stopped and saved" in line]
        if row["status"] == 143:
            assert len(saved) == 1, f"seed {seed}: {row}"
            said = f"after step {int(row['newest'].removeprefix('step_'))}; repeat the command to go on"
            assert saved[0].endswith(said), f"seed {seed}: {row}"
        else:  # killed, or asked to end before there was anything to save
            assert row["status"] == (-9 if row["signal"] == "SIGKILL" else -15), f"seed {seed}: {row}"
            assert not saved
    assert sum(row["status"] == 143 for row in rows) >= 5
    require_same_end(tmp_path / "interrupted", tmp_path / "undisturbed")


def test_stopped_by_sigterm_it_goes_on(run: Run, undisturbed: Path, stopped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert run(*training(out, 12)).stderr.splitlines()[0] == f"{out}: going on from step 7"
    require_same_end(out, undisturbed)


def test_ctrl_c_is_no_other_wish(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice at once is once: launchers hand on what the terminal has sent already."""
    out = Path(shutil.copytree(stopped, tmp_path / "run"))

    def press_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 9, press_twice)
    result = run_command(*training(out, 12))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"{out}: stopped and saved after step 10; repeat the command to go on"
    assert newest(out).name == "step_00000010"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (truncate, "exp_avg.safetensors", "exp_avg.safetensors has "),
        (flip_a_byte, "model.safetensors", "model.safetensors is not what was written"),
        (flip_a_byte, "progress.json", "progress.json is not what was written"),
        (Path.unlink, "counters.safetensors", "counters.safetensors is missing"),
        (Path.unlink, "manifest.json", "manifest.json is missing"),
    ],
)
def test_a_damaged_newest_checkpoint_costs_a_step(
    damage: Callable[[Path], None], name: str, reason: str, run: Run, undisturbed: Path, stopped: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    damage(out / "checkpoints" / "step_00000007" / name)
    said = run(*training(out, 12)).stderr.splitlines()
    assert said[0].startswith(f"{out / 'checkpoints'}: damaged: step_00000007: {reason}")
    assert said[0].endswith("moved to damaged_..., going on from step_00000006, the one before")
    assert said[1] == f"{out}: going on from step 6"
    require_same_end(out, undisturbed)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step_{step:08d}" for step in (6, 9, 12)}


def test_a_disk_that_is_full_when_the_log_is_written(
    small_disk: Path, run: Run, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a page is left after the first of two checkpoints, and the lines up to the other would need two."""
    out, whole, options = small_disk / "run", tmp_path / "whole", ["--log-every", "1", "--checkpoint-every", "12"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run(*training(whole, 24, *options))

    def fill() -> None:
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with monkeypatch.context() as patch:
        at_step(patch, 12, fill)
        line = refuse(*training(out, 24, *options))
    assert "disk full: needs " in line
    assert "has 0 bytes free; last checkpoint step_00000012 is intact; free space and repeat the command" in line
    (small_disk / "filler").unlink()
    run(*training(out, 24, *options))
    require_same_end(out, whole)


def overflow_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let one number of one gradient be infinite at a step."""
    accumulate = NetworkTrainer.accumulate

    def overflowing(self: NetworkTrainer, batch: TrainingBatch) -> dict[str, Tensor]:
        seen = accumulate(self, batch)
        if batch.step == step:
            next(iter(self.gradients().values())).view(-1)[0] = torch.inf
        return seen

    patch.setattr(NetworkTrainer, "accumulate", overflowing)


def kept(run: Path, step: int) -> dict[str, dict[str, Tensor]]:
    return verified(run / "checkpoints" / f"step_{step:08d}").state()


def differing(ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]) -> set[str]:
    """The groups that are not the same, bit for bit."""
    assert ours.keys() == theirs.keys()
    return {
        group
        for group, tensors in theirs.items()
        if not all(ours[group][name].equal(tensor) for name, tensor in tensors.items())
    }


LEARNED = {"model", "ema_0.998", "exp_avg", "exp_avg_sq", "counters", "timestep_sampler"}


def test_an_overflow_halves_the_scale_and_skips_exactly_that_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_at(monkeypatch, 5)
    options = ["--precision", "fp16", "--checkpoint-every", "1", "--keep", "9", "--log-every", "1"]
    out, cut = tmp_path / "run", tmp_path / "cut"
    run(*training(out, 9, *options))
    rows = log(out)
    assert [row["step"] for row in rows if row["event"] == "skipped"] == [5]
    assert [row["loss_scale"] for row in rows if row["event"] == "training"] == [65536.0] * 6 + [32768.0] * 3
    skipped, same_step = (row for row in rows if row["step"] == 5)
    assert skipped == {
        "event": "skipped", "step": 5, "reason": "the norm of the gradients is inf", "loss_scale": 65536.0
    }  # fmt: skip
    assert "loss" not in same_step
    assert differing(kept(out, 6), kept(out, 5)) == {"counters"}  # of which the scale is one
    for step in (4, 6, 7, 8):
        assert differing(kept(out, step + 1), kept(out, step)) == LEARNED
    assert [kept(out, step)["counters"]["optimizer_steps"].item() for step in (5, 6, 9)] == [5, 5, 8]
    with monkeypatch.context() as patch:  # stopped within the very step that overflows
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_command(*training(cut, 9, *options)).exit_code == 143
    run(*training(cut, 9, *options))
    require_same_end(cut, out)


def test_ten_overflows_in_a_row_stop_with_the_last_checkpoint_good(
    run: Run, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fifth step on the scale is absurd, so that half precision really overflows."""
    take = NetworkTrainer.train_step

    def train_step(self: NetworkTrainer, batch: TrainingBatch) -> StepReport:
        if batch.step == 4:
            self.scale.value = 2.0**60
        return take(self, batch)

    monkeypatch.setattr(NetworkTrainer, "train_step", train_step)
    out, options = tmp_path / "run", ["--precision", "fp16", "--keep", "9"]
    good = out / "checkpoints" / "step_00000012"
    for _ in range(2):  # the same command stops at the same place
        line = refuse(*training(out, 30, *options))
        assert f"{out}: the " in line
        assert "at step 13, the last of 10 in a row (last good checkpoint: step_00000012)" in line
        assert f"begin another run --from {good / 'model.safetensors'} with a lower learning rate" in line
        assert [row["step"] for row in log(out) if row["event"] == "skipped"] == [*range(4, 14)]
    state = kept(out, 12)
    assert all(tensor.isfinite().all() for tensors in state.values() for tensor in tensors.values())
    assert state["counters"] == {"optimizer_steps": 4, "loss_scale": 2.0**52, "steps_since_overflow": 0}
    assert differing(state, kept(out, 6)) == {"counters"}
    monkeypatch.undo()
    run(*training(tmp_path / "other", 3, "--from", good / "model.safetensors"))
