"""What guided-diffusion's training writes: the names of its files, and the state of its optimizer in both forms."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generators.unet.checkpoint import Shapes, is_optimizer, load_torch

# ema_0.9999_010000.pt, model010000.pt, opt010000.pt
TRAINING_NAME = re.compile(r"(?:ema_(?P<rate>[0-9.]+)_|(?P<raw>model)|opt)(?P<step>\d{6,})\.pt")
FIRST, SECOND = "exp_avg", "exp_avg_sq"


@dataclass(frozen=True, kw_only=True)
class AdamState:
    """What AdamW keeps of its past gradients, by the names of the parameters."""

    updates: int
    """Steps that it has taken."""
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]


def openai_name(group: str, step: int) -> str:
    """The file name of `model`, of `opt`, or of an average such as `ema_0.9999`, after `step` steps."""
    return f"{group}{'_' if group.startswith('ema_') else ''}{step:06d}.pt"


def write_optimizer(path: Path, state: AdamState, order: Shapes, learning_rate: float, weight_decay: float) -> None:
    """Write an optimizer's state as `torch.optim.AdamW.state_dict` gives it, one slot a parameter, in the given order.

    What loads it, goes on with this learning rate and weight decay, whatever it was told.
    """
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in order.values()]
    content = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay).state_dict()
    content["state"] = {
        number: {
            "step": torch.tensor(float(state.updates)),
            FIRST: state.exp_avg[name].detach().cpu().clone(),
            SECOND: state.exp_avg_sq[name].detach().cpu().clone(),
        }
        for number, name in enumerate(order)
    }
    with path.open("wb") as file:  # a path's name would become part of the content
        torch.save(content, file)


def read_adam_state(path: Path, order: Shapes) -> AdamState:
    """An optimizer's state, of either form that guided-diffusion writes; `order` has its parameters' shapes in order.

    Trained in float32, it has a slot for each parameter; with `use_fp16`, one for all parameters of at most one
    dimension, joined into one of shape (n,), and one for all others, joined into (1, m). ValueError, in one line,
    where the file is another, or of another network.
    """
    content = load_torch(path)
    if not is_optimizer(content):
        raise ValueError(f"{path}: holds no state of an optimizer; expected an opt file of guided-diffusion's training")
    slots = _slots(path, content)
    updates = {_updates(slot) for slot in slots}
    if len(updates) != 1 or None in updates:
        found = ", ".join(sorted(map(str, updates))) or "none"
        raise ValueError(f"{path}: its parameters have taken different numbers of steps ({found}); expected one number")
    moments: dict[str, dict[str, Tensor]] = {}
    for moment in (FIRST, SECOND):
        tensors = [slot.get(moment) for slot in slots]
        moments[moment] = _by_name(path, moment, tensors, order)
    return AdamState(updates=updates.pop() or 0, exp_avg=moments[FIRST], exp_avg_sq=moments[SECOND])


def _slots(path: Path, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is kept of each parameter, in the optimizer's order."""
    groups = [group for group in content["param_groups"] if isinstance(group, Mapping)]
    listed = [group.get("params") for group in groups]
    numbers = [number for part in listed if isinstance(part, list) for number in part]
    found = [content["state"].get(number) for number in numbers if isinstance(number, int)]
    slots = [slot for slot in found if isinstance(slot, Mapping)]
    if not slots or len(slots) != len(numbers):
        raise ValueError(f"{path}: has state for {len(slots)} of {len(numbers)} parameters; expected all of them")
    return slots


def _updates(slot: Mapping[str, Any]) -> int | None:
    """The step count of a slot: an int as older versions of torch kept it, or a tensor."""
    value = slot.get("step")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and value >= 0 and int(value) == value else None


def _by_name(path: Path, moment: str, tensors: list[Any], order: Shapes) -> dict[str, Tensor]:
    if not all(isinstance(each, Tensor) and each.dtype == torch.float32 and not each.is_meta for each in tensors):
        raise ValueError(f"{path}: its {moment} are no tensors of float32")
    found = [tuple(each.shape) for each in tensors]
    if found == list(order.values()):
        return dict(zip(order, tensors, strict=True))
    vectors = {name: shape for name, shape in order.items() if len(shape) <= 1}
    others = {name: shape for name, shape in order.items() if len(shape) > 1}
    if found == [(_total(vectors),), (1, _total(others))]:
        parts = _split(tensors[0], vectors) | _split(tensors[1].view(-1), others)
        return {name: parts[name] for name in order}
    if len(found) != len(order):
        raise ValueError(
            f"{path}: is of a network of {len(found)} parameters, expected {len(order)}, or 2 that join them"
        )
    name, had, wanted = next((n, f, w) for (n, w), f in zip(order.items(), found, strict=True) if f != w)
    raise ValueError(f"{path}: does not fit this network: {moment} of {name} is {had}, expected {wanted}")


def _split(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """The parts of joined parameters, as views."""
    parts = torch.split(flat, [torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _total(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())
