"""What a trainer is fed: batches whose order, crops and mirrorings depend on the seed and the step alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from adm_bench.errors import InputError, bad_input
from adm_bench.images.ahead import ahead, share_of_threads
from adm_bench.images.crops import center_crop, random_crop
from adm_bench.images.dataset import CropFunction, Dataset, Images, Outlined, TrainingOrder, Uncropped
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import TrainingBatch
from generators.training.config import Crop

BATCHES_AHEAD = 2


class Place(NamedTuple):
    """Which image a process trains on at a position; positions count through all steps and epochs."""

    position: int
    image: int
    """Its index in the data set."""


class Made(NamedTuple):
    """One image, ready to be trained on."""

    image: int
    seed: int
    pixels: Images
    """(size, size, 3)."""


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of all steps, of which this process takes its share, decoded by threads while the network computes.

    Of the `batch_size` images of a step, the process of a rank takes the rank-th of `size` equal parts. The order of
    the images, their crops, mirrorings and seeds are the same for any number of processes and workers. InputError where
    the processes cannot share a batch equally, or where a batch has more images than the data set.
    """

    dataset: Dataset
    _: KW_ONLY
    batch_size: int
    """Images of a step, of all processes together."""
    seed: int
    crop: Crop = "center"
    flip: bool = False
    """Mirror each image with probability 1/2, left to right."""
    rank: int = 0
    size: int = 1
    workers: int | None = None
    """Threads that read, decode and crop; None: as many as there are processors for each process of this machine."""
    shuffled: bool = True
    """False keeps the order of the data set."""
    pinned: bool = False
    """Put images into page-locked memory, from which a GPU copies while it computes."""

    def __post_init__(self) -> None:
        """Refuse what cannot be shared."""
        if self.batch_size % self.size:
            raise InputError(
                f"batch_size is {self.batch_size}, which {self.size} processes cannot share equally; choose a multiple "
                f"of {self.size}"
            )
        if self.batch_size > len(self.dataset):
            raise InputError(
                f"data set {self.dataset.name} holds {len(self.dataset)} images, but batch_size is {self.batch_size}; "
                "choose a batch that is no larger than the data set"
            )

    def from_step(self, start: int, stop: int) -> Iterator[TrainingBatch]:
        """Shares of this process of the steps from `start` to before `stop`.

        Two batches are worked on ahead; the threads end with the iterator, however it ends. InputError, naming the
        image, in the place of the first batch that cannot be had.
        """
        share = self.batch_size // self.size

        def mine(step: int) -> range:
            first = step * self.batch_size + self.rank * share
            return range(first, first + share)

        return self._batches(range(start, stop), mine)

    def whole_pass(self) -> Iterator[TrainingBatch]:
        """As `from_step`, every image once: the last batch may be smaller, and leaves out what cannot be shared."""

        def mine(step: int) -> range:
            first = step * self.batch_size
            share = min(self.batch_size, len(self.dataset) - first) // self.size
            return range(first + self.rank * share, first + (self.rank + 1) * share)

        shared = len(self.dataset) - len(self.dataset) % self.size
        return self._batches(range(-(-shared // self.batch_size)), mine)

    def _batches(self, steps: range, mine: Callable[[int], range]) -> Iterator[TrainingBatch]:
        """Those of some steps, of the positions that this process takes at each."""
        workers = self.workers or share_of_threads()
        limit = max(BATCHES_AHEAD * self.batch_size // self.size, workers)
        labels = self.dataset.labels
        order = TrainingOrder(len(self.dataset), self.batch_size, self.seed, shuffled=self.shuffled)
        places = (Place(position, order.at([position])[0]) for step in steps for position in mine(step))
        with (
            ThreadPoolExecutor(workers, "training images") as threads,
            closing(ahead(self._make, places, limit, threads)) as coming,
        ):
            for step in steps:
                images = list(islice(coming, len(mine(step))))
                chosen = [made.image for made in images]
                yield TrainingBatch(
                    step=step,
                    images=self._stacked(images),
                    labels=None if labels is None else torch.from_numpy(labels[chosen]),
                    seeds=[made.seed for made in images],
                )

    def _make(self, place: Place) -> Made:
        random = Random(mix_seed(self.seed, Stream.AUGMENTATION, place.position))  # noqa: S311  no secret
        size = self.dataset.image_size
        crop = partial(random_crop, size=size, random=random) if self.crop == "random" else None
        if isinstance(self.dataset, Uncropped):
            pixels = self.dataset.cropped(place.image, crop or partial(center_crop, size=size))
        else:
            pixels = self._read(place.image, crop)
        if self.flip and random.random() < 0.5:
            pixels = pixels[:, ::-1]
        return Made(place.image, mix_seed(self.seed, Stream.TRAINING_IMAGES, place.position), pixels)

    def _read(self, index: int, crop: CropFunction | None) -> Images:
        """An image of a data set that has nothing but squares; a random crop is cut from its enlargement."""
        where = f"data set {self.dataset.name}, image {index}"
        with bad_input(where):
            pixels = self.dataset.read([index])[0][0].transpose(1, 2, 0)
        side = self.dataset.image_size
        if pixels.shape != (side, side, 3) or pixels.dtype != np.uint8:
            raise InputError(f"{where}: is {pixels.dtype} {pixels.shape}; expected uint8 ({side}, {side}, 3)")
        return pixels if crop is None else crop(Image.fromarray(np.ascontiguousarray(pixels)))

    def _stacked(self, images: list[Made]) -> torch.Tensor:
        size = self.dataset.image_size
        stacked = torch.empty((len(images), 3, size, size), dtype=torch.uint8, pin_memory=self.pinned)
        np.stack([made.pixels.transpose(2, 0, 1) for made in images], out=stacked.numpy())
        return stacked


def training_record(dataset: Dataset) -> dict[str, Any]:
    """What decides the images and labels that are trained on, as plain data: the same wherever they are copied to.

    Encoded images are known by names, sizes, labels and the bytes of a few, without reading all of them; arrays and
    plug-ins by their digest.
    """
    if isinstance(dataset, Outlined):
        known = {"labels": dataset.labels_from, "outline": dataset.outline()}
    else:
        known = {"labels": "the plug-in's", "digest": dataset.digest()}
    skipped = dataset.preparation.get("skipped")
    counted = {"images": len(dataset), "image_size": dataset.image_size, "classes": dataset.num_classes}
    return {**counted, **known, **({"skipped": sorted(skipped)} if skipped else {})}
