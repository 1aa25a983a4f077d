"""Random numbers that belong to an image, and to nothing else."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What random numbers are for; the same seed gives each its own, independent ones."""

    WEIGHTS = 1
    TRAINING_STEPS = 2
    TRAINING_ORDER = 3
    IMAGES = 4
    LABELS = 5
    TRAINING_IMAGES = 6
    AUGMENTATION = 7


def mix_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """One 63-bit seed for the index-th user of a stream, by NumPy's SeedSequence."""
    return int(np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint64)[0] >> 1)


class SeededNoise:
    """Standard normal noise in which row i depends on seed i alone: not on the batch, nor on the device.

    Every call gives the next draw, (len(seeds), *shape) float32. It is drawn on the CPU, where the
    generator gives the same numbers whatever the accelerator, and moved.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape = shape
        self.device = device

    def __call__(self) -> Tensor:
        """The next draw."""
        out = torch.empty(len(self.generators), *self.shape, pin_memory=self.device.type == "cuda")
        for row, generator in zip(out, self.generators, strict=True):
            torch.randn(self.shape, generator=generator, out=row)
        return out.to(self.device, non_blocking=True)
