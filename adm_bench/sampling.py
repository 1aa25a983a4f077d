"""Sampling: any generator, a seed an image, into OpenAI's npz, resumable at any moment."""

import hashlib
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm_bench import progress, registry
from adm_bench.bases import BaseSamples
from adm_bench.errors import InputError, bad_input
from adm_bench.files import (
    LOCK_FILE,
    PARTIAL_SUFFIX,
    atomic_path,
    check_new_file,
    check_writable,
    file_sha256,
    fingerprint,
    read_json,
    remove_partial,
    sole_user,
    write_json,
)
from adm_bench.images.dataset import Dataset, Images, Labels, passes
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.npz import NpzFile, read_identity, write_arrays, write_samples
from adm_bench.places import PLAN_FILE
from adm_bench.provenance import provenance
from adm_bench.runs import differences
from generators.configuration import from_mapping
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import Generator, Ingredients, Upsampler

DEFAULT_NUM_IMAGES = 1000
PART_PATTERN = "[0-9]*.npz"


def image_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """The seed of each image of a run's seed: what image i draws depends on (seed, i) alone."""
    return [mix_seed(seed, Stream.IMAGES, index) for index in indices]


def choose_labels(source: str, num_images: int, num_classes: int | None, seed: int) -> Labels | None:
    """Labels of the images to be sampled, (num_images,), or None for an unconditional generator.

    `balanced` counts through the classes, `random` draws image i's label from (seed, i); anything else is
    the path of a text file with one label a line, an npy file, or an npz file with `arr_1`. InputError
    where the file's labels are too few or out of range.
    """
    if num_classes is None:
        return None
    if source == "balanced":
        return np.arange(num_images, dtype=np.int64) % num_classes
    if source == "random":
        seeds = (mix_seed(seed, Stream.LABELS, index) for index in range(num_images))
        return np.array([np.random.default_rng(each).integers(num_classes) for each in seeds], np.int64)
    labels = read_labels(Path(source))
    if len(labels) < num_images:
        raise InputError(f"{source}: holds {len(labels)} labels, but {num_images} images are asked for")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise InputError(f"{source}: label {outside[0]} is out of range; expected 0 to {num_classes - 1}")
    return labels[:num_images]


def read_labels(path: Path) -> Labels:
    """Labels from a text, npy or npz file; InputError where it holds none."""
    if path.suffix == ".npz":
        labels = NpzFile(path).labels()
        if labels is None:
            raise InputError(f"{path}: has no labels (arr_1)")
        return labels
    try:
        if path.suffix == ".npy":
            values: NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            values = np.array([int(line) for line in path.read_text().split()])
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--labels {path}: not readable as integers, one an image ({error})") from error
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise InputError(f"--labels {path}: holds {values.dtype} {values.shape}; expected integers, one an image")
    return values.astype(np.int64)


def build_generator(
    name: str,
    options: dict[str, Any],
    *,
    device: torch.device,
    dataset: Dataset | None = None,
    weights: Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Generator | Upsampler:
    """A generator by its registered name, from options as plain data; InputError where it cannot be built.

    Size and classes are the data set's where there is one.
    """
    factory = registry.load("generators", name)
    size = dataset.image_size if dataset else image_size
    ingredients = Ingredients(
        image_size=size,
        num_classes=dataset.num_classes if dataset else num_classes,
        device=device,
        training_set=(lambda: passes(dataset)) if dataset else None,
        weights=weights,
    )
    with bad_input(f"generator {name}"):
        chosen = from_mapping(factory.Options, options)
        generator: Generator | Upsampler = factory.build(chosen, ingredients)
    if not isinstance(generator, Generator | Upsampler):
        raise InputError(f"generator {name}: {factory} is no adm_bench.Generator or Upsampler; mend the plug-in")
    if size is not None and generator.image_size != size:
        raise InputError(f"generator {name} makes images of size {generator.image_size}; expected {size}")
    if num_classes is not None and generator.num_classes != num_classes:
        raise InputError(f"generator {name} has {generator.num_classes or 'no'} classes; expected {num_classes}")
    return generator


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """One set of samples, completely decided."""

    name: str
    generator: Generator | Upsampler
    description: dict[str, Any]
    """What the generator was built from, as plain data: options and digests of its inputs."""
    num_images: int
    labels: Labels | None
    base: BaseSamples | None = None
    """What an upsampler enlarges; None for a generator."""
    seed: int = 0
    batch_size: int = 256

    def plan(self) -> dict[str, Any]:
        """What decides the samples, as plain data; parts are only joined under an equal plan."""
        labels = None if self.labels is None else hashlib.sha256(self.labels.tobytes()).hexdigest()
        return {
            "generator": self.description,
            "num_images": self.num_images,
            "labels_sha256": labels,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


def decide(
    job_name: str,
    generator: Generator | Upsampler,
    description: Mapping[str, Any],
    *,
    num_images: int | None = None,
    labels: str | None = None,
    base: Path | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> SamplingJob:
    """The job of a generator, or of an upsampler on the samples in `base`, which it needs.

    `num_images` None takes 1000, or all of the base's; `labels` None takes balanced ones, or the base's own,
    otherwise see `choose_labels`. InputError where they do not fit.
    """
    enlarged = None
    if isinstance(generator, Upsampler):
        if base is None:
            raise InputError(f"generator {job_name} enlarges samples; name their file (--base)")
        enlarged = BaseSamples(base, generator, num_images)
        num_images = enlarged.num_images
        description = {**description, "inputs": {**description["inputs"], "base": enlarged.sha256}}
    elif base is not None:
        raise InputError(f"--base is for upsamplers, and generator {job_name} is none")
    num_images = num_images or DEFAULT_NUM_IMAGES
    if enlarged is not None and labels is None:
        chosen = enlarged.labels
        if chosen is None and generator.num_classes is not None:
            raise InputError(f"--base {base}: has no labels (arr_1), which this upsampler needs; give --labels FILE")
    else:
        chosen = choose_labels(labels or "balanced", num_images, generator.num_classes, seed)
    return SamplingJob(
        name=job_name,
        generator=generator,
        description=dict(description),
        num_images=num_images,
        labels=chosen,
        base=enlarged,
        seed=seed,
        batch_size=batch_size,
    )


def generated_images(job: SamplingJob) -> IteratedImages:
    """The samples of a job as a set of images that are drawn as they are asked for: no file in between."""

    def draw() -> Iterator[torch.Tensor]:
        bases = itertools.repeat(None) if job.base is None else job.base.batches(job.batch_size)
        with progress.stage(f"sample {job.name}", job.num_images, "images") as advance:
            for start, base in zip(range(0, job.num_images, job.batch_size), bases, strict=False):
                indices = range(start, min(start + job.batch_size, job.num_images))
                yield _draw(job, indices, base, advance)

    shape = (job.generator.image_size, job.generator.image_size)
    return IteratedImages(job.name, draw(), job.num_images, shape, job.labels, fingerprint(job.plan()))


@dataclass(frozen=True, kw_only=True)
class SamplingResult:
    """What a finished set of samples took."""

    num_images: int
    sec: float
    images_per_sec: float
    """Median over full batches, interruptions not counted."""
    sha256: str
    """Of the npz file."""


def sample(job: SamplingJob, out: Path, *, overwrite: bool = False, reuse: bool = False) -> SamplingResult:
    """Draw the samples batch by batch and write them to `out`; goes on where an earlier try stopped.

    Every batch is kept in a part of its own beside `out` until all are there, so memory does not grow with
    the number of images and nothing drawn is lost. The parts of another plan are an InputError, and so is
    an `out` that exists, unless `overwrite`, or unless `reuse` and it was made by the same plan.
    """
    parts = out.with_name(f"{out.name}.parts")
    # there are parts beside a finished `out` where an earlier try ended just before it removed them
    if not (reuse or parts.is_dir()) or _earlier_result(job, out) is None:
        check_new_file(out, overwrite=overwrite)
    if parts.exists() and (not parts.is_dir() or any(not _is_part(path) for path in parts.iterdir())):
        raise InputError(f"{parts}: is in the way, and not ours to remove; move it, or choose another --out")
    check_writable(parts)
    with sole_user(parts):
        result = _earlier_result(job, out)  # once more: another process may just have finished
        if result is None:
            check_new_file(out, overwrite=overwrite)
            _open_parts(parts, job.plan(), overwrite=overwrite)
            result = _sample_in(parts, job, out)
        _remove_parts(parts)
        for name in (PLAN_FILE, LOCK_FILE):
            (parts / name).unlink(missing_ok=True)
        parts.rmdir()
    return result


def _earlier_result(job: SamplingJob, out: Path) -> SamplingResult | None:
    """What is at `out` already, if it was made by the same plan."""
    if not out.is_file():
        return None
    try:
        identity = read_identity(NpzFile(out))
    except InputError:  # not samples at all: whether they may be replaced is for check_new_file to say
        return None
    if identity.get("plan_sha256") != fingerprint(job.plan()):
        return None
    return SamplingResult(**identity["result"], sha256=file_sha256(out))


def _sample_in(parts: Path, job: SamplingJob, out: Path) -> SamplingResult:
    starts = range(0, job.num_images, job.batch_size)
    paths = [parts / f"{start:09d}.npz" for start in starts]
    done = sum(path.exists() for path in paths)
    if done:
        progress.say(f"{out}: going on from {done} of {len(paths)} batches")
    drawn_before = min(done * job.batch_size, job.num_images)
    bases = itertools.repeat(None) if job.base is None else job.base.batches(job.batch_size)
    with progress.stage(f"sample {job.name}", job.num_images, "images", done=drawn_before) as advance:
        for start, path, base in zip(starts, paths, bases, strict=False):
            if not path.exists():
                indices = range(start, min(start + job.batch_size, job.num_images))
                _sample_part(job, indices, base, path, advance)
    seconds = [float(NpzFile(path).load("sec")) for path in paths]
    size = job.generator.image_size
    counts = [min(job.batch_size, job.num_images - start) for start in starts]
    full = [(count, sec) for count, sec in zip(counts, seconds, strict=True) if count == counts[0]]
    result: dict[str, Any] = {
        "num_images": job.num_images,
        "sec": sum(seconds),
        "images_per_sec": statistics.median(count / sec for count, sec in full),
    }
    identity = {
        "plan_sha256": fingerprint(job.plan()),
        "generator": job.description,
        "seed": job.seed,
        "result": result,
    }
    with atomic_path(out) as temporary:
        shape = (job.num_images, size, size)
        write_samples(temporary, shape, _read_parts(paths), job.labels, identity | provenance())
    return SamplingResult(**result, sha256=file_sha256(out))


def _open_parts(parts: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
    description = parts / PLAN_FILE
    if not description.exists():
        _remove_parts(parts)
    else:
        changed = differences(read_json(description), plan)
        if changed and not overwrite:
            raise InputError(
                f"{parts}: holds parts of other samples ({'; '.join(changed[:3])}); choose another --out, "
                "repeat those settings to go on with them, or pass --overwrite"
            )
        if changed:
            _remove_parts(parts)
            description.unlink()  # last, so that parts never lose the plan that they belong to
    if not description.exists():
        write_json(description, plan)
    remove_partial(parts)


def _is_part(path: Path) -> bool:
    return path.name in (PLAN_FILE, LOCK_FILE) or path.suffix == PARTIAL_SUFFIX or path.match(PART_PATTERN)


def _remove_parts(parts: Path) -> None:
    for path in parts.glob(PART_PATTERN):
        path.unlink()


def _draw(job: SamplingJob, indices: range, base: Images | None, advance: progress.Advance) -> torch.Tensor:
    labels = None if job.labels is None else torch.from_numpy(job.labels[indices.start : indices.stop])
    share = len(indices) / max(1, job.generator.network_evaluations)
    seeds = image_seeds(job.seed, indices)
    try:
        if isinstance(job.generator, Upsampler):
            images = job.generator.upsample(torch.from_numpy(base), seeds, labels, lambda: advance(share))
        else:
            images = job.generator.sample(seeds, labels, lambda: advance(share))
    except FloatingPointError as error:
        raise InputError(f"generator {job.name}: {error}") from error
    if not job.generator.network_evaluations:
        advance(share)
    return images.cpu()


def _sample_part(job: SamplingJob, indices: range, base: Images | None, path: Path, advance: progress.Advance) -> None:
    began = time.perf_counter()
    images = _draw(job, indices, base, advance)
    sec = time.perf_counter() - began
    size = job.generator.image_size
    if images.dtype != torch.uint8 or tuple(images.shape) != (len(indices), 3, size, size):
        raise InputError(
            f"generator {job.name} gave {images.dtype} {tuple(images.shape)}; "
            f"expected torch.uint8 {(len(indices), 3, size, size)}: mend the plug-in"
        )
    with atomic_path(path) as temporary:
        write_arrays(temporary, {"images": images.permute(0, 2, 3, 1).numpy(), "sec": np.array(sec)})


def _read_parts(paths: list[Path]) -> Iterator[Images]:
    for path in paths:
        yield NpzFile(path).load("images")
