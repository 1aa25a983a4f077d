"""Images in tar files, one or many, as WebDataset gives them out: members of one key belong together."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError
from adm_bench.images.ahead import ahead
from adm_bench.images.decoding import UnreadableImageError, has_image_name, is_hidden
from adm_bench.images.stores import LABELS_FILE, NoImagesError, Stated, Store, by_folder, require_bounded
from adm_bench.images.tar_headers import Member, members

SUFFIX = ".tar"
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000
LARGEST_LABEL_BYTES = 2**20
JSON_KEYS = ("label", "cls")


class Place(NamedTuple):
    """Where the content of a member lies."""

    shard: int
    offset: int
    size: int


class Shard(NamedTuple):
    """What one tar file holds."""

    images: list[tuple[str, int, int, object]]
    """Name, place and size in bytes, and label as it is written, or None."""
    origins: frozenset[str]
    """Kinds of members that the labels come from: cls, json."""
    twins: tuple[str, str] | None
    """Two images of one key."""
    labels_files: list[Member]
    """Those of the name `dataset.json`, in whatever folder."""


def expand(pattern: str) -> list[Path]:
    """Paths of a pattern of WebDataset's: `train-{000..012}.tar` is thirteen; InputError for a range that is none."""
    parts = RANGE.split(pattern)
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        count = int(last) - int(first) + 1
        if not 0 < count <= MOST_SHARDS:
            raise InputError(f"{pattern}: {{{first}..{last}}} has {count} numbers; expected 1 to {MOST_SHARDS}")
        ranges.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    if np.prod([len(each) for each in ranges], dtype=float) > MOST_SHARDS:
        raise InputError(f"{pattern}: stands for more than {MOST_SHARDS} files")
    fixed = parts[0::3]
    return [
        Path(fixed[0] + "".join(number + text for number, text in zip(numbers, fixed[1:], strict=True)))
        for numbers in product(*ranges)
    ]


def is_pattern(source: str | Path) -> bool:
    """Whether a source stands for many tar files, and no file has that very name."""
    return RANGE.search(str(source)) is not None and not Path(source).exists()


class TarStore(Store):
    """`adm_bench.images.stores.Store` of plain tar files, never extracted; read at any place, by any thread.

    Labels are members `KEY.cls` (a number as text), or the `label` or `cls` of `KEY.json`, beside `KEY.png`, where the
    key reaches to the first dot. Of several files, names begin with that of the file. InputError where one of
    them is compressed, damaged, or cut off.
    """

    kind = "tar files"

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self.files = tuple(files)
        for file in self.files:
            if not file.is_file():
                raise InputError(f"{file}: no such file; expected every shard of {root}")
        shards = []
        with progress.stage(f"index {root}", len(self.files), "tar files") as advance:
            for shard in ahead(_scan, self.files, depth=2 * len(os.sched_getaffinity(0))):
                shards.append(shard)
                advance(1)
        self.counts = [len(shard.images) for shard in shards]
        """Images in each file."""
        self._take([(self._prefix(number), shard) for number, shard in enumerate(shards)])

    def _take(self, shards: list[tuple[str, Shard]]) -> None:
        names = [by_folder(prefix + name) for prefix, shard in shards for name, *_ in shard.images]
        order = sorted(range(len(names)), key=names.__getitem__)
        self.names = [names[place].replace("\0", "/") for place in order]
        if not self.names:
            raise NoImagesError(self.root)
        for one, other in pairwise(self.names):
            if one == other:
                raise InputError(f"{self.root}: holds {one} twice; make it anew, with one of the two")
        found = ((number, offset, size) for number, (_, s) in enumerate(shards) for _, offset, size, _ in s.images)
        self.places: NDArray[np.int64] = np.array(list(found), np.int64)[order]
        self.origins = sorted(frozenset().union(*(shard.origins for _, shard in shards)))
        labels = [label for _, shard in shards for *_, label in shard.images] if self.origins else []
        self._labels = [labels[place] for place in order] if labels else []
        twins = ((prefix, shard.twins) for prefix, shard in shards if shard.twins is not None)
        self._twins = next(((prefix + one, prefix + other) for prefix, (one, other) in twins), None)
        self._labels_files = [
            (file.name, Place(number, file.offset, file.size))
            for number, (_, shard) in enumerate(shards)
            for file in shard.labels_files
        ]

    def _prefix(self, number: int) -> str:
        return f"{self.files[number].name}/" if len(self.files) > 1 else ""

    def read(self, index: int) -> bytes:
        """See `Store`."""
        shard, offset, size = map(int, self.places[index])
        return self._read(Place(shard, offset, size))

    def _read(self, place: Place) -> bytes:
        require_bounded(place.size)
        path = self.files[place.shard]
        try:
            with path.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), place.size, place.offset)
        except OSError as error:
            raise UnreadableImageError(f"cannot be read ({error.strerror}); mend or replace {path.name}") from error
        if len(content) < place.size:
            raise UnreadableImageError(f"is cut off; {path.name} has changed while it was read")
        return content

    def read_beside(self, name: str) -> bytes | None:
        """See `Store`: only what `dataset.json` is."""
        places = [place for its_name, place in self._labels_files if its_name == name]
        if len(places) > 1:
            raise ValueError("is there more than once; expected one file with the labels of all images")
        return self._read(places[0]) if places else None

    def inner_names(self) -> list[str]:
        """See `Store`."""
        return self.names if len(self.files) == 1 else [name.partition("/")[2] for name in self.names]

    def stated_labels(self) -> Stated | None:
        """See `Store`; ValueError where two images have one key."""
        if not self.origins:
            return None
        if self._twins is not None:
            one, other = self._twins
            raise ValueError(
                f"{one} and {other} have one key, and so one label; keep the images to train on in files of their own, "
                "or choose other labels (--labels)"
            )
        return Stated(" and ".join(self.origins), self._labels)

    def sizes(self) -> NDArray[np.int64]:
        """See `Store`."""
        return self.places[:, 2]

    def unnamed(self) -> list[str]:
        """See `Store`: members that are no images by their endings are labels and texts of WebDataset's samples."""
        return []

    def stamp(self) -> str:
        """See `Store`: names and sizes of the members, and times of the files."""
        total = hashlib.sha256()
        for file in self.files:
            state = file.stat()
            total.update(f"{file.name!r}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        for name, size in zip(self.names, self.sizes().tolist(), strict=True):
            total.update(name.encode("utf-8", "surrogateescape") + f"\0{size}\0".encode())
        return total.hexdigest()


def key_of(name: str) -> str:
    """What members that belong together share: the name up to the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _scan(path: Path) -> Shard:
    images: list[tuple[str, int, int]] = []
    stated: dict[str, tuple[str, object]] = {}
    labels_files: list[Member] = []
    with path.open("rb", buffering=0) as file:
        for member in members(path):
            name = member.name
            if has_image_name(name):
                if member.is_link:
                    raise InputError(
                        f"{path}: holds {name} as a link, whose image would be missing; make it with "
                        "tar --dereference --hard-dereference"
                    )
                images.append((name, member.offset, member.size))
            elif name.rpartition("/")[2] == LABELS_FILE:
                labels_files.append(member)
            elif name.endswith((".cls", ".json")) and not any(map(is_hidden, name.split("/"))):
                read = min(member.size, LARGEST_LABEL_BYTES + 1)
                content = member.start if len(member.start) >= read else os.pread(file.fileno(), read, member.offset)
                _note(stated, name, content)
    if not stated:
        return Shard([(*image, None) for image in images], frozenset(), None, labels_files)
    keys = [key_of(name) for name, *_ in images]
    first: dict[str, int] = {}
    again = ((first.setdefault(key, place), place) for place, key in enumerate(keys))
    twins = next(((images[one][0], images[other][0]) for one, other in again if one != other), None)
    found = [stated.get(key, ("", None)) for key in keys]
    origins = frozenset(origin for origin, _ in found if origin)
    labelled = [(*image, label) for image, (_, label) in zip(images, found, strict=True)]
    return Shard(labelled, origins, twins, labels_files)


def _note(stated: dict[str, tuple[str, object]], name: str, content: bytes) -> None:
    """Remember the label that a member states, if it does; whether it is one is checked where it is used."""
    key, origin = key_of(name), name.rpartition(".")[2]
    if origin == "cls":
        text = content[:64].decode("utf-8", "replace").strip()
        stated[key] = (origin, int(text) if text.isdecimal() and text.isascii() else text)
        return
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = {JSON_KEYS[0]: "no JSON that can be read"}
    label = next((found[each] for each in JSON_KEYS if each in found), None) if isinstance(found, dict) else None
    if label is not None:
        stated.setdefault(key, (origin, label))
