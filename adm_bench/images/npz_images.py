"""Samples in npz files as a set of images: one file, or the shards of a folder one after the other."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.files import file_sha256, fingerprint
from adm_bench.images.ahead import one_ahead
from adm_bench.images.crops import center_crop
from adm_bench.images.dataset import ArrayDataset, Images, Labels
from adm_bench.images.decoding import Preparation
from adm_bench.images.npz import NpzFile, read_identity


class NpzImages:
    """`adm_bench.images.dataset.ImageSet` of one or more npz files, streamed from inside them.

    InputError, naming the files, where they do not fit each other.
    """

    def __init__(self, path: Path, files: Sequence[NpzFile], size: int | None = None) -> None:
        """`path` is the file, or the folder of the files; `size` asks for ADM's centre crop."""
        self.name = str(path)
        self.path = path
        self.files = tuple(files)
        shapes = [file.image_shape() for file in self.files]
        for file, shape in zip(self.files, shapes, strict=True):
            if shape[1:] != shapes[0][1:]:
                raise InputError(
                    f"{file.path}: images are {shape[1]} x {shape[2]}, but those of {self.files[0].path} are "
                    f"{shapes[0][1]} x {shapes[0][2]}; expected one size"
                )
        self._counts = [shape[0] for shape in shapes]
        stored = shapes[0][1:]
        # a crop of squares to the size that they have changes nothing
        self.size = None if size is None or stored == (size, size) else size
        self.image_shape: tuple[int, int] = stored if self.size is None else (self.size, self.size)
        self._stored_shape = stored
        self.lossy = any(bool(read_identity(file).get("lossy")) for file in self.files)

    @cached_property
    def labels(self) -> Labels | None:
        """See `ImageSet`; InputError where only some of the files have them."""
        labels = [file.labels() for file in self.files]
        found = [each for each in labels if each is not None]
        if 0 < len(found) < len(labels):
            without = next(file for file, each in zip(self.files, labels, strict=True) if each is None)
            raise InputError(
                f"{without.path}: has no labels (arr_1), but other files beside it have; expected all or none"
            )
        return np.concatenate(found) if found else None

    @property
    def preparation(self) -> dict[str, Any]:
        """See `ImageSet`."""
        return Preparation(size=self.size).describe()

    def enlarged_from(self) -> int | None:
        """The shorter side in pixels that the crop enlarges; None where it enlarges nothing."""
        shorter = min(self._stored_shape)
        return shorter if self.size is not None and shorter < self.size else None

    def __len__(self) -> int:
        """Number of images."""
        return sum(self._counts)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """See `ImageSet`; a batch never reaches from one file into the next."""
        return one_ahead(self._batches(batch_size, start))

    def _batches(self, batch_size: int, start: int) -> Iterator[Images]:
        for file, count in zip(self.files, self._counts, strict=True):
            if start < count:
                for images in file.batches(batch_size, start):
                    yield images if self.size is None else _cropped(images, self.size)
            start = max(0, start - count)

    def digest(self) -> str:
        """See `ImageSet`: of a single file as it is, that of the file."""
        if self._digests is None:
            self._digests = [file_sha256(file.path) for file in self.files]
        if len(self._digests) == 1 and self.size is None:
            return self._digests[0]
        return fingerprint({"files": self._digests, "preparation": self.preparation})

    _digests: list[str] | None = None

    def fingerprint(self) -> str:
        """See `ImageSet`: names, sizes and times of the files."""
        total = hashlib.sha256(str(self.preparation).encode())
        for file in self.files:
            state = file.path.stat()
            total.update(f"{file.path.name!r}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        return total.hexdigest()

    def in_memory(self) -> ArrayDataset:
        """All images at once, as a data set to train on."""
        labels = self.labels
        total = np.empty((len(self), 3, *self.image_shape), np.uint8)
        done = 0
        for images in self.batches(256):
            total[done : done + len(images)] = images
            done += len(images)
        return ArrayDataset(
            name=self.name,
            images=total,
            labels=labels,
            num_classes=None if labels is None else int(labels.max()) + 1,
            source_digest=self.digest(),
            lossy=self.lossy,
        )


def _cropped(images: Images, size: int) -> Images:
    pixels = (np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images)
    return np.stack([center_crop(Image.fromarray(image), size).transpose(2, 0, 1) for image in pixels])
