from collections.abc import Callable
from typing import Any

import numpy as np
import prdc
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol, PrPrecision
from metrics.features.digits import DigitsFeatures
from metrics.half import EVALUATOR_BLOCK
from metrics.manifold_metrics import COVERAGE, DENSITY, F_SCORE, PRECISION, RECALL, ManifoldMetric
from metrics.statistics import FeatureSet

Rows = NDArray[np.floating]
Pair = tuple[Rows, Rows]
Require = Callable[[ArrayLike, str], None]


def against(
    samples: FeatureSet, reference: FeatureSet, evaluator_block: tuple[int, int] = EVALUATOR_BLOCK, **settings: Any
) -> Comparison:
    protocol = EvaluationProtocol(name="test", version=1, **settings)
    return Comparison(samples=samples, reference=reference, protocol=protocol, evaluator_block=evaluator_block)


def compared(ref: Rows, sample: Rows, **settings: Any) -> Comparison:
    return against(FeatureSet(pool_rows=sample), FeatureSet(pool_rows=ref), **settings)


def precision_recall(ref: Rows, sample: Rows, k: int = 3, **settings: Any) -> tuple[float, float]:
    comparison = compared(ref, sample, neighbours=k, **settings)
    return PRECISION.compute(comparison), RECALL.compute(comparison)


def radii(comparison: Comparison) -> tuple[Any, Any]:
    manifolds = comparison.reference_manifold, comparison.sample_manifold
    first, second = (manifold.squared_radii for manifold in manifolds)
    assert first is not None
    assert second is not None
    return first.numpy(), second.numpy()


@pytest.mark.parametrize("case_id", ["pr_300_500", "pr_1000_2000", "pr_3000_9000"])
def test_golden_precision_recall(case_id: str, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    case = golden_case(case_id)
    ref, sample = pr_input[0][: case["n_ref"]], pr_input[1][: case["n_sample"]]
    for precision, name in (("fp32", "float64"), ("fp16", "reference_half")):
        expected, comparison = case["expected"][name], compared(ref, sample, pr_precision=precision)
        # Float32 sums in another order may move one point by a half; what is exact moves none.
        points = 1 if precision == "fp16" else 0
        assert PRECISION.compute(comparison) == pytest.approx(expected["precision"], rel=0, abs=points / len(sample))
        assert RECALL.compute(comparison) == pytest.approx(expected["recall"], rel=0, abs=points / len(ref))


def test_golden_half_radii_and_memberships(pr_input: Pair, golden_arrays: dict[str, NDArray[Any]]) -> None:
    comparison = compared(pr_input[0][:300], pr_input[1][:500], pr_precision="fp16")
    ref_radii, sample_radii = radii(comparison)
    np.testing.assert_array_equal(ref_radii, golden_arrays["pr_small/ref_radii_half"])
    np.testing.assert_array_equal(sample_radii, golden_arrays["pr_small/sample_radii_half"])
    found = comparison.memberships
    np.testing.assert_array_equal(found.reference_inside, golden_arrays["pr_small/ref_in_samples_half"])
    np.testing.assert_array_equal(found.sample_inside, golden_arrays["pr_small/sample_in_ref_half"])


def test_golden_torch_fidelity(pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    for case in (golden_case(f"pr_torch_fidelity_{sizes}") for sizes in ("300_500", "1000_2000")):
        expected = case["expected"]["torch_fidelity"]
        found = precision_recall(pr_input[0][: case["n_ref"]], pr_input[1][: case["n_sample"]], case["k"])
        assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-7)  # theirs is float32


def test_golden_numbers_of_neighbours(pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    expected = golden_case("pr_300_500")["expected"]
    for precision, name in (("fp32", "float64_k"), ("fp16", "reference_half_k")):
        got = [
            precision_recall(pr_input[0][:300], pr_input[1][:500], k, pr_precision=precision)
            for k in expected["k_list"]
        ]
        assert [found for found, _ in got] == expected[name]["precision"]
        assert [found for _, found in got] == expected[name]["recall"]


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_mode_collapse(
    pr_precision: PrPrecision,
    pr_input: Pair,
    golden_case: Callable[[str], dict[str, Any]],
    feature_rows: Callable[..., Rows],
) -> None:
    case = golden_case("pr_mode_collapse")
    collapsed = feature_rows(golden_case("pr_input")["world"], case["sets"]["sample"])
    expected = case["expected"]["reference_half"]
    found = precision_recall(pr_input[0][:300], collapsed, pr_precision=pr_precision)
    assert found == (expected["precision"], expected["recall"]) == (1, 0)


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_identical(
    pr_precision: PrPrecision, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]
) -> None:
    expected = golden_case("pr_identical")["expected"]["reference_half"]
    found = precision_recall(pr_input[0][:300], pr_input[0][:300], pr_precision=pr_precision)
    assert found == (expected["precision"], expected["recall"]) == (1, 1)


@pytest.fixture
def ties(uniform: Callable[..., Rows], golden_case: Callable[[str], dict[str, Any]], require_sha256: Require) -> Pair:
    case = golden_case("pr_ties")
    ref = (uniform("ties/ref", (90, 24)) < 0.5).astype(np.float32)
    sample = (uniform("ties/sample", (120, 24)) < 0.375).astype(np.float32)
    require_sha256(ref, case["sha256"]["ref"])
    require_sha256(sample, case["sha256"]["sample"])
    return ref, sample


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_ties(
    pr_precision: PrPrecision,
    ties: Pair,
    golden_case: Callable[[str], dict[str, Any]],
    golden_arrays: dict[str, NDArray[Any]],
) -> None:
    comparison = compared(*ties, pr_precision=pr_precision)
    ref_radii, sample_radii = radii(comparison)
    np.testing.assert_array_equal(ref_radii, golden_arrays["ties/ref_radii"])
    np.testing.assert_array_equal(sample_radii, golden_arrays["ties/sample_radii"])
    found = comparison.memberships
    np.testing.assert_array_equal(found.sample_inside, golden_arrays["ties/sample_in_ref"])
    np.testing.assert_array_equal(found.reference_inside, golden_arrays["ties/ref_in_samples"])
    expected = golden_case("pr_ties")["expected"]["reference_half" if pr_precision == "fp16" else "float64"]
    assert PRECISION.compute(comparison) == expected["precision"]
    assert RECALL.compute(comparison) == expected["recall"]


def test_golden_duplicates(
    pr_input: Pair,
    golden_case: Callable[[str], dict[str, Any]],
    golden_arrays: dict[str, NDArray[Any]],
    require_sha256: Require,
) -> None:
    case = golden_case("pr_duplicates")
    ref = pr_input[0][:60].repeat(5, axis=0)
    sample = np.concatenate([pr_input[1][:40], pr_input[0][30:70]])
    require_sha256(ref, case["sha256"]["ref"])
    require_sha256(sample, case["sha256"]["sample"])
    exact = compared(ref, sample)
    assert not radii(exact)[0].any()
    expected = case["expected"]["float64"]
    assert (PRECISION.compute(exact), RECALL.compute(exact)) == (expected["precision"], expected["recall"])
    half = compared(ref, sample, pr_precision="fp16")
    ref_radii, sample_radii = radii(half)
    np.testing.assert_array_equal(ref_radii, golden_arrays["dup/ref_radii_half"])
    np.testing.assert_array_equal(sample_radii, golden_arrays["dup/sample_radii_half"])
    np.testing.assert_array_equal(half.memberships.reference_inside, golden_arrays["dup/ref_in_samples_half"])
    np.testing.assert_array_equal(half.memberships.sample_inside, golden_arrays["dup/sample_in_ref_half"])


@pytest.mark.parametrize("blocks", ["one_block", "blocks"])
def test_golden_overflow(
    blocks: str,
    pr_input: Pair,
    golden_case: Callable[[str], dict[str, Any]],
    golden_arrays: dict[str, NDArray[Any]],
    require_sha256: Require,
) -> None:
    case = golden_case("pr_overflow")
    ref, sample = pr_input[0][:300].copy(), pr_input[1][:500]
    ref[37] *= 64
    require_sha256(ref, case["sha256"]["ref"])
    require_sha256(sample, case["sha256"]["sample"])
    block = EVALUATOR_BLOCK if blocks == "one_block" else (case["row_batch_size"], case["col_batch_size"])
    comparison = compared(ref, sample, evaluator_block=block, pr_precision="fp16")
    for name, found in zip(("ref", "sample"), radii(comparison), strict=True):
        # Exact where a block stayed in half; where it was redone, float32 sums are in another order.
        np.testing.assert_allclose(found, golden_arrays[f"overflow/{name}_radii_{blocks}"], rtol=1e-6, atol=2e-3)
    expected = case["expected"][f"reference_{blocks}"]
    assert (PRECISION.compute(comparison), RECALL.compute(comparison)) == (expected["precision"], expected["recall"])


def test_golden_bad_inputs(golden_case: Callable[[str], dict[str, Any]]) -> None:
    rows = np.random.default_rng(0).random((30, 8))
    for entry in golden_case("pr_bad_inputs")["expected"]:
        if "rows" not in entry:
            continue  # a nan: feature sets refuse it, with the image
        comparison = compared(rows[: entry["rows"]], rows, pr_precision="fp16")
        if "error" in entry or not entry["rows"]:
            with pytest.raises(ValueError, match=f"Precision found the features of {entry['rows']} images"):
                PRECISION.compute(comparison)
        else:
            assert PRECISION.compute(comparison) > 0
            assert entry["value_shape"] == [*radii(comparison)[0].shape, 1]


@pytest.mark.parametrize("case_id", ["density_coverage_300_500", "density_coverage_1000_2000"])
@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_density_coverage(
    case_id: str, pr_precision: PrPrecision, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]
) -> None:
    case = golden_case(case_id)
    ref, sample = pr_input[0][: case["n_ref"]], pr_input[1][: case["n_sample"]]
    for expected in case["expected"]:
        comparison = compared(ref, sample, density_neighbours=expected["k"], pr_precision=pr_precision)
        assert DENSITY.compute(comparison) == pytest.approx(expected["density"], rel=1e-12)
        assert COVERAGE.compute(comparison) == pytest.approx(expected["coverage"], rel=1e-12)
        assert expected["prdc_float64_input"]["density"] == pytest.approx(DENSITY.compute(comparison), rel=1e-12)
        assert expected["prdc_float64_input"]["coverage"] == pytest.approx(COVERAGE.compute(comparison), rel=1e-12)


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_density_coverage_of_ties(
    pr_precision: PrPrecision, ties: Pair, golden_case: Callable[[str], dict[str, Any]]
) -> None:
    for expected in golden_case("density_coverage_ties")["expected"]:
        comparison = compared(*ties, density_neighbours=expected["k"], pr_precision=pr_precision)
        assert DENSITY.compute(comparison) == pytest.approx(expected["density"], rel=1e-12)
        assert COVERAGE.compute(comparison) == pytest.approx(expected["coverage"], rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_prdc_agrees(k: int) -> None:
    rng = np.random.default_rng(k)
    ref = rng.gamma(1, size=(400, 24)).astype(np.float32)
    sample = rng.gamma(1.1, size=(300, 24)).astype(np.float32)
    theirs = prdc.compute_prdc(ref.astype(np.float64), sample.astype(np.float64), k)
    comparison = compared(ref, sample, neighbours=k, density_neighbours=k)
    ours = {metric.name: metric.compute(comparison) for metric in (PRECISION, RECALL, DENSITY, COVERAGE)}
    assert ours == pytest.approx(theirs, rel=1e-12)


def by_differences(ref: Rows, sample: Rows, k: int, dense_k: int) -> list[float]:
    """Precision, recall, density and coverage from all distances, differences first, in float64."""

    def squared(first: Rows, second: Rows) -> Rows:
        distances: Rows = np.square(first[:, None].astype(np.float64) - second.astype(np.float64)).sum(axis=2)
        return distances

    # A row lies at 0 from itself, so that its k-th nearest other one stands at k.
    within, between = np.sort(squared(ref, ref)), squared(ref, sample)
    in_ball = between <= within[:, [dense_k]]
    precision = (between <= within[:, [k]]).any(axis=0).mean()
    recall = (between <= np.sort(squared(sample, sample))[:, k]).any(axis=1).mean()
    return [precision, recall, in_ball.sum() / (dense_k * len(sample)), in_ball.any(axis=1).mean()]


def assert_as_by_differences(ref: Rows, sample: Rows) -> None:
    expected = by_differences(ref, sample, 3, 5)
    for pr_precision in ("fp16", "fp32"):
        comparison = compared(ref, sample, pr_precision=pr_precision)
        found = [metric.compute(comparison) for metric in (PRECISION, RECALL, DENSITY, COVERAGE)]
        first = 2 if pr_precision == "fp16" else 0  # precision and recall are the evaluator's there
        assert found[first:] == pytest.approx(expected[first:], rel=1e-12)


@pytest.fixture(scope="module")
def digits_rows(digits_features: DigitsFeatures) -> Rows:
    grey = torch.from_numpy(load_digits().images[:600] * (255 / 16)).to(torch.uint8)
    rows: Rows = digits_features(grey[:, None].expand(-1, 3, -1, -1)).pool.numpy()
    return rows


@pytest.mark.parametrize("n", [6, 20, 30, 50, 60, 120, 600])
def test_copies_of_the_reference_lie_on_its_rims(n: int, digits_rows: Rows) -> None:
    """The k-th neighbour of a reference image is among the samples then: a tie, whatever share of a tile is open."""
    ref = digits_rows[:n]
    copies = ref[np.random.default_rng(n).permutation(n)]
    if n > 6:
        assert by_differences(ref, copies, 3, 5)[2] == pytest.approx(6 / 5)
    assert_as_by_differences(ref, copies)
    assert_as_by_differences(ref, copies[: n // 2 + 3])


@pytest.mark.parametrize("n", [60, 500, 1500])
@pytest.mark.parametrize("spread", [1e-5, 1e-4, 1e-2])
def test_crowds_of_near_duplicates_lie_on_their_rims(n: int, spread: float) -> None:
    rng = np.random.default_rng(n)
    modes = np.abs(rng.normal(size=(6, 32)))
    ref = (modes[rng.integers(0, 6, n)] + spread * rng.integers(0, 3, size=(n, 32))).astype(np.float32)
    assert_as_by_differences(ref, ref[rng.integers(0, n, n)])


def test_f_score_is_the_harmonic_mean(pr_input: Pair) -> None:
    comparison = compared(pr_input[0][:300], pr_input[1][:500])
    precision, recall = PRECISION.compute(comparison), RECALL.compute(comparison)
    assert F_SCORE.compute(comparison) == pytest.approx(2 / (1 / precision + 1 / recall), rel=1e-12)
    apart = compared(np.random.default_rng(0).random((9, 3)), 100 + np.random.default_rng(1).random((9, 3)))
    assert F_SCORE.compute(apart) == 0


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_collapse_costs_recall_and_scatter_costs_precision(pr_precision: PrPrecision) -> None:
    rng = np.random.default_rng(4)
    modes = np.repeat(10 * np.eye(8), 40, axis=0)
    ref = (modes + rng.normal(size=(320, 8))).astype(np.float32)
    collapsed = (modes[:40] + 0.3 * rng.normal(size=(40, 8))).astype(np.float32)
    scattered = (modes + 5 * rng.normal(size=(320, 8))).astype(np.float32)
    precision, recall = precision_recall(ref, collapsed, pr_precision=pr_precision)
    assert precision > 0.95
    assert recall < 0.05
    precision, recall = precision_recall(ref, scattered, pr_precision=pr_precision)
    assert precision < 0.05
    assert recall > 0.95


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
@pytest.mark.parametrize("metric", [PRECISION, RECALL])
def test_too_few_images_are_named(metric: ManifoldMetric, pr_precision: PrPrecision) -> None:
    few, enough = FeatureSet(pool_rows=np.eye(3, 5)), FeatureSet(pool_rows=np.eye(4, 5))
    samples, reference = (enough, few) if metric is PRECISION else (few, enough)
    with pytest.raises(ValueError, match=f"{metric.label} found the features of 3 images where it needs 4"):
        metric.compute(against(samples, reference, pr_precision=pr_precision))
    assert 0 <= metric.compute(against(reference, samples, pr_precision=pr_precision)) <= 1
