"""The processes of one command under `torchrun`: who they are, what they agree on, and how they end together."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from adm_bench.errors import AlreadySaidError, InputError, explain
from adm_bench.images.dataset import PixelHashes
from metrics.statistics import FeatureBatch

PATIENCE = timedelta(minutes=30)
"""How long one process waits for another that is alive; one that dies is noticed at once."""
CPU = torch.device("cpu")
LET_GO_SEC = 0.1
"""Of sleep at the end: gloo's threads need the interpreter to let go of the last message's tensor, and where it ends
at once, they abort the process (pybind11's wait for the GIL, in torch 2.13)."""
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
    """The place of this process among all; one that `torchrun` did not start is alone.

    `agree`, `highest`, `any`, `barrier`, `gather` and `gather_plain` are collective: every process calls them, in
    one order.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0

    def agree(self, error: Exception | None) -> None:
        """Go on only if every process can: each hands in what stopped it, or None.

        If any was stopped, the first of these says its error in one line, and then all raise AlreadySaidError, so that
        nothing of theirs is printed before that line. A process that is alone raises its error.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        statuses = torch.zeros(self.size, dtype=torch.int64)
        if error is not None:
            statuses[self.rank] = explain(error)[1]
        dist.all_reduce(statuses)
        failed = statuses.nonzero().flatten().tolist()
        if not failed:
            return
        if error is not None and self.rank == failed[0]:
            _say(explain(error)[0], rank=0 if len(failed) == self.size else self.rank)
        self.barrier()
        raise AlreadySaidError(int(statuses[failed[0]])) from error

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Agree on what happens inside, where nothing may be collective."""
        try:
            yield
        except Exception as error:
            self.agree(error)
            raise
        self.agree(None)

    def highest(self, value: int) -> int:
        """The highest number that any process names."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.highest(int(flag)))

    def barrier(self) -> None:
        """Wait until every process is here; processes of a GPU do not wait for its work."""
        self.highest(0)

    def gather(self, values: Tensor) -> Tensor:
        """(N, ...) of each process, joined in the order of ranks: (size * N, ...), the same everywhere."""
        mine = values.detach().contiguous()
        if self.size == 1:
            return mine
        joined = mine.new_empty(self.size * mine.shape[0], *mine.shape[1:])
        dist.all_gather(list(joined.chunk(self.size)), mine)
        return joined

    def gather_plain(self, value: Any) -> list[Any]:
        """What each process hands in, plain data, as JSON reads it again, in the order of ranks."""
        text = json.dumps(value).encode()
        if self.size == 1:
            return [json.loads(text)]
        padded = torch.full((1, self.highest(len(text))), ord(" "), dtype=torch.uint8)
        padded[0, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return [json.loads(row.numpy().tobytes()) for row in self.gather(padded)]

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
def joined_ranks(choose: Callable[[], torch.device] = lambda: CPU, *, group_of_one: bool = False) -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, if it did; they part when the block ends.

    `choose` gives this process's device. Where that fails, on whichever process, all end.

    Who they are stands in the environment alone, so that other launchers serve too: RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT, and LOCAL_RANK for the choice of a GPU. Tensors on CUDA travel by NCCL, all others by gloo.
    `group_of_one` makes a process group for a process that is alone, which FSDP needs.

    An error that leaves the block is said once, by the first process that meets it, and raised as AlreadySaidError;
    what others meet is a broken connection, of which they say nothing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not group_of_one:
        yield Ranks(device=choose())
        return
    store, rank = _meeting_place(size)
    device = choose() if size == 1 else _chosen_by_all(choose, store, rank, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    in_order = False
    try:
        yield Ranks(rank=rank, size=size, device=device)
        in_order = True
    except (AlreadySaidError, click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if size == 1:
            raise
        raise _said_once(error, rank, store) from error
    finally:
        if in_order or device.type == "cpu":  # NCCL would wait for work that cannot end; the process's own end stops it
            dist.destroy_process_group()
        time.sleep(LET_GO_SEC)


def _meeting_place(size: int) -> tuple[Store, int]:
    """A store that all processes reach, the one that the environment names, and this process's rank."""
    if size == 1:
        return dist.HashStore(), 0  # type: ignore[attr-defined]  # it is there on all but Windows
    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(_agreed_name(store, rank, size), store), rank


def _agreed_name(store: Store, rank: int, size: int) -> str:
    """A name that these processes share and no earlier ones had.

    `torchrun --max-restarts` gives new processes the store of the dead ones, with their addresses in it, and its count
    of restarts differs from machine to machine (pytorch issue 135712). So the first process makes a name up, and
    hands it to whoever asks for it with a key of its own; keys of the dead are answered too, which nobody reads.
    """
    if rank > 0:
        key = uuid.uuid4().hex
        store.set(f"asks/{rank}", key)
        name: str = store.get(f"answer/{key}").decode()
        store.add(f"answered/{name}", 1)
        return name
    name, answered = uuid.uuid4().hex, dict[int, str]()
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while store.add(f"answered/{name}", 0) < size - 1:
        for other in range(1, size):
            key = store.get(f"asks/{other}").decode()
            if answered.get(other) != key:
                store.set(f"answer/{key}", name)
                answered[other] = key
        if time.monotonic() > deadline:
            raise InputError(f"not all of {size} processes have come within {PATIENCE}; their own output may say why")
        time.sleep(0.01)
    return name


def _chosen_by_all(choose: Callable[[], torch.device], store: Store, rank: int, size: int) -> torch.device:
    """The device of this process, if each has found one; as yet only the store joins them. AlreadySaidError if not."""
    device, status = CPU, 0
    try:
        device = choose()
    except Exception as error:  # noqa: BLE001  whatever it is, the others must know
        status = _said_once(error, rank, store).exit_status
    store.set(f"status/{rank}", str(status))
    statuses = [int(store.get(f"status/{other}")) for other in range(size)]
    if any(statuses):
        raise AlreadySaidError(max(statuses))
    return device


def _said_once(error: Exception, rank: int, store: Store) -> AlreadySaidError:
    """Say an error in one line, unless another process has said one before."""
    line, exit_status = explain(error)
    if _is_broken_connection(error):
        reason = str(error).strip().splitlines()[0]
        line, exit_status = f"another process has ended, or was silent; its own output may say why ({reason})", 1
    try:
        first = store.add("errors said", 1) == 1
    except RuntimeError:  # the store has gone with the process that kept it
        first = True
    if first:
        _say(line, rank=rank)
    return AlreadySaidError(exit_status)


def _is_broken_connection(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and ("gloo" in str(error) or "NCCL" in str(error))


def _say(line: str, *, rank: int) -> None:
    """A line on stderr, with the process that it is about, unless that is the first, who speaks for all."""
    click.echo(f"Error: rank {rank}: {line}" if rank else f"Error: {line}", err=True)


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
