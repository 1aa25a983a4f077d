"""Training sets: where labels come from, what a plan knows of the data, and every source behind one reader."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images.batches import TrainingBatches, training_record
from adm_bench.images.dataset import TrainingOrder
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.sources import open_dataset

NAMES = ["dog_001.png", "cat_7.png", "cat_b_2.png", "ant_.png", "dog_000.png", "cat_1.png"]
FOLDERS = ["x", "x", "y", "y", "z", "z"]


def picture(index: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images whose folders and whose names are classes, of another meaning."""
    for index, (folder, name) in enumerate(zip(FOLDERS, NAMES, strict=True)):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / "set" / folder / name)
    return tmp_path / "set"


def opened(source: Path, **options: Any) -> EncodedImages:
    dataset = open_dataset(str(source), 8, **options)
    assert isinstance(dataset, EncodedImages)
    return dataset


def trained_on(dataset: Any) -> dict[bytes, int | None]:
    """Label by pixels, as they reach a trainer in one pass."""
    found: dict[bytes, int | None] = {}
    for batch in TrainingBatches(dataset, batch_size=2, seed=0, workers=2).from_step(0, 3):
        labels = [None] * 2 if batch.labels is None else batch.labels.tolist()
        found |= {image.numpy().tobytes(): label for image, label in zip(batch.images, labels, strict=True)}
    return found


def labelled(labels: list[int | None]) -> dict[bytes, int | None]:
    """The six images of `root`, with labels in the order of NAMES."""
    return {np.asarray(picture(i)).transpose(2, 0, 1).tobytes(): label for i, label in enumerate(labels)}


@pytest.mark.parametrize(
    ("source", "expected", "classes", "origin"),
    [
        ("auto", [0, 0, 1, 1, 2, 2], ("x", "y", "z"), "folders"),
        ("folder", [0, 0, 1, 1, 2, 2], ("x", "y", "z"), "folders"),
        ("prefix", [2, 1, 1, 0, 2, 1], ("ant", "cat", "dog"), "prefixes"),  # ADM's: folders do not count
        ("none", [None] * 6, (), "none"),
    ],
)
def test_labels_are_read_where_they_are_asked_for(
    source: Any, expected: list[int | None], classes: tuple[str, ...], origin: str, root: Path
) -> None:
    dataset = opened(root, labels=source)
    assert (dataset.class_names, dataset.labels_from) == (classes, origin)
    assert dataset.num_classes == (len(classes) or None)
    assert trained_on(dataset) == labelled(expected)
    assert training_record(dataset)["labels"] == origin
    assert dataset.preparation.get("labels") == (None if source == "auto" else source)


def test_names_are_no_classes_unless_asked_for(root: Path) -> None:
    flat = root.parent / "flat"
    flat.mkdir()
    for path in root.rglob("*.png"):
        shutil.copy(path, flat / path.name)
    assert opened(flat).num_classes is None
    with pytest.raises(InputError, match=r"flat: --labels folder: expected every image in a folder of its class"):
        opened(flat, labels="folder")
    picture(8).save(root / "stray.png")  # among folders of classes
    assert opened(root.parent / "set").num_classes is None
    with pytest.raises(InputError, match=r"set: --labels folder: .* two classes or more; stray.png is in none of its"):
        opened(root, labels="folder")
    assert opened(flat, labels="prefix").num_classes == 3
    picture(9).save(flat / "no.png")
    with pytest.raises(InputError, match=r'flat/no.png: --labels prefix: .* the names of 1 of 7 images have no "_"'):
        opened(flat, labels="prefix")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_dataset_json_is_trained_on_in_its_own_order(kind: str, root: Path) -> None:
    names = [f"{folder}/{name}" for folder, name in zip(FOLDERS, NAMES, strict=True)]
    labels: list[int | None] = [5, 0, 3, 3, 1, 9]
    rows = [list(row) for row in zip(names, labels, strict=True)][::-1]  # the order of its rows is nobody's
    (root / "dataset.json").write_text(json.dumps({"labels": rows}))
    source = root
    if kind == "zip":
        source = root.parent / "edm.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(root.rglob("*.*"), reverse=True):
                archive.write(path, path.relative_to(root))
    dataset = opened(source)
    assert (dataset.num_classes, dataset.labels_from) == (10, "dataset.json")
    assert trained_on(dataset) == labelled(labels)
    assert trained_on(opened(source, labels="folder")) == labelled([0, 0, 1, 1, 2, 2])
    assert trained_on(opened(source, labels="none")) == labelled([None] * 6)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_dataset_json_counts_inside_the_folder_that_wraps_everything(
    kind: str, stated: bool, root: Path, tmp_path: Path
) -> None:
    """Otherwise EDM's folders, which hold a thousand images each and mean nothing, would be taken for classes."""
    inner = tmp_path / "outer" / "cifar10"
    inner.parent.mkdir()
    shutil.copytree(root, inner)
    names = [f"{folder}/{name}" for folder, name in zip(FOLDERS, NAMES, strict=True)]
    labels: list[int | None] = [5, 0, 3, 3, 1, 9]
    rows = [list(row) for row in zip(names, labels, strict=True)] if stated else None
    (inner / "dataset.json").write_text(json.dumps({"labels": rows}))
    source = tmp_path / "outer"
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "outer"))
    if kind == "tar":
        source = Path(shutil.make_archive(str(tmp_path / "set"), "tar", tmp_path / "outer"))
    assert trained_on(opened(source)) == labelled(labels if stated else [None] * 6)
    assert trained_on(opened(source, labels="folder")) == labelled([0, 0, 1, 1, 2, 2])


def test_folders_without_images_are_no_classes_and_are_told_of(root: Path) -> None:
    assert opened(root).empty_classes() is None
    for name in ("xylophone/inside", "x/below", ".hidden", "w"):
        (root / name).mkdir(parents=True)
    assert opened(root).class_names == ("x", "y", "z")
    assert str(opened(root).empty_classes()).startswith("2 folders hold no images, so they are no classes (such as w)")
    assert opened(root.parent).store.empty_folders() == ["set/w", "set/x/below", "set/xylophone"]
    assert "(such as set/w)" in str(opened(root.parent).empty_classes())
    assert opened(root, labels="prefix").empty_classes() is None


def test_lmdbs_and_arrays_are_trained_on(root: Path, tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "lsun"), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index, path in enumerate(sorted(root.rglob("*.png"), key=lambda path: NAMES.index(path.name))):
            transaction.put(f"{index:040x}".encode(), path.read_bytes())
    assert trained_on(opened(tmp_path / "lsun")) == labelled([None] * 6)
    with pytest.raises(InputError, match=r'lsun/0+: --labels prefix: .* 6 of 6 images have no "_"'):
        opened(tmp_path / "lsun", labels="prefix")
    images = np.stack([np.asarray(picture(index)) for index in range(6)])
    np.savez(tmp_path / "set.npz", images, np.array([3, 1, 4, 1, 5, 9]))
    arrays = str(tmp_path / "set.npz")
    assert trained_on(open_dataset(arrays)) == labelled([3, 1, 4, 1, 5, 9])
    assert training_record(open_dataset(arrays))["labels"] == "stated"
    without = open_dataset(arrays, labels="none")
    assert (without.num_classes, trained_on(without)) == (None, labelled([None] * 6))
    assert training_record(without) != training_record(open_dataset(arrays))
    for source in (arrays, "digits"):
        with pytest.raises(InputError, match="--labels prefix: it has labels of its own or none, and no names"):
            open_dataset(source, labels="prefix")


def test_a_plan_knows_the_data_wherever_they_are_and_notices_changes(root: Path) -> None:
    record = training_record(opened(root))
    assert {key: record[key] for key in ("images", "classes", "labels")} == {
        "images": 6,
        "classes": 3,
        "labels": "folders",
    }
    copied = root.parent / "elsewhere"
    shutil.copytree(root, copied)
    for path in copied.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    with zipfile.ZipFile(root.parent / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in copied.rglob("*.png"):
            archive.write(path, path.relative_to(copied))
    assert training_record(opened(copied)) == training_record(opened(root.parent / "set.zip")) == record
    records = [record, training_record(opened(copied, labels="prefix")), training_record(opened(copied, labels="none"))]
    victim = copied / "y" / NAMES[2]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    records.append(training_record(opened(copied)))
    victim.write_bytes(content + b"\0")
    records.append(training_record(opened(copied)))
    victim.rename(victim.with_name("cat_b_3.png"))
    records.append(training_record(opened(copied)))
    (copied / "y/cat_b_3.png").unlink()
    records.append(training_record(opened(copied)))
    assert len({json.dumps(each) for each in records}) == len(records) == 7


def test_an_image_that_vanished_is_named(root: Path) -> None:
    dataset = opened(root)
    (root / "x" / NAMES[0]).unlink()
    with pytest.raises(InputError, match=r"dog_001.png: cannot be read \(No such file or directory\)"):
        dataset.outline()


def test_the_order_of_a_million_images_takes_no_time_a_step() -> None:
    order = TrainingOrder(1_281_167, 256, 0)
    first = order.indices(0)
    assert order.indices(0) == first
    drawn = order._order
    assert order.indices(5_000) != first
    assert order._order is drawn  # one shuffle an epoch
    assert len(set(order.indices(5_004))) == 256  # over the end of it
    assert order._order is not drawn
