"""Images that are made as they are asked for."""

import numpy as np
import pytest
import torch

from adm_bench.errors import InputError
from adm_bench.images.iterated import IteratedImages


def test_iterators_are_held_to_what_they_announced() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 3, 6, 8), np.uint8))
    once = IteratedImages("once", iter([images]), 24, (6, 8))
    with pytest.raises(InputError, match=r"known when all images have passed; .* or hand in source_digest"):
        once.digest()
    assert sum(map(len, once.batches(5))) == 24
    again = IteratedImages("again", [images[:3], images[3:]], 24, (6, 8))
    assert sum(map(len, again.batches(24))) == sum(map(len, again.batches(1))) == 24
    assert once.digest() == again.digest()
    with pytest.raises(InputError, match="can be gone through once"):
        next(once.batches(5))
    for source, expected in (
        ([images[:20]], "ended after 20 images; it announced 24"),
        ([images, images[:1]], "more than the 24 images"),
        ([images.float()], "gives float32"),
        ([images[:, :1]], r"gives uint8 \(24, 1, 6, 8\) after 0 images"),
    ):
        with pytest.raises(InputError, match=expected):
            list(IteratedImages("bad", source, 24, (6, 8)).batches(5))
