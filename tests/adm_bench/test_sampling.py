"""Image i draws from seed i alone; labels, batches and files do what they promise."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from adm_bench.errors import InputError
from adm_bench.sampling import (
    SamplingJob,
    build_generator,
    choose_labels,
    decide,
    generated_images,
    image_seeds,
    sample,
)
from generators.diffusion.noise import SeededNoise

Images = Callable[[Path], np.ndarray]
CPU = torch.device("cpu")


def test_seeds_are_distinct_and_reproducible() -> None:
    seeds = image_seeds(0, range(1000)) + image_seeds(1, range(1000))
    assert len(set(seeds)) == 2000
    assert image_seeds(7, range(5, 8)) == image_seeds(7, range(10))[5:8]


def test_no_two_images_of_a_run_begin_with_the_same_noise() -> None:
    seeds = image_seeds(3, range(50_000))
    assert len({seed % 2**32 for seed in seeds}) == 50_000  # what torch's generator on CPUs takes of a seed


def test_noise_is_bit_identical_in_any_batch() -> None:
    seeds = image_seeds(0, range(6))
    together = SeededNoise(seeds, (3, 8, 8), CPU)
    alone = [SeededNoise([seed], (3, 8, 8), CPU) for seed in seeds]
    for _ in range(3):
        rows = torch.cat([noise() for noise in alone])
        assert together().equal(rows)
    assert abs(rows.mean()) < 0.1
    assert abs(rows.std() - 1) < 0.1


@pytest.mark.parametrize("extra", [[], ["--sampler", "ddim"], ["guided"]])
def test_batch_size_changes_nothing(
    extra: list[str], run: Callable[..., object], filled: dict[str, Path], images: Images, tmp_path: Path
) -> None:
    if extra == ["guided"]:
        extra = ["--classifier", str(filled["classifier"]), "--guidance-scale", "2"]
    base = [
        "sample",
        "adm",
        "--weights",
        filled["adm"],
        "--num",
        "9",
        "--sampling-steps",
        "20",
        "--device",
        "cpu",
        *extra,
    ]
    one, all_ = tmp_path / "one.npz", tmp_path / "all.npz"
    run(*base, "--batch", "1", "--out", one)
    run(*base, "--batch", "64", "--out", all_)
    difference = images(one).astype(int) - images(all_).astype(int)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01
    assert images(one).std() > 10


def test_guidance_labels_and_seed_change_images(
    run: Callable[..., object], filled: dict[str, Path], images: Images, tmp_path: Path
) -> None:
    base = ["sample", "adm", "--weights", filled["adm"], "--num", "4", "--sampling-steps", "10", "--device", "cpu"]
    for name, labels in (("zeros", "0\n0\n0\n0"), ("mixed", "0\n5\n0\n7")):
        (tmp_path / f"{name}.txt").write_text(labels)
    options: dict[str, Sequence[object]] = {
        "plain": [],
        "seed": ["--seed", "1"],
        "guided": ["--classifier", filled["classifier"], "--guidance-scale", "9"],
        "zeros": ["--labels", tmp_path / "zeros.txt"],
        "mixed": ["--labels", tmp_path / "mixed.txt"],
    }
    made = {}
    for name, extra in options.items():
        run(*base, *extra, "--out", tmp_path / f"{name}.npz")
        made[name] = images(tmp_path / f"{name}.npz")
    assert not np.array_equal(made["plain"], made["seed"])
    assert not np.array_equal(made["plain"], made["guided"])
    same = [np.array_equal(one, other) for one, other in zip(made["zeros"], made["mixed"], strict=True)]
    assert same == [True, False, True, False]


def test_labels() -> None:
    assert choose_labels("balanced", 12, None, 0) is None
    balanced = choose_labels("balanced", 1797, 10, 0)
    assert balanced is not None
    assert np.ptp(np.bincount(balanced)) <= 1
    drawn = choose_labels("random", 2000, 10, 3)
    assert drawn is not None
    np.testing.assert_array_equal(drawn[:50], choose_labels("random", 50, 10, 3))
    assert np.bincount(drawn, minlength=10).min() > 150


@pytest.mark.parametrize("ending", ["txt", "npy", "npz"])
def test_labels_from_a_file(ending: str, tmp_path: Path) -> None:
    path, labels = tmp_path / f"labels.{ending}", np.array([3, 1, 4, 1, 5])
    if ending == "txt":
        path.write_text("\n".join(map(str, labels)))
    elif ending == "npy":
        np.save(path, labels)
    else:
        np.savez(path, arr_0=np.zeros((5, 8, 8, 3), np.uint8), arr_1=labels)
    np.testing.assert_array_equal(choose_labels(str(path), 4, 10, 0), labels[:4])


def test_samples_are_openais_format(run: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "noise.npz"
    run("sample", "noise", "--size", "8", "--classes", "10", "--num", "25", "--batch", "10", "--out", out)
    with np.load(out, allow_pickle=False) as arrays:
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((25, 8, 8, 3), np.uint8)
        assert (arrays["arr_1"].shape, arrays["arr_1"].dtype) == ((25,), np.int64)
        assert 100 < arrays["arr_0"].mean() < 155
    assert [path.name for path in tmp_path.iterdir()] == ["noise.npz"]


def test_a_plug_in_that_breaks_its_promise_is_refused(tmp_path: Path) -> None:
    noise = build_generator("noise", {}, device=CPU, image_size=8, num_classes=None)
    noise.sample = lambda seeds, *_: torch.zeros(len(seeds), 3, 8, 8)  # type: ignore[method-assign]
    job = SamplingJob(name="liar", generator=noise, description={}, num_images=2, labels=None)
    with pytest.raises(InputError, match=r"generator liar gave torch\.float32"):
        sample(job, tmp_path / "out.npz")


def test_samples_of_a_job_are_a_set_of_images_without_a_file(tmp_path: Path) -> None:
    def job(seed: int) -> SamplingJob:
        generator = build_generator("noise", {}, device=torch.device("cpu"), image_size=8, num_classes=10)
        return decide("noise", generator, {"inputs": {}}, num_images=23, seed=seed, batch_size=5)

    sample(job(0), tmp_path / "noise.npz")
    made = generated_images(job(0))
    streamed = np.concatenate(list(made.batches(7)))
    with np.load(tmp_path / "noise.npz") as stored:
        np.testing.assert_array_equal(streamed.transpose(0, 2, 3, 1), stored["arr_0"])
        np.testing.assert_array_equal(made.labels, stored["arr_1"])
    assert made.digest() == generated_images(job(0)).digest() != generated_images(job(1)).digest()
