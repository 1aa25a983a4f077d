"""Training begun by guided-diffusion goes on here, and ours there: the same numbers bit for bit, in both its forms."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adm_bench.checkpoints import Checkpoint, Checkpoints, verified
from adm_bench.conversion import begin_from, state_from_openai
from adm_bench.errors import InputError
from generators.adm.config import AdmConfig, NetworkConfig
from generators.adm.networks import build_network
from generators.adm.presets import PRESETS
from generators.adm.trainer import AdmTrainer
from generators.configuration import to_mapping, with_changes
from generators.training.network_trainer import learning_rate_at
from generators.unet.checkpoint import WeightsHeader
from generators.unet.openai_training import openai_name

Run = Callable[..., Any]
Refuse = Callable[..., str]
State = Mapping[str, Mapping[str, Tensor]]
CONFIG = with_changes(
    PRESETS["digits8"].config,
    {
        "model.num_res_blocks": 1, "model.attention_resolutions": [4], "training.ema_rate": 0.9999,
        "training.further_ema_rates": [0.999], "training.learning_rate": 2e-3, "training.weight_decay": 0.05,
    },
)  # fmt: skip
RATES = (0.9999, 0.999)


def learn(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """A step with gradients that depend on step and position alone, however parameters are joined."""
    start = 0
    for parameter in parameters:
        number = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        parameter.grad = torch.sin(number * 0.37 + step).float().view(parameter.shape)
        start += parameter.numel()
    optimizer.step()


def split(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, tensor in like.items():
        parts[name] = flat.reshape(-1)[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    return parts


def train_as_openai(folder: Path, number: int, *, steps: int, half: bool) -> dict[str, dict[str, Tensor]]:
    """Write what guided-diffusion leaves after so many steps; returns what ours must be."""
    torch.manual_seed(1)
    names = {name: tensor.detach() for name, tensor in build_network(CONFIG).state_dict().items()}
    parts = [names]
    if half:  # two master copies: what has at most one dimension, as (n,), and the rest, as (1, m)
        parts = [{n: t for n, t in names.items() if t.ndim <= 1}, {n: t for n, t in names.items() if t.ndim > 1}]
        joined = [torch.cat([tensor.flatten() for tensor in part.values()]) for part in parts]
        parameters = [nn.Parameter(joined[0]), nn.Parameter(joined[1].view(1, -1))]
    else:
        parameters = [nn.Parameter(tensor.clone()) for tensor in names.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05)
    averages = {rate: [parameter.detach().clone() for parameter in parameters] for rate in RATES}
    for step in range(steps):
        learn(parameters, optimizer, step)
        for rate, tensors in averages.items():
            for average, parameter in zip(tensors, parameters, strict=True):
                average.mul_(rate).add_(parameter.detach(), alpha=1 - rate)

    def named(values: list[Tensor]) -> dict[str, Tensor]:
        if not half:
            return dict(zip(names, values, strict=True))
        both = split(values[0], parts[0]) | split(values[1], parts[1])
        return {name: both[name] for name in names}

    slots = [optimizer.state[parameter] for parameter in parameters]
    state = {"model": named([p.detach() for p in parameters])} | {f"ema_{r}": named(a) for r, a in averages.items()}
    for group, tensors in state.items():
        prefix = group if group == "model" else f"{group}_"
        wrapped = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}  # as its float32 files have them
        torch.save(tensors if half else wrapped, folder / f"{prefix}{number:06d}.pt")
    torch.save(optimizer.state_dict(), folder / f"opt{number:06d}.pt")
    moments = {moment: named([slot[moment] for slot in slots]) for moment in ("exp_avg", "exp_avg_sq")}
    return state | moments | {"counters": {"optimizer_steps": torch.tensor(float(steps))}}


def differing(found: State, expected: State) -> list[str]:
    """The groups that are not the same bit for bit."""
    return [
        group
        for group in {*found, *expected}
        if list(found.get(group, {})) != list(expected.get(group, {}))
        or not all(torch.equal(found[group][name], tensor) for name, tensor in expected[group].items())
    ]


def saved(folder: Path, state: State, step: int, config: NetworkConfig = CONFIG) -> Checkpoint:
    header = WeightsHeader(kind="adm", config=to_mapping(config))
    return verified(Checkpoints(folder).save(step, state, {}, header))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_openai_to_ours_and_back(half: bool, run: Run, tmp_path: Path) -> None:
    expected = train_as_openai(tmp_path, 4, steps=5, half=half)
    state, step = state_from_openai(tmp_path / "model000004.pt", CONFIG)
    assert step == 5  # the optimizer's own count: a periodic save has one less in its name
    assert differing(state, expected) == []
    checkpoint = saved(tmp_path / "checkpoints", state, step)
    lines = run("convert", checkpoint.folder, "--out", tmp_path / "back").output.splitlines()
    names = ["opt000005.pt", "ema_0.9999_000005.pt", "ema_0.999_000005.pt", "model000005.pt"]
    assert [Path(line).name for line in lines] == sorted(names, key=lines.__str__().index)
    again, step = state_from_openai(tmp_path / "back" / "model000005.pt", CONFIG)
    assert step == 5
    assert differing(again, expected) == []
    weights = torch.load(tmp_path / "back" / "model000005.pt", weights_only=True)
    assert list(weights) == list(expected["model"])


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_one_more_step_from_either_is_the_same(half: bool, run: Run, tmp_path: Path) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=half)
    state, step = state_from_openai(tmp_path / "model000004.pt", CONFIG)
    run("convert", saved(tmp_path / "c", state, step).folder, "--out", tmp_path / "back")
    results = []
    for folder, number in ((tmp_path, 4), (tmp_path / "back", 5)):
        weights = torch.load(folder / f"model{number:06d}.pt", weights_only=True)
        content = torch.load(folder / f"opt{number:06d}.pt", weights_only=True)
        parts = [weights]
        if len(content["state"]) == 2:
            parts = [{n: t for n, t in weights.items() if t.ndim <= 1}, {n: t for n, t in weights.items() if t.ndim > 1}]
            joined = [torch.cat([tensor.detach().flatten() for tensor in part.values()]) for part in parts]
            parameters = [nn.Parameter(joined[0]), nn.Parameter(joined[1].view(1, -1))]
        else:
            parameters = [nn.Parameter(tensor.detach()) for tensor in weights.values()]
        optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.9)
        optimizer.load_state_dict(content)  # as guided-diffusion does; the learning rate comes with it
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
            assert group["weight_decay"] == 0.05
        if len(parameters) == 2:
            grads = torch.sin(torch.arange(sum(t.numel() for t in weights.values()), dtype=torch.float64)).float()
            by_name = split(grads, weights)
            flat = [torch.cat([by_name[name].flatten() for name in part]) for part in parts]
            parameters[0].grad, parameters[1].grad = flat[0], flat[1].view(1, -1)
            optimizer.step()
            both = split(parameters[0].detach(), parts[0]) | split(parameters[1].detach(), parts[1])
        else:
            grads = torch.sin(torch.arange(sum(t.numel() for t in weights.values()), dtype=torch.float64)).float()
            for parameter, grad in zip(parameters, split(grads, weights).values(), strict=True):
                parameter.grad = grad
            optimizer.step()
            both = dict(zip(weights, [parameter.detach() for parameter in parameters], strict=True))
        results.append({name: both[name] for name in weights})
    assert differing({"all": results[0]}, {"all": results[1]}) == []
