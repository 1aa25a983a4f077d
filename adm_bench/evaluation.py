"""Evaluation: samples against a reference, through one feature network, under one named protocol."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from adm_bench import progress, registry
from adm_bench.checks import check_samples, feature_width, require_labels, warnings_of_few, warnings_of_repeats
from adm_bench.errors import InputError, bad_input
from adm_bench.extraction import Extraction
from adm_bench.images.dataset import ImageSet, Labels, PixelHashes
from adm_bench.references import Reference
from adm_bench.weights_store import find_weights, published
from metrics.comparison import Comparison
from metrics.evaluation_protocol import PrPrecision
from metrics.per_class import ClassDistance, class_distances
from metrics.protocol import EvaluationProtocol, Features, Metric
from metrics.uncertainty import INTERVALS, Interval
from reports.quantities import QUANTITIES, of_features

DEFAULT_METRICS = ("fid", "sfid", "is", "precision", "recall", "copied")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The numbers of one set of samples, and what they are numbers of."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    protocol: EvaluationProtocol
    features: str
    features_sha256: str
    num_images: int
    num_reference_images: int | None
    """Behind its statistics; None where the reference does not say."""
    num_reference_rows: int
    """Images of the reference that were at hand: what precision, recall and their like are of."""
    samples_sha256: str | None
    """None where it cannot be known beforehand."""
    warnings: tuple[str, ...]
    classes: tuple[ClassDistance, ...] = ()
    """FID and KID class by class, where that was asked for."""

    @property
    def class_table(self) -> Iterator[str]:
        """FID and KID class by class as lines of text, with one that explains their mark; nothing without classes."""
        fid, kid = (of_features(QUANTITIES[name], self.features).label for name in ("fid", "kid"))
        if self.classes:
            yield f"{'class':>7}{'n':>9}{'n_ref':>9}{fid:>14}  {kid:>14}"
        for each in self.classes:
            mark = "*" if each.rank_deficient else " "
            counts = f"{each.num_samples:>9}{each.num_reference_images:>9}"
            yield f"{each.label:>7}{counts}{each.fid:>14.6g}{mark} {each.kid:>14.6g}"
        if any(each.rank_deficient for each in self.classes):
            yield (
                f"* no more images than features on a side: this {fid} depends on n and n_ref more than on the images; "
                f"compare it where both are equal, or read {kid}, which has no such bias"
            )

    def label(self, metric: Metric) -> str:
        """What a metric is called with the features that it was measured in."""
        known = QUANTITIES.get(metric.name)
        return metric.label if known is None else of_features(known, self.features).label

    @property
    def headline(self) -> str:
        """Everything that the numbers compare by, in one line."""
        protocol, against = self.protocol, self.num_reference_images or "an unknown number"
        return (
            f"protocol {protocol.name} v{protocol.version}, features {self.features} {self.features_sha256[:12]}, "
            f"{self.num_images} samples against {against}"
        )


def load_features(name: str, device: torch.device, weights: Path | None = None) -> Features:
    """A feature network by its registered name, with the weights given, or those it is known to need.

    InputError where they are not here, say how to get them, or are of another network. What is not the published
    file is said on stderr: numbers compare only where the weights are the same.
    """
    network = registry.load("features", name)
    needed: str | None = getattr(network, "weights_name", None)
    path = weights if needed is None else find_weights(needed, weights)
    with bad_input():
        features: Features = network.load(device) if path is None else network.load(device, path)
    if needed is not None and features.digest != published(needed).sha256:
        progress.say(f"note: {path} is not the published file (sha256 {published(needed).sha256[:12]}...)")
    return features


def load_metrics(names: Sequence[str]) -> list[Metric]:
    """Metrics by their registered names; InputError for an unknown one, one named twice, or none."""
    if not names or len(set(names)) < len(names):
        raise InputError(f"metrics are {', '.join(names) or 'none'}; expected one or more, each once")
    return [registry.load("metrics", name) for name in names]


def given_by(features: Features) -> frozenset[str]:
    """The members of `metrics.statistics.NEEDS` that a network's features can fill."""
    layers = {"pool": {"pool_moments", "pool_rows"}, "spatial": {"spatial_moments"}, "logits": {"logit_rows"}}
    return frozenset[str]().union(*(layers[layer] for layer in features.layers))


def default_metrics(reference: Reference, samples: ImageSet, features: Features) -> list[str]:
    """The metrics that are measured unless others are named: those that reference and features can serve.

    Where the Inception Score depends on the order of the samples, the one of a random order stands beside it.
    """
    served = given_by(features) & (reference.serves | {"logit_rows"})
    names = [metric.name for metric in load_metrics(DEFAULT_METRICS) if metric.needs <= served]
    if "is" in names and len(samples) > features.protocol.inception_split_size:
        names.insert(names.index("is") + 1, "is_shuffled")
    return names


def evaluate(
    reference: Reference,
    samples: ImageSet,
    extraction: Extraction,
    metrics: Sequence[Metric],
    *,
    pr_precision: PrPrecision | None = None,
    with_intervals: bool = False,
    per_class: bool = False,
) -> Evaluation | None:
    """Measure samples; every check that can be made before a network runs is made first, and warnings are said.

    `pr_precision` None is the protocol's own; another is another protocol, by its name too. `with_intervals` adds the
    uncertainty of those numbers that `metrics.uncertainty` knows, `per_class` FID and KID of every class that both
    sides have, for which both need labels. None on other processes than the first.
    """
    features = extraction.features
    checks = check_samples(samples, reference, metrics, features)
    if extraction.ranks.is_first:
        _say(samples, checks.warnings)
    needs = frozenset[str]().union(*(metric.needs for metric in metrics))
    labels = require_labels(samples, reference) if per_class else None
    if per_class:
        needs |= {"pool_rows"}
    known = reference.measure(extraction, needs)
    if with_intervals:
        needs |= {"pool_rows"}
    hashes: list[PixelHashes] = []
    measured = extraction.measure(samples, needs, f"evaluate {Path(samples.name).name}", hashes)
    if not extraction.ranks.is_first:
        return None
    late = list(warnings_of_repeats(np.concatenate(hashes)))
    if feature_width(reference, features) is None and "fid" in {metric.name for metric in metrics}:
        late += warnings_of_few(len(samples), reference.num_images, measured.pool.mean.size, features.name)
    told = [*checks.warnings, *_say(samples, late)]
    protocol = with_pr_precision(features.protocol, pr_precision)
    comparison = Comparison(samples=measured, reference=known, protocol=protocol)
    values, intervals = {}, {}
    for metric in metrics:
        with bad_input(f"{samples.name} against {reference.path}"):
            values[metric.name] = metric.compute(comparison)
        if with_intervals and metric.name in INTERVALS:
            try:
                intervals[metric.name] = INTERVALS[metric.name](comparison)
            except ValueError as error:  # the number itself stands without it
                progress.say(f"no interval of {metric.label}: {error}")
    return Evaluation(
        values=values,
        intervals=intervals,
        protocol=protocol,
        features=features.name,
        features_sha256=features.digest,
        num_images=len(samples),
        num_reference_images=reference.num_images,
        num_reference_rows=len(known.pool_rows),
        samples_sha256=checks.digest,
        warnings=tuple(told),
        classes=() if labels is None else _by_class(comparison, *labels, f"{samples.name} against {reference.path}"),
    )


def _say(samples: ImageSet, warnings: Iterable[str]) -> list[str]:
    said = list(warnings)
    for warning in said:
        progress.say(f"warning: {samples.name}: {warning}")
    return said


def _by_class(comparison: Comparison, ours: Labels, theirs: Labels, title: str) -> tuple[ClassDistance, ...]:
    with progress.stage("class by class", len(np.intersect1d(ours, theirs)), "classes") as advance, bad_input(title):
        return tuple(
            class_distances(
                comparison.samples.pool_rows,
                ours,
                comparison.reference.pool_rows,
                theirs,
                device=comparison.device,
                compared=lambda: advance(1),
            )
        )


def with_pr_precision(protocol: EvaluationProtocol, precision: PrPrecision | None) -> EvaluationProtocol:
    """The protocol with precision and recall in that arithmetic, and with a name of its own where that changes it."""
    if precision in (None, protocol.pr_precision):
        return protocol
    return replace(protocol, name=f"{protocol.name}-{precision}", pr_precision=precision)
