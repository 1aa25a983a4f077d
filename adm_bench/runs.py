"""The folder of a training run: what it is, and the rules of going on with it."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from adm_bench import progress
from adm_bench.checkpoints import HEADER_BYTES, KEPT, Checkpoints
from adm_bench.errors import InputError
from adm_bench.files import (
    atomic_path,
    check_writable,
    read_json,
    remove_folder,
    remove_partial,
    sole_user,
    write_json,
    write_text,
)
from adm_bench.places import MANIFEST_FILE, RUN_FILE, what_is
from adm_bench.provenance import commit, versions
from generators.unet.checkpoint import WeightsHeader, read_header, write_weights

WEIGHTS_FILE = "weights.safetensors"
RESULT_FILE = "result.json"
LOG_FILE = "log.jsonl"
EVENTS_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"
EVALUATIONS_FILE = "evaluations.jsonl"
STARTS_FILE = "starts.jsonl"
CHECKPOINTS = "checkpoints"
SEEN_SEC = 60.0
"""After so long, a file system of many machines shows to all what one has written."""
LONGEST_VALUE = 40
TRAINING = "config.training"
LENGTH = f"{TRAINING}.steps"
HARMLESS = (
    "data.name",  # the digest says which images
    f"{TRAINING}.most_skipped",
    f"{TRAINING}.microbatch_size",
    f"{TRAINING}.recompute_activations",
    f"{TRAINING}.compile",
)
"""What of a plan may change from one start to the next: what leaves the steps the same, up to rounding.

The number of steps may too, as `TrainingRun.opened` says.
"""


def changes(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Each place in which two pieces of plain data differ, by its dotted name: what it was, and what it is."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        found = [changes(old.get(key), new.get(key), f"{where}.{key}") for key in keys]
        return {name: pair for part in found for name, pair in part.items()}
    return {} if old == new else {where.removeprefix("."): (old, new)}


def differences(old: Any, new: Any) -> list[str]:
    """Each place in which two pieces of plain data differ, as `key: old -> new`."""
    return [f"{name}: {_shortened(was)} -> {_shortened(now)}" for name, (was, now) in changes(old, new).items()]


def require_same(mine: Mapping[str, Any], firsts: Mapping[str, Any]) -> None:
    """InputError where a process was given other work than the first one; only where its data lie may differ.

    Each would train on something else, or wait for what the other never does.
    """
    found = changes(firsts, json.loads(json.dumps(mine)))
    found.pop("data.name", None)
    if found:
        named = "; ".join(f"{name}: {_shortened(was)} -> {_shortened(now)}" for name, (was, now) in found.items())
        raise InputError(
            f"has other work than the first process ({named}); give all the same command, the same data and the same "
            "version of adm-bench"
        )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


@dataclass(kw_only=True)
class Reached:
    """How far a run has come, beside its network."""

    step: int = 0
    first_step: int = 0
    """Where it began: above 0 where earlier steps were another program's."""
    training_sec: float = 0.0
    """Of steps alone: checkpoints and observations are not counted."""
    skipped_in_a_row: int = 0
    unlogged: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Totals of the steps since the last line of the log."""
    unreadable: Sequence[int] = ()
    """Indices of the images that were passed over."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished run took."""

    steps: int
    images: int
    sec: float
    images_per_sec: float
    """Over all steps; checkpoints, validation and samples on the way are not counted."""
    num_parameters: int


class TrainingRun:
    """A folder that holds one training run, and nothing else."""

    def __init__(self, folder: Path, keep: int = KEPT, keep_every: int | None = None) -> None:
        self.folder = folder
        self.weights = folder / WEIGHTS_FILE
        self.result = folder / RESULT_FILE
        self.log = folder / LOG_FILE
        self.evaluations = folder / EVALUATIONS_FILE
        self.starts = folder / STARTS_FILE
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, keep, keep_every)
        self._plan: Mapping[str, Any] = {}
        self._changed: list[str] = []

    @contextmanager
    def opened(self, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Start the run that `plan` describes, or go on with it, as the folder's only user.

        What `HARMLESS` names may have changed; so may the number of steps, to any that is not below those done,
        where the learning rate does not depend on it; a finished run is then no longer finished. InputError where
        anything else has, or where the folder holds something else; `overwrite` deletes such a run, or a
        finished one, but never files that are not a run's. A run that ended before anything was saved gives way.
        """
        marked, what = self.folder / RUN_FILE, what_is(self.folder)
        if what is not None and not marked.exists():
            raise InputError(f"{self.folder}: is no training run but {what}; choose another --out")
        check_writable(self.folder)
        with sole_user(self.folder):
            if marked.exists():  # asked only now: another program may just have been here
                self._admit(plan, overwrite=overwrite)
            if not marked.exists():
                with self.checkpoints.room():
                    write_json(marked, plan)
            check_writable(self.checkpoints.folder)  # now, and not after the first hour
            remove_partial(self.folder)
            yield

    def require_seen(self) -> None:
        """InputError where this process does not find what the first has opened, as on another machine's own disk."""
        deadline = time.monotonic() + SEEN_SEC
        while not (self.folder / RUN_FILE).exists():
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.folder}: is not where the first process writes (there is no {RUN_FILE} on "
                    f"{platform.node()}); give an --out that all machines share"
                )
            time.sleep(0.1)

    def _admit(self, plan: Mapping[str, Any], *, overwrite: bool) -> None:
        """Compare the plan with the stored one; InputError where the run cannot go on under it."""
        stored = read_json(self.folder / RUN_FILE)
        if not isinstance(stored, Mapping) or stored.get("kind") != plan["kind"]:
            raise InputError(f"{self.folder}: is no training run, though it has a {RUN_FILE}; choose another --out")
        refused = self._refused(stored, plan)
        if (overwrite and (refused or self.result.exists())) or (refused and self._has_nothing()):
            self._clear()
            return
        if stored.get("trainer") != plan.get("trainer"):
            raise InputError(
                f"{self.folder}: holds a training run of trainer '{stored.get('trainer')}', not "
                f"'{plan.get('trainer')}'; choose another --out, or pass --overwrite"
            )
        if refused:
            raise InputError(
                f"{self.folder}: holds a run that differs ({'; '.join(refused[:3])}); choose another --out, "
                "repeat that run's settings to go on with it, or pass --overwrite"
            )
        self._plan, self._changed = plan, differences(stored, plan)
        if LENGTH in changes(stored, plan):
            self.result.unlink(missing_ok=True)  # the weights stay until those of the new length replace them

    def _has_nothing(self) -> bool:
        """Whether no step was ever saved, as where training could not begin."""
        return not (self.result.exists() or self.weights.exists() or any(self.checkpoints.folder.glob("*")))

    def is_finished(self) -> bool:
        """Whether nothing is left to do; weights that are damaged are told of, to be made again."""
        if not (self.result.exists() and self.weights.exists()):
            return False
        try:
            read_header(self.weights)
        except ValueError as error:
            progress.say(f"{error}; making it again from the newest checkpoint")
            return False
        return True

    def _refused(self, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
        """The differences under which a run does not go on, each with its reason where there is a special one."""
        refused = []
        for name, (was, now) in changes(stored, plan).items():
            reason = "" if name != LENGTH else self._why_not_so_long(plan, was, now)
            if name not in HARMLESS and (name != LENGTH or reason):
                refused.append(f"{name}: {_shortened(was)} -> {_shortened(now)}{reason}")
        return refused

    def _why_not_so_long(self, plan: Mapping[str, Any], was: int, now: int) -> str:
        """Why the number of steps cannot become another; empty where it can."""
        annealing = plan["config"]["training"]["annealing"]
        if annealing != "none":
            return f", but annealing '{annealing}' depends on it"
        kept, has_ended = self.checkpoints.list(), self.result.exists()
        if has_ended and not kept:
            return f", but no checkpoint of the finished run is left in {self.checkpoints.folder}"
        done = was if has_ended else int(kept[-1].name.removeprefix("step_")) if kept else 0
        return f", but {done} are done" if now < done else ""

    def started(self, step: int, ranks: int = 1) -> None:
        """Note in the log of starts that training begins or goes on at `step`; keep the plan as it is from now on."""
        revision, dirty = commit()
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_step": step,
            "changed": self._changed,
            "command": shlex.join(sys.argv),
            "host": platform.node(),
            "ranks": ranks,
            "commit": revision,
            "dirty": dirty,
            "versions": versions(),
        }
        earlier = self.starts.read_text(encoding="utf-8") if self.starts.exists() else ""
        starts = f"{earlier}{json.dumps(line)}\n"
        with self.checkpoints.room(len(starts)):
            write_text(self.starts, starts)
            if self._changed:
                write_json(self.folder / RUN_FILE, self._plan)
        self._changed = []

    def save_weights(self, header: WeightsHeader, tensors: Mapping[str, Tensor]) -> None:
        """Write the weights that a finished run is for; InputError where the disk is full."""
        num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        with self.checkpoints.room(num_bytes + HEADER_BYTES), atomic_path(self.weights) as temporary:
            write_weights(temporary, header, tensors)

    def _clear(self) -> None:
        for folder in (self.checkpoints.folder, self.folder / EVENTS_FOLDER, self.folder / SAMPLES_FOLDER):
            if folder.exists():
                remove_folder(folder)  # at once: what stayed of it would be the next run's
        files = (self.weights, self.result, self.log, self.evaluations, self.starts)
        for path in (*files, self.folder / RUN_FILE):  # last what marks a run
            path.unlink(missing_ok=True)


def find_weights(path: Path, option: str) -> Path:
    """A weights file from its own path or from the folder of the run that made it; InputError otherwise."""
    if path.is_dir():
        if (path / MANIFEST_FILE).exists():
            raise InputError(f"{option} {path}: is a checkpoint; name a file of weights in it, as model.safetensors")
        if not (path / RUN_FILE).exists():
            raise InputError(f"{option} {path}: is no training run; expected a run's folder or a weights file")
        if not (path / WEIGHTS_FILE).exists() or not (path / RESULT_FILE).exists():
            raise InputError(f"{option} {path}: the run has not finished; repeat its train command to go on with it")
        return path / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file or run; train one with adm-bench train")
    return path
