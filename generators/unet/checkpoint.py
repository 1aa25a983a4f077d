"""Weights files: our own (safetensors with the configuration inside) and those of OpenAI's form (`.pt`, tensors alone).

A file is what its content is, not what its suffix says. Nothing in it is ever run.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from generators.configuration import from_mapping, to_mapping
from generators.unet.config import EncoderConfig
from generators.unet.encoder import Encoder

FORMAT = "adm-bench weights 1"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ZIP_START = b"PK\x03\x04"
OLD_TORCH_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # before PyTorch 1.6: five pickles in a row
DIFFERENCES_SHOWN = 3
# What torch.load raises on damaged files, beside UnpicklingError: its pickle machine trusts what it reads.
DAMAGE = (RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, AssertionError)

FileFormat = Literal["safetensors", "torch"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """What a weights file says of itself."""

    kind: str
    """The trainer that made it, such as `adm` or `classifier`."""
    config: Mapping[str, Any]
    """That trainer's configuration, as plain data."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What is in a weights file, without its tensors' values."""

    path: Path
    header: WeightsHeader | None
    """None for files of OpenAI's form, which do not say what network they are of."""
    shapes: Shapes
    """Shape of each tensor, in the file's order."""
    dtypes: Mapping[str, torch.dtype]

    @property
    def num_parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(map(_size, self.shapes.values()))

    @property
    def half_precision_share(self) -> float:
        """Share of the parameters that are stored in 16 bits, 0 to 1."""
        narrow = sum(_size(shape) for name, shape in self.shapes.items() if self.dtypes[name].itemsize == 2)
        return narrow / max(1, self.num_parameters)


@dataclass(frozen=True, kw_only=True)
class OptimizerFile:
    """What is in a file of optimizer state, as OpenAI's training writes one beside its weights."""

    updates: int
    learning_rate: float
    weight_decay: float
    num_tensors: int
    """Tensors that are optimized; two flat ones where OpenAI's training kept half-precision weights."""
    num_parameters: int


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def write_weights(path: Path, header: WeightsHeader, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their configuration to a safetensors file."""
    # One entry: safetensors writes several in no particular order, and equal weights would make unequal files.
    metadata = {FORMAT: json.dumps({"kind": header.kind, "config": header.config})}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata)


def write_openai_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors alone, in their order, to a file of OpenAI's form: a dict by name, as `torch.save` keeps it."""
    with path.open("wb") as file:  # a path's name would become part of the content
        torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)


def file_format(path: Path) -> FileFormat:
    """The form of a weights file by its first bytes; ValueError where it is none."""
    try:
        with path.open("rb") as file:
            start = file.read(max(len(OLD_TORCH_START), 9))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a weights file") from None
    if start[8:9] == b"{":  # a header's length in eight bytes, then JSON
        return "safetensors"
    if start.startswith((ZIP_START, OLD_TORCH_START)):
        return "torch"
    found = "an empty file" if not start else f"a file that begins with {start[:4]!r}"
    raise ValueError(
        f"{path}: no weights, or perhaps truncated; found {found}, expected safetensors or a .pt of torch.save"
    )


def read_header(path: Path) -> WeightsHeader:
    """A safetensors file's header, without its tensors; ValueError where it is none, or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file, perhaps truncated ({error})") from None
    if FORMAT not in metadata:
        found = ", ".join(metadata) or "nothing"
        raise ValueError(f"{path}: no weights of ours; its header names {found}, expected {FORMAT!r}")
    try:
        content = json.loads(metadata[FORMAT])
        return WeightsHeader(kind=content["kind"], config=dict(content["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its header is damaged ({error}); make the file anew") from None


def describe(path: Path) -> WeightsFile:
    """What a weights file holds; ValueError, in one line, where it is none or holds anything but weights.

    Tensors are not read, but for `.pt` files from before PyTorch 1.6, whose form leaves no choice.
    """
    if file_format(path) == "safetensors":
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            stored = {name: part.get_dtype() for name, part in slices.items()}
        dtypes = {name: _checked_dtype(path, name, code, DTYPES.get(code)) for name, code in stored.items()}
        return WeightsFile(path=path, header=header, shapes=shapes, dtypes=dtypes)
    tensors = _read_torch_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return WeightsFile(path=path, header=None, shapes=shapes, dtypes=dtypes)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor of a weights file, in its order, mapped from the file as they are used."""
    if file_format(path) == "torch":
        yield from _read_torch_weights(path).items()
        return
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  no mapping
            yield name, file.get_tensor(name)


def read_optimizer(path: Path) -> OptimizerFile | None:
    """What a file of optimizer state holds; None where the file is another. ValueError where it is unreadable."""
    content: Any = load_torch(path) if file_format(path) == "torch" else None
    if not is_optimizer(content):
        return None
    slots = [slot for slot in content["state"].values() if isinstance(slot, dict)]
    groups = [group for group in content["param_groups"] if isinstance(group, dict)]
    moments = [slot["exp_avg"] for slot in slots if isinstance(slot.get("exp_avg"), Tensor)]
    return OptimizerFile(
        updates=int(max((slot.get("step", 0) for slot in slots), default=0)),
        learning_rate=float(groups[0].get("lr", 0)) if groups else 0.0,
        weight_decay=float(groups[0].get("weight_decay", 0)) if groups else 0.0,
        num_tensors=len(slots),
        num_parameters=sum(moment.numel() for moment in moments),
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network, which may still be on the meta device, with a file's weights, converted to its types.

    ValueError naming the first differences where names or shapes are not the network's, or where the file says
    that it is of a network that computes otherwise. OpenAI's form says nothing: of its released files,
    `generators.adm.networks.load_weights` knows it all the same.
    """
    file = describe(path)
    require_fit(file, shapes_of(network))
    if file.header is not None and isinstance(network, Encoder):
        differing = function_differences(_model_table(file, network.encoder_config), network.encoder_config)
        if differing:
            raise ValueError(f"{path}: is of a network with {differing}; build the network with these values")
    if any(parameter.is_meta for parameter in network.parameters()):
        network.to_empty(device="cpu")
    destination = network.state_dict()
    with torch.no_grad():
        for name, tensor in read_tensors(path):
            destination[name].copy_(tensor)


def shapes_of(network: nn.Module) -> Shapes:
    """Shape of each of a network's tensors, in the order of OpenAI's files."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def tensors_digest(shapes: Shapes) -> str:
    """SHA-256 of names and shapes in any order, which is the same for every checkpoint of one network."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_fit(file: WeightsFile, wanted: Shapes, resembles: str = "") -> None:
    """ValueError naming the first differences unless a file's names and shapes are the wanted ones."""
    unexpected = [name for name in file.shapes if name not in wanted]
    different = [name for name in wanted if file.shapes.get(name) != wanted[name]] + unexpected
    if not different:
        return
    said = []
    for name in different[:DIFFERENCES_SHOWN]:
        if name not in file.shapes:
            said.append(f"{name} is missing")
        elif name not in wanted:
            said.append(f"{name} is not expected")
        else:
            said.append(f"{name} is {_text(file.shapes[name])}, expected {_text(wanted[name])}")
    more = len(different) - len(said)
    rest = f" and {more} more" if more else ""
    hint = f"; the file looks like {resembles}" if resembles else "; give the configuration that it was trained with"
    raise ValueError(f"{file.path}: does not fit this network: {', '.join(said)}{rest}{hint}")


def function_differences(found: EncoderConfig, wanted: EncoderConfig) -> str:
    """In what networks of equal shapes compute otherwise, as "key found, not wanted"; empty where in nothing.

    Shapes show neither the order of query, key and value rows, nor the heads, nor what sides feature maps have.
    """
    theirs, ours = _function(found), _function(wanted)
    differing = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    return ", ".join(f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in differing)


def _function(config: EncoderConfig) -> dict[str, Any]:
    """The part of a configuration that decides what its network computes with given weights."""
    values = to_mapping(config)
    del values["dropout"]
    values["attention_resolutions"] = sorted(values["attention_resolutions"])
    if config.head_channels is not None:  # it decides alone
        values = {key: value for key, value in values.items() if key not in ("heads", "heads_upsample")}
    return values


def _model_table(file: WeightsFile, wanted: EncoderConfig) -> EncoderConfig:
    assert file.header is not None
    table = file.header.config.get("model")
    if not isinstance(table, Mapping):
        raise ValueError(f"{file.path}: its header has no model configuration; make the file anew")  # noqa: TRY004
    return from_mapping(type(wanted), table, f"{file.path}: model.")


def _checked_dtype(path: Path, name: str, found: object, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None or dtype not in DTYPES.values():
        raise ValueError(f"{path}: tensor {name} is of type {found}; weights are {', '.join(DTYPES)}")
    return dtype


def _read_torch_weights(path: Path) -> dict[str, Tensor]:
    content = load_torch(path)
    expected = "expected one dict of tensors by name, as OpenAI's files are"
    if is_optimizer(content):
        raise ValueError(f"{path}: holds the state of an optimizer; {expected}: give the model or ema file beside it")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; {expected}")  # noqa: TRY004  bad input
    for name, value in content.items():
        if isinstance(value, dict):
            message = f"{path}: holds weights one level down, inside {name!r}; {expected}: save that part alone"
            raise ValueError(message)  # noqa: TRY004  bad input
        if not isinstance(name, str) or not isinstance(value, Tensor):
            message = f"{path}: entry {name!r} is of type {type(value).__name__}; {expected}"
            raise ValueError(message)  # noqa: TRY004  bad input
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{path}: tensor {name} has no plain values; {expected}")
        _checked_dtype(path, name, value.dtype, value.dtype)
    if not content:
        raise ValueError(f"{path}: holds an empty dict; {expected}")
    return {name: value.detach() for name, value in content.items()}


def is_optimizer(content: Any) -> bool:
    """Whether what `load_torch` gave is the state of an optimizer."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("state"), dict)
        and isinstance(content.get("param_groups"), list)
    )


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, with tensors mapped from the file where its form allows; no code in it is run.

    ValueError, in one line, where it is unreadable or holds code.
    """
    try:
        with path.open("rb") as file:
            # By path, the only way to have a file mapped, torch.load takes some suffixes at their word.
            mapped = file.read(len(ZIP_START)) == ZIP_START and path.suffix != ".safetensors"
            file.seek(0)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ValueError(f"{path}: not a readable PyTorch file, perhaps truncated") from None
        raise ValueError(
            f"{path}: holds objects of {code[1]}, whose code is never run here; save its state_dict() instead"
        ) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(f"{path}: not a readable PyTorch file, perhaps truncated ({reason})") from None
