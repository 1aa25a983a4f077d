"""Fréchet distance between two sets of features: FID on the pool layer, sFID on the spatial one."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureSet, Moments

COVARIANCE_TOLERANCE = 1e-4
"""Share of the largest entry or eigenvalue up to which asymmetry and negative eigenvalues are rounding.

Covariances stored in float32 stay some ten times below it; a matrix that is no covariance does not.
"""


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return the squared Fréchet distance of two Gaussians, means [D] and covariances [D, D].

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2): Dowson and Landau 1982; Heusel et al. 2017, equation
    6. With S1 = A A' and S2 = B B' the last trace is the sum of the singular values of A'B, which
    takes no root of rounding noise and so stays exact where a covariance is singular. Never clipped: the
    distance of a set to itself is zero up to rounding, on either side.

    Shapes that differ, values that are not finite and matrices that are no covariance are a ValueError.
    """
    m1, s1 = _checked_gaussian(mean1, cov1)
    m2, s2 = _checked_gaussian(mean2, cov2)
    if m1.shape != m2.shape:
        raise ValueError(f"cannot compare statistics of {m1.size} and of {m2.size} features")
    cross = _factor(s1).T @ _factor(s2)
    trace_of_root = np.linalg.svd(cross, compute_uv=False).sum()
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * trace_of_root)


def _checked_gaussian(mean: ArrayLike, cov: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    m, s = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if m.ndim != 1 or s.shape != (m.size, m.size):
        raise ValueError(
            f"found a mean of shape {m.shape} and a covariance of shape {s.shape}; expected [D] and [D, D]"
        )
    if not (np.isfinite(m).all() and np.isfinite(s).all()):
        raise ValueError("found a mean or covariance with values that are not finite; make the statistics again")
    if np.abs(s - s.T).max() > COVARIANCE_TOLERANCE * np.abs(s).max():
        raise ValueError("found a covariance that is not symmetric; make the statistics again")
    return m, (s + s.T) / 2


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A [D, rank] with A A' = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    largest = max(values[-1], 0.0)
    if values[0] < -COVARIANCE_TOLERANCE * largest:
        raise ValueError(f"found a covariance with the eigenvalue {values[0]:g}, expected none below 0; make it again")
    # Below this an eigenvalue of a symmetric matrix is rounding noise (LAPACK Users' Guide, section 4.7).
    signal = values > values.size * np.finfo(np.float64).eps * largest
    factor: NDArray[np.float64] = vectors[:, signal] * np.sqrt(values[signal])
    return factor


@dataclass(frozen=True, kw_only=True)
class FrechetMetric:
    """`metrics.protocol.Metric`: the Fréchet distance between the moments of one layer."""

    name: str
    label: str
    description: str
    layer: Literal["pool", "spatial"]
    higher_is_better: bool = False
    min_images: int = 2

    @property
    def needs(self) -> frozenset[str]:
        """The moments of its layer."""
        return frozenset({f"{self.layer}_moments"})

    def compute(self, samples: FeatureSet, reference: FeatureSet, protocol: EvaluationProtocol) -> float:  # noqa: ARG002
        """Return the distance, in squared feature units; both sets hold at least two images."""
        ours, theirs = self._moments(samples), self._moments(reference)
        return frechet_distance(ours.mean, ours.covariance(), theirs.mean, theirs.covariance())

    def _moments(self, features: FeatureSet) -> Moments:
        moments = features.pool if self.layer == "pool" else features.spatial
        if moments is None:
            raise ValueError(f"{self.label} needs {self.layer} features and found none; take features that have them")
        return moments


FID = FrechetMetric(
    name="fid",
    label="FID",
    description="Fréchet distance between pooled features (Heusel et al. 2017)",
    layer="pool",
)
SFID = FrechetMetric(
    name="sfid",
    label="sFID",
    description="the same between spatial features (Nash et al. 2021)",
    layer="spatial",
)
