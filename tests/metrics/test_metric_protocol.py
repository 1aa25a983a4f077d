from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from adm_bench import registry
from metrics.comparison import Comparison
from metrics.copies import COPIED
from metrics.evaluation_protocol import PrPrecision
from metrics.features.digits import DigitsFeatures
from metrics.fid_infinity import FID_INFINITY
from metrics.frechet import FID, SFID
from metrics.inception_score import INCEPTION_SCORE, SHUFFLED_INCEPTION_SCORE
from metrics.kernel import KID, KID_SUBSETS
from metrics.manifold_metrics import COVERAGE, DENSITY, F_SCORE, PRECISION, RECALL
from metrics.protocol import EvaluationProtocol, Metric
from metrics.statistics import FeatureSet


@pytest.mark.parametrize(
    ("metric", "name", "label", "higher_is_better", "needs", "min_images"),
    [
        (FID, "fid", "FID", False, {"pool_moments"}, 2),
        (SFID, "sfid", "sFID", False, {"spatial_moments"}, 2),
        (INCEPTION_SCORE, "is", "IS", True, {"logit_rows"}, 1),
        (PRECISION, "precision", "Precision", True, {"pool_rows"}, 4),
        (RECALL, "recall", "Recall", True, {"pool_rows"}, 4),
        (SHUFFLED_INCEPTION_SCORE, "is_shuffled", "IS shuffled", True, {"logit_rows"}, 1),
        (F_SCORE, "f_score", "F-score", True, {"pool_rows"}, 4),
        (DENSITY, "density", "Density", True, {"pool_rows"}, 6),
        (COVERAGE, "coverage", "Coverage", True, {"pool_rows"}, 6),
        (KID, "kid", "KID", False, {"pool_rows"}, 2),
        (KID_SUBSETS, "kid_subsets", "KID subsets", False, {"pool_rows"}, 1000),
        (FID_INFINITY, "fid_infinity", "FID∞", False, {"pool_moments", "pool_rows"}, 30),
        (COPIED, "copied", "Copied", False, {"pool_rows"}, 2),
    ],
)
def test_what_each_metric_says_of_itself(
    metric: Metric, name: str, label: str, *, higher_is_better: bool, needs: set[str], min_images: int
) -> None:
    assert (metric.name, metric.label, metric.min_images) == (name, label, min_images)
    assert metric.higher_is_better is higher_is_better
    assert metric.needs == needs
    assert FeatureSet(needs=metric.needs).needs == needs


def test_the_digits_protocol_is_frozen() -> None:
    assert asdict(DigitsFeatures.protocol) == {
        "name": "digits",
        "version": 1,
        "inception_split_size": 5000,
        "neighbours": 3,
        "pr_precision": "fp32",
        "density_neighbours": 5,
        "kid_subsets": 100,
        "kid_subset_size": 1000,
        "seed": 2020,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 0, "is 0; it is at least 1"),
        ("inception_split_size", 0, "is 0; it is at least 1"),
        ("neighbours", 0, "is 0; it is at least 1"),
        ("density_neighbours", 0, "is 0; it is at least 1"),
        ("kid_subsets", 0, "is 0; it is at least 1"),
        ("kid_subset_size", 1, "is 1; it is at least 2"),
        ("seed", -1, "is -1; it is at least 0"),
        ("pr_precision", "bf16", "is 'bf16'; it is one of fp16, fp32"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    settings: dict[str, Any] = {"name": "mine", "version": 1, field: value}
    with pytest.raises(ValueError, match=f"{field} of evaluation protocol 'mine' {message}"):
        EvaluationProtocol(**settings)


@pytest.mark.parametrize("name", sorted(registry.rows("metrics")))
def test_the_arithmetic_that_is_stated_is_the_one_that_decides(
    name: str, feature_set: Callable[..., FeatureSet]
) -> None:
    """Of rows so far from the origin that halves confuse them, whatever is in half precision comes out otherwise."""
    metric: Metric = registry.load("metrics", name)
    rng = np.random.default_rng(0)
    samples, reference = (
        feature_set(rows, spatial=rows, logits=rows - 15) for rows in (15 + rng.standard_normal((300, 8)) for _ in "12")
    )

    def value(precision: PrPrecision) -> tuple[float, str]:
        protocol = EvaluationProtocol(name="test", version=1, pr_precision=precision, kid_subset_size=100)
        compared = Comparison(samples=samples, reference=reference, protocol=protocol)
        return metric.compute(compared), protocol.arithmetic_of(name)

    (half, in_half), (exact, in_exact) = value("fp16"), value("fp32")
    assert in_exact == "fp32"
    assert in_half == ("fp32" if half == exact else "fp16")
