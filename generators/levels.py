"""From the model's range to the 256 levels of an image."""

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["truncate", "nearest"]


def to_uint8(images: Tensor, rounding: Rounding) -> Tensor:
    """Images in [-1, 1] to 8 bits: level floor((x + 1) * 127.5) as ADM's release does, or the nearest level."""
    levels = (images.float() + 1) * 127.5
    if rounding == "nearest":
        levels = levels.round()
    return levels.clamp(0, 255).to(torch.uint8)
