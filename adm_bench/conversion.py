"""From weights of OpenAI's form to ours, and back: the same values bit for bit, only their wrapping changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path, check_new_file, file_sha256
from generators.adm.config import NetworkConfig, kind_of
from generators.adm.networks import build_network, config_for, require_config_fits
from generators.adm.presets import preset
from generators.configuration import to_mapping, with_changes
from generators.unet.checkpoint import (
    WeightsFile,
    WeightsHeader,
    describe,
    read_tensors,
    shapes_of,
    write_openai_weights,
    write_weights,
)

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
    with atomic_path(out) as temporary:
        if out.suffix == OURS:
            write_weights(temporary, WeightsHeader(kind=kind_of(config), config=to_mapping(config)), tensors)
        else:
            with torch.device("meta"):
                order = shapes_of(build_network(config))
            write_openai_weights(temporary, {name: tensors[name] for name in order})
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
