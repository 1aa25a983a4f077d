"""Distances as ADM's evaluator gets them: half-precision arithmetic of TensorFlow on a CPU, emulated.

guided-diffusion, evaluations/evaluator.py, lines 370 to 390: features are rounded to half, squared norms are
summed in half, products are accumulated in float32 and rounded to half once, and |u|^2 - 2uv + |v|^2 rounds
after each operation. At the squared norms of pooled Inception features, some 500, that moves distances by
0.25 to 1, which is seen in recall. A block of 10,000 x 10,000 with any value that is not finite is computed
again in float32, from the features as they are.

The order in which TensorFlow adds a row of halves was found by experiment and gives its radii bit for bit.
"""

import math

import torch
from torch import Tensor

EVALUATOR_BLOCK = (10_000, 10_000)
"""Rows and columns that the evaluator computes, and if need be repeats, at a time."""

LONGEST_RUN = 1600
"""Columns up to which a row is summed in one run; a longer one is halved first."""

LANES = 8
HALF_MAX = 65504.0
SAFE_SHARE = 0.9
"""Share of the largest half that a bound on all distances of a block may reach: rounding is far below a tenth."""


def half_squared_norms(rows: Tensor) -> Tensor:
    """Return |u|^2 of each row of float32 [n, D], as float32 numbers [n] that are halves; infinite past 65504."""
    halves = rows.half()
    return _row_sums(halves * halves).float()


def _row_sums(halves: Tensor) -> Tensor:
    """Sum rows of halves [n, D] to halves [n].

    Four registers of eight lanes take groups of eight columns in turn; the registers are added lane by lane,
    then what is left over of whole groups, and the lanes at last in float32. Columns beyond the last whole
    group (no feature network has them) are added one at a time.
    """
    width = halves.shape[1]
    if width > LONGEST_RUN:
        middle = LANES * -(-((width + 1) // 2) // LANES)
        return _row_sums(halves[:, :middle]) + _row_sums(halves[:, middle:])
    groups = width // LANES
    runs, rounds = halves[:, : groups * LANES].reshape(len(halves), groups, LANES), groups // 4
    lanes = halves.new_zeros(len(halves), LANES)
    if rounds:
        registers = runs[:, :4]
        for start in range(4, 4 * rounds, 4):
            registers = registers + runs[:, start : start + 4]
        lanes = ((registers[:, 0] + registers[:, 1]) + registers[:, 2]) + registers[:, 3]
    for group in range(4 * rounds, groups):
        lanes = lanes + runs[:, group]
    total = lanes.float().sum(dim=1).half()
    for column in range(groups * LANES, width):
        total = total + halves[:, column]
    return total


def to_half_distances(products: Tensor, row_norms: Tensor, column_norms: Tensor) -> Tensor:
    """Turn float32 products uv [n, m] of rounded rows into the evaluator's distances, in place.

    The norms are `half_squared_norms`. Every float32 number of the result is a half, not negative, and
    finite where `overflows` says no.
    """
    halves = products.half()
    products.copy_(halves)
    torch.add(row_norms[:, None], products, alpha=-2, out=products)
    products.copy_(halves.copy_(products)).add_(column_norms)
    return products.copy_(halves.copy_(products)).clamp_(min=0)


def to_float_distances(products: Tensor, row_norms: Tensor, column_norms: Tensor) -> Tensor:
    """Turn float32 products of rows as they are into distances, in place, as the evaluator does in float32."""
    return torch.add(row_norms[:, None], products, alpha=-2, out=products).add_(column_norms).clamp_(min=0)


def surely_finite(largest_row_norm: float, largest_column_norm: float) -> bool:
    """Tell whether no half of a block can overflow, from its largest squared norms."""
    return (math.sqrt(largest_row_norm) + math.sqrt(largest_column_norm)) ** 2 < SAFE_SHARE * HALF_MAX


def overflows(products: Tensor, row_norms: Tensor, column_norms: Tensor) -> bool:
    """Tell whether any step from products of rounded rows to distances leaves the finite halves."""
    doubled = products.half() * 2
    sums = (row_norms.half()[:, None] - doubled) + column_norms.half()
    return not bool(sums.isfinite().all())
