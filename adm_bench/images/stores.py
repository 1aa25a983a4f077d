"""Where encoded images lie: folders and zip archives. One interface, safe to use from several threads."""

import hashlib
import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import compress, pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from adm_bench.errors import InputError
from adm_bench.images.decoding import (
    LARGEST_FILE_BYTES,
    SUFFIXES,
    UnreadableImageError,
    begins_as_image,
    has_image_name,
    is_hidden,
    may_be_image,
)

LABELS_FILE = "dataset.json"
"""Where EDM's and StyleGAN's data sets keep their labels."""
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Ways to compress whose output Python's zipfile bounds; the others inflate a block at a time, however large."""
STATS_AT_A_TIME = 1000
STAT_THREADS = 16
"""More than processors: they wait for a file server."""


class Stated(NamedTuple):
    """Labels that a store has beside its images."""

    origin: str
    labels: Sequence[object]
    """One an image, unchecked; None where an image has none."""


BEGINNING = 8
"""Bytes that tell an image from other files."""
UNIX_MODE_SHIFT = 16
"""Where zip programs on Unix keep a file's mode among a member's attributes."""


class Store(Protocol):
    """Encoded images by number, in a fixed order."""

    kind: str
    """What it is, in words."""
    root: Path
    names: list[str]
    """Of the images, "/"-separated and relative to the root; not all are UTF-8 (then with surrogate escapes)."""

    def read(self, index: int) -> bytes:
        """An encoded image; UnreadableImageError where it cannot be had."""

    def read_beside(self, name: str) -> bytes | None:
        """A file that is no image, or None where there is none of that name."""

    def inner_names(self) -> list[str]:
        """What classes are read from: the names, without what says in which of several files an image lies."""
        return self.names

    def stated_labels(self) -> Stated | None:
        """Labels beside the images, where the kind of source has such."""
        return None

    def sizes(self) -> NDArray[np.int64]:
        """Of the encoded images, in bytes."""

    def unnamed(self) -> list[str]:
        """Names of files that begin as images do and end otherwise, so that they are not among `names`."""

    def empty_folders(self) -> list[str]:
        """Folders that hold no image at any depth, so that they are no class, where the kind of source knows them."""
        return []

    def stamp(self) -> str:
        """SHA-256 of what is known without reading images: names, sizes, and times or checksums."""


class FolderStore(Store):
    """Files under a folder, at any depth. InputError where a part of it cannot be read, or is a link to a folder."""

    kind = "a folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._others: list[str] = []
        self._folders: list[str] = []
        self.names = sorted(_images_under(root, self._others, self._folders), key=by_folder)

    def read(self, index: int) -> bytes:
        """See `Store`."""
        path = self.root / self.names[index]
        try:
            state = path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImageError("is no plain file; remove it")
            require_bounded(state.st_size)
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"cannot be read ({error.strerror}); mend or remove it") from error

    def read_beside(self, name: str) -> bytes | None:
        """See `Store`."""
        path = self.root / name
        if not path.is_file():
            return None
        require_bounded(path.stat().st_size)
        return path.read_bytes()

    def sizes(self) -> NDArray[np.int64]:
        """See `Store`; InputError where an image is gone."""
        root = str(self.root)

        def look(first: int) -> list[int]:
            names = self.names[first : first + STATS_AT_A_TIME]
            return [os.stat(os.path.join(root, name)).st_size for name in names]  # noqa: PTH116, PTH118  as below

        try:
            with ThreadPoolExecutor(STAT_THREADS, "stat") as threads:
                found = threads.map(look, range(0, len(self.names), STATS_AT_A_TIME))
                return np.array([size for sizes in found for size in sizes], np.int64)
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); mend or remove it") from error

    def unnamed(self) -> list[str]:
        """See `Store`; what cannot be read is passed over."""

        def look(name: str) -> bool:
            path = self.root / name
            with suppress(OSError):
                return path.is_file() and begins_as_image(_beginning(path))
            return False

        names = sorted(self._others, key=by_folder)
        with ThreadPoolExecutor(STAT_THREADS, "stat") as threads:
            return list(compress(names, threads.map(look, names)))

    def empty_folders(self) -> list[str]:
        """See `Store`; of folders in one another, the outermost."""
        holding = {name.rpartition("/")[0] for name in self.names}
        holding |= {str(above) for folder in holding for above in PurePosixPath(folder).parents} - {"."} | {""}
        empty = set(self._folders) - holding
        return sorted((folder for folder in empty if folder.rpartition("/")[0] in holding), key=by_folder)

    def stamp(self) -> str:
        """See `Store`."""
        total = hashlib.sha256()
        for name in self.names:
            state = (self.root / name).stat()
            total.update(os.fsencode(name) + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        return total.hexdigest()


class ZipStore(Store):
    """Members of a zip archive, never extracted. InputError where the archive is damaged or holds no images."""

    kind = "a zip archive"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.Lock()
        try:
            self.archive = zipfile.ZipFile(root)
        except Exception as error:  # a damaged directory leads zipfile to exceptions of many kinds
            said = " ".join(str(error).split())
            raise InputError(f"{root}: not a readable zip archive, perhaps truncated ({said}); make it anew") from error
        self._refuse_links()
        found = [item for item in self.archive.infolist() if not item.is_dir() and has_image_name(item.filename)]
        self.members = sorted(found, key=lambda item: by_folder(item.filename))
        self.names = [item.filename for item in self.members]
        for one, other in pairwise(self.names):
            if one == other:
                raise InputError(f"{root}: holds {one} twice; make it anew, with one of the two")
        if not self.names and any(name.endswith(".npy") for name in self.archive.namelist()):
            raise InputError(f"{root}: holds arrays, as npz files do; if it is one, rename it to end in .npz")
        if not self.names:
            raise NoImagesError(root)

    def _refuse_links(self) -> None:
        for item in self.archive.infolist():
            is_link = stat.S_ISLNK(item.external_attr >> UNIX_MODE_SHIFT)
            if is_link and not any(map(is_hidden, item.filename.split("/"))):
                raise InputError(
                    f"{self.root}: {item.filename} is a symbolic link, which is not followed inside an archive; its "
                    "images would be missing: pack what it stands for (zip does, unless told --symlinks), or remove it"
                )

    def read(self, index: int) -> bytes:
        """See `Store`."""
        return self._read(self.members[index])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.compress_type not in PLAIN_METHODS or member.flag_bits & 1:
            raise UnreadableImageError("is encrypted or compressed unusually; expected a stored or deflated member")
        require_bounded(member.file_size)
        try:
            with self.lock:  # an archive counts its open members without a lock of its own
                file = self.archive.open(member)
            try:
                return file.read()
            finally:
                with self.lock:
                    file.close()
        except Exception as error:  # as above
            said = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImageError(f"cannot be read from the archive ({said}); make it anew") from error

    def read_beside(self, name: str) -> bytes | None:
        """See `Store`."""
        member = self.archive.NameToInfo.get(name)
        return None if member is None else self._read(member)

    def sizes(self) -> NDArray[np.int64]:
        """See `Store`."""
        return np.array([member.file_size for member in self.members], np.int64)

    def unnamed(self) -> list[str]:
        """See `Store`; what cannot be read is passed over."""
        found = []
        for item in self.archive.infolist():
            is_plain = item.compress_type in PLAIN_METHODS and not item.flag_bits & 1
            if item.is_dir() or not is_plain or not may_be_image(item.filename):
                continue
            with suppress(Exception), self.lock, self.archive.open(item) as file:  # as of damaged members
                if begins_as_image(file.read(BEGINNING)):
                    found.append(item.filename)
        return sorted(found, key=by_folder)

    def stamp(self) -> str:
        """See `Store`."""
        total = hashlib.sha256()
        for member in self.members:
            line = f"\0{member.file_size}\0{member.CRC}\0".encode()
            total.update(member.filename.encode("utf-8", "surrogateescape") + line)
        return total.hexdigest()


def by_folder(name: str) -> str:
    """A key that sorts "/"-separated names folder by folder, as paths sort."""
    return name.replace("/", "\0")


def require_bounded(num_bytes: int) -> None:
    """UnreadableImageError where an encoded image is larger than any is expected to be, before it is read."""
    if num_bytes > LARGEST_FILE_BYTES:
        raise UnreadableImageError(f"has {num_bytes} bytes; expected at most {LARGEST_FILE_BYTES}")


def _beginning(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(BEGINNING)


def _images_under(root: Path, others_there: list[str], folders_there: list[str]) -> Iterator[str]:
    """Names of the images; those of files that may be some too, by another ending, and those of folders are added."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); its images would be missing") from error

    start = len(str(root / "x")) - 1
    for folder, inner, names in os.walk(root, onerror=refuse):
        inner[:] = (name for name in inner if not is_hidden(name))
        folders_there += (os.path.join(folder, name)[start:] for name in inner)  # noqa: PTH118  as below
        others = list(inner)
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118  a million Paths are slow
            if has_image_name(path[start:]):
                yield path[start:]
            elif not is_hidden(name):
                others.append(name)
                if may_be_image(name):
                    others_there.append(path[start:])
        # Links to folders may go round in circles, and a broken one may have been a folder's.
        for linked in (path for path in (Path(folder, name) for name in others) if path.is_symlink()):
            if not linked.is_file():
                raise InputError(
                    f"{linked}: is a link to a folder, or to nothing; its images would be missing: put the folder "
                    "itself there, or remove the link"
                )


class NoImagesError(InputError):
    """A place without images."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"{root}: holds no images; expected files ending in {', '.join(SUFFIXES)}")
