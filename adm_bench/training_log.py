"""What a training run writes down as it goes: JSON lines, and events for TensorBoard."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from adm_bench.files import flush, write_text
from adm_bench.runs import EVENTS_FOLDER, LOG_FILE
from generators.protocol import Mean, StepReport

QUARTILE = re.compile(r"_q\d$")


class TrainingLog:
    """A run's log, which goes on at a step: what was logged of later ones is forgotten, for they come again.

    A line is an event of a step, counted from 0: `training` (means over the steps since the last such line),
    `skipped` (a step), `unreadable` (images, when first met), `samples`, `validation`, `evaluation`. Only the first of
    several processes writes.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        *,
        writes: bool = True,
        room: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`room` stands around every line and is given its bytes, as `adm_bench.checkpoints.Checkpoints.room`."""
        self.writes = writes
        self._room = room
        self._seen: set[tuple[str, int]] = set()
        if not writes:
            return
        self._path = folder / LOG_FILE
        self._keep_before(self._path, start)
        self._file = self._path.open("a", encoding="utf-8")
        (folder / EVENTS_FOLDER).mkdir(exist_ok=True)
        # The package names files by the second alone, and would write over an earlier start's of the same second.
        self._events = EventsWriter(str(folder / EVENTS_FOLDER / "events"), f".{time.time_ns()}")
        # TensorBoard drops what earlier files say of this step and later ones.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=start, session_log=session))

    def _keep_before(self, path: Path, start: int) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            row = _row(line)
            if row and row["step"] < start:
                kept.append(f"{line}\n")
                self._seen.add((row["event"], row["step"]))
        text = "".join(kept)
        with self._room(len(text)):
            write_text(path, text)

    def has(self, event: str, step: int) -> bool:
        """Whether an earlier start has logged an event of a step."""
        return (event, step) in self._seen

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line; its numbers become points of TensorBoard's curves `event/name`.

        Numbers that are not finite are null, for JSON has no others.
        """
        if not self.writes:
            return
        row = {name: None if _is_not_finite(value) else value for name, value in values.items()}
        line = json.dumps({"event": event, "step": step, **row}, allow_nan=False) + "\n"
        with self._room(len(line)):
            self._file.write(line)
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    point = event_pb2.Event(wall_time=time.time(), step=step, summary=scalar(f"{event}/{name}", value))
                    self._events.write_event(point)
            self._events.flush()

    def flush(self) -> None:
        """Return when all lines are on the disk: of steps that a checkpoint has, none is ever logged again."""
        if self.writes:
            flush(self._path)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.writes:
            return
        # After an error, what could not be written then cannot be now, and the first error is the one to be said.
        for file in (self._file, self._events):
            with suppress(OSError) if error else nullcontext():
                file.close()


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _row(line: str) -> Mapping[str, Any]:
    """What a line says; nothing where a crash has cut it, or left zeros in its place."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and {"event", "step"} <= row.keys() else {}


class Totals:
    """Means that are added up until they are logged; plain data in between, for a checkpoint to keep."""

    def __init__(self, kept: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.totals = {name: Mean(*pair) for name, pair in (kept or {}).items()}

    def add(self, means: Mapping[str, Mean]) -> None:
        """Add those of one more step, or of one more batch."""
        for name, mean in means.items():
            before = self.totals.get(name, Mean(0.0, 0.0))
            self.totals[name] = Mean(before.total + mean.total, before.number + mean.number)

    def taken(self) -> dict[str, float]:
        """Every mean by its name; the totals start again."""
        means = {name: mean.total / mean.number for name, mean in sorted(self.totals.items()) if mean.number}
        self.totals = {}
        return means


def step_note(report: StepReport, images_per_sec: float, device_note: str) -> str:
    """What a person sees of a step beside its number: short, for a line of a terminal."""
    loss = report.means["loss"]
    parts = [f"loss {loss.total / loss.number:.4f}"]
    parts += [f"{images_per_sec:.3g} images/s", f"lr {report.values['learning_rate']:.2g}"]
    if report.values.get("loss_scale", 1.0) != 1:
        parts.append(f"scale {report.values['loss_scale']:g}")
    return ", ".join(parts + ([device_note] if device_note else []))


def observation_note(event: str, step: int, values: Mapping[str, Any]) -> str:
    """What a person sees of an observation after `step` steps: its numbers over all timesteps, and its picture."""
    shown = [
        f"{name} {value:.4g}" if isinstance(value, float) else str(value)
        for name, value in values.items()
        if isinstance(value, str | float) and not QUARTILE.search(name)
    ]
    return f"step {step}: {event}: {', '.join(shown)}"
