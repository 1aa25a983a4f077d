"""Work done ahead, and batches: bounded, and in order."""

import threading
from collections.abc import Iterator

from adm_bench.images.ahead import ahead, one_ahead
from adm_bench.images.dataset import BATCH_BUDGET_BYTES, images_at_a_time


def test_work_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item * item

    results = ahead(work, range(1000), depth=20)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert max(begun) <= 5 + 20
    results.close()  # type: ignore[attr-defined]
    asked: list[int] = []

    def source() -> Iterator[int]:
        for item in range(10):
            asked.append(item)
            yield item

    items = one_ahead(source())
    assert next(items) == 0
    assert next(items) == 1
    assert len(asked) <= 3
    assert list(items) == list(range(2, 10))


def test_batches_are_bounded_by_memory() -> None:
    assert images_at_a_time(256, (256, 256)) == 256
    assert images_at_a_time(256, (8192, 8192)) == 1
    assert images_at_a_time(10**9, (512, 512)) * 512 * 512 * 3 <= BATCH_BUDGET_BYTES
