"""Upsampling stacks: any generator's samples in, larger ones out, each with its label."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adm_bench.images.npz import write_arrays
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping, with_changes
from generators.unet.checkpoint import WeightsHeader, write_weights
from generators.unet.super_resolution import SuperResolutionUNet

ROOT = Path(__file__).parents[2]
Run = Callable[..., object]
Refuse = Callable[..., str]
Images = Callable[[Path], np.ndarray]


@pytest.fixture
def stack(filled: dict[str, Path]) -> list[str]:
    """`adm-bench sample upsampler`, in few steps."""
    weights = str(filled["upsampler"])
    return ["sample", "upsampler", "--weights", weights, "--sampling-steps", "4", "--device", "cpu"]


def labels_of(path: Path) -> list[int]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["arr_1"].tolist()


def test_samples_are_enlarged_and_keep_their_labels(
    stack: list[str], samples: Path, run: Run, images: Images, tmp_path: Path
) -> None:
    run(*stack, "--base", samples, "--batch", "7", "--num", "20", "--out", tmp_path / "some.npz")
    assert images(tmp_path / "some.npz").shape == (20, 16, 16, 3)
    assert labels_of(tmp_path / "some.npz") == labels_of(samples)[:20]
    run(*stack, "--base", samples, "--out", tmp_path / "all.npz")
    assert len(images(tmp_path / "all.npz")) == 60
    difference = images(tmp_path / "some.npz").astype(int) - images(tmp_path / "all.npz")[:20].astype(int)
    assert np.abs(difference).max() <= 1
    assert images(tmp_path / "all.npz").std() > 10


def test_every_sample_depends_on_its_base(
    stack: list[str], samples: Path, run: Run, images: Images, tmp_path: Path
) -> None:
    with np.load(samples, allow_pickle=False) as arrays:
        changed = {name: arrays[name][:4].copy() for name in ("arr_0", "arr_1")}
    changed["arr_0"][2] = 255 - changed["arr_0"][2]
    write_arrays(tmp_path / "changed.npz", changed)
    for base, out in ((samples, "a.npz"), (tmp_path / "changed.npz", "b.npz")):
        run(*stack, "--base", base, "--num", "4", "--out", tmp_path / out)
    same = (images(tmp_path / "a.npz") == images(tmp_path / "b.npz")).all(axis=(1, 2, 3))
    assert same.tolist() == [True, True, False, True]


def test_an_unconditional_upsampler_keeps_labels_too(samples: Path, run: Run, tmp_path: Path) -> None:
    config = with_changes(PRESETS["digits8_16_upsampler"].config, {"model.num_classes": None})
    weights = SuperResolutionUNet(config.model).state_dict()  # type: ignore[arg-type]
    write_weights(tmp_path / "up.safetensors", WeightsHeader(kind="upsampler", config=to_mapping(config)), weights)
    out = tmp_path / "out.npz"
    settings = ("--base", samples, "--num", "5", "--sampler", "ddim", "--sampling-steps", "4", "--device", "cpu")
    run("sample", "upsampler", "--weights", tmp_path / "up.safetensors", *settings, "--out", out)
    assert labels_of(out) == labels_of(samples)[:5]


def test_what_cannot_be_a_base_is_refused(
    stack: list[str], samples: Path, model: Path, refuse: Refuse, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out.npz")
    assert "holds 60 images, but 61 are asked for; none is used twice" in refuse(
        *stack, "--base", samples, "--num", "61", *out
    )
    assert "enlarges samples; name their file (--base)" in refuse(*stack, *out)
    assert "--base is for upsamplers" in refuse("sample", "adm", "--weights", model, "--base", samples, *out)
    assert "kind 'adm', expected 'upsampler'" in refuse(
        "sample", "upsampler", "--weights", model, "--base", samples, *out
    )
    with np.load(samples, allow_pickle=False) as arrays:
        small, labels = arrays["arr_0"], arrays["arr_1"]
    cases = {
        "images are 4 x 4, but this upsampler enlarges 8 x 8": {"arr_0": small[:, :4, :4], "arr_1": labels},
        "has no labels (arr_1), which this upsampler needs": {"arr_0": small},
        "label 12 is out of range; expected 0 to 9": {"arr_0": small, "arr_1": labels + 3},
    }
    for expected, content in cases.items():
        write_arrays(tmp_path / "base.npz", content)
        assert expected in refuse(*stack, "--base", tmp_path / "base.npz", *out)
    assert not (tmp_path / "out.npz").exists()


def test_the_suite_of_a_stack(run: Run, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "upsampling.toml").read_text()
    for name in ("digits8", "digits8_classifier", "digits8_16_upsampler"):
        preset = f'preset = "{name}"'
        assert preset in text
        text = text.replace(preset, preset + '\nset = { "training.steps" = 3, "training.batch_size" = 8 }')
    text = text.replace("num_images = 1797", "num_images = 40").replace("sampling_steps = 50", "sampling_steps = 4")
    (tmp_path / "stack.toml").write_text(text)
    run("run", tmp_path / "stack.toml", "--out", tmp_path / "run", "--device", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    fids = {line["generator"] for line in lines if line["quantity"] == "fid"}
    assert fids == {"adm-u", "adm-g-adm-u", "gaussian", "noise"}
    evaluations = {x["generator"]: x["value"] for x in lines if x["quantity"] == "network_evaluations_per_image"}
    assert evaluations["adm-u"] == 4 + 4
    flops = {x["generator"]: x["value"] for x in lines if x["quantity"] == "sampling_flops_per_image"}
    assert flops["adm-g-adm-u"] > flops["adm-u"] > 4 * 100e6
    assert "base" not in {x["generator"] for x in lines if x["quantity"] == "sampling_images_per_sec"}
    for row, base in (("adm-u", "base"), ("adm-g-adm-u", "base-g")):
        samples = tmp_path / "run" / "samples"
        assert labels_of(samples / f"{row}.npz") == labels_of(samples / f"{base}.npz")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('base = "base"\n', "", "generators.adm-u: generator 'upsampler' enlarges samples; give it a base"),
        ('base = "base"\n', 'base = "noise"\n', "unknown base 'noise'"),
        ("image_size = 8\n", "image_size = 16\n", "its base base has images of 16; it enlarges 8"),
    ],
)
def test_a_suite_whose_stack_cannot_be_is_refused_before_any_work(
    old: str, new: str, expected: str, refuse: Refuse, tmp_path: Path
) -> None:
    text = (ROOT / "examples" / "upsampling.toml").read_text()
    assert old in text
    (tmp_path / "stack.toml").write_text(text.replace(old, new))
    assert expected in refuse("run", tmp_path / "stack.toml", "--out", tmp_path / "run", "--device", "cpu")
