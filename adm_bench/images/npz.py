"""OpenAI's npz files: `arr_0` uint8 (N, H, W, 3) and perhaps `arr_1` int64 (N,), streamed in and out.

Images are read from inside the zip and written into it batch by batch, so memory does not grow with N.
"""

import io
import json
import math
import reprlib
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from adm_bench.errors import InputError, bad_input
from adm_bench.images.dataset import Images, Labels, images_at_a_time
from adm_bench.images.decoding import LARGEST_IMAGE_PIXELS
from adm_bench.images.stores import PLAIN_METHODS

IMAGES_KEY = "arr_0"
LABELS_KEY = "arr_1"
IDENTITY_KEY = "adm_bench"
"""A JSON text in which our own files say what they are; other readers leave it alone."""
IDENTITY_TYPES: Mapping[str, tuple[type, str]] = {
    "data_sha256": (str, "a text"),
    "features": (str, "a text"),
    "features_sha256": (str, "a text"),
    "generator": (dict, "an object"),
    "lossy": (bool, "true or false"),
    "num_images": (int, "an integer"),
    "plan_sha256": (str, "a text"),
    "result": (dict, "an object"),
    "seed": (int, "an integer"),
}
"""What is read of it, the JSON type in words; besides, `image_size` is one side or [height, width]."""
WHOLE_ARRAY_BUDGET_BYTES = 2**30
"""What an array may take that is loaded whole: labels and statistics. Images are streamed."""
CHUNK_BYTES = 2**22
LOCAL_HEADER = struct.Struct("<26xHH")
"""What stands before a zip member, of which the lengths of its name and of its extra field matter here."""


class NpzFile:
    """The arrays of an npz file: headers at once, contents when asked for; nothing is ever unpickled.

    InputError, naming the file, for whatever is wrong with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected an npz file")
        with self._reading(), zipfile.ZipFile(path) as archive:
            self._require_each_once(archive)
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            self._headers = {item.filename.removesuffix(".npy"): _read_header(archive, item) for item in members}

    def _require_each_once(self, archive: zipfile.ZipFile) -> None:
        """InputError for a name that stands twice, of which one program reads the first and another the last."""
        # numpy takes a member named arr_0 for arr_0.npy
        counts = Counter(item.filename.removesuffix(".npy") for item in archive.infolist())
        name, count = max(counts.items(), key=lambda one: one[1], default=("", 0))
        if count > 1:
            raise InputError(
                f"{self.path}: holds {count} members named {name}; expected each name once: save it anew with "
                "numpy.savez, with the arrays that are meant"
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around whatever parses the file: one that is damaged leads to exceptions of many kinds."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            line = f"{self.path}: not a readable npz file, perhaps truncated ({said}); make it anew"
            raise InputError(line) from error

    @property
    def headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """(shape, dtype) of every array by its name."""
        return {name: (header.shape, header.dtype) for name, header in self._headers.items()}

    def __contains__(self, key: str) -> bool:
        """Whether there is an array of that name."""
        return key in self._headers

    def _header(self, key: str, what: str = "") -> "ArrayHeader":
        if key not in self:
            held = ", ".join(sorted(self._headers)) or "nothing"
            raise InputError(f"{self.path}: has no {key}{what}; it holds {held}")
        return self._headers[key]

    def load(self, key: str, budget_bytes: int = WHOLE_ARRAY_BUDGET_BYTES) -> NDArray[Any]:
        """One whole array; InputError where it is absent, damaged, or larger than the budget."""
        header = self._header(key)
        if header.num_bytes > budget_bytes:
            raise InputError(
                f"{self.path}: {key} is {header.dtype} {header.shape}, {header.num_bytes} bytes; expected at most "
                f"{budget_bytes}, since it is held in memory"
            )
        with self._reading(), np.load(self.path, allow_pickle=False) as arrays:
            loaded: NDArray[Any] = arrays[key]
            return loaded

    def image_shape(self) -> tuple[int, int, int]:
        """(N, H, W) of `arr_0`; InputError where it is not uint8 NHWC with three channels."""
        header = self._header(IMAGES_KEY, ", which holds the images")
        shape, dtype = header.shape, header.dtype
        expected = "expected uint8 (N, H, W, 3)"
        if dtype != np.uint8:
            raise InputError(
                f"{self.path}: images are {dtype} {shape}{self._values_found()}; {expected}: "
                "scale to 0..255 and convert"
            )
        if len(shape) == 4 and shape[1] == 3 != shape[3]:
            raise InputError(f"{self.path}: images are {shape}, channels first; {expected}: transpose them")
        if len(shape) != 4 or shape[3] != 3:
            raise InputError(f"{self.path}: images are {shape}; {expected}")
        if not min(shape) > 0 or shape[1] * shape[2] > LARGEST_IMAGE_PIXELS:
            raise InputError(f"{self.path}: images are {shape}; {expected}, with at least one image")
        if header.fortran_order:
            raise InputError(
                f"{self.path}: images are in Fortran order, which cannot be streamed; save them in C order "
                "(numpy.ascontiguousarray)"
            )
        return shape[0], shape[1], shape[2]

    def _values_found(self) -> str:
        """What the first values are, to tell images in [0, 1] from those in [-1, 1]; "" where they say nothing."""
        chunk = next(self.chunks(IMAGES_KEY), np.empty(0))
        if chunk.dtype.kind not in "iuf" or not chunk.size or not np.isfinite(chunk).all():
            return ""
        return f" with values from {chunk.min():g} to {chunk.max():g}"

    def chunks(self, key: str) -> Iterator[NDArray[Any]]:
        """All values of an array, a part at a time, as they lie in the file: (n,) of its dtype."""
        header = self._header(key)
        with self._reading(), zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
            read_npy_header(file)
            left = header.num_bytes
            while left:
                content = file.read(min(left, max(1, CHUNK_BYTES // header.dtype.itemsize) * header.dtype.itemsize))
                if not content:
                    raise ValueError(f"{key} ends {left} bytes early")
                left -= len(content)
                yield np.frombuffer(content, header.dtype)

    def labels(self) -> Labels | None:
        """`arr_1` as int64 (N,), or None; InputError where it does not fit the images."""
        if LABELS_KEY not in self:
            return None
        labels = self.load(LABELS_KEY)
        if labels.dtype.kind not in "iu" or labels.shape != (self.image_shape()[0],):
            raise InputError(
                f"{self.path}: labels ({LABELS_KEY}) are {labels.dtype} {labels.shape}; "
                f"expected an integer for each of the {self.image_shape()[0]} images"
            )
        if len(labels) and labels.min() < 0:
            raise InputError(f"{self.path}: labels go down to {labels.min()}; expected 0 or more")
        return labels.astype(np.int64)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """The images in file order, from number `start`, as uint8 (B, 3, H, W); B is bounded by memory too."""
        total, height, width = self.image_shape()
        each = height * width * 3
        count = images_at_a_time(batch_size, (height, width))
        with self._reading(), self._opened_at(f"{IMAGES_KEY}.npy", start * each) as file:
            for first in range(start, total, count):
                here = min(count, total - first)
                images = np.frombuffer(file.read(here * each), np.uint8).reshape(here, height, width, 3)
                yield np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    @contextmanager
    def _opened_at(self, member: str, skipped: int) -> Iterator[IO[bytes]]:
        """A member at the byte of its values after the `skipped` first ones; at once, where it is stored as it is."""
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            read_npy_header(file)
            item = archive.getinfo(member)
            if not skipped or item.compress_type != zipfile.ZIP_STORED:
                file.seek(skipped, io.SEEK_CUR)
                yield file
                return
            with self.path.open("rb") as whole:
                whole.seek(item.header_offset)
                local = whole.read(LOCAL_HEADER.size)
                name_bytes, extra_bytes = LOCAL_HEADER.unpack(local)
                whole.seek(name_bytes + extra_bytes + file.tell() + skipped, io.SEEK_CUR)
                yield whole


@dataclass(frozen=True, kw_only=True)
class ArrayHeader:
    """What a member of an npz file declares, and the archive confirms."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def num_bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> ArrayHeader:
    if item.compress_type not in PLAIN_METHODS:
        raise ValueError(f"{item.filename} is compressed unusually; expected what numpy.savez writes")
    with archive.open(item) as file:
        shape, order, dtype = read_npy_header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{item.filename} holds Python objects, which are never loaded")
    header = ArrayHeader(shape=shape, dtype=dtype, fortran_order=order and len(shape) > 1)
    if min(shape, default=0) < 0 or start + header.num_bytes != item.file_size:
        raise ValueError(f"{item.filename} declares {shape} {dtype} but holds {item.file_size} bytes")
    return header


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype) of a npy stream, which is left at the first byte of the values."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy format {version} is not read")


def read_identity(file: NpzFile) -> dict[str, Any]:
    """What a file of ours says it is; empty for anybody else's.

    InputError where it cannot be read, or is of other types than `IDENTITY_TYPES`.
    """
    if IDENTITY_KEY not in file:
        return {}
    with bad_input(file.path):
        try:
            identity = json.loads(str(file.load(IDENTITY_KEY)))
        except RecursionError as error:
            raise ValueError(f"{IDENTITY_KEY} is nested too deeply; expected a JSON object") from error
        _require(isinstance(identity, dict), IDENTITY_KEY, identity, "a JSON object")
        for key, (kind, words) in IDENTITY_TYPES.items():
            if key in identity:
                _require(type(identity[key]) is kind, f"{IDENTITY_KEY}'s {key}", identity[key], words)
        options = identity.get("generator", {}).get("options", {})
        _require(isinstance(options, dict), f"{IDENTITY_KEY}'s options of the generator", options, "an object")
        if "image_size" in identity:
            size = identity["image_size"]
            sides = size if isinstance(size, list) and len(size) == 2 else [size]
            good = all(type(side) is int and side > 0 for side in sides)
            _require(good, f"{IDENTITY_KEY}'s image_size", size, "a side in pixels, or [height, width]")
        return dict(identity)


def _require(good: bool, name: str, found: object, expected: str) -> None:
    """ValueError where what a file states is not good."""
    if not good:
        raise ValueError(f"{name} is {reprlib.repr(found)}; expected {expected}")


def write_samples(
    path: Path,
    shape: tuple[int, int, int],
    batches: Iterable[Images],
    labels: Labels | None,
    identity: dict[str, Any],
    statistics: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Write (N, H, W) images from batches of uint8 (B, H, W, 3), labels, and what they are, to `path`.

    A reference has `statistics` (mu, sigma, mu_s, sigma_s) too.

    ValueError where the batches do not hold N images.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (*shape, 3)}
    written = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{IMAGES_KEY}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                written += len(batch)
                file.write(np.ascontiguousarray(batch).tobytes())
        if labels is not None:
            _add_array(archive, LABELS_KEY, labels.astype(np.int64))
        for key, values in (statistics or {}).items():
            _add_array(archive, key, values)
        _add_array(archive, IDENTITY_KEY, np.array(json.dumps(identity)))
    if written != shape[0]:
        raise ValueError(f"{written} images were written where {shape[0]} were announced")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write whole arrays as an npz file to exactly `path`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, values in arrays.items():
            _add_array(archive, key, values)


def _add_array(archive: zipfile.ZipFile, key: str, values: NDArray[Any]) -> None:
    with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(values, order="C"), allow_pickle=False)
