"""The checkpoints of a run: whole or absent, verified before they are used, pruned by policy.

A checkpoint is a folder `step_00001000`: a safetensors file a group of the trainer's state, `progress.json`, and
`manifest.json`, which names format and version, and of every file its size and SHA-256. The model and its averages are
weights files with their configuration, so each of them can be sampled. It holds no state of a random generator, for
nothing random depends on one: whatever is drawn is derived from (seed, step, position of the image, rank).
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench import progress
from adm_bench.disk import room_for
from adm_bench.errors import InputError
from adm_bench.files import (
    atomic_path,
    file_sha256,
    fingerprint,
    flush,
    remove_folder,
    remove_partial,
    write_json,
)
from adm_bench.places import MANIFEST_FILE
from generators.unet.checkpoint import WeightsHeader, read_header, write_weights

FORMAT, VERSION = "adm-bench checkpoint", 1
PROGRESS_FILE = "progress.json"
TENSORS_SUFFIX = ".safetensors"
STEP_NAME = re.compile(r"step_(\d{8,})")
ASIDE = "damaged_"
WEIGHTS_GROUP = re.compile(r"model|ema(_.+)?")
HEADER_BYTES = 2**13
"""Room for what a file says of itself, a configuration for instance, beside what it says of each tensor."""
TENSOR_HEADER_BYTES = 2**8
KEPT = 3
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What JSON of another shape than ours leads to."""

State = Mapping[str, Mapping[str, Tensor]]


class DamagedError(Exception):
    """Why a checkpoint is not whole."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    step: int
    """Steps that are done."""
    progress: Mapping[str, Any]
    """What `Checkpoints.save` was given."""
    groups: tuple[str, ...]
    """Names of the groups of its state."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The state as `generators.protocol.Trainable.load_state` takes it, on the CPU."""
        return {group: load_file(self.folder / f"{group}{TENSORS_SUFFIX}") for group in self.groups}

    def header(self) -> WeightsHeader:
        """Kind and configuration of its weights."""
        return read_header(self.folder / f"model{TENSORS_SUFFIX}")


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, all of its files compared with their sizes and digests.

    DamagedError where it is not whole, InputError where a newer version wrote it or where it must not be read.
    """
    try:
        files = _read_manifest(folder)
        for name, entry in files.items():
            found = (folder / name).stat().st_size
            if found != entry["bytes"]:
                raise DamagedError(f"{name} has {found} bytes, expected {entry['bytes']}")
        for name, entry in files.items():
            if file_sha256(folder / name) != entry["sha256"]:
                raise DamagedError(f"{name} is not what was written: its digest has changed")
        reached = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        step = int(reached.pop("step"))
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); allow it, or use another run"
        ) from error
    except OSError as error:
        raise DamagedError(f"cannot be read ({error.strerror})") from error
    except MALFORMED as error:
        raise DamagedError(f"{MANIFEST_FILE} or {PROGRESS_FILE} cannot be understood") from error
    if folder.name != step_name(step):
        raise DamagedError(f"is of step {step}; somebody has renamed it")
    groups = tuple(sorted(name.removesuffix(TENSORS_SUFFIX) for name in files if name != PROGRESS_FILE))
    return Checkpoint(folder=folder, step=step, progress=reached, groups=groups)


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of each file. Any version's manifest states its format, and the digest of all the rest of it."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if manifest.pop("sha256") != fingerprint(manifest):
        raise DamagedError(f"{MANIFEST_FILE} is not what was written: its digest has changed")
    name, _, version = str(manifest["format"]).rpartition(" ")
    if name == FORMAT and version.isdigit() and int(version) > VERSION:
        raise InputError(
            f"{folder}: is of format '{manifest['format']}', and this version reads up to '{FORMAT} {VERSION}'; "
            "update adm-bench, or choose another --out"
        )
    files: dict[str, dict[str, Any]] = manifest["files"]
    if name != FORMAT or any(Path(file).name != file for file in files):
        raise DamagedError(f"{MANIFEST_FILE} is no checkpoint's")
    return files


def step_name(step: int) -> str:
    """What the folder of a checkpoint is called."""
    return f"step_{step:08d}"


def _step_of(folder: Path) -> int:
    found = STEP_NAME.fullmatch(folder.name.removeprefix(ASIDE))
    return int(found[1]) if found else -1


class Checkpoints:
    """The checkpoints in a folder, for one process that writes."""

    def __init__(self, folder: Path, keep: int = KEPT, keep_every: int | None = None) -> None:
        """`keep` newest ones stay, and for ever those whose step `keep_every` divides."""
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise InputError(f"keep is {keep} and keep_every {keep_every}; expected 1 or more, or no keep_every")
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every

    def save(self, step: int, state: State, progress: Mapping[str, Any], header: WeightsHeader) -> Path:
        """Write a checkpoint after `step` steps, then remove old ones; `progress` is whatever JSON the loop needs.

        One that is already there is left if it is whole, for the same step has the same state, and replaced if
        not. InputError where the disk is full: then all earlier ones are as they were.
        """
        folder = self.folder / step_name(step)
        remove_partial(self.folder)
        if folder.exists():
            try:
                verified(folder)
            except DamagedError:
                _set_aside(folder)
            else:
                return folder
        tensors = [tensor for group in state.values() for tensor in group.values()]
        content = sum(tensor.numel() * tensor.itemsize + TENSOR_HEADER_BYTES for tensor in tensors)
        with self.room(content + HEADER_BYTES * (len(state) + 2)), atomic_path(folder) as partial:
            partial.mkdir()
            _write(partial, state, {**progress, "step": step}, header)
        self._prune(step)
        return folder

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Damaged ones that are newer are moved aside, and said. InputError where all are damaged, which are left.
        """
        checkpoint, damaged = self.search()
        if checkpoint is not None and damaged:
            for folder in damaged:
                _set_aside(folder)
            progress.say(
                f"{self.folder}: damaged: {_reasons(damaged)}; moved to {ASIDE}..., going on from "
                f"{checkpoint.folder.name}, the one before"
            )
        return checkpoint

    def search(self) -> tuple[Checkpoint | None, dict[Path, str]]:
        """As `newest`, and why newer ones are damaged; nothing is moved or said."""
        damaged: dict[Path, str] = {}
        for folder in reversed(self.list()):
            try:
                return verified(folder), damaged
            except DamagedError as error:
                damaged[folder] = str(error)
        if damaged:
            raise InputError(
                f"{self.folder}: no checkpoint is whole ({_reasons(damaged)}); put one back from a copy, or remove "
                "the folder to begin from the start"
            )
        return None, {}

    def of(self, step: int) -> Checkpoint:
        """The one of a step, which another process has found whole; InputError where this one does not."""
        folder = self.folder / step_name(step)
        try:
            return verified(folder)
        except DamagedError as error:
            raise InputError(
                f"{folder}: is whole for the first process, but not on {platform.node()} ({error}); give an --out that "
                "all machines share"
            ) from error

    def room(self, num_bytes: int = 0) -> AbstractContextManager[None]:
        """For what the run writes beside them too: InputError where the disk is full, naming what is safe."""
        kept = self.list()
        safe = f"last checkpoint {kept[-1].name} is intact" if kept else "there is no checkpoint yet"
        return room_for(self.folder, num_bytes, safe)

    def _prune(self, newest: int) -> None:
        """Remove what the policy does not keep, now that the one of step `newest` is safe."""
        old = [folder for folder in self.list()[: -self.keep] if not self._is_kept_for_ever(_step_of(folder))]
        old = [folder for folder in old if _step_of(folder) != newest]  # the only one that is known to be whole
        old += [folder for folder in self.folder.glob(f"{ASIDE}step_*") if _step_of(folder) <= newest]
        for folder in old:
            remove_folder(folder)

    def _is_kept_for_ever(self, step: int) -> bool:
        return self.keep_every is not None and step % self.keep_every == 0

    def list(self) -> tuple[Path, ...]:
        """Their folders, oldest first, not verified."""
        found = (folder for folder in self.folder.glob("step_*") if STEP_NAME.fullmatch(folder.name))
        return tuple(sorted(found, key=_step_of))


def _write(folder: Path, state: State, reached: Mapping[str, Any], header: WeightsHeader) -> None:
    """The files of a checkpoint; while one is written, the one before is read for its digest and flushed."""
    sealed: dict[str, Future[dict[str, Any]]] = {}
    with ThreadPoolExecutor(1) as pool:
        for group, tensors in state.items():
            path = folder / f"{group}{TENSORS_SUFFIX}"
            if WEIGHTS_GROUP.fullmatch(group):
                write_weights(path, header, tensors)
            else:
                save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
            sealed[path.name] = pool.submit(_seal, path)
        write_json(folder / PROGRESS_FILE, reached)
        sealed[PROGRESS_FILE] = pool.submit(_seal, folder / PROGRESS_FILE)
        files = {name: entry.result() for name, entry in sealed.items()}
    manifest = {"format": f"{FORMAT} {VERSION}", "files": files}
    write_json(folder / MANIFEST_FILE, {**manifest, "sha256": fingerprint(manifest)})


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": digest}


def _set_aside(folder: Path) -> None:
    """Give a damaged checkpoint another name, until one of that step or a later one is saved."""
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    if aside.exists():
        remove_folder(aside)
    folder.rename(aside)


def _reasons(damaged: Mapping[Path, str]) -> str:
    return "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
