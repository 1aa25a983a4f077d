"""Images through a feature network: in parts, each kept in a cache, shared among processes, in bounded memory.

A part is a fixed run of images, whatever the number of processes; the first process takes the parts in their order.
So the numbers are the same, to the last bit on one kind of device, for one process or many, killed and repeated or not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adm_bench import progress
from adm_bench.errors import bad_input
from adm_bench.files import atomic_path, fingerprint
from adm_bench.images.ahead import one_ahead
from adm_bench.images.dataset import Images, ImageSet, PixelHashes, images_at_a_time, pixel_hashes
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import UnknownDigestError
from adm_bench.ranks import Part, Ranks
from metrics.protocol import Features
from metrics.rows import MemoryBudget
from metrics.statistics import FeatureBatch, FeatureSet, NotFiniteError

LAYERS = ("pool", "spatial", "logits")
HASHES = "pixel_hashes"
PART_IMAGES = 250
BATCH_SIZE = 50
"""Divides a part, so that every image has the same companions in a batch, always."""


class Reader:
    """Runs of images from one set, without beginning anew where one run follows another."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self._position = -1
        self._batches: Iterator[Images] = iter(())
        self._left: list[Images] = []

    def read(self, start: int, stop: int) -> Iterator[Images]:
        """Images `start` to `stop` as uint8 (B, 3, H, W), cut the same way wherever the set's own batches end."""
        if start != self._position:
            self._batches, self._left = self.images.batches(BATCH_SIZE, start), []
        self._position = stop
        while start < stop:
            count = min(images_at_a_time(BATCH_SIZE, self.images.image_shape), stop - start)
            while sum(map(len, self._left)) < count:
                self._left.append(next(self._batches))
            joined = np.concatenate(self._left) if len(self._left) > 1 else self._left[0]
            self._left = [joined[count:]] if len(joined) > count else []
            start += count
            yield joined[:count]


@contextmanager
def naming_images(images: ImageSet) -> Iterator[None]:
    """Name the image whose features are not finite, where the set has names."""
    try:
        yield
    except NotFiniteError as error:
        if not isinstance(images, EncodedImages):
            raise
        raise ValueError(error.of(f"{images.where(error.index)} (image {error.index}, counted from 0)")) from error


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Features of one set of images through one network: a safetensors file a part, each written atomically."""

    folder: Path
    about: Mapping[str, object]
    """What the features are of, for a person who looks into the folder."""

    @classmethod
    def open(cls, root: Path, images: ImageSet, features: Features) -> "FeatureCache":
        """The place, under `root`, of what these features of these images are."""
        what = {
            "images": images.digest(),
            "features": features.name,
            "features_sha256": features.digest,
            "protocol_version": features.protocol.version,
            "part_images": PART_IMAGES,
        }
        return cls(folder=root / fingerprint(what)[:32], about={"name": images.name, **what})

    def read(self, part: int) -> Part | None:
        """A part's features, or None where there are none, or damaged ones, which are then made again."""
        try:
            with safe_open(self._path(part), framework="pt") as file:
                stated = (file.metadata() or {}).get("tensors_sha256")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError):
            return None
        if stated is None or stated != tensors_sha256(tensors) or HASHES not in tensors:
            return None
        batch = FeatureBatch(**{layer: tensors.get(layer) for layer in LAYERS})  # type: ignore[arg-type]
        return Part(features=batch, pixel_hashes=tensors[HASHES].numpy().view(np.uint64))

    def write(self, part: int, made: Part) -> None:
        """Keep a part's features, if the disk allows; what cannot be kept is only slower next time."""
        layers = {layer: getattr(made.features, layer) for layer in LAYERS}
        tensors = {layer: rows.contiguous() for layer, rows in layers.items() if rows is not None}
        tensors[HASHES] = torch.from_numpy(made.pixel_hashes.view(np.int64))
        stated = {"about": json.dumps(self.about), "tensors_sha256": tensors_sha256(tensors)}
        try:
            with atomic_path(self._path(part)) as temporary:
                save_file(tensors, temporary, stated)
        except (OSError, SafetensorError) as error:
            _say_once(f"{self.folder}: features are not kept ({error}); going on without")

    def _path(self, part: int) -> Path:
        return self.folder / f"part_{part:06d}.safetensors"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


@cache
def _say_once(line: str) -> None:
    progress.say(line)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are made: by which network, where they are kept, how much stays in memory, with which processes."""

    features: Features
    cache_root: Path | None = None
    budget: MemoryBudget = field(default_factory=MemoryBudget)
    ranks: Ranks = field(default_factory=Ranks)

    def measure(
        self, images: ImageSet, needs: frozenset[str], title: str, hashes: list[PixelHashes] | None = None
    ) -> FeatureSet:
        """Everything that `needs` names, of every image; on other processes than the first, an empty set.

        `hashes`, where given, gets those of all images, in order. InputError for features that are not finite, and
        for images that the network does not take.
        """
        try:
            return self._measure(images, needs, title, [] if hashes is None else hashes)
        except Exception as error:
            self.ranks.fail(error)
            raise

    def _measure(self, images: ImageSet, needs: frozenset[str], title: str, hashes: list[PixelHashes]) -> FeatureSet:
        cache = self._cache(images)
        measured = FeatureSet(needs=needs, device=self.features.device, budget=self.budget)
        reader = Reader(images)
        num_parts = -(-len(images) // PART_IMAGES)
        with progress.stage(title, len(images), "images") as advance:
            for first in range(0, num_parts, self.ranks.size):
                mine = first + self.ranks.rank
                made = self._part(reader, mine, cache) if mine < num_parts else None
                for each in self.ranks.collect(made):
                    with bad_input(title), naming_images(images):
                        measured.update(each.features)
                    hashes.append(each.pixel_hashes)
                    advance(len(each.pixel_hashes))
        return measured

    def _cache(self, images: ImageSet) -> FeatureCache | None:
        """Where features of the images are kept; nowhere where nobody can know the images again."""
        if self.cache_root is None:
            return None
        try:
            return FeatureCache.open(self.cache_root, images, self.features)
        except UnknownDigestError:
            progress.say(
                f"note: {images.name}: features are not kept, since nobody knows yet which images these are; to keep "
                "them, hand in source_digest, which says what decides them"
            )
            return None

    def _part(self, reader: Reader, part: int, cache: FeatureCache | None) -> Part:
        kept = None if cache is None else cache.read(part)
        if kept is not None:
            return kept
        start = part * PART_IMAGES
        stop = min(start + PART_IMAGES, len(reader.images))
        batches, hashes = [], []
        for images, some in one_ahead((images, pixel_hashes(images)) for images in reader.read(start, stop)):
            with bad_input(reader.images.name):
                batches.append(self.features(torch.from_numpy(images)))
            hashes.append(some)
        layers = {layer: [getattr(batch, layer) for batch in batches] for layer in LAYERS}
        joined = {layer: None if rows[0] is None else torch.cat(rows).cpu() for layer, rows in layers.items()}
        made = Part(features=FeatureBatch(**joined), pixel_hashes=np.concatenate(hashes))  # type: ignore[arg-type]
        if cache is not None and all(bool(rows.isfinite().all()) for rows in joined.values() if rows is not None):
            cache.write(part, made)
        return made
