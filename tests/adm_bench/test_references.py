"""References: built in one resumable pass, and read from everybody's formats."""

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adm_bench import reference_building, registry
from adm_bench.errors import InputError
from adm_bench.extraction import Extraction
from adm_bench.images.crops import center_crop
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.npz import NpzFile, read_identity
from adm_bench.images.sources import open_image_set
from adm_bench.reference_building import write_reference
from adm_bench.references import Reference
from metrics.protocol import EvaluationProtocol
from metrics.statistics import NEEDS, FeatureBatch, Moments

FID_NEEDS = frozenset({"pool_moments"})


class Projected:
    """Features of any widths under any name: fixed projections of pixels."""

    protocol = EvaluationProtocol(name="adm", version=1)
    device = torch.device("cpu")

    def __init__(self, name: str = "inception", pool: int = 2048, spatial: int = 2023) -> None:
        self.name = name
        self.digest = name * 8
        self.widths = (pool, spatial)

    def __call__(self, images: Tensor) -> FeatureBatch:
        flat = images.flatten(1).float()
        pool, spatial = (torch.stack([flat.roll(shift, 1)[:, 0] for shift in range(width)], 1) for width in self.widths)
        return FeatureBatch(pool=pool, spatial=spatial, logits=None)


SMALL = Projected("own", 12, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 images of 10 x 7 in two classes, stored with loss."""
    root = tmp_path_factory.mktemp("set")
    pixels = np.random.default_rng(0).integers(0, 256, (700, 10, 7, 3), np.uint8)
    for index, image in enumerate(pixels):
        path = root / f"{'ab'[index % 2]}/{index:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def everything(folder: Path) -> np.ndarray:
    """All images cropped to 6 x 6 one by one, (N, H, W, 3)."""
    paths = sorted(folder.rglob("*.jpg"))
    return np.stack([center_crop(Image.open(path).convert("RGB"), 6) for path in paths])


def test_a_reference_is_of_everything_and_keeps_what_the_seed_chooses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_building, "IMAGES_KEPT", 100)
    images = open_image_set(folder, size=6)
    identity = write_reference(images, SMALL, tmp_path / "ref.npz", seed=3, split="train, first half")
    with np.load(tmp_path / "ref.npz") as stored:
        arrays = dict(stored)
    whole = everything(folder)
    features = SMALL(torch.from_numpy(whole.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(arrays["mu"], features.pool.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(arrays["sigma"], np.cov(features.pool.double().numpy(), rowvar=False), rtol=1e-11)
    np.testing.assert_allclose(arrays["sigma_s"], np.cov(features.spatial.double().numpy(), rowvar=False), rtol=1e-11)
    chosen = np.sort(np.random.default_rng(3).choice(700, 100, replace=False))
    np.testing.assert_array_equal(arrays["arr_0"], whole[chosen])
    np.testing.assert_array_equal(arrays["arr_1"], (chosen >= 350).astype(np.int64))
    assert identity == read_identity(NpzFile(tmp_path / "ref.npz"))
    assert identity["split"] == "train, first half"
    assert identity["data_sha256"] == open_image_set(folder, size=6).digest()
    assert (identity["preparation"]["center_crop"], identity["lossy"], identity["num_images"]) == (6, True, 700)
    assert Reference.open(tmp_path / "ref.npz").num_images == 700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ref.npz"]


def test_an_image_set_that_is_not_square_and_made_on_the_way_is_measured_too(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (30, 3, 5, 9), dtype=torch.uint8)
    images = IteratedImages("made", iter(pixels.split(4)), 30, (5, 9))
    identity = write_reference(images, SMALL, tmp_path / "ref.npz")
    assert (identity["image_size"], identity["data_sha256"]) == ([5, 9], images.digest())
    assert Reference.open(tmp_path / "ref.npz").image_shape == (5, 9)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    sys.path.insert(0, {tests!r})
    from test_references import Projected, reference_building, open_image_set
    reference_building.SAVE_EVERY_SEC = -1.0
    reference_building.IMAGES_KEPT = 100
    reference_building.BATCH_SIZE = 64
    class Deadly(Projected):
        batches = 0
        def __call__(self, images):
            self.batches += 1
            if self.batches > {survive}:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images)
    images = open_image_set({folder!r}, size=6)
    reference_building.write_reference(images, Deadly("own", 12, 8), Path({out!r}), seed=3, overwrite={overwrite})
"""


def build(folder: Path, out: Path, survive: int, *, overwrite: bool = False) -> tuple[int, str]:
    """A build in a process of its own, killed after so many batches: its exit status, and what it said."""
    tests = str(Path(__file__).parent)
    code = KILLED.format(tests=tests, folder=str(folder), out=str(out), survive=survive, overwrite=overwrite)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_killed_twice_equals_undisturbed(folder: Path, tmp_path: Path) -> None:
    assert build(folder, tmp_path / "whole.npz", 99) == (0, "")
    killed = tmp_path / "killed.npz"
    for survive, said in ((3, ""), (4, "going on from 192 of 700 images")):
        status, stderr = build(folder, killed, survive)
        assert status == -9
        assert said in stderr
        assert not killed.exists()
    with (tmp_path / "killed.npz.parts" / "kept.bin").open("ab") as kept:
        kept.write(b"written, but not saved before the end")
    status, stderr = build(folder, killed, 99)
    assert status == 0
    assert "going on from 448 of 700 images" in stderr
    assert killed.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not (tmp_path / "killed.npz.parts").exists()


def test_parts_of_another_reference_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "ref.npz"
    assert build(folder, out, 2)[0] == -9
    images = open_image_set(folder, size=6)
    with pytest.raises(InputError, match=r"parts of another reference .*seed: 3 -> 4.*--overwrite"):
        write_reference(images, SMALL, out, seed=4)
    with pytest.raises(InputError, match="data: "):
        write_reference(open_image_set(folder, size=5), SMALL, out, seed=3)
    same_weights = Projected("twin", 12, 8)
    same_weights.digest = SMALL.digest
    with pytest.raises(InputError, match=r"features: own .* -> twin"):
        write_reference(images, same_weights, out, seed=3)
    (tmp_path / "ref.npz.parts" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not ours to remove"):
        write_reference(images, SMALL, out, seed=4, overwrite=True)
    (tmp_path / "ref.npz.parts" / "thesis.tex").unlink()
    write_reference(images, SMALL, out, seed=4, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]


def test_the_command_crops_states_and_names_what_is_lossy(
    run: Callable[..., Any], refuse: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ref.npz"
    options = ("--features", "digits", "--device", "cpu")
    result = run("reference", folder, "--size", "8", "--split", "val", "--out", out, *options)
    assert "is stored with loss" in result.stderr
    assert "700 images" in result.stdout
    assert read_identity(NpzFile(out))["split"] == "val"
    assert "found images of 10 x 7 pixels" in refuse("reference", folder, "--out", tmp_path / "no.npz", *options)
    (tmp_path / "bad").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), index * 20).save(tmp_path / f"bad/{index}.png")
    (tmp_path / "bad/4.png").write_bytes(b"no image")
    arguments = ("reference", tmp_path / "bad", "--out", tmp_path / "bad.npz", *options)
    assert "4.png: not a readable image" in refuse(*arguments, "--convert")
    assert "is greyscale" in refuse(*arguments, "--skip-bad", "1")
    assert not list(tmp_path.glob("*.parts"))  # nothing was worth keeping
    result = run(*arguments, "--skip-bad", "1", "--convert")
    assert "4.png: left out: not a readable image" in result.stderr
    assert read_identity(NpzFile(tmp_path / "bad.npz"))["num_images"] == 4


def stored(path: Path, *, images: int = 0, width: int = 2048, dtype: type = np.float64, **more: np.ndarray) -> Path:
    """Statistics as other programs store them; `more` adds or replaces arrays."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"mu": rng.random(width).astype(dtype)}
    arrays["sigma"] = np.asfortranarray(np.diag(rng.random(width)).astype(dtype))
    if images:
        arrays["arr_0"] = rng.integers(0, 256, (images, 30, 30, 3), np.uint8)
    np.savez(path, **(arrays | more))
    return path


def spatial(width: int = 2023) -> dict[str, np.ndarray]:
    return {"mu_s": np.zeros(width), "sigma_s": np.eye(width)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_openais_references_are_taken_as_inceptions(
    dtype: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "VIRTUAL.npz", images=6, dtype=dtype, **spatial())
    reference = Reference.open(path)
    found = reference.measure(Extraction(features=Projected()), NEEDS)
    assert "does not say what its features are; taken as those of inception" in capsys.readouterr().err
    assert (reference.num_images, reference.image_shape, found.pool.n_is_known) == (None, (30, 30), False)
    assert found.pool_rows.shape == (6, 2048)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(found.pool.covariance(), arrays["sigma"].astype(np.float64))
        np.testing.assert_array_equal(found.pool.mean, arrays["mu"].astype(np.float64))
    assert found.spatial is not None
    assert found.spatial.mean.size == 2023
    assert reference.serves == frozenset({"pool_moments", "spatial_moments", "pool_rows"})


def test_edm2_s_statistics_of_dinov2_are_taken(tmp_path: Path) -> None:
    """What its `fd_dinov2` holds, converted as the refusal of pickles says."""
    found = Reference.open(stored(tmp_path / "img512.npz", width=1024)).measure(
        Extraction(features=Projected("dinov2", pool=1024)), FID_NEEDS
    )
    assert found.pool.mean.shape == (1024,)


def test_an_unknown_number_of_images_is_no_number(tmp_path: Path) -> None:
    found = Reference.open(stored(tmp_path / "fid.npz")).measure(Extraction(features=Projected()), FID_NEEDS)
    with pytest.raises(ValueError, match="unknown number of images; nothing can be added"):
        found.pool.update(np.zeros((3, 2048)))
    with pytest.raises(ValueError, match="unknown number"):
        Moments.empty(2048).merge(found.pool)


def test_mu_and_sigma_alone_serve_fid_only(tmp_path: Path) -> None:
    reference = Reference.open(stored(tmp_path / "ttur.npz"))
    reference.check(Projected(), FID_NEEDS | {"logit_rows"})
    with pytest.raises(InputError, match=r"no statistics or images for sFID; it serves FID only: .*--metrics fid"):
        reference.check(Projected(), FID_NEEDS | {"spatial_moments"})
    with pytest.raises(InputError, match="precision, recall and their like; it serves FID only"):
        reference.check(Projected(), frozenset({"pool_rows"}))


@pytest.mark.parametrize(
    ("features", "width", "more", "expected"),
    [
        (Projected(), 64, {}, r"mu has the shape \(64,\), but features inception are 2048"),
        (Projected(), 2048, spatial(768), r"mu_s has the shape \(768,\), but features inception are 2023"),
        (Projected("dinov2"), 2048, {}, r"mu has the shape \(2048,\), but features dinov2 are 1024"),
        (SMALL, 12, {}, "does not say which features .* these are own"),
    ],
)
def test_statistics_of_other_features_are_refused(
    features: Projected, width: int, more: dict[str, np.ndarray], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=expected):
        Reference.open(stored(tmp_path / "ref.npz", width=width, **more)).measure(
            Extraction(features=features), FID_NEEDS
        )


POOL, SPATIAL = frozenset({"pool_moments"}), frozenset({"spatial_moments"})
ASYMMETRIC = np.eye(2048) + np.eye(2048, k=1)


def with_a_hole(value: float) -> np.ndarray:
    """A mean of which one value is that."""
    return np.r_[np.zeros(2047), value]


@pytest.mark.parametrize(
    ("more", "needs", "expected"),
    [
        ({"sigma": np.eye(7)}, POOL, r"sigma is \(7, 7\) and mu has 2048 values; expected \(2048, 2048\): make the"),
        ({"sigma": np.zeros(2048)}, POOL, r"sigma is \(2048,\) and mu has 2048 values; expected \(2048, 2048\)"),
        (
            {"mu": with_a_hole(np.nan)},
            POOL,
            r"1 of 2048 values of mu \(2048,\) are NaN or infinite; .* take another",
        ),
        ({"sigma": np.full((2048, 2048), -np.inf)}, POOL, "4194304 of 4194304 values of sigma"),
        ({"mu": np.zeros(2048, np.int64)}, POOL, "mu is int64; expected floating-point numbers: make the statistics"),
        ({"sigma": np.eye(2048, dtype=np.complex128)}, POOL, "sigma is complex128; expected floating-point numbers: "),
        ({"sigma": ASYMMETRIC}, POOL, "mu, sigma: found a covariance that is not symmetric; make the statistics again"),
        ({"adm_bench": np.array('{"num_images": 1}')}, POOL, "statistics of 1 images; a covariance takes at least 2"),
        ({"mu_s": np.zeros(2023)}, SPATIAL, "holds mu_s and no sigma_s; expected both or neither: make the statistics"),
        ({"sigma_s": np.eye(2023)}, SPATIAL, "holds sigma_s and no mu_s; expected both or neither"),
        ({"mu_s": np.full(2023, np.nan), "sigma_s": np.eye(2023)}, SPATIAL, "2023 of 2023 values of mu_s"),
    ],
)
def test_statistics_that_are_none_are_refused_before_the_network_where_they_are_needed(
    more: dict[str, np.ndarray], needs: frozenset[str], expected: str, tmp_path: Path
) -> None:
    reference = Reference.open(stored(tmp_path / "ref.npz", images=6, **more))
    with pytest.raises(InputError, match=f"ref.npz: .*{expected}"):
        reference.check(Projected(), needs)
    rows = frozenset({"pool_rows", "logit_rows"})
    reference.check(Projected(), rows)
    assert reference.measure(Extraction(features=Projected()), rows).pool_rows.shape == (6, 2048)
    if needs == SPATIAL:
        assert reference.measure(Extraction(features=Projected()), POOL).pool.mean.size == 2048


@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_half_of_a_pair_is_no_statistic_and_is_not_made_up_from_images(name: str, tmp_path: Path) -> None:
    path, half = tmp_path / "ref.npz", {name: np.eye(2048)[: 1 if name == "mu" else None]}
    np.savez(path, arr_0=np.zeros((6, 30, 30, 3), np.uint8), **half)
    other = ({"mu", "sigma"} - {name}).pop()
    with pytest.raises(InputError, match=f"holds {name} and no {other}; expected both or neither"):
        Reference.open(path).check(Projected(), POOL)
    np.savez(path, **half)
    with pytest.raises(InputError, match=f"no reference; it holds {name}; expected arr_0, or mu and sigma"):
        Reference.open(path)


@pytest.mark.parametrize(
    ("count", "names", "expected"),
    [
        (1, ("fid", "is"), "holds 1 images; FID needs 2 or more of a reference: take a larger one, or name other"),
        (1, ("sfid",), "holds 1 images; sFID needs 2"),
        (1, ("copied",), "holds 1 images; Copied needs 2"),
        (3, ("fid", "precision"), "holds 3 images; Precision needs 4"),
        (3, ("recall",), "holds 3 images; Recall needs 4"),
        (5, ("precision", "coverage"), "holds 5 images; Coverage needs 6"),
        (999, ("kid", "kid_subsets"), "holds 999 images; KID subsets needs 1000"),
    ],
)
def test_a_reference_of_too_few_images_is_refused_before_the_network(
    count: int, names: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "few.npz", np.zeros((count, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "more.npz", np.zeros((count + 1, 4, 4, 3), np.uint8))
    metrics = [registry.load("metrics", name) for name in names]
    needs = frozenset[str]().union(*(metric.needs for metric in metrics))
    with pytest.raises(InputError, match=expected):
        Reference.open(tmp_path / "few.npz").check(SMALL, needs, metrics)
    Reference.open(tmp_path / "more.npz").check(SMALL, needs, metrics)
    if count > 1:  # its own statistics are of more images than it holds
        stored(tmp_path / "few.npz", images=count)
        fid = registry.load("metrics", "fid")
        Reference.open(tmp_path / "few.npz").check(Projected(), fid.needs, [fid])


def test_a_reference_runs_through_the_network_only_where_a_metric_reads_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", np.zeros((9, 4, 4, 3), np.uint8))

    class Unasked(Projected):
        def __call__(self, images: Tensor) -> FeatureBatch:
            raise AssertionError(images)

    found = Reference.open(tmp_path / "set.npz").measure(Extraction(features=Unasked()), frozenset({"logit_rows"}))
    assert (found.num_images, len(found.pool_rows)) == (0, 0)


def test_pickles_are_refused_unopened(refuse: Callable[..., str], samples: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps({"fid": Bomb()}))
    for arguments in (("evaluate", path, samples), ("inspect", path)):
        line = refuse(*arguments)
        assert "is a pickle, which can run any program" in line
        assert "numpy.savez('ref.npz', mu=s['mu'], sigma=s['sigma'])" in line
        assert "'fd_dinov2' in place of 'fid' for features dinov2" in line
    np.savez(tmp_path / "ref.npz", mu=np.array([{"a": 1}], dtype=object), sigma=np.zeros((1, 1)))
    with pytest.raises(InputError, match="Python objects, which are never loaded"):
        Reference.open(tmp_path / "ref.npz")
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_a_reference(folder: Path, reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    opened = Reference.open(folder, size=6)
    measured = opened.measure(Extraction(features=SMALL), NEEDS)
    assert (opened.num_images, opened.image_shape, measured.num_images) == (700, (6, 6), 700)
    assert measured.pool_rows.shape == (700, 12)
    with np.load(reference) as arrays:
        images = arrays["arr_0"][:60]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index:03d}.png")
    np.savez(tmp_path.parent / "same.npz", images)
    options = ("--metrics", "fid,precision", "--features", "digits", "--device", "cpu", "--no-cache")
    of_folder, of_npz = (
        run("evaluate", known, reference, *options).stdout for known in (tmp_path, tmp_path.parent / "same.npz")
    )
    assert of_folder == of_npz
