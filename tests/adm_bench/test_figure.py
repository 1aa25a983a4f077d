"""Figures show what they say: every pixel of a picture is an image that the model gave, every number is in it."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from adm_bench.errors import InputError
from adm_bench.exploration import (
    choose_images,
    default_pairs,
    neighbour_difference,
    open_images,
    open_round_trip_model,
    psnr,
    show_ways,
    squared_errors,
)
from adm_bench.images.dataset import ArrayDataset
from adm_bench.images.digits import open_digits
from generators.adm.config import AdmConfig
from generators.adm.generator import Adm
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping
from generators.levels import from_uint8, to_uint8
from generators.unet.checkpoint import WeightsHeader, read_header, write_weights
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet
from reports.figures import CAPTION_GAP_PX, GRID_GAP_PX

Run = Callable[..., object]
Refuse = Callable[..., str]
Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")
FEW = ("--sampling-steps", "10", "--device", "cpu")
TILE = 64


@pytest.fixture(scope="module")
def learned(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and a classifier that have learned a little, in some seconds."""
    folder = tmp_path_factory.mktemp("learned")
    for kind, steps, changes in (
        ("adm", 60, ("--batch", "16", "--set", "training.warmup_steps=10")),
        ("classifier", 80, ()),
    ):
        base = ["train", kind, "--data", "digits", "--out", folder / kind, "--steps", str(steps), "--device", "cpu"]
        run(*base, "--set", "model.attention_resolutions=[4]", *changes)
    return {kind: folder / kind for kind in ("adm", "classifier")}


def labelled(labels: Sequence[int] | None, size: int = 8, num_images: int = 7) -> ArrayDataset:
    found = None if labels is None else np.array(labels, np.int64)
    return ArrayDataset(
        name="made",
        images=np.zeros((num_images if labels is None else len(labels), 3, size, size), np.uint8),
        labels=found,
        num_classes=None if found is None else int(found.max()) + 1,
        source_digest="0" * 64,
    )


def rows_of(path: Path, num_rows: int, num_columns: int, tile: int = TILE, side: int = 8) -> Pixels:
    """The images of a figure, (rows, columns, side, side, 3), from its right-hand side."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    step = tile + GRID_GAP_PX
    left = pixels.shape[1] - CAPTION_GAP_PX - num_columns * step + GRID_GAP_PX
    assert pixels.shape[0] == num_rows * step - GRID_GAP_PX + 2 * CAPTION_GAP_PX
    assert left > 40  # room for captions
    places = [
        [(CAPTION_GAP_PX + row * step, left + column * step) for column in range(num_columns)]
        for row in range(num_rows)
    ]
    tiles = np.array([[pixels[y : y + tile, x : x + tile] for y, x in row] for row in places])
    return tiles[:, :, :: tile // side, :: tile // side]


def numbers_in(result: object) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+|-?\d+|inf", result.stdout.partition(": ")[2])]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("labels", "num_images", "expected"),
    [
        (None, 3, [0, 1, 2]),
        (None, None, list(range(7))),
        ([0, 0, 0, 1, 1, 2], None, [0, 1, 2, 3, 4, 5]),
        ([0, 0, 0, 1, 1, 2], 1, [0]),
        ([0, 0, 0, 1, 1, 2], 2, [0, 3]),
        ([0, 0, 0, 1, 1, 2], 3, [0, 3, 5]),
        ([0, 0, 0, 1, 1, 2], 4, [0, 3, 5, 1]),
        ([0, 0, 0, 1, 1, 2], 6, [0, 3, 5, 1, 4, 2]),
        ([7, 3, 7, 3, 9], 3, [1, 0, 4]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5, [0, 2, 4, 6, 8]),
    ],
)
def test_images_are_spread_over_classes(labels: list[int] | None, num_images: int | None, expected: list[int]) -> None:
    assert choose_images(labelled(labels), num_images) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [(0, 1), (2, 3), (4, 5)]),
        ([1, 0, 1, 0, 1, 2], [(1, 3), (0, 2)]),
        (list(range(10)) * 2, [(0, 10), (2, 12), (5, 15), (7, 17)]),
    ],
)
def test_pairs_are_of_one_class(labels: list[int] | None, expected: list[tuple[int, int]]) -> None:
    assert default_pairs(labelled(labels)) == expected


def test_pairs_need_two_images_of_a_class() -> None:
    with pytest.raises(InputError, match="no two images of one class"):
        default_pairs(labelled([0, 1, 2]))


@pytest.mark.parametrize(("difference", "expected"), [(0, math.inf), (1, 48.1308), (255, 0.0)])
def test_psnr(difference: int, expected: float) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    errors = squared_errors(images, images + difference)
    assert errors.tolist() == [difference**2] * 2
    assert psnr(float(errors.mean())) == pytest.approx(expected, abs=1e-4)


def test_neighbours_are_beside_and_below_each_other() -> None:
    stripes = torch.tensor([[0, 10, 0, 10]] * 3, dtype=torch.uint8).expand(2, 3, 3, 4)
    assert neighbour_difference(stripes) == pytest.approx(10 * 9 / (9 + 8))
    assert neighbour_difference(torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)) == 0


def test_a_reconstruction_shows_what_it_measured(run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "trip.png"
    result = run("figure", "reconstruction", "--weights", filled["adm"], "--data", "digits", "--out", out, *FEW)
    original, latent, decoded = rows_of(out, 3, 8)
    digits = open_digits(8)
    indices = choose_images(digits, 8)
    np.testing.assert_array_equal(original, digits.images[indices].transpose(0, 2, 3, 1))
    errors = (original.astype(float) - decoded) ** 2
    shown = [10 * math.log10(255**2 / errors.mean()), 10 * math.log10(255**2 / errors.mean(axis=(1, 2, 3)).max())]
    worst = indices[int(errors.mean(axis=(1, 2, 3)).argmax())]
    assert numbers_in(result) == pytest.approx([8, 10, *shown, worst], abs=0.006)
    model = open_round_trip_model(filled["adm"], {"sampling_steps": 10}, CPU)
    x = model.encode(torch.from_numpy(digits.images[indices]), torch.from_numpy(digits.labels[indices]))  # type: ignore[index]
    np.testing.assert_array_equal(latent, to_uint8(x, "nearest").permute(0, 2, 3, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["trip.png"]


def test_a_finer_round_trip_is_a_better_one(run: Run, learned: dict[str, Path], tmp_path: Path) -> None:
    base = ["figure", "reconstruction", "--weights", learned["adm"], "--data", "digits", "--num", "2"]
    found = []
    for steps in ("25", "250"):
        asked = () if steps == "250" else ("--sampling-steps", steps)  # which is the default
        result = run(*base, *asked, "--device", "cpu", "--out", tmp_path / f"{steps}.png")
        assert f"through {steps} DDIM steps" in result.stdout  # type: ignore[attr-defined]
        found.append(numbers_in(result)[2])
    assert 30 < found[0] < found[1] - 10


def test_only_some_of_many_images_are_shown(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "trip.png"
    base = ["figure", "reconstruction", "--weights", model, "--data", "digits", "--num", "20", "--out", out]
    result = run(*base, "--sampling-steps", "2", "--scale-up", "2", "--device", "cpu")
    assert numbers_in(result)[0] == 20
    digits = open_digits(8)
    shown = digits.images[choose_images(digits, 20)[:16]]
    np.testing.assert_array_equal(rows_of(out, 3, 16, tile=16)[0], shown.transpose(0, 2, 3, 1))


def test_ways_begin_and_end_at_reconstructions(run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    base = ["--weights", filled["adm"], "--data", "digits", *FEW]
    out = tmp_path / "ways.png"
    result = run("figure", "interpolation", *base, "--pairs", "0:11,2:0,5:5", "--points", "4", "--out", out)
    ways = rows_of(out, 3, 4)
    model = open_round_trip_model(filled["adm"], {"sampling_steps": 10}, CPU)
    digits = open_digits(8)
    images, labels = (torch.from_numpy(found) for found in (digits.images[[0, 2, 5, 11]], digits.labels[[0, 2, 5, 11]]))  # type: ignore[index]
    decoded = model.decode(model.encode(images, labels), labels).permute(0, 2, 3, 1).numpy()
    expected = decoded[[[0, 3], [1, 0], [2, 2]]]
    assert np.abs(ways[:, [0, -1]].astype(int) - expected).max() <= 1
    assert np.abs(ways[0, 1].astype(int) - ways[0, 0]).mean() > 1
    assert np.abs(ways[2].astype(int) - decoded[2]).max() <= 1  # from an image to itself there is nothing between
    assert numbers_in(result)[:3] == [3, 4, 10]


def test_points_have_the_class_of_the_nearer_end(filled: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_round_trip_model(filled["adm"], {"sampling_steps": 2}, CPU)
    told = []
    honest = Adm.decode

    def decode(self: Adm, latents: torch.Tensor, labels: torch.Tensor, evaluated: Callable[[], None]) -> torch.Tensor:
        told.append(labels.tolist())
        return honest(self, latents, labels, evaluated)

    monkeypatch.setattr(Adm, "decode", decode)
    shown = show_ways(model, open_digits(8), [(3, 1), (4, 14)], num_points=5, batch_size=5)
    assert told == [[3, 3, 3, 1, 1], [4, 4, 4, 4, 4]]
    assert [caption for caption, _ in shown.strips] == ["3 : 1, class 3 to 1", "4 : 14, class 4"]


def sampled(run: Run, out: Path, weights: Path, *options: object) -> Pixels:
    base = ["sample", "adm", "--weights", weights, "--num", "5", "--seed", "3", "--batch", "16", *FEW]
    run(*base, *options, "--out", out)
    with np.load(out, allow_pickle=False) as arrays:
        images: Pixels = arrays["arr_0"]
        return images


def test_guidance_shows_what_sample_draws(run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "scales.png"
    guide = ["--classifier", filled["classifier"]]
    base = ["--weights", filled["adm"], *guide, "--scales", "0,9,3", "--num", "5", "--seed", "3"]
    result = run("figure", "guidance", *base, "--out", out, *FEW)
    rows = rows_of(out, 3, 5)
    np.testing.assert_array_equal(rows[0], sampled(run, tmp_path / "0.npz", filled["adm"]))
    for row, scale in ((1, "9"), (2, "3")):
        drawn = sampled(run, tmp_path / f"{scale}.npz", filled["adm"], *guide, "--guidance-scale", scale)
        np.testing.assert_array_equal(rows[row], drawn)
    classifier = Classifier(PRESETS["digits8_classifier"].config.model)  # type: ignore[arg-type]
    classifier.load_state_dict(load_file(filled["classifier"]))
    with torch.inference_mode():
        seen = from_uint8(torch.from_numpy(rows.reshape(15, 8, 8, 3).transpose(0, 3, 1, 2).copy()))
        classes = classifier.eval()(seen, torch.zeros(15)).argmax(dim=1).view(3, 5)
    shares = [round(100 * float((row == torch.arange(5)).double().mean()), 1) for row in classes]
    assert numbers_in(result) == [5, shares[0], 0, shares[1], 9, shares[2], 3]


def test_stronger_guidance_is_more_recognised(run: Run, learned: dict[str, Path], tmp_path: Path) -> None:
    """An unconditional model, whose samples' classes are the guide's doing alone."""
    config = PRESETS["digits8"].config
    assert isinstance(config, AdmConfig)
    config = replace(config, model=replace(config.model, num_classes=None))
    torch.manual_seed(0)
    weights = tmp_path / "unconditional.safetensors"
    write_weights(weights, WeightsHeader(kind="adm", config=to_mapping(config)), UNet(config.model).state_dict())
    base = ["--weights", weights, "--classifier", learned["classifier"], "--scales", "0,10", "--num", "20", *FEW]
    result = run("figure", "guidance", *base, "--out", tmp_path / "scales.png")
    _, unguided, _, guided, _ = numbers_in(result)
    assert guided >= unguided + 40


@pytest.mark.parametrize("of", ["noise", "epsilon"])
def test_temperatures_show_what_sample_draws(of: str, run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "cooler.png"
    base = ["--weights", filled["adm"], "--temperatures", "1,0.5", "--num", "5", "--seed", "3", "--of", of]
    result = run("figure", "temperature", *base, "--out", out, *FEW)
    rows = rows_of(out, 2, 5)
    np.testing.assert_array_equal(rows[0], sampled(run, tmp_path / "1.npz", filled["adm"]))
    cooler = sampled(run, tmp_path / "half.npz", filled["adm"], "--set", f"{of}_temperature=0.5")
    np.testing.assert_array_equal(rows[1], cooler)
    assert (rows[0] != rows[1]).any()
    levels = rows.astype(float)
    steps = [np.concatenate([np.diff(row, axis=axis).ravel() for axis in (1, 2)]) for row in levels]
    told = [float(np.abs(each).mean()) for each in steps]
    assert numbers_in(result) == pytest.approx([5, told[0], 1, told[1], 0.5], abs=0.051)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (labelled(None), "has no labels"),
        (labelled([0, 10]), "has 11 classes; the model has 10"),
        (labelled([0, 1], size=4), "images of size 4; the model's are 8"),
    ],
)
def test_data_must_fit_the_model(
    dataset: ArrayDataset, expected: str, filled: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adm_bench.exploration.open_dataset", lambda *_: dataset)
    with pytest.raises(InputError, match=expected):
        open_images("made", open_round_trip_model(filled["adm"], {"sampling_steps": 2}, CPU))


def test_a_folder_with_a_class_too_few_is_refused(refuse: Refuse, filled: dict[str, Path], tmp_path: Path) -> None:
    """Its labels are ranks, so they would not be the model's; those of an npz are."""
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "1.png")
    base = ["figure", "reconstruction", "--weights", filled["adm"], "--num", "2", *FEW]
    line = refuse(*base, "--data", tmp_path / "pets", "--out", tmp_path / "out.png")
    assert "has 2 classes; the model has 10" in line
    inside = tmp_path / "pets" / "out.png"
    assert "lies in the data set" in refuse(*base, "--data", tmp_path / "pets", "--out", inside)
    assert not inside.exists()


TRIP = ("figure", "reconstruction", "--weights", "ADM", "--data", "digits", "--out", "OUT.png")
WAYS = ("figure", "interpolation", "--weights", "ADM", "--data", "digits", "--out", "OUT.png")
GUIDED = ("figure", "guidance", "--weights", "ADM", "--classifier", "CLS", "--out", "OUT.png")
COOLER = ("figure", "temperature", "--weights", "ADM", "--out", "OUT.png")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*TRIP, "--num", "1798"], "--num 1798: the data set digits holds 1797 images"),
        ([*TRIP, "--num", "0"], "'--num': 0 is not in the range"),
        ([*TRIP, "--scale-up", "65"], "'--scale-up': 65 is not in the range"),
        ([*TRIP, "--set", "sampler=ddpm"], "only sampler 'ddim' at eta 0"),
        ([*TRIP, "--set", "eta=0.5"], "only sampler 'ddim' at eta 0"),
        ([*TRIP, "--set", "guidance_scale=2"], "--set guidance_scale: encoding and decoding are not guided"),
        ([*TRIP, "--set", "clp=false"], "unknown key 'clp'; did you mean 'clip'"),
        ([*TRIP, "--sampling-steps", "300"], "the nearest it can are 250 and 334"),
        ([*TRIP, "--weights", "CLS"], "weights of kind 'classifier', expected 'adm'"),
        ([*TRIP, "--weights", "/nowhere"], "--weights /nowhere: no such file or run"),
        ([*TRIP, "--data", "digit"], "did you mean 'digits'"),
        ([*TRIP, "--out", "OUT.jpg"], "give it a name that ends in .png"),
        ([*WAYS, "--pairs", "0:1797"], "there is no image 1797; data set digits has 0 to 1796"),
        ([*WAYS, "--pairs", "-1:3"], "there is no image -1"),
        ([*WAYS, "--pairs", "0-3"], "'0-3' is no pair of images; expected two indices, such as 0:10"),
        ([*WAYS, "--pairs", "0:3,"], "'' is no pair of images"),
        ([*WAYS, "--points", "1"], "'--points': 1 is not in the range"),
        ([*GUIDED, "--scales", "0,-1"], "'--scales': -1 is out of range; expected 0 or more"),
        ([*GUIDED, "--scales", "nan"], "'--scales': nan is out of range"),
        ([*GUIDED, "--scales", "0"], "expected a scale above 0 too"),
        ([*GUIDED, "--scales", "1,two"], "'1,two' is no list of numbers"),
        ([*GUIDED, "--classifier", "ADM"], "weights of kind 'adm', expected 'classifier'"),
        ([*GUIDED, "--set", "guidance_scale=2"], "figure guidance has --classifier, --classifier-preset and --scales"),
        ([*GUIDED, "--labels", "FEW.txt"], "holds 3 labels, but 10 images are asked for"),
        ([*COOLER, "--temperatures", "1,0"], "'--temperatures': 0 is out of range; expected above 0"),
        ([*COOLER, "--temperatures", "-0.5"], "'--temperatures': -0.5 is out of range"),
        ([*COOLER, "--set", "sampler=ddim", "--sampling-steps", "2"], "0.98 is without effect"),
        ([*COOLER, "--set", "epsilon_temperature=0.9"], "is what --of and --temperatures are for"),
        ([*COOLER, "--of", "nose"], "'nose' is not one of 'noise', 'epsilon'"),
        (["figure", "reconstructon"], "No such command 'reconstructon'"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], expected: str, refuse: Refuse, filled: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text("1 2 3")
    places = {"ADM": filled["adm"], "CLS": filled["classifier"], "FEW.txt": tmp_path / "few.txt"}
    places |= {name: tmp_path / name.lower() for name in ("OUT.png", "OUT.jpg")}
    assert expected in refuse(*(str(places.get(word, word)) for word in arguments), "--device", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["few.txt"]


def test_a_temperature_of_epsilon_needs_a_model_that_predicts_it(
    refuse: Refuse, filled: dict[str, Path], tmp_path: Path
) -> None:
    header = read_header(filled["adm"])
    config = {**header.config, "diffusion": {**header.config["diffusion"], "prediction": "x0"}}
    weights = tmp_path / "x0.safetensors"
    write_weights(weights, WeightsHeader(kind="adm", config=config), load_file(filled["adm"]))
    line = refuse("figure", "temperature", "--weights", weights, "--of", "epsilon", "--out", tmp_path / "o.png", *FEW)
    assert "--of epsilon: a temperature of epsilon needs prediction 'epsilon', not 'x0'" in line


def test_nothing_is_replaced_unasked(run: Run, refuse: Refuse, model: Path, tmp_path: Path) -> None:
    out, link = tmp_path / "out.png", tmp_path / "link.png"
    out.write_text("precious")
    link.symlink_to(out)
    base = ["figure", "temperature", "--weights", model, "--num", "1", "--sampling-steps", "2", "--device", "cpu"]
    assert "pass --overwrite" in refuse(*base, "--out", out)
    assert "is a link" in refuse(*base, "--out", link, "--overwrite")
    labels = tmp_path / "labels.png"
    labels.write_text("1")
    assert "is an input" in refuse(*base, "--labels", labels, "--out", labels, "--overwrite")
    assert (out.read_text(), labels.read_text()) == ("precious", "1")
    run(*base, "--out", out, "--overwrite")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_weights_that_are_not_finite_are_refused(refuse: Refuse, filled: dict[str, Path], tmp_path: Path) -> None:
    broken = {name: torch.full_like(value, torch.nan) for name, value in load_file(filled["adm"]).items()}
    write_weights(tmp_path / "nan.safetensors", read_header(filled["adm"]), broken)
    base = ["--weights", tmp_path / "nan.safetensors", "--out", tmp_path / "out.png", *FEW]
    assert "not finite" in refuse("figure", "reconstruction", "--data", "digits", *base)
    assert "not finite" in refuse("figure", "temperature", *base)
    assert not (tmp_path / "out.png").exists()
