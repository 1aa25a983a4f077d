"""The embedded data set: scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998)."""

import hashlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from adm_bench.images.dataset import ArrayDataset

NATIVE_SIZE = 8
SIZES = (8, 16)
BRIGHTEST = 16


def open_digits(image_size: int | None = None) -> ArrayDataset:
    """Handwritten digits as grey RGB, ten classes, real images; 8x8, or resampled to 16x16.

    ValueError for another size.
    """
    size = image_size or NATIVE_SIZE
    if size not in SIZES:
        raise ValueError(f"image size {size} is not offered; expected one of {', '.join(map(str, SIZES))}")
    data = load_digits()
    grey = np.rint(data.images * 255 / BRIGHTEST).astype(np.uint8)
    if size != NATIVE_SIZE:
        grey = np.stack([np.asarray(Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC)) for g in grey])
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = data.target.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return ArrayDataset(name="digits", images=images, labels=labels, num_classes=10, source_digest=digest)
