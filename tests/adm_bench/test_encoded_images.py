"""Images of other modes than RGB: refused, or converted where that is asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images.sources import open_image_set


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", "is greyscale"),
        ("RGBA", "transparency"),
        ("P", "palette"),
        ("CMYK", "CMYK"),
        ("1", "black and white"),
        ("I;16", "more than 8 bits"),
    ],
)
def test_what_is_not_rgb_is_refused_unless_conversion_is_asked_for(mode: str, expected: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 6), (10, 200, 30))
    image = Image.new("I;16", (6, 6)) if mode == "I;16" else image.convert(mode)
    Image.new("RGB", (6, 6)).save(tmp_path / "a.png")
    image.save(tmp_path / f"b.{'jpg' if mode == 'CMYK' else 'png'}")
    for go in (lambda images: images.digest(), lambda images: list(images.batches(2))):
        with pytest.raises(InputError, match=rf"b\.\w+: .*{expected}"):
            go(open_image_set(tmp_path))
    if mode == "I;16":
        with pytest.raises(InputError, match="more than 8 bits"):
            list(open_image_set(tmp_path, convert=True).batches(2))
        return
    converted = next(open_image_set(tmp_path, convert=True).batches(2))[1]
    np.testing.assert_array_equal(converted.transpose(1, 2, 0), np.asarray(image.convert("RGB")))
