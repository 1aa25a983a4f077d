from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import metrics.kernel
from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.kernel import KID, KID_SUBSETS, kernel_distance, subset_kernel_distances
from metrics.statistics import FeatureSet

Rows = NDArray[np.floating]
Pair = tuple[Rows, Rows]


@pytest.mark.parametrize("case_id", ["kid_300_500", "kid_1000_2000"])
def test_golden_kid(case_id: str, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    case = golden_case(case_id)
    expected = case["expected"]
    ref, sample = pr_input[0][: case["n_ref"]], pr_input[1][: case["n_sample"]]
    assert kernel_distance(sample, ref) == pytest.approx(expected["full_unbiased"], rel=1e-9)
    blocks = [
        kernel_distance(sample[start : start + case["block"]], ref[start : start + case["block"]])
        for start in range(0, len(expected["blocks"]) * case["block"], case["block"])
    ]
    assert blocks == pytest.approx(expected["blocks"], rel=1e-9)
    half = len(ref) // 2
    assert kernel_distance(ref[:half], ref[half:]) == pytest.approx(expected["full_self_half"], rel=1e-9)


@pytest.mark.parametrize("case_id", ["kid_300_500", "kid_1000_2000"])
def test_golden_kid_of_subsets(case_id: str, pr_input: Pair, golden_case: Callable[[str], dict[str, Any]]) -> None:
    case = golden_case(case_id)
    expected = case["expected"]
    sets = {"reference": pr_input[0][: case["n_ref"]], "samples": pr_input[1][: case["n_sample"]]}
    protocol = EvaluationProtocol(
        name="test", version=1, kid_subsets=case["subsets"], kid_subset_size=case["subset_size"], seed=2020
    )
    comparison = Comparison(protocol=protocol, **{name: FeatureSet(pool_rows=rows) for name, rows in sets.items()})
    found = KID_SUBSETS.of_subsets(comparison)
    assert found.mean == pytest.approx(expected["subsets_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["subsets_std"], rel=1e-9)
    assert KID_SUBSETS.compute(comparison) == found.mean
    theirs = expected["torch_fidelity_float64"]
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert found.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    first = subset_kernel_distances(
        sets["samples"], sets["reference"], subsets=1, subset_size=case["subset_size"], seed=2020
    )
    assert first.mean == pytest.approx(expected["first_subset"], rel=1e-9)


def by_definition(x: Rows, y: Rows) -> float:
    k = [(a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    n, m = len(x), len(y)
    within = sum((one.sum() - np.trace(one)) / (size * (size - 1)) for one, size in zip(k, (n, m), strict=False))
    return float(within - 2 * k[2].mean())


@pytest.mark.parametrize("block_rows", [1, 7, 30, 1000])
def test_blocks_change_nothing(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(0.3, 1, size=(41, 4))
    monkeypatch.setattr(metrics.kernel, "BLOCK_ROWS", block_rows)
    assert kernel_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-12)


def test_equal_distributions_are_zero_on_average() -> None:
    rng = np.random.default_rng(1)
    found = [kernel_distance(rng.normal(size=(40, 3)), rng.normal(size=(60, 3))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    assert min(found) < 0 < max(found)


def test_kid_reads_all_rows_and_few_are_named() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    protocol = EvaluationProtocol(name="test", version=1)
    comparison = Comparison(samples=FeatureSet(pool_rows=x), reference=FeatureSet(pool_rows=y), protocol=protocol)
    assert KID.compute(comparison) == pytest.approx(by_definition(x.astype(float), y.astype(float)), rel=1e-9)
    with pytest.raises(ValueError, match="KID subsets found the features of 50 images where it needs 1000"):
        KID_SUBSETS.compute(comparison)
    with pytest.raises(ValueError, match="40 samples and 9 reference images where subsets take 10"):
        subset_kernel_distances(x[:40], y[:9], subsets=2, subset_size=10, seed=0)
    with pytest.raises(ValueError, match="at least 2 images"):
        kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match=r"\(50, 3\) and \(40, 2\)"):
        kernel_distance(x, y[:, :2])
