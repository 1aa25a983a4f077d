"""What `adm-bench evaluate` refuses or says because numbers would mislead, and what its records say of each number."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor, nn

import adm_bench

Run = Callable[..., Result]
Refuse = Callable[..., str]
QUICK = ("--device", "cpu", "--no-cache")


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


def test_a_crop_of_stored_statistics_is_refused(
    run: Run, refuse: Refuse, reference: Path, samples: Path, tmp_path: Path
) -> None:
    with np.load(reference) as arrays:
        held = {name: arrays[name] for name in ("mu", "sigma", "arr_0", "adm_bench")}
    unstated = {name: values for name, values in held.items() if name != "adm_bench"}
    statistics = {name: values for name, values in held.items() if name != "arr_0"}
    for name, arrays in (("whole", held), ("unstated", unstated), ("statistics", statistics)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        said = refuse("evaluate", path, samples, *QUICK, "--features", "digits", "--size", "16", "--metrics", "fid")
        assert f"{path}: its statistics are of 8 x 8 images, which --size 16 cannot crop; leave --size away" in said
    run("evaluate", reference, samples, *QUICK, "--size", "8", "--metrics", "fid")


def test_images_that_size_enlarges_are_told_of(run: Run, reference: Path, pngs: Path, tmp_path: Path) -> None:
    with np.load(reference) as arrays:
        np.savez(tmp_path / "plain.npz", arrays["arr_0"][100:200])
    evaluate = ("evaluate", tmp_path / "plain.npz", pngs, *QUICK, "--features", "digits", "--metrics", "fid")
    said = run(*evaluate, "--size", "16").stderr
    assert "--size enlarges samples, whose short sides begin at 8 pixels, to 16" in said
    assert "--size enlarges reference images, whose short sides begin at 8 pixels, to 16" in said
    assert "enlarges" not in run(*evaluate, "--size", "8").stderr
    shutil.copytree(pngs, tmp_path / "mixed")
    for path in (tmp_path / "mixed").iterdir():
        Image.open(path).resize((20, 12 if path.name == "0007.png" else 16)).save(path)
    said = run("evaluate", pngs, tmp_path / "mixed", *QUICK, "--features", "digits", "--size", "16").stderr
    assert "--size enlarges samples, whose short sides begin at 12 pixels, to 16" in said
    assert "--size enlarges reference images, whose short sides begin at 8 pixels, to 16" in said


def test_samples_that_repeat_each_other_are_told_of(run: Run, reference: Path, tmp_path: Path) -> None:
    def said(images: np.ndarray, *options: str | Path) -> str:
        np.savez(tmp_path / "samples.npz", arr_0=images)
        evaluate = ("evaluate", reference, tmp_path / "samples.npz", "--device", "cpu", "--metrics", "fid")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADM_BENCH_HOME", str(tmp_path / "home"))
            return run(*evaluate, *options).stderr

    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    assert "pixel for pixel" not in said(noise)
    assert "pixel for pixel" not in said(np.concatenate([noise, noise[:2]]))  # one in a hundred is worth a word
    twice = np.concatenate([noise, noise[100:200]])
    expected = "100 of 400 samples (25 %) are pixel for pixel an earlier one, so numbers are of 300 images"
    assert expected in said(twice)
    assert expected in said(twice)  # from the cache
    out = tmp_path / "numbers.json"
    assert "all 60 samples are one and the same image" in said(np.zeros((60, 8, 8, 3), np.uint8), "--json", out)
    assert any("all 60 samples" in text for text in json.loads(out.read_text())[0]["settings"]["warnings"])


class Constant(nn.Module):
    """Gives the same tensor whatever it is asked."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Buffer(rows)

    def forward(self, images: Tensor) -> Tensor:  # noqa: ARG002
        return self.rows


class Growing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), len(images))


class Brighter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.log(images.float().mean(dim=(2, 3)) - 20)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Constant(torch.zeros(50)), "gives torch.float32 (50,) for 50 images; expected floats [50, features]"),
        (Constant(torch.zeros(50, 4, 1)), "gives torch.float32 (50, 4, 1) for 50 images"),
        (Constant(torch.zeros(50, 0)), "gives torch.float32 (50, 0) for 50 images"),
        (Constant(torch.zeros(50, 4, dtype=torch.int64)), "gives torch.int64 (50, 4) for 50 images"),
        (Constant(torch.zeros(49, 4)), "gives torch.float32 (49, 4) for 50 images"),
        (Growing(), "gives torch.float32 (10, 10) for 10 images; expected floats [10, 50]"),
    ],
)
def test_a_network_that_gives_no_features_is_refused(
    module: nn.Module, expected: str, refuse: Refuse, samples: Path, pngs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(module), str(path))
    own = ("--features", "torchscript", "--feature-weights", path)
    with np.load(samples) as arrays:
        np.savez(tmp_path / "ref.npz", arr_0=255 - arrays["arr_0"])
    assert f"{path}: {expected}" in refuse("evaluate", tmp_path / "ref.npz", pngs, *own, *QUICK, "--metrics", "fid")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_image_without_finite_features_is_named(refuse: Refuse, pngs: Path, samples: Path, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Brighter()), str(tmp_path / "net.pt"))
    own = ("--features", "torchscript", "--feature-weights", tmp_path / "net.pt", "--device", "cpu")
    shutil.copytree(pngs, tmp_path / "dark")
    Image.new("RGB", (8, 8)).save(tmp_path / "dark" / "0007.png")
    expected = f"{tmp_path}/dark/0007.png (image 7, counted from 0) is the first whose pool features are not finite"
    assert expected in refuse("evaluate", samples, tmp_path / "dark", *own, "--no-cache", "--metrics", "fid")
    assert expected in refuse("reference", tmp_path / "dark", *own, "--out", tmp_path / "ref.npz")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_too_few_images_for_the_features_are_told_of(run: Run, reference: Path, samples: Path, tmp_path: Path) -> None:
    said = "for 64 features leave a covariance without full rank: FID of so few images"
    evaluate = ("evaluate", reference, samples, *QUICK)
    assert f"60 samples {said}" in run(*evaluate, "--metrics", "fid").stderr
    assert "full rank" not in run(*evaluate, "--metrics", "kid").stderr
    with np.load(reference) as arrays:
        images = arrays["arr_0"]
    for name, part in (("some", images[:64]), ("more", images[100:165])):
        np.savez(tmp_path / f"{name}.npz", arr_0=part)
    some, more = tmp_path / "some.npz", tmp_path / "more.npz"
    digits = ("--features", "digits", "--metrics", "fid")
    assert f"64 reference images {said}" in run("evaluate", some, more, *QUICK, *digits).stderr
    assert f"64 samples {said}" in run("evaluate", more, some, *QUICK, *digits).stderr
    assert "full rank" not in run("evaluate", reference, more, *QUICK, "--metrics", "fid").stderr
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    own = ("--features", "torchscript", "--feature-weights", tmp_path / "means.pt", "--metrics", "fid")
    np.savez(tmp_path / "three.npz", arr_0=images[:3])
    out = tmp_path / "numbers.json"
    said = "3 samples for 3 features leave a covariance without full rank: FD-torchscript of so few"
    assert said in run("evaluate", more, tmp_path / "three.npz", *QUICK, *own, "--json", out).stderr
    assert said in json.loads(out.read_text())[0]["settings"]["warnings"][-1]
    assert "full rank" not in run("evaluate", some, more, *QUICK, *own).stderr


def test_the_choices_behind_each_number_are_recorded(run: Run, reference: Path, samples: Path, tmp_path: Path) -> None:
    metrics = {
        "fid": None,
        "is": {"inception_split_size": 5000},
        "is_shuffled": {"inception_split_size": 5000, "seed": 2020},
        "precision": {"neighbours": 3},
        "recall": {"neighbours": 3},
        "f_score": {"neighbours": 3},
        "density": {"density_neighbours": 5},
        "coverage": {"density_neighbours": 5},
        "kid": None,
    }
    out = tmp_path / "numbers.json"
    run("evaluate", reference, samples, *QUICK, "--metrics", ",".join(metrics), "--json", out)
    found = {record["quantity"]: record["settings"].get("metric") for record in json.loads(out.read_text())}
    assert found == metrics
    subsets = {"kid_subsets": 100, "kid_subset_size": 1000, "seed": 2020}
    protocol = adm_bench.EvaluationProtocol(name="any", version=1)
    assert protocol.settings_of("kid_subsets") == subsets
    assert protocol.settings_of("fid_infinity") == {"seed": 2020}
    listed = " ".join(run("list", "metrics").stdout.split())
    assert "k = 3" in listed
    assert "k = 5" in listed
    assert "not times 1,000" in listed


def test_images_whose_names_end_otherwise_are_told_of(run: Run, reference: Path, pngs: Path, tmp_path: Path) -> None:
    content = (pngs / "0000.png").read_bytes()
    root = tmp_path / "images"
    shutil.copytree(pngs, root)
    evaluate = ("evaluate", reference, root, *QUICK, "--metrics", "fid")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "notes", ".hidden"):
        (root / name).write_bytes(content if name == ".hidden" else b"\0\0\0\1Bud1 text")
    os.mkfifo(root / "pipe")
    assert "left out" not in run(*evaluate).stderr
    (root / "inner").mkdir()
    (root / "inner" / "0001").write_bytes(content)
    (root / "0002.png.part").write_bytes(content)
    said = "2 files that begin as images do are left out"
    assert f"warning: {root}: samples: {said}" in run(*evaluate).stderr
    reversed_too = run("evaluate", root, reference, *QUICK, "--features", "digits", "--metrics", "fid").stderr
    assert f"reference images: {said}" in reversed_too
    made = run("reference", root, "--features", "digits", "--device", "cpu", "--out", tmp_path / "ref.npz").stderr
    assert made.count(f"{root}: {said}") == 1
    (root / "pipe").unlink()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(root))
    for source in (root, tmp_path / "images.zip"):
        found = json.loads(run("inspect", source).stdout)
        assert found["left_out_by_name"] == {"number": 2, "first": ["0002.png.part", "inner/0001"]}
        assert found["number"] == 60
