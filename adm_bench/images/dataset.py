"""What a data set is, one in memory, and the order in which training goes through it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generators.diffusion.noise import Stream, mix_seed

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Dataset(Protocol):
    """Training images of one size, in a fixed order."""

    @property
    def name(self) -> str:
        """Its registered name, or its path."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where there are no labels."""

    @property
    def lossy(self) -> bool:
        """Whether the source is compressed with loss (JPEG), which shows in every metric."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """Images (B, 3, H, W) and labels (B,), or None where there are none."""

    def digest(self) -> str:
        """SHA-256 that changes whenever an image, a label or the preprocessing does."""


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

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """See `Dataset`."""
        chosen = np.asarray(indices)
        return self.images[chosen], None if self.labels is None else self.labels[chosen]

    def digest(self) -> str:
        """See `Dataset`."""
        return self.source_digest


def passes(dataset: Dataset, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor | None]]:
    """One pass over a data set in its order: (uint8 NCHW, int64 labels or None)."""
    for start in range(0, len(dataset), batch_size):
        images, labels = dataset.read(range(start, min(start + batch_size, len(dataset))))
        yield torch.from_numpy(images), None if labels is None else torch.from_numpy(labels)


class TrainingOrder:
    """Which images a step trains on: a fresh shuffle every epoch, decided by the seed alone.

    Nothing is drawn along the way, so a run can go on from any step.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def indices(self, step: int) -> list[int]:
        """Indices of the images of a step's batch; a batch may reach over the end of an epoch."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self._at(position) for position in positions]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_images)
        if epoch != self._epoch:
            self._epoch = epoch
            shuffle = np.random.default_rng(mix_seed(self.seed, Stream.TRAINING_ORDER, epoch))
            self._order = shuffle.permutation(self.num_images)
        return int(self._order[place])
