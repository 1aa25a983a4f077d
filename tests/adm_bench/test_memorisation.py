"""`adm-bench figure neighbours` and `figure memorisation`: what they draw and say of known copies and of new images."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from adm_bench import memorisation, progress
from adm_bench.errors import InputError
from adm_bench.extraction import Extraction
from adm_bench.images.digits import open_digits
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.sources import open_image_set
from adm_bench.memorisation import choose_samples, open_training, show_memorisation, show_neighbours
from metrics.comparison import Comparison
from metrics.features.digits import DigitsFeatures

Run = Callable[..., Result]
Refuse = Callable[..., str]
DIGITS = ("--features", "digits", "--device", "cpu", "--no-cache")
NUMBERS = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def extraction() -> Extraction:
    return Extraction(features=DigitsFeatures.load(torch.device("cpu")))


@pytest.fixture(scope="module")
def fresh(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of a generator that copies nothing."""
    out = tmp_path_factory.mktemp("fresh") / "gaussian.npz"
    run("sample", "gaussian", "--data", "digits", "--num", "80", "--out", out, "--device", "cpu")
    return out


def png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_neighbours_are_the_nearest_images(run: Run, fresh: Path, extraction: Extraction, tmp_path: Path) -> None:
    out = tmp_path / "n.png"
    line = run(
        "figure", "neighbours", "digits", fresh, *DIGITS, "--samples", "7,70,3", "--neighbours", "4", "--out", out
    )
    with np.load(fresh) as arrays:
        samples = arrays["arr_0"][[7, 70, 3]]
    training = open_digits().images
    ours, theirs = (
        extraction.features(torch.from_numpy(images)).pool.double()
        for images in (samples.transpose(0, 3, 1, 2).copy(), training)
    )
    distances = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(4, largest=False)
    picture = png(out)
    top, tile, pitch = 30, 64, 64 + 22
    for row, sample in enumerate(samples):
        y = top + row * pitch
        assert (picture[y : y + tile : 8, 8 : 8 + tile : 8] == sample).all()
        for place, index in enumerate(nearest.indices[row]):
            x = 98 + place * 66
            assert (picture[y : y + tile : 8, x : x + tile : 8] == training[index].transpose(1, 2, 0)).all()
    said = line.stdout.partition("nearest ones lie at ")[2]
    low, high, median = (float(number) for number in NUMBERS.findall(said)[:3])
    first = nearest.values[:, 0]
    assert [low, high, median] == pytest.approx(
        [float(f(first)) for f in (torch.min, torch.max, torch.median)], rel=1e-3
    )


def test_npz_folders_and_names_of_training_images_give_the_same_figure(
    run: Run, reference: Path, fresh: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "png"
    folder.mkdir()
    for index, image in enumerate(open_digits().images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:04d}.png")
    pictures = []
    for number, training in enumerate(("digits", reference, folder)):
        features = () if training == reference else DIGITS[:2]
        out = tmp_path / f"{number}.png"
        run("figure", "neighbours", training, fresh, *features, *DIGITS[2:], "--num", "3", "--out", out)
        pictures.append(png(out))
    assert all((picture == pictures[0]).all() for picture in pictures[1:])


def test_samples_are_drawn_by_the_seed(samples: Path) -> None:
    images = open_image_set(samples)
    first, again, other = (choose_samples(images, 8, seed) for seed in (0, 0, 1))
    assert first == again == sorted(set(first))
    assert first != other
    assert choose_samples(images, len(images), 5) == list(range(60))


def test_encoded_images_are_picked_and_not_all_decoded(
    extraction: Extraction, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, image in enumerate(open_digits().images[:200]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index:04d}.png")
    training, images = open_training(tmp_path), open_image_set(fresh)
    read: list[int] = []
    plain = EncodedImages.read

    def counted(self: EncodedImages, indices: list[int]) -> object:
        read.extend(indices)
        return plain(self, indices)

    monkeypatch.setattr(EncodedImages, "read", counted)
    show_neighbours(training, images, extraction, [0, 1], num_neighbours=3, scale=None)
    assert 3 <= len(read) == len(set(read)) <= 6


def test_a_memoriser_and_a_generator_of_new_images_look_different(
    run: Run, samples: Path, fresh: Path, tmp_path: Path
) -> None:
    shares, medians, pictures = [], [], []
    for number, source in enumerate((samples, fresh)):
        out = tmp_path / f"{number}.png"
        text = run("figure", "memorisation", "digits", source, *DIGITS, "--out", out).stdout
        share, *_ = NUMBERS.findall(text.partition("features digits ")[2].partition(": ")[2])
        shares.append(float(share))
        medians.append([float(number) for number in NUMBERS.findall(text.partition("median distance")[2])])
        pictures.append(png(out))
    assert shares == [100, 0]
    assert medians[0][0] == 0
    assert medians[1][0] > medians[1][1] == medians[0][1] > 0
    assert (pictures[0] != pictures[1]).any(axis=2).mean() > 0.005
    copied = run("evaluate", "digits", fresh, *DIGITS, "--metrics", "copied").stdout.splitlines()[1]
    assert float(copied.split()[1]) == shares[1] / 100


def test_few_samples_are_told_of(run: Run, samples: Path, tmp_path: Path) -> None:
    with np.load(samples) as arrays:
        np.savez(tmp_path / "few.npz", arr_0=arrays["arr_0"][:5])
    few = run("figure", "memorisation", "digits", tmp_path / "few.npz", *DIGITS, "--out", tmp_path / "few.png")
    assert "5 samples are few: the share of copies is known no closer than 56.6 to 100 % (95 %)" in few.stderr
    many = run("figure", "memorisation", "digits", samples, *DIGITS, "--out", tmp_path / "many.png")
    assert "are few" not in many.stderr


def test_progress_is_shown_while_distances_are_found(
    run: Run, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SEC", 0)
    monkeypatch.setattr(progress, "WORTH_A_LINE_SEC", 0)
    monkeypatch.setattr(memorisation, "Comparison", partial(Comparison, tile_rows=500))
    said = run("figure", "memorisation", "digits", fresh, *DIGITS, "--out", tmp_path / "a.png").stderr
    lines = [line for line in said.splitlines() if line.startswith("distances to training images: ")]
    total = 1797 + len(open_image_set(fresh))
    done = [float(line.split()[4].partition("/")[0]) for line in lines]
    assert len(done) > 10
    assert done == sorted(done)
    assert f"{total}/{total} images in" in lines[-1]


def test_features_of_training_images_are_kept(run: Run, fresh: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADM_BENCH_HOME", str(tmp_path / "home"))
        for kind, parts in (("neighbours", 8), ("memorisation", 9)):
            out = tmp_path / f"{kind}.png"
            run("figure", kind, "digits", fresh, *DIGITS[:4], "--out", out)
            assert len(list((tmp_path / "home").rglob("part_*"))) == parts
            plain = tmp_path / f"{kind}_plain.png"
            run("figure", kind, "digits", fresh, *DIGITS, "--memory-gb", "0", "--out", plain)
            assert out.read_bytes() == plain.read_bytes()


def test_what_cannot_be_drawn_is_refused_first(refuse: Refuse, samples: Path, fresh: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    figure = ("figure", "neighbours", "digits", samples, *DIGITS, "--out", out)
    assert "there is no image 60" in refuse(*figure, "--samples", "0,60")
    assert "there is no image -1" in refuse(*figure, "--samples=-1")
    assert "such as 0,10,25" in refuse(*figure, "--samples", "0,b")
    assert "--num 61" in refuse(*figure, "--num", "61")
    assert "--neighbours 1798" in refuse(*figure, "--neighbours", "1798")
    assert "megapixels" in refuse(*figure, "--neighbours", "1700", "--scale-up", "64")
    assert "adm-bench fetch inception" in refuse("figure", "memorisation", "digits", samples, "--out", out)
    for kind in ("neighbours", "memorisation"):
        assert "is the reference itself" in refuse("figure", kind, samples, samples, *DIGITS, "--out", out)
        assert "ends in .png" in refuse("figure", kind, fresh, samples, *DIGITS, "--out", tmp_path / "a.jpg")
        small = tmp_path / "small.npz"
        np.savez(small, arr_0=np.zeros((9, 4, 4, 3), np.uint8))
        assert "images are 8 x 8, but the reference's are 4 x 4" in refuse(
            "figure", kind, small, samples, *DIGITS, "--out", out
        )
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "0.png")
        inside = tmp_path / "set" / "out.png"
        assert "lies in the data set" in refuse("figure", kind, tmp_path / "set", samples, *DIGITS, "--out", inside)
    assert "needs 2; add images" in refuse("figure", "memorisation", tmp_path / "set", samples, *DIGITS, "--out", out)
    assert not out.exists()
    out.touch()
    assert "--overwrite" in refuse(*figure)


def test_a_part_of_the_training_images_is_said_to_be_one(
    extraction: Extraction, reference: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(reference) as arrays:
        stored = dict(arrays)
    stored["arr_0"] = stored["arr_0"][:50]
    stored["arr_1"] = stored["arr_1"][:50]
    np.savez(tmp_path / "part.npz", **stored)
    training = open_training(tmp_path / "part.npz")
    assert "holds 50 of the 1797 images" in capsys.readouterr().err
    found = show_memorisation(training, open_image_set(fresh), extraction)
    assert "against 50 training images" in found.text
    with pytest.raises(InputError, match="--neighbours 51"):
        show_neighbours(training, open_image_set(fresh), extraction, [0], num_neighbours=51, scale=1)
