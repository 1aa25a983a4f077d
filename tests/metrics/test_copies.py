import numpy as np
import pytest

from metrics.comparison import Comparison
from metrics.copies import COPIED, nearest_distances
from metrics.evaluation_protocol import EvaluationProtocol, PrPrecision
from metrics.statistics import FeatureSet


@pytest.fixture(params=["fp16", "fp32"])
def pr_precision(request: pytest.FixtureRequest) -> PrPrecision:
    precision: PrPrecision = request.param
    return precision


def against(samples: FeatureSet, reference: FeatureSet, pr_precision: PrPrecision) -> Comparison:
    protocol = EvaluationProtocol(name="test", version=1, pr_precision=pr_precision)
    return Comparison(samples=samples, reference=reference, protocol=protocol)


def copied(samples: FeatureSet, reference: FeatureSet, pr_precision: PrPrecision) -> float:
    return COPIED.compute(against(samples, reference, pr_precision))


def test_copies_are_all_found(pr_precision: PrPrecision) -> None:
    ref = np.random.default_rng(5).gamma(1, size=(200, 64)).astype(np.float32)
    copies = ref[np.random.default_rng(6).integers(0, 200, size=500)]
    rounding = 1 + 1e-6 * np.random.default_rng(7).normal(size=copies.shape)
    reference = FeatureSet(pool_rows=ref)
    for samples in (copies, (copies * rounding).astype(np.float32)):
        assert copied(FeatureSet(pool_rows=samples), reference, pr_precision) == 1


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_fresh_draws_are_no_copies(dim: int, scale: float, pr_precision: PrPrecision) -> None:
    rng = np.random.default_rng(8)
    ref, fresh = (FeatureSet(pool_rows=(scale * rng.gamma(1, size=(500, dim))).astype(np.float32)) for _ in "rf")
    assert copied(fresh, ref, pr_precision) == 0


def test_copies_are_counted_among_fresh_draws_and_duplicates(pr_precision: PrPrecision) -> None:
    rng = np.random.default_rng(9)
    rows = rng.gamma(1, size=(300, 32)).astype(np.float32)
    ref = FeatureSet(pool_rows=rows[:100].repeat(3, axis=0))  # most gaps within it are 0
    samples = FeatureSet(pool_rows=rows[75:175])
    assert copied(samples, ref, pr_precision) == 0.25
    all_alike = FeatureSet(pool_rows=rows[:1].repeat(10, axis=0))
    assert copied(FeatureSet(pool_rows=rows[:10]), all_alike, pr_precision) == 0.1


def test_distances_of_a_figure_of_memorisation(pr_precision: PrPrecision) -> None:
    rng = np.random.default_rng(10)
    ref = rng.normal(size=(150, 6)).astype(np.float32)
    samples = np.concatenate([ref[5:25], rng.normal(size=(30, 6)).astype(np.float32)])
    found = nearest_distances(against(FeatureSet(pool_rows=samples), FeatureSet(pool_rows=ref), pr_precision))
    between, within = (np.linalg.norm(rows[:, None].astype(float) - ref, axis=2) for rows in (samples, ref))
    np.fill_diagonal(within, np.inf)
    np.testing.assert_allclose(found.of_samples, between.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found.indices, between.argmin(axis=1))
    np.testing.assert_allclose(found.of_reference, within.min(axis=1), rtol=1e-12)
    assert not found.of_samples[:20].any()
    assert found.copied_share == 0.4
    assert found.copies_up_to == pytest.approx(1e-3 * np.median(within.min(axis=1)), rel=0.05)


def test_few_images_are_named(pr_precision: PrPrecision) -> None:
    one, two = FeatureSet(pool_rows=np.eye(1, 3)), FeatureSet(pool_rows=np.eye(2, 3))
    assert copied(one, two, pr_precision) == 1
    with pytest.raises(ValueError, match="Copied found the features of 1 images where it needs 2"):
        copied(two, one, pr_precision)


def test_pairs_are_counted_as_they_are_compared(pr_precision: PrPrecision) -> None:
    ref, fresh = (
        FeatureSet(pool_rows=np.random.default_rng(n).gamma(1, size=(n, 8)).astype(np.float32)) for n in (50, 20)
    )
    told: list[int] = []
    protocol = EvaluationProtocol(name="test", version=1, pr_precision=pr_precision)
    compared = Comparison(samples=fresh, reference=ref, protocol=protocol, tile_rows=16, compared=told.append)
    nearest_distances(compared)
    assert sum(told) == 50 * 50 + 20 * 50
    assert len(told) == 4 * 4 + 2 * 4
    assert compared.memberships.sample_inside is not None
    assert sum(told) == 50 * 50 + 20 * 50 + 20 * 20 + 50 * 20
