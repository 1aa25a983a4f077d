from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from metrics.neighbours import (
    COPIED,
    PRECISION,
    RECALL,
    ManifoldMetric,
    inside_manifold,
    nearest_neighbours,
    squared_distance_blocks,
    squared_radii,
)
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureSet

PROTOCOL = EvaluationProtocol(name="test", version=1)
Rows = NDArray[np.floating]
Pair = tuple[Rows, Rows]


def precision_recall(ref: Rows, sample: Rows, k: int = 3) -> tuple[float, float]:
    protocol = EvaluationProtocol(name="test", version=1, neighbours=k)
    samples, reference = FeatureSet(pool_rows=sample), FeatureSet(pool_rows=ref)
    return PRECISION.compute(samples, reference, protocol), RECALL.compute(samples, reference, protocol)


def memberships(ref: Rows, sample: Rows, k: int = 3) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    sample_in_ref = inside_manifold(sample, ref, squared_radii(ref, k))
    ref_in_samples = inside_manifold(ref, sample, squared_radii(sample, k))
    return sample_in_ref.numpy(), ref_in_samples.numpy()


@pytest.fixture(scope="module")
def pr_input(golden_case: Callable[[str], dict[str, Any]], feature_rows: Callable[..., Rows]) -> Pair:
    case = golden_case("pr_input")
    ref, sample = (feature_rows(case["world"], case["sets"][name]) for name in ("ref", "sample"))
    return ref, sample


def test_golden_radii_memberships_and_nearest(pr_input: Pair, golden_arrays: dict[str, NDArray[Any]]) -> None:
    ref, sample = pr_input[0][:300], pr_input[1][:500]
    # Features are multiples of 2^-12: float64 is exact.
    np.testing.assert_array_equal(squared_radii(ref, 3), golden_arrays["pr_small/ref_radii_float64"])
    np.testing.assert_array_equal(squared_radii(sample, 3), golden_arrays["pr_small/sample_radii_float64"])
    sample_in_ref, ref_in_samples = memberships(ref, sample)
    np.testing.assert_array_equal(sample_in_ref, golden_arrays["pr_small/sample_in_ref_float64"])
    np.testing.assert_array_equal(ref_in_samples, golden_arrays["pr_small/ref_in_samples_float64"])
    nearest = nearest_neighbours(sample, ref, 1).indices[:, 0]
    np.testing.assert_array_equal(nearest, golden_arrays["pr_small/nearest_ref_of_sample_float32"])


@pytest.mark.parametrize("case_id", ["pr_300_500", "pr_1000_2000", "pr_3000_9000"])
def test_golden_precision_recall(case_id: str, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    case = golden_case(case_id)
    expected = case["expected"]["float64"]
    ref, sample = pr_input[0][: case["n_ref"]], pr_input[1][: case["n_sample"]]
    assert precision_recall(ref, sample) == (expected["precision"], expected["recall"])


def test_golden_numbers_of_neighbours(pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    expected = golden_case("pr_300_500")["expected"]
    got = [precision_recall(pr_input[0][:300], pr_input[1][:500], k) for k in expected["k_list"]]
    assert [precision for precision, _ in got] == expected["float64_k"]["precision"]
    assert [recall for _, recall in got] == expected["float64_k"]["recall"]


def test_golden_mode_collapse(
    pr_input: Pair, golden_case: Callable[[str], dict[str, Any]], feature_rows: Callable[..., Rows]
) -> None:
    collapsed = feature_rows(golden_case("pr_input")["world"], golden_case("pr_mode_collapse")["sets"]["sample"])
    assert precision_recall(pr_input[0][:300], collapsed) == (1, 0)


def test_golden_identical(pr_input: Pair) -> None:
    assert precision_recall(pr_input[0][:300], pr_input[0][:300]) == (1, 1)


def test_golden_ties(
    uniform: Callable[..., Rows],
    golden_case: Callable[[str], dict[str, Any]],
    golden_arrays: dict[str, NDArray[Any]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> None:
    case = golden_case("pr_ties")
    ref = (uniform("ties/ref", (90, 24)) < 0.5).astype(np.float32)
    sample = (uniform("ties/sample", (120, 24)) < 0.375).astype(np.float32)
    require_sha256(ref, case["sha256"]["ref"])
    require_sha256(sample, case["sha256"]["sample"])
    np.testing.assert_array_equal(squared_radii(ref, 3), golden_arrays["ties/ref_radii"])
    np.testing.assert_array_equal(squared_radii(sample, 3), golden_arrays["ties/sample_radii"])
    sample_in_ref, ref_in_samples = memberships(ref, sample)
    np.testing.assert_array_equal(sample_in_ref, golden_arrays["ties/sample_in_ref"])
    np.testing.assert_array_equal(ref_in_samples, golden_arrays["ties/ref_in_samples"])
    expected = case["expected"]["float64"]
    assert precision_recall(ref, sample) == (expected["precision"], expected["recall"])


def test_golden_duplicates(
    pr_input: Pair,
    golden_case: Callable[[str], dict[str, Any]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> None:
    case = golden_case("pr_duplicates")
    ref = pr_input[0][:60].repeat(5, axis=0)
    sample = np.concatenate([pr_input[1][:40], pr_input[0][30:70]])
    require_sha256(ref, case["sha256"]["ref"])
    require_sha256(sample, case["sha256"]["sample"])
    assert not squared_radii(ref, 3).any()
    expected = case["expected"]["float64"]
    assert precision_recall(ref, sample) == (expected["precision"], expected["recall"])


@pytest.fixture
def clouds() -> Pair:
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 5)).astype(np.float32), rng.normal(0.5, 0.8, size=(70, 5)).astype(np.float32)


def brute_force_distances(queries: Rows, points: Rows) -> Rows:
    difference = queries[:, None].astype(np.float64) - points[None].astype(np.float64)
    return np.square(difference).sum(axis=2)


def test_agrees_with_the_definition(clouds: Pair) -> None:
    ref, sample = clouds
    radii = np.sort(brute_force_distances(ref, ref), axis=1)[:, 3]
    across = brute_force_distances(sample, ref)
    np.testing.assert_allclose(squared_radii(ref, 3), radii, rtol=1e-12)
    np.testing.assert_array_equal(memberships(ref, sample)[0], (across <= radii).any(axis=1))
    near = nearest_neighbours(sample, ref, 4)
    np.testing.assert_allclose(near.squared_distances, np.sort(across, axis=1)[:, :4], rtol=1e-12)
    np.testing.assert_array_equal(near.indices, np.argsort(across, axis=1)[:, :4])


@pytest.mark.parametrize("block_rows", [1, 2, 7, 64, 90])
def test_block_size_changes_nothing(block_rows: int, clouds: Pair) -> None:
    ref, sample = clouds
    whole, blocked = (nearest_neighbours(sample, ref, 3, block_rows=size) for size in (1000, block_rows))
    torch.testing.assert_close(blocked.squared_distances, whole.squared_distances, rtol=1e-12, atol=0)
    assert torch.equal(blocked.indices, whole.indices)
    radii = squared_radii(ref, 3)
    inside = inside_manifold(sample, ref, radii, block_rows=block_rows)
    assert torch.equal(inside, inside_manifold(sample, ref, radii, block_rows=1000))
    assert 0 < inside.sum() < len(sample)


def test_no_block_is_larger_than_asked(clouds: Pair) -> None:
    shapes = [tuple(block.shape) for _, _, block in squared_distance_blocks(*clouds, block_rows=40)]
    assert shapes == [(40, 40), (40, 30), (40, 40), (40, 30), (10, 40), (10, 30)]


def test_duplicates_lie_at_exactly_zero_wherever_their_block_is() -> None:
    rows = np.random.default_rng(1).gamma(1, size=(40, 300)).astype(np.float32).repeat(5, axis=0)
    rows = rows[np.random.default_rng(2).permutation(len(rows))]
    for block_rows in (3, 64, 1000):
        assert not squared_radii(rows, 4, block_rows=block_rows).any()
        assert squared_radii(rows, 5, block_rows=block_rows).all()


def test_small_distances_between_large_rows_survive() -> None:
    rows = np.full((2, 64), 20.0, np.float32)
    rows[1, 0] += 2**-10
    assert squared_radii(rows, 1).tolist() == pytest.approx([2**-20] * 2, rel=1e-4)


def test_a_bootstrap_of_the_reference_covers_what_it_holds() -> None:
    rng = np.random.default_rng(3)
    ref = rng.gamma(1, size=(60, 200)).astype(np.float32)
    drawn = rng.integers(0, 10, size=200)  # about twenty times each: radii of zero
    sample_in_ref, ref_in_samples = memberships(ref, ref[drawn])
    assert sample_in_ref.all()
    np.testing.assert_array_equal(ref_in_samples, np.isin(np.arange(60), drawn))


def test_collapse_costs_recall_and_scatter_costs_precision() -> None:
    rng = np.random.default_rng(4)
    modes = np.repeat(10 * np.eye(8), 40, axis=0)
    ref = (modes + rng.normal(size=(320, 8))).astype(np.float32)
    collapsed = (modes[:40] + 0.3 * rng.normal(size=(40, 8))).astype(np.float32)
    scattered = (modes + 5 * rng.normal(size=(320, 8))).astype(np.float32)
    precision, recall = precision_recall(ref, collapsed)
    assert precision > 0.95
    assert recall < 0.05
    precision, recall = precision_recall(ref, scattered)
    assert precision < 0.05
    assert recall > 0.95


def test_copies_are_all_found() -> None:
    ref = np.random.default_rng(5).gamma(1, size=(200, 64)).astype(np.float32)
    copies = ref[np.random.default_rng(6).integers(0, 200, size=500)]
    rounding = 1 + 1e-6 * np.random.default_rng(7).normal(size=copies.shape)
    reference = FeatureSet(pool_rows=ref)
    for samples in (copies, (copies * rounding).astype(np.float32)):
        assert COPIED.compute(FeatureSet(pool_rows=samples), reference, PROTOCOL) == 1


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_fresh_draws_are_no_copies(dim: int, scale: float) -> None:
    rng = np.random.default_rng(8)
    ref, fresh = (FeatureSet(pool_rows=(scale * rng.gamma(1, size=(500, dim))).astype(np.float32)) for _ in "rf")
    assert COPIED.compute(fresh, ref, PROTOCOL) == 0


def test_copies_are_counted_among_fresh_draws_and_duplicates() -> None:
    rng = np.random.default_rng(9)
    rows = rng.gamma(1, size=(300, 32)).astype(np.float32)
    ref = FeatureSet(pool_rows=rows[:100].repeat(3, axis=0))  # most gaps within it are 0
    samples = FeatureSet(pool_rows=rows[75:175])
    assert COPIED.compute(samples, ref, PROTOCOL) == 0.25
    all_alike = FeatureSet(pool_rows=rows[:1].repeat(10, axis=0))
    assert COPIED.compute(FeatureSet(pool_rows=rows[:10]), all_alike, PROTOCOL) == 0.1


@pytest.mark.parametrize("metric", [PRECISION, RECALL])
def test_too_few_images_are_named(metric: ManifoldMetric) -> None:
    few, enough = FeatureSet(pool_rows=np.eye(3, 5)), FeatureSet(pool_rows=np.eye(4, 5))
    samples, reference = (enough, few) if metric is PRECISION else (few, enough)
    with pytest.raises(ValueError, match=f"{metric.label} found the features of 3 images where it needs 4"):
        metric.compute(samples, reference, PROTOCOL)
    assert 0 <= metric.compute(reference, samples, PROTOCOL) <= 1


def test_mismatched_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(4, 6\)"):
        nearest_neighbours(np.eye(4, 5), np.eye(4, 6), 1)
    with pytest.raises(ValueError, match="4 images where 5 nearest"):
        nearest_neighbours(np.eye(4), np.eye(4), 5)
