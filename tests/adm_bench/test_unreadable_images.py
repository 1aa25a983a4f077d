"""Training passes over unreadable images: the same for any processes, at any start, and no more than are allowed."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adm_bench.errors import InputError
from adm_bench.images.batches import STAND_INS, TrainingBatches, training_record
from adm_bench.images.dataset import TrainingOrder
from adm_bench.images.sources import open_dataset
from adm_bench.observations import Validation
from adm_bench.ranks import Ranks
from adm_bench.training import TrainingJob
from adm_bench.training_data import PassedOver, notes
from generators.adm.presets import preset
from generators.configuration import with_changes
from generators.diffusion.noise import Stream, mix_seed

COUNT, BATCH = 12, 4
ORDER = TrainingOrder(COUNT, BATCH, 0).at(range(2 * COUNT))
LATE = ORDER[9]
"""The number of an image that is first needed at step 2."""


def name(index: int) -> str:
    return f"{'ab'[index // 6]}_{index:02d}.png"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of two classes."""
    root = tmp_path_factory.mktemp("whole")
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(root / name(index))
    return root


def damaged(whole: Path, folder: Path, *indices: int) -> Path:
    """A copy in which some images end early."""
    shutil.copytree(whole, folder)
    for index in indices:
        (folder / name(index)).write_bytes((whole / name(index)).read_bytes()[:90])
    return folder


def batches(root: Path, rank: int = 0, size: int = 1, **options: Any) -> TrainingBatches:
    dataset = open_dataset(str(root), 8, labels="prefix")
    return TrainingBatches(
        dataset, batch_size=BATCH, seed=0, crop="random", flip=True, rank=rank, size=size, passes_over=True, **options
    )


def images_and_labels(parts: Sequence[Any]) -> list[tuple[bytes, int, int]]:
    rows = [zip(part.images.numpy(), part.labels.tolist(), part.seeds, strict=True) for part in parts]
    return [(image.tobytes(), label, seed) for row in rows for image, label, seed in row]


def test_a_place_has_one_stand_in_and_all_others_stay_as_they_are(whole: Path, tmp_path: Path) -> None:
    bad = {0, LATE}  # the first image says nothing that is needed
    root = damaged(whole, tmp_path / "set", *bad)
    expected = []
    for position, index in enumerate(ORDER):
        random = Random(mix_seed(0, Stream.STAND_INS, position))
        candidates = [index, *(random.randrange(COUNT) for _ in range(STAND_INS))]
        expected.append(next(candidate for candidate in candidates if candidate not in bad))
    assert sum(one != other for one, other in zip(expected, ORDER, strict=True)) == 4  # two in each of two epochs
    undamaged = list(batches(whole).from_step(0, 6))
    for size, workers in ((1, 1), (2, 3), (4, 1)):
        parts = [batches(root, rank, size, workers=workers) for rank in range(size)]
        steps = list(zip(*(part.from_step(0, 6) for part in parts), strict=True))
        found = [row for step in steps for row in images_and_labels(step)]
        for row, before, index, first in zip(found, images_and_labels(undamaged), expected, ORDER, strict=True):
            assert row[1:] == (index // 6, before[2])  # the label is that of the image, the noise that of the place
            assert (row[0] == before[0]) == (index == first)
        met = [part.passed_over for part in parts]
        assert {index for each in met for index in each} == bad
        assert all(f"{name(index)}: not a readable image" in why for each in met for index, why in each.items())
        late = list(zip(*(batches(root, rank, size).from_step(4, 6) for rank in range(size)), strict=True))
        assert [row for step in late for row in images_and_labels(step)] == found[4 * BATCH :]
    assert batches(root).taken(len(expected)) == expected
    assert batches(whole).taken(len(ORDER)) == ORDER


def test_images_count_as_met_with_the_batch_that_has_their_stand_in(whole: Path, tmp_path: Path) -> None:
    """Threads have met them before; what is logged of a step depends on nobody's haste."""
    found = batches(damaged(whole, tmp_path / "set", LATE))
    seen = [(batch.step, len(found.passed_over)) for batch in found.from_step(0, 4)]
    assert seen == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_a_data_set_that_is_gone_ends_training(whole: Path, tmp_path: Path) -> None:
    root = damaged(whole, tmp_path / "set")
    coming = batches(root)
    shutil.rmtree(root)
    with pytest.raises(InputError, match=rf"cannot be read .*; nor can {STAND_INS} others be read"):
        next(coming.from_step(0, 1))
    for path in damaged(whole, tmp_path / "all").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a_00.png: not a readable image"):
        open_dataset(str(tmp_path / "all"), 8)


def test_a_plan_does_not_say_which_images_are_unreadable(whole: Path, tmp_path: Path) -> None:
    """A member whose bytes cannot be had is one of those that an outline looks into."""
    record = training_record(open_dataset(str(whole), 8))
    root = damaged(whole, tmp_path / "set")
    (root / name(3)).unlink()
    (root / name(3)).mkdir()
    assert training_record(open_dataset(str(root), 8)) != record


def test_a_run_goes_on_past_an_unreadable_image_that_ended_it(
    whole: Path, run: Callable[..., Any], refuse: Callable[..., str], tiny: Sequence[str], tmp_path: Path
) -> None:
    root = damaged(whole, tmp_path / "set", LATE)

    def command(out: str, steps: int, *more: str) -> list[Any]:
        data = ["--data", root, "--labels", "prefix", "--out", tmp_path / out, "--checkpoint-every", "2"]
        return ["train", "adm", *data, *tiny, "--batch", "4", "--steps", str(steps), "--log-every", "1", *more]

    assert f"{name(LATE)}: not a readable image" in refuse(*command("ended", 6))
    assert (tmp_path / "ended" / "checkpoints" / "step_00000002").exists()
    said = run(*command("ended", 6, "--skip-bad", "1")).stderr
    assert said.count(f"{name(LATE)}: not a readable image") == 1  # though it is met again in the second epoch
    run(*command("undisturbed", 6, "--skip-bad", "3"))
    weights = [load_file(tmp_path / out / "weights.safetensors") for out in ("ended", "undisturbed")]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    logs = [(tmp_path / out / "log.jsonl").read_text().splitlines() for out in ("ended", "undisturbed")]
    met = [[json.loads(line) for line in log if '"unreadable"' in line] for log in logs]
    assert met[0] == met[1]
    assert [(line["step"], line["number"]) for line in met[0]] == [(2, 1)]


def test_no_more_are_passed_over_than_are_allowed_however_often_a_run_is_started(
    whole: Path, run: Callable[..., Any], refuse: Callable[..., str], tiny: Sequence[str], tmp_path: Path
) -> None:
    root = damaged(whole, tmp_path / "set", ORDER[1], LATE)
    command = ["train", "adm", "--data", root, "--labels", "prefix", "--out", tmp_path / "run", *tiny, "--batch", "4"]
    command += ["--steps", "3", "--checkpoint-every", "1"]
    for _ in range(2):
        line = refuse(*command, "--skip-bad", "1")
        assert f"{name(LATE)}: not a readable image" in line
        assert line.endswith("2 unreadable images were met, and --skip-bad allows 1")
    run(*command, "--skip-bad", "2")


def test_validation_passes_over_as_many(
    whole: Path, run: Callable[..., Any], refuse: Callable[..., str], tiny: Sequence[str], tmp_path: Path
) -> None:
    root = damaged(whole, tmp_path / "set", 2, 5)
    data = ["--data", whole, "--validation", root, "--labels", "prefix", "--out", tmp_path / "run"]
    command = ["train", "classifier", *data, *tiny, "--batch", "4", "--steps", "1"]
    assert "a_02.png: not a readable image" in refuse(*command)
    assert "2 unreadable images were met, and --skip-bad allows 1" in refuse(*command, "--skip-bad", "1")
    run(*command, "--skip-bad", "2")
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert (line["event"], line["images"], line["unreadable"]) == ("validation", 12, 2)


def test_validation_images_must_be_enough_for_every_process(whole: Path) -> None:
    job = TrainingJob(
        trainer="classifier",
        config=with_changes(preset("digits8_classifier").config, {"model.num_classes": 2}),
        dataset=open_dataset(str(whole), 8, labels="prefix"),
        device=torch.device("cpu"),
    )
    validation = Validation(every=1, dataset=job.dataset)
    validation.check(job, Ranks(size=COUNT))
    with pytest.raises(InputError, match="holds 12 images, which 13 processes cannot share; give as many or more"):
        validation.check(job, Ranks(size=COUNT + 1))


def test_a_set_of_which_nothing_can_be_read_is_said_to_be_so(whole: Path, tmp_path: Path) -> None:
    root = damaged(whole, tmp_path / "set")
    for path in root.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of its first 12 images can be read; the first one: .*a_00.png"):
        open_dataset(str(root), 8, labels="prefix")


def test_fewer_may_not_be_allowed_than_were_met_before() -> None:
    assert PassedOver(2, known=[3, 5]).indices == {3, 5}
    with pytest.raises(InputError, match="--skip-bad 1: 2 unreadable images were met before; allow at least as many"):
        PassedOver(1, known=[3, 5])


class Two(Ranks):
    """The first of two processes; `other` is what the second says."""

    def gather_plain(self, value: Any) -> list[Any]:
        return [value, {"3": "c: bad", "1": "a: bad"}]


def test_what_another_process_has_met_counts_too() -> None:
    met = PassedOver(3, known=[7])
    assert met.news({7: "known", 1: "a: bad here"}) == {"1": "a: bad here"}
    assert met.join({7: "known", 1: "a: bad here"}, Two()) == ["a: bad", "c: bad"]
    assert met.indices == {1, 3, 7}
    assert not met.news({1: "a: bad here", 3: "c: bad"})
    with pytest.raises(InputError, match="d: bad; 4 unreadable images were met, and --skip-bad allows 3"):
        met.join({4: "d: bad"}, Ranks())


def test_classes_without_images_are_told_of(whole: Path) -> None:
    dataset = open_dataset(str(whole), 8, labels="prefix")
    assert dataset.num_classes == 2
    config = preset("digits8").config
    assert notes(dataset, with_changes(config, {"model.num_classes": 2})) == []
    assert notes(dataset, with_changes(config, {"model.num_classes": None})) == []
    (note,) = notes(dataset, config)
    assert note.startswith("8 of the network's 10 classes have no image (the first is 2), and samples of these classes")
