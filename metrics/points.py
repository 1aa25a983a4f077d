"""A set of feature rows made ready for blocked products: the rows as they are multiplied, and how far off that is."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.half import half_squared_norms

Rows = NDArray[np.floating]
"""One row an image, one column a feature."""

CHUNK_ROWS = 64
"""Rows read at a time: few enough to stay in the cache."""

LARGEST_NORM = 1e37
"""Squared norms stay below it, so that no float32 distance overflows."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Rows [n, D] on the host, with what blocks of distances need of each, [n] on the CPU.

    `in_half` says that rows are rounded to half before they are multiplied. `norms` are squared, of rows as
    multiplied; `plain_norms` of rows rounded to float32 only; `half_norms` the evaluator's (0 where none is asked
    for). `roundings`, float64, are the distance between a row and what is multiplied in its place.
    """

    rows: Rows
    device: torch.device
    in_half: bool
    norms: Tensor
    plain_norms: Tensor
    half_norms: Tensor
    roundings: Tensor

    @classmethod
    def of(cls, rows: Rows, *, device: torch.device | str = "cpu", in_half: bool = False) -> "Points":
        """Read the rows once, some at a time; ValueError where they are no matrix or too large for float32."""
        if rows.ndim != 2:
            raise ValueError(f"found features of shape {rows.shape}; expected [images, features]")
        norms, plain_norms, half_norms = (torch.zeros(len(rows)) for _ in range(3))
        roundings = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(rows), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            given = torch.from_numpy(np.array(rows[some]))
            plain = given.float()
            norms[some] = plain_norms[some] = plain.double().square_().sum(dim=1).float()
            off = torch.zeros(len(plain), dtype=torch.float64)
            if given.dtype != torch.float32:
                off = (given.double() - plain).square_().sum(dim=1)
            if in_half:
                # A row that has no half is never multiplied as one: its block is computed again.
                used = plain.half().float()
                used = torch.where(used.isfinite().all(dim=1, keepdim=True), used, plain)
                half_norms[some] = half_squared_norms(plain)
                norms[some] = used.double().square_().sum(dim=1).float()
                off = torch.maximum(off, used.double().sub_(given).square_().sum(dim=1))
            roundings[some] = off.sqrt_()
        if len(rows) and not (plain_norms.max() < LARGEST_NORM):
            raise ValueError(
                f"found features whose squared norm is {float(plain_norms.max()):g}; distances take at most "
                f"{LARGEST_NORM:g}: check the feature network"
            )
        return cls(
            rows=rows,
            device=torch.device(device),
            in_half=in_half,
            norms=norms,
            plain_norms=plain_norms,
            half_norms=half_norms,
            roundings=roundings,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Features a row."""
        return int(self.rows.shape[1])

    def largest_norm(self, some: slice) -> float:
        """Return the largest squared norm of those rows, exact or the evaluator's; infinite where a half overflows."""
        return max(float(self.half_norms[some].max()), float(self.plain_norms[some].max()))

    def block(self, some: slice, *, in_half: bool) -> Tensor:
        """Return those rows in float32 on the device, rounded to half if asked for."""
        # A copy: rows may be a read-only map of a file.
        values = torch.from_numpy(np.array(self.rows[some], np.float32)).to(self.device)
        return values.half().float() if in_half else values
