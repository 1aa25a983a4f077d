"""Weights of feature networks: files of tensors by name, from torch.save or safetensors. Nothing in one is ever run."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

DIFFERENCES_SHOWN = 3
COUNTER = ".num_batches_tracked"
"""Ends the names of entries that older files lack: a batch norm's count of training batches, which nothing reads."""
# What torch.load raises on damaged files, beside UnpicklingError: its pickle machine trusts what it reads.
DAMAGE = (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, AssertionError)


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal; ValueError where there is no such file."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a file of weights") from None


def with_weights(build: Callable[[], Network], path: Path | None, *, features: str, wanted: str) -> tuple[Network, str]:
    """Return a network with a file's weights and that file's SHA-256; the network is built without memory of its own.

    ValueError as of `load_strictly`, and where no file is given: it names the `features` and the file `wanted`.
    """
    if path is None:
        raise ValueError(f"features {features} need weights and found none; give {wanted}")
    digest = weights_digest(path)
    with torch.device("meta"):
        network = build()
    load_strictly(network, path)
    return network, digest


def load_strictly(network: nn.Module, path: Path) -> None:
    """Fill a network, which may be on the meta device, with a file's weights.

    ValueError, in one line, unless names, shapes and types are the network's own.
    """
    found = {name: tensor for name, tensor in _read(path).items() if not name.endswith(COUNTER)}
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
    differences = [said for name in {**wanted, **found} if (said := _difference(name, found, wanted))]
    if differences:
        more = len(differences) - DIFFERENCES_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        raise ValueError(f"{path}: is of another network: {', '.join(differences[:DIFFERENCES_SHOWN])}{rest}")
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite; is it damaged?")
    network.load_state_dict(found, strict=False, assign=True)  # strict but for the counters, by the comparison above


def _difference(name: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if name not in found:
        return f"{name} is missing"
    if name not in wanted:
        return f"{name} is not expected"
    if found[name].shape != wanted[name].shape:
        return f"{name} is {_shape(found[name])}, expected {_shape(wanted[name])}"
    if found[name].dtype != wanted[name].dtype:
        return f"{name} is {found[name].dtype}, expected {wanted[name].dtype}"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":  # a header's length in eight bytes, then JSON
            return load_file(path)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says more than the warnings before it
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a file of weights") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, whose code is never run here, or is damaged; expected a state_dict"
        ) from None
    except (SafetensorError, *DAMAGE):
        raise ValueError(
            f"{path}: not readable, perhaps truncated; expected a state_dict, by torch.save or as safetensors"
        ) from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected tensors by name, as in a state_dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{path}: entry {name!r} is no plain tensor; expected tensors by name, as in a state_dict")
    return content
