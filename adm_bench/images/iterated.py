"""Images that somebody's code makes as they are asked for: no file in between."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from adm_bench.errors import InputError
from adm_bench.images.dataset import Images, Labels, images_at_a_time


class UnknownDigestError(InputError):
    """Nobody knows yet what decides the images, since they have not passed."""


class IteratedImages:
    """`adm_bench.images.dataset.ImageSet` of an iterable of uint8 tensors or arrays (B, 3, H, W), any B.

    An iterator serves one pass, a list or another object that begins anew as many as wanted.
    """

    lossy = False

    def __init__(
        self,
        name: str,
        source: Iterable[Tensor | Images],
        num_images: int,
        image_shape: tuple[int, int],
        labels: Labels | None = None,
        source_digest: str | None = None,
    ) -> None:
        """`source_digest` is what decides the images, where that is known; else they are hashed as they pass."""
        if num_images < 1 or min(image_shape) < 1:
            raise ValueError(f"{name}: found {num_images} images of {image_shape}; expected at least 1 of 1 x 1")
        if labels is not None and labels.shape != (num_images,):
            raise ValueError(f"{name}: found labels of shape {labels.shape}; expected ({num_images},)")
        self.name = name
        self.image_shape = image_shape
        self.labels = labels
        self._source = source
        self._num_images = num_images
        self._digest = source_digest
        self._spent = False

    @property
    def preparation(self) -> dict[str, Any]:
        """See `ImageSet`: none."""
        return {}

    def __len__(self) -> int:
        """Number of images that were announced."""
        return self._num_images

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """See `ImageSet`; InputError where the source gives other images, or another number, than announced."""
        if self._spent:
            raise InputError(f"{self.name}: its images can be gone through once, and were; hand them in anew")
        source = iter(self._source)
        self._spent = source is self._source
        total = hashlib.sha256(f"{len(self)} {self.image_shape}".encode())
        count = images_at_a_time(batch_size, self.image_shape)
        for batch in self._regrouped(source, count, start):
            total.update(np.ascontiguousarray(batch).tobytes())
            yield batch
        if self._digest is None and start == 0:
            total.update(b"" if self.labels is None else self.labels.tobytes())
            self._digest = total.hexdigest()

    def _regrouped(self, source: Iterator[Tensor | Images], count: int, start: int) -> Iterator[Images]:
        seen = 0
        waiting: list[Images] = []
        for given in source:
            images = self._checked(given, seen)
            seen += len(images)
            if seen > len(self):
                raise InputError(f"{self.name}: gives more than the {len(self)} images that it announced")
            images = images[max(0, start - (seen - len(images))) :]
            if len(images):
                waiting.append(images)
            while sum(map(len, waiting)) >= count:
                joined = np.concatenate(waiting)
                yield joined[:count]
                waiting = [joined[count:]]
        if seen < len(self):
            raise InputError(f"{self.name}: ended after {seen} images; it announced {len(self)}")
        if sum(map(len, waiting)):
            yield np.concatenate(waiting)

    def _checked(self, given: Tensor | Images, seen: int) -> Images:
        images = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, *self.image_shape):
            raise InputError(
                f"{self.name}: gives {images.dtype} {images.shape} after {seen} images; "
                f"expected uint8 (B, 3, {self.image_shape[0]}, {self.image_shape[1]})"
            )
        return images

    def digest(self) -> str:
        """See `ImageSet`; UnknownDigestError before the images have passed, where nobody said what decides them."""
        if self._digest is None:
            raise UnknownDigestError(
                f"{self.name}: its digest is known when all images have passed; ask afterwards, or hand in "
                "source_digest, which says what decides them"
            )
        return self._digest

    def fingerprint(self) -> str:
        """See `ImageSet`: the digest, or a text of its own where nobody can tell whether the images are the same."""
        return self._digest or uuid4().hex
