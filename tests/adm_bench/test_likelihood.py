"""Bits per dimension: parts add up, images keep their noise, files say what was measured."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adm_bench.files import file_sha256
from adm_bench.images.dataset import ArrayDataset
from adm_bench.images.digits import open_digits
from adm_bench.likelihood import MeasuredLikelihood, measure_likelihood, open_likelihood_model
from adm_bench.sampling import image_seeds
from generators.adm.config import AdmConfig
from generators.adm.generator import Adm
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping
from generators.diffusion.likelihood import bits_per_dim
from generators.diffusion.noise import SeededNoise
from generators.levels import from_uint8
from generators.unet.checkpoint import WeightsHeader, read_header, write_weights
from generators.unet.unet import UNet
from reports.records import Record

Run = Callable[..., object]
Refuse = Callable[..., str]
CPU = torch.device("cpu")
FEW = ("--sampling-steps", "10", "--device", "cpu")
PARTS = ("vb_q0", "vb_q1", "vb_q2", "vb_q3")


@pytest.fixture(scope="module")
def coarse(filled: dict[str, Path]) -> Adm:
    """A model on ten steps."""
    return open_likelihood_model(filled["adm"], {"sampling_steps": 10}, CPU)


def first_digits(num_images: int) -> ArrayDataset:
    digits = open_digits(8)
    assert digits.labels is not None
    return replace(digits, images=digits.images[:num_images], labels=digits.labels[:num_images])


def measure(model: Adm, num_images: int | None, batch_size: int = 4, seed: int = 0) -> MeasuredLikelihood:
    return measure_likelihood(model, first_digits(12), num_images=num_images, seed=seed, batch_size=batch_size)


def test_measured_as_the_bound_of_the_whole_set(coarse: Adm) -> None:
    found, digits = measure(coarse, None, batch_size=5), first_digits(12)
    assert digits.labels is not None
    noise = SeededNoise(image_seeds(0, range(12)), (3, 8, 8), CPU)
    denoiser = coarse.sampler.denoiser(torch.from_numpy(digits.labels))
    whole = bits_per_dim(coarse.sampler.diffusion, denoiser, from_uint8(torch.from_numpy(digits.images)), noise)
    for name, expected in (("bits_per_dim", whole.total), ("prior", whole.prior), ("vb_step0", whole.vb[:, -1])):
        np.testing.assert_allclose(found.by_image[name], expected, rtol=1e-4)
    for name, table in (("vb_terms", whole.vb), ("mse_terms", whole.epsilon_mse), ("xstart_mse_terms", whole.x0_mse)):
        np.testing.assert_allclose(found.terms[name], table.mean(dim=0), rtol=1e-4)
    assert found.terms["timesteps"].tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert found.num_images == 12


def test_parts_add_up(coarse: Adm) -> None:
    found = measure(coarse, None)
    total = sum(found.by_image[name] for name in ("prior", *PARTS))
    np.testing.assert_allclose(found.by_image["bits_per_dim"], total, rtol=1e-12)
    vb = found.terms["vb_terms"][::-1]
    quarters = (vb[:3].sum(), vb[3:5].sum(), vb[5:8].sum(), vb[8:].sum())  # floor(4 * step / 10)
    assert [found.mean(name) for name in PARTS] == pytest.approx(quarters)
    assert found.mean("vb_step0") == pytest.approx(vb[0])
    assert found.standard_error("prior") == pytest.approx(np.std(found.by_image["prior"], ddof=1) / math.sqrt(12))


def test_an_image_keeps_its_noise(coarse: Adm) -> None:
    """Neither the batch nor the number of images changes what is measured for one; the seed does."""
    everything = measure(coarse, None).by_image["bits_per_dim"]
    np.testing.assert_allclose(measure(coarse, None, batch_size=1).by_image["bits_per_dim"], everything, rtol=1e-4)
    # the first ten are one of each class, in order; of five, every second class is taken
    np.testing.assert_allclose(measure(coarse, 5).by_image["bits_per_dim"], everything[[0, 2, 4, 6, 8]], rtol=1e-4)
    assert (np.abs(measure(coarse, None, seed=1).by_image["bits_per_dim"] / everything - 1) > 1e-3).all()


def test_labels_matter(coarse: Adm) -> None:
    right = measure(coarse, None)
    digits = first_digits(12)
    assert digits.labels is not None
    shuffled = replace(digits, labels=digits.labels[::-1].copy())
    wrong = measure_likelihood(coarse, shuffled, num_images=None, seed=0, batch_size=4)
    assert (wrong.by_image["bits_per_dim"] != right.by_image["bits_per_dim"]).any()
    np.testing.assert_allclose(wrong.by_image["prior"], right.by_image["prior"])


def test_a_model_that_says_nothing_is_worse_than_one_that_learned(
    run: Run, filled: dict[str, Path], model: Path
) -> None:
    """Random weights against ones that begin by predicting no noise at all; the prior is theirs in common."""
    bits = {}
    for name, weights in (("random", filled["adm"]), ("begun", model)):
        result = run("likelihood", "digits", "--weights", weights, "--num", "10", *FEW)
        rows = re.findall(r"^(\w[\w ]+?) +(\d+\.\d{4}) ± (\d+\.\d{4})$", result.stdout, re.MULTILINE)  # type: ignore[attr-defined]
        bits[name] = {label: float(mean) for label, mean, _ in rows}
    assert list(bits["random"])[:2] == ["total", "prior"]
    assert len(bits["random"]) == 7
    assert bits["random"]["total"] > bits["begun"]["total"] > 3
    assert bits["random"]["prior"] == bits["begun"]["prior"]


def test_files_say_what_was_measured(run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    numbers, terms = tmp_path / "nll.json", tmp_path / "terms.npz"
    base = ["likelihood", "digits", "--weights", filled["adm"], "--num", "6", "--seed", "5", *FEW]
    result = run(*base, "--json", numbers, "--terms", terms)
    records = [Record(**record) for record in json.loads(numbers.read_text())]
    values = {record.quantity: record.value for record in records}
    assert len(records) == 14
    assert f"total {values['bits_per_dim']:>27.4f}" in result.stdout  # type: ignore[attr-defined]
    parts = (values[f"{name}_bits_per_dim"] or math.nan for name in ("prior", *PARTS))
    assert values["bits_per_dim"] == pytest.approx(sum(parts))
    first = records[0]
    assert (first.run, first.generator, first.unit, first.higher_is_better) == ("likelihood", "adm", "bits/dim", False)
    assert (first.num_images, first.seed, first.precision) == (6, 5, "fp32")
    assert first.inputs == {"weights": file_sha256(filled["adm"]), "data": open_digits(8).digest()}
    assert first.settings["sampling_steps"] == 10
    assert first.settings["clip"] is True
    with np.load(terms, allow_pickle=False) as arrays:
        names = ("timesteps", "vb_terms", "mse_terms", "xstart_mse_terms")
        assert {name: arrays[name].shape for name in arrays} == dict.fromkeys(names, (10,))
        assert (np.diff(arrays["timesteps"]) < 0).all()
        total = arrays["vb_terms"].sum() + values["prior_bits_per_dim"]
    assert total == pytest.approx(values["bits_per_dim"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nll.json", "terms.npz"]


def test_one_image_has_no_standard_error_and_every_step_is_taken(run: Run, model: Path, tmp_path: Path) -> None:
    base = ["likelihood", "digits", "--weights", model, "--num", "1", "--device", "cpu"]
    result = run(*base, "--json", tmp_path / "nll.json", "--terms", tmp_path / "terms.npz")
    assert result.stdout.startswith("bits per dimension of 1 image of digits, 1000 steps")  # type: ignore[attr-defined]
    assert "± " not in result.stdout.partition("\n")[2]  # type: ignore[attr-defined]
    values = {record["quantity"]: record["value"] for record in json.loads((tmp_path / "nll.json").read_text())}
    assert values["bits_per_dim_standard_error"] is None
    with np.load(tmp_path / "terms.npz") as arrays:
        assert arrays["timesteps"].tolist() == list(range(999, -1, -1))


def test_an_unconditional_model_needs_no_labels(run: Run, tmp_path: Path) -> None:
    config = PRESETS["digits8"].config
    assert isinstance(config, AdmConfig)
    config = replace(config, model=replace(config.model, num_classes=None))
    weights = tmp_path / "free.safetensors"
    write_weights(weights, WeightsHeader(kind="adm", config=to_mapping(config)), UNet(config.model).state_dict())
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (9, 12), (80 * index, 9, 200)).save(tmp_path / "images" / f"{index}.png")
    result = run("likelihood", tmp_path / "images", "--weights", weights, *FEW)
    assert result.stdout.startswith("bits per dimension of 3 images")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits", "--num", "1798"], "--num 1798: the data set digits holds 1797 images"),
        (["digit"], "did you mean 'digits'"),
        (["LARGE.npz"], "images are 12 x 12; expected 8 x 8"),
        (["MANY.npz"], "has 11 classes; the model has 10"),
        (["BARE.npz"], "has no labels, and this model knows images by 10 classes"),
        (["digits", "--weights", "CLS"], "weights of kind 'classifier', expected 'adm'"),
        (["digits", "--weights", "/nowhere"], "no such file or run"),
        (["digits", "--preset", "64x64_diffusion"], "--preset 64x64_diffusion contradicts"),
        (["digits", "--sampling-steps", "2000"], "cannot keep 2000 of the 1000 steps"),
        (["digits", "--set", "sampler=ddim"], "--set sampler: has no effect on a likelihood; leave it away"),
        (["digits", "--set", "guidance_scale=1"], "--set guidance_scale: has no effect on a likelihood"),
        (["digits", "--set", "clp=false"], "did you mean 'clip'"),
        (["digits", "--json", "OUT", "--terms", "OUT"], "give each a file of its own"),
        (["digits", "--json", "THERE"], "pass --overwrite"),
        (["digits", "--terms", "THERE"], "pass --overwrite"),
        (["MANY.npz", "--terms", "MANY.npz", "--overwrite"], "is an input"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], expected: str, refuse: Refuse, filled: dict[str, Path], tmp_path: Path
) -> None:
    for name, size, labels in (("LARGE", 12, [0, 1]), ("MANY", 8, [0, 10]), ("BARE", 8, None)):
        arrays = {"arr_0": np.zeros((2, size, size, 3), np.uint8)} | ({} if labels is None else {"arr_1": labels})
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "THERE").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    places = {"CLS": str(filled["classifier"]), "OUT": str(tmp_path / "OUT")}
    places |= {path.name: str(path) for path in before}
    given = ["likelihood", *(places.get(word, word) for word in arguments)]
    if "--weights" not in given:
        given += ["--weights", str(filled["adm"])]
    assert expected in refuse(*given, "--device", "cpu")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_are_not_finite_are_refused(refuse: Refuse, filled: dict[str, Path], tmp_path: Path) -> None:
    broken = {name: torch.full_like(value, torch.nan) for name, value in load_file(filled["adm"]).items()}
    write_weights(tmp_path / "nan.safetensors", read_header(filled["adm"]), broken)
    line = refuse("likelihood", "digits", "--weights", tmp_path / "nan.safetensors", "--num", "2", *FEW)
    assert "the likelihood of image 0 is not finite; check the weights" in line
