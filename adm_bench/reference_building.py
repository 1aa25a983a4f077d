"""References are built here: one pass over a training set, which goes on where it was killed."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.extraction import naming_images
from adm_bench.files import (
    LOCK_FILE,
    PARTIAL_SUFFIX,
    atomic_path,
    check_writable,
    read_json,
    remove_partial,
    sole_user,
    write_json,
)
from adm_bench.images.dataset import Images, ImageSet
from adm_bench.images.npz import NpzFile, write_arrays, write_samples
from adm_bench.places import PLAN_FILE
from adm_bench.runs import differences
from metrics.protocol import Features
from metrics.statistics import FeatureSet, Moments

IMAGES_KEPT = 10_000
BATCH_SIZE = 256
SAVE_EVERY_SEC = 60.0
NEEDS = frozenset({"pool_moments", "spatial_moments"})
STATE_FILE = "state.npz"
KEPT_FILE = "kept.bin"
PARTS_FILES = (STATE_FILE, KEPT_FILE, PLAN_FILE)


def write_reference(
    images: ImageSet,
    features: Features,
    out: Path,
    seed: int = 0,
    *,
    split: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure every image of a set and keep up to 10,000 of them, chosen by seed, in their order.

    `split` says in the person's own words what part of a data set this is. Memory is bounded: the kept images pass
    through a file. Partial moments are saved beside `out` every minute, and the same call goes on from them to the
    same bytes. What is there of another plan is an InputError, unless `overwrite`. Returns the identity that the
    file states.
    """
    building = _Building(images=images, features=features, out=out, seed=seed, split=split)
    parts = building.parts
    if parts.exists() and (not parts.is_dir() or any(map(_is_foreign, parts.iterdir()))):
        raise InputError(f"{parts}: is in the way, and not ours to remove; move it, or choose another --out")
    check_writable(parts)
    with sole_user(parts):
        _open_parts(parts, building.plan(), overwrite=overwrite)
        try:
            identity = building.write(building.measure())
            (parts / STATE_FILE).unlink(missing_ok=True)
        finally:
            if not (parts / STATE_FILE).exists():  # finished, or failed before anything was worth keeping
                _remove(parts, (*PARTS_FILES, LOCK_FILE))
                parts.rmdir()
    return identity


def _is_foreign(path: Path) -> bool:
    return path.name not in (*PARTS_FILES, LOCK_FILE) and path.suffix != PARTIAL_SUFFIX


def _remove(parts: Path, names: Sequence[str]) -> None:
    for name in names:
        (parts / name).unlink(missing_ok=True)


def _open_parts(parts: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
    description = parts / PLAN_FILE
    if description.exists():
        changed = differences(read_json(description), plan)
        if changed and (parts / STATE_FILE).exists() and not overwrite:
            raise InputError(
                f"{parts}: holds parts of another reference ({'; '.join(changed[:3])}); choose another --out, repeat "
                "those settings to go on with it, or pass --overwrite"
            )
        if changed:
            _remove(parts, PARTS_FILES)
    if not description.exists():
        _remove(parts, (STATE_FILE, KEPT_FILE))  # of no plan: nobody knows what they are
        write_json(description, plan)
    remove_partial(parts)


@dataclass(frozen=True, kw_only=True)
class _Building:
    """One reference in the making."""

    images: ImageSet
    features: Features
    out: Path
    seed: int
    split: str | None

    @property
    def parts(self) -> Path:
        """The folder beside the output that holds what is done."""
        return self.out.with_name(f"{self.out.name}.parts")

    @cached_property
    def chosen(self) -> NDArray[np.int64]:
        """Numbers of the images that are kept, in order."""
        everything = np.arange(len(self.images))
        if len(everything) <= IMAGES_KEPT:
            return everything
        return np.sort(np.random.default_rng(self.seed).choice(everything, IMAGES_KEPT, replace=False))

    def plan(self) -> dict[str, Any]:
        """What decides the numbers, as plain data; parts are only gone on with under an equal plan."""
        return {
            "kind": "reference",
            "data": self.images.fingerprint(),
            "images": len(self.images),
            "features": f"{self.features.name} {self.features.digest}",  # one network's weights serve two protocols
            "seed": self.seed,
            "kept": len(self.chosen),
            "batch_size": BATCH_SIZE,
        }

    def measure(self) -> FeatureSet:
        """Moments of all images; the kept ones are in the parts' file afterwards."""
        measured = self._saved()
        done = measured.num_images
        if done:
            progress.say(f"{self.out}: going on from {done} of {len(self.images)} images")
        saved = time.monotonic()
        with (
            self._kept_file(done).open("ab") as kept,
            progress.stage("reference", len(self.images), "images", done=done) as advance,
        ):
            for batch in self.images.batches(BATCH_SIZE, done):
                with bad_input(self.images.name), naming_images(self.images):
                    measured.update(self.features(torch.from_numpy(batch)))
                first, last = np.searchsorted(self.chosen, [done, done + len(batch)])
                for image in batch[self.chosen[first:last] - done]:
                    kept.write(image.transpose(1, 2, 0).tobytes())
                done += len(batch)
                if time.monotonic() - saved > SAVE_EVERY_SEC and done < len(self.images):
                    kept.flush()
                    os.fsync(kept.fileno())
                    self._save(measured)
                    saved = time.monotonic()
                advance(len(batch))
        return measured

    @property
    def _image_bytes(self) -> int:
        height, width = self.images.image_shape
        return height * width * 3

    def _kept_file(self, done: int) -> Path:
        """The file of kept images, cut to those among the first `done`."""
        path = self.parts / KEPT_FILE
        path.touch()
        whole = int(np.searchsorted(self.chosen, done)) * self._image_bytes
        if path.stat().st_size < whole:
            raise InputError(f"{path}: is shorter than what was saved; remove {self.parts} to begin anew")
        os.truncate(path, whole)
        return path

    def _save(self, measured: FeatureSet) -> None:
        layers = {"pool": measured.pool, "spatial": measured.spatial}
        arrays: dict[str, NDArray[Any]] = {}
        for layer, moments in layers.items():
            if moments is not None:
                arrays |= {f"{layer}_n": np.array(moments.n), f"{layer}_mean": moments.mean, f"{layer}_M2": moments.M2}
        with atomic_path(self.parts / STATE_FILE) as temporary:
            write_arrays(temporary, arrays)

    def _saved(self) -> FeatureSet:
        """What an earlier try has measured; empty where there is none."""
        layers: dict[str, Moments] = {}
        if (self.parts / STATE_FILE).exists():
            file = NpzFile(self.parts / STATE_FILE)
            for layer in ("pool", "spatial"):
                if f"{layer}_n" in file:
                    mean, scatter = file.load(f"{layer}_mean"), file.load(f"{layer}_M2")
                    layers[layer] = Moments(n=int(file.load(f"{layer}_n")), mean=mean, M2=scatter)
        return FeatureSet(
            needs=NEEDS, device=self.features.device, pool=layers.get("pool"), spatial=layers.get("spatial")
        )

    def write(self, measured: FeatureSet) -> dict[str, Any]:
        """The finished file; returns its identity."""
        height, width = self.images.image_shape
        identity = {
            "data": self.images.name,
            "data_sha256": self.images.digest(),
            "split": self.split,
            "image_size": height if height == width else [height, width],
            "preparation": dict(self.images.preparation),
            "lossy": self.images.lossy,
            "num_images": len(self.images),
            "images_kept": len(self.chosen),
            "seed": self.seed,
            "features": self.features.name,
            "features_sha256": self.features.digest,
        }
        with bad_input(self.images.name):  # fewer than two images have no covariance
            statistics = {"mu": measured.pool.mean, "sigma": measured.pool.covariance()}
            if measured.spatial is not None:
                statistics |= {"mu_s": measured.spatial.mean, "sigma_s": measured.spatial.covariance()}
        labels = None if self.images.labels is None else self.images.labels[self.chosen]
        shape = (len(self.chosen), height, width)
        with atomic_path(self.out) as temporary:
            write_samples(temporary, shape, self._kept(), labels, identity, statistics)
        return identity

    def _kept(self) -> Iterator[Images]:
        """The kept images as uint8 (B, H, W, 3), from the parts' file."""
        height, width = self.images.image_shape
        left = len(self.chosen)
        with (self.parts / KEPT_FILE).open("rb") as file:
            while left:
                count = min(left, max(1, 2**26 // self._image_bytes))
                content = file.read(count * self._image_bytes)
                yield np.frombuffer(content, np.uint8).reshape(count, height, width, 3)
                left -= count
