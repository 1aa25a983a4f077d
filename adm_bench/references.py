"""References: statistics of a whole training set, with images for precision and recall, in OpenAI's format.

`mu`, `sigma` (pool features), `mu_s`, `sigma_s` (spatial features), `arr_0` (images), `arr_1` (their
labels), and `adm_bench`, a JSON text that says what they are of.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path
from adm_bench.images.dataset import Dataset, Images
from adm_bench.images.npz import IDENTITY_KEY, IMAGES_KEY, LABELS_KEY, NpzFile, read_identity, write_arrays
from metrics.protocol import Features
from metrics.statistics import NEEDS, FeatureSet, Moments

IMAGES_KEPT = 10_000
BATCH_SIZE = 256


def extract(batches: Iterable[Images], total: int, features: Features, needs: frozenset[str], title: str) -> FeatureSet:
    """Run uint8 NCHW batches through a feature network; InputError for features that are not finite."""
    extracted = FeatureSet(needs=needs, device=features.device)
    with progress.stage(title, total, "images") as advance:
        for images in batches:
            batch = features(torch.from_numpy(images))
            with bad_input(title):
                extracted.update(batch)
            advance(len(images))
    return extracted


def dataset_batches(dataset: Dataset, indices: NDArray[np.int64]) -> Iterator[Images]:
    """A data set's images at those indices, in batches."""
    for start in range(0, len(indices), BATCH_SIZE):
        yield dataset.read(indices[start : start + BATCH_SIZE].tolist())[0]


def write_reference(dataset: Dataset, features: Features, out: Path, seed: int = 0) -> dict[str, Any]:
    """Measure every image of a data set and keep up to 10,000 of them, chosen by seed, in file order.

    Returns the identity that the file states.
    """
    everything = np.arange(len(dataset))
    measured = extract(
        dataset_batches(dataset, everything), len(dataset), features, NEEDS - {"pool_rows", "logit_rows"}, "reference"
    )
    chosen = everything
    if len(dataset) > IMAGES_KEPT:
        chosen = np.sort(np.random.default_rng(seed).choice(everything, IMAGES_KEPT, replace=False))
    images, labels = dataset.read(chosen.tolist())
    identity = {
        "data": dataset.name,
        "data_sha256": dataset.digest(),
        "image_size": dataset.image_size,
        "lossy": dataset.lossy,
        "num_images": len(dataset),
        "features": features.name,
        "features_sha256": features.digest,
    }
    arrays: dict[str, NDArray[Any]] = {
        IMAGES_KEY: np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
        "mu": measured.pool.mean,
        "sigma": measured.pool.covariance(),
        IDENTITY_KEY: np.array(json.dumps(identity)),
    }
    if labels is not None:
        arrays[LABELS_KEY] = labels
    if measured.spatial is not None:
        arrays |= {"mu_s": measured.spatial.mean, "sigma_s": measured.spatial.covariance()}
    with atomic_path(out) as temporary:
        write_arrays(temporary, arrays)
    return identity


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference, opened for one feature network."""

    path: Path
    file: NpzFile
    identity: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Reference":
        """Read what the file says it is; InputError where it is no reference."""
        file = NpzFile(path)
        if "mu" not in file and IMAGES_KEY not in file:
            raise InputError(f"{path}: no reference; expected arr_0, or mu and sigma, as adm-bench reference writes")
        return cls(path=path, file=file, identity=read_identity(file))

    def measure(self, features: Features, needs: frozenset[str]) -> FeatureSet:
        """Stored statistics where there are any, features of the images where those are needed.

        InputError where the statistics are of another feature network, or what is needed is not there.
        """
        name, stated = self.identity.get("features", ""), self.identity.get("features_sha256", "unknown")
        # Both count: one network's weights serve two protocols.
        if "mu" in self.file and (name, stated) != (features.name, features.digest):
            raise InputError(
                f"{self.path}: its statistics are of features {name} {stated[:12]}; these "
                f"are {features.name} {features.digest[:12]}: build the reference anew"
            )
        from_images = FeatureSet(needs=needs, device=features.device)
        if IMAGES_KEY in self.file and ("mu" not in self.file or "pool_rows" in needs):
            total = self.file.image_shape()[0]
            from_images = extract(self.file.batches(BATCH_SIZE), total, features, needs, "reference features")
        if "mu" not in self.file:
            return from_images
        with bad_input(self.path):
            return FeatureSet(
                needs=needs,
                device=features.device,
                pool=self._moments("mu", "sigma"),
                spatial=self._moments("mu_s", "sigma_s") if "mu_s" in self.file else None,
                pool_rows=from_images.pool_rows if "pool_rows" in needs and from_images.num_images else None,
            )

    def _moments(self, mean: str, covariance: str) -> Moments:
        count = self.identity.get("num_images") or self.file.image_shape()[0]
        return Moments.from_mean_and_covariance(self.file.load(mean), self.file.load(covariance), count)
