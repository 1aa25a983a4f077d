"""OpenAI's npz files: `arr_0` uint8 (N, H, W, 3) and perhaps `arr_1` int64 (N,), streamed in and out.

Images are read from inside the zip and written into it batch by batch, so memory does not grow with N.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from adm_bench.errors import InputError, bad_input
from adm_bench.files import file_sha256
from adm_bench.images.dataset import ArrayDataset, Images, Labels

IMAGES_KEY = "arr_0"
LABELS_KEY = "arr_1"
IDENTITY_KEY = "adm_bench"
"""A JSON text in which our own files say what they are; other readers leave it alone."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError)
LARGEST_SIDE = 65_536


class NpzFile:
    """The arrays of an npz file: headers at once, contents when asked for; nothing is ever unpickled.

    InputError, naming the file, for whatever is wrong with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected an npz file")
        try:
            with zipfile.ZipFile(path) as archive:
                members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
                self.headers = {item.filename.removesuffix(".npy"): self._header(archive, item) for item in members}
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: not a readable npz file, perhaps truncated ({error}); make it anew")

    @staticmethod
    def _header(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with archive.open(item) as file:
            shape, order, dtype = read_npy_header(file)
            size = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{item.filename} holds Python objects, which are never loaded")
        if order and len(shape) > 1:
            raise ValueError(f"{item.filename} is in Fortran order; save it in C order (numpy.ascontiguousarray)")
        if size != item.file_size:
            raise ValueError(f"{item.filename} declares {shape} {dtype} but holds {item.file_size} bytes")
        return shape, dtype

    def __contains__(self, key: str) -> bool:
        """Whether there is an array of that name."""
        return key in self.headers

    def load(self, key: str) -> NDArray[Any]:
        """One whole array; InputError where it is absent or damaged."""
        if key not in self:
            raise InputError(f"{self.path}: has no {key}; it holds {', '.join(sorted(self.headers)) or 'nothing'}")
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                loaded: NDArray[Any] = arrays[key]
                return loaded
        except DAMAGE as error:
            raise self._damaged(error) from error

    def image_shape(self) -> tuple[int, int, int]:
        """(N, H, W) of `arr_0`; InputError where it is not uint8 NHWC with three channels."""
        if IMAGES_KEY not in self:
            held = ", ".join(sorted(self.headers)) or "nothing"
            raise InputError(f"{self.path}: has no {IMAGES_KEY}, which holds the images; it holds {held}")
        shape, dtype = self.headers[IMAGES_KEY]
        expected = "expected uint8 (N, H, W, 3)"
        if dtype != np.uint8:
            raise InputError(f"{self.path}: images are {dtype} {shape}; {expected}: scale to 0..255 and convert")
        if len(shape) == 4 and shape[1] == 3 != shape[3]:
            raise InputError(f"{self.path}: images are {shape}, channels first; {expected}: transpose them")
        if len(shape) != 4 or shape[3] != 3:
            raise InputError(f"{self.path}: images are {shape}; {expected}")
        if not min(shape) > 0 or max(shape[1:3]) > LARGEST_SIDE:
            raise InputError(f"{self.path}: images are {shape}; {expected}, with at least one image")
        return shape[0], shape[1], shape[2]

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

    def batches(self, batch_size: int) -> Iterator[Images]:
        """The images in file order as uint8 (B, 3, H, W)."""
        total, height, width = self.image_shape()
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES_KEY}.npy") as file:
                read_npy_header(file)
                for start in range(0, total, batch_size):
                    count = min(batch_size, total - start)
                    content = file.read(count * height * width * 3)
                    images = np.frombuffer(content, np.uint8).reshape(count, height, width, 3)
                    yield np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        except DAMAGE as error:
            raise self._damaged(error) from error


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype) of a npy stream, which is left at the first byte of the values."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy format {version} is not read")


def read_identity(file: NpzFile) -> dict[str, Any]:
    """What a file of ours says it is; empty for anybody else's. InputError where it cannot be read."""
    if IDENTITY_KEY not in file:
        return {}
    with bad_input(file.path):
        identity = json.loads(str(file.load(IDENTITY_KEY)))
        if not isinstance(identity, dict):
            raise ValueError(f"{IDENTITY_KEY} is {identity!r}; expected a JSON object")  # noqa: TRY004  a file's content
        return identity


def write_samples(
    path: Path,
    shape: tuple[int, int, int],
    batches: Iterable[Images],
    labels: Labels | None,
    identity: dict[str, Any],
) -> None:
    """Write (N, H, W) images from batches of uint8 (B, H, W, 3), labels, and what they are, to `path`.

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


def open_npz_dataset(path: Path, image_size: int | None) -> ArrayDataset:
    """An npz file as a training set, in memory; InputError where its images have another size."""
    file = NpzFile(path)
    total, height, width = file.image_shape()
    if height != width or image_size not in (None, height):
        wanted = f"{image_size} x {image_size}" if image_size else "squares"
        raise InputError(f"{path}: images are {height} x {width}; expected {wanted}")
    labels = file.labels()
    images = np.concatenate(list(file.batches(max(1, total))))
    classes = None if labels is None else int(labels.max()) + 1
    return ArrayDataset(
        name=str(path), images=images, labels=labels, num_classes=classes, source_digest=file_sha256(path)
    )
