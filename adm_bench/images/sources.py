"""How a name or a path becomes a set of images."""

import zipfile
from pathlib import Path

from adm_bench import registry
from adm_bench.errors import InputError, bad_input
from adm_bench.images.dataset import Dataset, ImageSet
from adm_bench.images.decoding import Preparation, is_hidden
from adm_bench.images.encoded import EncodedImages, printable
from adm_bench.images.lmdb_store import LmdbStore, is_lmdb
from adm_bench.images.npz import NpzFile
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.stores import FolderStore, NoImagesError, Store, ZipStore
from generators.configuration import unknown_name

KINDS = "a folder of images or of npz files, a zip archive of images, an LMDB, or an npz file"


def open_dataset(source: str, image_size: int | None = None) -> Dataset:
    """What is trained on: a registered name, or a path as of `open_image_set`; squares in RGB, cropped as ADM does.

    `image_size` None takes the source's own size, of a folder and its like the first image's short side. npz files
    are read into memory. InputError where there is nothing to read, or where a registered name is a path here too.
    """
    if _is_registered(source):
        with bad_input(f"data set {source}"):
            dataset: Dataset = registry.load("datasets", source)(image_size)
            return dataset
    if not Path(source).exists():
        message = unknown_name("data set", source, registry.rows("datasets"))
        raise InputError(f"{message}; and no file or folder has that path")
    found = find(Path(source))
    if not isinstance(found, list):
        if image_size is None:
            image_size = min(EncodedImages(found, Preparation(convert=True)).image_shape)
        return EncodedImages(found, Preparation(size=image_size, convert=True))
    images = NpzImages(Path(source), found)
    height, width = images.image_shape
    if height != width or image_size not in (None, height):
        wanted = f"{image_size} x {image_size}" if image_size else "squares"
        raise InputError(f"{source}: images are {height} x {width}; expected {wanted}")
    return images.in_memory()


def open_image_set(
    source: str | Path, *, size: int | None = None, convert: bool = False, skip_bad: int = 0
) -> ImageSet:
    """What is measured: a path, of which nothing is cropped or converted unasked, or a registered name.

    A folder of images at any depth or of npz files in sorted order, a zip archive of images, an LMDB, or an npz file
    in OpenAI's format. `size` asks for ADM's centre crop, `convert` for RGB of greyscale, palettes and transparency,
    and `skip_bad` lets so many images be unreadable. InputError as of `open_dataset`.
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
    if path.is_dir():
        return _in_folder(path)
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
    shards = sorted(file for file in path.glob("*.[nN][pP][zZ]") if file.is_file() and not is_hidden(file.name))
    if not store.names and not shards:
        raise NoImagesError(path)
    if not shards:
        return store
    if store.names:
        raise InputError(
            f"{path}: holds images ({printable(store.names[0])}) and npz files ({shards[0].name}); expected one or the "
            "other: give each a folder of its own, or name the npz file itself"
        )
    files = [NpzFile(shard) for shard in shards]
    for file in files:
        if "mu" in file:
            raise InputError(
                f"{file.path}: holds mu, so it is a reference, in a folder of samples; name the file itself, or move it"
            )
    return files
