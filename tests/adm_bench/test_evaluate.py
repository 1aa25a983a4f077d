"""`adm-bench evaluate` on whatever holds images, with what it says of them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def numbers(output: str) -> dict[str, float]:
    """The printed table, by label."""
    lines = [line for line in output.splitlines() if not line.startswith("protocol")]
    return {line[:16].strip(): float(line[16:].split()[0]) for line in lines}


def test_files_folders_zips_and_shards_give_the_same_numbers(
    run: Run, reference: Path, samples: Path, pngs: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "samples.zip", "w") as archive:
        for path in sorted(pngs.iterdir()):
            archive.write(path, path.name)
    (tmp_path / "shards").mkdir()
    with np.load(samples) as arrays:
        for number, part in enumerate(np.array_split(arrays["arr_0"], 3)):
            np.savez(tmp_path / "shards" / f"{number}.npz", arr_0=part)
    expected = numbers(run("evaluate", reference, samples, *QUICK).stdout)
    assert expected.keys() == {"FID", "sFID", "IS", "Precision", "Recall", "Copied"}
    for source in (pngs, tmp_path / "samples.zip", tmp_path / "shards"):
        assert numbers(run("evaluate", reference, source, *QUICK).stdout) == pytest.approx(expected, rel=1e-5)


def test_features_are_those_of_the_reference(
    run: Run, refuse: Refuse, reference: Path, pngs: Path, tmp_path: Path
) -> None:
    assert run("evaluate", reference, pngs, *QUICK).stdout.startswith("protocol digits v1, features digits ")
    shutil.copytree(pngs, tmp_path / "real")  # images say nothing of features
    assert "adm-bench fetch inception" in refuse("evaluate", pngs, tmp_path / "real", *QUICK)


def test_everything_is_recorded(run: Run, reference: Path, pngs: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    metrics = "fid,is,precision,kid,is_shuffled,density"
    run("evaluate", reference, pngs, *QUICK, "--metrics", metrics, "--intervals", "--json", out)
    records = {record["quantity"]: record for record in json.loads(out.read_text())}
    assert list(records) == metrics.split(",")
    fid = records["fid"]
    assert (fid["protocol"], fid["features"], fid["num_images"], fid["num_reference_images"]) == (
        "digits", "digits", 60, 1797,
    )  # fmt: skip
    assert set(fid["inputs"]) == {"samples", "reference"}
    assert fid["interval"]["low"] < fid["value"] < fid["interval"]["high"]
    assert fid["interval"]["level"] == 0.95
    assert {name for name, record in records.items() if record["interval"]} == {"fid", "is", "precision"}


def test_classes_are_measured_alone(run: Run, reference: Path, tmp_path: Path) -> None:
    samples, out = tmp_path / "gaussian.npz", tmp_path / "numbers.json"
    run("sample", "gaussian", "--data", "digits", "--num", "300", "--out", samples, "--device", "cpu")
    evaluate = ("evaluate", reference, samples, *QUICK, "--metrics", "fid", "--overwrite", "--json", out)
    plain = run(*evaluate).stdout
    alone = json.loads(out.read_text())
    output = run(*evaluate, "--per-class").stdout
    assert output.startswith(plain)
    lines = output.removeprefix(plain).splitlines()
    assert lines[0].split() == ["class", "n", "n_ref", "FID", "KID"]
    assert lines[-1].startswith("* no more images than features")  # 30 samples a class, 64 features
    rows = [line.split() for line in lines[1:-1]]
    assert [row[0] for row in rows] == [str(digit) for digit in range(10)]
    assert all(row[3].endswith("*") for row in rows)
    whole, *classes = json.loads(out.read_text())
    assert (whole["value"], whole["image_class"]) == (alone[0]["value"], None)
    assert [(record["quantity"], record["image_class"]) for record in classes] == [
        (name, digit) for digit in range(10) for name in ("fid", "kid")
    ]
    for row, fid, kid in zip(rows, classes[::2], classes[1::2], strict=True):
        assert [int(row[1]), int(row[2])] == [fid["num_images"], fid["num_reference_images"]]
        assert fid["num_images"] == 30
        assert float(row[3][:-1]) == pytest.approx(fid["value"], rel=1e-5)
        assert float(row[4]) == pytest.approx(kid["value"], rel=1e-5)
        assert fid["settings"]["rank_deficient"]
    # class 4 is what the same images give where there is nothing else
    for path, source in ((tmp_path / "ours.npz", samples), (tmp_path / "theirs.npz", reference)):
        with np.load(source) as arrays:
            np.savez(path, arr_0=arrays["arr_0"][arrays["arr_1"] == 4])
    fours = run(
        "evaluate",
        tmp_path / "theirs.npz",
        tmp_path / "ours.npz",
        *QUICK,
        "--features",
        "digits",
        "--metrics",
        "fid,kid",
    )
    expected = [classes[8]["value"], classes[9]["value"]]
    assert list(numbers(fours.stdout).values()) == pytest.approx(expected, rel=1e-5)


def test_classes_need_labels_that_mean_the_same(
    run: Run, refuse: Refuse, reference: Path, samples: Path, pngs: Path, tmp_path: Path
) -> None:
    per_class = (*QUICK, "--features", "digits", "--metrics", "fid", "--per-class")
    assert f"{pngs}: the samples have no labels" in refuse("evaluate", reference, pngs, *per_class)
    assert f"{pngs}: the reference has no labels" in refuse("evaluate", pngs, reference, *per_class)
    with np.load(reference) as arrays:
        np.savez(tmp_path / "statistics.npz", mu=arrays["mu"], sigma=arrays["sigma"], adm_bench=arrays["adm_bench"])
    assert "statistics only" in refuse("evaluate", tmp_path / "statistics.npz", samples, *per_class)
    with np.load(samples) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    for root, dropped in (("all", None), ("few", 0)):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / root / f"{label}/{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if label != dropped:
                Image.fromarray(image).save(path)
    by_folder = run("evaluate", reference, tmp_path / "all", *per_class).stdout
    assert len(by_folder.splitlines()) == 14
    assert "ranks of folders" in refuse("evaluate", reference, tmp_path / "few", *per_class)
    assert "ranks of folders" in refuse("evaluate", tmp_path / "all", tmp_path / "few", *per_class)


def test_another_arithmetic_is_another_protocol(run: Run, reference: Path, samples: Path, tmp_path: Path) -> None:
    evaluate = ("evaluate", reference, samples, *QUICK, "--metrics", "precision,recall,f_score,fid,density")
    out = tmp_path / "numbers.json"
    plain = run(*evaluate).stdout
    same = run(*evaluate, "--pr-precision", "fp32").stdout
    other = run(*evaluate, "--pr-precision", "fp16", "--json", out).stdout
    assert plain == same
    assert "protocol digits v1," in plain
    assert "protocol digits-fp16 v1," in other
    assert numbers(other) == pytest.approx(numbers(plain), abs=0.05)
    stated = {record["quantity"]: record["precision"] for record in json.loads(out.read_text())}
    assert stated == {"precision": "fp16", "recall": "fp16", "f_score": "fp16", "fid": "fp32", "density": "fp32"}


def test_features_are_kept_and_reused(run: Run, reference: Path, samples: Path, tmp_path: Path) -> None:
    environment = {"ADM_BENCH_HOME": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        plain = run("evaluate", reference, samples, *QUICK).stdout
        assert not list(tmp_path.rglob("*"))
        first = run("evaluate", reference, samples, "--device", "cpu").stdout
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part_*")}
        assert len(kept) == 9  # eight parts of the reference's 1,797 images, one of the samples
        assert run("evaluate", reference, samples, "--device", "cpu", "--memory-gb", "0").stdout == first == plain
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part_*")} == kept


def test_sorted_samples_are_told_of_and_scored_shuffled_too(run: Run, reference: Path, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 1000)
    with np.load(reference) as arrays:
        digits = [arrays["arr_0"][arrays["arr_1"] == label] for label in range(10)]
    images = np.concatenate([np.resize(of_class, (1000, 8, 8, 3)) for of_class in digits])
    np.savez(tmp_path / "sorted.npz", arr_0=images, arr_1=labels)
    result = run("evaluate", reference, tmp_path / "sorted.npz", *QUICK, "--metrics", "is,is_shuffled")
    found = numbers(result.stdout)
    assert "labels are sorted by class" in result.stderr
    assert found["IS"] < found["IS shuffled"] - 1
    default = run("evaluate", reference, tmp_path / "sorted.npz", *QUICK).stdout
    assert list(numbers(default)) == ["FID", "sFID", "IS", "IS shuffled", "Precision", "Recall", "Copied"]
    assert numbers(default)["Copied"] == 1


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_network_of_the_users_own(run: Run, refuse: Refuse, samples: Path, pngs: Path, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Means()), str(tmp_path / "means.pt"))
    with np.load(samples) as arrays:
        np.savez(tmp_path / "ref.npz", arr_0=255 - arrays["arr_0"])
    own = ("--features", "torchscript", "--feature-weights", tmp_path / "means.pt")
    found = numbers(run("evaluate", tmp_path / "ref.npz", pngs, *own, *QUICK).stdout)
    assert found.keys() == {"FD-torchscript", "Precision", "Recall", "Copied"}  # it has no spatial layer and no logits
    assert "found none" in refuse("evaluate", tmp_path / "ref.npz", pngs, *own, *QUICK, "--metrics", "sfid")


def test_statistics_alone_serve_fid(run: Run, refuse: Refuse, reference: Path, samples: Path, tmp_path: Path) -> None:
    with np.load(reference) as arrays:
        identity, mu, sigma = arrays["adm_bench"], arrays["mu"], arrays["sigma"]
    np.savez(tmp_path / "ttur.npz", adm_bench=identity, mu=mu, sigma=sigma)
    found = numbers(run("evaluate", tmp_path / "ttur.npz", samples, *QUICK).stdout)
    assert found.keys() == {"FID", "IS"}
    assert found["FID"] == pytest.approx(numbers(run("evaluate", reference, samples, *QUICK).stdout)["FID"], rel=1e-5)
    assert "precision, recall and their like" in refuse(
        "evaluate", tmp_path / "ttur.npz", samples, *QUICK, "--metrics", "recall"
    )


def test_what_cannot_be_measured_is_refused_first(
    run: Run, refuse: Refuse, reference: Path, pngs: Path, tmp_path: Path
) -> None:
    assert "is the reference itself" in refuse("evaluate", reference, reference, *QUICK)
    (tmp_path / "grey").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "grey" / "0.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "grey" / "1.png")
    assert "--convert" in refuse("evaluate", reference, tmp_path / "grey", *QUICK, "--metrics", "fid")
    run("evaluate", reference, tmp_path / "grey", *QUICK, "--metrics", "fid", "--convert")
    (tmp_path / "bad").mkdir()
    for path in pngs.iterdir():
        (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad" / "0031.png").write_bytes(b"no image")
    assert "0031.png" in refuse("evaluate", reference, tmp_path / "bad", *QUICK)
    out = tmp_path / "bad.json"
    run("evaluate", reference, tmp_path / "bad", *QUICK, "--skip-bad", "1", "--metrics", "fid", "--json", out)
    (record,) = json.loads(out.read_text())
    assert record["num_images"] == 59
    assert list(record["settings"]["skipped"]) == ["0031.png"]
    assert record["settings"]["num_skipped"] == {"samples": 1, "reference": 0}


def test_unreadable_images_of_the_reference_are_left_out_too(
    run: Run, refuse: Refuse, reference: Path, pngs: Path, tmp_path: Path
) -> None:
    shutil.copytree(pngs, tmp_path / "bad")
    for name in ("0007.png", "0031.png"):
        (tmp_path / "bad" / name).write_bytes(b"no image")
    with np.load(reference) as arrays:
        np.savez(tmp_path / "other.npz", arrays["arr_0"][100:200])
    evaluate = ("evaluate", tmp_path / "bad", tmp_path / "other.npz", *QUICK, "--features", "digits")
    assert "bad/0007.png: not a readable image" in refuse(*evaluate, "--metrics", "fid")
    assert "2 of 60 images are unreadable, and --skip-bad allows 1" in refuse(*evaluate, "--skip-bad", "1")
    out = tmp_path / "numbers.json"
    result = run(*evaluate, "--skip-bad", "2", "--metrics", "fid", "--json", out)
    assert "reference: unreadable images left out: 2" in result.stderr
    (record,) = json.loads(out.read_text())
    assert (record["num_images"], record["num_reference_images"]) == (100, 58)
    assert record["settings"]["num_skipped"] == {"samples": 0, "reference": 2}
    assert list(record["settings"]["reference_skipped"]) == ["0007.png", "0031.png"]
    for name in ("0007.png", "0031.png"):
        (tmp_path / "bad" / name).unlink()
    assert run(*evaluate, "--metrics", "fid").stdout == run(*evaluate, "--metrics", "fid", "--skip-bad", "9").stdout
    assert numbers(run(*evaluate, "--metrics", "fid").stdout)["FID"] == pytest.approx(record["value"], rel=1e-5)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999"])
def test_memory_is_a_finite_number(value: str, refuse: Refuse, reference: Path, samples: Path) -> None:
    said = refuse("evaluate", reference, samples, *QUICK, f"--memory-gb={value}")
    assert "Invalid value for '--memory-gb': " in said
    assert "expected gigabytes, such as 4 or 0.5" in said or "range x>=0" in said


def test_images_that_nobody_can_know_again_are_measured_without_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    features = adm_bench.load_features("digits", torch.device("cpu"))
    extraction = adm_bench.Extraction(features=features, cache_root=tmp_path)
    for digest, kept in ((None, 0), ("5eed", 1)):
        images = adm_bench.IteratedImages("made", iter([pixels]), 8, (8, 8), source_digest=digest)
        extraction.measure(images, frozenset({"pool_moments"}), "made")
        assert len(list(tmp_path.rglob("part_*"))) == kept
        assert ("made: features are not kept" in capsys.readouterr().err) == (digest is None)


def test_processes_share_the_work(run: Run, reference: Path, samples: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "adm_bench"]
    together = subprocess.run(
        [*command, "evaluate", reference, samples, "--device", "cpu", "--json", tmp_path / "two.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ADM_BENCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("protocol digits v1") == 1
    alone = numbers(run("evaluate", reference, samples, *QUICK).stdout)
    assert numbers(together.stdout) == pytest.approx(alone, rel=1e-6)
    records: list[dict[str, Any]] = json.loads((tmp_path / "two.json").read_text())
    assert {record["world_size"] for record in records} == {2}


def test_a_generator_is_measured_without_a_file_in_between(run: Run, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "gaussian.npz"
    run("sample", "gaussian", "--data", "digits", "--num", "40", "--out", out, "--device", "cpu")
    expected = numbers(run("evaluate", reference, out, *QUICK, "--metrics", "fid,recall").stdout)
    device = torch.device("cpu")
    dataset = adm_bench.open_dataset("digits")
    generator = adm_bench.build_generator("gaussian", {}, device=device, dataset=dataset)
    images = adm_bench.generated_images(adm_bench.decide("gaussian", generator, {}, num_images=40))
    found = adm_bench.evaluate(
        adm_bench.Reference.open(reference),
        images,
        adm_bench.Extraction(features=adm_bench.load_features("digits", device)),
        adm_bench.load_metrics(["fid", "recall"]),
    )
    assert found.values == pytest.approx({"fid": expected["FID"], "recall": expected["Recall"]}, rel=1e-5)
    assert found.num_images == 40


def test_processes_say_what_is_wrong_once(reference: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "adm_bench"]
    for arguments, expected in (
        (("evaluate", reference, tmp_path / "nowhere"), "no such file or folder"),
        (("reference", "digits", "--out", tmp_path / "ref.npz"), "runs in one process"),
    ):
        found = subprocess.run(
            [*command, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert found.returncode != 0
        assert found.stderr.count(expected) == 1, found.stderr
    assert not list(tmp_path.iterdir())


def test_labels_that_do_not_fit_are_told_of(
    run: Run, refuse: Refuse, reference: Path, samples: Path, tmp_path: Path
) -> None:
    with np.load(samples) as arrays:
        np.savez(tmp_path / "bad.npz", arr_0=arrays["arr_0"], arr_1=arrays["arr_1"] + 0.5)
    out = tmp_path / "numbers.json"
    result = run("evaluate", reference, tmp_path / "bad.npz", *QUICK, "--metrics", "fid", "--json", out)
    assert "labels are not used: labels" in result.stderr  # the file is named once
    assert "labels are not used" in json.loads(out.read_text())[0]["settings"]["warnings"][0]
    assert "labels" in refuse("evaluate", reference, tmp_path / "bad.npz", *QUICK, "--per-class")


def test_a_number_whose_interval_cannot_be_had_stands(run: Run, reference: Path, tmp_path: Path) -> None:
    with np.load(reference) as arrays:
        images = np.resize(arrays["arr_0"], (5010, 8, 8, 3))
    np.savez(tmp_path / "many.npz", arr_0=images)
    out = run("evaluate", reference, tmp_path / "many.npz", *QUICK, "--metrics", "fid,is", "--intervals")
    assert "no interval of IS" in out.stderr
    assert "FID" in out.stdout
    assert out.stdout.count("95 %") == 1
