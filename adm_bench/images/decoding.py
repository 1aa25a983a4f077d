"""Encoded images become pixels: what is read, what is refused, and how much memory a file may ask for."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import PIL
from PIL import Image

from adm_bench.images.crops import center_crop
from adm_bench.images.dataset import CropFunction, Images

SUFFIXES = {".png": False, ".jpg": True, ".jpeg": True, ".gif": False, ".bmp": False, ".webp": True}
"""File endings that are read, and whether they lose detail."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Whatever a file's name says, nothing else is tried: some of Pillow's other readers start programs."""
FIRST_BYTES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
"""What files of images begin with, of those formats whose beginning is no text's."""
NO_IMAGES = {".txt", ".json", ".csv", ".xml", ".npz", ".npy"}
"""Endings of files that stand beside images and are not looked into."""
LARGEST_IMAGE_PIXELS = 2**26
"""8192 x 8192. What a header declares is checked before memory is taken for it."""
LARGEST_FILE_BYTES = 2**28
PNG_BIT_DEPTH = 24
"""The byte of a PNG that says how many bits a channel has: after signature, length, "IHDR", width and height."""
DEEP_MODES = ("I", "F")
KINDS_OF_MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with transparency",
    "P": "an image with a palette",
    "RGBA": "RGB with transparency (RGBA)",
    "CMYK": "CMYK",
}


class UnreadableImageError(ValueError):
    """The content is no image that can be decoded."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to images before they are measured or trained on."""

    size: int | None = None
    """ADM's centre crop to this side; None takes images as they are, all of one size."""
    convert: bool = False
    """Make RGB of 8 bits of greyscale, palettes, transparency (which is dropped) and RGB of 16 bits, as Pillow does;
    False refuses them."""

    def describe(self) -> dict[str, Any]:
        """As plain data; Pillow is named where it resizes."""
        crop = {} if self.size is None else {"center_crop": self.size, "pillow": PIL.__version__}
        return crop | ({"convert": "RGB"} if self.convert else {})


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an encoded image declares."""

    width: int
    height: int
    mode: str
    """Pillow's: RGB, L (greyscale), P (palette), RGBA."""
    is_deep: bool
    """A PNG of 16 bits a channel, of which Pillow keeps the upper 8 and, for RGB, does not say so in its mode."""
    format: str
    lossy: bool


def has_image_name(name: str) -> bool:
    """Whether a "/"-separated name is that of an image, of which no part is hidden."""
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in SUFFIXES and not any(map(is_hidden, name.split("/")))


def may_be_image(name: str) -> bool:
    """Whether a "/"-separated name, neither hidden nor an image's, leaves open what the file is."""
    path = PurePosixPath(name)
    return path.suffix.lower() not in {*SUFFIXES, *NO_IMAGES} and not any(map(is_hidden, path.parts))


def begins_as_image(content: bytes) -> bool:
    """Whether the first 8 bytes, or more, are those of an image."""
    return content.startswith(FIRST_BYTES)


def is_hidden(part: str) -> bool:
    """Whether a part of a name is of what programs leave behind: notebooks' checkpoints, macOS's shadows."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def read_header(content: bytes) -> Header:
    """What an encoded image declares, without decoding it; UnreadableImageError."""
    return _header(_opened(content), content)


def _header(image: Image.Image, content: bytes) -> Header:
    return Header(
        width=image.width,
        height=image.height,
        mode=image.mode,
        is_deep=image.format == "PNG" and content[PNG_BIT_DEPTH : PNG_BIT_DEPTH + 1] == b"\x10",
        format=str(image.format),
        lossy=image.format == "JPEG" or (image.format == "WEBP" and content[12:16] != b"VP8L"),
    )


def decode(content: bytes, preparation: Preparation, crop: CropFunction | None = None) -> Images:
    """Pixels of an encoded image: uint8 (H, W, 3); `crop` replaces the centre crop of the preparation.

    UnreadableImageError where it is damaged or too large, another ValueError where it is not RGB and
    conversion is not asked for, or has more than 8 bits a channel; of RGB of 16 bits, conversion keeps the upper 8.
    """
    image = _opened(content)
    require_taken(_header(image, content), preparation)
    try:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        # A copy: what Pillow decodes into may be shared, and is not writable.
        if crop is not None:
            return crop(rgb)
        return np.array(rgb) if preparation.size is None else center_crop(rgb, preparation.size)
    except MemoryError:  # no fault of the image, which would be passed over
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise _unreadable(error) from error


def require_taken(header: Header, preparation: Preparation) -> None:
    """ValueError where `decode` would refuse an image for what it declares."""
    mode = header.mode
    if mode.partition(";")[0] in DEEP_MODES:
        raise ValueError(f"has more than 8 bits a channel (Pillow's mode {mode}); expected RGB of 8: convert it first")
    if header.is_deep and not preparation.convert:
        raise ValueError(
            "has 16 bits a channel; expected RGB of 8: convert it, or ask for conversion (--convert), which drops the "
            "lower 8"
        )
    if mode != "RGB" and not preparation.convert:
        raise ValueError(
            f"is {KINDS_OF_MODES.get(mode, mode)}; expected RGB: convert it, or ask for conversion (--convert)"
        )


def _opened(content: bytes) -> Image.Image:
    """An image whose header is read; UnreadableImageError where there is none, or where it declares too much."""
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except Exception as error:  # as in `decode`
        raise _unreadable(error) from error
    if image.width * image.height > LARGEST_IMAGE_PIXELS:
        raise UnreadableImageError(
            f"declares {image.width} x {image.height} pixels; expected at most {LARGEST_IMAGE_PIXELS} in all"
        )
    return image


def _unreadable(error: Exception) -> UnreadableImageError:
    said = "no image, or damaged" if isinstance(error, PIL.UnidentifiedImageError) else " ".join(str(error).split())
    said = said or type(error).__name__
    return UnreadableImageError(f"not a readable image ({said}); mend or remove it, or leave it out (--skip-bad)")
