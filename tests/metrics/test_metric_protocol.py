import pytest

from metrics.features.digits import DigitsFeatures
from metrics.frechet import FID, SFID
from metrics.inception_score import INCEPTION_SCORE
from metrics.neighbours import COPIED, PRECISION, RECALL
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
    digits = DigitsFeatures.protocol
    settings = (digits.name, digits.version, digits.inception_split_size, digits.neighbours)
    assert settings == ("digits", 1, 5000, 3)


@pytest.mark.parametrize("field", ["version", "inception_split_size", "neighbours"])
def test_settings_below_one_are_refused(field: str) -> None:
    settings = {"name": "mine", "version": 1, field: 0}
    with pytest.raises(ValueError, match=f"{field} of evaluation protocol 'mine' is 0"):
        EvaluationProtocol(**settings)
