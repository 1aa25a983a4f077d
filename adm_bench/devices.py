"""The choice of device, and what the process sets for it."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adm_bench.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's names of two parameters of its allocator (mallopt(3))."""


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; InputError for a device that is not here.

    Of several CUDA devices, each local process of `torchrun` has its own, unless one is named by its number.

    What is recorded as fp32 is to be fp32: TF32, which torch lets convolutions use, is switched off. For a CPU,
    `keep_freed_memory`.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto" and not torch.cuda.is_available():
        name = "cpu"
    try:
        own = name in ("auto", "cuda") and torch.cuda.is_available()
        device = _own_cuda_device() if own else torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"--device {name}: not offered; expected auto, cpu, cuda or cuda:N")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason}); try --device auto or cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> bool:
    """Let glibc keep for the process what it frees, up to 2 GiB, instead of giving large blocks back each time.

    One step's tensors are of the sizes of the last one's, and fresh pages cost more than many an operation on them.
    True where that was set; elsewhere, and where a MALLOC_ variable or GLIBC_TUNABLES speaks for the user, nothing is.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def _own_cuda_device() -> torch.device:
    """The one of the visible devices (CUDA_VISIBLE_DEVICES) that is this process's."""
    local_rank, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= visible:
        raise InputError(
            f"this is local process {local_rank}, counted from 0, but {visible} CUDA devices are visible; "
            f"expected one a process: start {visible} (--nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def enough_memory(device: torch.device, way_out: str) -> Iterator[None]:
    """InputError, which ends in `way_out`, where what happens inside needs more memory than a device has."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:2])  # of many sentences
        raise InputError(f"{device}: {reason}; {way_out}") from error


def describe_device(device: torch.device) -> str:
    """Its name as a record states it: numbers a second compare only where it is the same."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
