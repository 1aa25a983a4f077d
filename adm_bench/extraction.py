"""Images through a feature network: in parts, each kept in a cache, shared among processes, in bounded memory.

A part is a fixed run of images, whatever the number of processes; the first process takes the parts in their order.
So the numbers are the same, to the last bit on one kind of device, for one process or many, killed and repeated or not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adm_bench import progress
from adm_bench.errors import bad_input
from adm_bench.files import atomic_path, fingerprint
from adm_bench.images.dataset import Images, ImageSet
from adm_bench.ranks import Ranks
from metrics.protocol import Features
from metrics.rows import MemoryBudget
from metrics.statistics import FeatureBatch, FeatureSet

PART_IMAGES = 1000
BATCH_SIZE = 50
"""Divides a part, so that every image has the same companions in a batch, always."""


class Reader:
    """Runs of images from one set, without beginning anew where one run follows another."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self._position = -1
        self._batches: Iterator[Images] = iter(())
        self._left: Images | None = None

    def read(self, start: int, stop: int) -> Iterator[Images]:
        """Images `start` to `stop` as uint8 (B, 3, H, W)."""
        if start != self._position:
            self._batches, self._left = self.images.batches(BATCH_SIZE, start), None
        self._position = stop
        while start < stop:
            batch = next(self._batches) if self._left is None else self._left
            here, left = batch[: stop - start], batch[stop - start :]
            self._left = left if len(left) else None
            start += len(here)
            yield here


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

    def read(self, part: int) -> FeatureBatch | None:
        """A part's features, or None where there are none, or damaged ones, which are then made again."""
        try:
            tensors = load_file(self._path(part))
        except (OSError, SafetensorError):
            return None
        return FeatureBatch(**{layer: tensors.get(layer) for layer in ("pool", "spatial", "logits")})  # type: ignore[arg-type]

    def write(self, part: int, batch: FeatureBatch) -> None:
        """Keep a part's features, if the disk allows; what cannot be kept is only slower next time."""
        layers = {"pool": batch.pool, "spatial": batch.spatial, "logits": batch.logits}
        about = {"about": json.dumps(self.about)}
        try:
            with atomic_path(self._path(part)) as temporary:
                save_file(
                    {name: rows.contiguous() for name, rows in layers.items() if rows is not None}, temporary, about
                )
        except (OSError, SafetensorError) as error:
            progress.say(f"{self.folder}: features are not kept ({error}); go on without, or see --no-cache")

    def _path(self, part: int) -> Path:
        return self.folder / f"part_{part:06d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are made: by which network, where they are kept, how much stays in memory, with which processes."""

    features: Features
    cache_root: Path | None = None
    budget: MemoryBudget = field(default_factory=MemoryBudget)
    ranks: Ranks = field(default_factory=Ranks)

    def measure(self, images: ImageSet, needs: frozenset[str], title: str) -> FeatureSet:
        """Everything that `needs` names, of every image; on other processes than the first, an empty set.

        InputError for features that are not finite.
        """
        try:
            return self._measure(images, needs, title)
        except Exception as error:
            self.ranks.fail(error)
            raise

    def _measure(self, images: ImageSet, needs: frozenset[str], title: str) -> FeatureSet:
        cache = None if self.cache_root is None else FeatureCache.open(self.cache_root, images, self.features)
        measured = FeatureSet(needs=needs, device=self.features.device, budget=self.budget)
        reader = Reader(images)
        num_parts = -(-len(images) // PART_IMAGES)
        with progress.stage(title, len(images), "images") as advance:
            for first in range(0, num_parts, self.ranks.size):
                mine = first + self.ranks.rank
                batch = self._part(reader, mine, cache) if mine < num_parts else None
                for each in self.ranks.collect(batch):
                    with bad_input(title):
                        measured.update(each)
                    advance(len(each.pool))
        return measured

    def _part(self, reader: Reader, part: int, cache: FeatureCache | None) -> FeatureBatch:
        kept = None if cache is None else cache.read(part)
        if kept is not None:
            return kept
        start = part * PART_IMAGES
        stop = min(start + PART_IMAGES, len(reader.images))
        made = [self.features(torch.from_numpy(images)) for images in reader.read(start, stop)]
        layers = {
            "pool": [batch.pool for batch in made],
            "spatial": [batch.spatial for batch in made if batch.spatial is not None],
            "logits": [batch.logits for batch in made if batch.logits is not None],
        }
        batch = FeatureBatch(**{layer: torch.cat(rows).cpu() if rows else None for layer, rows in layers.items()})  # type: ignore[arg-type]
        if cache is not None and all(bool(torch.cat(rows).isfinite().all()) for rows in layers.values() if rows):
            cache.write(part, batch)
        return batch
