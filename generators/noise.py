"""Uniform noise: the floor that any generator must beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from generators.protocol import Ingredients, idle


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """Nothing to choose."""


class Noise:
    """Every level of every pixel is equally likely; labels are ignored."""

    Options: ClassVar[type[NoiseOptions]] = NoiseOptions
    network_evaluations = 0

    def __init__(self, image_size: int, num_classes: int | None) -> None:
        self.image_size = image_size
        self.num_classes = num_classes

    @classmethod
    def build(cls, options: NoiseOptions, ingredients: Ingredients) -> "Noise":  # noqa: ARG003  the protocol's
        """Needs nothing but the shape; ValueError without it."""
        if ingredients.image_size is None:
            raise ValueError("generator 'noise' needs an image size; name a data set, or give --size")
        return cls(ingredients.image_size, ingredients.num_classes)

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:  # noqa: ARG002
        """See `generators.protocol.Generator`."""
        shape = (3, self.image_size, self.image_size)
        rows = [
            torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
            for seed in seeds
        ]
        return torch.stack(rows)

    def evaluate_once(self) -> None:
        """Nothing is computed but random numbers."""
