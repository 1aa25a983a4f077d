"""The generators that learn nothing, or next to nothing."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from generators.gaussian import Gaussian, GaussianOptions
from generators.levels import to_uint8
from generators.memorizer import Memorizer, MemorizerOptions
from generators.noise import Noise, NoiseOptions
from generators.protocol import Generator, Ingredients

SEEDS = list(range(400))


def blobs() -> tuple[Tensor, Tensor]:
    """Two classes of 4x4 images around level 80 and 170."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    levels = 80 + 90 * labels[:, None, None, None] + 12 * torch.randn(600, 3, 4, 4, generator=generator)
    return levels.round().clamp(0, 255).to(torch.uint8), labels


def ingredients(*, labelled: bool = True, empty: bool = False) -> Ingredients:
    images, labels = blobs()

    def training_set() -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, 600, 250):
            rows = slice(start, start + 250)
            yield images[rows], labels[rows] if labelled else None

    classes = 2 if labelled else None
    return Ingredients(
        image_size=4, num_classes=classes, device=torch.device("cpu"), training_set=None if empty else training_set
    )


BUILDERS = {
    "gaussian": lambda given: Gaussian.build(GaussianOptions(), given),
    "memorizer": lambda given: Memorizer.build(MemorizerOptions(), given),
    "noise": lambda given: Noise.build(NoiseOptions(), given),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("labelled", [True, False])
def test_they_are_generators(name: str, labelled: bool) -> None:
    generator = BUILDERS[name](ingredients(labelled=labelled))
    assert isinstance(generator, Generator)
    labels = torch.arange(400) % 2 if labelled else None
    images = generator.sample(SEEDS, labels)
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (400, 3, 4, 4))
    alone = torch.cat(
        [generator.sample([seed], None if labels is None else labels[i : i + 1]) for i, seed in enumerate(SEEDS[:5])]
    )
    assert alone.equal(images[:5])
    assert not images[0].equal(images[2])
    generator.evaluate_once()


@pytest.mark.parametrize("name", ["gaussian", "memorizer"])
def test_labels_are_obeyed(name: str) -> None:
    labels = torch.arange(400) % 2
    images = BUILDERS[name](ingredients()).sample(SEEDS, labels).float()
    assert abs(images[labels == 0].mean() - 80) < 2
    assert abs(images[labels == 1].mean() - 170) < 2


def test_the_memorizer_returns_training_images_only() -> None:
    known = {image.numpy().tobytes() for image in blobs()[0]}
    images = BUILDERS["memorizer"](ingredients()).sample(SEEDS, torch.zeros(400, dtype=torch.int64))
    assert {image.numpy().tobytes() for image in images} <= known
    assert len({image.numpy().tobytes() for image in images}) > 150


def test_the_gaussian_has_the_moments_of_its_class() -> None:
    images, labels = blobs()
    seeds = list(range(4000))
    drawn = BUILDERS["gaussian"](ingredients()).sample(seeds, torch.ones(4000, dtype=torch.int64)).flatten(1).float()
    real = images[labels == 1].flatten(1).float()
    assert (drawn.mean(0) - real.mean(0)).abs().max() < 1
    assert (torch.cov(drawn.T) - torch.cov(real.T)).abs().max() < 15


@pytest.mark.parametrize("name", ["gaussian", "memorizer"])
def test_without_data_they_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="needs training images; name a data set"):
        BUILDERS[name](ingredients(empty=True))


def test_uint8_truncates_or_rounds() -> None:
    x = torch.tensor([-2.0, -1.0, -1 + 1.9 / 127.5, 0.0, 1.0, 2.0])
    assert to_uint8(x, "truncate").tolist() == [0, 0, 1, 127, 255, 255]
    assert to_uint8(x, "nearest").tolist() == [0, 0, 2, 128, 255, 255]
