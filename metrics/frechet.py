"""Fréchet distance between two sets of features: FID on the pool layer, sFID on the spatial one."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

from metrics.comparison import Comparison
from metrics.statistics import FeatureSet, Moments

COVARIANCE_TOLERANCE = 1e-4
"""Share of the largest entry or eigenvalue up to which asymmetry and negative eigenvalues are rounding.

Covariances stored in float32 stay some ten times below it; a matrix that is no covariance does not.
"""


TRUSTED_SHARE = 1e-8
"""Share of the traces up to which the fast form's rounding may be bounded.

On covariances with eigenvalues spread over ten orders of magnitude its error was 10^4 times below the bound.
"""

Matrix = NDArray[np.float64]


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return the squared Fréchet distance of two Gaussians, means [D] and covariances [D, D].

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2): Dowson and Landau 1982; Heusel et al. 2017, equation
    6. Never clipped: the distance of a set to itself is zero up to rounding, on either side.

    Shapes that differ, values that are not finite and matrices that are no covariance are a ValueError.
    """
    m1, s1 = checked_gaussian(mean1, cov1)
    m2, s2 = checked_gaussian(mean2, cov2)
    if m1.shape != m2.shape:
        raise ValueError(f"cannot compare statistics of {m1.size} and of {m2.size} features")
    trace_of_root = _trace_of_root_at_full_rank(s1, s2)
    if trace_of_root is None:
        trace_of_root = _trace_of_root(s1, s2)
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * trace_of_root)


def frechet_distance_of_few(rows1: NDArray[np.floating], rows2: NDArray[np.floating]) -> float:
    """Return `frechet_distance` of the moments of rows [n, D] and [m, D], without forming a covariance.

    With A [n, D] the deviations of rows from their mean over sqrt(n - 1), A'A is their covariance, and the trace of
    the root the sum of the singular values of AB'. Exact for any n and m from 2; quick where one of them is small.
    """
    (m1, a), (m2, b) = _deviations(rows1), _deviations(rows2)
    trace_of_root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.square(m1 - m2).sum() + np.square(a).sum() + np.square(b).sum() - 2 * trace_of_root)


def _deviations(rows: NDArray[np.floating]) -> tuple[NDArray[np.float64], Matrix]:
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"found features of shape {rows.shape}; expected [images, features] of at least 2 images")
    values = rows.astype(np.float64)
    mean = values.mean(axis=0)
    return mean, (values - mean) / np.sqrt(len(rows) - 1)


def checked_gaussian(mean: ArrayLike, cov: ArrayLike) -> tuple[NDArray[np.float64], Matrix]:
    """Return mean [D] and covariance [D, D] in float64, the latter symmetric to the last bit.

    Shapes that do not fit, values that are not finite and a covariance that is not symmetric are a ValueError.
    """
    m, s = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if m.ndim != 1 or s.shape != (m.size, m.size):
        raise ValueError(
            f"found a mean of shape {m.shape} and a covariance of shape {s.shape}; expected [D] and [D, D]"
        )
    # A sum over all is finite only where each is, but for overflow, which the second look clears.
    if not np.isfinite(m.sum() + s.sum()) and not (np.isfinite(m).all() and np.isfinite(s).all()):
        raise ValueError("found a mean or covariance with values that are not finite; make the statistics again")
    if not np.array_equal(s, s.T):
        if np.abs(s - s.T).max() > COVARIANCE_TOLERANCE * np.abs(s).max():
            raise ValueError("found a covariance that is not symmetric; make the statistics again")
        s = (s + s.T) / 2
    return m, s


def _trace_of_root_at_full_rank(s1: Matrix, s2: Matrix) -> float | None:
    """Return tr (S1 S2)^(1/2), or None where the covariances are singular or too near it.

    With S2 = L L', S1 S2 has the eigenvalues of L' S1 L: one Cholesky factor, one congruence (LAPACK's sygst)
    and one symmetric eigenvalue problem. They err by about eps times the largest, their roots by that over
    twice the root, which is little unless one is nearly 0.
    """
    factor, failed = lapack.dpotrf(s2.T, lower=1)
    # S1's own factor is not needed, but is the quickest way to learn that it is singular.
    if failed or lapack.dpotrf(s1.T, lower=1)[1]:
        return None
    product, _ = lapack.dsygst(s1.T, factor, itype=2, lower=1)
    values = scipy.linalg.eigvalsh(product, lower=True, overwrite_a=True, check_finite=False)
    if values[0] <= 0:
        return None
    roots = np.sqrt(values)
    error = np.finfo(np.float64).eps * values[-1] * (0.5 / roots).sum()
    return float(roots.sum()) if error <= TRUSTED_SHARE * (np.trace(s1) + np.trace(s2)) else None


def _trace_of_root(s1: Matrix, s2: Matrix) -> float:
    """Return tr (S1 S2)^(1/2) at any rank.

    With S1 = A A' and S2 = B B' it is the sum of the singular values of A'B, which takes no root of rounding
    noise and so stays exact where a covariance is singular.
    """
    cross = _factor(s1).T @ _factor(s2)
    return float(np.linalg.svd(cross, compute_uv=False).sum()) if cross.size else 0.0


def _factor(covariance: Matrix) -> Matrix:
    """Return A [D, rank] with A A' = covariance.

    By Cholesky with pivots, which ends where only rounding is left (Higham 2002, "Accuracy and Stability of
    Numerical Algorithms", section 10.3); by eigenvectors, several times slower, where that is no factor because
    the covariance has eigenvalues below 0, as one stored in float32 may.
    """
    largest = np.diag(covariance).max(initial=0.0)
    noise = covariance.shape[0] * np.finfo(np.float64).eps * largest
    packed, pivots, rank, _ = lapack.dpstrf(covariance.T, tol=noise, lower=1)
    factor = np.zeros((covariance.shape[0], rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    residual = covariance - factor @ factor.T
    return factor if np.abs(residual).max(initial=0.0) <= 8 * noise else _factor_by_eigenvectors(covariance)


def _factor_by_eigenvectors(covariance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(covariance)
    largest = max(values[-1], 0.0)
    if values[0] < -COVARIANCE_TOLERANCE * largest:
        raise ValueError(f"found a covariance with the eigenvalue {values[0]:g}, expected none below 0; make it again")
    # Below this an eigenvalue of a symmetric matrix is rounding noise (LAPACK Users' Guide, section 4.7).
    signal = values > values.size * np.finfo(np.float64).eps * largest
    factor: Matrix = vectors[:, signal] * np.sqrt(values[signal])
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

    def compute(self, comparison: Comparison) -> float:
        """Return the distance, in squared feature units; both sets hold at least two images."""
        ours, theirs = self._moments(comparison.samples), self._moments(comparison.reference)
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
