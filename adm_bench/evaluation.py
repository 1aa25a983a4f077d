"""Evaluation: samples against a reference, through one feature network, under one named protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adm_bench import progress, registry
from adm_bench.errors import InputError, bad_input
from adm_bench.images.npz import IMAGES_KEY, NpzFile
from adm_bench.references import BATCH_SIZE, Reference, extract
from adm_bench.weights_store import find_weights, published
from metrics.protocol import EvaluationProtocol, Features, Metric

DEFAULT_METRICS = ("fid", "sfid", "is", "precision", "recall", "copied")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The numbers of one set of samples, and what they are numbers of."""

    values: dict[str, float]
    protocol: EvaluationProtocol
    features: str
    features_sha256: str
    num_images: int
    num_reference_images: int


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


def evaluate(reference: Path, samples: Path, features: Features, metrics: Sequence[Metric]) -> Evaluation:
    """Measure a file of samples; every check that can be made before the network runs is made first."""
    protocol = features.protocol
    file = NpzFile(samples)
    total, height, width = file.image_shape()
    opened = Reference.open(reference)
    size = opened.identity.get("image_size") or (opened.file.image_shape()[1] if IMAGES_KEY in opened.file else height)
    if (height, width) != (size, size):
        raise InputError(f"{samples}: images are {height} x {width}, but the reference's are {size} x {size}")
    for metric in metrics:
        if total < metric.min_images:
            raise InputError(
                f"{samples}: holds {total} images; {metric.label} needs {metric.min_images} or more: sample more"
            )
    needs = frozenset().union(*(metric.needs for metric in metrics))
    known = opened.measure(features, needs)
    measured = extract(file.batches(BATCH_SIZE), total, features, needs, f"evaluate {samples.name}")
    values = {}
    for metric in metrics:
        with bad_input(f"{samples} against {reference}"):
            values[metric.name] = metric.compute(measured, known, protocol)
    return Evaluation(
        values=values,
        protocol=protocol,
        features=features.name,
        features_sha256=features.digest,
        num_images=total,
        num_reference_images=known.num_images,
    )
