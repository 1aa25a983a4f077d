import itertools

import pytest
import torch

import metrics.throughput
from metrics.throughput import measure_throughput


def test_median_and_spread_leave_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    now = 0.0
    durations = [100.0, 100.0, 1.0, 4.0, 2.0]

    def work() -> None:
        nonlocal now
        now += durations[next(calls)]

    monkeypatch.setattr(metrics.throughput, "perf_counter", lambda: now)
    result = measure_throughput(work, 8, device="cpu", warmup=2, repeats=3)
    assert (result.images_per_sec, result.spread, result.repeats) == (4.0, (2.0, 8.0), 3)


def test_the_device_is_waited_for_before_and_after_each_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait {device}"))
    measure_throughput(lambda: events.append("call"), 1, device="cuda:1", warmup=1, repeats=2)
    assert events == ["call"] + ["wait cuda:1", "call", "wait cuda:1"] * 2


@pytest.mark.parametrize(("images", "warmup", "repeats"), [(0, 1, 1), (1, -1, 1), (1, 0, 0)])
def test_bad_counts_are_named(images: int, warmup: int, repeats: int) -> None:
    with pytest.raises(ValueError, match=f"images_per_call={images}, warmup={warmup}, repeats={repeats}"):
        measure_throughput(lambda: None, images, device="cpu", warmup=warmup, repeats=repeats)
