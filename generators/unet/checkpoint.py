"""Weights files: tensors and the configuration that they belong to, in one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "adm-bench weights 1"


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """What a weights file says of itself."""

    kind: str
    """The trainer that made it, such as `adm` or `classifier`."""
    config: Mapping[str, Any]
    """That trainer's configuration, as plain data."""


def write_weights(path: Path, header: WeightsHeader, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their configuration to a safetensors file."""
    metadata = {"format": FORMAT, "kind": header.kind, "config": json.dumps(header.config)}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata)


def read_header(path: Path) -> WeightsHeader:
    """A weights file's header, without its tensors; ValueError where it is none, or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file, perhaps truncated ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: no weights of ours; found format {metadata.get('format')!r}, expected {FORMAT!r}")
    try:
        return WeightsHeader(kind=metadata["kind"], config=dict(json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its header is damaged ({error}); make the file anew") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a weights file whose header has been read.

    ValueError naming the first difference where names or shapes are not the network's.
    """
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{path}: tensor {name} is {found.get(name, 'absent')}, expected {wanted.get(name, 'none')}"
                )
        network.load_state_dict({name: file.get_tensor(name) for name in found})
