"""Samples against a reference: what a metric is given, with the passes over the features that metrics share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metrics.evaluation_protocol import EvaluationProtocol
from metrics.half import EVALUATOR_BLOCK
from metrics.manifold import BallCounts, EvaluatorMembership, EvaluatorRadii
from metrics.neighbours import Candidates, Neighbours
from metrics.points import Points
from metrics.statistics import FeatureSet
from metrics.tiles import TILE_ROWS, Tile, Tiling


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """A set of features with the balls around them.

    `squared_radii` are those of precision and recall, [n] on the device (None: too few rows).
    """

    points: Points
    squared_radii: Tensor | None


@dataclass(frozen=True, kw_only=True)
class ReferenceManifold(Manifold):
    """That of the reference, whose exact `neighbours` other metrics ask for."""

    neighbours: Candidates


@dataclass(frozen=True, kw_only=True)
class Memberships:
    """What one pass over samples and reference finds; None where a set has too few rows to tell. All on the CPU.

    `sample_inside` and `reference_inside`, bool [n], are of precision and recall. `balls_at_sample` and
    `samples_in_ball`, int64, count with the balls of density and coverage.
    """

    sample_inside: Tensor | None
    reference_inside: Tensor | None
    balls_at_sample: Tensor | None
    samples_in_ball: Tensor | None


class Comparison:
    """A set of samples, the reference they are measured against, and the protocol of the numbers.

    Heavy passes run on `device` (the samples', if none is given) in O(tile) memory. They run when a metric first
    asks: one over the reference's rows, one over the samples', one over the two together, whatever number of
    metrics read them. Meanwhile `compared`, if given, is told after each tile how many pairs of images it held.
    """

    def __init__(
        self,
        *,
        samples: FeatureSet,
        reference: FeatureSet,
        protocol: EvaluationProtocol,
        device: torch.device | str | None = None,
        tile_rows: int = TILE_ROWS,
        evaluator_block: tuple[int, int] = EVALUATOR_BLOCK,
        compared: Callable[[int], None] | None = None,
    ) -> None:
        self.samples = samples
        self.reference = reference
        self.protocol = protocol
        # Apple's mps has no float64, but the passes ask for none.
        self.device = samples.device if device is None else torch.device(device)
        self.tile_rows = tile_rows
        self.evaluator_block = evaluator_block
        self.compared = compared
        self._together: tuple[Memberships, Candidates] | None = None

    def require_rows(self, label: str, *, samples: int = 1, reference: int = 1) -> None:
        """Raise a ValueError, in the name of a metric, where a set holds fewer rows of pool features than that."""
        for found, least in ((len(self.samples.pool_rows), samples), (len(self.reference.pool_rows), reference)):
            if found < least:
                raise ValueError(f"{label} found the features of {found} images where it needs {least}; add images")

    @cached_property
    def reference_manifold(self) -> ReferenceManifold:
        """The balls around reference images; one pass."""
        points = self._points(self.reference)
        neighbours = Candidates(points, points, self._most_neighbours)
        return ReferenceManifold(
            points=points, squared_radii=self._pass_within(points, neighbours), neighbours=neighbours
        )

    @cached_property
    def sample_manifold(self) -> Manifold:
        """The balls around samples; one pass."""
        points = self._points(self.samples)
        neighbours = None if self._in_half else Candidates(points, points, self.protocol.neighbours)
        return Manifold(points=points, squared_radii=self._pass_within(points, neighbours))

    @property
    def memberships(self) -> Memberships:
        """Who lies in whose balls; one pass beside those of the two manifolds."""
        if self._together is None:
            self._together = self._pass_over_both()
        return self._together[0]

    def nearest_reference(self, k: int) -> Neighbours:
        """Return each sample's `k` nearest reference images, exactly; the samples' own manifold is not needed."""
        if self._together is not None:
            return self._together[1].nearest(k)
        return self._nearest_alone.nearest(k)

    @cached_property
    def _nearest_alone(self) -> Candidates:
        samples, reference = self._points(self.samples), self._points(self.reference)
        candidates = Candidates(samples, reference, self._most_neighbours)
        for tile in self._counted(self._tiling(samples, reference).tiles()):
            candidates.add(tile.rows, tile.columns, tile.lower_bounds())
        return candidates

    @property
    def _most_neighbours(self) -> int:
        return max(self.protocol.neighbours, self.protocol.density_neighbours)

    @property
    def _in_half(self) -> bool:
        return self.protocol.pr_precision == "fp16"

    def _points(self, features: FeatureSet) -> Points:
        return Points.of(features.pool_rows, device=self.device, in_half=self._in_half)

    def _tiling(self, queries: Points, points: Points) -> Tiling:
        return Tiling(queries, points, tile_rows=self.tile_rows, evaluator_block=self.evaluator_block)

    def _counted(self, tiles: Iterable[Tile]) -> Iterator[Tile]:
        """The same tiles; each is reported when the next one is asked for."""
        for tile in tiles:
            yield tile
            if self.compared is not None:
                self.compared(tile.products.numel())

    def _pass_within(self, points: Points, neighbours: Candidates | None) -> Tensor | None:
        """Fill `neighbours`, if given, and return the squared radii of precision and recall."""
        k = self.protocol.neighbours
        radii = EvaluatorRadii(points, k) if self._in_half and len(points) > k else None
        for tile in self._counted(self._tiling(points, points).tiles_within()):
            if neighbours is not None:
                neighbours.add(tile.rows, tile.columns, tile.lower_bounds())
            if radii is not None:
                radii.add(tile, tile.evaluator_distances())
        if radii is not None:
            return radii.squared_radii()
        return neighbours.nearest(k).squared_distances[:, -1] if neighbours is not None and len(points) > k else None

    def _pass_over_both(self) -> tuple[Memberships, Candidates]:
        reference, samples = self.reference_manifold, self.sample_manifold
        nearest = Candidates(samples.points, reference.points, self._most_neighbours)
        evaluator, in_reference, in_samples, dense = None, None, None, None
        if self._in_half:
            evaluator = EvaluatorMembership(_radii_or_none_inside(reference), _radii_or_none_inside(samples))
        else:
            in_reference = _counts(samples.points, reference.points, reference.squared_radii, centres_in_rows=True)
            in_samples = _counts(reference.points, samples.points, samples.squared_radii, centres_in_rows=False)
        if len(reference.points) > self.protocol.density_neighbours:
            radii = reference.neighbours.nearest(self.protocol.density_neighbours).squared_distances[:, -1]
            dense = _counts(samples.points, reference.points, radii, centres_in_rows=True)
        for tile in self._counted(self._tiling(reference.points, samples.points).tiles()):
            lower_bounds = tile.lower_bounds()
            for counts in (in_reference, in_samples, dense):
                if counts is not None:
                    counts.add(tile, lower_bounds)
            nearest.add(tile.columns, tile.rows, lower_bounds.T.contiguous())
            if evaluator is not None:
                evaluator.add(tile, tile.evaluator_distances())
        inside = [None if counts is None else counts.balls_at_point > 0 for counts in (in_reference, in_samples)]
        if evaluator is not None:
            inside = [evaluator.sample_inside.cpu(), evaluator.reference_inside.cpu()]
        found = Memberships(
            sample_inside=None if reference.squared_radii is None else inside[0],
            reference_inside=None if samples.squared_radii is None else inside[1],
            balls_at_sample=None if dense is None else dense.balls_at_point,
            samples_in_ball=None if dense is None else dense.points_in_ball,
        )
        return found, nearest


def _radii_or_none_inside(manifold: Manifold) -> Tensor:
    nothing = torch.full((len(manifold.points),), -1.0, device=manifold.points.device)
    return nothing if manifold.squared_radii is None else manifold.squared_radii


def _counts(points: Points, centres: Points, radii: Tensor | None, *, centres_in_rows: bool) -> BallCounts | None:
    return None if radii is None else BallCounts(points, centres, radii, centres_in_rows=centres_in_rows)
