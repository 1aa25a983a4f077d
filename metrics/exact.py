"""Squared Euclidean distances between feature rows in float64, on the CPU: what every decision rests on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from metrics.points import Points, Rows

ZERO_DISTANCE = 1e-12
"""Squared distances below this share of |u|^2 + |v|^2 are 0: what is left there is rounding of the features.

Features that differ in the last bit of a float32 lie 1e-14 of their norms apart. So rows that are equal, or
equal but for rounding, lie at exactly 0 and memberships do not hang on noise where a set holds duplicates.
"""

PAIR_VALUES = 2**17
"""Values of a chunk of pairs: 1 MiB, to stay in the cache."""


def pair_distances(queries: Points, points: Points, numbers: Tensor, others: Tensor) -> Tensor:
    """Return |u - v|^2 of the rows of `queries` and of `points` at those int64 [p] places: float64 [p].

    Differences are taken before they are squared, so it is symmetric and exact to rounding in the last place.
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


def distance_block(u: Rows, v: Rows) -> Tensor:
    """Return all squared distances [n, m] of two blocks of rows, as |u|^2 - 2uv + |v|^2 in float64.

    It rounds by about D * 2^-53 of the norms: far below that of the float32 features.
    """
    first, second = (torch.from_numpy(np.array(rows, np.float64)) for rows in (u, v))
    first_norms, second_norms = first.square().sum(dim=1), second.square().sum(dim=1)
    sums = first_norms[:, None] + second_norms
    distances = torch.addmm(sums, first, second.T, alpha=-2)
    return distances.masked_fill_(distances < ZERO_DISTANCE * sums, 0)


def distance_blocks(queries: Rows, points: Rows, block_rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the distances [queries, points] in blocks, each with its first row and column, row by row."""
    for row in range(0, len(queries), block_rows):
        for column in range(0, len(points), block_rows):
            yield row, column, distance_block(queries[row : row + block_rows], points[column : column + block_rows])
