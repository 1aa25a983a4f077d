"""Inception Score: how sure the classifier is of each image, and how evenly it names all classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from metrics.comparison import Comparison


def inception_score(logits: NDArray[np.floating], split_size: int) -> float:
    """Return the score, 1 to C, of logits [n, C] of n images in their order: Salimans et al. 2016, section 4.

    exp of the mean of KL(p(class | image) || p(class)), averaged over splits of `split_size` consecutive
    images; the last may be short and counts as much. That is ADM's way (guided-diffusion,
    evaluations/evaluator.py); all is done in float64 and in logarithms, so that a probability that vanishes
    adds its limit, 0.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"found logits of shape {logits.shape}; expected [images, classes] with at least 1 image")
    splits = range(0, len(logits), split_size)
    return float(np.mean([_score_of_split(logits[start : start + split_size]) for start in splits]))


def _score_of_split(logits: NDArray[np.floating]) -> float:
    log_given_image = log_softmax(logits.astype(np.float64), axis=1)
    log_overall = logsumexp(log_given_image, axis=0) - np.log(len(logits))
    divergence = np.exp(log_given_image) * (log_given_image - log_overall)
    return float(np.exp(divergence.sum(axis=1).mean()))


def shuffled(logits: NDArray[np.floating], seed: int) -> NDArray[np.floating]:
    """Return the rows in an order drawn by `seed`, as torch-fidelity draws it.

    Images sorted by class make splits of few classes, and a score that means nothing; shuffled they do not.
    """
    # The old generator, whose stream never changes, because torch-fidelity's numbers are drawn with it.
    return logits[np.random.RandomState(seed).permutation(len(logits))]


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """`metrics.protocol.Metric`: the Inception Score of the samples; the reference is not read."""

    name: str
    label: str
    description: str
    shuffle: bool
    higher_is_better: bool = True
    needs: frozenset[str] = frozenset({"logit_rows"})
    min_images: int = 1

    def compute(self, comparison: Comparison) -> float:
        """Score the samples' logits in splits of the protocol's size."""
        logits, protocol = comparison.samples.logit_rows, comparison.protocol
        if logits is None:
            raise ValueError(f"{self.label} needs logits and found none; take features that have them")
        if self.shuffle:
            logits = shuffled(logits, protocol.seed)
        return inception_score(logits, protocol.inception_split_size)


INCEPTION_SCORE = InceptionScore(
    name="is",
    label="IS",
    description="how sure and how varied the classes of the samples are (Salimans et al. 2016)",
    shuffle=False,
)
SHUFFLED_INCEPTION_SCORE = InceptionScore(
    name="is_shuffled",
    label="IS shuffled",
    description="the same with the samples in an order drawn by seed, for files that are sorted by class",
    shuffle=True,
)
