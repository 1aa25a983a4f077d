import numpy as np
import pytest

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.fid_infinity import FID_INFINITY, fid_infinity
from metrics.frechet import FID
from metrics.statistics import FeatureSet, Moments

DIM = 16
REFERENCE = Moments.from_mean_and_covariance(np.zeros(DIM), np.eye(DIM), 50_000)
TRUTH = DIM * (0.1**2 + 0.1**2)


def test_the_known_distance_is_found_where_fid_is_biased() -> None:
    fids, extrapolated = [], []
    for seed in range(30):
        rows = 0.1 + 1.1 * np.random.default_rng(seed).normal(size=(1000, DIM))
        found = fid_infinity(rows, REFERENCE, seed=seed)
        fids.append(found.distances[-1])
        extrapolated.append(found.value)
    bias = np.mean(fids) - TRUTH
    assert bias > 5 * np.std(fids) / np.sqrt(30)
    assert abs(np.mean(extrapolated) - TRUTH) < max(0.15 * bias, 3 * np.std(extrapolated) / np.sqrt(30))


def test_the_line_is_what_it_says() -> None:
    rows = 0.1 + 1.1 * np.random.default_rng(0).normal(size=(2000, DIM))
    found = fid_infinity(rows, REFERENCE, seed=1)
    assert (found.sizes[0], found.sizes[-1], len(found.sizes)) == (200, 2000, 15)
    fitted = found.value + found.slope / found.sizes
    assert found.residual == pytest.approx(np.sqrt(np.square(found.distances - fitted).mean()), rel=1e-9)
    (slope, value), covariance = np.polyfit(1 / found.sizes, found.distances, 1, cov=True)
    assert (found.value, found.slope) == pytest.approx((value, slope), rel=1e-6)
    assert found.std_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)
    assert found.slope > 0


def test_whole_set_is_the_last_point_and_seed_decides_the_rest() -> None:
    rng = np.random.default_rng(2)
    samples = FeatureSet(pool_rows=rng.normal(size=(100, 3)).astype(np.float32))
    protocol = EvaluationProtocol(name="test", version=1)
    rows, reference = samples.pool_rows, Moments.from_mean_and_covariance(np.zeros(3), np.eye(3), 99)
    moments = Moments.empty(3)
    moments.update(rows)
    comparison = Comparison(
        samples=FeatureSet(pool=moments, pool_rows=rows), reference=FeatureSet(pool=reference), protocol=protocol
    )
    found = FID_INFINITY.extrapolated(comparison)
    assert found.distances[-1] == pytest.approx(FID.compute(comparison), rel=1e-9)
    assert FID_INFINITY.compute(comparison) == found.value == fid_infinity(rows, reference, seed=2020).value
    assert found.value != fid_infinity(rows, reference, seed=2021).value


def test_the_smallest_subset_has_samples_enough_for_a_line() -> None:
    rows = np.random.default_rng(3).normal(size=(200, 30))
    reference = Moments.from_mean_and_covariance(np.zeros(30), np.eye(30), 99)
    assert fid_infinity(rows, reference, seed=0).sizes[0] == 60
    assert fid_infinity(rows[:90], reference, seed=0).sizes[0] == 45


def test_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(29, 16\) and 15 points; an extrapolation takes 30 samples"):
        fid_infinity(np.zeros((29, DIM)), REFERENCE, seed=0)
