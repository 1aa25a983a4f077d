"""What a file or a folder of ours, or of OpenAI's format, is."""

from pathlib import Path
from typing import Any

import numpy as np

from adm_bench.errors import InputError, bad_input
from adm_bench.files import file_sha256, read_json
from adm_bench.images.npz import IMAGES_KEY, NpzFile, read_identity
from adm_bench.reporting import RECORDS_FILE, SUITE_FILE
from adm_bench.runs import RESULT_FILE, RUN_FILE, TrainingRun
from generators.unet.checkpoint import read_header

BATCH_SIZE = 1024


def inspect(path: Path) -> dict[str, Any]:
    """What is at a path, as plain data; InputError where nothing known is."""
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix == ".npz":
        return _inspect_npz(path)
    if path.suffix == ".safetensors":
        return _inspect_weights(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(f"{path}: not known here; expected an npz, a safetensors file, or the folder of a run")


def _inspect_folder(path: Path) -> dict[str, Any]:
    if (path / RUN_FILE).exists():
        checkpoints = [folder.name for folder in TrainingRun(path).checkpoints()]
        result = read_json(path / RESULT_FILE) if (path / RESULT_FILE).exists() else None
        return {"what": "training run", **read_json(path / RUN_FILE), "checkpoints": checkpoints, "result": result}
    if (path / SUITE_FILE).exists():
        stages = {file.stem: read_json(file)["finished"] for file in sorted((path / "stages").glob("*.json"))}
        finished = (path / RECORDS_FILE).exists()
        return {"what": "suite run", "finished": finished, "stages": stages, "suite": read_json(path / SUITE_FILE)}
    raise InputError(f"{path}: the folder is neither a training run nor a suite run")


def _inspect_weights(path: Path) -> dict[str, Any]:
    with bad_input(path):
        header = read_header(path)
    return {"what": "weights", "sha256": file_sha256(path), "kind": header.kind, "config": dict(header.config)}


def _inspect_npz(path: Path) -> dict[str, Any]:
    file = NpzFile(path)
    kind = "reference" if "mu" in file else "samples" if IMAGES_KEY in file else "arrays"
    found: dict[str, Any] = {
        "what": kind,
        "sha256": file_sha256(path),
        "arrays": {name: f"{dtype} {shape}" for name, (shape, dtype) in file.headers.items()},
    }
    if IMAGES_KEY in file:
        low, high = 255, 0
        for images in file.batches(BATCH_SIZE):
            low, high = min(low, int(images.min())), max(high, int(images.max()))
        found["images"] = {"number": file.image_shape()[0], "size": file.image_shape()[1:], "range": [low, high]}
        labels = file.labels()
        if labels is not None:
            values, counts = np.unique(labels, return_counts=True)
            found["labels"] = {
                "sorted": bool(len(values) > 1 and (np.diff(labels) >= 0).all()),
                "histogram": dict(zip(values.tolist(), counts.tolist(), strict=True)),
            }
    return found | {"identity": read_identity(file)}
