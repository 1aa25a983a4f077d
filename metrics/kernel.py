"""Kernel Inception Distance: a squared maximum mean discrepancy that few images do not bias."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.points import Rows

BLOCK_ROWS = 1000
"""Rows on either side of a block of kernel values: 8 MB."""


@dataclass(frozen=True, kw_only=True)
class KernelDistances:
    """KID of subsets: their mean, and their standard deviation, which is no error of the mean."""

    mean: float
    std: float


def kernel_distance(samples: Rows, reference: Rows, *, device: torch.device | str = "cpu") -> float:
    """Return the unbiased squared MMD of rows [n, D] and [m, D]; it may be negative. ValueError below 2 rows.

    Bińkowski et al. 2018, "Demystifying MMD GANs", equation 4, with their kernel (uv/D + 1)^3. In float64, block
    by block; n x m kernel values, so for large sets it takes longer than any other metric.
    """
    for rows in (samples, reference):
        if rows.ndim != 2 or rows.shape[1] != samples.shape[1] or len(rows) < 2:
            raise ValueError(
                f"found features of shapes {samples.shape} and {reference.shape}; "
                "expected [images, features] twice, of at least 2 images"
            )
    n, m = len(samples), len(reference)
    device = "cpu" if torch.device(device).type == "mps" else torch.device(device)
    within = _sum_within(samples, device) / (n * (n - 1)) + _sum_within(reference, device) / (m * (m - 1))
    return within - 2 * _sum_across(samples, reference, device) / (n * m)


def _sum_within(rows: Rows, device: torch.device | str) -> float:
    """Sum the kernel over all ordered pairs of different rows."""
    total = 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        u = _block(rows, start, device)
        kernel = _kernel(u, u)
        total += float(kernel.sum() - kernel.diagonal().sum())
        for other in range(start + BLOCK_ROWS, len(rows), BLOCK_ROWS):
            total += 2 * float(_kernel(u, _block(rows, other, device)).sum())
    return total


def _sum_across(samples: Rows, reference: Rows, device: torch.device | str) -> float:
    total = 0.0
    for start in range(0, len(samples), BLOCK_ROWS):
        u = _block(samples, start, device)
        for other in range(0, len(reference), BLOCK_ROWS):
            total += float(_kernel(u, _block(reference, other, device)).sum())
    return total


def _block(rows: Rows, start: int, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.array(rows[start : start + BLOCK_ROWS], np.float64)).to(device)


def _kernel(u: Tensor, v: Tensor) -> Tensor:
    return (u @ v.T).div_(u.shape[1]).add_(1).pow_(3)


def subset_kernel_distances(
    samples: Rows,
    reference: Rows,
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> KernelDistances:
    """Return mean and deviation of KID over random subsets of both, drawn as torch-fidelity draws them.

    Sets smaller than `subset_size` are a ValueError.
    """
    if min(len(samples), len(reference)) < subset_size:
        raise ValueError(
            f"found {len(samples)} samples and {len(reference)} reference images where subsets take {subset_size} "
            "of either; add images or take smaller subsets"
        )
    # The old generator, whose stream never changes, because published numbers are drawn with it.
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        drawn = samples[rng.choice(len(samples), subset_size, replace=False)]
        other = reference[rng.choice(len(reference), subset_size, replace=False)]
        values.append(kernel_distance(drawn, other, device=device))
    return KernelDistances(mean=float(np.mean(values)), std=float(np.std(values)))


@dataclass(frozen=True, kw_only=True)
class KernelMetric:
    """`metrics.protocol.Metric`: KID of all images, or the mean over the protocol's random subsets."""

    name: str
    label: str
    description: str
    over: Literal["all", "subsets"]
    min_images: int
    higher_is_better: bool = False
    needs: frozenset[str] = frozenset({"pool_rows"})

    def compute(self, comparison: Comparison) -> float:
        """Return the distance, which may be negative."""
        least = 2 if self.over == "all" else comparison.protocol.kid_subset_size
        comparison.require_rows(self.label, samples=least, reference=least)
        samples, reference = comparison.samples.pool_rows, comparison.reference.pool_rows
        if self.over == "all":
            return kernel_distance(samples, reference, device=comparison.device)
        return self.of_subsets(comparison).mean

    def of_subsets(self, comparison: Comparison) -> KernelDistances:
        """Return mean and deviation over the protocol's subsets."""
        protocol = comparison.protocol
        return subset_kernel_distances(
            comparison.samples.pool_rows,
            comparison.reference.pool_rows,
            subsets=protocol.kid_subsets,
            subset_size=protocol.kid_subset_size,
            seed=protocol.seed,
            device=comparison.device,
        )


KID = KernelMetric(
    name="kid",
    label="KID",
    description="kernel distance between pooled features, without bias, and not times 1,000 (Bińkowski et al. 2018)",
    over="all",
    min_images=2,
)
KID_SUBSETS = KernelMetric(
    name="kid_subsets",
    label="KID subsets",
    description="the mean of the same over random subsets, as torch-fidelity reports it",
    over="subsets",
    min_images=EvaluationProtocol.kid_subset_size,
)
