"""What is kept of a set of images: moments that merge, and the rows that some metrics read."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metrics.rows import FloatRows, KeptRows, MemoryBudget

NEEDS = frozenset({"pool_moments", "spatial_moments", "pool_rows", "logit_rows"})
"""All that a metric can ask a feature set for."""

CHUNK_ROWS = 1024
"""Rows turned to float64 at a time: 16 MiB for 2048 features."""


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Features of B images, float32, on any device.

    `pool` [B, D] comes from the last layer before the classes; `spatial` [B, S] is a layer that still knows
    places, flattened (None: the network has none); `logits` [B, C] are the classes' logits without bias
    (None: it has none).
    """

    pool: Tensor
    spatial: Tensor | None
    logits: Tensor | None

    def __post_init__(self) -> None:
        for layer, rows in (("pool", self.pool), ("spatial", self.spatial), ("logits", self.logits)):
            if rows is None:
                continue
            if rows.ndim != 2 or len(rows) != len(self.pool) or rows.dtype != torch.float32:
                raise ValueError(
                    f"found {layer} features of shape {tuple(rows.shape)} and type {rows.dtype}; "
                    f"expected torch.float32 with one row for each of {len(self.pool)} images"
                )


class NotFiniteError(ValueError):
    """The features of an image, `index` in its set, counted from 0, are not finite."""

    def __init__(self, index: int, layer: str) -> None:
        self.index = index
        self.layer = layer
        super().__init__(self.of(f"image {index}, counted from 0,"))

    def of(self, image: str) -> str:
        """The message, with a name for the image."""
        return (
            f"{image} is the first whose {self.layer} features are not finite; check the image and the weights of the "
            "feature network"
        )


@dataclass(kw_only=True, eq=False)
class Moments:
    """Count, mean [D] and scatter [D, D] of rows, in float64.

    `M2` is the sum of the outer products of the rows' deviations from their mean: the pairwise update of
    Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", carried over to covariances.

    Stored statistics may not say of how many rows they are: then `n_is_known` is False, and `n` is the 2 with which
    `M2` is the covariance. Such moments can be compared, but nothing can be added to them.
    """

    n: int
    mean: NDArray[np.float64]
    M2: NDArray[np.float64]
    n_is_known: bool = True

    @classmethod
    def empty(cls, dim: int) -> Self:
        """Return the moments of no rows of `dim` features."""
        return cls(n=0, mean=np.zeros(dim), M2=np.zeros((dim, dim)))

    @classmethod
    def from_mean_and_covariance(cls, mean: ArrayLike, covariance: ArrayLike, n: int | None) -> Self:
        """Take up stored statistics of `n` images (None: nobody knows): `mean` [D], unbiased `covariance` [D, D]."""
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"found a mean of shape {mean.shape} and a covariance of shape {covariance.shape}; "
                "expected [D] and [D, D]"
            )
        if n is None:
            return cls(n=2, mean=mean.copy(), M2=covariance.copy(), n_is_known=False)
        if n < 2:
            raise ValueError(f"found stored statistics of {n} images; a covariance takes at least 2: make them of more")
        return cls(n=n, mean=mean.copy(), M2=covariance * (n - 1))

    def update(self, rows: NDArray[np.floating]) -> None:
        """Add the rows [B, D]."""
        if rows.ndim != 2 or rows.shape[1] != self.mean.size:
            raise ValueError(f"found features of shape {rows.shape}; expected [batch, {self.mean.size}]")
        self._require_known_n()
        for start in range(0, len(rows), CHUNK_ROWS):
            self._update_chunk(rows[start : start + CHUNK_ROWS].astype(np.float64))

    def _update_chunk(self, rows: NDArray[np.float64]) -> None:
        total = self.n + len(rows)
        mean = rows.mean(axis=0)
        delta = mean - self.mean
        # The shift between the two means enters the scatter as one more deviation.
        shift = math.sqrt(self.n * len(rows) / total) * delta
        deviations = np.vstack([rows - mean, shift])
        self.M2 += deviations.T @ deviations
        self.mean += delta * (len(rows) / total)
        self.n = total

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both; the order of merging matters only to rounding."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge moments of {self.mean.size} and of {other.mean.size} features")
        self._require_known_n()
        other._require_known_n()
        total = self.n + other.n
        if total == 0:
            return Moments.empty(self.mean.size)
        delta = other.mean - self.mean
        scatter = self.M2 + other.M2 + np.outer(delta, delta) * (self.n * other.n / total)
        return Moments(n=total, mean=self.mean + delta * (other.n / total), M2=scatter)

    def _require_known_n(self) -> None:
        if not self.n_is_known:
            raise ValueError("found stored statistics of an unknown number of images; nothing can be added to them")

    def covariance(self) -> NDArray[np.float64]:
        """Return the unbiased [D, D], divided by n - 1 as `numpy.cov` does; n < 2 is a ValueError."""
        if self.n < 2:
            raise ValueError(f"found {self.n} images where a covariance takes at least 2; add images")
        return self.M2 / (self.n - 1)


class FeatureSet:
    """What the metrics read of a set of images, accumulated batch by batch; two sets merge into one.

    Of `NEEDS` only the members of `needs` are kept; the moments of the pool features always are, for they
    count the images. Statistics that come from a file are handed in as `pool` and `spatial`, and the
    `pool_rows` [n, D] of those images that came along with them, which may be fewer. The rows stay
    on the host, or in a file once `budget` is spent; `device` is where metrics make heavy passes over them (the
    samples' is taken, not the reference's).
    """

    def __init__(
        self,
        *,
        needs: frozenset[str] = NEEDS,
        device: torch.device | str = "cpu",
        pool: Moments | None = None,
        spatial: Moments | None = None,
        pool_rows: FloatRows | None = None,
        logit_rows: FloatRows | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        if not needs <= NEEDS:
            raise ValueError(f"found needs {sorted(needs - NEEDS)}; a feature set holds {sorted(NEEDS)}")
        self.needs = needs
        self.device = torch.device(device)
        self._pool = pool
        self.spatial = spatial
        self.budget = budget or MemoryBudget()
        self._pool_rows = _kept(pool_rows, self.budget)
        self._logit_rows = _kept(logit_rows, self.budget)

    @property
    def num_images(self) -> int:
        """Images behind the moments."""
        return 0 if self._pool is None else self._pool.n

    @property
    def pool(self) -> Moments:
        """Moments of the pool features; a ValueError before the first image."""
        if self._pool is None:
            raise ValueError("found a feature set of 0 images; add at least one batch")
        return self._pool

    @property
    def pool_rows(self) -> FloatRows:
        """Pool features [n, D] in the order of the images; n is 0 where none were kept."""
        kept = self._pool_rows.array()
        if len(kept) or self._pool is None:
            return kept
        return np.empty((0, self._pool.mean.size), np.float32)

    @property
    def logit_rows(self) -> FloatRows | None:
        """Logits [n, C] in the order of the images; None where none were given or kept."""
        return self._logit_rows.array() if len(self._logit_rows) else None

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch; a feature that is not finite is a NotFiniteError that names the image."""
        layers = {"pool": batch.pool, "spatial": batch.spatial, "logits": batch.logits}
        rows = {layer: values.detach().cpu().numpy() for layer, values in layers.items() if values is not None}
        for layer, values in rows.items():
            _require_finite(values, layer, self.num_images)
        self._pool = _accumulated(self._pool, rows["pool"])
        if "spatial" in rows and "spatial_moments" in self.needs:
            self.spatial = _accumulated(self.spatial, rows["spatial"])
        if "pool_rows" in self.needs:
            self._pool_rows.append(rows["pool"])
        if "logits" in rows and "logit_rows" in self.needs:
            self._logit_rows.append(rows["logits"])
        self._require_equal_counts()

    def merge(self, other: "FeatureSet") -> "FeatureSet":
        """Return the set of both sets' images, this one's first; they share network and needs."""
        if self.needs != other.needs:
            raise ValueError(f"cannot merge sets that keep {sorted(self.needs)} and {sorted(other.needs)}")
        merged = FeatureSet(
            needs=self.needs,
            device=self.device,
            pool=_merged(self._pool, other._pool),
            spatial=_merged(self.spatial, other.spatial),
            budget=self.budget,
        )
        for part in (self, other):
            if len(part._pool_rows):
                merged._pool_rows.append(part._pool_rows.array())
            if len(part._logit_rows):
                merged._logit_rows.append(part._logit_rows.array())
        merged._require_equal_counts()
        return merged

    def _require_equal_counts(self) -> None:
        if self.spatial is not None and self.spatial.n != self.num_images:
            raise ValueError(
                f"found spatial features of {self.spatial.n} images and pool features of {self.num_images}; "
                "expected one network, or one file of statistics, to give both of every image"
            )


def _require_finite(rows: FloatRows, layer: str, first: int) -> None:
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise NotFiniteError(first + int(bad.argmax()), layer)


def _accumulated(moments: Moments | None, rows: FloatRows) -> Moments:
    moments = Moments.empty(rows.shape[1]) if moments is None else moments
    moments.update(rows)
    return moments


def _merged(one: Moments | None, other: Moments | None) -> Moments | None:
    if one is None or other is None:
        only = one or other
        # A copy, so that to update the merged set leaves its parts alone.
        return None if only is None else only.merge(Moments.empty(only.mean.size))
    return one.merge(other)


def _kept(rows: FloatRows | None, budget: MemoryBudget) -> KeptRows:
    kept = KeptRows(budget)
    if rows is not None:
        kept.append(rows)
    return kept
