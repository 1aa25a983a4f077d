"""Do samples repeat the reference: the copied share, and the distances behind a figure of memorisation."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metrics.comparison import Comparison

COPY_RATIO = 1e-6
"""Share of the typical squared distance below which a sample and its nearest reference image count as one.

Typical is the median squared distance between a reference image and its own nearest neighbour (duplicates
within the reference left out), so the rule has no unit and fits any network. Distances thus count as zero
below 1/1000 of the usual gap. Float32 networks repeat themselves to about 1e-5 of the norm, a squared 1e-10,
hundreds of times below; and images that fill m dimensions fall so near to one of the reference by chance in
1 case out of 10^(3m).
"""


@dataclass(frozen=True, kw_only=True)
class NearestDistances:
    """Distances (not squared) to the nearest reference image: float64, in the order of the images.

    `of_samples` [n] with the places of those images, int64 [n], and `of_reference` [m] to the nearest other one.
    Samples up to `copies_up_to` count as copies, by `COPY_RATIO`; `copied_share` is their share, 0 to 1.
    A generator that memorises lies left of the reference; one that is new lies with it, or right of it.
    """

    of_samples: NDArray[np.float64]
    indices: NDArray[np.int64]
    of_reference: NDArray[np.float64]
    copies_up_to: float
    copied_share: float


def nearest_distances(comparison: Comparison) -> NearestDistances:
    """Compare how near samples come to the reference with how near its images come to each other.

    Exact under every protocol. Meehan et al. 2020, "A non-parametric test to detect data-copying in generative
    models", rest their test on the same two distributions.
    """
    return _distances(comparison, "a figure of memorisation")


def _distances(comparison: Comparison, label: str) -> NearestDistances:
    comparison.require_rows(label, samples=1, reference=2)
    gaps = comparison.reference_manifold.neighbours.nearest(1).squared_distances[:, 0]
    apart = gaps[gaps > 0]
    copies_up_to = COPY_RATIO * apart.median().item() if len(apart) else 0.0
    nearest = comparison.nearest_reference(1)
    squared = nearest.squared_distances[:, 0]
    return NearestDistances(
        of_samples=squared.sqrt().numpy(),
        indices=nearest.indices[:, 0].numpy(),
        of_reference=gaps.sqrt().numpy(),
        copies_up_to=math.sqrt(copies_up_to),
        copied_share=(squared <= copies_up_to).double().mean().item(),
    )


class CopiedShare:
    """`metrics.protocol.Metric`: the share of samples that copy a reference image, by `COPY_RATIO`."""

    name = "copied"
    label = "Copied"
    description = "share of samples that repeat a reference image"
    higher_is_better = False
    needs = frozenset({"pool_rows"})
    min_images = 2

    def compute(self, comparison: Comparison) -> float:
        """Return 0 to 1; the reference holds at least two rows, the training images for preference."""
        return _distances(comparison, self.label).copied_share


COPIED = CopiedShare()
