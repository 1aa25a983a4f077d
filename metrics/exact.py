"""Squared Euclidean distances between feature rows in float64, on the CPU: what every decision rests on."""

import numpy as np
import torch
from torch import Tensor

from metrics.points import Points

ZERO_DISTANCE = 1e-12
"""Squared distances below this share of |u|^2 + |v|^2 are 0: what is left there is rounding of the features.

Features that differ in the last bit of a float32 lie 1e-14 of their norms apart. So rows that are equal, or
equal but for rounding, lie at exactly 0 and memberships do not hang on noise where a set holds duplicates.
It is wider than that, as networks round more than once. So rows nearer to each other than 1e-6 of their distance to
the origin are one: features like 1e6 +- 1 want their mean taken off first.
"""

PAIR_VALUES = 2**17
"""Values of a chunk of pairs: 1 MiB, to stay in the cache."""


def pair_distances(queries: Points, points: Points, numbers: Tensor, others: Tensor) -> Tensor:
    """Return |u - v|^2 of the rows of `queries` and of `points` at those int64 [p] places: float64 [p].

    Differences are taken before they are squared: it is symmetric, exact to D units of 2^-53, and the same for a pair
    wherever it is met. Different pairs that lie equally far apart may differ in the last places.
    """
    distances = np.empty(len(numbers))
    first, second = numbers.numpy(), others.numpy()
    chunk = max(1, PAIR_VALUES // max(queries.width, 1))
    for start in range(0, len(first), chunk):
        some = slice(start, start + chunk)
        off = np.subtract(queries.rows[first[some]], points.rows[second[some]], dtype=np.float64)
        # One contraction a row, whatever rows are beside it: equal pairs get equal numbers.
        distances[some] = np.einsum("nd,nd->n", off, off)
    norms = queries.plain_norms[numbers].double() + points.plain_norms[others]
    found = torch.from_numpy(distances)
    return found.masked_fill_(found < ZERO_DISTANCE * norms, 0)


def distance_bounds(queries: Points, points: Points, numbers: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return between what `pair_distances` lies for the rows of `queries` at `numbers` [n] with those at `others` [m].

    It is two float64 [n, m], from |u|^2 - 2uv + |v|^2 in float64. Products, sums of squares and differences each err
    by D units of 2^-53 at most, in whatever order they are summed (Higham 2002, section 3.1). Where the second is
    0, so is the distance.
    """
    first, second = queries.rows[numbers.numpy()], points.rows[others.numpy()]
    u, v = (torch.from_numpy(np.asarray(rows, np.float64)) for rows in (first, second))
    sums = u.square().sum(dim=1)[:, None] + v.square().sum(dim=1)
    distances = torch.addmm(sums, u, v.T, alpha=-2)
    error = 1.01 * (queries.width + 4) * 2.0**-53
    errors = sums.mul_(2 * error)
    lowest = (distances - errors).mul_(1 - error)
    highest = distances.add_(errors).mul_(1 + error)
    norms = queries.plain_norms[numbers].double()[:, None] + points.plain_norms[others]
    zero = norms.mul_(ZERO_DISTANCE)
    return lowest.masked_fill_(lowest < zero, 0), highest.masked_fill_(highest < zero, 0)
