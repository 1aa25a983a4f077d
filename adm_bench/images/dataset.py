"""What a set of images is, one in memory, and the order in which training goes through it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from generators.diffusion.noise import Stream, mix_seed

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
PixelHashes = NDArray[np.uint64]
CropFunction = Callable[[Image.Image], Images]
"""Makes an RGB image a square of pixels (size, size, 3)."""

BATCH_BUDGET_BYTES = 2**28
"""Pixels that one batch may hold, so that memory is bounded whatever the size of the images."""


def images_at_a_time(batch_size: int, image_shape: tuple[int, int]) -> int:
    """`batch_size`, or the fewer RGB images of (H, W) that the budget of a batch allows; at least one."""
    return max(1, min(batch_size, BATCH_BUDGET_BYTES // (3 * image_shape[0] * image_shape[1])))


def pixel_hashes(images: Images) -> PixelHashes:
    """A hash of every image's shape and values (B,): equal for equal images of one layout, BLAKE2b of 64 bits."""
    shape = str(images.shape[1:]).encode()
    contents = (shape + np.ascontiguousarray(image).tobytes() for image in images)
    return np.frombuffer(b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in contents), np.uint64)


class ImageSet(Protocol):
    """Images of one size in a fixed order, gone through in batches: what is measured, wherever it comes from.

    Memory does not grow with their number.
    """

    @property
    def name(self) -> str:
        """Its registered name, its path, or what a person calls it."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    @property
    def labels(self) -> Labels | None:
        """A class an image, int64 (N,), or None where there are none."""

    @property
    def lossy(self) -> bool:
        """Whether the source is compressed with loss (JPEG), which shows in every metric."""

    @property
    def preparation(self) -> Mapping[str, Any]:
        """What was done to the images on their way (crop, conversion, images left out), as plain data."""

    def __len__(self) -> int:
        """Number of images."""

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """The images in order, from number `start`, as uint8 (B, 3, H, W) with 1 <= B <= `batch_size`.

        Where one pass may start, at the end of a batch of another pass, both cut the rest into the same batches.
        """

    def digest(self) -> str:
        """SHA-256 that changes whenever an image, a label or the preparation does; it may have to read everything."""

    def fingerprint(self) -> str:
        """SHA-256 of what is known without reading the images (names, sizes, times): whether a source is as it was."""


class Dataset(ImageSet, Protocol):
    """Square images that can be had in any order: what is trained on."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where there are no labels."""

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """Images (B, 3, H, W) and labels (B,), or None where there are none. Several threads may call it at once."""


@runtime_checkable
class Uncropped(Protocol):
    """A data set that still has what its squares are cut from."""

    def cropped(self, index: int, crop: CropFunction) -> Images:
        """A square of one image as it is stored, of any size, in RGB: uint8 (size, size, 3).

        Several threads may call it at once. InputError, naming the image, where it cannot be had; where it is
        unreadable, the cause is an UnreadableImageError (`adm_bench.images.decoding`), and so may that of `read` be.
        """


@runtime_checkable
class Outlined(Protocol):
    """A data set that knows itself again without reading all of it, wherever it is copied to."""

    labels_from: str
    """What the labels are: "dataset.json", "cls", "json", "folders", "prefixes", "stated" (by an array) or "none"."""

    def outline(self) -> str:
        """SHA-256 of names, sizes and labels of all images, and of the bytes of a few."""


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """A data set in memory."""

    name: str
    images: Images
    labels: Labels | None
    num_classes: int | None
    source_digest: str
    lossy: bool = False

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return int(self.images.shape[2])

    @property
    def image_shape(self) -> tuple[int, int]:
        """See `ImageSet`."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    @property
    def preparation(self) -> dict[str, Any]:
        """See `ImageSet`: none."""
        return {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """See `Dataset`."""
        chosen = np.asarray(indices)
        return self.images[chosen], None if self.labels is None else self.labels[chosen]

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """See `ImageSet`."""
        for first in range(start, len(self), batch_size):
            yield self.images[first : first + batch_size]

    def digest(self) -> str:
        """See `ImageSet`."""
        return self.source_digest

    def fingerprint(self) -> str:
        """See `ImageSet`: the digest, which is known."""
        return self.source_digest

    @property
    def labels_from(self) -> str:
        """See `Outlined`."""
        return "none" if self.labels is None else "stated"

    def outline(self) -> str:
        """See `Outlined`: the digest, which is known, and what is left of the labels."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return hashlib.sha256(self.source_digest.encode() + labels).hexdigest()


def passes(images: ImageSet, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor | None]]:
    """One pass over a set of images in its order: (uint8 NCHW, int64 labels or None)."""
    done = 0
    for batch in images.batches(batch_size):
        labels = None if images.labels is None else torch.from_numpy(images.labels[done : done + len(batch)])
        done += len(batch)
        yield torch.from_numpy(batch), labels


class TrainingOrder:
    """Which images training goes through: a fresh shuffle every epoch, decided by the seed alone.

    Nothing is drawn along the way, so a run can go on from any step.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, *, shuffled: bool = True) -> None:
        """Not `shuffled`, every epoch has the order of the data set."""
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffled = shuffled
        self._epoch = -1
        self._order: NDArray[np.int64] = np.arange(num_images)

    def indices(self, step: int) -> list[int]:
        """Indices of the images of a step's batch; a batch may reach over the end of an epoch."""
        return self.at(range(step * self.batch_size, (step + 1) * self.batch_size))

    def at(self, positions: Sequence[int]) -> list[int]:
        """Indices of the images at positions, which count through all epochs."""
        return [self._at(position) for position in positions]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_images)
        if self.shuffled and epoch != self._epoch:
            self._epoch = epoch
            shuffle = np.random.default_rng(mix_seed(self.seed, Stream.TRAINING_ORDER, epoch))
            self._order = shuffle.permutation(self.num_images)
        return int(self._order[place])
