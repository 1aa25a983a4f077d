"""Weights between OpenAI's form and ours: the same bits both ways, and one line where that cannot be."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adm_bench import create_network, load_weights
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping, with_changes
from generators.unet.checkpoint import read_header

Run = Callable[..., Any]
Refuse = Callable[..., str]
SMALL_UPSAMPLER = {
    "model.image_size": 16, "model.low_resolution": 8, "model.channels": 32, "model.channel_mult": [1, 2],
    "model.attention_resolutions": [8], "model.head_channels": 32, "model.num_res_blocks": 1, "model.num_classes": 10,
}  # fmt: skip
SMALL = {
    "adm": ("digits8", {}),
    "classifier": ("digits8_classifier", {"model.channels": 64}),
    "upsampler": ("64_256_upsampler", SMALL_UPSAMPLER),
}


def settings(changes: Mapping[str, Any]) -> list[str]:
    return [word for field, value in changes.items() for word in ("--set", f"{field}={json.dumps(value)}")]


def random_weights(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    preset, changes = SMALL[kind]
    with torch.device("meta"):
        network = create_network(with_changes(PRESETS[preset].config, changes))
    generator = torch.Generator().manual_seed(3)
    return {
        name: (0.1 * torch.randn(value.shape, generator=generator)).to(dtype)
        for name, value in network.state_dict().items()
    }


def same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Values that are not numbers included."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name].view(torch.uint8), value.view(torch.uint8))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SMALL)
def test_round_trip_keeps_every_bit(kind: str, dtype: torch.dtype, run: Run, tmp_path: Path) -> None:
    weights = random_weights(kind, dtype)
    weights["out.2.bias" if kind != "classifier" else "out.0.bias"][0] = torch.nan
    first, ours, back = (tmp_path / name for name in ("first.pt", "ours.safetensors", "back.pt"))
    torch.save(weights, first)
    preset, changes = SMALL[kind]
    run("convert", first, ours, "--preset", preset, *settings(changes))
    header = read_header(ours)
    assert (header.kind, header.config) == (kind, to_mapping(with_changes(PRESETS[preset].config, changes)))
    assert same_bits(load_file(ours), weights)
    run("convert", ours, back)
    returned = torch.load(back, weights_only=True)
    assert type(returned) is dict
    assert list(returned) == list(weights)  # OpenAI's order, which its optimizer files rely on
    assert same_bits(returned, weights)


def test_both_forms_give_one_network(run: Run, tmp_path: Path) -> None:
    preset, changes = SMALL["upsampler"]
    torch.save(random_weights("upsampler"), tmp_path / "a.pt")
    run("convert", tmp_path / "a.pt", tmp_path / "a.safetensors", "--preset", preset, *settings(changes))
    outputs = []
    for name in ("a.pt", "a.safetensors"):
        network = create_network(with_changes(PRESETS[preset].config, changes)).eval()
        load_weights(network, tmp_path / name)
        x, low = torch.ones(1, 3, 16, 16), torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        with torch.inference_mode():
            outputs.append(network(x, torch.tensor([7]), torch.tensor([4]), low_resolution=low))
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].abs().max() > 0


def test_a_run_is_converted_and_a_changed_attention_order_is_kept(run: Run, model: Path, tmp_path: Path) -> None:
    run("convert", model, tmp_path / "mine.pt")
    tiny = {"model.num_res_blocks": 1, "model.attention_resolutions": [4], "model.attention_order": "qkv-major"}
    out = tmp_path / "qkv.safetensors"
    said = run("convert", tmp_path / "mine.pt", out, "--preset", "digits8", *settings(tiny)).output
    assert "weights of kind adm" in said
    assert read_header(out).config["model"]["attention_order"] == "qkv-major"
    assert same_bits(load_file(out), load_file(model / "weights.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adm.safetensors", "x.safetensors"], "give the converted file a name that ends in .pt"),
        (["adm.pt", "x.pt"], "give the converted file a name that ends in .safetensors"),
        (["adm.pt", "x.npz"], "give the converted file a name that ends in .safetensors"),
        (["adm.pt", "x.safetensors"], "none that OpenAI released; pass --preset NAME"),
        (["adm.pt", "x.safetensors", "--preset", "digits9"], "--preset: unknown preset 'digits9'; did you mean"),
        (["adm.pt", "x.safetensors", "--preset", "digits8_classifier"], "does not fit this network: "),
        (
            ["adm.pt", "x.safetensors", "--preset", "digits8", "--set", "model.channels=64"],
            "time_embed.0.weight is 128x32, expected 256x64",
        ),
        (["adm.pt", "x.safetensors", "--preset", "digits8", "--set", "model.chanels=1"], "did you mean 'channels'"),
        (["adm.pt", "x.safetensors", "--set", "model.channels=64"], "--set: changes the configuration of a preset"),
        (["adm.safetensors", "x.pt", "--set", "model.channels=64"], "carries its own configuration; leave --set"),
        (["adm.safetensors", "x.pt", "--preset", "digits16"], "which --preset digits16 contradicts"),
        (["nowhere.pt", "x.safetensors"], "no such file or run"),
        (
            ["adm.safetensors", "folder"],
            "names no file; end it in .pt or .safetensors, or give --out folder",
        ),
        (["adm.pt", "there.safetensors", "--preset", "digits8"], "exists; choose another name, or pass --overwrite"),
        (["adm.pt", "adm.pt", "--overwrite"], "is an input of this command"),
        (["cut.pt", "x.safetensors", "--preset", "digits8"], "not a readable PyTorch file, perhaps truncated"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], expected: str, refuse: Refuse, filled: dict[str, Path], tmp_path: Path
) -> None:
    torch.save(random_weights("adm"), tmp_path / "adm.pt")
    (tmp_path / "adm.safetensors").write_bytes(filled["adm"].read_bytes())
    (tmp_path / "cut.pt").write_bytes((tmp_path / "adm.pt").read_bytes()[:5000])
    (tmp_path / "there.safetensors").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = [tmp_path / word if word.endswith((".pt", ".safetensors", ".npz")) else word for word in arguments]
    assert expected in refuse("convert", *words)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_replaces(run: Run, filled: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.pt").write_text("old")
    run("convert", filled["adm"], tmp_path / "out.pt", "--overwrite")
    assert same_bits(torch.load(tmp_path / "out.pt", weights_only=True), load_file(filled["adm"]))


@pytest.mark.parametrize(
    ("name", "weights", "step"),
    [
        ("ema_0.9999_010000.pt", "EMA, rate 0.9999", 10000),
        ("ema_0.999_1500000.pt", "EMA, rate 0.999", 1500000),
        ("model010000.pt", "raw", 10000),
        ("64x64_diffusion.pt", "not said by the file", None),
        ("model10_best.pt", "not said by the file", None),
    ],
)
def test_inspect_openai_weights(name: str, weights: str, step: int | None, run: Run, tmp_path: Path) -> None:
    content = random_weights("adm")
    number = sum(value.numel() for value in content.values())
    content["label_emb.weight"] = content["label_emb.weight"].half()
    torch.save(content, tmp_path / name)
    found = json.loads(run("inspect", tmp_path / name).output)
    assert (found["what"], found["weights"], found["step"]) == ("weights, OpenAI's format", weights, step)
    assert (found["parameters"], found["tensors"], found["presets"]) == (number, len(content), [])
    assert found["dtypes"] == {"float32": len(content) - 1, "float16": 1}
    assert found["stored_in_16_bits"] == round(10 * 128 / number, 4)
    assert len(found["sha256"]) == 64


def test_inspect_names_the_released_files_that_fit(run: Run, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in create_network("lsun_cat").state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "cats.pt")
    found = json.loads(run("inspect", tmp_path / "cats.pt").output)
    assert {"lsun_cat", "lsun_bedroom", "256x256_diffusion_uncond"} < set(found["presets"])
    assert (found["parameters"], found["tensors"]) == (552_814_086, 566)


def test_inspect_our_weights(run: Run, filled: dict[str, Path]) -> None:
    found = json.loads(run("inspect", filled["adm"]).output)
    assert (found["what"], found["kind"]) == ("weights", "adm")
    assert found["config"] == to_mapping(PRESETS["digits8"].config)
    assert (found["parameters"], found["dtypes"]) == (842_502, {"float32": found["tensors"]})


def test_inspect_an_optimizer(run: Run, refuse: Refuse, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.05)
    parameter.sum().backward()
    optimizer.step()
    path = tmp_path / "opt010000.pt"
    torch.save(optimizer.state_dict(), path)
    found = json.loads(run("inspect", path).output)
    assert found.pop("sha256")
    assert found == {
        "what": "state of an optimizer, OpenAI's format", "parameters": 6, "tensors": 1, "updates": 1,
        "learning_rate": 1e-4, "weight_decay": 0.05, "step": 10000,
    }  # fmt: skip
    line = refuse("convert", path, tmp_path / "x.safetensors", "--preset", "digits8")
    assert "holds the state of an optimizer" in line
    assert "give the model or ema file beside it" in line


def test_presets_fit_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("list", "presets").output.splitlines()
    assert len(lines) == 1 + len(PRESETS)
    assert lines[0].split() == ["name", "params", "pixels", "classes", "sampler", "scale", "FID"]
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["256x256_diffusion"] == ["553.8M", "256", "1000", "ddpm", "250", "1.0", "4.59"]
    assert rows["256x256_diffusion_uncond"] == ["552.8M", "256", "ddpm", "250", "10.0", "12.00"]
    assert rows["128_512_upsampler"] == ["308.8M", "128", "->", "512", "1000", "ddpm", "250", "3.85"]
    assert rows["digits8"] == ["0.8M", "8", "10"]


def test_presets_as_plain_data(run: Run) -> None:
    rows = json.loads(run("list", "presets", "--json").output)
    assert rows["64x64_diffusion"] == {
        "trainer": "adm", "size": 64, "low_resolution": None, "classes": 1000, "parameters": 295_904_454,
        "sampler": "ddpm", "sampling_steps": 250, "guidance_scale": 1.0, "classifier": "64x64_classifier",
        "published_fid": 2.07,
        "published": "ADM (dropout), unguided, 250 steps; Table 5", "summary": "ADM of ImageNet 64x64",
    }  # fmt: skip
    assert rows["64_256_upsampler"]["low_resolution"] == 64
