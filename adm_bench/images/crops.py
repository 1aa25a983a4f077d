"""Crops exactly as ADM makes them, byte for byte for the same major version of Pillow."""

import math
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def center_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square of an RGB image, resized so that its short side is `size`: uint8 (size, size, 3)."""
    pixels = _with_short_side(image, size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def random_crop(image: Image.Image, size: int, random: Random, smallest_share: float = 0.8) -> NDArray[np.uint8]:
    """A square anywhere in an RGB image, with a side of `smallest_share` to 1 of its short one: uint8 (size, size, 3).

    What the classifiers that guide ADM were trained on. Draws the size, then the row, then the column.
    ValueError unless 0 < smallest_share <= 1.
    """
    if not 0 < smallest_share <= 1:
        raise ValueError(f"smallest_share is {smallest_share}; expected 0 < smallest_share <= 1")
    pixels = _with_short_side(image, random.randrange(size, math.ceil(size / smallest_share) + 1))
    top = random.randrange(pixels.shape[0] - size + 1)
    left = random.randrange(pixels.shape[1] - size + 1)
    return pixels[top : top + size, left : left + size]


def _with_short_side(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Halved by box filter while the short side is at least twice `side`, then resized to it with the bicubic one."""
    while min(image.size) >= 2 * side:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = image.size
    return np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
