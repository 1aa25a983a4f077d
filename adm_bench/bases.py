"""Samples that an upsampler starts from: any generator's, or an npz from elsewhere."""

from collections.abc import Iterator
from pathlib import Path

from adm_bench.errors import InputError
from adm_bench.files import file_sha256
from adm_bench.images.dataset import Images
from adm_bench.images.npz import NpzFile
from generators.protocol import Upsampler


class BaseSamples:
    """The samples in a file, read in batches, never all at once."""

    def __init__(self, path: Path, upsampler: Upsampler, num_images: int | None) -> None:
        """The first `num_images`, or all; InputError where they are fewer, or not of the upsampler's base size."""
        self.file = NpzFile(path)
        held, height, width = self.file.image_shape()
        if (height, width) != (upsampler.base_size, upsampler.base_size):
            raise InputError(
                f"--base {path}: images are {height} x {width}, but this upsampler enlarges {upsampler.base_size} x "
                f"{upsampler.base_size}"
            )
        self.num_images = held if num_images is None else num_images
        if self.num_images > held:
            raise InputError(
                f"--base {path}: holds {held} images, but {num_images} are asked for; none is used twice: "
                "sample more, or lower --num"
            )
        labels = self.file.labels()
        self.labels = None if labels is None else labels[: self.num_images]
        classes = upsampler.num_classes
        if classes is not None and self.labels is not None and self.labels.max() >= classes:
            raise InputError(f"--base {path}: label {self.labels.max()} is out of range; expected 0 to {classes - 1}")
        self.sha256 = file_sha256(path)

    def batches(self, batch_size: int) -> Iterator[Images]:
        """uint8 (B, 3, h, w), in the file's order."""
        left = self.num_images
        for images in self.file.batches(batch_size):
            if left <= 0:
                return
            yield images[:left]
            left -= len(images)
