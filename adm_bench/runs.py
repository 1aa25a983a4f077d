"""The folder of a training run: what it is, its checkpoints, and the rules of going on with it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench.errors import InputError
from adm_bench.files import (
    atomic_path,
    check_writable,
    is_foreign,
    read_json,
    remove_partial,
    sole_user,
    write_json,
)

RUN_FILE = "run.json"
WEIGHTS_FILE = "weights.safetensors"
RESULT_FILE = "result.json"
LOG_FILE = "log.jsonl"
CHECKPOINTS = "checkpoints"
CHECKPOINTS_KEPT = 2
LONGEST_VALUE = 40


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Each place in which two pieces of plain data differ, as `key: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{where}.{key}")]
    if old == new:
        return []
    return [f"{where.removeprefix('.')}: {_shortened(old)} -> {_shortened(new)}"]


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


class TrainingRun:
    """A folder that holds one training run, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / WEIGHTS_FILE
        self.result = folder / RESULT_FILE
        self.log = folder / LOG_FILE

    @contextmanager
    def opened(self, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Start the run that `plan` describes, or go on with it, as the folder's only user.

        InputError where the folder holds something else, or a run of another plan; `overwrite` deletes
        such a run, or a finished one, but never files that are not a run's.
        """
        description = self.folder / RUN_FILE
        if not description.exists() and self._foreign():
            raise InputError(f"{self.folder}: exists and is no training run; choose another --out")
        check_writable(self.folder)
        with sole_user(self.folder):
            if description.exists():
                changed = differences(read_json(description), plan)
                if overwrite and (changed or self.result.exists()):
                    self._clear()
                elif changed:
                    raise InputError(
                        f"{self.folder}: holds a run that differs ({'; '.join(changed[:3])}); choose another --out, "
                        "repeat that run's settings to go on with it, or pass --overwrite"
                    )
            if not description.exists():
                write_json(description, plan)
            remove_partial(self.folder)
            yield

    def _foreign(self) -> bool:
        """Whether the place is taken by anything but what an interrupted start leaves."""
        if not self.folder.is_dir():
            return self.folder.exists()
        return any(map(is_foreign, self.folder.iterdir()))

    def _clear(self) -> None:
        if (self.folder / CHECKPOINTS).exists():
            shutil.rmtree(self.folder / CHECKPOINTS)
        for path in (self.weights, self.result, self.log, self.folder / RUN_FILE):  # last what says that it is a run
            path.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, oldest first."""
        return sorted((self.folder / CHECKPOINTS).glob("step_*"))

    def save(self, step: int, state: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint: `step` steps are done; the oldest ones are removed."""
        with atomic_path(self.folder / CHECKPOINTS / f"step_{step:08d}") as folder:
            folder.mkdir(parents=True)
            for group, tensors in state.items():
                whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
                save_file(whole, folder / f"{group}.safetensors")
            write_json(folder / "progress.json", {"step": step, **progress})
        remove_partial(self.folder / CHECKPOINTS)
        for old in self.checkpoints()[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)

    def latest(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest checkpoint's state and progress, or None; InputError where it is damaged."""
        found = self.checkpoints()
        if not found:
            return None
        try:
            state = {file.stem: load_file(file) for file in sorted(found[-1].glob("*.safetensors"))}
            reached = read_json(found[-1] / "progress.json")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{found[-1]}: damaged checkpoint ({error}); remove that folder to go on from the one before"
            ) from error
        return state, reached


def find_weights(path: Path, option: str) -> Path:
    """A weights file from its own path or from the folder of the run that made it; InputError otherwise."""
    if path.is_dir():
        if not (path / RUN_FILE).exists():
            raise InputError(f"{option} {path}: is no training run; expected a run's folder or a weights file")
        if not (path / WEIGHTS_FILE).exists():
            raise InputError(f"{option} {path}: the run has not finished; repeat its train command to go on with it")
        return path / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file or run; train one with adm-bench train")
    return path
