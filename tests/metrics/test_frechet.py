from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from metrics.comparison import Comparison
from metrics.frechet import FID, SFID, frechet_distance
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureSet, Moments

PROTOCOL = EvaluationProtocol(name="test", version=1)
Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]
Rule = Callable[..., NDArray[np.float64]]


def against(samples: FeatureSet, reference: FeatureSet) -> Comparison:
    return Comparison(samples=samples, reference=reference, protocol=PROTOCOL)


def gaussian_of(rows: NDArray[Any]) -> Gaussian:
    moments = Moments.empty(rows.shape[1])
    moments.update(rows)
    return moments.mean, moments.covariance()


def trace_sum(one: Gaussian, other: Gaussian) -> float:
    return float(np.trace(one[1]) + np.trace(other[1]))


@pytest.mark.parametrize("case_id", ["full64", "full2048", "spatial2023"])
def test_golden_full_rank(
    case_id: str, golden_case: Callable[[str], dict[str, Any]], feature_rows: Callable[..., NDArray[Any]]
) -> None:
    case = golden_case(case_id)
    sample, ref = (gaussian_of(feature_rows(case["world"], case["sets"][name])) for name in ("sample", "ref"))
    distance = frechet_distance(*sample, *ref)
    assert distance == pytest.approx(case["expected"]["nuclear"], rel=1e-9)
    assert distance == pytest.approx(case["expected"]["reference"]["value"], rel=1e-6)
    assert trace_sum(sample, ref) == pytest.approx(case["expected"]["terms"]["trace_sum"], rel=1e-12)
    assert frechet_distance(*ref, *ref) == pytest.approx(0, abs=1e-8 * trace_sum(ref, ref))


@pytest.mark.parametrize(("case_id", "source"), [("self64", "full64"), ("self2048", "full2048")])
def test_golden_itself(
    case_id: str,
    source: str,
    golden_case: Callable[[str], dict[str, Any]],
    feature_rows: Callable[..., NDArray[Any]],
) -> None:
    case, origin = golden_case(case_id), golden_case(source)
    ref = gaussian_of(feature_rows(origin["world"], origin["sets"]["ref"]))
    tolerance = 1e-8 * trace_sum(ref, ref)
    assert frechet_distance(*ref, *ref) == pytest.approx(0, abs=tolerance)
    assert frechet_distance(*ref, *ref) == pytest.approx(case["expected"]["reference"]["value"], abs=tolerance)


def test_golden_bad_inputs(golden_case: Callable[[str], dict[str, Any]]) -> None:
    """Where the evaluator stops or gives nan, we say what is wrong."""
    three, four = (np.zeros(3), np.eye(3)), (np.zeros(4), np.eye(4))
    answers = {
        "mu of length 3 against 4": ((*three, *four), "3 and of 4"),
        "sigma 3x3 against 4x4, mu of length 3": ((*three, np.zeros(3), np.eye(4)), r"expected \[D\] and \[D, D\]"),
        "sigma with a nan": ((np.zeros(3), np.diag([1, np.nan, 1]), *three), "not finite"),
        "mu with a nan": ((np.array([0, np.nan, 0]), np.eye(3), *three), "not finite"),
    }
    for entry in golden_case("frechet_bad_inputs")["expected"]:
        if entry["input"] in answers:
            arguments, message = answers[entry["input"]]
            with pytest.raises(ValueError, match=message):
                frechet_distance(*arguments)
        else:
            assert entry["input"] == "statistics of a single row (n-1 = 0)"
            with pytest.raises(ValueError, match="found 1 images where a covariance takes at least 2"):
                gaussian_of(np.ones((1, 3)))


@pytest.mark.parametrize("case_id", ["rank64", "dead64", "rank2048"])
def test_golden_deficient_rank(
    case_id: str, golden_case: Callable[[str], dict[str, Any]], feature_rows: Callable[..., NDArray[Any]]
) -> None:
    case = golden_case(case_id)
    rows = {name: feature_rows(case["world"], case["sets"][name]) for name in ("sample", "ref")}
    for array in rows.values():
        array[:, : case.get("dead", 0)] = 0
    sample, ref = gaussian_of(rows["sample"]), gaussian_of(rows["ref"])
    tolerance = 3e-7 * trace_sum(sample, ref)
    assert frechet_distance(*sample, *ref) == pytest.approx(case["expected"]["nuclear"], abs=tolerance)


def test_golden_stored_moments(
    golden_arrays: dict[str, NDArray[Any]], golden_case: Callable[[str], dict[str, Any]]
) -> None:
    stats = [golden_arrays[f"full64/{name}"] for name in ("sample_mu", "sample_sigma", "ref_mu", "ref_sigma")]
    expected = golden_case("full64")["expected"]["eigvalsh"]  # of the same float32 means
    # The reference subtracts its means in float32: 5e-8 is what that may change.
    assert frechet_distance(*stats) == pytest.approx(expected, rel=5e-8)


def explicit(gaussian: Rule, scale: float) -> tuple[Gaussian, Gaussian]:
    a, b = gaussian("expl/A", (64, 96)), gaussian("expl/B", (64, 96))
    sample = gaussian("expl/m1", (64,)) * scale, a @ a.T / 64 * scale**2
    ref = gaussian("expl/m2", (64,)) * scale, 0.5 * b @ b.T / 64 * scale**2
    return sample, ref


def diagonal(uniform: Rule, gaussian: Rule, zero_sample: slice, zero_ref: slice) -> tuple[Gaussian, Gaussian]:
    s1, s2 = (0.125 + uniform(f"diag/{name}", (64,)) for name in ("s1", "s2"))
    s1[zero_sample], s2[zero_ref] = 0, 0
    return (gaussian("diag/m1", (64,)), np.diag(s1)), (gaussian("diag/m2", (64,)), np.diag(s2))


@pytest.mark.parametrize(
    ("case_id", "scale"), [("explicit64", 1.0), ("scaled_up64", 1024.0), ("scaled_down64", 2.0**-10)]
)
def test_golden_explicit(
    case_id: str,
    scale: float,
    gaussian: Rule,
    golden_case: Callable[[str], dict[str, Any]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> None:
    sample, ref = explicit(gaussian, scale)
    case = golden_case(case_id)
    if "sha256" in case:
        require_sha256(sample[1], case["sha256"]["sample_sigma"])
        require_sha256(ref[1], case["sha256"]["ref_sigma"])
    assert frechet_distance(*sample, *ref) == pytest.approx(case["expected"]["eigvalsh"], rel=1e-9)


ALL, NONE, FIRST_HALF, SECOND_HALF = slice(None), slice(0), slice(32), slice(32, None)


@pytest.mark.parametrize(
    ("case_id", "zero_sample", "zero_ref"),
    [
        ("diag64", NONE, NONE),
        ("orthogonal64", SECOND_HALF, FIRST_HALF),
        ("zerocov64", ALL, ALL),
        ("halfzerocov64", ALL, NONE),
    ],
)
def test_golden_diagonal(
    case_id: str,
    zero_sample: slice,
    zero_ref: slice,
    uniform: Rule,
    gaussian: Rule,
    golden_case: Callable[[str], dict[str, Any]],
) -> None:
    sample, ref = diagonal(uniform, gaussian, zero_sample, zero_ref)
    expected = golden_case(case_id)["expected"]["analytic"]
    assert frechet_distance(*sample, *ref) == pytest.approx(expected, rel=1e-9)


def test_golden_one_dimension(gaussian: Rule, golden_case: Callable[[str], dict[str, Any]]) -> None:
    sample = (0.5 * gaussian("onedim/sample", (150, 1)) + 1).astype(np.float32)
    ref = gaussian("onedim/ref", (200, 1)).astype(np.float32)
    expected = golden_case("onedim")["expected"]["analytic"]
    assert frechet_distance(*gaussian_of(sample), *gaussian_of(ref)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_rows", [3, 20, 200])
def test_distance_to_itself_is_zero(num_rows: int) -> None:
    one = gaussian_of(np.random.default_rng(num_rows).normal(size=(num_rows, 20)))
    assert frechet_distance(*one, *one) == pytest.approx(0, abs=1e-12 * trace_sum(one, one))


@pytest.mark.parametrize("num_rows", [5, 200])
def test_shift_costs_its_square(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    rows, shift = rng.normal(size=(num_rows, 12)), rng.normal(size=12)
    distance = frechet_distance(*gaussian_of(rows), *gaussian_of(rows + shift))
    assert distance == pytest.approx(shift @ shift, rel=1e-9)


def spread_out(rng: np.random.Generator, dim: int, decades: float) -> NDArray[np.float64]:
    """A factor A [D, D] of a covariance whose eigenvalues span that many powers of ten."""
    vectors = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    factor: NDArray[np.float64] = vectors * np.sqrt(10 ** -np.linspace(0, decades, dim))
    return factor


@pytest.mark.parametrize("decades", [1, 4, 8, 12, 16, 40])
@pytest.mark.parametrize("same", [False, True])
def test_near_singular_covariances_keep_their_trace(decades: float, *, same: bool) -> None:
    rng = np.random.default_rng(8)
    a = spread_out(rng, 80, decades)
    b = 1.5 * a if same else spread_out(rng, 80, decades)
    zero, s1, s2 = np.zeros(80), a @ a.T, b @ b.T
    expected = np.trace(s1) + np.trace(s2) - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum()
    tolerance = 1e-9 * (np.trace(s1) + np.trace(s2))
    assert frechet_distance(zero, s1, zero, s2) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("num_rows", [12, 300])
def test_covariances_stored_in_float32_pass(num_rows: int) -> None:
    rng = np.random.default_rng(9)
    sets = [gaussian_of(rng.gamma(1, size=(num_rows, 40))) for _ in "ab"]
    stored = [(mean, covariance.astype(np.float32)) for mean, covariance in sets]
    if num_rows < 40:
        assert np.linalg.eigvalsh(stored[0][1].astype(np.float64))[0] < 0
    expected = frechet_distance(*sets[0], *sets[1])
    assert frechet_distance(*stored[0], *stored[1]) == pytest.approx(expected, abs=1e-5 * trace_sum(*sets))


def test_a_pair_of_zeros_on_the_diagonal_is_no_covariance() -> None:
    indefinite = np.array([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="eigenvalue -1"):
        frechet_distance(np.zeros(2), indefinite, np.zeros(2), np.eye(2))


def test_scale_costs_its_square_of_the_deviation() -> None:
    mean, covariance = gaussian_of(np.random.default_rng(1).normal(size=(300, 8)))
    distance = frechet_distance(mean, covariance, mean, 9 * covariance)
    assert distance == pytest.approx((3 - 1) ** 2 * np.trace(covariance), rel=1e-9)


def test_is_symmetric() -> None:
    rng = np.random.default_rng(2)
    one, other = gaussian_of(rng.normal(size=(10, 16))), gaussian_of(rng.gamma(1, size=(40, 16)))
    assert frechet_distance(*one, *other) == pytest.approx(frechet_distance(*other, *one), rel=1e-12)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(4), np.eye(4), "3 and of 4|4 and of 3"),
        (np.zeros(3), np.eye(4), r"expected \[D\] and \[D, D\]"),
        (np.zeros((1, 3)), EYE, r"expected \[D\] and \[D, D\]"),
        (np.array([0, np.nan, 0]), EYE, "not finite"),
        (np.zeros(3), np.diag([1, np.inf, 1]), "not finite"),
        (np.zeros(3), EYE + np.triu(np.ones((3, 3)), 1), "not symmetric"),
        (np.zeros(3), np.diag([1.0, 1.0, -0.5]), "eigenvalue -0.5"),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_bad_input_is_named(mean: ArrayLike, covariance: ArrayLike, message: str, *, swap: bool) -> None:
    good, bad = (np.zeros(3), EYE), (mean, covariance)
    first, second = (bad, good) if swap else (good, bad)
    with pytest.raises(ValueError, match=message):
        frechet_distance(*first, *second)


def test_fid_and_sfid_read_their_own_layer(feature_set: Callable[..., FeatureSet]) -> None:
    rng = np.random.default_rng(3)
    pool, spatial = rng.normal(size=(50, 4)), rng.normal(size=(50, 6))
    reference = feature_set(pool, spatial=spatial)
    samples = feature_set(pool + 1, spatial=spatial + 2)
    assert FID.compute(against(samples, reference)) == pytest.approx(4 * 1, rel=1e-5)
    assert SFID.compute(against(samples, reference)) == pytest.approx(6 * 4, rel=1e-5)


def test_missing_layer_and_single_image_are_named(feature_set: Callable[..., FeatureSet]) -> None:
    one, two = feature_set(np.zeros((1, 4))), feature_set(np.eye(2, 4))
    with pytest.raises(ValueError, match="at least 2"):
        FID.compute(against(one, two))
    with pytest.raises(ValueError, match="sFID needs spatial features"):
        SFID.compute(against(two, two))
