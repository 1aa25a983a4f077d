"""Intervals cover what is known to be true as often as they say."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.manifold_metrics import PRECISION, RECALL
from metrics.statistics import FeatureSet, Moments
from metrics.uncertainty import (
    INTERVALS,
    fid_interval,
    group_moments,
    inception_score_interval,
    precision_interval,
    recall_interval,
    share_interval,
)

PROTOCOL = EvaluationProtocol(name="test", version=1)
DRAWS = 200
# 95 % of 200 is 190; a right interval gives fewer than 179, or all, in about 1 case of 1000.
FEWEST, MOST = 179, 199


def known_reference(dim: int) -> Moments:
    return Moments.from_mean_and_covariance(np.zeros(dim), np.eye(dim), 10_000)


def draw(seed: int, n: int, dim: int) -> NDArray[np.float64]:
    return 0.3 + 1.2 * np.random.default_rng(seed).normal(size=(n, dim))


def test_fid_is_covered_at_its_number_of_images_and_without_bias() -> None:
    dim, n = 6, 400
    reference = known_reference(dim)
    truth = dim * (0.3**2 + 0.2**2)
    means, corrected, at_this_n, fids = 0.0, 0, 0, []
    intervals = []
    for seed in range(DRAWS):
        groups = group_moments(draw(seed, n, dim), seed=seed)
        intervals.append(fid_interval(groups, reference))
        fids.append(intervals[-1].estimate)
        unbiased = fid_interval(groups, reference, remove_bias=True)
        corrected += unbiased.low <= truth <= unbiased.high
        means += unbiased.estimate / DRAWS
    expected = float(np.mean(fids))
    at_this_n = sum(interval.low <= expected <= interval.high for interval in intervals)
    assert FEWEST <= at_this_n <= MOST
    assert FEWEST <= corrected <= MOST
    assert abs(means - truth) < 0.25 * abs(expected - truth)  # the bias is really there, and is removed


def test_the_standard_error_of_fid_is_that_of_repetition() -> None:
    reference = known_reference(4)
    found = [fid_interval(group_moments(draw(seed, 300, 4), seed=0), reference) for seed in range(DRAWS)]
    repeated = np.std([interval.estimate for interval in found])
    assert np.mean([interval.std_error for interval in found]) == pytest.approx(repeated, rel=0.15)


def test_groups_are_taken_out_exactly() -> None:
    rows = np.random.default_rng(0).gamma(1, size=(60, 5))
    groups = group_moments(rows, groups=4, seed=3)
    assert sorted(group.n for group in groups) == [15, 15, 15, 15]
    interval = fid_interval(groups, known_reference(5))
    partial = []
    order = np.random.default_rng(3).permutation(60)
    for part in np.array_split(order, 4):
        rest = np.delete(rows, part, axis=0)
        partial.append(frechet_distance(rest.mean(0), np.cov(rest, rowvar=False), np.zeros(5), np.eye(5)))
    std_error = np.sqrt(3 / 4 * np.square(np.array(partial) - np.mean(partial)).sum())
    assert interval.std_error == pytest.approx(std_error, rel=1e-9)


def test_inception_score_is_covered() -> None:
    def logits(seed: int) -> NDArray[np.float64]:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(300, 6)) + 3 * np.eye(6)[rng.integers(0, 6, size=300)]

    intervals = [inception_score_interval(logits(seed), 150, seed=seed) for seed in range(DRAWS)]
    expected = np.mean([interval.estimate for interval in intervals])
    assert FEWEST <= sum(interval.low <= expected <= interval.high for interval in intervals) <= MOST
    for seed in (0, 1):
        assert intervals[seed].estimate == pytest.approx(inception_score(logits(seed), 150), rel=1e-12)


def test_partial_inception_scores_are_those_of_what_is_left() -> None:
    rows = np.random.default_rng(4).normal(size=(40, 5)) * 3
    interval = inception_score_interval(rows, 100, seed=9, groups=5)
    parts = np.array_split(np.random.default_rng(9).permutation(40), 5)
    partial = [inception_score(np.delete(rows, part, axis=0), 100) for part in parts]
    std_error = np.sqrt(4 / 5 * np.square(np.array(partial) - np.mean(partial)).sum())
    assert interval.std_error == pytest.approx(std_error, rel=1e-9)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_shares_are_covered(share: float) -> None:
    rng = np.random.default_rng(5)
    found = [share_interval(rng.random(400) < share) for _ in range(DRAWS)]
    assert FEWEST <= sum(interval.low <= share <= interval.high for interval in found) <= MOST


def test_precision_is_covered_over_samples_and_recall_over_reference_images() -> None:
    rng = np.random.default_rng(6)

    def rows(n: int, scale: float) -> NDArray[np.float32]:
        return (scale * rng.normal(size=(n, 3))).astype(np.float32)

    def against(samples: NDArray[np.float32], reference: NDArray[np.float32]) -> Comparison:
        sets = {"samples": FeatureSet(pool_rows=samples), "reference": FeatureSet(pool_rows=reference)}
        return Comparison(protocol=PROTOCOL, **sets)

    fixed = rows(100, 1.0)
    precision = PRECISION.compute(against(rows(20_000, 1.3), fixed))
    recall = RECALL.compute(against(fixed, rows(20_000, 1.3)))
    covered = [0, 0]
    for _ in range(DRAWS):
        fresh = rows(150, 1.3)
        for place, (interval, truth) in enumerate(
            (
                (precision_interval(against(fresh, fixed)), precision),
                (recall_interval(against(fixed, fresh)), recall),
            )
        ):
            covered[place] += interval.low <= truth <= interval.high
    assert precision == pytest.approx(recall, abs=0.02)  # the same question, asked from the other side
    assert 0.2 < precision < 0.95
    assert all(FEWEST <= count <= MOST for count in covered)


@pytest.mark.parametrize("name", sorted(INTERVALS))
def test_intervals_of_a_comparison_hold_the_metric_and_are_seeded(
    name: str, feature_set: Callable[..., FeatureSet]
) -> None:
    rng = np.random.default_rng(7)
    sets = [feature_set(rng.normal(size=(200, 4)), logits=3 * rng.normal(size=(200, 5))) for _ in "ab"]
    first, again = (
        INTERVALS[name](Comparison(samples=sets[0], reference=sets[1], protocol=PROTOCOL)) for _ in range(2)
    )
    assert first == again
    assert first.low <= first.estimate <= first.high
    assert first.high > first.low
    assert first.level == 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_moments(np.zeros((20, 2)), groups=20, seed=0), "20 images for 20 groups"),
        (lambda: fid_interval([known_reference(2)] * 2, known_reference(2)), "found 2 groups"),
        (lambda: share_interval(np.zeros(0, bool)), "found no images"),
        (lambda: inception_score_interval(np.zeros((5, 3)), 10, seed=0), "5 images for 20 groups"),
    ],
)
def test_too_little_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
