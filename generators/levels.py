"""Between the 256 levels of an image and the model's range."""

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["truncate", "nearest"]


def from_uint8(levels: Tensor) -> Tensor:
    """256 levels to float32 in [-1, 1]."""
    return levels.float() / 127.5 - 1


def to_uint8(images: Tensor, rounding: Rounding) -> Tensor:
    """Images in [-1, 1] to 8 bits: level floor((x + 1) * 127.5) as ADM's release does, or the nearest level."""
    levels = (images.float() + 1) * 127.5
    if rounding == "nearest":
        levels = levels.round()
    return levels.clamp(0, 255).to(torch.uint8)
