from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from metrics.comparison import Comparison
from metrics.inception_score import INCEPTION_SCORE, inception_score
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureSet

PROTOCOL = EvaluationProtocol(name="test", version=1)


def to_itself(samples: FeatureSet, protocol: EvaluationProtocol = PROTOCOL) -> Comparison:
    return Comparison(samples=samples, reference=samples, protocol=protocol)


@pytest.fixture(scope="module")
def golden_logits(
    golden_case: Callable[[str], dict[str, Any]],
    feature_rows: Callable[..., NDArray[Any]],
    gaussian: Callable[..., NDArray[np.float64]],
    centres: Callable[..., NDArray[np.float64]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> NDArray[np.float64]:
    case = golden_case("inception_score")
    column_centres = centres(case["world"])[np.arange(1008) % case["world"]["clusters"]]
    weights = (case["is_scale"] * (gaussian("is/W", (2048, 1008)) + column_centres.T)).astype(np.float32)
    require_sha256(weights, case["W_sha256"])
    return feature_rows(case["world"], case["set"]).astype(np.float64) @ weights.astype(np.float64)


def in_order(
    logits: NDArray[Any], order: str, case: dict[str, Any], class_numbers: Callable[..., NDArray[np.int64]]
) -> NDArray[Any]:
    if order == "generated":
        return logits
    return logits[np.argsort(class_numbers(case["set"])[: len(logits)], kind="stable")]


def test_golden_logits(golden_logits: NDArray[Any], golden_arrays: dict[str, NDArray[Any]]) -> None:
    expected = golden_arrays["is/logits_first4"]
    np.testing.assert_allclose(golden_logits[:4, : expected.shape[1]], expected, rtol=1e-12)


def test_golden_scores(
    golden_logits: NDArray[Any],
    golden_case: Callable[[str], dict[str, Any]],
    class_numbers: Callable[..., NDArray[np.int64]],
) -> None:
    case = golden_case("inception_score")
    split_size = case["split_size"]
    for row in case["expected"]:
        logits = in_order(golden_logits[: row["n"]], row["order"], case, class_numbers)
        assert inception_score(logits, split_size) == pytest.approx(row["float64"], rel=1e-6)
        assert inception_score(logits, len(logits)) == pytest.approx(row["float64_one_split"], rel=1e-6)
        stored = FeatureSet(logit_rows=logits.astype(np.float32))
        assert INCEPTION_SCORE.compute(to_itself(stored)) == pytest.approx(row["float64"], rel=2e-5)


def test_golden_edges(golden_logits: NDArray[Any], golden_case: Callable[[str], dict[str, Any]]) -> None:
    underflow, repeated, alone = (row["float64_limit"] for row in golden_case("inception_score_edges")["expected"])
    assert inception_score(golden_logits[:300] * 64, 5000) == pytest.approx(underflow, rel=1e-6)
    assert inception_score(golden_logits[:1].repeat(50, axis=0), 5000) == pytest.approx(repeated, rel=1e-6)
    assert inception_score(golden_logits[:1], 5000) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("split_size", [1, 7, 100])
def test_lies_between_one_and_the_number_of_classes(scale: float, split_size: int) -> None:
    logits = scale * np.random.default_rng(0).normal(size=(60, 10))
    assert 1 - 1e-12 <= inception_score(logits, split_size) <= 10 + 1e-12


def test_sure_and_even_is_the_number_of_classes() -> None:
    assert inception_score(1e6 * np.tile(np.eye(10), (5, 1)), 50) == pytest.approx(10, rel=1e-12)


@pytest.mark.parametrize("logits", [np.zeros((20, 10)), 1e6 * np.eye(10)[np.full(20, 3)]])
def test_doubtful_or_all_of_one_class_is_one(logits: NDArray[Any]) -> None:
    assert inception_score(logits, 20) == pytest.approx(1, rel=1e-12)


def test_splits_follow_the_order_and_count_alike() -> None:
    logits = 1e6 * np.eye(4)[[0, 1, 2, 3, 0, 0]]
    assert inception_score(logits, 4) == pytest.approx((4 + 1) / 2, rel=1e-12)
    assert inception_score(logits[::-1], 4) == pytest.approx((2.828427124746 + 2) / 2, rel=1e-9)


def test_adding_a_constant_to_an_image_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, 6))
    shifted = logits + rng.normal(scale=100, size=(40, 1))
    assert inception_score(shifted, 40) == pytest.approx(inception_score(logits, 40), rel=1e-12)


def test_split_size_comes_from_the_protocol(feature_set: Callable[..., FeatureSet]) -> None:
    logits = 1e6 * np.eye(4)[[0, 1, 2, 3]]
    samples = feature_set(np.zeros((4, 2)), logits=logits)
    halves = EvaluationProtocol(name="halves", version=1, inception_split_size=2)
    assert INCEPTION_SCORE.compute(to_itself(samples)) == pytest.approx(4)
    assert INCEPTION_SCORE.compute(to_itself(samples, halves)) == pytest.approx(2)


def test_missing_logits_are_named(feature_set: Callable[..., FeatureSet]) -> None:
    samples = feature_set(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="IS needs logits"):
        INCEPTION_SCORE.compute(to_itself(samples))
    with pytest.raises(ValueError, match="at least 1 image"):
        inception_score(np.zeros((0, 10)), 5000)
