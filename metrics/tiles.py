"""Products of two sets of features tile by tile, and what a tile says of their distances.

One tile is in memory at a time, whatever the sets' sizes. Its products are float32, so its distances are
approximate, within bounds that it states; who needs more asks `metrics.exact` about the few that it leaves
undecided.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from metrics.half import EVALUATOR_BLOCK, overflows, surely_finite, to_float_distances, to_half_distances
from metrics.points import Points

TILE_ROWS = 1000
"""Rows on either side of a tile: its products take 4 MB. It divides the evaluator's blocks."""

BLOCKS_KEPT = 24
"""Blocks of rows kept on the device between tiles: 200 MB of 2048 features."""


def relative_error(width: int) -> float:
    """Bound the error of |u|^2 - 2uv + |v|^2 in float32, as a share of |u|^2 + |v|^2, for rows of that width.

    A product errs by D units of 2^-24 |u||v|, in whatever order it is summed (Higham 2002, "Accuracy and
    Stability of Numerical Algorithms", section 3.1), and 2|u||v| <= |u|^2 + |v|^2; the rest is sums and norms.
    """
    return 1.01 * (width + 8) * 2.0**-24


UNDERFLOW = 2.0**-126
"""A product of float32 numbers below it may vanish."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Products [n, m] of the `queries` rows with the `points` columns, float32, on the device."""

    queries: Points
    points: Points
    rows: slice
    columns: slice
    products: Tensor
    in_half: bool

    def lower_bounds(self) -> Tensor:
        """Return [n, m] what no squared distance of the rows, as multiplied, falls below; it may be negative."""
        norms, others = self._norms()
        error = relative_error(self.queries.width)
        rows = self._on_device(norms * (1 - error) - self.queries.width * UNDERFLOW)
        return torch.add(rows[:, None], self.products, alpha=-2).add_(self._on_device(others * (1 - error)))

    def gaps(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return how far above its lower bound the squared distance of each pair may lie: float64 [p], CPU."""
        norms, others = self._norms()
        sums = norms.double()[rows] + others.double()[columns]
        return 2 * (relative_error(self.queries.width) * sums + self.queries.width * UNDERFLOW)

    def evaluator_distances(self) -> Tensor:
        """Return the evaluator's own squared distances [n, m]; they take the place of the products."""
        if self.in_half:
            norms, others = self.queries.half_norms[self.rows], self.points.half_norms[self.columns]
            return to_half_distances(self.products, self._on_device(norms), self._on_device(others))
        norms, others = self.queries.plain_norms[self.rows], self.points.plain_norms[self.columns]
        return to_float_distances(self.products, self._on_device(norms), self._on_device(others))

    def turned(self) -> "Tile":
        """Return the same products seen from the other side."""
        return Tile(
            queries=self.points,
            points=self.queries,
            rows=self.columns,
            columns=self.rows,
            products=self.products.T.contiguous(),
            in_half=self.in_half,
        )

    def _norms(self) -> tuple[Tensor, Tensor]:
        queries, points = self.queries, self.points
        norms = (queries.norms, points.norms) if self.in_half else (queries.plain_norms, points.plain_norms)
        return norms[0][self.rows], norms[1][self.columns]

    def _on_device(self, norms: Tensor) -> Tensor:
        return norms.to(self.products.device)


class Tiling:
    """The tiles of two sets, on a grid that keeps to the evaluator's blocks."""

    def __init__(
        self,
        queries: Points,
        points: Points,
        *,
        tile_rows: int = TILE_ROWS,
        evaluator_block: tuple[int, int] = EVALUATOR_BLOCK,
    ) -> None:
        if queries.width != points.width:
            raise ValueError(
                f"cannot compare features of shapes {queries.rows.shape} and {points.rows.shape}; "
                "expected as many columns"
            )
        self.queries, self.points = queries, points
        self.steps = (tile_rows, *evaluator_block) if queries.in_half else (tile_rows,)
        self.evaluator_block = evaluator_block
        self._in_half: dict[tuple[int, int], bool] = {}
        self._blocks: dict[tuple[bool, int, int, bool], Tensor] = {}

    def tiles(self) -> Iterator[Tile]:
        """Yield all tiles, row by row."""
        for rows in self._slices(len(self.queries)):
            for columns in self._slices(len(self.points)):
                yield self._tile(rows, columns, in_half=self._block_in_half(rows.start, columns.start))

    def tiles_within(self) -> Iterator[Tile]:
        """Yield all tiles of a set with itself, at half the products: most serve from both sides."""
        for rows in self._slices(len(self.queries)):
            for columns in self._slices(len(self.points)):
                if columns.start < rows.start:
                    continue
                in_half = self._block_in_half(rows.start, columns.start)
                tile = self._tile(rows, columns, in_half=in_half)
                back_in_half = self._block_in_half(columns.start, rows.start)
                # Turned before it is handed out: who gets a tile may overwrite it.
                back = tile.turned() if rows != columns and back_in_half == in_half else None
                yield tile
                if rows != columns:
                    yield back or self._tile(columns, rows, in_half=back_in_half)

    def _slices(self, length: int) -> list[slice]:
        edges = {edge for step in self.steps for edge in range(0, length, step)} | {length}
        return [slice(*edge) for edge in pairwise(sorted(edges))]

    def _tile(self, rows: slice, columns: slice, *, in_half: bool) -> Tile:
        u, v = self._block(self.queries, rows, in_half=in_half), self._block(self.points, columns, in_half=in_half)
        with _full_float32():
            products = u @ v.T
        return Tile(
            queries=self.queries,
            points=self.points,
            rows=rows,
            columns=columns,
            products=products,
            in_half=in_half,
        )

    def _block(self, points: Points, some: slice, *, in_half: bool) -> Tensor:
        """Return a block of rows, from among the last ones used if it is there."""
        key = (points is self.queries, some.start, some.stop, in_half)
        values = self._blocks.pop(key, None)
        if values is None:
            values = points.block(some, in_half=in_half)
        self._blocks[key] = values
        if len(self._blocks) > BLOCKS_KEPT:
            del self._blocks[next(iter(self._blocks))]
        return values

    def _block_in_half(self, row: int, column: int) -> bool:
        """Tell whether the evaluator's block that holds this place stays in half precision."""
        if not self.queries.in_half:
            return False
        height, width = self.evaluator_block
        place = (row // height, column // width)
        if place not in self._in_half:
            top, left = place[0] * height, place[1] * width
            rows = slice(top, min(top + height, len(self.queries)))
            columns = slice(left, min(left + width, len(self.points)))
            self._in_half[place] = self._stays_finite(rows, columns)
        return self._in_half[place]

    def _stays_finite(self, rows: slice, columns: slice) -> bool:
        largest, other_largest = self.queries.largest_norm(rows), self.points.largest_norm(columns)
        if surely_finite(largest, other_largest):
            return True
        if not math.isfinite(largest + other_largest):
            return False
        for some in self._slices(rows.stop):
            for others in self._slices(columns.stop):
                if some.start < rows.start or others.start < columns.start:
                    continue
                products = self._tile(some, others, in_half=True).products.cpu()
                if overflows(products, self.queries.half_norms[some], self.points.half_norms[others]):
                    return False
        return True


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep TensorFloat-32 and bfloat16 out of products, whatever the rest of the program allows."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
