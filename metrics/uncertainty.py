"""How far a number would move with other samples: intervals from moments, memberships and logits that are at hand.

No network runs again. All are of the sampling of images; that the generator was trained once is not in them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, softmax, stdtrit, xlogy

from metrics.comparison import Comparison
from metrics.frechet import frechet_distance
from metrics.manifold_metrics import PRECISION, RECALL
from metrics.points import Rows
from metrics.statistics import Moments

LEVEL = 0.95
GROUPS = 20
"""Groups of a jackknife: 20 moments of 2048 features take 670 MB, and a t with 19 degrees of freedom is near normal."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number, its standard error, and the interval of that confidence `level` around it."""

    estimate: float
    std_error: float
    low: float
    high: float
    level: float


def group_moments(rows: Rows, *, groups: int = GROUPS, seed: int) -> list[Moments]:
    """Split rows [n, D] at random into groups of equal size, but for one, and return the moments of each."""
    found = []
    for members in _groups(len(rows), groups, seed):
        moments = Moments.empty(rows.shape[1])
        for start in range(0, len(members), 1024):
            moments.update(rows[members[start : start + 1024]])
        found.append(moments)
    return found


def fid_interval(
    groups: Sequence[Moments],
    reference: Moments,
    *,
    remove_bias: bool = False,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of the FID of all groups of samples together against a reference, which is held fixed.

    Delete-a-group jackknife (Quenouille 1956; Shao and Tu 1995, "The jackknife and bootstrap", section 2.3): the FID
    is computed without each group in turn. It covers the FID that this number of samples has on average.
    `remove_bias` centres it on Quenouille's estimate instead, which covers the FID of infinitely many samples
    where there are many more samples than features. Fewer than 3 groups are a ValueError.
    """
    theirs = reference.covariance()

    def fid(moments: Moments) -> float:
        return frechet_distance(moments.mean, moments.covariance(), reference.mean, theirs)

    total = Moments.empty(reference.mean.size)
    for group in groups:
        total = total.merge(group)
    return _jackknife(fid(total), [fid(_without(total, group)) for group in groups], level, remove_bias=remove_bias)


def _without(total: Moments, group: Moments) -> Moments:
    """Take a group out of a total again: the pairwise update of Chan, Golub and LeVeque, backwards."""
    n = total.n - group.n
    mean = (total.mean * total.n - group.mean * group.n) / n
    delta = group.mean - mean
    scatter = total.M2 - group.M2 - np.outer(delta, delta) * (n * group.n / total.n)
    return Moments(n=n, mean=mean, M2=scatter)


def inception_score_interval(
    logits: Rows, split_size: int, *, seed: int, groups: int = GROUPS, level: float = LEVEL
) -> Interval:
    """Return the interval of the Inception Score of logits [n, C] in splits of that size.

    Delete-a-group jackknife with the groups drawn within each split, so that every partial score is over the same
    splits; sums over groups are enough for all of them. It covers the score that splits of this size have on
    average. A split with fewer images than groups + 1 is a ValueError.
    """
    scores = np.array(
        [
            _scores(logits[start : start + split_size], groups, seed + start)
            for start in range(0, len(logits), split_size)
        ]
    ).mean(axis=0)
    return _jackknife(float(scores[0]), scores[1:].tolist(), level)


def _scores(logits: Rows, groups: int, seed: int) -> NDArray[np.float64]:
    """Return the score of a split, and those without each of its groups."""
    p = softmax(logits.astype(np.float64), axis=1)
    members = list(_groups(len(p), groups, seed))
    classes = np.stack([p[group].sum(axis=0) for group in members])
    certainty = np.array([xlogy(p[group], p[group]).sum() for group in members])
    sizes = np.array([len(group) for group in members])
    left = np.concatenate([[len(p)], len(p) - sizes])
    overall = np.concatenate([classes.sum(0)[None], classes.sum(0) - classes]).clip(min=0) / left[:, None]
    sure = np.concatenate([[certainty.sum()], certainty.sum() - certainty]) / left
    scores: NDArray[np.float64] = np.exp(sure - xlogy(overall, overall).sum(axis=1))
    return scores


def share_interval(inside: NDArray[np.bool_], *, level: float = LEVEL) -> Interval:
    """Return the interval of a share from the memberships [n] that it is the mean of: Wilson 1927.

    What a bootstrap of the memberships tends to, without its draws, and right also at shares of 0 and 1.
    """
    if not len(inside):
        raise ValueError("found no images; an interval takes at least 1")
    n, share, z = len(inside), float(inside.mean()), float(ndtri((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(
        estimate=share,
        std_error=float(np.sqrt(share * (1 - share) / n)),
        low=max(0.0, float(centre - half)) if share else 0.0,
        high=min(1.0, float(centre + half)) if share < 1 else 1.0,
        level=level,
    )


def precision_interval(comparison: Comparison, *, level: float = LEVEL) -> Interval:
    """Return the interval of precision: over samples, with the reference's manifold as it is."""
    PRECISION.compute(comparison)
    inside = comparison.memberships.sample_inside
    assert inside is not None, "or precision would have said so"
    return share_interval(inside.numpy(), level=level)


def recall_interval(comparison: Comparison, *, level: float = LEVEL) -> Interval:
    """Return the interval of recall: over reference images, with the samples' manifold as it is.

    Other samples would make another manifold; how much that adds is not in it.
    """
    RECALL.compute(comparison)
    inside = comparison.memberships.reference_inside
    assert inside is not None, "or recall would have said so"
    return share_interval(inside.numpy(), level=level)


def _fid_of(comparison: Comparison) -> Interval:
    comparison.require_rows("an interval of FID", samples=3 * GROUPS, reference=0)
    groups = group_moments(comparison.samples.pool_rows, seed=comparison.protocol.seed)
    return fid_interval(groups, comparison.reference.pool)


def _inception_score_of(comparison: Comparison) -> Interval:
    logits, protocol = comparison.samples.logit_rows, comparison.protocol
    if logits is None:
        raise ValueError("an interval of IS needs logits and found none; take features that have them")
    return inception_score_interval(logits, protocol.inception_split_size, seed=protocol.seed)


INTERVALS: dict[str, Callable[[Comparison], Interval]] = {
    "fid": _fid_of,
    "is": _inception_score_of,
    "precision": precision_interval,
    "recall": recall_interval,
}
"""By the metric's name, the interval of its value for a comparison, with the protocol's seed."""


def _groups(n: int, groups: int, seed: int) -> Iterator[NDArray[np.int64]]:
    if groups < 3 or n <= groups:
        raise ValueError(f"found {n} images for {groups} groups; a jackknife takes 3 groups and more images than that")
    order = np.random.default_rng(seed).permutation(n)
    return (np.sort(part) for part in np.array_split(order, groups))


def _jackknife(whole: float, partial: Sequence[float], level: float, *, remove_bias: bool = False) -> Interval:
    groups = len(partial)
    if groups < 3:
        raise ValueError(f"found {groups} groups; a jackknife takes at least 3")
    values = np.asarray(partial)
    std_error = float(np.sqrt((groups - 1) / groups * np.square(values - values.mean()).sum()))
    estimate = groups * whole - (groups - 1) * float(values.mean()) if remove_bias else whole
    reach = float(stdtrit(groups - 1, (1 + level) / 2)) * std_error
    return Interval(estimate=estimate, std_error=std_error, low=estimate - reach, high=estimate + reach, level=level)
