"""Images known by their pixels: the same ones in whatever container and order, and no others."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adm_bench.images.dataset import Images, ImageSet, pixel_hashes
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.pixels import are_same_images
from adm_bench.images.sources import open_image_set

KINDS = ("npz", "compressed npz", "shards", "folder", "zip", "bitmaps")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """40 images (N, H, W, 3), two of them equal."""
    drawn = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), np.uint8)
    drawn[7] = drawn[3]
    return drawn


def saved(kind: str, path: Path, pixels: np.ndarray) -> Path:
    """The images in a container; those of folders and archives are called by their numbers."""
    if kind.endswith("npz"):
        (np.savez_compressed if kind == "compressed npz" else np.savez)(path.with_suffix(".npz"), pixels)
        return path.with_suffix(".npz")
    path.mkdir()
    if kind == "shards":
        for shard, some in enumerate(np.array_split(pixels, [5, 6, 31])):
            np.savez(path / f"{shard}.npz", some)
        return path
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{index:02d}.{'bmp' if kind == 'bitmaps' else 'png'}")
    if kind != "zip":
        return path
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for file in path.iterdir():
            archive.write(file, f"deep/{file.name}")
    return path.with_suffix(".zip")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_the_same_images_are_known_again(kind: str, other: str, pixels: np.ndarray, tmp_path: Path) -> None:
    one = open_image_set(saved(kind, tmp_path / "one", pixels))
    mixed = np.random.default_rng(1).permutation(pixels)
    for count, images in enumerate((pixels, mixed)):
        assert are_same_images(one, open_image_set(saved(other, tmp_path / f"other{count}", images)))
    changed = mixed.copy()
    changed[-1, -1, -1, -1] ^= 1
    twice = pixels.copy()
    twice[3] = pixels[0]  # the same different images, but others of them twice
    for count, images in enumerate((changed, twice, pixels[1:], pixels.transpose(0, 2, 1, 3), pixels[..., ::-1])):
        assert not are_same_images(one, open_image_set(saved(other, tmp_path / f"no{count}", images)))


def test_crops_are_compared_as_they_are_taken(pixels: np.ndarray, tmp_path: Path) -> None:
    paths = saved("npz", tmp_path / "one", pixels), saved("folder", tmp_path / "other", pixels[::-1])
    assert are_same_images(*(open_image_set(path, size=4) for path in paths))
    assert not are_same_images(open_image_set(paths[0], size=4), open_image_set(paths[1]))


def test_other_images_cost_one_batch_and_other_numbers_nothing(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_image_set(saved("folder", tmp_path / "other", pixels))
    npz = open_image_set(saved("npz", tmp_path / "one", pixels ^ 1))
    read = {EncodedImages: 0, NpzImages: 0}
    for kind in read:

        def counted(self: ImageSet, size: int, start: int = 0, plain: object = kind.batches) -> Iterator[Images]:
            for batch in plain(self, size, start):  # type: ignore[operator]
                read[type(self)] += len(batch)
                yield batch

        monkeypatch.setattr(kind, "batches", counted)
    monkeypatch.setattr("adm_bench.images.pixels.BATCH_SIZE", 8)
    assert not are_same_images(folder, npz)
    assert read == {NpzImages: 40, EncodedImages: 8}
    few = open_image_set(saved("npz", tmp_path / "few", pixels[:39]))
    assert not are_same_images(folder, few)
    assert read == {NpzImages: 40, EncodedImages: 8}


def test_images_that_were_decoded_to_find_bad_ones_are_not_decoded_again(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = saved("folder", tmp_path / "one", pixels)
    (root / "99.png").write_bytes(b"no image")
    folder = open_image_set(root, skip_bad=1)
    assert isinstance(folder, EncodedImages)
    npz = open_image_set(saved("npz", tmp_path / "other", pixels))
    monkeypatch.setattr(EncodedImages, "batches", None)
    assert are_same_images(folder, npz)


def test_a_hash_is_of_shape_and_values_whatever_lies_in_memory_how(pixels: np.ndarray) -> None:
    planes = pixels.transpose(0, 3, 1, 2)
    hashes = pixel_hashes(planes)
    assert hashes.shape == (40,)
    assert len(set(hashes.tolist())) == 39
    np.testing.assert_array_equal(hashes, pixel_hashes(np.ascontiguousarray(planes)))
    assert hashes[0] != pixel_hashes(planes[:1].reshape(1, 3, 8, 6))[0]


def test_what_is_made_as_it_is_asked_for_is_not_made_for_this(pixels: np.ndarray, tmp_path: Path) -> None:
    source = iter([np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))])
    made = IteratedImages("made", source, 40, (6, 8))
    assert not are_same_images(made, open_image_set(saved("npz", tmp_path / "one", pixels)))
    assert sum(map(len, made.batches(7))) == 40
