"""Random numbers that belong to an image, and to nothing else."""

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

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
    STAND_INS = 8


def mix_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """One 63-bit seed for the index-th user of a stream, by NumPy's SeedSequence.

    Users of one stream have different lower 32 bits, up to 2^32 of them: those are all that torch's generator on CPUs
    (Mersenne Twister) takes, and of 50,000 random ones two would be equal with a chance of a quarter.
    """
    stride, offset = _progression(seed, stream)
    upper = int(np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint32)[0]) >> 1
    return upper << 32 | (index * stride + offset) % 2**32


@lru_cache
def _progression(seed: int, stream: Stream) -> tuple[int, int]:
    """An odd stride, by which an index passes through all numbers of 32 bits, and where it begins."""
    stride, offset = np.random.SeedSequence((seed, stream)).generate_state(2, np.uint32).tolist()
    return stride | 1, offset


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


def training_draws(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What training draws for images: uniforms (B,) float64 in [0, 1), on the CPU, and noise (B, *shape) float32.

    Row i depends on seed i, and on the kind of device that the noise is drawn on, alone.
    """
    uniforms = torch.empty(len(seeds), dtype=torch.float64)
    noise = torch.empty(len(seeds), *shape, device=device)
    host = torch.Generator()
    own = host if device.type == "cpu" else torch.Generator(device)
    for seed, uniform, row in zip(seeds, uniforms, noise, strict=True):
        host.manual_seed(seed)
        torch.rand((), generator=host, out=uniform)
        if own is not host:
            own.manual_seed(seed)
        torch.randn(shape, generator=own, out=row)
    return uniforms, noise
