"""How many images a second a computation makes."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Median rate over `repeats` timed calls, and the slowest and the fastest of them."""

    images_per_sec: float
    spread: tuple[float, float]
    repeats: int


def measure_throughput(
    call: Callable[[], object],
    images_per_call: int,
    *,
    device: torch.device | str,
    warmup: int = 2,
    repeats: int = 5,
) -> Throughput:
    """Time `call`, which makes `images_per_call` images on `device`.

    `warmup` calls go first, untimed: they compile kernels and fill caches. Each timed call waits for the
    device before and after.
    """
    if images_per_call < 1 or warmup < 0 or repeats < 1:
        raise ValueError(
            f"found images_per_call={images_per_call}, warmup={warmup}, repeats={repeats}; expected at least 1, 0 and 1"
        )
    device = torch.device(device)
    for _ in range(warmup):
        call()
    rates = sorted(images_per_call / _timed_sec(call, device) for _ in range(repeats))
    return Throughput(images_per_sec=median(rates), spread=(rates[0], rates[-1]), repeats=repeats)


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOPs a second of one product of `size` x `size` matrices of a type: what a device reaches, not its data sheet.

    2 FLOPs a multiply-accumulate; the best of several.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 * measure_throughput(lambda: left @ right, 1, device=device).spread[1]


def _timed_sec(call: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    start = perf_counter()
    call()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
