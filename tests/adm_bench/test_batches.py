"""Training batches: the same images for any number of processes and workers, and threads that end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from io import BytesIO
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adm_bench import registry
from adm_bench.errors import InputError
from adm_bench.images import ahead
from adm_bench.images.batches import TrainingBatches
from adm_bench.images.crops import center_crop, random_crop
from adm_bench.images.dataset import ArrayDataset, Dataset, TrainingOrder
from adm_bench.images.digits import open_digits
from adm_bench.images.sources import open_dataset
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import TrainingBatch

SIDES = [(12, 20), (9, 8), (30, 17), (8, 8), (16, 40)]
COUNT = 23


def picture(index: int) -> Image.Image:
    height, width = SIDES[index % len(SIDES)]
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes in two classes."""
    root = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        path = root / ("cat" if index < 10 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        picture(index).save(path)
    return root


class PlugIn:
    """A data set of somebody else: the least that the protocol asks for."""

    name, image_size, image_shape, num_classes, lossy = "mine", 8, (8, 8), 3, False
    preparation: dict[str, Any] = {}  # noqa: RUF012  a constant
    labels = np.arange(COUNT, dtype=np.int64) % 3

    def __init__(self, image_size: int | None = None, delay_sec: float = 0, bad: int = -1) -> None:
        assert image_size in (None, 8)
        self.delay_sec, self.bad = delay_sec, bad
        self.asked: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        self.asked += indices
        time.sleep(self.delay_sec)
        if self.bad in indices:
            raise ValueError("is no image")
        return np.stack([center_crop(picture(i), 8).transpose(2, 0, 1) for i in indices]), self.labels[list(indices)]

    def batches(self, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
        for first in range(start, COUNT, batch_size):
            yield self.read(range(first, min(first + batch_size, COUNT)))[0]

    def digest(self) -> str:
        return "a digest"

    fingerprint = digest


def datasets(folder: Path) -> dict[str, Dataset]:
    return {"folder": open_dataset(str(folder), 8), "digits": open_digits(8), "plug-in": PlugIn()}


def together(parts: Sequence[TrainingBatch]) -> tuple[int, bytes, list[int], list[int]]:
    """A step of all processes: number, pixels, labels, seeds."""
    assert len({part.step for part in parts}) == 1
    assert all(part.images.dtype == torch.uint8 and part.images.shape[1:] == (3, 8, 8) for part in parts)
    labels = [label for part in parts if part.labels is not None for label in part.labels.tolist()]
    seeds = [seed for part in parts for seed in part.seeds]
    return parts[0].step, torch.cat([part.images for part in parts]).numpy().tobytes(), labels, seeds


@pytest.mark.parametrize("kind", ["folder", "digits", "plug-in"])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_batches_are_the_same_for_any_processes_and_workers(kind: str, crop: Any, folder: Path) -> None:
    def steps(size: int, workers: int, start: int) -> list[tuple[int, bytes, list[int], list[int]]]:
        dataset = datasets(folder)[kind]
        iterators = [
            TrainingBatches(
                dataset, batch_size=8, seed=5, crop=crop, flip=True, rank=rank, size=size, workers=workers
            ).from_step(start, 9)
            for rank in range(size)
        ]
        return [together(parts) for parts in zip(*iterators, strict=True)]

    expected = steps(size=1, workers=1, start=0)
    assert [step for step, *_ in expected] == list(range(9))
    assert len({pixels for _, pixels, *_ in expected}) == 9
    for size, workers in ((1, 3), (2, 1), (2, 3), (4, 2)):
        assert steps(size, workers, 0) == expected
    assert steps(4, 3, 6) == expected[6:]
    everything = [seed for *_, seeds in expected for seed in seeds]
    assert everything == [mix_seed(5, Stream.TRAINING_IMAGES, position) for position in range(72)]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_an_image_is_cropped_and_then_mirrored_by_its_position_alone(crop: Any, folder: Path) -> None:
    batches = TrainingBatches(open_dataset(str(folder), 8), batch_size=6, seed=2, crop=crop, flip=True)
    order = TrainingOrder(COUNT, 6, 2)
    mirrored = 0
    for batch in batches.from_step(1, 12):
        positions = range(6 * batch.step, 6 * batch.step + 6)
        for position, image, label in zip(positions, batch.images, batch.labels, strict=True):  # type: ignore[arg-type]
            (index,) = order.at([position])
            random = Random(mix_seed(2, Stream.AUGMENTATION, position))
            expected = random_crop(picture(index), 8, random) if crop == "random" else center_crop(picture(index), 8)
            if random.random() < 0.5:
                expected, mirrored = expected[:, ::-1], mirrored + 1
            np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), expected)
            assert label == (index >= 10)
    assert 20 < mirrored < 46  # of 66


def test_random_crops_of_squares_in_memory_are_cut_from_their_enlargements() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    dataset = ArrayDataset(name="a", images=pixels, labels=None, num_classes=None, source_digest="")
    seen = set()
    for batch in TrainingBatches(dataset, batch_size=4, seed=0, crop="random").from_step(0, 8):
        assert batch.labels is None
        for place, image in enumerate(batch.images.numpy()):
            position = 4 * batch.step + place
            (index,) = TrainingOrder(4, 4, 0).at([position])
            random = Random(mix_seed(0, Stream.AUGMENTATION, position))
            expected = random_crop(Image.fromarray(pixels[index].transpose(1, 2, 0)), 8, random)
            np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)
            seen.add(image.tobytes())
    assert len(seen) > 16


def test_every_epoch_has_every_image_once_and_without_a_shuffle_in_order() -> None:
    dataset = open_digits(8)
    batches = TrainingBatches(dataset, batch_size=600, seed=0, shuffled=False)
    images = torch.cat([batch.images for batch in batches.from_step(0, 3)]).numpy()
    np.testing.assert_array_equal(images, dataset.images[np.arange(1800) % 1797])
    seeds = next(iter(batches.from_step(1, 2))).seeds[:50]
    for share in range(3):  # of three processes
        of_one = TrainingBatches(dataset, batch_size=600, seed=0, shuffled=False, rank=share, size=3).from_step(0, 1)
        np.testing.assert_array_equal(next(of_one).images.numpy(), images[200 * share : 200 * share + 200])
    for size in (1, 2):  # one pass, of which two processes cannot share the last image
        passes = [
            list(TrainingBatches(dataset, batch_size=600, seed=0, shuffled=False, rank=rank, size=size).whole_pass())
            for rank in range(size)
        ]
        assert [len(batch.images) * size for batch in passes[0]] == [600, 600, 597 // size * size]
        joined = torch.cat([batch.images for step in zip(*passes, strict=True) for batch in step]).numpy()
        np.testing.assert_array_equal(joined, dataset.images[: 1797 // size * size])
        assert [seed for step in zip(*passes, strict=True) for batch in step for seed in batch.seeds][600:650] == seeds
    order = TrainingOrder(COUNT, 4, 1)
    places = order.at(range(COUNT * 3))
    assert all(sorted(places[COUNT * epoch :][:COUNT]) == list(range(COUNT)) for epoch in range(3))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"batch_size": 6, "size": 4},
            "batch_size is 6, which 4 processes cannot share equally; choose a multiple of 4",
        ),
        ({"batch_size": 24}, "data set mine holds 23 images, but batch_size is 24; choose a batch that is no larger"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(changes: dict[str, int], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        TrainingBatches(PlugIn(), seed=0, **changes)  # type: ignore[arg-type]


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("training images")]


def test_an_image_that_cannot_be_read_stops_its_own_batch(folder: Path, tmp_path: Path) -> None:
    order = TrainingOrder(COUNT, 4, 0)
    bad = order.at(range(COUNT))[17]  # of the fifth batch
    for index in range(COUNT):
        (tmp_path / f"{index:02d}.png").write_bytes(next(folder.rglob(f"{index:02d}.png")).read_bytes())
    (tmp_path / f"{bad:02d}.png").write_bytes(b"no image")
    for dataset, message in (
        (open_dataset(str(tmp_path), 8), f"{bad:02d}.png: not a readable image"),
        (PlugIn(bad=bad), f"data set mine, image {bad}: is no image"),
    ):
        batches = TrainingBatches(dataset, batch_size=4, seed=0).from_step(0, 100)
        assert [next(batches).step for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(InputError, match=message):
            next(batches)
        assert running() == []


def test_an_image_of_another_size_than_announced_is_refused() -> None:
    dataset = PlugIn()
    dataset.image_size = 9
    with pytest.raises(InputError, match=r"data set mine, image \d+: is uint8 \(8, 8, 3\); expected uint8 \(9, 9, 3\)"):
        next(TrainingBatches(dataset, batch_size=2, seed=0).from_step(0, 1))


def test_work_ahead_is_bounded_and_its_threads_end_with_the_iterator() -> None:
    dataset = PlugIn(delay_sec=0.001)
    batches = TrainingBatches(dataset, batch_size=2, seed=0, workers=3).from_step(0, 1000)
    for _ in range(5):
        next(batches)
    time.sleep(0.1)
    assert 10 < len(dataset.asked) <= 10 + 4
    assert len(running()) == 3
    batches.close()  # type: ignore[attr-defined]
    assert running() == []
    asked = len(dataset.asked)
    time.sleep(0.05)
    assert len(dataset.asked) == asked


def test_ctrl_c_ends_a_process_in_the_middle_of_a_pass() -> None:
    program = """
import os, signal, time
from adm_bench.images import batches
from adm_bench.images.digits import open_digits
made = batches.TrainingBatches._make
batches.TrainingBatches._make = lambda self, place: (time.sleep(0.05), made(self, place))[1]
coming = batches.TrainingBatches(open_digits(8), batch_size=64, seed=0, workers=4).from_step(0, 1000)
print(next(coming).step, flush=True)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0\n"
    assert done.returncode == -signal.SIGINT, done.stderr


def test_processes_of_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: set(range(24)))
    for processes, expected in (("", 16), ("2", 12), ("8", 3), ("100", 1), ("0", 16), ("x", 16)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert ahead.share_of_threads() == expected


def test_a_plug_in_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_data_set")
    module.PlugIn = PlugIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_data_set", module)
    points = EntryPoints([EntryPoint("mine", "a_data_set:PlugIn", "adm_bench.datasets")])
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "adm_bench.datasets" else [])
    registry.rows.cache_clear()
    try:
        dataset = open_dataset("mine", 8)
        batch = next(TrainingBatches(dataset, batch_size=4, seed=1).from_step(3, 4))
        np.testing.assert_array_equal(batch.labels, PlugIn.labels[TrainingOrder(COUNT, 4, 1).indices(3)])
        with pytest.raises(InputError, match="data set mine: --labels none: it has labels of its own"):
            open_dataset("mine", 8, labels="none")
    finally:
        registry.rows.cache_clear()


@pytest.mark.gpu
def test_images_are_pinned_where_that_is_asked_for() -> None:
    batch = next(TrainingBatches(open_digits(8), batch_size=4, seed=0, pinned=True).from_step(0, 1))
    assert batch.images.is_pinned()


def test_jpegs_are_decoded_as_pillow_does(tmp_path: Path) -> None:
    for index in range(4):
        file = BytesIO()
        picture(2).save(file, "JPEG", quality=60 + index)
        (tmp_path / f"{index}.jpg").write_bytes(file.getvalue())
    batch = next(TrainingBatches(open_dataset(str(tmp_path), 8), batch_size=4, seed=0, shuffled=False).from_step(0, 1))
    for index, image in enumerate(batch.images.numpy()):
        expected = center_crop(Image.open(tmp_path / f"{index}.jpg"), 8)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)
