"""Precision, recall and their F-score; density and coverage: how two sets of features lie among each other."""

from dataclasses import dataclass
from typing import Literal

from metrics.comparison import Comparison


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

    def compute(self, comparison: Comparison) -> float:
        """Return 0 to 1; the set whose manifold it is holds more rows than the protocol's `neighbours`."""
        comparison.require_rows(self.label, **{self.manifold_of: comparison.protocol.neighbours + 1})
        found = comparison.memberships
        inside = found.sample_inside if self.manifold_of == "reference" else found.reference_inside
        assert inside is not None, "there are rows enough"
        return inside.double().mean().item()


@dataclass(frozen=True, kw_only=True)
class FScore:
    """`metrics.protocol.Metric`: the harmonic mean of precision and recall, 0 where both are 0."""

    name: str
    label: str
    description: str
    higher_is_better: bool = True
    needs: frozenset[str] = frozenset({"pool_rows"})
    min_images: int = 4

    def compute(self, comparison: Comparison) -> float:
        """Return 0 to 1; either set holds more rows than the protocol's `neighbours`."""
        least = comparison.protocol.neighbours + 1
        comparison.require_rows(self.label, samples=least, reference=least)
        precision, recall = PRECISION.compute(comparison), RECALL.compute(comparison)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True, kw_only=True)
class DensityMetric:
    """`metrics.protocol.Metric`: density or coverage, with balls around the reference only.

    Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", equations 3 and 4. A point
    on the rim counts as inside, as it does for precision.
    """

    name: str
    label: str
    description: str
    counts: Literal["balls at samples", "balls with samples"]
    higher_is_better: bool = True
    needs: frozenset[str] = frozenset({"pool_rows"})
    min_images: int = 6

    def compute(self, comparison: Comparison) -> float:
        """Return density, from 0 and about 1 where both sets are alike, or coverage, 0 to 1."""
        k = comparison.protocol.density_neighbours
        comparison.require_rows(self.label, reference=k + 1)
        found = comparison.memberships
        balls, samples = found.balls_at_sample, found.samples_in_ball
        assert balls is not None, "there are rows enough"
        assert samples is not None, "there are rows enough"
        if self.counts == "balls at samples":
            return balls.sum().item() / (k * len(balls))
        return (samples > 0).double().mean().item()


PRECISION = ManifoldMetric(
    name="precision",
    label="Precision",
    description="share of samples among the reference images, k = 3 (Kynkäänniemi et al. 2019)",
    manifold_of="reference",
)
RECALL = ManifoldMetric(
    name="recall",
    label="Recall",
    description="share of reference images among the samples, k = 3 (Kynkäänniemi et al. 2019)",
    manifold_of="samples",
)
F_SCORE = FScore(
    name="f_score",
    label="F-score",
    description="harmonic mean of precision and recall",
)
DENSITY = DensityMetric(
    name="density",
    label="Density",
    description="how many reference images' neighbourhoods a sample lies in, over k = 5 (Naeem et al. 2020)",
    counts="balls at samples",
)
COVERAGE = DensityMetric(
    name="coverage",
    label="Coverage",
    description="share of reference images with a sample in their neighbourhood, k = 5 (Naeem et al. 2020)",
    counts="balls with samples",
)
