from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metrics.exact import distance_bounds, pair_distances
from metrics.manifold import BallCounts, inside_manifold
from metrics.neighbours import Candidates, nearest_neighbours, neighbours_within, squared_radii
from metrics.points import Points
from metrics.tiles import Tiling

Rows = NDArray[np.floating]
Pair = tuple[Rows, Rows]


def memberships(ref: Rows, sample: Rows, k: int = 3) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    sample_in_ref = inside_manifold(sample, ref, squared_radii(ref, k))
    ref_in_samples = inside_manifold(ref, sample, squared_radii(sample, k))
    return sample_in_ref.numpy(), ref_in_samples.numpy()


def test_golden_radii_memberships_and_nearest(pr_input: Pair, golden_arrays: dict[str, NDArray[Any]]) -> None:
    ref, sample = pr_input[0][:300], pr_input[1][:500]
    # Features are multiples of 2^-12: float64 is exact.
    np.testing.assert_array_equal(squared_radii(ref, 3), golden_arrays["pr_small/ref_radii_float64"])
    np.testing.assert_array_equal(squared_radii(sample, 3), golden_arrays["pr_small/sample_radii_float64"])
    sample_in_ref, ref_in_samples = memberships(ref, sample)
    np.testing.assert_array_equal(sample_in_ref, golden_arrays["pr_small/sample_in_ref_float64"])
    np.testing.assert_array_equal(ref_in_samples, golden_arrays["pr_small/ref_in_samples_float64"])
    for name, rows in (("ref", ref), ("sample", sample)):  # the evaluator's float32 distances, to their tolerance
        expected = golden_arrays[f"pr_small/{name}_radii_float32"]
        np.testing.assert_allclose(squared_radii(rows, 3), expected, rtol=0, atol=2e-3)
    nearest = nearest_neighbours(sample, ref, 1).indices[:, 0]
    np.testing.assert_array_equal(nearest, golden_arrays["pr_small/nearest_ref_of_sample_float32"])


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


@pytest.mark.parametrize("tile_rows", [1, 2, 7, 64, 90])
def test_block_size_changes_nothing(tile_rows: int, clouds: Pair) -> None:
    ref, sample = clouds
    whole, blocked = (nearest_neighbours(sample, ref, 3, tile_rows=size) for size in (1000, tile_rows))
    torch.testing.assert_close(blocked.squared_distances, whole.squared_distances, rtol=1e-12, atol=0)
    assert torch.equal(blocked.indices, whole.indices)
    radii = squared_radii(ref, 3)
    inside = inside_manifold(sample, ref, radii, tile_rows=tile_rows)
    assert torch.equal(inside, inside_manifold(sample, ref, radii, tile_rows=1000))
    assert 0 < inside.sum() < len(sample)


def test_duplicates_lie_at_exactly_zero_wherever_their_block_is() -> None:
    rows = np.random.default_rng(1).gamma(1, size=(40, 300)).astype(np.float32).repeat(5, axis=0)
    rows = rows[np.random.default_rng(2).permutation(len(rows))]
    for tile_rows in (3, 64, 1000):
        assert not squared_radii(rows, 4, tile_rows=tile_rows).any()
        assert squared_radii(rows, 5, tile_rows=tile_rows).all()


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("in_half", [False, True])
def test_what_float32_or_half_leave_open_is_computed_again(offset: float, *, in_half: bool) -> None:
    """The rounding of products is made many times the distances; answers stay those of float64."""
    rows = (offset + np.random.default_rng(5).normal(size=(300, 12))).astype(np.float32)
    ref, sample = rows[:180], rows[180:]
    distances = brute_force_distances(ref, ref)
    np.fill_diagonal(distances, np.inf)
    first, second = (Points.of(side, in_half=in_half) for side in (ref, sample))
    candidates, across = Candidates(first, first, 4), Candidates(second, first, 4)
    for tile in Tiling(first, first, tile_rows=64, evaluator_block=(64, 64)).tiles_within():
        candidates.add(tile.rows, tile.columns, tile.lower_bounds())
    radii = candidates.nearest(4).squared_distances[:, -1]
    np.testing.assert_allclose(radii, np.sort(distances)[:, 3], rtol=1e-12)
    counts = BallCounts(second, first, radii, centres_in_rows=False)
    for tile in Tiling(second, first, tile_rows=64, evaluator_block=(64, 64)).tiles():
        across.add(tile.rows, tile.columns, tile.lower_bounds())
        counts.add(tile, tile.lower_bounds())
    between = brute_force_distances(sample, ref)
    np.testing.assert_array_equal(across.nearest(4).indices, np.argsort(between, axis=1)[:, :4])
    np.testing.assert_array_equal(counts.balls_at_point, (between <= radii.numpy()).sum(axis=1))
    np.testing.assert_array_equal(counts.points_in_ball, (between <= radii.numpy()).sum(axis=0))


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-4])
def test_radii_are_distances_of_pairs_to_the_last_bit(spread: float) -> None:
    """Crowds leave open which of many points is the k-th; a radius from any other would miss its own pair."""
    rng = np.random.default_rng(11)
    modes = np.abs(rng.normal(size=(5, 48)))
    rows = (modes[rng.integers(0, 5, 1300)] + spread * rng.integers(0, 3, size=(1300, 48))).astype(np.float32)
    points = Points.of(rows)
    first, second = (number.flatten() for number in torch.meshgrid(*[torch.arange(1300)] * 2, indexing="ij"))
    distances = pair_distances(points, points, first, second).view(1300, 1300)
    assert torch.equal(distances, distances.T)
    near = nearest_neighbours(rows, rows, 7)
    assert torch.equal(near.squared_distances, distances.sort(dim=1).values[:, :7])
    assert torch.equal(near.squared_distances, distances.gather(1, near.indices))
    distances.fill_diagonal_(torch.inf)
    within = neighbours_within(rows, 5).squared_distances
    assert torch.equal(within, distances.sort(dim=1).values[:, :5])
    for k in (1, 5):
        inside = BallCounts(points, points, within[:, k - 1], centres_in_rows=True)
        for tile in Tiling(points, points).tiles():
            inside.add(tile, tile.lower_bounds())
        expected_counts = 1 + (distances <= within[:, [k - 1]]).sum(dim=1)
        assert torch.equal(inside.points_in_ball, expected_counts)


@pytest.mark.parametrize("width", [1, 7, 64, 2048])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
def test_bounds_hold_the_distances_of_pairs(width: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng(width)
    rows = (offset + rng.integers(0, 3, size=(9, width)).repeat(4, axis=0)).astype(np.float32)
    rows += (spread * rng.normal(size=rows.shape)).astype(np.float32)
    points, every = Points.of(rows), torch.arange(36)
    first, second = (number.flatten() for number in torch.meshgrid(every, every[5:], indexing="ij"))
    exact = pair_distances(points, points, first, second).view(36, 31)
    lowest, highest = distance_bounds(points, points, every, every[5:])
    assert (lowest <= exact).all()
    assert (exact <= highest).all()
    if not spread:
        assert not highest[exact == 0].any()


def test_a_set_with_itself_takes_half_the_products(clouds: Pair) -> None:
    points = Points.of(clouds[0])
    tiling = Tiling(points, points, tile_rows=30)
    whole = {(tile.rows.start, tile.columns.start): tile for tile in tiling.tiles()}
    within = {(tile.rows.start, tile.columns.start): tile for tile in tiling.tiles_within()}
    assert whole.keys() == within.keys()
    assert len(whole) == 9
    for place, tile in whole.items():
        torch.testing.assert_close(within[place].products, tile.products)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_full_float32_whatever_is_allowed(precision: str, clouds: Pair) -> None:
    points, before = Points.of(np.tile(clouds[0], 40)), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        tile = next(Tiling(points, points).tiles())
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    exact = points.rows.astype(np.float64) @ points.rows.T.astype(np.float64)
    np.testing.assert_allclose(tile.products, exact, rtol=0, atol=1e-3)  # bfloat16 errs by some 0.5


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


def test_mismatched_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(4, 6\)"):
        nearest_neighbours(np.eye(4, 5), np.eye(4, 6), 1)
    with pytest.raises(ValueError, match="4 images where 5 nearest"):
        nearest_neighbours(np.eye(4), np.eye(4), 5)
    with pytest.raises(ValueError, match="3 images beside itself where 4 nearest"):
        neighbours_within(np.eye(4), 4)
    with pytest.raises(ValueError, match="squared norm is inf"):
        nearest_neighbours(np.full((2, 3), 1e30), np.eye(3), 1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        nearest_neighbours(np.ones(3), np.eye(3), 1)
