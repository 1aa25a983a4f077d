"""A normal distribution per class in pixel space: what mean and covariance alone can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from generators.diffusion.noise import SeededNoise
from generators.levels import to_uint8
from generators.protocol import Ingredients, idle

MOST_NUMBERS = 10 * (3 * 32 * 32) ** 2  # of all covariances together: 755 MB in float64


@dataclass(frozen=True, kw_only=True)
class GaussianOptions:
    """Nothing to choose."""


class Gaussian:
    """Image i is mean + factor @ z of its label, z standard normal from seed i, rounded and clipped."""

    Options: ClassVar[type[GaussianOptions]] = GaussianOptions
    network_evaluations = 0

    def __init__(self, means: Tensor, factors: Tensor, num_classes: int | None, device: torch.device) -> None:
        """Means (classes, D) and factors (classes, D, D) of the covariances, D = 3 * image_size**2."""
        self.means = means
        self.factors = factors
        self.num_classes = num_classes
        self.device = device
        self.image_size = round((means.shape[1] / 3) ** 0.5)

    @classmethod
    def build(cls, options: GaussianOptions, ingredients: Ingredients) -> "Gaussian":  # noqa: ARG003
        """Fit in one pass over the training images; ValueError without any, or where they are too large."""
        if ingredients.training_set is None or ingredients.image_size is None:
            raise ValueError("generator 'gaussian' needs training images; name a data set")
        dimension = 3 * ingredients.image_size**2
        classes = ingredients.num_classes or 1
        if classes * dimension**2 > MOST_NUMBERS:
            raise ValueError(
                f"generator 'gaussian' would fit {classes} covariances of {dimension} x {dimension} numbers; expected "
                f"{MOST_NUMBERS:,} numbers or fewer: take smaller images, or fewer classes"
            )
        counts = torch.zeros(classes, dtype=torch.float64)
        sums = torch.zeros(classes, dimension, dtype=torch.float64)
        products = torch.zeros(classes, dimension, dimension, dtype=torch.float64)
        for images, labels in ingredients.training_set():
            rows = images.flatten(1).double() / 127.5 - 1
            owners = torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels
            for label in set(owners.tolist()):
                members = rows[owners == label]
                counts[label] += len(members)
                sums[label] += members.sum(dim=0)
                products[label] += members.T @ members
        if counts.min() < 2:
            raise ValueError(
                f"class {int(counts.argmin())} has {int(counts.min())} training images; expected 2 or more"
            )
        means = sums / counts[:, None]
        scatter = products - counts[:, None, None] * means[:, :, None] * means[:, None, :]
        values, vectors = torch.linalg.eigh(scatter / (counts[:, None, None] - 1))
        factors = vectors * values.clamp(min=0).sqrt()[:, None, :]
        device = ingredients.device
        return cls(means.float().to(device), factors.float().to(device), ingredients.num_classes, device)

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:  # noqa: ARG002
        """See `generators.protocol.Generator`."""
        owners = torch.zeros(len(seeds), dtype=torch.int64) if labels is None else labels
        z = SeededNoise(seeds, (self.means.shape[1],), self.device)()
        rows = self.means[owners]
        for label in set(owners.tolist()):
            members = owners == label
            rows[members] += z[members] @ self.factors[label].T
        return to_uint8(rows.view(len(seeds), 3, self.image_size, self.image_size), "nearest")

    def evaluate_once(self) -> None:
        """See `generators.protocol.Generator`."""
        self.sample([0], None)
