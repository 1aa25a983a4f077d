"""Work done ahead of whoever waits for it, by threads: bounded, and in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST_THREADS = 16
LOCAL_PROCESSES = "LOCAL_WORLD_SIZE"
"""Where `torchrun` says how many processes share this machine."""


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads for reading and decoding, which release the interpreter for most of their time."""
    return ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)) + 1), "decode")


def share_of_threads() -> int:
    """Threads that one of the processes on this machine may keep busy beside its network; at least one."""
    stated = os.environ.get(LOCAL_PROCESSES, "")
    processes = int(stated) if stated.isdecimal() and int(stated) else 1
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // processes))


def ahead(
    function: Callable[[T], R], items: Iterable[T], depth: int, threads: ThreadPoolExecutor | None = None
) -> Generator[R, None, None]:
    """`function` of each item, in order, worked out at most `depth` items ahead of the one asked for.

    By the program's own threads, unless others are given. An error comes out where its item would.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append((threads or _threads()).submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order, the next one being made in a thread while the last one is used."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        future: Future[object] = thread.submit(next, source, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, source, end)
            yield item  # type: ignore[misc]  # `end` is the only item that is no T
