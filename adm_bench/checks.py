"""What can be said of samples before a network runs: refusals, and warnings of numbers that would mislead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adm_bench.errors import InputError
from adm_bench.images.dataset import ImageSet, Labels, PixelHashes
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import UnknownDigestError
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.pixels import are_same_images
from adm_bench.references import UNSTATED_FEATURES, Reference
from metrics.protocol import Features, Metric
from reports.quantities import QUANTITIES, of_features

PUBLISHED_NUM_IMAGES = {"adm": 50_000, "clean": 50_000, "dinov2": 50_000}
"""Samples behind published numbers, by protocol."""
MANY_REPEATS = 0.01
"""Share of samples equal to an earlier one that is worth a word."""
WELL_MIXED = 0.9
"""Share of the labels' entropy that splits of a shuffled file hold: above 0.98 even for 5,000 of 1,000 classes."""


@dataclass(frozen=True, kw_only=True)
class SampleChecks:
    """What was found of samples that can be measured."""

    warnings: tuple[str, ...]
    digest: str | None
    """Of the samples; None where it is known only after they have passed."""


def check_samples(
    samples: ImageSet, reference: Reference, metrics: Sequence[Metric], features: Features
) -> SampleChecks:
    """Every check that needs no network; encoded images are read once, for their headers and their digest.

    InputError where samples and reference differ in resolution or are the same, the reference cannot serve the metrics,
    the samples are too few for one, or an image cannot be taken.
    """
    require_same_size(samples, reference)
    for metric in metrics:
        if len(samples) < metric.min_images:
            raise InputError(
                f"{samples.name}: holds {len(samples)} images; {metric.label} needs {metric.min_images} or more: "
                "sample more"
            )
    needs = frozenset[str]().union(*(metric.needs for metric in metrics))
    reference.check(features, needs, metrics)
    digest = _digest(samples)
    require_other(samples, reference)
    warnings = _warnings(samples, digest, reference, metrics, features)
    return SampleChecks(warnings=tuple(warnings), digest=digest)


def _digest(samples: ImageSet) -> str | None:
    try:
        return samples.digest()
    except UnknownDigestError:
        return None


def require_same_size(samples: ImageSet, reference: Reference) -> None:
    """InputError where samples and the reference's images differ in resolution."""
    found, expected = samples.image_shape, reference.image_shape
    if expected is not None and found != expected:
        raise InputError(
            f"{samples.name}: images are {found[0]} x {found[1]}, but the reference's are {expected[0]} x {expected[1]}"
        )


def require_labels(samples: ImageSet, reference: Reference) -> tuple[Labels, Labels]:
    """The labels of samples and of the reference's images; InputError where a side has none, or other classes.

    Where labels are the ranks of folders, a missing folder would shift them: the other side must have as many classes,
    and if its labels are ranks too, of the same names.
    """
    way_out = "for numbers class by class, take images in folders by class, or an npz file with arr_1"
    if reference.images is None:
        raise InputError(f"{reference.path}: holds statistics only, so no class can be told from another; {way_out}")
    for images in (samples, reference.images):
        if images.labels is None:
            side = "samples have" if images is samples else "reference has"
            raise InputError(f"{images.name}: the {side} no labels; {way_out}")
    ours, theirs = samples.labels, reference.images.labels
    assert ours is not None  # both were looked at
    assert theirs is not None
    names = [images.class_names if isinstance(images, EncodedImages) else () for images in (samples, reference.images)]
    counts = [len(each) or int(labels.max()) + 1 for each, labels in zip(names, (ours, theirs), strict=True)]
    if (all(names) and names[0] != names[1]) or (any(names) and counts[0] != counts[1]):
        raise InputError(
            f"{samples.name}: has {counts[0]} classes and the reference {counts[1]}, or folders of other names; labels "
            "are the ranks of folders, so classes would be taken for one another: give both the same folders"
        )
    return ours, theirs


def require_other(samples: ImageSet, reference: Reference) -> None:
    """InputError where the reference, or its very images, are given as the samples: by path, or as of `pixels`."""
    path = Path(samples.name)
    if path.exists() and path.resolve() == reference.path.resolve():
        raise InputError(f"{samples.name}: is the reference itself ({reference.path}); give samples of a generator")
    if reference.images is not None and are_same_images(samples, reference.images):
        raise InputError(
            f"{samples.name}: is the reference itself ({reference.path}), whose {len(samples)} images have the same "
            "pixels, in this or another order; give samples of a generator"
        )


def _warnings(
    samples: ImageSet,
    digest: str | None,
    reference: Reference,
    metrics: Sequence[Metric],
    features: Features,
) -> Iterator[str]:
    protocol = features.protocol
    names = {metric.name for metric in metrics}
    for side, images in (("samples", samples), ("reference images", reference.images)):
        left_out = images.left_out() if isinstance(images, EncodedImages) else None
        if left_out is not None:
            yield f"{side}: {left_out}"
        shortest = images.enlarged_from() if isinstance(images, EncodedImages | NpzImages) else None
        if images is not None and shortest is not None:
            yield (
                f"--size enlarges {side}, whose short sides begin at {shortest} pixels, to {images.image_shape[0]}: "
                "numbers of enlarged images are of how they were enlarged too, and compare with no others"
            )
    published = PUBLISHED_NUM_IMAGES.get(protocol.name, 0)
    if len(samples) < published:
        yield (
            f"{len(samples)} samples, where published numbers of protocol {protocol.name} are of {published}: "
            "Fréchet distances come out higher, by a bias that goes as 1/n and is "
            f"{published / len(samples):.3g} times that of {published}, and precision and recall shift; compare with "
            "equal numbers only"
        )
    try:
        labels = samples.labels
    except InputError as error:  # no metric of whole sets reads them
        labels = None
        yield f"labels are not used: {str(error).removeprefix(f'{samples.name}: ')}"
    if "is" in names and labels is not None and len(samples) > protocol.inception_split_size:
        mixed = label_mixing(labels, protocol.inception_split_size)
        if mixed < WELL_MIXED:
            yield (
                f"labels are {'sorted by class' if is_sorted(labels) else 'not shuffled'}: splits of "
                f"{protocol.inception_split_size} in file order hold {100 * mixed:.0f} % of the labels' entropy, so "
                "the Inception Score in file order is meaningless; shuffle the samples"
            )
    if samples.lossy and not reference.identity.get("lossy", reference.images is not None and reference.images.lossy):
        yield "samples are stored with loss (JPEG or the like), which moves every metric; store PNG or npz"
    if digest is not None and digest == reference.identity.get("data_sha256"):
        yield "samples are the very images that the reference is of: numbers are those of perfect copies"
    width = feature_width(reference, features)
    if width is not None and "fid" in names:
        yield from warnings_of_few(len(samples), reference.num_images, width, features.name)


def feature_width(reference: Reference, features: Features) -> int | None:
    """Pooled features an image, where that is known before the network runs."""
    if reference.file is not None and "mu" in reference.file:
        return int(np.prod(reference.file.headers["mu"][0], dtype=object))
    return UNSTATED_FEATURES.get(features.name, {}).get("mu")


def warnings_of_few(num_samples: int, num_reference: int | None, width: int, features: str) -> Iterator[str]:
    """Where either side has no more images than pooled features, so that its covariance has no full rank."""
    few = [
        f"{number} {side}"
        for number, side in ((num_samples, "samples"), (num_reference, "reference images"))
        if number is not None and number <= width
    ]
    if few:
        fid, kid = (of_features(QUANTITIES[name], features).label for name in ("fid", "kid"))
        yield (
            f"{' and '.join(few)} for {width} features leave a covariance without full rank: {fid} of so few images "
            f"depends on their number more than on the images; compare it at equal numbers only, or read {kid}, which "
            "has no such bias"
        )


def warnings_of_repeats(hashes: PixelHashes) -> Iterator[str]:
    """Of samples that have all passed: whether an appreciable share of them equals an earlier one, by their pixels."""
    num, different = len(hashes), len(np.unique(hashes))
    if num > 1 and different == 1:
        yield f"all {num} samples are one and the same image; look at how they were made"
    elif num - different >= MANY_REPEATS * num and different < num:
        yield (
            f"{num - different} of {num} samples ({100 * (num - different) / num:.3g} %) are pixel for pixel an "
            f"earlier one, so numbers are of {different} images and do not compare with those of {num}; look at the "
            "seeds that they were made from"
        )


def is_sorted(labels: Labels) -> bool:
    """Whether there are several classes, and they come one after the other."""
    return bool(len(labels) and labels[0] != labels[-1] and (np.diff(labels) >= 0).all())


def label_mixing(labels: Labels, split_size: int) -> float:
    """Mean share of the labels' entropy that contiguous splits hold: near 1 where shuffled, near 0 where sorted.

    1 where there is a single class. A short last split counts by its length.
    """
    whole = _entropy(labels)
    if whole == 0:
        return 1.0
    splits = [labels[start : start + split_size] for start in range(0, len(labels), split_size)]
    return float(sum(len(split) * _entropy(split) for split in splits) / (len(labels) * whole))


def _entropy(labels: Labels) -> float:
    """Of the distribution of labels, in nats."""
    counts = np.unique(labels, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
