"""Half-precision arithmetic step by step, in NumPy's halves, which round after every operation."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metrics.half import half_squared_norms, overflows, surely_finite, to_float_distances, to_half_distances
from metrics.points import Points
from metrics.tiles import Tiling

Halves = NDArray[np.float16]


def row_sum(row: Halves) -> np.float16:
    """The rule of tests/golden/README.md, section 4, one number at a time."""
    n = len(row)
    if n > 1600:
        middle = 8 * math.ceil(math.ceil(n / 2) / 8)
        return np.float16(row_sum(row[:middle]) + row_sum(row[middle:]))
    accumulators = np.zeros((4, 8), np.float16)
    groups = row.reshape(-1, 8)
    whole = len(groups) // 4 * 4
    for place, group in enumerate(groups[:whole]):
        accumulators[place % 4] += group
    lanes = ((accumulators[0] + accumulators[1]) + accumulators[2]) + accumulators[3]
    for group in groups[whole:]:
        lanes = lanes + group
    return np.float16(lanes.astype(np.float32).sum())


@pytest.mark.parametrize("width", [8, 16, 24, 64, 1592, 1600, 1608, 2048])
def test_norms_are_summed_in_the_evaluators_order(width: int) -> None:
    rows = np.random.default_rng(width).gamma(1, 0.4, size=(20, width)).astype(np.float32)
    halves = rows.astype(np.float16)
    expected = [row_sum(row * row) for row in halves]
    found = half_squared_norms(torch.from_numpy(rows))
    np.testing.assert_array_equal(found.numpy(), np.array(expected, np.float32))
    if width > 1000:
        plain = np.square(halves.astype(np.float32)).sum(axis=1).astype(np.float16)
        assert (found.numpy() != plain).any()  # the order does matter


@pytest.mark.parametrize("width", [1, 7, 13, 100])
def test_any_width_is_summed(width: int) -> None:
    rows = torch.randint(0, 3, (5, width)).float()
    torch.testing.assert_close(half_squared_norms(rows), rows.square().sum(dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
def test_every_operation_rounds(scale: float) -> None:
    rng = np.random.default_rng(0)
    u, v = (torch.from_numpy(scale * rng.normal(size=(n, 64))).half().float() for n in (30, 40))
    norms, others = half_squared_norms(u), half_squared_norms(v)
    product = (u @ v.T).numpy().astype(np.float16)
    steps = norms.numpy().astype(np.float16)[:, None] - np.float16(2) * product
    expected = np.maximum(steps + others.numpy().astype(np.float16), 0).astype(np.float32)
    np.testing.assert_array_equal(to_half_distances(u @ v.T, norms, others).numpy(), expected)
    if scale > 0.01:  # above the subnormal halves it is not symmetric
        assert (expected != to_half_distances(v @ u.T, others, norms).numpy().T).any()


def test_float_distances_are_the_plain_formula() -> None:
    u, v = torch.randn(5, 9), torch.randn(6, 9)
    found = to_float_distances(u @ v.T, u.square().sum(1), v.square().sum(1))
    torch.testing.assert_close(found, torch.cdist(u, v).square(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("norms", "product", "lost"),
    [
        ((100.0, 100.0), 90.0, False),
        ((40_000.0, 40_000.0), 39_000.0, True),  # twice the product
        ((40_000.0, 40_000.0), 100.0, True),  # the sum
        ((60_000.0, 100.0), 2000.0, False),
        ((float("inf"), 100.0), 10.0, True),
    ],
)
def test_overflow_is_seen(norms: tuple[float, float], product: float, *, lost: bool) -> None:
    first, second = (torch.tensor([norm]) for norm in norms)
    assert overflows(torch.tensor([[product]]), first, second) is lost
    assert not (surely_finite(*norms) and lost)


@pytest.mark.parametrize(("norm", "stays"), [(100.0, True), (30_000.0, True), (45_000.0, False), (70_000.0, False)])
def test_a_block_is_redone_in_float32_if_any_of_it_overflows(norm: float, *, stays: bool) -> None:
    rows = np.eye(40, dtype=np.float32)
    rows[37] *= np.sqrt(norm)
    points, others = (Points.of(side.astype(np.float32), in_half=True) for side in (rows, 158 * np.eye(40)))
    tiles = list(Tiling(points, others, tile_rows=16, evaluator_block=(20, 40)).tiles())
    by_block = {place: {tile.in_half for tile in tiles if tile.rows.start // 20 == place} for place in (0, 1)}
    assert by_block == {0: {True}, 1: {stays}}
    for tile in tiles:
        found = tile.evaluator_distances().numpy()
        exact = np.square(points.rows[tile.rows, None] - others.rows[None, tile.columns]).sum(axis=2)
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=64)  # two units of the largest halves
