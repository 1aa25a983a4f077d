"""Rows that outgrow their budget move to a file, and stay what they were."""

import numpy as np
import pytest
import torch

from metrics.rows import KeptRows, MemoryBudget
from metrics.statistics import NEEDS, FeatureBatch, FeatureSet

ROWS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


@pytest.mark.parametrize(("budget_bytes", "on_disk"), [(float("inf"), False), (160, False), (159, True), (0, True)])
def test_rows_are_the_same_wherever_they_lie(budget_bytes: float, on_disk: bool) -> None:
    kept = KeptRows(MemoryBudget(bytes_left=budget_bytes))
    for start in range(0, 10, 3):
        kept.append(ROWS[start : start + 3])
        np.testing.assert_array_equal(kept.array(), ROWS[: start + 3])  # reading in between disturbs nothing
    assert len(kept) == 10
    assert kept.on_disk == on_disk


def test_what_moves_to_disk_leaves_its_room_to_others() -> None:
    budget = MemoryBudget(bytes_left=100)
    first, second = KeptRows(budget), KeptRows(budget)
    first.append(ROWS[:6])
    first.append(ROWS[6:])
    assert first.on_disk
    second.append(ROWS[:6])
    assert not second.on_disk


def test_kept_rows_are_copies() -> None:
    rows = ROWS.copy()
    kept = KeptRows()
    kept.append(rows)
    rows[:] = 0
    np.testing.assert_array_equal(kept.array(), ROWS)


def test_rows_of_another_width_are_refused() -> None:
    kept = KeptRows()
    kept.append(ROWS)
    with pytest.raises(ValueError, match=r"found features of shape \(10, 3\); expected \[batch, 4\]"):
        kept.append(ROWS[:, :3])


def test_a_feature_set_keeps_within_its_budget() -> None:
    features = FeatureSet(needs=NEEDS, budget=MemoryBudget(bytes_left=250))
    batch = FeatureBatch(pool=torch.from_numpy(ROWS), spatial=None, logits=torch.from_numpy(ROWS[:, :2].copy()))
    features.update(batch)
    features.update(batch)
    np.testing.assert_array_equal(features.pool_rows, np.vstack([ROWS, ROWS]))
    assert isinstance(features.pool_rows, np.memmap)
    assert not isinstance(features.logit_rows, np.memmap)
    merged = features.merge(features)
    np.testing.assert_array_equal(merged.pool_rows, np.vstack([ROWS] * 4))
    assert merged.logit_rows is not None
    assert len(merged.logit_rows) == 40
