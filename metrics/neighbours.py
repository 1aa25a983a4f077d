"""The nearest neighbours of features: exact, found through approximate tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.exact import distance_bounds, pair_distances
from metrics.points import Points, Rows
from metrics.tiles import TILE_ROWS, Tiling

SPARE = 3
"""Candidates kept beyond those asked for: with them, hardly a row of features needs the slow way."""

RECHECKED_ROWS = 256
"""Rows that take the slow way at a time."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest points of each query, nearest first: float64 and int64 [queries, k], on the CPU."""

    squared_distances: Tensor
    indices: Tensor


class Candidates:
    """The points that may be nearest to each query, gathered tile by tile.

    In a set with itself a row is no candidate of its own. `k` is the most that will be asked for.
    """

    def __init__(self, queries: Points, points: Points, k: int) -> None:
        self.queries, self.points = queries, points
        self.others = len(points) - (queries is points)
        self.kept = min(k + SPARE, self.others)
        shape = (len(queries), self.kept)
        self.lowest = torch.full(shape, torch.inf, device=queries.device)
        self.indices = torch.zeros(shape, dtype=torch.int64, device=queries.device)

    def add(self, rows: slice, columns: slice, lower_bounds: Tensor) -> None:
        """Take in a tile of queries in rows and points in columns, by its lower bounds [n, m]."""
        if self.queries is self.points and rows == columns:
            lower_bounds = lower_bounds.clone().fill_diagonal_(torch.inf)
        near, where = lower_bounds.topk(min(self.kept, lower_bounds.shape[1]), dim=1, largest=False)
        lowest = torch.cat([self.lowest[rows], near], dim=1)
        numbers = torch.cat([self.indices[rows], where + columns.start], dim=1)
        self.lowest[rows], chosen = lowest.topk(self.kept, dim=1, largest=False)
        self.indices[rows] = numbers.gather(1, chosen)

    def nearest(self, k: int) -> Neighbours:
        """Return the k nearest, exactly; of equally near ones the first come first. ValueError: too few points."""
        if self.others < k:
            self_too = " beside itself" if self.queries is self.points else ""
            raise ValueError(f"found {self.others} images{self_too} where {k} nearest ones are asked for; add images")
        kept = min(k + SPARE, self.kept)
        lowest, order = self.lowest.cpu().topk(kept, dim=1, largest=False)
        indices = self.indices.cpu().gather(1, order).sort(dim=1).values
        numbers = torch.arange(len(indices))[:, None].expand_as(indices)
        found = pair_distances(self.queries, self.points, numbers.flatten(), indices.flatten())
        distances, indices = _first(found.view_as(indices), indices, k)
        if kept < self.others:
            roundings = self.queries.roundings + self.points.roundings.max()
            nearest_left_out = (lowest[:, -1].double().clamp(min=0).sqrt() - roundings).clamp_(min=0).square_()
            unsure = (distances[:, -1] > nearest_left_out).nonzero().flatten()
            for start in range(0, len(unsure), RECHECKED_ROWS):
                rows = unsure[start : start + RECHECKED_ROWS]
                distances[rows], indices[rows] = self._searched(rows, k)
        return Neighbours(squared_distances=distances, indices=indices)

    def _searched(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Go through all points in float64, where rounding leaves open which are nearest."""
        distances = torch.full((len(rows), k), torch.inf, dtype=torch.float64)
        indices = torch.zeros(len(rows), k, dtype=torch.int64)
        for start in range(0, len(self.points), TILE_ROWS):
            columns = torch.arange(start, min(start + TILE_ROWS, len(self.points)))
            block = self._near(rows, columns, distances)
            where = columns.expand_as(block)
            distances, indices = _first(torch.cat([distances, block], 1), torch.cat([indices, where], 1), k)
        return distances, indices

    def _near(self, rows: Tensor, columns: Tensor, nearest: Tensor) -> Tensor:
        """Return the distances [n, m] of those that may come before the k `nearest` [n, k] so far, else infinity."""
        lowest, highest = distance_bounds(self.queries, self.points, rows, columns)
        if self.queries is self.points:
            own = rows[:, None] == columns
            lowest[own] = highest[own] = torch.inf
        k = nearest.shape[1]
        limit = torch.cat([nearest, highest], dim=1).kthvalue(k, dim=1, keepdim=True).values
        block = torch.full_like(lowest, torch.inf).masked_fill_(highest == 0, 0)
        near, where = ((lowest <= limit) & (highest > 0) & lowest.isfinite()).nonzero(as_tuple=True)
        block[near, where] = pair_distances(self.queries, self.points, rows[near], columns[where])
        return block


def _first(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k].clone(), indices.gather(1, order)[:, :k].clone()


def nearest_neighbours(
    queries: Rows, points: Rows, k: int, *, device: torch.device | str = "cpu", tile_rows: int = TILE_ROWS
) -> Neighbours:
    """Find the k nearest of `points` [m, D] to each of `queries` [n, D]; m < k is a ValueError.

    Nearest training images of samples, with their distances, are `nearest_neighbours(samples, training, k)`:
    Dhariwal and Nichol 2021, appendix C. Rows are points like others: a set compared with an equal one finds
    each row at distance 0 first.
    """
    candidates = Candidates(Points.of(queries, device=device), Points.of(points, device=device), k)
    for tile in Tiling(candidates.queries, candidates.points, tile_rows=tile_rows).tiles():
        candidates.add(tile.rows, tile.columns, tile.lower_bounds())
    return candidates.nearest(k)


def neighbours_within(
    rows: Rows, k: int, *, device: torch.device | str = "cpu", tile_rows: int = TILE_ROWS
) -> Neighbours:
    """Find the k nearest other rows of each row [n, D]; n <= k is a ValueError."""
    points = Points.of(rows, device=device)
    candidates = Candidates(points, points, k)
    for tile in Tiling(points, points, tile_rows=tile_rows).tiles_within():
        candidates.add(tile.rows, tile.columns, tile.lower_bounds())
    return candidates.nearest(k)


def squared_radii(rows: Rows, k: int, *, device: torch.device | str = "cpu", tile_rows: int = TILE_ROWS) -> Tensor:
    """Return each row's squared distance to its k-th nearest other one: float64 [n], on the CPU."""
    return neighbours_within(rows, k, device=device, tile_rows=tile_rows).squared_distances[:, k - 1]
