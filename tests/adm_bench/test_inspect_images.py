"""What `inspect` says of images, and the checks that come before any network."""

import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from adm_bench import registry
from adm_bench.checks import check_samples, label_mixing
from adm_bench.errors import InputError
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.sources import open_image_set
from adm_bench.references import Reference
from metrics.features.digits import DigitsFeatures
from metrics.protocol import EvaluationProtocol, Metric

Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def inspect(run: Callable[..., Any]) -> Inspect:
    return lambda path, *options: json.loads(run("inspect", path, *options).stdout)


def png(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(3, 250, (*size, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


FILES = {
    "cat/a.png": png(0),
    "cat/b.png": png(1),
    "cat/c.png": png(0),
    "dog/d.png": png(2, (8, 9)),
    "dog/e.png": png(3, mode="L"),
    "dog/f.jpg": png(4, form="JPEG"),
    "dog/g.png": png(5)[:50],
}


def test_encoded_images_are_surveyed(inspect: Inspect, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        for name, content in FILES.items():
            transaction.put(name.encode(), content)
    for place, what in (("set", "a folder"), ("set.zip", "a zip archive"), ("lmdb", "an LMDB")):
        found = inspect(tmp_path / place)
        assert found["what"] == f"images in {what}"
        assert found["number"] == 6
        assert found["sizes"] == {"8 x 8": 5, "8 x 9": 1}
        assert found["modes"] == {"RGB": 5, "L": 1}
        assert (found["formats"], found["stored_with_loss"]) == ({"PNG": 5, "JPEG": 1}, 1)
        assert found["unreadable"]["number"] == 1
        assert "not a readable image" in found["unreadable"]["first"]["dog/g.png"]
        assert found["duplicates"] == {"number": 1, "first": [["cat/a.png", "cat/c.png"]]}
        assert found["labels"] == {
            "from": "folders",
            "classes": {"number": 2, "fewest_images": 3, "median_images": 3, "most_images": 3},
            "sorted": True,
            "histogram": {"0": 3, "1": 3},
        }
        assert (found["smallest"], found["largest"]) == ([8, 8], [8, 9])
        assert 0 <= found["range"][0] < 30 < 220 < found["range"][1] <= 255
        assert "precision" in found["serves"]["as_samples"]
        assert found["serves"]["with_options"] == ["--size SIDE", "--convert", "--skip-bad 1"]


def test_files_and_folders_that_give_no_image_are_surveyed(inspect: Inspect, tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.{'' if name == 'dog' else 'png'}").write_bytes(png(0))
    found = inspect(tmp_path)
    assert found["empty_folders"] == {"number": 1, "first": ["dog"]}
    assert found["left_out_by_name"] == {"number": 1, "first": ["dog/dog."]}


def test_training_sets_are_surveyed_for_their_size_and_labels(inspect: Inspect, tmp_path: Path) -> None:
    sides = {
        "cat_0": (8, 30),
        "cat_1": (16, 16),
        "dog_0": (9, 40),
        "eel_0": (20, 12),
        "eel_1": (64, 33),
        "eel_2": (7, 9),
    }
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for index, (name, size) in enumerate(sides.items()):
                if shard == 0 or index > 3:
                    content = png(10 * shard + index, size)
                    member = tarfile.TarInfo(f"{name}.png")
                    member.size = len(content)
                    archive.addfile(member, BytesIO(content))
    found = inspect(tmp_path, "--size", "12", "--labels", "prefix")
    assert found["what"] == "images in tar files"
    assert found["tar_files"] == {"number": 2, "fewest_images": 2, "median_images": 2, "most_images": 6}
    assert (found["smallest"], found["largest"]) == ([7, 9], [64, 33])
    assert found["below_size"] == {"size": 12, "number": 4}
    assert found["labels"]["from"] == "prefixes"
    assert found["labels"]["classes"] == {"number": 3, "fewest_images": 1, "median_images": 2, "most_images": 5}
    assert inspect(f"{tmp_path}/{{0..1}}.tar")["labels"] is None
    assert "expected every image in a folder" in inspect(tmp_path, "--labels", "folder")["labels"]["problem"]
    digits = inspect("digits", "--size", "16")
    assert (digits["images"]["number"], digits["labels"]["classes"]["number"]) == (1797, 10)


def test_npz_files_are_surveyed(inspect: Inspect, reference: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    images[4] = images[1]
    np.savez(tmp_path / "a.npz", images, np.array([0, 1, 0, 2, 2, 1]))
    found = inspect(tmp_path / "a.npz")
    assert (found["what"], found["images"]["number"], found["images"]["size"]) == ("samples", 6, [8, 8])
    assert found["images"]["duplicates"] == {"number": 1, "first": [[1, 4]]}
    assert found["labels"] == {
        "classes": {"number": 3, "fewest_images": 2, "median_images": 2, "most_images": 2},
        "sorted": False,
        "histogram": {"0": 2, "1": 2, "2": 2},
    }
    for size, number in ((8, 0), (9, 6)):
        below = inspect(tmp_path / "a.npz", "--size", size)["images"]["below_size"]
        assert below == {"size": size, "number": number}
    assert found["arrays"] == {"arr_0": "uint8 (6, 8, 8, 3)", "arr_1": "int64 (6,)"}
    shards = inspect(tmp_path)
    assert (shards["what"], shards["files"], shards["images"]["number"]) == ("samples in shards", 1, 6)
    whole = inspect(reference)
    assert whole["what"] == "reference"
    assert {"fid", "sfid", "precision"} <= set(whole["serves"]["as_reference"])
    np.savez(tmp_path / "floats.npz", images / 255)
    assert "with values from 0 to 1; expected uint8" in inspect(tmp_path / "floats.npz")["images"]["problem"]
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    serves = inspect(tmp_path / "fid.npz")["serves"]
    assert serves["as_samples"] == []
    assert "fid" in serves["as_reference"]
    assert not {"sfid", "precision", "recall", "copied"} & set(serves["as_reference"])


def test_archives_without_images_are_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", np.zeros((2, 4, 4, 3), np.uint8))
    for name in ("set.NPZ", "set"):
        (tmp_path / name).write_bytes((tmp_path / "set.npz").read_bytes())
        assert "holds arrays, as npz files do; if it is one, rename it" in refuse("inspect", tmp_path / name)
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        archive.writestr("a.png", png(0))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(tmp_path / "inner.zip", "inner.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with lmdb.open(str(tmp_path / "lmdb")):
        pass
    for name in ("outer.zip", "empty.zip", "lmdb"):
        assert f"{name}: holds no images; expected files ending in .png" in refuse("inspect", tmp_path / name)


def test_a_folder_in_which_nothing_is_readable_is_surveyed(inspect: Inspect, tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no image")
    found = inspect(tmp_path)
    assert (found["number"], found["range"], found["unreadable"]["number"]) == (0, None, 2)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, []),
        ({"b.png": png(9, (8, 9))}, ["--size SIDE"]),
        ({"b.png": png(9, mode="L")}, ["--convert"]),
        ({"b.png": png(9, mode="RGBA"), "c.png": png(9)[:50]}, ["--convert", "--skip-bad 1"]),
    ],
)
def test_images_serve_under_the_options_that_are_named_and_no_fewer(
    changes: dict[str, bytes],
    options: list[str],
    inspect: Inspect,
    run: Callable[..., Any],
    refuse: Callable[..., str],
    reference: Path,
    tmp_path: Path,
) -> None:
    files = {f"{name}.png": png(seed) for seed, name in enumerate("abcdefgh")} | changes
    (tmp_path / "set").mkdir()
    for name, content in files.items():
        (tmp_path / "set" / name).write_bytes(content)
    serves = inspect(tmp_path / "set")["serves"]
    assert serves["with_options"] == options
    assert serves["as_samples"] == serves["as_reference"]
    assert {"fid", "sfid", "is", "precision", "coverage"} <= set(serves["as_samples"])
    assert not {"fid_infinity", "kid_subsets"} & set(serves["as_samples"])
    given = " ".join(options).replace("SIDE", "8").split()
    evaluate = ("evaluate", "--metrics", "fid", "--features", "digits", "--device", "cpu", "--no-cache")
    for sides in ((reference, tmp_path / "set"), (tmp_path / "set", reference)):
        run(*evaluate, *given, *sides)
        for option in options:
            fewer = [word for word in given if word not in option.replace("SIDE", "8").split()]
            refuse(*evaluate, *fewer, *sides)


def test_what_no_option_makes_rgb_serves_nothing(inspect: Inspect, tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    found = inspect(tmp_path)
    assert (found["never_taken"]["number"], found["unreadable"]["number"]) == (1, 0)
    assert "more than 8 bits a channel" in found["never_taken"]["first"]["deep.png"]
    assert found["serves"] == {"as_samples": [], "as_reference": [], "with_options": []}


def test_statistics_that_are_none_serve_nothing(inspect: Inspect, tmp_path: Path) -> None:
    arrays = {"mu": np.zeros(9), "sigma": np.eye(9), "mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "ref.npz", **arrays)
    assert {"fid", "sfid", "is"} <= set(inspect(tmp_path / "ref.npz")["serves"]["as_reference"])
    np.savez(tmp_path / "ref.npz", **arrays | {"sigma": np.full((9, 9), np.nan), "mu_s": np.zeros(4)})
    assert inspect(tmp_path / "ref.npz")["serves"]["as_reference"] == ["is", "is_shuffled"]


def metrics(*names: str) -> list[Metric]:
    return [registry.load("metrics", name) for name in names]


class AdmDigits(DigitsFeatures):
    """The digits features under the protocol of published numbers."""

    protocol = EvaluationProtocol(name="adm", version=1, inception_split_size=50)


@pytest.fixture(scope="module")
def features() -> DigitsFeatures:
    return DigitsFeatures.load(torch.device("cpu"))


@pytest.fixture(scope="module")
def adm_features() -> AdmDigits:
    return AdmDigits.load(torch.device("cpu"))


def drawn(tmp_path: Path, count: int = 60, labels: Sequence[int] | None = None, size: int = 8) -> Path:
    images = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    np.savez(tmp_path / "drawn.npz", images, *([] if labels is None else [np.array(labels)]))
    return tmp_path / "drawn.npz"


def test_good_samples_pass(reference: Path, features: DigitsFeatures, tmp_path: Path) -> None:
    samples = open_image_set(drawn(tmp_path, 65))
    found = check_samples(samples, Reference.open(reference), metrics("fid", "is", "precision"), features)
    assert found.warnings == ()
    assert found.digest == samples.digest()


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (60, 12, "images are 12 x 12, but the reference's are 8 x 8"),
        (3, 8, "holds 3 images; precision needs 4 or more"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    count: int, size: int, expected: str, reference: Path, features: DigitsFeatures, tmp_path: Path
) -> None:
    samples = open_image_set(drawn(tmp_path, count, size=size))
    with pytest.raises(InputError, match=f"(?i){expected}"):
        check_samples(samples, Reference.open(reference), metrics("fid", "precision"), features)


def test_the_reference_is_no_sample_under_whatever_name_and_in_whatever_container(
    reference: Path, features: DigitsFeatures, tmp_path: Path
) -> None:
    with np.load(reference) as arrays:
        np.savez(tmp_path / "mixed.npz", arrays["arr_0"][::-1])
    (tmp_path / "copy.npz").write_bytes(reference.read_bytes())
    (tmp_path / "set").mkdir()
    for index in range(8):
        (tmp_path / f"set/{index}.png").write_bytes(png(index))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for samples, known in (
        (reference, reference),
        (tmp_path / "copy.npz", reference),
        (tmp_path / "link", tmp_path / "set"),
        (tmp_path / "mixed.npz", reference),
        (Path("digits"), reference),
    ):
        with pytest.raises(InputError, match=r"is the reference itself .*; give samples of a generator"):
            check_samples(open_image_set(samples), Reference.open(known), metrics("fid"), features)


def test_bad_images_are_found_before_the_network_runs(
    reference: Path, features: DigitsFeatures, tmp_path: Path
) -> None:
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "7.png").write_bytes(png(7, mode="L"))
    with pytest.raises(InputError, match=r"7.png: is greyscale"):
        check_samples(open_image_set(tmp_path), Reference.open(reference), metrics("fid"), features)


def test_a_reference_that_cannot_serve_is_found_before(
    samples: Path, features: DigitsFeatures, tmp_path: Path, reference: Path
) -> None:
    with np.load(reference) as arrays:
        kept = {name: arrays[name] for name in ("mu", "sigma", "adm_bench")}
    np.savez(tmp_path / "ref.npz", **kept)
    opened = Reference.open(tmp_path / "ref.npz")
    check_samples(open_image_set(samples), opened, metrics("fid", "is"), features)
    with pytest.raises(InputError, match="it serves FID only"):
        check_samples(open_image_set(samples), opened, metrics("fid", "sfid"), features)


def warned(samples: Any, reference: Path, features: DigitsFeatures, *names: str) -> str:
    return "\n".join(check_samples(samples, Reference.open(reference), metrics(*names), features).warnings)


def test_few_samples_are_warned_of_under_published_protocols(
    reference: Path, adm_features: AdmDigits, tmp_path: Path
) -> None:
    said = warned(open_image_set(drawn(tmp_path, 500)), reference, adm_features, "fid")
    assert "500 samples, where published numbers of protocol adm are of 50000" in said
    assert "goes as 1/n and is 100 times that of 50000" in said


def test_class_sorted_samples_are_warned_of(reference: Path, adm_features: AdmDigits, tmp_path: Path) -> None:
    for labels, expected in (
        (np.repeat(np.arange(10), 20), "labels are sorted by class"),
        (np.repeat(np.arange(10)[::-1], 20), "labels are not shuffled"),
        (np.arange(200) % 10, ""),
        (np.random.default_rng(0).integers(0, 10, 200), ""),
    ):
        samples = open_image_set(drawn(tmp_path, 200, labels.tolist()))
        said = warned(samples, reference, adm_features, "is")
        assert (expected in said and "meaningless" in said) if expected else "meaningless" not in said
        assert "meaningless" not in warned(samples, reference, adm_features, "fid")


def test_mixing_of_labels_is_a_share() -> None:
    assert label_mixing(np.zeros(100, np.int64), 10) == 1
    assert label_mixing(np.repeat(np.arange(10), 10), 10) == 0
    assert label_mixing(np.random.default_rng(0).integers(0, 1000, 50_000), 5000) > 0.98


def test_lossy_samples_and_copies_are_warned_of(reference: Path, features: DigitsFeatures, tmp_path: Path) -> None:
    (tmp_path / "jpeg").mkdir()
    for index in range(8):
        (tmp_path / f"jpeg/{index}.jpg").write_bytes(png(index, form="JPEG"))
    assert "stored with loss" in warned(open_image_set(tmp_path / "jpeg"), reference, features, "fid")
    digits = open_image_set("digits")
    with np.load(reference) as arrays:  # a large data set's reference does not hold all images either
        np.savez(tmp_path / "ref.npz", **{name: arrays[name] for name in ("mu", "sigma", "adm_bench")})
    assert "the very images that the reference is of" in warned(digits, tmp_path / "ref.npz", features, "fid")
    made = IteratedImages("made", iter([torch.zeros(5, 3, 8, 8, dtype=torch.uint8)]), 5, (8, 8))
    found = check_samples(made, Reference.open(reference), metrics("fid"), features)
    assert found.digest is None
    assert sum(map(len, made.batches(5))) == 5
