"""Balls around features, and which features of another set lie in them: what precision and density count.

A point's ball reaches to its k-th nearest other point of its own set, rim included (Kynkäänniemi et al. 2019,
equation 1).
"""

import torch
from torch import Tensor

from metrics.exact import distance_bounds, pair_distances
from metrics.points import Points, Rows
from metrics.tiles import TILE_ROWS, Tile, Tiling

DENSE_SHARE = 1 / 64
"""Share of a tile's pairs from which all are bounded in float64 at once, and what is left is computed one by one."""


class BallCounts:
    """Counts, tile by tile, the points in each ball and the balls around each point; exact.

    Tiles hold the points in rows and the balls' centres in columns, or the other way round if `centres_in_rows`.
    `squared_radii` are float64 [centres], on the CPU.
    """

    def __init__(self, points: Points, centres: Points, squared_radii: Tensor, *, centres_in_rows: bool) -> None:
        self.squared_radii, self.centres_in_rows = squared_radii, centres_in_rows
        self.points_in_ball = torch.zeros(len(centres), dtype=torch.int64)
        self.balls_at_point = torch.zeros(len(points), dtype=torch.int64)

    def add(self, tile: Tile, lower_bounds: Tensor) -> None:
        """Take in a tile by its lower bounds."""
        roundings, others = tile.queries.roundings[tile.rows], tile.points.roundings[tile.columns]
        if self.centres_in_rows:
            radii = self.squared_radii[tile.rows]
            reach = (radii.sqrt() + roundings + others.max())[:, None]
        else:
            radii = self.squared_radii[tile.columns]
            reach = radii.sqrt() + others + roundings.max()
        # Rounded up, so that float32 leaves none out.
        reach = (reach.square_() * (1 + 2**-22)).float().to(lower_bounds.device)
        rows, columns = (lower_bounds <= reach).nonzero(as_tuple=True)
        highest = lower_bounds[rows, columns].cpu().double()
        rows, columns = rows.cpu(), columns.cpu()
        highest += tile.gaps(rows, columns)
        edges = radii[rows if self.centres_in_rows else columns]
        inner = (edges.sqrt() - roundings[rows] - others[columns]).clamp_(min=0).square_()
        unsure = (highest > inner * (1 - 2**-22)).nonzero().flatten()
        inside = torch.ones(len(rows), dtype=torch.bool)
        if len(unsure):
            inside[unsure] = _inside(tile, rows[unsure], columns[unsure], edges[unsure])
        self._count(tile, rows[inside], columns[inside])

    def _count(self, tile: Tile, rows: Tensor, columns: Tensor) -> None:
        in_rows, in_columns = (
            (self.points_in_ball, self.balls_at_point)
            if self.centres_in_rows
            else (self.balls_at_point, self.points_in_ball)
        )
        in_rows[tile.rows] += torch.bincount(rows, minlength=tile.products.shape[0])
        in_columns[tile.columns] += torch.bincount(columns, minlength=tile.products.shape[1])


def _inside(tile: Tile, rows: Tensor, columns: Tensor, edges: Tensor) -> Tensor:
    """Tell which pairs of a tile are no further apart than `edges`, float64 squared radii, all [p]: bool [p].

    Radii are `pair_distances`, and often of the very pair that is asked about: no other rounding will do.
    """
    queries, points = tile.queries, tile.points
    numbers, others = rows + tile.rows.start, columns + tile.columns.start
    if len(rows) <= DENSE_SHARE * tile.products.numel():
        return pair_distances(queries, points, numbers, others) <= edges
    every, other = torch.arange(tile.rows.start, tile.rows.stop), torch.arange(tile.columns.start, tile.columns.stop)
    lowest, highest = (bounds[rows, columns] for bounds in distance_bounds(queries, points, every, other))
    inside = highest <= edges
    unsure = ((lowest <= edges) & ~inside).nonzero().flatten()
    inside[unsure] = pair_distances(queries, points, numbers[unsure], others[unsure]) <= edges[unsure]
    return inside


def inside_manifold(
    queries: Rows,
    points: Rows,
    point_squared_radii: Tensor,
    *,
    device: torch.device | str = "cpu",
    tile_rows: int = TILE_ROWS,
) -> Tensor:
    """Tell which of `queries` [n, D] lie in the ball of any of `points` [m, D], rim included: bool [n], CPU."""
    first, second = Points.of(queries, device=device), Points.of(points, device=device)
    counts = BallCounts(first, second, point_squared_radii, centres_in_rows=False)
    for tile in Tiling(first, second, tile_rows=tile_rows).tiles():
        counts.add(tile, tile.lower_bounds())
    return counts.balls_at_point > 0


class EvaluatorRadii:
    """Squared radii by the evaluator's distances: the k-th entry, from 0, of a row's sorted distances to its set."""

    def __init__(self, points: Points, k: int) -> None:
        self.smallest = torch.full((len(points), k + 1), torch.inf, device=points.device)

    def add(self, tile: Tile, evaluator_distances: Tensor) -> None:
        """Take in a tile of the set with itself."""
        kept = self.smallest.shape[1]
        near = evaluator_distances.topk(min(kept, evaluator_distances.shape[1]), dim=1, largest=False).values
        merged = torch.cat([self.smallest[tile.rows], near], dim=1)
        self.smallest[tile.rows] = merged.topk(kept, dim=1, largest=False).values

    def squared_radii(self) -> Tensor:
        """Return them, float32 [n], on the device."""
        return self.smallest.amax(dim=1)


class EvaluatorMembership:
    """Which points of either set lie in the other's manifold, by the evaluator's distances.

    Tiles hold the reference in rows, for that is how the evaluator rounds.
    """

    def __init__(self, reference_radii: Tensor, sample_radii: Tensor) -> None:
        self.reference_radii, self.sample_radii = reference_radii, sample_radii
        self.sample_inside = torch.zeros(len(sample_radii), dtype=torch.bool, device=sample_radii.device)
        self.reference_inside = torch.zeros(len(reference_radii), dtype=torch.bool, device=reference_radii.device)

    def add(self, tile: Tile, evaluator_distances: Tensor) -> None:
        """Take in a tile of reference and samples."""
        in_ball = evaluator_distances <= self.reference_radii[tile.rows, None]
        self.sample_inside[tile.columns] |= in_ball.any(dim=0)
        in_ball = evaluator_distances <= self.sample_radii[tile.columns]
        self.reference_inside[tile.rows] |= in_ball.any(dim=1)
