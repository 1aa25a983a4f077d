"""The fifteen released checkpoints: their networks, what is published of them, and which file is which."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from generators.adm.config import GuideConfig, kind_of
from generators.adm.networks import (
    build_network,
    config_for,
    create_diffusion,
    create_network,
    fitting_presets,
    load_weights,
)
from generators.adm.presets import PRESETS
from generators.adm.released import RELEASED
from generators.configuration import to_mapping, with_changes
from generators.diffusion.process import DiffusionConfig
from generators.unet.checkpoint import WeightsHeader, shapes_of, tensors_digest, write_weights
from generators.unet.classifier import AttentionPool, Classifier
from generators.unet.config import ClassifierConfig, SuperResolutionConfig
from generators.unet.layers import AttentionBlock
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

FACTS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "openai_checkpoints.json").read_text())
MODELS: dict[str, Any] = FACTS["models"]
UNCONDITIONAL_256 = ["256x256_diffusion_uncond", "lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_horse_nodropout"]
WITH_DROPOUT = ["64x64_diffusion", "lsun_bedroom", "lsun_cat", "lsun_horse"]  # Table 11
ORDERS = {"QKVAttention": "qkv-major", "QKVAttentionLegacy": "head-major"}


def on_meta(name: str) -> UNet | SuperResolutionUNet | Classifier:
    with torch.device("meta"):
        return build_network(PRESETS[name].config)


def write_hollow(path: Path, name: str) -> Path:
    """A file with the names and shapes of a released one, all values zero and stored once."""
    zero = torch.zeros(())
    torch.save({key: zero.expand(shape) for key, shape in shapes_of(on_meta(name)).items()}, path)
    return path


def test_every_released_network_is_the_released_one() -> None:
    assert list(RELEASED) == list(MODELS)
    for name, facts in MODELS.items():
        network = on_meta(name)
        shapes = shapes_of(network)
        assert sum(p.numel() for p in network.parameters()) == facts["n_params"], name
        assert len(shapes) == facts["n_tensors"], name
        listed = [f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items()]
        assert listed == facts["state_dict_order"], name
        assert tensors_digest(shapes) == RELEASED[name].tensors_sha256 == facts["sha256_sorted_name_shape"], name
        assert fitting_presets(shapes) == (UNCONDITIONAL_256 if name in UNCONDITIONAL_256 else [name])


@pytest.mark.parametrize("name", MODELS)
def test_what_shapes_do_not_show_is_the_released_one(name: str) -> None:
    """Heads and row order of each attention module, dropout, schedule and variance."""
    flags, network = MODELS[name]["resolved_args"], on_meta(name)
    found = {}
    for module_name, module in network.named_modules():
        if isinstance(module, AttentionBlock):
            found[module_name] = [module.qkv.in_channels, module.heads, module.order]
        elif isinstance(module, AttentionPool):
            found[module_name] = [module.qkv_proj.in_channels, module.heads, "qkv-major"]
    assert found == {
        key: [width, heads, ORDERS[a]] for key, (width, heads, a) in MODELS[name]["attention_modules"].items()
    }
    config = PRESETS[name].config
    assert config.model.dropout == flags.get("dropout", 0.0)
    # Of the README's flags, the classifier of 64x64 alone says linear: it is fed cosine-noised images all the same.
    assert config.diffusion.schedule == ("cosine" if name.startswith("64x64") else flags["noise_schedule"])
    assert config.diffusion.num_timesteps == flags["diffusion_steps"]
    assert config.model.num_classes == (1000 if flags.get("class_cond", True) else None)
    assert config.diffusion.variance == "learned-range"
    assert not config.diffusion.rescale_timesteps


@pytest.mark.parametrize(
    ("name", "fid", "steps", "scale", "classifier", "batch", "iterations", "rate", "decay"),
    [
        ("64x64_diffusion", 2.07, 250, 1.0, "64x64_classifier", 2048, 540_000, 3e-4, 0.0),
        ("64x64_classifier", None, None, None, None, 1024, 300_000, 6e-4, 0.2),
        ("128x128_diffusion", 2.97, 250, 0.5, "128x128_classifier", 256, 4_360_000, 1e-4, 0.0),
        ("128x128_classifier", None, None, None, None, 256, 300_000, 3e-4, 0.05),
        ("256x256_diffusion", 4.59, 250, 1.0, "256x256_classifier", 256, 1_980_000, 1e-4, 0.0),
        ("256x256_diffusion_uncond", 12.0, 250, 10.0, "256x256_classifier", 256, 2_000_000, 1e-4, 0.0),
        ("256x256_classifier", None, None, None, None, 256, 500_000, 3e-4, 0.05),
        ("512x512_diffusion", 7.72, 250, 4.0, "512x512_classifier", 256, 1_940_000, 1e-4, 0.0),
        ("512x512_classifier", None, None, None, None, 256, 500_000, 3e-4, 0.05),
        ("64_256_upsampler", 3.94, 250, None, None, 256, 500_000, 1e-4, 0.0),
        ("128_512_upsampler", 3.85, 250, None, None, 256, 1_050_000, 1e-4, 0.0),
        ("lsun_bedroom", 1.90, 1000, None, None, 256, 500_000, 1e-4, 0.0),
        ("lsun_cat", 5.57, 1000, None, None, 256, 200_000, 1e-4, 0.0),
        ("lsun_horse", 2.57, 1000, None, None, 256, 250_000, 1e-4, 0.0),
        ("lsun_horse_nodropout", 2.95, 1000, None, None, 256, 250_000, 1e-4, 0.0),
    ],
)  # fmt: skip
def test_what_the_paper_says(
    name: str,
    fid: float | None,
    steps: int | None,
    scale: float | None,
    classifier: str | None,
    batch: int,
    iterations: int,
    rate: float,
    decay: float,
) -> None:
    row = RELEASED[name]
    sampling = row.sampling
    assert row.published_fid == fid
    assert bool(row.published) == (fid is not None)
    assert (sampling is None) == (steps is None)
    if sampling is not None:
        assert (sampling.sampling_steps, sampling.guidance_scale, sampling.classifier) == (steps, scale, classifier)
    training = row.config.training
    assert (training.batch_size, training.steps, training.learning_rate, training.weight_decay) == (
        batch, iterations, rate, decay
    )  # fmt: skip
    assert training.flip
    assert training.crop == ("random" if row.trainer == "classifier" else "center")
    assert row.config.model.dropout == (0.1 if name in WITH_DROPOUT else 0.0)
    assert training.annealing == ("linear" if row.trainer == "classifier" else "none")
    assert training.ema_rates == (() if row.trainer == "classifier" else (0.9999,))
    assert not training.ema_warmup
    assert training.warmup_steps == 0
    assert training.gradient_clip is None


@pytest.mark.parametrize("name", [name for name, row in RELEASED.items() if row.sampling and row.sampling.classifier])
def test_a_model_and_its_classifier_belong_together(name: str) -> None:
    sampling = RELEASED[name].sampling
    assert sampling is not None
    assert sampling.classifier is not None
    config, guide = RELEASED[name].config, RELEASED[sampling.classifier].config
    assert isinstance(guide, GuideConfig)
    assert guide.model.image_size == config.model.image_size
    assert guide.model.num_classes == config.model.num_classes or config.model.num_classes is None
    assert guide.diffusion.schedule == config.diffusion.schedule


@pytest.mark.parametrize(
    ("file", "content", "preset", "expected"),
    [
        ("64x64_diffusion.pt", "64x64_diffusion", None, "64x64_diffusion"),
        ("lsun_cat.pt", "lsun_cat", None, "lsun_cat"),
        ("lsun_horse.pt", "lsun_cat", None, "lsun_horse"),
        ("cats.pt", "lsun_cat", "lsun_cat", "lsun_cat"),
        ("lsun_horse.pt", "lsun_horse", "lsun_horse_nodropout", "lsun_horse_nodropout"),
        ("64_256_upsampler.pt", "64_256_upsampler", None, "64_256_upsampler"),
    ],
)
def test_a_released_file_is_known(file: str, content: str, preset: str | None, expected: str, tmp_path: Path) -> None:
    path = write_hollow(tmp_path / file, content)
    assert path.stat().st_size < 400_000
    assert config_for(path, preset, kind_of(PRESETS[expected].config)) is PRESETS[expected].config


@pytest.mark.parametrize(
    ("file", "content", "preset", "kind", "expected"),
    [
        ("a.pt", "64x64_diffusion", None, "adm", "looks like 64x64_diffusion; pass --preset 64x64_diffusion"),
        ("64x64_classifier.pt", "64x64_diffusion", None, None, "looks like 64x64_diffusion; pass --preset"),
        ("a.pt", "lsun_cat", None, "adm", "lsun_bedroom or lsun_cat or lsun_horse"),
        ("64x64_classifier.pt", "64x64_classifier", None, "adm", "weights of kind 'classifier', expected 'adm'"),
        ("a.pt", "64x64_classifier", "64x64_classifier", "adm", "weights of kind 'classifier', expected 'adm'"),
        ("a.pt", "64x64_diffusion", "256x256_diffusion", "adm", "the file looks like 64x64_diffusion"),
        ("a.pt", "digits8", None, "adm", "none that OpenAI released; pass --preset NAME"),
        ("a.pt", "digits8", "digits16", "adm", "does not fit this network: "),
        ("a.pt", "digits8", "digits9", "adm", "unknown preset 'digits9'; did you mean 'digits8'?"),
    ],
)
def test_other_files_are_refused_in_one_line(
    file: str, content: str, preset: str | None, kind: str | None, expected: str, tmp_path: Path
) -> None:
    path = write_hollow(tmp_path / file, content)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        config_for(path, preset, kind)
    assert expected in str(caught.value)


def test_the_option_that_names_a_preset_is_named(tmp_path: Path) -> None:
    path = write_hollow(tmp_path / "guide.pt", "64x64_classifier")
    with pytest.raises(ValueError, match="pass --classifier-preset 64x64_classifier"):
        config_for(path, option="--classifier-preset")


def write_ours(path: Path, **changes: Any) -> Path:
    config = with_changes(PRESETS["digits8"].config, changes)
    write_weights(path, WeightsHeader(kind="adm", config=to_mapping(config)), build_network(config).state_dict())
    return path


def test_our_files_bring_their_configuration(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "lsun_cat.safetensors", **{"training.steps": 7, "model.dropout": 0.5})
    assert config_for(path).training.steps == 7
    # Training's settings do not matter to the weights; whatever else differs does.
    assert config_for(path, "digits8", "adm").training.steps == 7
    for preset, expected in {
        "digits16": "model.image_size 8, not 16",
        "digits8_classifier": "kind 'adm', not 'classifier'",
    }.items():
        with pytest.raises(ValueError, match=f"which --preset {preset} contradicts; leave --preset away .*{expected}"):
            config_for(path, preset)
    with pytest.raises(ValueError, match="weights of kind 'adm', expected 'classifier'"):
        config_for(path, None, "classifier")


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("64x64_diffusion", {}, None),
        ("64x64_diffusion", {"dropout": 0.0}, None),
        ("64x64_diffusion", {"heads": 7}, None),  # without effect beside head_channels
        ("64x64_diffusion", {"attention_order": "head-major"}, "attention_order 'qkv-major', not 'head-major'"),
        ("256x256_classifier", {"attention_order": "qkv-major"}, "attention_order 'head-major', not 'qkv-major'"),
        ("128x128_diffusion", {"head_channels": 64}, "head_channels None, not 64"),
        ("128x128_diffusion", {"heads": 8}, "heads 4, not 8"),
        ("64x64_diffusion", {"num_classes": 10}, "label_emb.weight is 1000x768, expected 10x768; the file looks like"),
    ],
)
def test_a_released_file_loads_into_its_own_network_alone(
    name: str, changes: dict[str, Any], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hollow(tmp_path / "file.pt", name)
    filled = []
    monkeypatch.setattr("generators.unet.checkpoint.load_weights", lambda *arguments: filled.append(arguments))
    with torch.device("meta"):
        network = create_network(name, **changes)
    if expected is None:
        load_weights(network, path)
        assert filled == [(network, path)]
    else:
        with pytest.raises(ValueError, match="looks like") as caught:
            load_weights(network, path)
        assert expected in str(caught.value)
        assert not filled


@pytest.mark.parametrize(
    ("source", "changes", "network_type", "expected"),
    [
        ("digits8", {"channels": 64}, UNet, {"channels": 64, "num_classes": 10}),
        ("digits8_classifier", {"pool": "adaptive"}, Classifier, {"pool": "adaptive"}),
        ("64_256_upsampler", {"channels": 32}, SuperResolutionUNet, {"low_resolution": 64, "channels": 32}),
        ("64x64_diffusion", {"image_size": 128, "channel_mult": None}, UNet, {"channel_mult": (1, 1, 2, 3, 4)}),
        (PRESETS["digits16"].config, {}, UNet, {"image_size": 16}),
        (ClassifierConfig(image_size=64), {"num_classes": 7}, Classifier, {"num_classes": 7}),
        (SuperResolutionConfig(image_size=64, low_resolution=16), {}, SuperResolutionUNet, {"low_resolution": 16}),
    ],
)
def test_create_network(source: Any, changes: dict[str, Any], network_type: type, expected: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = create_network(source, **changes)
    assert type(network) is network_type
    assert {key: getattr(network.config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: create_network("64x64_difusion"), "unknown preset '64x64_difusion'; did you mean '64x64_diffusion'?"),
        (lambda: create_network("digits8", chanels=3), "unknown key 'chanels'; did you mean 'channels'?"),
        (lambda: create_network("digits8", channels=48), "groups do not divide"),
        (lambda: create_diffusion("digits8", schedul="linear"), "unknown key 'schedul'; did you mean 'schedule'?"),
        (lambda: create_diffusion("digits8", respacing="ddim37"), "the nearest it can are 36 and 38"),
    ],
)
def test_creating_is_refused_in_one_line(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        call()
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("source", "respacing", "first", "last", "number"),
    [
        ("64x64_diffusion", None, [0, 1, 2], 999, 1000),
        ("64x64_diffusion", "250", [0, 4, 8, 12], 999, 250),
        (PRESETS["digits8"].config, 25, [0, 42, 83, 125], 999, 25),
        ("lsun_bedroom", "90,60,60,20,20", [0, 2, 4, 7, 9, 11, 13, 16], 999, 250),
        ("lsun_bedroom", (90, 60, 60, 20, 20), [0, 2, 4, 7, 9, 11, 13, 16], 999, 250),
        (DiffusionConfig(), "ddim25", [0, 40, 80], 960, 25),
    ],
)
def test_create_diffusion(source: Any, respacing: Any, first: list[int], last: int, number: int) -> None:
    diffusion = create_diffusion(source, respacing=respacing)
    kept = list(diffusion.schedule.timesteps)
    assert (kept[: len(first)], kept[-1], len(diffusion)) == (first, last, number)


def test_create_diffusion_takes_changes() -> None:
    assert create_diffusion("64x64_diffusion").config.schedule == "cosine"
    assert create_diffusion("64x64_diffusion", schedule="linear").config.schedule == "linear"
    assert len(create_diffusion("digits8", num_timesteps=4000)) == 4000
