"""Room on the disk: asked for before something large is written, and said in one line where it runs out."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adm_bench.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota, a limit on the size of a file."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")
SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@contextmanager
def room_for(folder: Path, num_bytes: int, kept: str = "nothing that was there before is lost") -> Iterator[None]:
    """The block writes so many bytes into a folder; InputError before it, or after it fails, where there is no room.

    `kept` says what a person still has then. What the block left must be gone when it ends, as by `atomic_path`.
    """
    try:
        free = _free_bytes(folder)
        if free is not None and free < num_bytes:
            raise InputError(_line(folder, "disk full", num_bytes, kept))
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _why_no_room(error)
        if reason is None:
            raise
        raise InputError(_line(folder, reason, num_bytes, kept)) from error


def _free_bytes(folder: Path) -> int | None:
    """Free bytes where a folder lies; None where the file system does not know."""
    usage = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    return usage.free if usage.total else None


def _why_no_room(error: BaseException) -> str | None:
    """What limit an error, or one that it hides, speaks of: torch.save and safetensors wrap the system's own."""
    hidden: BaseException | None = error
    while hidden is not None:
        number = hidden.errno if isinstance(hidden, OSError) else None
        if isinstance(hidden, SafetensorError) and (said := OS_ERROR.search(str(hidden))):
            number = int(said[1])
        if number in NO_ROOM:
            reasons = {errno.EDQUOT: "disk quota reached", errno.EFBIG: "limit on the size of a file reached"}
            return reasons.get(number, "disk full")
        hidden = hidden.__cause__ or hidden.__context__
    return None


def _line(folder: Path, reason: str, num_bytes: int, kept: str) -> str:
    free = _free_bytes(folder)
    has = "" if free is None else f", has {size_text(free)} free"
    return f"{folder}: {reason}: needs {size_text(num_bytes)}{has}; {kept}; free space and repeat the command"


def size_text(num_bytes: int) -> str:
    """A number of bytes as a person reads it."""
    for unit, name in SIZES:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} bytes"
