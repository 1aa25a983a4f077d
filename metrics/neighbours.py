"""Nearest neighbours among features, in blocks, and what they tell: precision, recall, copied images.

All distances are squared and Euclidean, |u|^2 - 2uv + |v|^2, computed in float64: its rounding is then far
below that of the float32 features. One block of them is in memory at a time, however many rows there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureSet

BLOCK_ROWS = 2048
"""Rows on either side of a block: its distances take 32 MiB."""

ZERO_DISTANCE = 1e-12
"""Squared distances below this share of |u|^2 + |v|^2 are set to 0: they are cancellation, not distance.

float64 rounds by at most about D * 2^-53 of the norms, 2e-13 at 2048 features; and features that differ in
the last bit of a float32 lie 1e-14 of them apart. So rows that are equal, or equal but for rounding, lie at
exactly 0 and memberships do not hang on noise where a set holds duplicates.
"""

COPY_RATIO = 1e-6
"""Share of the typical squared distance below which a sample and its nearest reference image count as one.

Typical is the median squared distance between a reference image and its own nearest neighbour (duplicates
within the reference left out), so the rule has no unit and fits any network. Distances thus count as zero
below 1/1000 of the usual gap. Float32 networks repeat themselves to about 1e-5 of the norm, a squared 1e-10,
hundreds of times below; and images that fill m dimensions fall so near to one of the reference by chance in
1 case out of 10^(3m).
"""

Rows = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest points of each query, nearest first: float64 and int64 [queries, k], on the CPU."""

    squared_distances: Tensor
    indices: Tensor


def squared_distance_blocks(
    queries: Rows, points: Rows, *, device: torch.device | str = "cpu", block_rows: int = BLOCK_ROWS
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the squared distances [queries, points] in float64 blocks, each with its first row and column.

    They come row by row: all blocks of the first queries, then all of the next. They lie on `device`, or on
    the CPU where that is Apple's mps, which has no float64.
    """
    if queries.ndim != 2 or points.ndim != 2 or queries.shape[1] != points.shape[1]:
        raise ValueError(f"cannot compare features of shapes {queries.shape} and {points.shape}; expected [n, D] twice")
    device = "cpu" if torch.device(device).type == "mps" else device
    for row in range(0, len(queries), block_rows):
        u, u_norms = _on_device(queries[row : row + block_rows], device)
        for column in range(0, len(points), block_rows):
            v, v_norms = _on_device(points[column : column + block_rows], device)
            sums = u_norms[:, None] + v_norms
            distances = torch.addmm(u_norms[:, None], u, v.T, alpha=-2).add_(v_norms)
            yield row, column, distances.masked_fill_(distances < ZERO_DISTANCE * sums, 0)


def _on_device(rows: Rows, device: torch.device | str) -> tuple[Tensor, Tensor]:
    values = torch.tensor(rows, device=device).double()
    return values, values.square().sum(dim=1)


def nearest_neighbours(
    queries: Rows, points: Rows, k: int, *, device: torch.device | str = "cpu", block_rows: int = BLOCK_ROWS
) -> Neighbours:
    """Find the k nearest of `points` [m, D] to each of `queries` [n, D]; m < k is a ValueError.

    A set compared with itself finds each row at distance 0 first.
    """
    if len(points) < k:
        raise ValueError(f"found {len(points)} images where {k} nearest ones are asked for; add images")
    distances = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    for row, column, block in squared_distance_blocks(queries, points, device=device, block_rows=block_rows):
        near, where = block.topk(min(k, block.shape[1]), dim=1, largest=False)
        rows = slice(row, row + len(block))
        candidates = torch.cat([distances[rows], near.cpu()], dim=1)
        numbers = torch.cat([indices[rows], where.cpu() + column], dim=1)
        distances[rows], chosen = candidates.topk(k, dim=1, largest=False)
        indices[rows] = numbers.gather(1, chosen)
    return Neighbours(squared_distances=distances, indices=indices)


def squared_radii(points: Rows, k: int, *, device: torch.device | str = "cpu", block_rows: int = BLOCK_ROWS) -> Tensor:
    """Return each point's squared distance to its k-th nearest other one: float64 [n], on the CPU."""
    others_and_itself = nearest_neighbours(points, points, k + 1, device=device, block_rows=block_rows)
    return others_and_itself.squared_distances[:, k]


def inside_manifold(
    queries: Rows,
    points: Rows,
    point_squared_radii: Tensor,
    *,
    device: torch.device | str = "cpu",
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """Tell which of `queries` [n, D] lie in the ball of any of `points` [m, D], rim included: bool [n], CPU.

    Kynkäänniemi et al. 2019, equation 1.
    """
    inside = torch.zeros(len(queries), dtype=torch.bool)
    for row, column, block in squared_distance_blocks(queries, points, device=device, block_rows=block_rows):
        hits = block <= point_squared_radii[column : column + block.shape[1]].to(block.device)
        inside[row : row + len(block)] |= hits.any(dim=1).cpu()
    return inside


@dataclass(frozen=True, kw_only=True)
class ManifoldMetric:
    """`metrics.protocol.Metric`: the share of one set inside the manifold of the other.

    Kynkäänniemi et al. 2019, "Improved precision and recall metric", equation 2.
    """

    name: str
    label: str
    description: str
    manifold_of: Literal["reference", "samples"]
    higher_is_better: bool = True
    needs: frozenset[str] = frozenset({"pool_rows"})
    min_images: int = 4

    def compute(self, samples: FeatureSet, reference: FeatureSet, protocol: EvaluationProtocol) -> float:
        """Return 0 to 1; the set whose manifold it is holds more rows than the protocol's `neighbours`."""
        inner, outer = (samples, reference) if self.manifold_of == "reference" else (reference, samples)
        _require_rows(self.label, inner, 1)
        _require_rows(self.label, outer, protocol.neighbours + 1)
        device = samples.device
        radii = squared_radii(outer.pool_rows, protocol.neighbours, device=device)
        return inside_manifold(inner.pool_rows, outer.pool_rows, radii, device=device).double().mean().item()


class CopiedShare:
    """`metrics.protocol.Metric`: the share of samples that copy a reference image, by `COPY_RATIO`."""

    name = "copied"
    label = "Copied"
    description = "share of samples that repeat a reference image"
    higher_is_better = False
    needs = frozenset({"pool_rows"})
    min_images = 2

    def compute(self, samples: FeatureSet, reference: FeatureSet, protocol: EvaluationProtocol) -> float:  # noqa: ARG002
        """Return 0 to 1; the reference holds at least two rows, the training images for preference."""
        _require_rows(self.label, samples, 1)
        _require_rows(self.label, reference, 2)
        device = samples.device
        gaps = squared_radii(reference.pool_rows, 1, device=device)
        gaps = gaps[gaps > 0]
        typical_gap = gaps.median().item() if len(gaps) else 0.0
        nearest = nearest_neighbours(samples.pool_rows, reference.pool_rows, 1, device=device)
        return (nearest.squared_distances <= COPY_RATIO * typical_gap).double().mean().item()


def _require_rows(label: str, features: FeatureSet, least: int) -> None:
    found = len(features.pool_rows)
    if found < least:
        raise ValueError(f"{label} found the features of {found} images where it needs {least}; add images")


PRECISION = ManifoldMetric(
    name="precision",
    label="Precision",
    description="share of samples among the reference images (Kynkäänniemi et al. 2019)",
    manifold_of="reference",
)
RECALL = ManifoldMetric(
    name="recall",
    label="Recall",
    description="share of reference images among the samples (Kynkäänniemi et al. 2019)",
    manifold_of="samples",
)
COPIED = CopiedShare()
