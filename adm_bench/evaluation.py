"""Evaluation: samples against a reference, through one feature network, under one named protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adm_bench import registry
from adm_bench.errors import InputError, bad_input
from adm_bench.images.npz import NpzFile
from adm_bench.references import BATCH_SIZE, Reference, extract
from metrics.comparison import Comparison
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
    num_reference_images: int | None
    """None where the reference does not say."""


def load_features(name: str, device: torch.device) -> Features:
    """A feature network by its registered name."""
    features: Features = registry.load("features", name).load(device)
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
    expected = opened.image_shape or (height, width)
    if (height, width) != expected:
        raise InputError(
            f"{samples}: images are {height} x {width}, but the reference's are {expected[0]} x {expected[1]}"
        )
    for metric in metrics:
        if total < metric.min_images:
            raise InputError(
                f"{samples}: holds {total} images; {metric.label} needs {metric.min_images} or more: sample more"
            )
    needs = frozenset().union(*(metric.needs for metric in metrics))
    known = opened.measure(features, needs)
    measured = extract(file.batches(BATCH_SIZE), total, features, needs, f"evaluate {samples.name}")
    comparison = Comparison(samples=measured, reference=known, protocol=protocol)
    values = {}
    for metric in metrics:
        with bad_input(f"{samples} against {reference}"):
            values[metric.name] = metric.compute(comparison)
    return Evaluation(
        values=values,
        protocol=protocol,
        features=features.name,
        features_sha256=features.digest,
        num_images=total,
        num_reference_images=known.known_num_images,
    )
