"""The choices that decide a number, under one name and version."""

from dataclasses import dataclass
from typing import Literal, get_args

PrPrecision = Literal["fp16", "fp32"]
_CHOICES = {
    "is": ("inception_split_size",),
    "is_shuffled": ("inception_split_size", "seed"),
    "precision": ("neighbours",),
    "recall": ("neighbours",),
    "f_score": ("neighbours",),
    "density": ("density_neighbours",),
    "coverage": ("density_neighbours",),
    "kid_subsets": ("kid_subsets", "kid_subset_size", "seed"),
    "fid_infinity": ("seed",),
}
"""By metric, the fields of a protocol that decide its number."""
OF_PR_PRECISION = frozenset({"precision", "recall", "f_score"})
"""The metrics whose arithmetic a protocol chooses."""


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """All choices that change a number: two values compare only under one name and one version.

    `pr_precision` is the arithmetic of precision and recall. "fp16" gives what ADM's evaluator gives, whose
    distances are half-precision numbers (`metrics.half`). "fp32" is exact: every decision is that of float64
    distances between the float32 features, because what float32 leaves undecided is computed again
    (`metrics.exact`). All other numbers are exact under either.

    `density_neighbours` is the k of density and coverage (Naeem et al. 2020 take 5). KID's mean and standard
    deviation come from `kid_subsets` subsets of `kid_subset_size` images of either set. `seed` decides all
    that is drawn: those subsets, the order of the shuffled Inception Score, the subsets of FID-infinity.
    """

    name: str
    version: int
    inception_split_size: int = 5000
    neighbours: int = 3
    pr_precision: PrPrecision = "fp32"
    density_neighbours: int = 5
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    seed: int = 2020

    def __post_init__(self) -> None:
        counts = ("version", "inception_split_size", "neighbours", "density_neighbours", "kid_subsets")
        for field, least in (*((count, 1) for count in counts), ("kid_subset_size", 2), ("seed", 0)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"{field} of evaluation protocol {self.name!r} is {value}; it is at least {least}")
        if self.pr_precision not in get_args(PrPrecision):
            raise ValueError(
                f"pr_precision of evaluation protocol {self.name!r} is {self.pr_precision!r}; "
                f"it is one of {', '.join(get_args(PrPrecision))}"
            )

    def settings_of(self, metric: str) -> dict[str, int]:
        """The choices behind a metric, by its name, beyond its arithmetic; empty where it has none."""
        return {name: getattr(self, name) for name in _CHOICES.get(metric, ())}

    def arithmetic_of(self, metric: str) -> PrPrecision:
        """In which arithmetic a metric, by its name, comes from the float32 features."""
        return self.pr_precision if metric in OF_PR_PRECISION else "fp32"
