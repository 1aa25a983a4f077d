"""Files that are either whole or absent: atomic writes, digests, and the checks before work begins."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from adm_bench import progress
from adm_bench.errors import InputError

MIB = 2**20
LARGE_FILE_BYTES = 2**29
HASH_CHUNK_BYTES = 2**24
PARTIAL_SUFFIX = ".partial"
LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
UMASK = os.umask(0o077)  # it can be read only by setting it
os.umask(UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a new folder, which gets its name when the block ends well.

    It is flushed to the disk before, so that a crash leaves the old file or the new one. What earlier crashes
    left of the same name is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
        _remove(stale)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        yield temporary
        _put_in_place(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a write that fails, only the caller knows it
        raise
    finally:
        _remove(temporary)


@contextmanager
def resumable_path(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for one file, of always the same temporary name: a block that ends badly leaves it.

    A later block finds what the earlier one wrote, and goes on with it or removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    yield temporary
    _put_in_place(temporary, path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Flush a file or folder to the disk and give it its name."""
    inside = [temporary] if temporary.is_file() else [*temporary.rglob("*"), temporary]
    for item in inside:
        if item.is_file():
            item.chmod(0o666 & ~UMASK)  # safetensors keeps what it writes from all others
        flush(item)
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); remove it, or the run it belongs to") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; a large file shows its progress."""
    total = path.stat().st_size
    with path.open("rb") as file:
        if total < LARGE_FILE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        with progress.stage(f"read {path}", total // MIB, "MiB") as advance:
            while content := file.read(HASH_CHUNK_BYTES):
                digest.update(content)
                advance(len(content) / MIB)
        return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of plain data, the same for equal data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_new_file(path: Path, *, overwrite: bool, inputs: Sequence[Path | str | None] = ()) -> None:
    """Before any work: InputError where `path` exists (unless `overwrite`) or could not be written.

    What is not a plain file, or is one of the command's own `inputs`, is never replaced.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: is a link or a device, which is never replaced; choose another name")
    if any(given is not None and path.resolve() == Path(given).resolve() for given in inputs):
        raise InputError(f"{path}: is an input of this command; choose another name for the output")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; choose another name, or pass --overwrite")
    check_writable(path.parent)


def check_new_picture(
    path: Path, *, overwrite: bool, inputs: Sequence[Path | str | None] = (), sources: Sequence[Path | str] = ()
) -> None:
    """As `check_new_file`, of a PNG that must not come to lie inside one of `sources`, where images are read."""
    if path.suffix != ".png":
        raise InputError(f"--out {path}: a figure is a PNG; give it a name that ends in .png")
    for source in sources:
        if path.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"--out {path}: lies in the data set {source}; choose another place")
    check_new_file(path, overwrite=overwrite, inputs=inputs)


def check_writable(folder: Path) -> None:
    """Make a folder if need be; InputError where that, or writing into it, is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid4().hex}{PARTIAL_SUFFIX}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; InputError where one is already at work.

    The lock is the kernel's and ends with the process, however it ends. A file system that has none (Lustre often) is
    told of, and keeps nobody out.
    """
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is at work there; wait for it, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            progress.say(f"note: {folder}: cannot be locked ({error.strerror}); start nothing else there meanwhile")
        yield


def is_foreign(path: Path) -> bool:
    """Whether a path is anything but what an interrupted start of ours leaves in a folder."""
    return path.name != LOCK_FILE and path.suffix != PARTIAL_SUFFIX


def remove_partial(folder: Path) -> None:
    """Delete what interrupted writes left in a folder."""
    for item in folder.glob(f".*{PARTIAL_SUFFIX}"):
        _remove(item)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that no half of it is ever there under its name.

    What cannot be deleted, as on NFS what another program is reading, stays under a name that `remove_partial` knows.
    """
    doomed = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    folder.rename(doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # nobody takes it for anything: no reason to end what works
    else:
        path.unlink(missing_ok=True)
