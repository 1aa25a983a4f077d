"""What a file or a folder of ours, or of OpenAI's format, is."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from adm_bench import registry
from adm_bench.checkpoints import DamagedError, verified
from adm_bench.errors import InputError, bad_input
from adm_bench.files import file_sha256, read_json
from adm_bench.images.labels import LabelSource
from adm_bench.images.lmdb_store import is_lmdb
from adm_bench.images.npz import NpzFile
from adm_bench.images.sources import KINDS, find, open_dataset
from adm_bench.images.stores import NoImagesError, Store
from adm_bench.images.tar_store import PACKED_SUFFIXES, SUFFIX, is_pattern
from adm_bench.places import MANIFEST_FILE, RUN_FILE, SUITE_FILE
from adm_bench.references import PICKLES, why_not_pickles
from adm_bench.reporting import RECORDS_FILE
from adm_bench.runs import TrainingRun
from adm_bench.survey import images_serve, survey_arrays, survey_npz, survey_shards, survey_store
from generators.adm.networks import fitting_presets
from generators.unet.checkpoint import OptimizerFile, WeightsFile, describe, read_optimizer
from generators.unet.openai_training import TRAINING_NAME

WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")


def inspect(path: Path, size: int | None = None, labels: LabelSource = "auto") -> dict[str, Any]:
    """What is at a path, or a data set of that name is, as plain data; InputError where nothing known is.

    `size` is the side that images are wanted in, `labels` where their classes are read from.
    """
    if str(path) in registry.rows("datasets") and not path.exists():
        dataset = open_dataset(str(path), size)
        return {
            "what": "data set",
            **survey_arrays(dataset, size),
            "serves": images_serve(len(dataset)),
        }
    if path.is_dir() and not is_lmdb(path):
        return _inspect_folder(path, size, labels)
    if path.suffix == ".npz":
        return survey_npz(path, size)
    if path.suffix not in WEIGHTS_SUFFIXES:
        if path.suffix in PICKLES and path.is_file():
            raise InputError(why_not_pickles(path))
        if not _holds_images(path):
            expected = f"{KINDS}, weights ({', '.join(WEIGHTS_SUFFIXES)}), or the folder of a run"
            found = "not known here" if path.exists() else "no such file or folder"
            raise InputError(f"{path}: {found}; expected {expected}")
        return _images(find(path), path, size, labels)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with bad_input(path):
        optimizer = read_optimizer(path)
        if optimizer is not None:
            return _optimizer(path, optimizer)
        return _weights(describe(path))


def _holds_images(path: Path) -> bool:
    """Whether a file is an archive or an LMDB, or a pattern of tar files."""
    if not path.exists():
        return is_pattern(path)
    return is_lmdb(path) or path.name.lower().endswith((SUFFIX, *PACKED_SUFFIXES)) or zipfile.is_zipfile(path)


def _inspect_folder(path: Path, size: int | None, labels: LabelSource) -> dict[str, Any]:
    if (path / RUN_FILE).exists():
        return _training_run(TrainingRun(path))
    if (path / MANIFEST_FILE).exists():
        return _checkpoint(path)
    if (path / SUITE_FILE).exists():
        stages = {file.stem: read_json(file)["finished"] for file in sorted((path / "stages").glob("*.json"))}
        finished = (path / RECORDS_FILE).exists()
        return {"what": "suite run", "finished": finished, "stages": stages, "suite": read_json(path / SUITE_FILE)}
    try:
        found = find(path)
    except NoImagesError as error:
        raise InputError(
            f"{path}: the folder is neither a training run nor a suite run, and holds no images"
        ) from error
    return _images(found, path, size, labels)


def _training_run(run: TrainingRun) -> dict[str, Any]:
    plan = read_json(run.folder / RUN_FILE)
    result = read_json(run.result) if run.result.exists() else None
    checkpoints = {folder.name: _in_a_line(folder) for folder in run.checkpoints.list()}
    return {"what": "training run", **plan, "checkpoints": checkpoints, "result": result}


def _in_a_line(folder: Path) -> str:
    """A checkpoint's kind and whether it is whole, which reads all of it."""
    try:
        found = verified(folder)
    except DamagedError as error:
        return f"damaged: {error}"
    return f"step {found.step}, kind {found.header().kind}, digests ok"


def _checkpoint(folder: Path) -> dict[str, Any]:
    what = "checkpoint of a training run"
    try:
        found = verified(folder)
    except DamagedError as error:
        return {"what": what, "digests": f"damaged: {error}"}
    header = found.header()
    return {
        "what": what,
        "step": found.step,
        "kind": header.kind,
        "digests": "ok",
        "groups": list(found.groups),
        "progress": dict(found.progress),
        "config": dict(header.config),
    }


def _images(found: Store | list[NpzFile], path: Path, size: int | None, labels: LabelSource) -> dict[str, Any]:
    if isinstance(found, list):
        return survey_shards(path, found, size)
    return {"what": f"images in {found.kind}", **survey_store(found, size, labels)}


def _weights(file: WeightsFile) -> dict[str, Any]:
    found: dict[str, Any] = {
        "what": "weights" if file.header is not None else "weights, OpenAI's format",
        "sha256": file_sha256(file.path),
        "parameters": file.num_parameters,
        "tensors": len(file.shapes),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for dtype in file.dtypes.values())),
        "stored_in_16_bits": round(file.half_precision_share, 4),
    }
    if file.header is not None:
        return found | {"kind": file.header.kind, "config": dict(file.header.config)}
    return found | {
        "presets": fitting_presets(file.shapes),
        "weights": _averaging(file.path),
        "step": _step(file.path),
    }


def _averaging(path: Path) -> str:
    """Whether weights are averaged, by the name that OpenAI's training gives a file; of released ones nobody knows."""
    name = TRAINING_NAME.fullmatch(path.name)
    if name is None or not (name["raw"] or name["rate"]):
        return "not said by the file"
    return "raw" if name["raw"] else f"EMA, rate {name['rate']}"


def _optimizer(path: Path, optimizer: OptimizerFile) -> dict[str, Any]:
    return {
        "what": "state of an optimizer, OpenAI's format",
        "sha256": file_sha256(path),
        "parameters": optimizer.num_parameters,
        "tensors": optimizer.num_tensors,
        "updates": optimizer.updates,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "step": _step(path),
    }


def _step(path: Path) -> int | None:
    """The step in the name that OpenAI's training gives a file."""
    name = TRAINING_NAME.fullmatch(path.name)
    return None if name is None else int(name["step"])
