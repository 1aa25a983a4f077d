"""Encoded images in a folder, an archive or an LMDB as a data set: decoded as they are needed, by threads."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.files import fingerprint
from adm_bench.images.ahead import ahead
from adm_bench.images.dataset import CropFunction, Images, Labels, PixelHashes, images_at_a_time, pixel_hashes
from adm_bench.images.decoding import (
    SUFFIXES,
    Header,
    Preparation,
    UnreadableImageError,
    decode,
    read_header,
    require_taken,
)
from adm_bench.images.labels import LabelSource, read_labels, wrapping_folders
from adm_bench.images.stores import NoImagesError, Store

READ_AHEAD = 256
"""Encoded images read ahead where they are only hashed or checked."""
LOOKED_INTO = 64
"""Images whose bytes an outline has, spread over all; and of which one must be readable for a set to be opened."""


class EncodedImages:
    """`adm_bench.images.dataset.Dataset` of encoded images.

    Labels are as `adm_bench.images.labels` reads them. InputError, naming the image, for whatever cannot be taken.
    """

    def __init__(
        self, store: Store, preparation: Preparation, *, labels: LabelSource = "auto", skip_bad: int = 0
    ) -> None:
        """`skip_bad` images at most may be unreadable and are left out; to find them, everything is decoded once."""
        if not store.names:
            raise NoImagesError(store.root)
        self.store = store
        self.name = str(store.root)
        self.how = preparation
        found = read_labels(store, labels)
        self.class_names, self.labels_from, self._all_labels = found.classes, found.origin, found.labels
        self._labels_asked = labels
        self.skipped: dict[str, str] = {}
        self.pixel_hashes: PixelHashes | None = None
        """Of the images (3, H, W) as they are taken, where they were decoded to find unreadable ones."""
        self._kept: NDArray[np.int64] = np.arange(len(store.names))
        if skip_bad:
            self._leave_out(skip_bad)
        self._digest: str | None = None
        self._short_sides = np.zeros(len(self._kept), np.int32)
        """Of the images before they are cropped, as headers declare; 0 where none was read yet."""
        first = self._first_header()
        self.image_shape = (first.height, first.width) if preparation.size is None else (preparation.size,) * 2
        self.lossy = first.lossy or any(map(_has_lossy_name, store.names))

    @property
    def image_size(self) -> int:
        """See `Dataset`; the height where images are no squares."""
        return self.image_shape[0]

    @property
    def labels(self) -> Labels | None:
        """See `ImageSet`."""
        return None if self._all_labels is None else self._all_labels[self._kept]

    @property
    def num_classes(self) -> int | None:
        """See `Dataset`."""
        if self._all_labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self._all_labels.max()) + 1

    @property
    def preparation(self) -> dict[str, Any]:
        """See `ImageSet`; with labels that were asked for, and the images that were left out, and why."""
        asked = {} if self._labels_asked == "auto" else {"labels": self._labels_asked}
        return self.how.describe() | asked | ({"skipped": self.skipped} if self.skipped else {})

    def __len__(self) -> int:
        """Number of images."""
        return len(self._kept)

    def where(self, index: int) -> str:
        """A person's name for an image: the root and the name in it."""
        return f"{self.name}/{self.store.names[self._kept[index]]}"

    def read(self, indices: Sequence[int]) -> tuple[Images, Labels | None]:
        """See `Dataset`."""
        images = np.stack([pixels for pixels, _ in ahead(self._load, indices, depth=len(indices))])
        return images, None if self._all_labels is None else self._all_labels[self._kept[np.asarray(indices)]]

    def cropped(self, index: int, crop: CropFunction) -> Images:
        """See `Uncropped`."""
        content = self._content(index)
        with bad_input(self.where(index)):
            return decode(content, self.how, crop)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Images]:
        """See `ImageSet`. A pass over everything learns the digest by the way."""
        count = images_at_a_time(batch_size, self.image_shape)
        total = self._new_digest()
        loaded = ahead(self._load, range(start, len(self)), depth=2 * count)
        while batch := list(islice(loaded, count)):
            for _, entry in batch:
                total.update(entry)
            yield np.stack([pixels for pixels, _ in batch])
        if start == 0:
            self._digest = total.hexdigest()

    def digest(self) -> str:
        """See `ImageSet`: of names, labels, bytes and preparation, the same for a folder and a zip of it.

        Reads everything unless a whole pass was made. What their headers declare is checked too: InputError for what
        is not RGB, and where images are taken as they are for another size.
        """
        if self._digest is None:
            total = self._new_digest()
            with progress.stage(f"read {self.name}", len(self), "images") as advance:
                for entry in ahead(self._check, range(len(self)), depth=READ_AHEAD):
                    total.update(entry)
                    advance(1)
            self._digest = total.hexdigest()
        return self._digest

    def enlarged_from(self) -> int | None:
        """The shortest side in pixels that the crop enlarges, None where it enlarges nothing; reads as `digest`."""
        if self.how.size is None:
            return None
        self.digest()
        shortest = int(self._short_sides.min())
        return shortest if shortest < self.how.size else None

    def left_out(self) -> str | None:
        """In words, the files that begin as images do and are not taken, for their names; None where there are none."""
        names = self.store.unnamed()
        if not names:
            return None
        return (
            f"{len(names)} files that begin as images do are left out, since their names do not end in "
            f"{', '.join(SUFFIXES)} (such as {printable(names[0])}); rename them, or move them away"
        )

    def empty_classes(self) -> str | None:
        """In words, the folders that would be classes and hold no images; None where there are none."""
        if self.labels_from != "folders":
            return None
        beside = wrapping_folders(self.store.inner_names())[-1]
        empty = [name for name in self.store.empty_folders() if name.rpartition("/")[0] == beside.rstrip("/")]
        if not empty:
            return None
        return (
            f"{len(empty)} folders hold no images, so they are no classes (such as {printable(empty[0])}): classes are "
            "numbered without them"
        )

    def fingerprint(self) -> str:
        """See `ImageSet`."""
        return fingerprint({"store": self.store.stamp(), "preparation": self.preparation})

    def outline(self) -> str:
        """See `Outlined`: the same wherever the images lie, be it in a folder or in an archive of it."""
        total = hashlib.sha256()
        sizes = self.store.sizes().tolist()
        labels = [""] * len(sizes) if self._all_labels is None else self._all_labels.tolist()
        for place in self._kept.tolist():
            name = self.store.names[place].encode("utf-8", "surrogateescape")
            total.update(name + f"\0{sizes[place]}\0{labels[place]}\0".encode())
        chosen = sorted({len(self) * part // LOOKED_INTO for part in range(LOOKED_INTO)})
        for digest in ahead(self._content_digest, chosen, depth=LOOKED_INTO):
            total.update(digest)
        return total.hexdigest()

    def _content_digest(self, index: int) -> bytes:
        """Of an encoded image; none where it cannot be read, which is an error only where it is needed."""
        try:
            return hashlib.sha256(self.store.read(int(self._kept[index]))).digest()
        except UnreadableImageError:
            return b"unreadable"

    def _new_digest(self) -> Any:
        return hashlib.sha256(json.dumps(self.preparation, sort_keys=True).encode())

    def _content(self, index: int) -> bytes:
        with bad_input(self.where(index)):
            return self.store.read(int(self._kept[index]))

    def _first_header(self) -> Header:
        """Of the first image, which says the size of all; where they are cropped, of the first that is readable."""
        first: InputError | None = None
        for index in range(min(LOOKED_INTO, len(self))):
            try:
                return self._checked_header(index, self._content(index))
            except InputError as error:
                if self.how.size is None or not isinstance(error.__cause__, UnreadableImageError):
                    raise
                first = first or error
        assert first is not None  # a set has an image
        raise InputError(f"{self.name}: none of its first {index + 1} images can be read; the first one: {first}")

    def _checked_header(self, index: int, content: bytes) -> Header:
        with bad_input(self.where(index)):
            header = read_header(content)
            require_taken(header, self.how)
        self._note(index, header)
        return header

    def _note(self, index: int, header: Header) -> None:
        self._short_sides[index] = min(header.height, header.width)

    def _load(self, index: int) -> tuple[Images, bytes]:
        """Pixels (3, H, W) and the entry in the digest of one image."""
        content = self._content(index)
        with bad_input(self.where(index)):
            pixels = decode(content, self.how)
            if self.how.size is not None and not self._short_sides[index]:
                self._note(index, read_header(content))
        self._require_shape(index, pixels.shape[0], pixels.shape[1])
        return pixels.transpose(2, 0, 1), self._entry(index, content)

    def _check(self, index: int) -> bytes:
        """The entry in the digest of one image, whose header is checked."""
        content = self._content(index)
        header = self._checked_header(index, content)
        if self.how.size is None:
            self._require_shape(index, header.height, header.width)
        return self._entry(index, content)

    def _require_shape(self, index: int, height: int, width: int) -> None:
        if (height, width) != self.image_shape:
            raise InputError(
                f"{self.where(index)}: is {height} x {width}, but {self.where(0)} is {self.image_shape[0]} x "
                f"{self.image_shape[1]}; expected images of one size: give --size to crop them as ADM does"
            )

    def _entry(self, index: int, content: bytes) -> bytes:
        place = self._kept[index]
        name = self.store.names[place].encode("utf-8", "surrogateescape")
        label = "" if self._all_labels is None else str(self._all_labels[place])
        return hashlib.sha256(name + f"\0{label}\0".encode() + hashlib.sha256(content).digest()).digest()

    def _leave_out(self, allowed: int) -> None:
        """Decode everything once and drop what cannot be; InputError where that is more than `allowed`."""
        bad: dict[int, str] = {}
        hashes: list[PixelHashes] = []
        with progress.stage(f"check {self.name}", len(self), "images") as advance:
            for index, found in enumerate(ahead(self._look, range(len(self)), depth=READ_AHEAD)):
                if isinstance(found, str):
                    bad[index] = found
                elif found is not None:
                    hashes.append(found)
                advance(1)
        if len(bad) > allowed:
            first = min(bad)
            raise InputError(
                f"{self.where(first)}: {bad[first]}; {len(bad)} of {len(self)} images are unreadable, and --skip-bad "
                f"allows {allowed}"
            )
        self.skipped = {printable(self.store.names[index]): found for index, found in bad.items()}
        self._kept = np.delete(self._kept, list(bad))
        if not len(self._kept):
            raise NoImagesError(self.store.root)
        if len(hashes) == len(self._kept):
            self.pixel_hashes = np.concatenate(hashes)

    def _look(self, index: int) -> PixelHashes | str | None:
        """Why an image cannot be decoded, or its hash (1,); None where it is wrong otherwise, or cropped later."""
        try:
            content = self.store.read(index)
            pixels = decode(content, Preparation(convert=True))
            require_taken(read_header(content), self.how)
        except UnreadableImageError as error:
            return str(error)
        except ValueError:  # found when it is used
            return None
        return None if self.how.size else pixel_hashes(pixels.transpose(2, 0, 1)[None])


def _has_lossy_name(name: str) -> bool:
    return SUFFIXES.get("." + name.rpartition(".")[2].lower(), False)


def printable(name: str) -> str:
    """A name whose bytes may be no UTF-8, for a record."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
