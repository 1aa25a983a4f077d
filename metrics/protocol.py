"""What a metric, a feature network and an evaluation protocol are, for whoever calls or adds one."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.statistics import FeatureBatch

__all__ = ["Comparison", "EvaluationProtocol", "FeatureBatch", "FeatureNetwork", "Features", "Metric"]


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

    @property
    def layers(self) -> frozenset[str]:
        """Those members of its `FeatureBatch` that are not None: "pool" and perhaps "spatial" and "logits"."""

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

    def compute(self, comparison: Comparison) -> float:
        """Return the value of `comparison.samples` against its reference; a ValueError says what they lack."""
