"""What a trainer is fed: batches whose order, crops and mirrorings depend on the seed and the step alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
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
from adm_bench.images.decoding import UnreadableImageError
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import TrainingBatch
from generators.training.config import Crop

BATCHES_AHEAD = 2
STAND_INS = 32
"""Images drawn for one place, where each turns out unreadable, before it is the data set that is said to be damaged."""


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
    passed_over: dict[int, str]
    """Unreadable images in whose place it is, and what is wrong with them."""


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
    passes_over: bool = False
    """Take another image, drawn by the place in the order, where one is unreadable; False makes it an error."""
    passed_over: dict[int, str] = field(default_factory=dict, init=False)
    """Unreadable images of the batches given out so far, by their index, and what is wrong with them."""

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

    def taken(self, count: int) -> list[int]:
        """Indices of the first `count` images trained on; where unreadable ones are passed over, all are decoded."""
        order = TrainingOrder(len(self.dataset), self.batch_size, self.seed, shuffled=self.shuffled).at(range(count))
        if not self.passes_over:
            return order
        return [made.image for made in ahead(self._make, map(Place, range(count), order), depth=BATCHES_AHEAD)]

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
                for made in images:
                    self.passed_over.update(made.passed_over)
                yield TrainingBatch(
                    step=step,
                    images=self._stacked(images),
                    labels=None if labels is None else torch.from_numpy(labels[chosen]),
                    seeds=[made.seed for made in images],
                )

    def _make(self, place: Place) -> Made:
        """The image of a place, or the first readable one of those that are drawn in its stead."""
        passed_over: dict[int, str] = {}
        for image in self._candidates(place):
            try:
                pixels = self._pixels(place.position, image)
            except InputError as error:
                if not isinstance(error.__cause__, UnreadableImageError):
                    raise
                if not self.passes_over:
                    raise InputError(
                        f"{str(error).partition('; mend')[0]}; mend or remove it, or pass over up to N such images "
                        "(--skip-bad N), as only so a run that has a checkpoint goes on"
                    ) from error.__cause__
                passed_over[image] = str(error)
                continue
            return Made(image, mix_seed(self.seed, Stream.TRAINING_IMAGES, place.position), pixels, passed_over)
        raise InputError(
            f"{passed_over[place.image]}; nor can {STAND_INS} others be read that were drawn in its place: the data "
            "set is damaged, or no longer there"
        )

    def _candidates(self, place: Place) -> Iterator[int]:
        yield place.image
        random = Random(mix_seed(self.seed, Stream.STAND_INS, place.position))  # noqa: S311  no secret
        for _ in range(STAND_INS):
            yield random.randrange(len(self.dataset))

    def _pixels(self, position: int, image: int) -> Images:
        random = Random(mix_seed(self.seed, Stream.AUGMENTATION, position))  # noqa: S311  no secret
        size = self.dataset.image_size
        crop = partial(random_crop, size=size, random=random) if self.crop == "random" else None
        if isinstance(self.dataset, Uncropped):
            pixels = self.dataset.cropped(image, crop or partial(center_crop, size=size))
        else:
            pixels = self._read(image, crop)
        return pixels[:, ::-1] if self.flip and random.random() < 0.5 else pixels

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
    return {"images": len(dataset), "image_size": dataset.image_size, "classes": dataset.num_classes, **known}
