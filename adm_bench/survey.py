"""Surveys of images: what is in a file, a folder, an archive or an LMDB, before anybody measures or trains with it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adm_bench import progress, registry
from adm_bench.checks import is_sorted
from adm_bench.errors import InputError
from adm_bench.files import file_sha256
from adm_bench.images.ahead import ahead
from adm_bench.images.dataset import Images, ImageSet, Labels, pixel_hashes
from adm_bench.images.decoding import Header, Preparation, UnreadableImageError, decode, read_header
from adm_bench.images.encoded import READ_AHEAD, printable
from adm_bench.images.labels import LabelSource, read_labels
from adm_bench.images.npz import IMAGES_KEY, NpzFile, read_identity
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.stores import Store
from adm_bench.images.tar_store import TarStore
from adm_bench.references import Reference
from metrics.protocol import Metric

BATCH_SIZE = 1024
FEW = 10
"""As many examples are named."""


class Gist(NamedTuple):
    """What is counted of one image's pixels."""

    hash: int
    low: int
    high: int

    @classmethod
    def of(cls, pixels: Images) -> "Gist":
        """Of any layout that is the same for all."""
        return cls(int(pixel_hashes(pixels[None])[0]), int(pixels.min()), int(pixels.max()))


@dataclass(kw_only=True)
class Pixels:
    """What is counted of the images as they pass."""

    hashes: list[int] = field(default_factory=list)
    low: int = 255
    high: int = 0

    def add(self, image: Gist) -> None:
        """Count one image."""
        self.hashes.append(image.hash)
        self.low, self.high = min(self.low, image.low), max(self.high, image.high)

    def duplicates(self, name: Callable[[int], str | int]) -> dict[str, Any]:
        """How many images equal an earlier one, pixel for pixel, and the first few of them."""
        first: dict[int, int] = {}
        pairs = [(first.setdefault(key, index), index) for index, key in enumerate(self.hashes)]
        again = [(one, other) for one, other in pairs if one != other]
        return {"number": len(again), "first": [[name(one), name(other)] for one, other in again[:FEW]]}


@dataclass(kw_only=True)
class Sizes:
    """Heights and widths of images as they pass."""

    wanted: int | None
    """Side that is to be trained on or measured, if any."""
    counter: Counter[tuple[int, int]] = field(default_factory=Counter)

    def describe(self) -> dict[str, Any]:
        """The most frequent ones, those of the shortest and the longest short side, and how many must be enlarged."""
        by_side = sorted(self.counter, key=lambda size: (min(size), size))
        found: dict[str, Any] = {
            "sizes": {f"{height} x {width}": count for (height, width), count in self.counter.most_common(FEW)},
            "smallest": list(by_side[0]) if by_side else None,
            "largest": list(by_side[-1]) if by_side else None,
        }
        if self.wanted is None:
            return found
        below = sum(count for size, count in self.counter.items() if min(size) < self.wanted)
        return found | {"below_size": {"size": self.wanted, "number": below}}


def survey_store(store: Store, size: int | None = None, labels: LabelSource = "auto") -> dict[str, Any]:
    """What encoded images are, every one of them decoded; those that cannot be are counted and named.

    `size` is the side that they are wanted in, `labels` where their classes are read from.
    """
    pixels, sizes = Pixels(), Sizes(wanted=size)
    readable: list[int] = []
    bad: dict[str, str] = {}
    refused: dict[str, str] = {}
    counters: dict[str, Counter[str]] = {"modes": Counter(), "formats": Counter()}
    lossy = 0

    def look(index: int) -> tuple[Header, Gist] | ValueError:
        try:
            content = store.read(index)
            return read_header(content), Gist.of(decode(content, Preparation(convert=True)))
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
            sizes.counter[header.height, header.width] += 1
            counters["modes"][f"{header.mode}, 16 bits a channel" if header.is_deep else header.mode] += 1
            counters["formats"][header.format] += 1
            lossy += header.lossy
    number = len(readable)
    unnamed, empty = store.unnamed(), store.empty_folders()
    options = {
        "--size SIDE": len(sizes.counter) > 1,
        "--convert": bool(counters["modes"].keys() - {"RGB"}),
        f"--skip-bad {len(bad)}": bool(bad),
    }
    # one image that no option makes RGB of 8 bits keeps all others from being measured
    served = images_serve(0 if refused else number)
    needed = [option for option, is_needed in options.items() if is_needed and served["as_samples"]]
    shards = {"tar_files": _spread(np.array(store.counts))} if isinstance(store, TarStore) else {}
    return {
        "number": number,
        **shards,
        **sizes.describe(),
        **{name: dict(counter.most_common(FEW)) for name, counter in counters.items()},
        "dtype": "uint8",
        "range": [pixels.low, pixels.high] if number else None,
        "stored_with_loss": lossy,
        "unreadable": _few(bad),
        "never_taken": _few(refused),
        "left_out_by_name": {"number": len(unnamed), "first": [printable(name) for name in unnamed[:FEW]]},
        "empty_folders": {"number": len(empty), "first": [printable(name) for name in empty[:FEW]]},
        "duplicates": pixels.duplicates(lambda index: printable(store.names[readable[index]])),
        "labels": _labels_of(store, readable, labels),
        "serves": {**served, "with_options": needed},
    }


def _few(reasons: dict[str, str]) -> dict[str, Any]:
    return {"number": len(reasons), "first": dict(list(reasons.items())[:FEW])}


def _labels_of(store: Store, readable: Sequence[int], source: LabelSource) -> dict[str, Any] | None:
    """What the labels of readable images are, or why they cannot be told."""
    try:
        found = read_labels(store, source)
    except InputError as error:
        return {"problem": str(error)}
    if found.labels is None:
        return None
    return {"from": found.origin, **describe_labels(found.labels[list(readable)])}


def survey_npz(path: Path, size: int | None = None) -> dict[str, Any]:
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
        found |= _survey_npz_images(path, [file], size)
        number = found["images"].get("number", 0)
    found["serves"] = {"as_samples": _as_samples(number), "as_reference": _as_reference(path)}
    return found | {"identity": read_identity(file)}


def survey_shards(path: Path, files: Sequence[NpzFile], size: int | None = None) -> dict[str, Any]:
    """What the samples in a folder of npz files are."""
    found = _survey_npz_images(path, files, size)
    number = found["images"].get("number", 0)
    return {"what": "samples in shards", "files": len(files), **found, "serves": images_serve(number)}


def _survey_npz_images(path: Path, files: Sequence[NpzFile], size: int | None) -> dict[str, Any]:
    """What the images are, or why they cannot be measured."""
    try:
        images = NpzImages(path, files)
        images.labels  # noqa: B018  reading it finds what is wrong with it
    except InputError as error:
        return {"images": {"problem": str(error)}}
    return survey_arrays(images, size)


def survey_arrays(images: ImageSet, size: int | None = None) -> dict[str, Any]:
    """What images of one size are, every one of them looked at."""
    pixels = Pixels()
    with progress.stage(f"inspect {images.name}", len(images), "images") as advance:
        for batch in images.batches(BATCH_SIZE):
            for image in batch:
                pixels.add(Gist.of(image))
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
    if size is not None:
        below = len(images) if min(images.image_shape) < size else 0
        found["images"]["below_size"] = {"size": size, "number": below}
    return found | ({} if images.labels is None else {"labels": describe_labels(images.labels)})


def describe_labels(labels: Labels) -> dict[str, Any]:
    """How many classes occur, how many images each has, and whether labels are sorted."""
    values, counts = np.unique(labels, return_counts=True)
    return {"classes": _spread(counts), "sorted": is_sorted(labels), "histogram": _histogram(values, counts)}


def _spread(counts: NDArray[np.int64]) -> dict[str, int]:
    """Number of classes or files, and how many images the smallest, the middle and the largest of them have."""
    if not len(counts):
        return {"number": 0}
    fewest, middle, most = np.quantile(counts, [0, 0.5, 1], method="lower").tolist()
    return {"number": len(counts), "fewest_images": fewest, "median_images": middle, "most_images": most}


def _histogram(values: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _metrics() -> list[Metric]:
    return [registry.load("metrics", name) for name in registry.rows("metrics")]


def images_serve(num_images: int) -> dict[str, list[str]]:
    """Names of the metrics that so many images can be measured by, and be the reference of, which needs as many."""
    served = _as_samples(num_images)
    return {"as_samples": served, "as_reference": served}


def _as_samples(num_images: int) -> list[str]:
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
