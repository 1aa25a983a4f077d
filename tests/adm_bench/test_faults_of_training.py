"""Whatever ends a training, the same command goes on with it, and it ends as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

Run = Callable[..., Any]
Refuse = Callable[..., str]
SCRIPT = Path(__file__).with_name("interrupted_trainings.py")
TINY = [
    "--data", "digits", "--device", "cpu", "--batch", "4", "--checkpoint-every", "3", "--log-every", "2",
    "--set", "model.channels=32", "--set", "model.num_res_blocks=1", "--set", "model.channel_mult=[1]",
    "--set", "model.attention_resolutions=[]", "--set", "model.dropout=0.1",
    "--set", "diffusion.timestep_sampler=loss-second-moment",
]  # fmt: skip
TIMES = ("sec", "images_per_sec")


def training(out: Path, steps: int, *options: str | Path) -> list[str | Path]:
    return ["train", "adm", "--out", out, "--steps", str(steps), *TINY, *options]


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
