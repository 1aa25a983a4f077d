"""The rate and the time left that a person is shown."""

import time

import pytest

from adm_bench import progress
from adm_bench.progress import WINDOW_SEC, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only tests change."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert progress.time is time
    return now


def test_the_rate_is_that_of_the_last_seconds(clock: list[float]) -> None:
    pace = Pace(1000, 10)
    assert pace.text("images") == "10/1000 images, 0/s, ? left"
    for sec in (100.0, *[0.5] * 40):
        clock[0] += sec
        pace.advance(1, None)
    assert WINDOW_SEC < 40 * 0.5
    assert pace.text("images") == "51/1000 images, 2/s, 0:07:54 left"


def test_checkpoints_and_evaluations_are_none_of_the_pace(clock: list[float]) -> None:
    pace = Pace(100, 10)
    for other in (0.0, 600.0, 0.0, 0.0):
        clock[0] += 0.5 + other
        pace.advance(1, 0.5)
    assert pace.text("steps") == "14/100 steps, 2/s, 0:00:43 left"
