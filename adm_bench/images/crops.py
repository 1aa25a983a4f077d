"""Crops exactly as ADM makes them, byte for byte for the same major version of Pillow."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def center_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square of an RGB image, resized to `size`: uint8 (size, size, 3).

    Halved by box filter while the short side is at least twice `size`, then resized with the bicubic
    filter so that the short side is `size`, then cut.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = image.size
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
