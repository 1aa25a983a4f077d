"""Interrupts a training over and over, beside an undisturbed one: `interrupted_trainings.py FOLDER SEED OPTIONS`.

The options are those of `adm-bench train adm` but for `--out`; the runs are FOLDER/interrupted and FOLDER/undisturbed.
Every start is a child of this process, which has imported what a training imports and computed nothing, so that twenty
starts take seconds. A child is stopped (SIGSTOP) before it is sent a signal: what it was doing is then known for sure.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from adm_bench.cli import main

IMPORTED = (
    "sklearn.datasets",
    "torch._dynamo",
    "adm_bench.commands.train",
    "adm_bench.compute",
    "adm_bench.images.sources",
    "adm_bench.observations",
    "generators.adm.presets",
    "generators.adm.trainer",
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOMENTS = [(moment, number) for moment in ("start", *["step"] * 4, *["write"] * 5) for number in SIGNALS]
MOST_STEPS = 5
DEADLINE_SEC = 60.0


@dataclass(frozen=True)
class Interrupted:
    """One start and its end."""

    moment: str
    signal: str
    writing: bool
    """Whether a checkpoint was being written, or an old one removed, when the signal came."""
    status: int
    """Exit status; of a process that a signal ended, the signal's number below zero."""
    said: str
    newest: str
    """The newest checkpoint afterwards."""


class Start:
    """A child that trains."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder = folder
        self.starts = self.rows("starts.jsonl")
        self.left = self.partial()
        self.output = folder.with_name(f"{folder.name}.txt")
        self.child = os.fork()
        if self.child == 0:
            _work(["train", "adm", "--out", str(folder), *options], self.output)

    def rows(self, name: str) -> int:
        path = self.folder / name
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def has_begun(self) -> bool:
        return self.rows("starts.jsonl") > self.starts

    def partial(self) -> set[Path]:
        return set((self.folder / "checkpoints").glob(".step_*.partial"))

    @property
    def is_writing(self) -> bool:
        return bool(self.partial() - self.left)  # not what an earlier start has left

    def has_reached(self, further: int) -> bool:
        """Whether the log says that so many steps were taken since this start."""
        if not self.has_begun or not (self.folder / "log.jsonl").exists():
            return False
        start = json.loads((self.folder / "starts.jsonl").read_text().splitlines()[-1])["from_step"]
        lines = [line for line in (self.folder / "log.jsonl").read_text().splitlines() if line.endswith("}")]
        return not further or (bool(lines) and json.loads(lines[-1])["step"] + 1 >= start + further)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SEC
        while not ready():
            ended, status = os.waitpid(self.child, os.WNOHANG)
            assert not ended, f"ended before it was interrupted ({status}): {self.output.read_text()}"
            assert time.monotonic() < deadline, "never became ready"
            time.sleep(0.0005)

    def stop(self) -> None:
        os.kill(self.child, signal.SIGSTOP)
        _, status = os.waitpid(self.child, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended before it was interrupted ({status}): {self.output.read_text()}"

    def stop_at(self, moment: str) -> None:
        """Stop the child at a random moment of a kind; at a write, when it surely writes."""
        if moment == "start":
            time.sleep(random.uniform(0, 0.3))
            self.stop()
            return
        if moment == "step":
            further = random.randrange(MOST_STEPS)
            self.wait_until(lambda: self.has_reached(further))
            time.sleep(random.uniform(0, 0.05))
            self.stop()
            return
        while True:
            self.wait_until(lambda: self.is_writing)
            time.sleep(random.uniform(0, 0.02))
            self.stop()
            if self.is_writing:
                return
            os.kill(self.child, signal.SIGCONT)

    def end(self, number: int) -> int:
        """Send the signal; the exit status, or the signal's number below zero."""
        os.kill(self.child, number)
        os.kill(self.child, signal.SIGCONT)
        return self.status()

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def _work(arguments: Sequence[str], output: Path) -> None:
    status = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        main(list(arguments))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001  it must not go on as its parent does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def interrupted(folder: Path, options: Sequence[str]) -> list[Interrupted]:
    """Interrupt as `MOMENTS` says, in random order."""
    found = []
    for moment, number in random.sample(MOMENTS, len(MOMENTS)):
        start = Start(folder, options)
        start.stop_at(moment)
        writing = start.is_writing
        status = start.end(number)
        kept = sorted((folder / "checkpoints").glob("step_*"))
        said, newest = start.output.read_text(), kept[-1].name if kept else ""
        found.append(Interrupted(moment, number.name, writing, status, said, newest))
    return found


if __name__ == "__main__":
    place, seed, given = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    random.seed(seed)
    for name in IMPORTED:
        import_module(name)
    undisturbed = Start(place / "undisturbed", given)
    rows = interrupted(place / "interrupted", given)
    last = Start(place / "interrupted", given)
    statuses = (undisturbed.status(), last.status())
    sys.stdout.write(json.dumps({"interrupted": [asdict(row) for row in rows], "statuses": statuses}))
