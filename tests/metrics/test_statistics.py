from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metrics.statistics import CHUNK_ROWS, NEEDS, FeatureBatch, FeatureSet, Moments

Rows = NDArray[np.float64]


def moments_of(rows: Rows) -> Moments:
    moments = Moments.empty(rows.shape[1])
    moments.update(rows)
    return moments


def assert_same_moments(one: Moments, other: Moments) -> None:
    assert one.n == other.n
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(one.M2, other.M2, rtol=1e-11, atol=1e-10)


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    return rng.gamma(1, size=(300, 7)) @ rng.normal(size=(7, 7)) + 3


@pytest.mark.parametrize("num_rows", [2, 5, CHUNK_ROWS, 2 * CHUNK_ROWS + 1])
def test_moments_are_those_of_numpy(num_rows: int) -> None:
    rows = np.random.default_rng(num_rows).normal(5, 2, size=(num_rows, 4))
    moments = moments_of(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 17, 299, 300])
def test_batches_give_what_one_pass_gives(batch_size: int, rows: Rows) -> None:
    moments = Moments.empty(7)
    for start in range(0, len(rows), batch_size):
        moments.update(rows[start : start + batch_size])
    assert_same_moments(moments, moments_of(rows))


@pytest.mark.parametrize("cuts", [[0], [1], [150], [10, 20], [0, 100, 100, 299, 300]])
def test_merged_parts_give_what_one_pass_gives_in_any_grouping(cuts: list[int], rows: Rows) -> None:
    parts = [moments_of(part) for part in np.split(rows, cuts)]
    assert_same_moments(reduce(Moments.merge, parts), moments_of(rows))
    assert_same_moments(reduce(lambda right, left: left.merge(right), reversed(parts)), moments_of(rows))


def test_merge_leaves_its_arguments_alone(rows: Rows) -> None:
    one, other = moments_of(rows[:100]), moments_of(rows[100:])
    merged = one.merge(other)
    merged.update(rows)
    assert_same_moments(one, moments_of(rows[:100]))
    assert_same_moments(other, moments_of(rows[100:]))


def test_a_large_offset_does_not_drown_the_covariance(rows: Rows) -> None:
    covariance = reduce(Moments.merge, [moments_of(part + 1e6) for part in np.split(rows, 6)]).covariance()
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-8)


def test_stored_statistics_come_back_and_merge(rows: Rows) -> None:
    first, second = moments_of(rows[:120]), moments_of(rows[120:])
    stored = Moments.from_mean_and_covariance(first.mean, first.covariance(), 120)
    np.testing.assert_allclose(stored.covariance(), first.covariance(), rtol=1e-15)
    assert_same_moments(stored.merge(second), moments_of(rows))


@pytest.mark.parametrize(
    ("mean", "covariance", "n", "message"),
    [
        (np.zeros(3), np.eye(4), 10, "expected"),
        (np.zeros((3, 1)), np.eye(3), 10, "expected"),
        (np.zeros(3), np.eye(3), 1, "of 1 images"),
    ],
)
def test_bad_stored_statistics_are_named(mean: Rows, covariance: Rows, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moments.from_mean_and_covariance(mean, covariance, n)


def test_moments_of_other_features_are_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="7 and of 3"):
        moments_of(rows).merge(moments_of(rows[:, :3]))
    with pytest.raises(ValueError, match=r"\[batch, 7\]"):
        moments_of(rows).update(rows[:, :3])
    with pytest.raises(ValueError, match="1 images where a covariance takes at least 2"):
        moments_of(rows[:1]).covariance()


def layers(n: int, seed: int = 0) -> dict[str, Rows]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, dim)) for name, dim in (("pool", 5), ("spatial", 6), ("logits", 3))}


def test_batches_keep_rows_in_order(feature_set: Callable[..., FeatureSet]) -> None:
    given = layers(50)
    features = feature_set(**given, batch_size=7)
    assert features.num_images == 50
    assert features.pool_rows.dtype == np.float32
    np.testing.assert_array_equal(features.pool_rows, given["pool"].astype(np.float32))
    np.testing.assert_array_equal(features.logit_rows, given["logits"].astype(np.float32))
    assert features.spatial is not None
    assert_same_moments(features.spatial, moments_of(given["spatial"].astype(np.float32)))
    assert_same_moments(features.pool, moments_of(given["pool"].astype(np.float32)))


def test_merge_is_one_pass(feature_set: Callable[..., FeatureSet]) -> None:
    given = layers(60)
    parts = [feature_set(**{name: rows[start : start + 20] for name, rows in given.items()}) for start in (0, 20, 40)]
    whole = feature_set(**given)
    for merged in (
        reduce(FeatureSet.merge, [FeatureSet(), *parts]),
        parts[0].merge(parts[1].merge(parts[2])),
    ):
        np.testing.assert_array_equal(merged.pool_rows, whole.pool_rows)
        np.testing.assert_array_equal(merged.logit_rows, whole.logit_rows)
        assert_same_moments(merged.pool, whole.pool)
        assert_same_moments(merged.spatial, whole.spatial)
    assert parts[0].num_images == 20
    assert len(parts[0].pool_rows) == 20


def test_merging_with_an_empty_set_does_not_tie_them_together(feature_set: Callable[..., FeatureSet]) -> None:
    one = feature_set(**layers(10))
    grown = FeatureSet().merge(one)
    grown.update(FeatureBatch(pool=torch.ones(4, 5), spatial=torch.ones(4, 6), logits=torch.ones(4, 3)))
    assert (one.num_images, grown.num_images) == (10, 14)


def test_kept_rows_survive_the_reuse_of_a_buffer() -> None:
    buffer = torch.zeros(2, 3)
    features = FeatureSet()
    features.update(FeatureBatch(pool=buffer, spatial=None, logits=None))
    buffer.fill_(9)
    assert not features.pool_rows.any()


@pytest.mark.parametrize("needs", [frozenset(), *(frozenset({need}) for need in sorted(NEEDS)), NEEDS])
def test_only_what_is_needed_is_kept(needs: frozenset[str]) -> None:
    features = FeatureSet(needs=needs)
    features.update(FeatureBatch(pool=torch.zeros(4, 2), spatial=torch.zeros(4, 3), logits=torch.zeros(4, 5)))
    assert features.num_images == 4
    assert (features.spatial is not None) == ("spatial_moments" in needs)
    assert features.pool_rows.shape == ((4, 2) if "pool_rows" in needs else (0, 2))
    assert (features.logit_rows is not None) == ("logit_rows" in needs)


def test_stored_moments_stand_beside_fewer_rows(rows: Rows) -> None:
    stored = FeatureSet(pool=moments_of(rows), pool_rows=rows[:10].astype(np.float32))
    assert stored.num_images == 300
    assert stored.pool_rows.shape == (10, 7)
    assert stored.spatial is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", ["pool", "spatial", "logits"])
def test_the_first_bad_image_is_named(bad: float, layer: str, feature_set: Callable[..., FeatureSet]) -> None:
    given = layers(50)
    given[layer][[37, 41], 2] = bad
    with pytest.raises(ValueError, match=f"image 37, counted from 0, .* {layer} features are not finite"):
        feature_set(**given, batch_size=16)


def float_batch(**changes: Any) -> FeatureBatch:
    values: dict[str, Any] = {"pool": torch.zeros(4, 2), "spatial": None, "logits": None}
    return FeatureBatch(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": torch.zeros(4, 2, dtype=torch.float64)},
        {"pool": torch.zeros(4)},
        {"spatial": torch.zeros(3, 2)},
        {"logits": torch.zeros(4, 2, 1)},
    ],
)
def test_a_batch_checks_its_shapes(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"found {next(iter(changes))} features of shape"):
        float_batch(**changes)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        FeatureSet(needs=frozenset({"colour"}))
    with pytest.raises(ValueError, match="0 images"):
        FeatureSet().pool  # noqa: B018
    features = FeatureSet()
    features.update(float_batch())
    with pytest.raises(ValueError, match="spatial features of 4 images and pool features of 8"):
        features.update(float_batch(spatial=torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="cannot merge sets that keep"):
        features.merge(FeatureSet(needs=frozenset()))
