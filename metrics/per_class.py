"""FID and KID class by class: which classes a conditional generator draws badly."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metrics.frechet import frechet_distance, frechet_distance_of_few
from metrics.kernel import kernel_distance
from metrics.points import Rows
from metrics.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class ClassDistance:
    """One class: both distances, the images behind them, and whether FID's covariances have full rank.

    With `rank_deficient` (no more images than features in either set) FID says more of the number of images than
    of the class: compare it only with one from as many, or read KID, which has no such bias.
    """

    label: int
    num_samples: int
    num_reference_images: int
    fid: float
    kid: float
    rank_deficient: bool


def class_distances(
    samples: Rows,
    sample_labels: NDArray[np.integer],
    reference: Rows,
    reference_labels: NDArray[np.integer],
    *,
    device: torch.device | str = "cpu",
    compared: Callable[[], None] | None = None,
) -> list[ClassDistance]:
    """Compare rows [n, D] with labels [n] to a reference class by class, for classes with 2 images in both.

    `device` is where kernel values are made; `compared` is called after each class. Labels that are not
    one a row, and no class to compare, are a ValueError.
    """
    for rows, labels in ((samples, sample_labels), (reference, reference_labels)):
        if labels.shape != (len(rows),):
            raise ValueError(f"found labels of shape {labels.shape} for {len(rows)} images; expected one each")
    found = []
    for label in np.intersect1d(sample_labels, reference_labels):
        ours, theirs = samples[sample_labels == label], reference[reference_labels == label]
        if min(len(ours), len(theirs)) < 2:
            continue
        width = samples.shape[1]
        few = len(ours) * len(theirs) <= width**2
        found.append(
            ClassDistance(
                label=int(label),
                num_samples=len(ours),
                num_reference_images=len(theirs),
                fid=frechet_distance_of_few(ours, theirs) if few else _frechet_distance(ours, theirs),
                kid=kernel_distance(ours, theirs, device=device),
                rank_deficient=min(len(ours), len(theirs)) <= width,
            )
        )
        if compared is not None:
            compared()
    if not found:
        raise ValueError("found no class with at least 2 samples and 2 reference images; check the labels")
    return found


def _frechet_distance(ours: Rows, theirs: Rows) -> float:
    gaussians = [Moments.empty(rows.shape[1]) for rows in (ours, theirs)]
    for moments, rows in zip(gaussians, (ours, theirs), strict=True):
        moments.update(rows)
    return frechet_distance(*(part for one in gaussians for part in (one.mean, one.covariance())))
