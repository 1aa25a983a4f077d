"""Folders of images: a class a sub-folder, or unlabelled."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from adm_bench.errors import InputError
from adm_bench.images.crops import center_crop
from adm_bench.images.dataset import Images, Labels

SUFFIXES = {".png": False, ".jpg": True, ".jpeg": True, ".gif": False, ".bmp": False, ".webp": True}
"""File endings that are read, and whether they lose detail."""


UNREADABLE = (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError)


class FolderDataset:
    """Images read from their files as they are needed, cropped to one size as ADM crops them."""

    def __init__(self, root: Path, paths: list[Path], image_size: int) -> None:
        self.name = str(root)
        self.root = root
        self.paths = paths
        self.image_size = image_size
        self.lossy = any(SUFFIXES[path.suffix.lower()] for path in paths)
        owners = [path.relative_to(root).parts[0] if path.parent != root else None for path in paths]
        names = sorted({owner for owner in owners if owner is not None})
        labelled = len(names) > 1 and None not in owners
        self.num_classes = len(names) if labelled else None
        ranks = {name: rank for rank, name in enumerate(names)}
        self._digest: str | None = None
        self.labels = np.array([ranks[owner] for owner in owners], np.int64) if labelled else None  # type: ignore[index]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """See `Dataset`; InputError naming an image that cannot be decoded."""
        images = np.stack([self._decode(self.paths[index]) for index in indices])
        labels = None if self.labels is None else self.labels[np.asarray(indices)]
        return images.transpose(0, 3, 1, 2), labels

    def _decode(self, path: Path) -> Images:
        try:
            with Image.open(path) as image:
                return center_crop(image.convert("RGB"), self.image_size)
        except UNREADABLE as error:
            raise InputError(f"{path}: not a readable image ({error}); mend or remove it") from error

    def digest(self) -> str:
        """From every file's path, bytes and the crop; read once."""
        if self._digest is None:
            self._digest = self._compute_digest()
        return self._digest

    def _compute_digest(self) -> str:
        total = hashlib.sha256(f"center_crop {self.image_size}".encode())
        for path in self.paths:
            total.update(str(path.relative_to(self.root)).encode())
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); its images would be missing") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        yield from (Path(folder) / name for name in names)


def open_folder(root: Path, image_size: int | None) -> FolderDataset:
    """Every image under a folder, in sorted order; labels where all lie in two or more sub-folders.

    `image_size` None takes the first image's short side. InputError where there are no images.
    """
    paths = sorted(path for path in _files(root) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{root}: holds no images; expected files ending in {', '.join(SUFFIXES)}")
    if image_size is None:
        try:
            with Image.open(paths[0]) as first:
                image_size = min(first.size)
        except UNREADABLE as error:
            raise InputError(f"{paths[0]}: not a readable image ({error}); mend or remove it") from error
    return FolderDataset(root, paths, image_size)
