"""The processes of one command under `torchrun`: who they are, and how features reach the first of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from adm_bench.errors import InputError
from adm_bench.images.dataset import PixelHashes
from metrics.statistics import FeatureBatch

PATIENCE = timedelta(minutes=30)
"""How long one process waits for another that is alive; one that dies is noticed at once."""
FAILED = -1
ABSENT = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process has made of a run of images."""

    features: FeatureBatch
    pixel_hashes: PixelHashes
    """Of the images, in their order."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of this process among all; one that `torchrun` did not start is alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0

    def collect(self, mine: Part | None) -> Iterator[Part]:
        """On the first process, every process's part in the order of ranks; on others, nothing.

        `mine` is None where there is nothing left to do. InputError where another process has failed, with its message.
        """
        if not self.is_first:
            try:
                _send(mine)
            except RuntimeError as error:  # gloo's
                raise InputError("the first process has ended; its own output says why") from error
            return
        if mine is not None:
            yield mine
        for other in range(1, self.size):
            received = _receive(other)
            if received is not None:
                yield received

    def fail(self, error: Exception) -> None:
        """Tell the first process, which waits for a batch, that none will come."""
        if self.is_first:
            return
        text = torch.frombuffer(bytearray(f"rank {self.rank}: {error}".encode()), dtype=torch.uint8)
        with suppress(RuntimeError):  # the first one has failed too, and may be gone
            dist.send(torch.tensor([FAILED, len(text), 0, 0]), dst=0)
            dist.send(text, dst=0)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, if it did; they part when the block ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _send(part: Part | None) -> None:
    if part is None:
        dist.send(torch.tensor([ABSENT, 0, 0, 0]), dst=0)
        return
    layers = [part.features.pool, part.features.spatial, part.features.logits]
    widths = [0 if rows is None else rows.shape[1] for rows in layers]
    dist.send(torch.tensor([len(part.features.pool), *widths]), dst=0)
    for rows in layers:
        if rows is not None:
            dist.send(rows.cpu().contiguous(), dst=0)
    dist.send(torch.from_numpy(part.pixel_hashes.view(np.int64)), dst=0)


def _receive(other: int) -> Part | None:
    try:
        return _received(other)
    except RuntimeError as error:  # gloo's, when a connection breaks or nobody answers
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"rank {other} has ended without a word; its own output may say why ({reason})") from error


def _received(other: int) -> Part | None:
    header = torch.empty(4, dtype=torch.int64)
    dist.recv(header, src=other)
    count, *widths = header.tolist()
    if count == FAILED:
        text = torch.empty(widths[0], dtype=torch.uint8)
        dist.recv(text, src=other)
        raise InputError(text.numpy().tobytes().decode())
    if count == ABSENT:
        return None
    layers: list[torch.Tensor | None] = []
    for width in widths:
        rows = torch.empty(count, width) if width else None
        if rows is not None:
            dist.recv(rows, src=other)
        layers.append(rows)
    pool, spatial, logits = layers
    assert pool is not None  # every network has one
    hashes = torch.empty(count, dtype=torch.int64)
    dist.recv(hashes, src=other)
    features = FeatureBatch(pool=pool, spatial=spatial, logits=logits)
    return Part(features=features, pixel_hashes=hashes.numpy().view(np.uint64))
