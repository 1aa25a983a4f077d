import numpy as np
import pytest

from metrics.frechet import frechet_distance, frechet_distance_of_few
from metrics.kernel import kernel_distance
from metrics.per_class import class_distances

RNG = np.random.default_rng(0)
REFERENCE, REFERENCE_LABELS = RNG.normal(size=(300, 4)), np.repeat([3, 5, 8], 100)
SAMPLES, LABELS = RNG.normal(size=(205, 4)), np.concatenate([np.full(200, 5), [3] * 3, [7] * 2])


def test_classes_are_compared_alone() -> None:
    few, many = class_distances(SAMPLES, LABELS, REFERENCE, REFERENCE_LABELS)
    assert (few.label, few.num_samples, few.num_reference_images, few.rank_deficient) == (3, 3, 100, True)
    assert (many.label, many.num_samples, many.num_reference_images, many.rank_deficient) == (5, 200, 100, False)
    for found in (few, many):
        ours, theirs = SAMPLES[found.label == LABELS], REFERENCE[found.label == REFERENCE_LABELS]
        moments = [part for rows in (ours, theirs) for part in (rows.mean(0), np.cov(rows, rowvar=False))]
        assert found.fid == pytest.approx(frechet_distance(*moments), rel=1e-9)
        assert found.kid == kernel_distance(ours, theirs)


def test_a_class_that_is_drawn_badly_stands_out() -> None:
    shifted = REFERENCE + 2.0 * (REFERENCE_LABELS == 8)[:, None]
    distances = class_distances(shifted, REFERENCE_LABELS, REFERENCE, REFERENCE_LABELS)
    assert [found.fid for found in distances] == pytest.approx([0, 0, 16], abs=1e-9)


def test_wrong_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(300,\) for 205 images"):
        class_distances(SAMPLES, REFERENCE_LABELS, REFERENCE, REFERENCE_LABELS)
    with pytest.raises(ValueError, match="no class with at least 2 samples"):
        class_distances(SAMPLES, LABELS + 20, REFERENCE, REFERENCE_LABELS)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 40), (30, 30), (40, 5)])
def test_few_rows_need_no_covariance(n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(n, 24)), rng.gamma(2, size=(m, 24))
    moments = [part for rows in (ours, theirs) for part in (rows.mean(0), np.cov(rows, rowvar=False))]
    assert frechet_distance_of_few(ours, theirs) == pytest.approx(frechet_distance(*moments), rel=1e-9)
    assert frechet_distance_of_few(ours, ours) == pytest.approx(0, abs=1e-9)
    found = class_distances(ours, np.zeros(n, int), theirs, np.zeros(m, int))[0]
    assert found.fid == pytest.approx(frechet_distance(*moments), rel=1e-9)
    assert found.rank_deficient == (min(n, m) <= 24)
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance_of_few(ours[:1], theirs)
