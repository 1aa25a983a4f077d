"""Returns training images: the best FID there is, and the cheat that copy checks must catch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from generators.protocol import Ingredients, idle


@dataclass(frozen=True, kw_only=True)
class MemorizerOptions:
    """Nothing to choose."""


class Memorizer:
    """Image i is a training image of the label asked for, chosen by seed i with replacement."""

    Options: ClassVar[type[MemorizerOptions]] = MemorizerOptions
    network_evaluations = 0

    def __init__(self, images: Tensor, labels: Tensor | None, num_classes: int | None) -> None:
        self.images = images
        self.image_size = images.shape[-1]
        self.num_classes = num_classes
        everything = torch.arange(len(images))
        self.members = [everything]
        if labels is not None and num_classes is not None:
            self.members = [everything[labels == label] for label in range(num_classes)]

    @classmethod
    def build(cls, options: MemorizerOptions, ingredients: Ingredients) -> "Memorizer":  # noqa: ARG003
        """Keep the training set, 3 bytes a pixel; ValueError without one, or for a class without any."""
        if ingredients.training_set is None:
            raise ValueError("generator 'memorizer' needs training images; name a data set")
        images, labels = zip(*ingredients.training_set(), strict=True)
        known = [label for label in labels if label is not None]
        memorizer = cls(torch.cat(images), torch.cat(known) if known else None, ingredients.num_classes)
        for label, members in enumerate(memorizer.members):
            if not len(members):
                raise ValueError(f"class {label} has no training images to return")
        return memorizer

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:  # noqa: ARG002
        """See `generators.protocol.Generator`."""
        chosen = []
        wanted = [0] * len(seeds) if labels is None or len(self.members) == 1 else labels.tolist()
        for seed, label in zip(seeds, wanted, strict=True):
            members = self.members[label]
            index = torch.randint(len(members), (), generator=torch.Generator().manual_seed(seed))
            chosen.append(int(members[index]))
        return self.images[chosen]

    def evaluate_once(self) -> None:
        """Nothing is computed."""
