"""Noise schedules and respacing, in float64 (Nichol & Dhariwal 2021, sections 3.2 and 4)."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScheduleName = Literal["linear", "cosine"]
Respacing = int | Sequence[int] | str | None
"""Which steps are kept: a number of them, numbers for equal sections, a text as the field writes it, or all."""
SHORTEST_LINEAR_SCHEDULE = 21  # below, the last beta reaches 1 and the signal vanishes before the end

Array = NDArray[np.float64]


def betas(name: ScheduleName, num_timesteps: int) -> Array:
    """Variances of the noise added at each of `num_timesteps` steps, each in (0, 1].

    `linear` is Ho et al.'s, stretched from its 1000 steps; `cosine` is Nichol & Dhariwal's equation 17.
    ValueError where the schedule has too few steps to be one.
    """
    if name == "linear":
        if num_timesteps < SHORTEST_LINEAR_SCHEDULE:
            raise ValueError(
                f"a linear schedule of {num_timesteps} steps is too short; expected "
                f"{SHORTEST_LINEAR_SCHEDULE} or more, or schedule 'cosine'"
            )
        stretch = 1000 / num_timesteps
        return np.linspace(1e-4 * stretch, 0.02 * stretch, num_timesteps, dtype=np.float64)
    if num_timesteps < 2:
        raise ValueError(f"a schedule of {num_timesteps} steps is too short; expected 2 or more")

    def signal(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    edges = [step / num_timesteps for step in range(num_timesteps + 1)]
    pairs = itertools.pairwise(edges)
    return np.array([min(1 - signal(after) / signal(before), 0.999) for before, after in pairs])


def kept_timesteps(num_timesteps: int, respacing: Respacing) -> tuple[int, ...]:
    """The timesteps that a respacing keeps, ascending.

    Texts are those of guided-diffusion's timestep_respacing: "250", "90,60,60,20,20", "ddim25", and "" for all.
    ValueError where there are no such steps, with the nearest number that there is, or where it has another form.
    """
    if respacing is None or respacing == "":
        return tuple(range(num_timesteps))
    if isinstance(respacing, int):
        if respacing < 2:
            raise ValueError(f"cannot keep {respacing} of the {num_timesteps} steps; the nearest possible is 2")
        return section_timesteps(num_timesteps, (respacing,))
    if isinstance(respacing, str):
        text = "".join(respacing.split())
        if re.fullmatch(r"ddim-?\d+", text):
            return ddim_timesteps(num_timesteps, int(text.removeprefix("ddim")))
        if re.fullmatch(r"\d+(,\d+)*", text):
            return section_timesteps(num_timesteps, [int(count) for count in text.split(",")])
    elif isinstance(respacing, Sequence) and all(isinstance(count, int) for count in respacing):
        return section_timesteps(num_timesteps, [*respacing])
    raise ValueError(
        f"respacing {respacing!r} has none of the forms '250' (evenly), '90,60,60,20,20' (in equal sections) "
        "and 'ddim25' (a stride)"
    )


def ddim_timesteps(num_timesteps: int, num_kept: int) -> tuple[int, ...]:
    """Every stride-th step from 0, with the smallest stride that keeps exactly `num_kept` of them.

    So the last step kept may lie well before the end (960 of 1000 for 25). ValueError, with the nearest
    numbers that do work, where no integer stride keeps that many.
    """
    possible = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps - 1, 0, -1)}
    if num_kept not in possible:
        near = sorted(sorted(possible, key=lambda kept: abs(kept - num_kept))[:2])
        raise ValueError(
            f"ddim cannot keep {num_kept} of {num_timesteps} steps with an integer stride; "
            f"the nearest it can are {' and '.join(map(str, near))}"
        )
    return tuple(range(0, num_timesteps, possible[num_kept]))


def section_timesteps(num_timesteps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Cut the steps into equal sections and keep `counts` evenly spaced steps of each, ends included.

    The first sections are one longer where the division leaves a rest. ValueError where a section is
    shorter than its count, or there is none.
    """
    if not counts:
        raise ValueError("a respacing into no sections keeps no steps; expected one number of steps or more")
    size, rest = divmod(num_timesteps, len(counts))
    start, kept = 0, []
    for index, count in enumerate(counts):
        length = size + (index < rest)
        if not 0 <= count <= length:
            place = f" in section {index + 1} of {len(counts)}" if len(counts) > 1 else ""
            nearest = min(max(count, 0), length)
            raise ValueError(f"cannot keep {count} of the {length} steps{place}; the nearest possible is {nearest}")
        stride = 1.0 if count <= 1 else (length - 1) / (count - 1)
        position = 0.0  # summed, not multiplied: the reference's rounding of ties depends on it
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return tuple(kept)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The kept timesteps of a noise schedule and the noise between them."""

    timesteps: tuple[int, ...]
    """Original index of each kept step, which is what the network is told; ascending."""
    betas: Array
    """Variance added on the way from one kept step to the next, (len(timesteps),) float64."""

    @classmethod
    def respaced(cls, all_betas: Array, timesteps: Sequence[int]) -> "Schedule":
        """Keep only `timesteps`, so that the noise level at each of them stays what it was.

        ValueError where fewer than two steps are kept, or others than there are.
        """
        kept = tuple(sorted(set(timesteps)))
        if len(kept) < 2:
            raise ValueError(f"{len(kept)} of the {len(all_betas)} steps kept is too few; expected 2 or more")
        if kept[0] < 0 or kept[-1] >= len(all_betas):
            raise ValueError(f"the timesteps run from {kept[0]} to {kept[-1]}; expected 0 to {len(all_betas) - 1}")
        if len(kept) == len(all_betas):
            return cls(timesteps=kept, betas=all_betas)
        signal = np.cumprod(1 - all_betas)[list(kept)]
        return cls(timesteps=kept, betas=1 - signal / np.append(1.0, signal[:-1]))
