"""Every refusal: exit status 2, one line that names the place, what was found and what was expected."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from generators.unet.checkpoint import read_header, write_weights

Refuse = Callable[..., str]
TRAIN = ("train", "adm", "--data", "digits", "--out", "OUT")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "adm", "--data", "digit", "--out", "OUT"], "did you mean 'digits'"),
        (["train", "adm", "--data", "/nowhere/images", "--out", "OUT"], "no file or folder has that path"),
        (["train", "amd", "--data", "digits", "--out", "OUT"], "unknown trainer 'amd'; did you mean 'adm'"),
        ([*TRAIN, "--preset", "digits9"], "did you mean 'digits8'"),
        (
            [*TRAIN, "--preset", "digits8_classifier"],
            "is for trainer 'classifier'",
        ),
        (
            [*TRAIN, "--set", "model.chanels=48"],
            "--set: model: unknown key 'chanels'; did you mean 'channels'?",
        ),
        ([*TRAIN, "--set", "model.channels=48"], "32 groups do not divide"),
        ([*TRAIN, "--set", "model.channels=many"], "expected int"),
        ([*TRAIN, "--set", "model.channels"], "expected FIELD=VALUE"),
        ([*TRAIN, "--set", "model.attention_resolutions=[5]"], "its levels are 8, 4"),
        ([*TRAIN, "--set", "model.image_size=7"], "not divisible by 2"),
        ([*TRAIN, "--set", "model.num_classes=4"], "10 classes"),
        ([*TRAIN, "--set", "model.head_channels=24"], "does not divide"),
        ([*TRAIN, "--set", "diffusion.loss=simple"], "untrained"),
        ([*TRAIN, "--set", "model.in_channels=1"], "model.in_channels is 1; images have 3"),
        ([*TRAIN, "--set", "model.channel_mult=[]"], "channel_mult is empty"),
        ([*TRAIN, "--set", "model.channel_mult=[inf]"], "expected a finite number"),
        ([*TRAIN, "--set", "training.learning_rate=nan"], "expected a finite number"),
        ([*TRAIN, "--set", "model=5", "--set", "model.channels=64"], "cannot both be set"),
        ([*TRAIN, "--device", "meta"], "expected auto, cpu, cuda"),
        (["sample", "noise", "--out", "OUT.npz"], "needs an image size"),
        (["sample", "adm", "--set", "classifier=x", "--out", "OUT.npz"], "option of its own"),
        ([*TRAIN, "--device", "cuda:77"], "--device cuda:77"),
        ([*TRAIN, "--steps", "0"], "'--steps': 0 is not in the range"),
        (["train", "adm", "--data", "EMPTY", "--out", "OUT"], "holds no images"),
        (["train", "adm", "--data", "digits", "--out", "/proc/nothing/run"], "cannot be written"),
        (["sample", "adm", "--out", "OUT.npz"], "needs trained weights"),
        (["sample", "adm", "--weights", "/nowhere", "--out", "OUT.npz"], "no such file or run"),
        (["sample", "memorizer", "--out", "OUT.npz"], "needs training images"),
        (["sample", "noice", "--out", "OUT.npz"], "unknown generator 'noice'; did you mean 'noise'"),
        (["sample", "noise", "--out", "EMPTY"], "is a folder"),
        (["reference", "digits", "--size", "12", "--out", "OUT.npz"], "expected one of 8, 16"),
        (["reference", "digits", "--features", "inceptions", "--out", "OUT.npz"], "unknown feature"),
        (["run", "/nowhere.toml"], "no readable suite file"),
        (["report", "EMPTY"], "has no records.jsonl"),
        (["inspect", "EMPTY"], "neither a training run nor a suite run"),
        (["inspect", "/nowhere"], "no such file"),
        (["inspect", "/etc/hostname"], "or an npz file, weights (.pt, .pth, .safetensors), or the folder of a run"),
        (["convert", "/nowhere.pt", "OUT"], "SOURCE /nowhere.pt: no such file or run"),
        (["convert", "EMPTY", "OUT"], "is no training run"),
        (["compute", "--preset", "digits"], "unknown preset 'digits'; did you mean"),
        (["trian"], "did you mean 'train'"),
    ],
)  # fmt: skip
def test_refused_in_one_line(arguments: list[str], expected: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"OUT": "out", "OUT.npz": "out.npz", "EMPTY": "empty"}
    line = refuse(*(str(tmp_path / places[word]) if word in places else word for word in arguments))
    assert expected in line
    assert not (tmp_path / "out.npz").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def damaged_files(samples: Path) -> dict[str, bytes | dict[str, np.ndarray]]:
    with np.load(samples) as arrays:
        good = arrays["arr_0"]
    content = samples.read_bytes()
    return {
        "no arr_0": {"images": good},
        "expected uint8": {"arr_0": good.astype(np.float32) / 255},
        "channels first": {"arr_0": good.transpose(0, 3, 1, 2)},
        "images are (60, 8, 8)": {"arr_0": good[..., 0]},
        "with at least one image": {"arr_0": good[:0]},
        "12 x 12": {"arr_0": np.zeros((20, 12, 12, 3), np.uint8)},
        "sample more": {"arr_0": good[:1]},
        "never loaded": {"arr_0": np.array([{"a": 1}], dtype=object)},
        "perhaps truncated": content[: len(content) // 2],
        "perhaps truncated (File is not a zip file)": b"not an npz",
    }


def test_damaged_samples_are_refused(refuse: Refuse, reference: Path, samples: Path, tmp_path: Path) -> None:
    for expected, content in damaged_files(samples).items():
        path = tmp_path / "bad.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)  # type: ignore[arg-type]
        out = tmp_path / "numbers.json"
        line = refuse("evaluate", reference, path, "--json", out)
        assert expected in line
        assert str(path) in line
        assert not out.exists()


def test_a_flipped_bit_in_samples_is_refused(refuse: Refuse, reference: Path, samples: Path, tmp_path: Path) -> None:
    content = bytearray(samples.read_bytes())
    content[500] ^= 0xFF
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    assert "Bad CRC" in refuse("evaluate", reference, path)


@pytest.mark.parametrize("key", ["mu", "sigma"])
def test_nan_in_a_reference_is_refused(
    key: str, refuse: Refuse, reference: Path, samples: Path, tmp_path: Path
) -> None:
    with np.load(reference) as stored:
        arrays = dict(stored)
    arrays[key] = np.full_like(arrays[key], np.nan)
    np.savez(tmp_path / "nan.npz", **arrays)
    assert "finite" in refuse("evaluate", tmp_path / "nan.npz", samples)


def test_nan_in_features_is_refused(
    refuse: Refuse, reference: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metrics.features.digits import DigitsNetwork

    honest = DigitsNetwork.forward

    def poisoned(self: DigitsNetwork, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pool, spatial, logits = honest(self, images)
        pool[17 % len(pool)] = float("nan")
        return pool, spatial, logits

    monkeypatch.setattr(DigitsNetwork, "forward", poisoned)
    assert "image 17" in refuse("evaluate", reference, samples, "--no-cache")


def test_a_reference_of_other_features_is_refused(
    refuse: Refuse, reference: Path, samples: Path, tmp_path: Path
) -> None:
    with np.load(reference) as stored:
        arrays = dict(stored)
    arrays["adm_bench"] = np.array(str(arrays["adm_bench"]).replace('"features_sha256": "', '"features_sha256": "0'))
    np.savez(tmp_path / "other.npz", **arrays)
    assert "build the reference anew" in refuse("evaluate", tmp_path / "other.npz", samples)


def test_nothing_is_overwritten_unasked(refuse: Refuse, tmp_path: Path, tiny: Sequence[str]) -> None:
    file = tmp_path / "precious.npz"
    file.write_text("precious")
    assert "pass --overwrite" in refuse("sample", "noise", "--size", "8", "--classes", "10", "--out", file)
    assert "pass --overwrite" in refuse("reference", "digits", "--out", file)
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    for more in ([], ["--overwrite"]):
        assert "is no training run" in refuse("train", "adm", "--data", "digits", "--out", folder, *tiny, *more)
    assert {path.read_text() for path in (file, folder / "thesis.tex")} == {"precious"}


def test_labels_must_fit(refuse: Refuse, tmp_path: Path) -> None:
    few, outside, words = tmp_path / "few.txt", tmp_path / "outside.txt", tmp_path / "words.txt"
    few.write_text("1 2 3")
    outside.write_text("0\n" * 19 + "10\n")
    words.write_text("one two")
    base = ["sample", "noise", "--size", "8", "--classes", "10", "--num", "20", "--out", tmp_path / "out.npz"]
    assert "holds 3 labels, but 20 images" in refuse(*base, "--labels", few)
    assert "label 10 is out of range; expected 0 to 9" in refuse(*base, "--labels", outside)
    assert "not readable as integers" in refuse(*base, "--labels", words)
    assert "not readable as integers" in refuse(*base, "--labels", tmp_path / "absent.txt")


def test_samplers_refuse_what_they_cannot_do(refuse: Refuse, model: Path, classifier: Path, tmp_path: Path) -> None:
    base = ["sample", "adm", "--weights", model, "--num", "2", "--out", tmp_path / "out.npz", "--device", "cpu"]
    ddim = refuse(*base, "--sampler", "ddim", "--sampling-steps", "37")
    assert "nearest it can are 36 and 38" in ddim
    assert "cannot keep 2000 of the 1000 steps" in refuse(*base, "--sampling-steps", "2000")
    assert "needs a classifier" in refuse(*base, "--guidance-scale", "1")
    assert "no guidance_scale; give a scale above 0" in refuse(*base, "--classifier", classifier)
    assert "kind 'adm', expected 'classifier'" in refuse(*base, "--classifier", model, "--guidance-scale", "1")
    assert "eta 0.5 belongs to sampler 'ddim'" in refuse(*base, "--set", "eta=0.5")
    assert "unknown key 'et'; did you mean 'eta'" in refuse(*base, "--set", "et=0.5")


def test_a_classifier_of_another_model_is_refused(
    refuse: Refuse, run: Callable[..., object], model: Path, tmp_path: Path, tiny: Sequence[str]
) -> None:
    other = tmp_path / "linear"
    linear = ["--set", "diffusion.schedule=linear"]
    run("train", "classifier", "--data", "digits", "--out", other, "--steps", "1", *tiny, *linear)
    line = refuse(
        "sample", "adm", "--weights", model, "--classifier", other, "--guidance-scale", "1", "--out", tmp_path / "o.npz"
    )
    assert "the classifier's schedule is linear, the model's is cosine" in line


@pytest.mark.parametrize(("cut", "expected"), [(0.5, "perhaps truncated"), (0.0, "perhaps truncated")])
def test_truncated_weights_are_refused(cut: float, expected: str, refuse: Refuse, model: Path, tmp_path: Path) -> None:
    content = (model / "weights.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(len(content) * cut)])
    assert expected in refuse("sample", "adm", "--weights", path, "--out", tmp_path / "out.npz")
    assert expected in refuse("inspect", path)


def test_foreign_weights_are_refused(refuse: Refuse, tmp_path: Path) -> None:

    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    line = refuse("sample", "adm", "--weights", tmp_path / "foreign.safetensors", "--out", tmp_path / "out.npz")
    assert "no weights of ours" in line


SUITE = """
title = "t"
data = "digits"
features = "digits"
num_images = 20
[generators.noise]
generator = "noise"
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("title", "titel"), "unknown key 'titel'; did you mean 'title'?"),
        (("num_images = 20", ""), "num_images is missing"),
        (("num_images = 20", "num_images = 0"), "expected 1 or more"),
        (("num_images = 20", 'num_images = "20"'), "num_images is '20'; expected int"),
        (('generator = "noise"', 'generator = "nosie"'), "unknown generator 'nosie'; did you mean 'noise'?"),
        (('generator = "noise"', 'generater = "noise"'), "generators.noise: unknown key 'generater'"),
        (('features = "digits"', 'features = "digit"'), "unknown feature 'digit'; did you mean 'digits'"),
        (('data = "digits"', 'data = "digits"\nmetrics = ["fid", "fd"]'), "unknown metric 'fd'; did you mean 'fid'"),
        (("[generators.noise]", "[generators.noise"), "not valid TOML"),
        (('generator = "noise"', 'generator = "noise"\nweights = "adn"'), "unknown weights 'adn'"),
        (("[generators", '[train.adm]\npreset = "digits7"\n[generators'), "unknown preset 'digits7'"),
        (
            ("[generators", '[train.adm]\npreset = "digits8"\nset = { "training.step" = 1 }\n[generators'),
            "did you mean 'steps'",
        ),
        (("generators.noise", 'generators."../noise"'), "the name '../noise' is to be part of file names"),
        (
            ('generator = "noise"', 'generator = "noise"\noptions = { level = 1 }'),
            "generators.noise.options: unknown key 'level'",
        ),
    ],
)
def test_bad_suites_are_refused(change: tuple[str, str], expected: str, refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.replace(*change))
    assert expected in refuse("run", path, "--out", tmp_path / "run", "--device", "cpu")


TRAINED = """
[train.net]
preset = "digits8"
[train.guide]
preset = "digits8_classifier"
[generators.noise]
generator = "adm"
weights = "net"
"""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('options = { sampler = "ddim", sampling_steps = 37 }', "nearest it can are 36 and 38"),
        ('weights = "guide"', "weights are to be an adm's"),
        ('classifier = "net"\noptions = { guidance_scale = 1 }', "classifier a classifier's"),
        ('options = { classifier = "guide", guidance_scale = 1 }', "beside options"),
        ("checkpoint_every = 0", "checkpoint_every is 0"),
        ('labels = "balancd"', "labels"),
        ("num_images = 3", "needs 4 or more"),
        ("metrics = []", "expected one or more"),
    ],
)
def test_suites_are_checked_whole_before_work(row: str, expected: str, refuse: Refuse, tmp_path: Path) -> None:
    head, key = SUITE.partition("[generators")[0], row.partition(" = ")[0]
    if key == "checkpoint_every":
        text = head + TRAINED.replace('preset = "digits8"\n', f'preset = "digits8"\n{row}\n')
    elif key in ("labels", "num_images", "metrics"):
        text = head.replace("num_images = 20", row if key == "num_images" else f"num_images = 20\n{row}") + TRAINED
    else:
        text = head + (TRAINED.replace('weights = "net"', row) if key == "weights" else TRAINED + row)
    (tmp_path / "suite.toml").write_text(text)
    assert expected in refuse("run", tmp_path / "suite.toml", "--out", tmp_path / "run", "--device", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_broken_folder_of_images_names_the_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    line = refuse(
        "reference", tmp_path / "images", "--out", tmp_path / "ref.npz", "--size", "8", "--features", "digits"
    )
    assert "a.png: not a readable image" in line


def test_our_own_failures_exit_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from adm_bench import registry
    from adm_bench.cli import main

    def fail(group: str) -> dict[str, str]:
        raise KeyError(group)

    monkeypatch.setattr(registry, "describe", fail)
    result = CliRunner().invoke(main, ["list", "metrics"])
    assert result.exit_code == 1
    assert "internal failure: KeyError" in result.stderr
    assert isinstance(CliRunner().invoke(main, ["--debug", "list", "metrics"]).exception, KeyError)


@pytest.mark.parametrize(
    ("number", "name", "status", "said"),
    [
        (errno.EACCES, "log.jsonl", 2, "Error: log.jsonl: Permission denied; allow it, or choose another place"),
        (errno.EROFS, "log.jsonl", 2, "Error: log.jsonl: Read-only file system; allow it, or choose another place"),
        (errno.ENOSPC, None, 2, "Error: the disk: No space left on device; make room, or choose another place"),
        (errno.EIO, "log.jsonl", 1, "Error: internal failure: OSError: [Errno 5] Input/output error: 'log.jsonl'"),
    ],
)
def test_what_a_file_system_refuses(
    number: int, name: str | None, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from adm_bench import registry
    from adm_bench.cli import main

    def refused(group: str) -> dict[str, str]:  # noqa: ARG001
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(registry, "describe", refused)
    result = CliRunner().invoke(main, ["list", "metrics"])
    assert result.exit_code == status
    assert result.stderr.startswith(said)


def test_classes_that_a_model_has_not_are_refused(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    sample = ("sample", "adm", "--weights", model, "--num", "1", "--out", tmp_path / "out.npz")
    assert "generator adm has 10 classes; expected 5" in refuse(*sample, "--classes", "5")


def test_weights_of_a_run_are_no_output(refuse: Refuse, model: Path) -> None:
    weights = model / "weights.safetensors"
    before = weights.read_bytes()
    sample = ("sample", "adm", "--num", "1", "--out", weights, "--overwrite", "--weights")
    assert "is an input" in refuse(*sample, model)
    assert "is an input" in refuse(*sample, weights, "--classifier", model)
    assert weights.read_bytes() == before


def test_what_is_not_ours_stays(refuse: Refuse, reference: Path, samples: Path, tmp_path: Path) -> None:
    base = ["sample", "noise", "--size", "8", "--num", "2", "--out"]
    (tmp_path / "x.npz.parts").mkdir()
    (tmp_path / "x.npz.parts" / "keep.txt").write_text("precious")
    assert "not ours to remove" in refuse(*base, tmp_path / "x.npz")
    (tmp_path / "link.npz").symlink_to(tmp_path / "target.npz")
    assert "is a link or a device" in refuse(*base, tmp_path / "link.npz", "--overwrite")
    assert "is an input" in refuse("evaluate", reference, samples, "--json", reference, "--overwrite")
    assert "is an input" in refuse("reference", samples, "--out", samples, "--overwrite")
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    assert "is no suite run" in refuse("run", suite, "--out", tmp_path / "x.npz.parts", "--device", "cpu")
    assert (tmp_path / "x.npz.parts" / "keep.txt").read_text() == "precious"


def test_weights_that_are_not_finite_are_refused(refuse: Refuse, filled: dict[str, Path], tmp_path: Path) -> None:
    header = read_header(filled["adm"])
    broken = {name: torch.full_like(value, torch.nan) for name, value in load_file(filled["adm"]).items()}
    write_weights(tmp_path / "nan.safetensors", header, broken)
    base = ["sample", "adm", "--sampling-steps", "2", "--num", "2", "--device", "cpu", "--out", tmp_path / "out.npz"]
    assert "not finite" in refuse(*base, "--weights", tmp_path / "nan.safetensors")
    assert not (tmp_path / "out.npz").exists()
