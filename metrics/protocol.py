"""What a metric, a feature network and an evaluation protocol are, for whoever calls or adds one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metrics.statistics import FeatureBatch, FeatureSet

__all__ = ["EvaluationProtocol", "FeatureBatch", "FeatureNetwork", "Features", "Metric"]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """All choices that change a number: two values compare only under one name and one version."""

    name: str
    version: int
    inception_split_size: int = 5000
    neighbours: int = 3

    def __post_init__(self) -> None:
        for field in ("version", "inception_split_size", "neighbours"):
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"{field} of evaluation protocol {self.name!r} is {value}; it is at least 1")


class Features(Protocol):
    """A feature network, ready on its device."""

    @property
    def name(self) -> str:
        """The name it is registered under."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hexadecimal: numbers are comparable only where it is the same."""

    @property
    def protocol(self) -> EvaluationProtocol:
        """The protocol that its numbers are reported under."""

    @property
    def device(self) -> torch.device:
        """Where the network runs and where the features it returns lie."""

    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return the features of uint8 images [B, 3, H, W] on any device; other images are a ValueError.

        What an image gives does not depend, beyond rounding, on the images that share its batch.
        """


class FeatureNetwork(Protocol):
    """What is registered under a feature network's name: a class, say, that loads it."""

    @property
    def weights_name(self) -> str | None:
        """The published weights that it needs, by the name they are fetched under; None where it brings its own."""

    def load(self, device: torch.device, weights: Path | None = None) -> Features:
        """Load the network, from a file of weights where one is given; a ValueError says what is wrong with it."""


class Metric(Protocol):
    """A stateless object that turns two feature sets into one number."""

    @property
    def name(self) -> str:
        """The name in records and on the command line, such as "fid"."""

    @property
    def label(self) -> str:
        """The name in tables and figures, such as "FID"."""

    @property
    def description(self) -> str:
        """What it measures, in one line without a full stop."""

    @property
    def higher_is_better(self) -> bool:
        """The direction of improvement."""

    @property
    def needs(self) -> frozenset[str]:
        """The members of `metrics.statistics.NEEDS` that its feature sets must hold."""

    @property
    def min_images(self) -> int:
        """Images that each set it reads must hold, with the protocol's default settings."""

    def compute(self, samples: FeatureSet, reference: FeatureSet, protocol: EvaluationProtocol) -> float:
        """Return the value for `samples` against `reference`; a ValueError says what they lack."""
