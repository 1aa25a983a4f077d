"""From files of OpenAI's form to ours, and back: the same values bit for bit, only their wrapping changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adm_bench import progress
from adm_bench.checkpoints import Checkpoint, DamagedError, verified
from adm_bench.disk import room_for
from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path, check_new_file, check_writable, file_sha256
from adm_bench.places import MANIFEST_FILE, RUN_FILE
from adm_bench.runs import TrainingRun
from generators.adm.config import KINDS, NetworkConfig, kind_of
from generators.adm.networks import build_network, config_for, load_weights, require_config_fits
from generators.adm.presets import preset
from generators.configuration import from_mapping, to_mapping, unknown_name, with_changes
from generators.protocol import Trainable
from generators.training.network_trainer import learning_rate_at
from generators.unet.checkpoint import (
    Shapes,
    WeightsFile,
    WeightsHeader,
    describe,
    read_tensors,
    shapes_of,
    write_openai_weights,
    write_weights,
)
from generators.unet.openai_training import TRAINING_NAME, AdamState, openai_name, read_adam_state, write_optimizer

OURS, OPENAI = ".safetensors", ".pt"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion wrote."""

    kind: str
    """Name in `KINDS` of the network that the weights are of."""
    num_tensors: int
    num_parameters: int
    sha256: str
    """Of the file written."""


def convert(
    source: Path,
    out: Path,
    *,
    preset_name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the weights at `source` to `out`, whose suffix says which form they get.

    The configuration inside a `.safetensors` is the preset's that the `.pt` was released as, or the named one
    with dotted fields changed. InputError where that does not fit, or where there is nothing to convert.
    """
    check_new_file(out, overwrite=overwrite, inputs=[source])
    with bad_input(source):
        file = describe(source)
    found = OPENAI if file.header is None else OURS
    if out.suffix not in (OURS, OPENAI) or out.suffix == found:
        raise InputError(
            f"{out}: {source} is of the form {found}; give the converted file a name that ends in "
            f"{OURS if found == OPENAI else OPENAI}"
        )
    config = _configuration(file, preset_name, changes or {})
    tensors = dict(read_tensors(source))
    with room_for(out.parent, source.stat().st_size), atomic_path(out) as temporary:
        if out.suffix == OURS:
            write_weights(temporary, WeightsHeader(kind=kind_of(config), config=to_mapping(config)), tensors)
        else:
            write_openai_weights(temporary, {name: tensors[name] for name in _order(config)})
    return Conversion(
        kind=kind_of(config),
        num_tensors=len(file.shapes),
        num_parameters=file.num_parameters,
        sha256=file_sha256(out),
    )


def _configuration(file: WeightsFile, preset_name: str | None, changes: Mapping[str, Any]) -> NetworkConfig:
    if preset_name is not None:
        with bad_input("--preset"):
            preset(preset_name)
    if not changes:
        with bad_input(file.path):
            config = config_for(file.path, preset_name)
            require_config_fits(file, config)
            return config
    if file.header is not None:
        raise InputError(f"--set: {file.path} carries its own configuration; leave --set away")
    if preset_name is None:
        raise InputError("--set: changes the configuration of a preset; name one with --preset")
    with bad_input("--set"):
        changed = with_changes(preset(preset_name).config, changes)
    with bad_input(file.path):
        require_config_fits(file, changed)
    return changed


def _order(config: NetworkConfig) -> Shapes:
    """Names and shapes of a network's tensors, all of them parameters, in the reference's order."""
    with torch.device("meta"):
        return shapes_of(build_network(config))


def write_openai_training(source: Path, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a checkpoint, or the newest whole one of a run, as the files of guided-diffusion's training.

    `modelNNNNNN.pt`, `ema_RATE_NNNNNN.pt` for every average, `optNNNNNN.pt`. N is the number of steps done, as the
    reference names the files at the end of a run: it then goes on with the very next step. (Its periodic files
    have one less in their names, and it repeats a step's number after those.) InputError where there is none.
    """
    checkpoint = _find_checkpoint(source)
    state, header = checkpoint.state(), checkpoint.header()
    with bad_input(checkpoint.folder):
        if header.kind not in KINDS:
            raise ValueError(unknown_name("kind of weights", header.kind, KINDS))
        config = from_mapping(KINDS[header.kind], header.config)
        order = _order(config)
        for group in ("model", "exp_avg", "exp_avg_sq"):
            if {name: tuple(tensor.shape) for name, tensor in state.get(group, {}).items()} != order:
                raise ValueError(f"group '{group}' is not of the network that its configuration describes")
    averages = [group for group in state if group.startswith("ema_")]
    paths = {group: out / openai_name(group, checkpoint.step) for group in ("opt", *averages, "model")}
    for path in paths.values():
        check_new_file(path, overwrite=overwrite)
    check_writable(out)
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensors in state.values() for tensor in tensors.values())
    with room_for(out, num_bytes):
        for group, path in paths.items():  # last the model's, by which training goes on
            with atomic_path(path) as temporary:
                if group == "opt":
                    rate = learning_rate_at(config.training, checkpoint.step)
                    write_optimizer(temporary, _adam_state(state), order, rate, config.training.weight_decay)
                else:
                    write_openai_weights(temporary, {name: state[group][name] for name in order})
    return list(paths.values())


def _find_checkpoint(source: Path) -> Checkpoint:
    if (source / MANIFEST_FILE).exists():
        try:
            return verified(source)
        except DamagedError as error:
            raise InputError(f"{source}: damaged checkpoint ({error}); give another one") from error
    if not (source / RUN_FILE).exists():
        raise InputError(f"{source}: is neither a training run nor a checkpoint; --out takes one of these")
    found, damaged = TrainingRun(source).checkpoints.search()
    if found is None:
        raise InputError(f"{source}: the run has no checkpoint yet; repeat its train command first")
    for folder, reason in damaged.items():
        progress.say(f"{folder}: damaged ({reason}); taking {found.folder.name}, the one before")
    return found


def _adam_state(state: Mapping[str, Mapping[str, Tensor]]) -> AdamState:
    updates = int(state["counters"]["optimizer_steps"].item())
    return AdamState(updates=updates, exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


def state_from_openai(
    path: Path, config: NetworkConfig, *, model_only: bool = False
) -> tuple[dict[str, dict[str, Tensor]], int]:
    """What guided-diffusion's training left, as groups of a trainer's state, and the number of steps it has done.

    `path` is its `modelNNNNNN.pt`: averages and optimizer come from `ema_RATE_NNNNNN.pt`, for every rate of
    `config`, and `optNNNNNN.pt` beside it, and the number is the optimizer's own, for the one in the names is
    sometimes one less. A file of another name, or of ours, is weights to begin with, as is any under `model_only`:
    averages start there, the optimizer afresh, at step 0. `counters` has `optimizer_steps` alone. InputError where
    a file is missing or of another network.
    """
    order = _order(config)
    name = TRAINING_NAME.fullmatch(path.name)
    groups = {"model": _read_group(path, config)}
    averages = [f"ema_{rate}" for rate in (config.training.ema_rate, *config.training.further_ema_rates) if rate]
    if model_only or name is None or not name["raw"]:
        zeros = {tensor: torch.zeros(shape) for tensor, shape in order.items()}
        adam = AdamState(updates=0, exp_avg=zeros, exp_avg_sq=zeros)
        groups |= dict.fromkeys(averages, groups["model"])
    else:
        beside = {group: path.with_name(openai_name(group, int(name["step"]))) for group in ("opt", *averages)}
        _require_files(path, beside)
        with bad_input(beside["opt"]):
            adam = read_adam_state(beside["opt"], order)
        groups |= {group: _read_group(beside[group], config) for group in averages}
    groups |= {"exp_avg": dict(adam.exp_avg), "exp_avg_sq": dict(adam.exp_avg_sq)}
    groups["counters"] = {"optimizer_steps": torch.tensor(float(adam.updates))}
    return groups, adam.updates


def _read_group(path: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors of a weights file, in float32; InputError where it is not of the configured network."""
    with torch.device("meta"):
        network = build_network(config)
    with bad_input(path):
        load_weights(network, path)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _require_files(path: Path, beside: Mapping[str, Path]) -> None:
    missing = [file.name for file in beside.values() if not file.is_file()]
    if not missing:
        return
    step = path.name.removeprefix("model")
    found = sorted(file.name for file in path.parent.glob(f"ema_*_{step}"))
    others = f" (found {', '.join(found)}: training.ema_rate decides which are read)" if found else ""
    raise InputError(
        f"{path}: {', '.join(missing)} of the same step {'is' if len(missing) == 1 else 'are'} not beside it{others}; "
        "put them there, or give the model alone another name to begin with its weights"
    )


def begin_from(trainer: Trainable, path: Path, config: NetworkConfig, *, model_only: bool = False) -> int:
    """Let a fresh trainer go on from what `state_from_openai` reads; returns the number of steps done. Collective.

    What those files do not have (loss scale, what a timestep sampler has learned) stays fresh.
    """
    found, step = state_from_openai(path, config, model_only=model_only)
    with bad_input(path):
        trainer.load_state({group: {**fresh, **found.get(group, {})} for group, fresh in trainer.state().items()})
    return step
