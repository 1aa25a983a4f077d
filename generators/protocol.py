"""What a generator is to the harness. Nothing is inherited: a plug-in is any class of these shapes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

TrainingSet = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]
"""Starts one pass over the training images: batches of (uint8 NCHW, int64 labels or None)."""


def idle() -> None:
    """Nobody watches the progress."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a generator may be built from; each takes what it needs and refuses what it lacks (ValueError)."""

    image_size: int | None
    """Side of the images asked for, in pixels; None where the weights decide."""
    num_classes: int | None
    """Classes to be conditioned on, or None for unlabelled images."""
    device: torch.device
    training_set: TrainingSet | None = None
    weights: Path | None = None
    """A file of trained weights, already checked to exist."""


@runtime_checkable
class Generator(Protocol):
    """Turns seeds and labels into images."""

    Options: ClassVar[type[Any]]
    """Frozen dataclass of the settings that a user may choose."""
    image_size: int
    num_classes: int | None
    network_evaluations: int
    """Evaluations of the network that one image costs; 0 where there is no network."""

    @classmethod
    def build(cls, options: Any, ingredients: Ingredients) -> "Generator":
        """Make it ready to sample; ValueError, in one line, where an ingredient is missing or does not fit."""

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = ...) -> Tensor:
        """Image i from seed i and label i (B,) alone: uint8 (B, 3, image_size, image_size), on any device.

        `evaluated` is to be called after each of the batch's network evaluations, for progress.
        FloatingPointError where the images are not finite.
        """

    def evaluate_once(self) -> None:
        """Do, for one image, the work of one network evaluation, or all the work where there is no network.

        Its cost is counted, and multiplied by `network_evaluations`.
        """


@runtime_checkable
class Upsampler(Protocol):
    """Turns low-resolution images into high-resolution ones: a generator that starts from another's samples."""

    Options: ClassVar[type[Any]]
    """Frozen dataclass of the settings that a user may choose."""
    image_size: int
    base_size: int
    """Side of the images that it enlarges."""
    num_classes: int | None
    network_evaluations: int
    """Evaluations of the network that one image costs; 0 where there is no network."""

    @classmethod
    def build(cls, options: Any, ingredients: Ingredients) -> "Upsampler":
        """See `Generator`."""

    def upsample(
        self, images: Tensor, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = ...
    ) -> Tensor:
        """uint8 (B, 3, base_size, base_size) to uint8 (B, 3, image_size, image_size), on any device.

        Image i depends on image i, seed i and label i (B,) alone; for the rest see `Generator.sample`.
        """

    def evaluate_once(self) -> None:
        """See `Generator`."""


@runtime_checkable
class Described(Protocol):
    """A generator that can say how it will sample: what its options leave open included."""

    def settings(self) -> dict[str, Any]:
        """Every setting, resolved, as plain data."""


class Parallel(Protocol):
    """The processes that train one network together, as a trainer sees them; a single process is one too.

    Methods that say so are collective: every process calls them, in one order.
    """

    rank: int
    size: int

    def wrap(self, network: nn.Module) -> nn.Module:
        """What to call instead of the network: gradients are means over all processes after `backward`. Collective.

        Called once, before an optimizer is made: the network's parameters may become shards of what they were.
        """

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Inside, `backward` adds to this process's gradients alone; the next one outside averages their sum."""

    def gather(self, values: Tensor) -> Tensor:
        """(N, ...) of each process, joined in the order of ranks: (size * N, ...), the same everywhere. Collective."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, or what is kept beside one, as it is without shards. Collective."""

    def copy(self, whole: Tensor, into: Tensor) -> None:
        """Fill a parameter, or what is kept beside one, with this process's share of a whole tensor. Collective."""


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """A process's share of the images of one step."""

    step: int
    """Counted from 0."""
    images: Tensor
    """uint8 (B, 3, H, W), cropped and flipped."""
    labels: Tensor | None
    """int64 (B,)."""
    seeds: Sequence[int]
    """One an image: the timestep and the noise of an image are drawn from its seed alone, on whatever process."""


class Mean(NamedTuple):
    """A mean that more can be added to."""

    total: float
    number: float


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step was, the same on all processes."""

    means: Mapping[str, Mean]
    """Over the images of all processes: `loss` among them; a log adds up several steps."""
    values: Mapping[str, float]
    """As they are at this step: `learning_rate`, `grad_norm`."""
    skipped: str | None = None
    """Why nothing was learned (a loss or gradients that are not finite), or None."""


@runtime_checkable
class Trainable(Protocol):
    """Learns from batches, and can be put away and taken up again exactly where it was."""

    Config: ClassVar[type[Any]]
    """Frozen dataclass of everything that decides the result; its `training` part has the loop's share."""

    def __init__(self, config: Any, device: torch.device, precision: str, parallel: Parallel = ...) -> None:
        """Start afresh: weights are drawn from torch's default generator, precision is fp32, bf16 or fp16."""

    def train_step(self, batch: TrainingBatch) -> StepReport:
        """Learn from a batch. Collective.

        Random numbers that belong to no image (dropout) come from torch's default generator, which the loop seeds for
        every step and process.
        """

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that `load_state` needs to go on bit for bit, as named groups of named whole tensors. Collective."""

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from what `state` gave, on any number of processes; ValueError where names or shapes differ."""

    def weights(self) -> dict[str, Tensor]:
        """What sampling needs, whole and float32. Collective."""


@runtime_checkable
class Validated(Protocol):
    """A trainer that can be judged on images that it does not learn from."""

    def validate(self, batch: TrainingBatch) -> Mapping[str, Mean]:
        """What a log shows of the batch of all processes; nothing is learned or drawn beyond the seeds. Collective."""
