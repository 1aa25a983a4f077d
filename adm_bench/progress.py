"""Progress of long work on stderr: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

WINDOW_SEC = 15.0
PLAIN_INTERVAL_SEC = 10.0
WORTH_A_LINE_SEC = 2.0


class Advance(Protocol):
    """Reports work done in a stage."""

    def __call__(self, amount: float, note: str = "", sec: float | None = None) -> None:
        """`amount` more units are done; `note` says what else is worth seeing now.

        They took `sec` seconds, or, if that is None, all the time since the last units.
        """


class Pace:
    """What is done, how fast it goes now (over the last seconds, not since the start), and what is left."""

    def __init__(self, total: int, done: float) -> None:
        self.total = total
        self.done: float = done
        self.start = time.perf_counter()
        self.marks: deque[tuple[float, float]] = deque([(0.0, self.done)])

    def advance(self, amount: float, sec: float | None) -> None:
        """See `Advance`."""
        now = time.perf_counter() - self.start if sec is None else self.marks[-1][0] + sec
        self.done += amount
        self.marks.append((now, self.done))
        while len(self.marks) > 2 and now - self.marks[1][0] > WINDOW_SEC:
            self.marks.popleft()

    def text(self, unit: str) -> str:
        """Done, rate and time left."""
        (start, before), (end, after) = self.marks[0], self.marks[-1]
        rate = (after - before) / max(end - start, 1e-9)
        left = timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"
        return f"{round(self.done)}/{self.total} {unit}, {rate:.3g}/s, {left} left"


def _is_silent() -> bool:
    """Whether another process of `torchrun` speaks to the person."""
    return os.environ.get("RANK", "0") != "0"


@contextmanager
def stage(title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show one stage: its title, what is done, the rate and the time left; `done` were there before."""
    pace = Pace(total, done)
    if _is_silent():
        yield lambda amount, note="", sec=None: None  # noqa: ARG005  the names are part of the call
        return
    with _bar(title, unit, pace) if sys.stderr.isatty() else _lines(title, unit, pace) as advance:
        yield advance


class Display(Progress):
    """Bars of a stage and of those within it; what each notes has a line of its own, cut where the terminal ends."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """See `Progress`."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", no_wrap=True, overflow="ellipsis")


_shown: list[Display] = []


@contextmanager
def _display() -> Iterator[Display]:
    """The display that a stage around this one has opened: two at once would write over each other."""
    if _shown:
        yield _shown[-1]
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[text]}"))
    with Display(*columns, console=Console(stderr=True), expand=True) as display:
        _shown.append(display)
        try:
            yield display
        finally:
            _shown.pop()


@contextmanager
def _bar(title: str, unit: str, pace: Pace) -> Iterator[Advance]:
    is_inner = bool(_shown)
    with _display() as display:
        task = display.add_task(title, total=pace.total, completed=round(pace.done), text="", note="")

        def advance(amount: float, note: str = "", sec: float | None = None) -> None:
            pace.advance(amount, sec)
            display.update(task, completed=pace.done, text=pace.text(unit), note=note)

        try:
            yield advance
        finally:
            if is_inner:
                display.remove_task(task)


@contextmanager
def _lines(title: str, unit: str, pace: Pace) -> Iterator[Advance]:
    last = pace.start

    def advance(amount: float, note: str = "", sec: float | None = None) -> None:
        nonlocal last
        pace.advance(amount, sec)
        now = time.perf_counter()
        if now - last >= PLAIN_INTERVAL_SEC and pace.done < pace.total:
            last = now
            say(f"{title}: {pace.text(unit)}{f', {note}' if note else ''}")

    yield advance
    seconds = time.perf_counter() - pace.start
    if seconds >= WORTH_A_LINE_SEC:
        say(f"{title}: {round(pace.done)}/{pace.total} {unit} in {seconds:.0f} s")


def say(line: str) -> None:
    """One plain line to the person, on stderr."""
    if not _is_silent():
        print(line, file=sys.stderr, flush=True)  # noqa: T201
