"""FID without the bias of its number of images: extrapolated to infinitely many samples."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metrics.comparison import Comparison
from metrics.frechet import frechet_distance
from metrics.points import Rows
from metrics.statistics import Moments

POINTS = 15
"""Subsets, as many as Chong and Forsyth take."""

SMALLEST_SHARE = 0.1
"""Share of the samples in the smallest subset: theirs go from 5,000 to 50,000."""

LEAST_PER_FEATURE = 2
"""Samples per feature in the smallest subset where half the samples allow: with fewer, FID bends away from the line."""


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The line FID(n) = `value` + `slope` / n through FIDs of nested subsets of n samples.

    `std_error` is that of `value` in the fit, `residual` the root mean square distance of the points from the
    line. Nested subsets share samples, so the errors of the points are not independent: the fit error says
    whether a line fits, and is no interval for the value; `metrics.uncertainty` gives one.
    """

    value: float
    std_error: float
    slope: float
    residual: float
    sizes: NDArray[np.int64]
    distances: NDArray[np.float64]


def fid_infinity(samples: Rows, reference: Moments, *, seed: int, points: int = POINTS) -> Extrapolation:
    """Extrapolate the FID of samples [n, D] in random order to n = infinity: Chong and Forsyth 2020, section 4.

    "Effectively unbiased FID and Inception Score and where to find them". The reference's own bias stays. Fewer
    than 30 samples, or features of another dimension, are a ValueError.
    """
    if samples.ndim != 2 or len(samples) < 2 * POINTS or points < 3:
        raise ValueError(
            f"found features of shape {samples.shape} and {points} points; an extrapolation takes {2 * POINTS} samples "
            "and 3 points or more"
        )
    total, dim = samples.shape
    smallest = max(int(total * SMALLEST_SHARE), min(LEAST_PER_FEATURE * dim, total // 2), 2)
    sizes = np.linspace(smallest, total, points).round().astype(np.int64)
    theirs = reference.covariance()
    distances = np.array(
        [
            frechet_distance(moments.mean, moments.covariance(), reference.mean, theirs)
            for moments in _nested_moments(samples, sizes, seed)
        ]
    )
    inverse = 1 / sizes
    design = np.stack([np.ones(points), inverse], axis=1)
    (value, slope), *_ = np.linalg.lstsq(design, distances)
    misfit = np.square(distances - design @ (value, slope)).sum()
    variance = misfit / (points - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return Extrapolation(
        value=float(value),
        std_error=float(np.sqrt(variance)),
        slope=float(slope),
        residual=float(np.sqrt(misfit / points)),
        sizes=sizes,
        distances=distances,
    )


def _nested_moments(samples: Rows, sizes: NDArray[np.int64], seed: int) -> Iterator[Moments]:
    """Yield the moments of the first samples of a random order; each row is read once."""
    order = np.random.default_rng(seed).permutation(len(samples))
    moments, done = Moments.empty(samples.shape[1]), 0
    for size in sizes:
        while done < size:
            some = np.sort(order[done : min(done + 1024, size)])
            moments.update(samples[some])
            done += len(some)
        yield moments


class FidInfinity:
    """`metrics.protocol.Metric`: the value of `fid_infinity` with the protocol's seed."""

    name = "fid_infinity"
    label = "FID∞"
    description = "FID extrapolated to infinitely many samples (Chong and Forsyth 2020)"
    higher_is_better = False
    needs = frozenset({"pool_moments", "pool_rows"})
    min_images = 2 * POINTS

    def compute(self, comparison: Comparison) -> float:
        """Return the extrapolated distance, which may fall below 0 by its error."""
        comparison.require_rows(self.label, samples=self.min_images, reference=0)
        return self.extrapolated(comparison).value

    def extrapolated(self, comparison: Comparison) -> Extrapolation:
        """Return the line with its fit error."""
        return fid_infinity(comparison.samples.pool_rows, comparison.reference.pool, seed=comparison.protocol.seed)


FID_INFINITY = FidInfinity()
