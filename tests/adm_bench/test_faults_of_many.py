"""Processes of one training fail together, are brought back together, and stop together; nothing is lost or doubled."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAINING = [
    "--device", "cpu", "--batch", "8", "--steps", "36", "--checkpoint-every", "3", "--log-every", "1", "--keep", "1",
    "--set", "model.channels=32", "--set", "model.num_res_blocks=1", "--set", "model.channel_mult=[1]",
    "--set", "model.attention_resolutions=[]", "--set", "diffusion.timestep_sampler=loss-second-moment",
]  # fmt: skip
PLUGIN = """
import os
from adm_bench.images.digits import open_digits

def open_lost(image_size):
    if os.environ["RANK"] == "1":
        raise ValueError("the disk of this machine is not mounted")
    return open_digits(image_size)
"""
REPEATED_THEN_UNDISTURBED = """
import sys
from adm_bench.cli import main

for out in sys.argv[1:3]:
    main(["train", "adm", "--data", "digits", "--out", out, *sys.argv[3:]], standalone_mode=False)
"""
DEADLINE_SEC = 120


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def launch(processes: Any, *arguments: str | Path, options: tuple[str, ...] = (), **environment: str) -> Any:
    """`torchrun` with two processes of the command line."""
    return processes.start(*LAUNCHER, *options, "-m", "adm_bench", "train", "adm", *arguments, *TRAINING, **environment)


def test_one_that_fails_in_start_up_stops_all_before_anything_is_written(processes: Any, tmp_path: Path) -> None:
    (tmp_path / "lost.py").write_text(PLUGIN)
    known = tmp_path / "lost-1.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1\n")
    (known / "entry_points.txt").write_text("[adm_bench.datasets]\nlost = lost:open_lost\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = tmp_path / "run"
    started = launch(processes, "--data", "lost", "--out", out, PYTHONPATH=path)
    lines = [line for line in processes.errors(started).splitlines() if line]
    assert started.returncode != 0
    assert lines[0].startswith("Error: rank 1: ")
    assert lines[0].endswith("the disk of this machine is not mounted")
    assert sum("not mounted" in line for line in lines) == 1
    assert not out.exists()


def test_processes_of_other_work_do_not_begin(processes: Any, tmp_path: Path) -> None:
    """A machine whose copy of the data is another, or whose command was typed anew."""
    out, port = tmp_path / "run", free_port()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = ["-m", "adm_bench", "train", "adm", "--data", "digits", "--out", out, *TRAINING]
    others = (["--samples-every", "3", "--batch", "8"], ["--samples-every", "4", "--batch", "4"])
    both = [processes.start(*command, *others[rank], RANK=str(rank), **place) for rank in range(2)]
    errors = [processes.errors(each) for each in both]
    assert [each.returncode for each in both] == [2, 2]
    (line,) = (line for text in errors for line in text.splitlines() if line.startswith("Error: "))
    assert line == (
        "Error: rank 1: has other work than the first process (config.training.batch_size: 8 -> 4; when.observations: "
        "[['samples', 3]] -> [['samples', 4]]); give all the same command, the same data and the same version of "
        "adm-bench"
    )
    assert not out.exists()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def wait_for(ready: Callable[[], bool], started: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not ready():
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline, "never became ready"
        time.sleep(0.005)


def workers(launcher: int) -> dict[int, int]:
    """Process ids of the processes that a `torchrun` has started, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (process / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):  # it has just ended
            continue
        ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
        if parent == launcher and ranks:
            found[ranks[0]] = int(process.name)
    return found


def steps(run: Path) -> list[int]:
    """Of its checkpoints."""
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def starts(run: Path) -> list[dict[str, Any]]:
    path = run / "starts.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="which process is which is read from /proc")
def test_killed_brought_back_stopped_and_repeated(processes: Any, tmp_path: Path) -> None:
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    started = launch(processes, "--data", "digits", "--out", out, options=("--max-restarts=1",))
    wait_for(lambda: bool(steps(out)), started)
    first = workers(started.pid)
    os.kill(first[1], signal.SIGKILL)
    wait_for(lambda: len(starts(out)) == 2 and steps(out)[-1] > starts(out)[1]["from_step"], started)
    second = workers(started.pid)
    started.send_signal(signal.SIGTERM)
    errors = processes.errors(started)
    assert started.returncode != 0
    assert len({*first.values()} | {*second.values()}) == 4
    assert not [pid for pid in second.values() if Path(f"/proc/{pid}").exists()]
    brought_back, saved = starts(out)[1]["from_step"], steps(out)[-1]
    assert 3 <= brought_back < saved < 36
    assert errors.count(f"{out}: going on from step {brought_back}\n") == 1
    assert errors.count(f"{out}: stopped and saved after step {saved}; repeat the command to go on\n") == 1
    assert f"\n{errors}".count("\nError: ") == 1, errors  # of the one that was left alone when the other was killed
    assert not (out / "weights.safetensors").exists()

    script = tmp_path / "both.py"
    script.write_text(REPEATED_THEN_UNDISTURBED)
    repeated = processes.start(*LAUNCHER, script, out, undisturbed, *TRAINING)
    errors = processes.errors(repeated)
    assert repeated.returncode == 0, errors
    assert errors.count(f"{out}: going on from step {saved}\n") == 1
    assert [(start["from_step"], start["ranks"]) for start in starts(out)] == [(0, 2), (brought_back, 2), (saved, 2)]
    assert [row["step"] for row in log(out)] == list(range(36))
    assert [row["loss"] for row in log(out)] == [row["loss"] for row in log(undisturbed)]
    assert (out / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
