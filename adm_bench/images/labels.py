"""Which class an image is of: what a source states, its folders, or its names."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from adm_bench.errors import InputError, bad_input
from adm_bench.images.dataset import Labels
from adm_bench.images.stores import LABELS_FILE, Store

LabelSource = Literal["auto", "folder", "prefix", "none"]
LABEL_SOURCES: tuple[LabelSource, ...] = ("auto", "folder", "prefix", "none")
NO_LABELS = "none"


@dataclass(frozen=True, kw_only=True)
class FoundLabels:
    """Classes of all images of a store, or that they have none."""

    labels: Labels | None = None
    classes: tuple[str, ...] = ()
    """Names of the classes, where the labels are ranks of names."""
    origin: str = NO_LABELS
    """What they are from: dataset.json, cls, json, folders, prefixes, or none."""


def read_labels(store: Store, source: LabelSource = "auto") -> FoundLabels:
    """Labels of all images of a store.

    `auto` takes what the source states (dataset.json, .cls or .json members of tar files), otherwise the folders, where
    every image lies in one of two or more; it never guesses at names. `folder` and `prefix` take the ranks of
    folders, or of names up to the first "_" (ADM's convention), whatever else there is. InputError where what is asked
    for, or stated, is not there for every image.
    """
    if source == "none":
        return FoundLabels()
    if source == "prefix":
        return _ranked(_prefixes(store), "prefixes")
    if source == "auto":
        stated = _stated(store)
        if stated is not None:
            return stated
    owners = _folders(store.inner_names())
    if owners is not None:
        return _ranked(owners, "folders")
    if source == "folder":
        raise InputError(
            f"{store.root}: --labels folder: expected every image in a folder of its class, and two classes or more; "
            f"{store.names[_outside(store.inner_names())]} is in none of its own: put it there, or choose other labels "
            "(--labels prefix, --labels none)"
        )
    return FoundLabels()


def _ranked(owners: Sequence[str], origin: str) -> FoundLabels:
    classes = sorted(set(owners))
    ranks = {name: rank for rank, name in enumerate(classes)}
    labels = np.fromiter((ranks[owner] for owner in owners), np.int64, len(owners))
    return FoundLabels(labels=labels, classes=tuple(classes), origin=origin)


def _prefixes(store: Store) -> list[str]:
    bases = [name.rpartition("/")[2] for name in store.names]
    without = [place for place, base in enumerate(bases) if "_" not in base]
    if without:
        raise InputError(
            f"{store.root}/{store.names[without[0]]}: --labels prefix: expected CLASS_ANYTHING, and the names of "
            f'{len(without)} of {len(bases)} images have no "_"; rename them, or choose other labels'
        )
    return [base.partition("_")[0] for base in bases]


def _folders(names: Sequence[str]) -> list[str] | None:
    """The first folder of each name below those that all share (an archive's own, for one), or None."""
    folders = [name.rpartition("/")[0] for name in names]
    parts = {folder: folder.split("/") if folder else [] for folder in set(folders)}
    depth = len(_shared(parts.values()))
    if any(len(each) <= depth for each in parts.values()):
        return None
    owners = {folder: each[depth] for folder, each in parts.items()}
    return [owners[folder] for folder in folders]


def _outside(names: Sequence[str]) -> int:
    """Place of an image that lies in no folder but those that all share."""
    wrapping = wrapping_folders(names)[-1]
    return next(place for place, name in enumerate(names) if "/" not in name.removeprefix(wrapping))


def wrapping_folders(names: Iterable[str]) -> list[str]:
    """The root ("") and the folders that all images share, from the outermost on, each with a "/" at its end."""
    folders = {name.rpartition("/")[0] for name in names}
    shared = _shared([folder.split("/") if folder else [] for folder in folders])
    return ["".join(f"{part}/" for part in shared[:depth]) for depth in range(len(shared) + 1)]


def _shared(folders: Collection[list[str]]) -> list[str]:
    """The parts that all begin with."""
    pairs = zip(min(folders), max(folders), strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _stated(store: Store) -> FoundLabels | None:
    """What a dataset.json or label members state, or None where there are neither."""
    names = store.inner_names()
    for wrapping in wrapping_folders(names):
        with bad_input(f"{store.root}/{wrapping}{LABELS_FILE}"):
            content = store.read_beside(wrapping + LABELS_FILE)
            if content is not None:
                rows = _rows(content)
                if rows is None:
                    return FoundLabels()
                stated = (rows.get(name.removeprefix(wrapping)) for name in names)
                return FoundLabels(labels=_checked(stated, names), origin=LABELS_FILE)
    with bad_input(store.root):
        found = store.stated_labels()
        if found is None:
            return None
        return FoundLabels(labels=_checked(found.labels, store.names), origin=found.origin)


def _rows(content: bytes) -> dict[str, object] | None:
    """Labels of a dataset.json, `{"labels": [["00000/img00000000.png", 6], ...]}`, or None where it states none."""
    try:
        rows = json.loads(content)["labels"]
        return None if rows is None else {str(name): label for name, label in rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError('is no JSON of the form {"labels": [["NAME", CLASS], ...]}; mend or remove it') from error


def _checked(stated: Iterable[object], names: Sequence[str]) -> Labels:
    labels = np.empty(len(names), np.int64)
    for place, label in enumerate(stated):
        if type(label) is not int or not 0 <= label < 2**31:
            raise ValueError(
                f"says {label!r} of {names[place]}; expected its class, an integer from 0: mend it, or choose other "
                "labels (--labels)"
            )
        labels[place] = label
    return labels
