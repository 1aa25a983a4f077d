"""Surveys of images: what is in a file, a folder, an archive or an LMDB, before anybody computes with it."""

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
from adm_bench.images.dataset import Images, Labels, pixel_hashes
from adm_bench.images.decoding import Header, Preparation, UnreadableImageError, decode, read_header
from adm_bench.images.encoded import READ_AHEAD, printable, read_labels
from adm_bench.images.npz import IMAGES_KEY, NpzFile, read_identity
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.stores import Store
from adm_bench.references import Reference
from metrics.protocol import Metric

BATCH_SIZE = 1024
FEW = 10
"""As many examples are named."""


@dataclass(kw_only=True)
class Pixels:
    """What is counted of the images as they pass."""

    hashes: list[int] = field(default_factory=list)
    low: int = 255
    high: int = 0

    def add(self, pixels: Images) -> None:
        """Count one image, of any layout that is the same for all."""
        self.hashes.append(int(pixel_hashes(pixels[None])[0]))
        self.low, self.high = min(self.low, int(pixels.min())), max(self.high, int(pixels.max()))

    def duplicates(self, name: Callable[[int], str | int]) -> dict[str, Any]:
        """How many images equal an earlier one, pixel for pixel, and the first few of them."""
        first: dict[int, int] = {}
        pairs = [(first.setdefault(key, index), index) for index, key in enumerate(self.hashes)]
        again = [(one, other) for one, other in pairs if one != other]
        return {"number": len(again), "first": [[name(one), name(other)] for one, other in again[:FEW]]}


def survey_store(store: Store) -> dict[str, Any]:
    """What encoded images are, every one of them decoded; those that cannot be are counted and named."""
    pixels = Pixels()
    readable: list[int] = []
    bad: dict[str, str] = {}
    refused: dict[str, str] = {}
    counters: dict[str, Counter[str]] = {"sizes": Counter(), "modes": Counter(), "formats": Counter()}
    lossy = 0

    def look(index: int) -> tuple[Header, Images] | ValueError:
        try:
            content = store.read(index)
            header = read_header(content)
            return header, decode(content, Preparation(convert=True))
        except ValueError as error:
            return error

    with progress.stage(f"inspect {store.root}", len(store.names), "images") as advance:
        for index, found in enumerate(ahead(look, range(len(store.names)), depth=READ_AHEAD)):
            advance(1)
            if isinstance(found, ValueError):
                kind = bad if isinstance(found, UnreadableImageError) else refused
                kind[printable(store.names[index])] = str(found)
                continue
            header, image = found
            readable.append(index)
            pixels.add(image)
            counters["sizes"][f"{header.height} x {header.width}"] += 1
            counters["modes"][f"{header.mode}, 16 bits a channel" if header.is_deep else header.mode] += 1
            counters["formats"][header.format] += 1
            lossy += header.lossy
    labels = read_labels(store)[1]
    kept = None if labels is None else labels[readable]
    number = len(readable)
    unnamed = store.unnamed()
    options = {
        "--size SIDE": len(counters["sizes"]) > 1,
        "--convert": bool(counters["modes"].keys() - {"RGB"}),
        f"--skip-bad {len(bad)}": bool(bad),
    }
    # one image that no option makes RGB of 8 bits keeps all others from being measured
    served = [] if refused else _as_samples(number)
    return {
        "number": number,
        **{name: dict(counter.most_common(FEW)) for name, counter in counters.items()},
        "dtype": "uint8",
        "range": [pixels.low, pixels.high] if number else None,
        "stored_with_loss": lossy,
        "unreadable": _few(bad),
        "never_taken": _few(refused),
        "left_out_by_name": {"number": len(unnamed), "first": [printable(name) for name in unnamed[:FEW]]},
        "duplicates": pixels.duplicates(lambda index: printable(store.names[readable[index]])),
        "labels": None if kept is None else describe_labels(kept),
        "serves": {
            "as_samples": served,
            "as_reference": served,
            "with_options": [option for option, is_needed in options.items() if is_needed and served],
        },
    }


def _few(reasons: dict[str, str]) -> dict[str, Any]:
    return {"number": len(reasons), "first": dict(list(reasons.items())[:FEW])}


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
    found["serves"] = {"as_samples": _as_samples(number), "as_reference": _as_reference(path)}
    return found | {"identity": read_identity(file)}


def survey_shards(path: Path, files: Sequence[NpzFile]) -> dict[str, Any]:
    """What the samples in a folder of npz files are."""
    found = _survey_images(path, files)
    number = found["images"].get("number", 0)
    served = _as_samples(number)
    serves = {"as_samples": served, "as_reference": served}
    return {"what": "samples in shards", "files": len(files), **found, "serves": serves}


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


def _metrics() -> list[Metric]:
    return [registry.load("metrics", name) for name in registry.rows("metrics")]


def _as_samples(num_images: int) -> list[str]:
    """Names of the metrics that so many images can be measured by; a reference without statistics needs as many."""
    return [metric.name for metric in _metrics() if num_images >= metric.min_images]


def _as_reference(path: Path) -> list[str]:
    """Names of the metrics that an npz file can be the reference of, features aside: what `evaluate` would say."""

    def is_served(metric: Metric) -> bool:
        try:
            Reference.open(path).check_metric(metric)
        except InputError:
            return False
        return True

    return [metric.name for metric in _metrics() if is_served(metric)]
