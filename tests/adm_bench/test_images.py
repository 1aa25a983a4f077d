"""Data sets and files of images: what comes out is what went in, and crops are ADM's, byte for byte."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images.crops import center_crop, random_crop
from adm_bench.images.dataset import TrainingOrder
from adm_bench.images.digits import open_digits
from adm_bench.images.npz import NpzFile, read_identity, write_samples
from adm_bench.images.sources import open_dataset
from adm_bench.references import Reference


def golden_image(size: str) -> Image.Image:
    width, height = (int(side) for side in size.split("x"))
    seed = int(hashlib.sha256(f"img:{size}".encode()).hexdigest()[:8], 16)
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("array", "digest", "crop"),
    [
        ("center_crop", "center_sha256", center_crop),
        ("random_crop_seed7", "random_seed7_sha256", lambda image, side: random_crop(image, side, Random(7))),
    ],
)
def test_golden_crops(
    array: str, digest: str, crop: Callable[[Image.Image, int], np.ndarray], diffusion_goldens: Any
) -> None:
    assert len(diffusion_goldens.tables["crops"]) == 8
    for case, digests in diffusion_goldens.tables["crops"].items():
        size, side = case.split("->")
        pixels = crop(golden_image(size), int(side))
        np.testing.assert_array_equal(pixels, diffusion_goldens.arrays[f"{array}|{size}|{side}"], case)
        assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == digests[digest], case


def test_random_crops_lie_anywhere_and_are_of_their_shares() -> None:
    rows, columns = np.indices((40, 60), np.uint8)
    image = Image.fromarray(np.stack([rows, columns, rows], axis=2))
    random = Random(0)
    crops = [random_crop(image, 40, random, smallest_share=1.0) for _ in range(200)]
    assert {crop.shape for crop in crops} == {(40, 40, 3)}
    assert {int(crop[0, 0, 0]) for crop in crops} == {0}  # the whole height, at every one of the 21 columns
    assert {int(crop[0, 0, 1]) for crop in crops} == set(range(21))
    spans = [np.ptp(random_crop(image, 10, random, smallest_share=0.5)[..., 1].astype(int)) for _ in range(200)]
    assert (min(spans) < 22) & (max(spans) > 34)  # of 40 pixels: half to all of them
    with pytest.raises(ValueError, match="smallest_share is 0; expected 0 < smallest_share <= 1"):
        random_crop(image, 10, random, smallest_share=0)


@pytest.mark.parametrize("size", [8, 16])
def test_digits_are_real_and_grey(size: int) -> None:
    digits = open_digits(size)
    images, labels = digits.read(range(len(digits)))
    assert images.shape == (1797, 3, size, size)
    assert labels is not None
    assert np.bincount(labels).min() > 170
    assert (images[:, 0] == images[:, 2]).all()
    assert (images.min(), images.max()) == (0, 255)
    assert digits.digest() != open_digits(24 - size).digest()


def test_samples_stream_out_and_in(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 3), np.uint8)
    path = tmp_path / "samples.npz"
    write_samples(path, (23, 6, 6), [images[:10], images[10:]], np.arange(23), {"a": "é"})
    file = NpzFile(path)
    assert file.image_shape() == (23, 6, 6)
    streamed = np.concatenate(list(file.batches(7)))
    np.testing.assert_array_equal(streamed.transpose(0, 2, 3, 1), images)
    np.testing.assert_array_equal(file.labels(), np.arange(23))
    assert read_identity(file) == {"a": "é"}
    with pytest.raises(ValueError, match="20 images were written where 23"):
        write_samples(tmp_path / "short.npz", (23, 6, 6), [images[:20]], None, {})


def test_numpys_own_files_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "samples.npz", images, np.arange(5, dtype=np.int32))
        file = NpzFile(tmp_path / "samples.npz")
        np.testing.assert_array_equal(np.concatenate(list(file.batches(2))).transpose(0, 2, 3, 1), images)
        np.testing.assert_array_equal(file.labels(), np.arange(5))
        assert read_identity(file) == {}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ('{"features": 5}', "adm_bench's features is 5; expected a text"),
        ('{"features_sha256": 5}', "adm_bench's features_sha256 is 5; expected a text"),
        ('{"data_sha256": null}', "adm_bench's data_sha256 is None; expected a text"),
        ('{"image_size": "abc"}', r"image_size is 'abc'; expected a side in pixels, or \[height, width\]"),
        ('{"image_size": []}', r"image_size is \[\]; expected a side"),
        ('{"image_size": [8, 0]}', r"image_size is \[8, 0\]; expected a side"),
        ('{"generator": "str"}', "adm_bench's generator is 'str'; expected an object"),
        ('{"generator": {"options": [1]}}', r"adm_bench's options of the generator is \[1\]; expected an object"),
        ('{"seed": "abc"}', "adm_bench's seed is 'abc'; expected an integer"),
        ('{"seed": true}', "adm_bench's seed is True; expected an integer"),
        ('{"num_images": 4.5}', "adm_bench's num_images is 4.5; expected an integer"),
        ('{"lossy": "no"}', "adm_bench's lossy is 'no'; expected true or false"),
        ('{"result": 1}', "adm_bench's result is 1; expected an object"),
        ('{"plan_sha256": []}', r"adm_bench's plan_sha256 is \[\]; expected a text"),
        ("[1]", r"adm_bench is \[1\]; expected a JSON object"),
        ("[" * 100_000, "adm_bench is nested too deeply"),
    ],
)
def test_what_a_file_states_of_itself_is_of_the_types_that_are_read(stated: str, expected: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", np.zeros((2, 8, 8, 3), np.uint8), mu=np.zeros(3), adm_bench=np.array(stated))
    with pytest.raises(InputError, match=rf"^\S+set.npz: .*{expected}") as refused:
        Reference.open(tmp_path / "set.npz")
    assert "\n" not in str(refused.value)


def test_what_a_file_states_more_is_left_alone(tmp_path: Path) -> None:
    stated = {"image_size": [8, 9], "seed": -1, "features": "mine", "notes": [1], "generator": {"options": {"a": None}}}
    np.savez(tmp_path / "set.npz", np.zeros((2, 8, 9, 3), np.uint8), adm_bench=np.array(json.dumps(stated)))
    assert read_identity(NpzFile(tmp_path / "set.npz")) == stated


@pytest.mark.parametrize("labels", [np.arange(4), np.arange(5) / 2, np.arange(5) - 1])
def test_labels_must_fit_their_images(labels: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", arr_0=np.zeros((5, 4, 4, 3), np.uint8), arr_1=labels)
    with pytest.raises(InputError, match="labels"):
        NpzFile(tmp_path / "bad.npz").labels()


def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 512, 512, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 1000)
    with pytest.raises(InputError, match="declares"):
        NpzFile(path)


def test_folders_with_a_class_each(tmp_path: Path) -> None:
    for name, level in (("cat", 10), ("dog", 200)):
        for index in range(3):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, 12), (level, level, index)).save(path)
    dataset = open_dataset(str(tmp_path), 8)
    images, labels = dataset.read([5, 0])
    assert (len(dataset), dataset.num_classes, dataset.image_size, dataset.lossy) == (6, 2, 8, False)
    assert images.shape == (2, 3, 8, 8)
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([200, 10], [1, 0])  # type: ignore[union-attr]
    before = dataset.digest()
    Image.new("RGB", (20, 12)).save(tmp_path / "cat" / "0.png")
    assert open_dataset(str(tmp_path), 8).digest() != before
    assert open_dataset(str(tmp_path / "cat"), 8).num_classes is None


def test_an_npz_is_a_data_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images, np.array([0, 1, 2, 1, 0]))
    dataset = open_dataset(str(tmp_path / "set.npz"))
    assert (len(dataset), dataset.num_classes, dataset.image_size) == (5, 3, 4)
    np.testing.assert_array_equal(dataset.read([3])[0][0].transpose(1, 2, 0), images[3])
    with pytest.raises(InputError, match="expected 8 x 8"):
        open_dataset(str(tmp_path / "set.npz"), 8)


def test_training_order_is_a_shuffle_an_epoch_from_any_step() -> None:
    order = TrainingOrder(10, 4, seed=3)
    steps = [order.indices(step) for step in range(10)]
    flat = [index for step in steps for index in step]
    for epoch in range(4):
        assert sorted(flat[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert TrainingOrder(10, 4, seed=3).indices(7) == steps[7]
    assert TrainingOrder(10, 4, seed=4).indices(0) != steps[0]
