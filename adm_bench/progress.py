"""Progress of long work on stderr: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

PLAIN_INTERVAL_SEC = 10.0


class Advance(Protocol):
    """Reports work done in a stage."""

    def __call__(self, amount: int, note: str = "") -> None:
        """`amount` more units are done; `note` says what else is worth seeing now."""


@contextmanager
def stage(title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show one stage: its title, what is done, the rate and the time left; `done` were there before."""
    if sys.stderr.isatty():
        with _bar(title, total, unit, done) as advance:
            yield advance
    else:
        yield from _lines(title, total, unit, done)


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    start = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(title, total=total, completed=done, unit=unit, rate="", note="")
        made = 0

        def advance(amount: int, note: str = "") -> None:
            nonlocal made
            made += amount
            rate = made / max(time.perf_counter() - start, 1e-9)
            bar.update(task, advance=amount, rate=f"{rate:.3g}/s", note=note)

        yield advance


def _lines(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    start = last = time.perf_counter()
    made = 0

    def advance(amount: int, note: str = "") -> None:
        nonlocal made, last
        made += amount
        now = time.perf_counter()
        if now - last >= PLAIN_INTERVAL_SEC and done + made < total:
            last = now
            rate = made / (now - start)
            left = timedelta(seconds=round((total - done - made) / rate)) if rate else "unknown"
            say(f"{title}: {done + made}/{total} {unit}, {rate:.3g}/s, {left} left{f', {note}' if note else ''}")

    yield advance
    seconds = time.perf_counter() - start
    if seconds >= 2:
        say(f"{title}: {done + made}/{total} {unit} in {seconds:.0f} s")


def say(line: str) -> None:
    """One plain line to the person, on stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
