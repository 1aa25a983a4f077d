"""How a name or a path becomes a set of images."""

import zipfile
from dataclasses import replace
from pathlib import Path

from adm_bench import registry
from adm_bench.errors import InputError, bad_input
from adm_bench.images.dataset import ArrayDataset, Dataset, ImageSet
from adm_bench.images.decoding import Preparation, is_hidden
from adm_bench.images.encoded import EncodedImages, printable
from adm_bench.images.labels import LabelSource
from adm_bench.images.lmdb_store import LmdbStore, is_lmdb
from adm_bench.images.npz import NpzFile
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.stores import FolderStore, NoImagesError, Store, ZipStore
from adm_bench.images.tar_store import PACKED_SUFFIXES, SUFFIX, TarStore, expand, is_pattern
from generators.configuration import unknown_name

KINDS = (
    "a folder of images, of tar files or of npz files, a zip archive or a tar file of images, an LMDB, or an npz file"
)


def open_dataset(source: str, image_size: int | None = None, *, labels: LabelSource = "auto") -> Dataset:
    """What is trained on: a registered name, or a path as of `open_image_set`; squares in RGB, cropped as ADM does.

    `image_size` None takes the source's own size, of a folder and its like the first image's short side. npz files
    are read into memory. `labels` says where classes are read from (`adm_bench.images.labels`). InputError where there
    is nothing to read, where labels that are asked for are not there, or where a registered name is a path here too.
    """
    if _is_registered(source):
        with bad_input(f"data set {source}"):
            dataset: Dataset = registry.load("datasets", source)(image_size)
        return _relabelled(dataset, labels)
    if not Path(source).exists() and not is_pattern(source):
        message = unknown_name("data set", source, registry.rows("datasets"))
        raise InputError(f"{message}; and no file or folder has that path")
    found = find(Path(source))
    if not isinstance(found, list):
        if image_size is None:
            image_size = min(EncodedImages(found, Preparation(convert=True), labels="none").image_shape)
        return EncodedImages(found, Preparation(size=image_size, convert=True), labels=labels)
    return _relabelled(_in_memory(source, found, image_size), labels)


def _relabelled(dataset: Dataset, labels: LabelSource) -> Dataset:
    """A data set of arrays as it is, or without its labels; InputError where others are asked for."""
    if labels == "auto" or (labels == "none" and dataset.labels is None):
        return dataset
    if labels == "none" and isinstance(dataset, ArrayDataset):
        return replace(dataset, labels=None, num_classes=None)
    raise InputError(f"data set {dataset.name}: --labels {labels}: it has labels of its own or none, and no names")


def _in_memory(source: str, found: list[NpzFile], image_size: int | None) -> ArrayDataset:
    images = NpzImages(Path(source), found)
    height, width = images.image_shape
    if height != width or image_size not in (None, height):
        wanted = f"{image_size} x {image_size}" if image_size else "squares"
        raise InputError(
            f"{source}: images are {height} x {width}; expected {wanted}: images of npz files are not resized"
        )
    return images.in_memory()


def open_image_set(
    source: str | Path, *, size: int | None = None, convert: bool = False, skip_bad: int = 0
) -> ImageSet:
    """What is measured: a path, of which nothing is cropped or converted unasked, or a registered name.

    A folder of images at any depth, or of tar or npz files in sorted order, a zip archive or a tar file of images,
    many tar files (`train-{000..012}.tar`), an LMDB, or an npz file in OpenAI's format. `size` asks for ADM's centre
    crop, `convert` for RGB of greyscale, palettes and transparency, and `skip_bad` lets so many images be unreadable.
    InputError as of `open_dataset`.
    """
    if _is_registered(source):
        return open_dataset(str(source), size)
    found = find(Path(source))
    if isinstance(found, list):
        return NpzImages(Path(source), found, size)
    return EncodedImages(found, Preparation(size=size, convert=convert), skip_bad=skip_bad)


def _is_registered(source: str | Path) -> bool:
    """Whether it names a data set; InputError where it may as well be a path, which as a Path "./digits" is too."""
    if str(source) not in registry.rows("datasets"):
        return False
    if Path(source).exists():
        kind = "folder" if Path(source).is_dir() else "file"
        raise InputError(f"{source} is a data set and a {kind} here; give an absolute path, or rename the {kind}")
    return True


def find(path: Path) -> Store | list[NpzFile]:
    """The encoded images or the npz files at a path; InputError where there is nothing to read."""
    if is_lmdb(path):
        return LmdbStore(path)
    if is_pattern(path):
        return TarStore(path.parent, expand(str(path)))
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and path.name.lower().endswith((SUFFIX, *PACKED_SUFFIXES)):
        return TarStore(path, [path])
    if path.suffix == ".npz" and path.is_file():
        return [NpzFile(path)]
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipStore(path)
    if path.suffix == ".zip" and path.is_file():
        raise InputError(f"{path}: not a readable zip archive, perhaps truncated; make it anew")
    if path.exists():
        raise InputError(f"{path}: not a data set; expected {KINDS}")
    raise InputError(f"{path}: no such file or folder; expected {KINDS}")


def _in_folder(path: Path) -> Store | list[NpzFile]:
    store = FolderStore(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not is_hidden(file.name))
    arrays = [file for file in files if file.suffix.lower() == ".npz"]
    tars = [file for file in files if file.name.lower().endswith((SUFFIX, *PACKED_SUFFIXES))]
    kinds = {"images": store.names, "npz files": [f.name for f in arrays], "tar files": [f.name for f in tars]}
    held = [f"{kind} ({printable(names[0])})" for kind, names in kinds.items() if names]
    if not held:
        raise NoImagesError(path)
    if len(held) > 1:
        raise InputError(
            f"{path}: holds {' and '.join(held)}; expected one or the other: give each a folder of its own, or name "
            "the file itself"
        )
    if store.names:
        return store
    return TarStore(path, tars) if tars else _samples(arrays)


def _samples(shards: list[Path]) -> list[NpzFile]:
    """Shards of samples; InputError where one of them is a reference."""
    files = [NpzFile(shard) for shard in shards]
    for file in files:
        if "mu" in file:
            raise InputError(
                f"{file.path}: holds mu, so it is a reference, in a folder of samples; name the file itself, or move it"
            )
    return files
