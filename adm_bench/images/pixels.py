"""Images by their pixels alone: whether two sets hold the same ones, in whatever container and order."""

from collections.abc import Iterator

import numpy as np

from adm_bench import progress
from adm_bench.images.dataset import ImageSet, PixelHashes, pixel_hashes
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import IteratedImages

BATCH_SIZE = 256


def are_same_images(one: ImageSet, other: ImageSet) -> bool:
    """Whether two sets hold the same images as often, pixel for pixel, whatever their order, names, labels and files.

    Where number and size agree, one set is read, the one that need not be decoded for preference, and the other as
    long as its images are among those of the first: of different sets one batch. Takes 8 bytes an image. Images that
    are made as they are asked for are not compared, since to ask would be to make them. InputError where an image
    cannot be read.
    """
    if len(one) != len(other) or one.image_shape != other.image_shape:
        return False
    if isinstance(one, IteratedImages) or isinstance(other, IteratedImages):
        return False
    first, second = sorted((one, other), key=_must_be_decoded)
    with progress.stage(f"compare {second.name} with {first.name}", 2 * len(first), "images") as advance:
        parts = []
        for some in _hashes(first):
            parts.append(some)
            advance(len(some))
        known = np.sort(np.concatenate(parts))
        parts = []
        for some in _hashes(second):
            places = np.minimum(np.searchsorted(known, some), len(known) - 1)
            if (known[places] != some).any():
                return False
            parts.append(some)
            advance(len(some))
    return np.array_equal(known, np.sort(np.concatenate(parts)))


def _must_be_decoded(images: ImageSet) -> bool:
    return isinstance(images, EncodedImages) and images.pixel_hashes is None


def _hashes(images: ImageSet) -> Iterator[PixelHashes]:
    if isinstance(images, EncodedImages) and images.pixel_hashes is not None:
        yield images.pixel_hashes
        return
    for batch in images.batches(BATCH_SIZE):
        yield pixel_hashes(batch)
