"""Surveys of images: what is in a file, a folder, an archive or an LMDB, before anybody computes with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm_bench import progress, registry
from adm_bench.checks import is_sorted
from adm_bench.errors import InputError
from adm_bench.files import file_sha256
from adm_bench.images.ahead import ahead
from adm_bench.images.dataset import Images, Labels
from adm_bench.images.decoding import Preparation, decode, read_header
from adm_bench.images.encoded import READ_AHEAD, printable
from adm_bench.images.labels import read_labels
from adm_bench.images.npz import IMAGES_KEY, NpzFile, read_identity
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.stores import Store
from metrics.protocol import Metric

BATCH_SIZE = 1024
FEW = 10
"""As many examples are named."""
STATISTICS = {"pool_moments": ("mu", "sigma"), "spatial_moments": ("mu_s", "sigma_s")}


@dataclass(kw_only=True)
class Pixels:
    """What is counted of the images as they pass."""

    hashes: list[bytes] = field(default_factory=list)
    low: int = 255
    high: int = 0

    def add(self, pixels: Images) -> None:
        """Count one image, of any layout that is the same for all."""
        shape = str(pixels.shape).encode()
        self.hashes.append(hashlib.blake2b(shape + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest())
        self.low, self.high = min(self.low, int(pixels.min())), max(self.high, int(pixels.max()))

    def duplicates(self, name: Callable[[int], str | int]) -> dict[str, Any]:
        """How many images equal an earlier one, pixel for pixel, and the first few of them."""
        first: dict[bytes, int] = {}
        pairs = [(first.setdefault(key, index), index) for index, key in enumerate(self.hashes)]
        again = [(one, other) for one, other in pairs if one != other]
        return {"number": len(again), "first": [[name(one), name(other)] for one, other in again[:FEW]]}


def survey_store(store: Store) -> dict[str, Any]:
    """What encoded images are, every one of them decoded; those that cannot be are counted and named."""
    pixels = Pixels()
    readable: list[int] = []
    bad: dict[str, str] = {}
    counters: dict[str, Counter[str]] = {"sizes": Counter(), "modes": Counter(), "formats": Counter()}
    lossy = 0

    def look(index: int) -> tuple[Any, Images] | str:
        try:
            content = store.read(index)
            header = read_header(content)
            return header, decode(content, Preparation(convert=True))
        except ValueError as error:
            return str(error)

    with progress.stage(f"inspect {store.root}", len(store.names), "images") as advance:
        for index, found in enumerate(ahead(look, range(len(store.names)), depth=READ_AHEAD)):
            advance(1)
            if isinstance(found, str):
                bad[printable(store.names[index])] = found
                continue
            header, image = found
            readable.append(index)
            pixels.add(image)
            counters["sizes"][f"{header.height} x {header.width}"] += 1
            counters["modes"][f"{header.mode}, 16 bits a channel" if header.is_deep else header.mode] += 1
            counters["formats"][header.format] += 1
            lossy += header.lossy
    labels = read_labels(store).labels
    kept = None if labels is None else labels[readable]
    number = len(readable)
    return {
        "number": number,
        **{name: dict(counter.most_common(FEW)) for name, counter in counters.items()},
        "dtype": "uint8",
        "range": [pixels.low, pixels.high] if number else None,
        "stored_with_loss": lossy,
        "unreadable": {"number": len(bad), "first": dict(list(bad.items())[:FEW])},
        "duplicates": pixels.duplicates(lambda index: printable(store.names[readable[index]])),
        "labels": None if kept is None else describe_labels(kept),
        "serves": serves(number, as_reference=number),
    }


def survey_npz(path: Path) -> dict[str, Any]:
    """What an npz file holds: samples, a reference, or other arrays."""
    file = NpzFile(path)
    kind = "reference" if "mu" in file else "samples" if IMAGES_KEY in file else "arrays"
    found: dict[str, Any] = {
        "what": kind,
        "sha256": file_sha256(path),
        "arrays": {name: f"{dtype} {shape}" for name, (shape, dtype) in file.headers.items()},
    }
    number = 0
    if IMAGES_KEY in file:
        found |= _survey_images(path, [file])
        number = found["images"].get("number", 0)
    held = {need for need, names in STATISTICS.items() if all(name in file for name in names)}
    found["serves"] = serves(number, as_reference=number, statistics=frozenset(held))
    return found | {"identity": read_identity(file)}


def survey_shards(path: Path, files: Sequence[NpzFile]) -> dict[str, Any]:
    """What the samples in a folder of npz files are."""
    found = _survey_images(path, files)
    number = found["images"].get("number", 0)
    return {"what": "samples in shards", "files": len(files), **found, "serves": serves(number, as_reference=number)}


def _survey_images(path: Path, files: Sequence[NpzFile]) -> dict[str, Any]:
    """What the images are, or why they cannot be measured."""
    try:
        images = NpzImages(path, files)
        labels = images.labels
    except InputError as error:
        return {"images": {"problem": str(error)}}
    pixels = Pixels()
    with progress.stage(f"inspect {path}", len(images), "images") as advance:
        for batch in images.batches(BATCH_SIZE):
            for image in batch:
                pixels.add(image)
            advance(len(batch))
    found: dict[str, Any] = {
        "images": {
            "number": len(images),
            "size": list(images.image_shape),
            "dtype": "uint8",
            "range": [pixels.low, pixels.high],
            "stored_with_loss": "yes" if images.lossy else "not said by the file",
            "duplicates": pixels.duplicates(lambda index: index),
        }
    }
    return found | ({} if labels is None else {"labels": describe_labels(labels)})


def describe_labels(labels: Labels) -> dict[str, Any]:
    """Whether labels are sorted, and how often each occurs."""
    values, counts = np.unique(labels, return_counts=True)
    return {"sorted": is_sorted(labels), "histogram": _histogram(values, counts)}


def _histogram(values: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def serves(num_images: int, *, as_reference: int, statistics: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Names of the metrics that so many images can be measured by, and be the reference of, with what is stored."""
    metrics: dict[str, Metric] = {name: registry.load("metrics", name) for name in registry.rows("metrics")}
    able = {"pool_moments", "spatial_moments", "pool_rows"} if as_reference and not statistics else set(statistics)
    able |= {"pool_rows"} if as_reference else set()
    return {
        "as_samples": [name for name, metric in metrics.items() if num_images >= metric.min_images],
        "as_reference": [
            name
            for name, metric in metrics.items()
            if metric.needs - {"logit_rows"} <= able
            and (metric.needs & statistics or as_reference >= metric.min_images)
        ],
    }
