"""What feature networks ask of images."""

import torch
from torch import Tensor


def require_rgb(images: Tensor) -> None:
    """Do nothing for uint8 [B, 3, H, W] with at least one image and pixel; a ValueError for anything else."""
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise ValueError(f"found images of type {images.dtype}; expected torch.uint8 with values 0 to 255")
    if images.ndim != 4 or shape[1] != 3 or 0 in shape:
        raise ValueError(f"found images of shape {shape}; expected [batch, 3, height, width]")
