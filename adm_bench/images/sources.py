"""How a name or a path becomes a data set."""

from pathlib import Path

from adm_bench import registry
from adm_bench.errors import InputError, bad_input
from adm_bench.images.dataset import Dataset
from adm_bench.images.folder import open_folder
from adm_bench.images.npz import open_npz_dataset
from generators.configuration import unknown_name


def open_dataset(source: str, image_size: int | None = None) -> Dataset:
    """A data set from a registered name, a folder of images, or an npz file in OpenAI's format.

    `image_size` None takes the source's own size. InputError where there is nothing to read.
    """
    if source in registry.rows("datasets"):
        with bad_input(f"data set {source}"):
            dataset: Dataset = registry.load("datasets", source)(image_size)
            return dataset
    path = Path(source)
    if path.is_dir():
        return open_folder(path, image_size)
    if path.suffix == ".npz" and path.is_file():
        return open_npz_dataset(path, image_size)
    if path.exists():
        raise InputError(f"{path}: not a data set; expected a folder of images or an npz file")
    message = unknown_name("data set", source, registry.rows("datasets"))
    raise InputError(f"{message}; and no folder or npz file has that path")
