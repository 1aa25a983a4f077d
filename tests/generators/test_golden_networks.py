"""Every network of the goldens: names, shapes, order and outputs equal guided-diffusion's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion, DiffusionConfig

TIMESTEPS = torch.tensor([3, 971])


def test_golden_state_dict(network_name: str, tables: dict[str, Any], build: Callable[[str], nn.Module]) -> None:
    ours = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in build(network_name).state_dict().items()]
    assert ours == tables["models"][network_name]["keys"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_golden_output(
    network_name: str,
    memory_format: torch.memory_format,
    build: Callable[[str], nn.Module],
    golden: Callable[[str], Tensor],
    network_inputs: Callable[[str], dict[str, Tensor]],
) -> None:
    inputs = network_inputs(network_name)
    network = build(network_name).to(memory_format=memory_format)
    with torch.inference_mode():
        output = network(**{**inputs, "x": inputs["x"].to(memory_format=memory_format)})
    torch.testing.assert_close(output, golden(f"model_{network_name}"), rtol=0, atol=1e-4)


def test_golden_training_gradients(
    tables: dict[str, Any], build: Callable[[str], nn.Module], golden: Callable[[str], Tensor], standard_input: Any
) -> None:
    network, diffusion = build("base_legacy"), Diffusion(DiffusionConfig())
    x0 = golden("in_x32").clamp(-1, 1)
    losses = training_losses(diffusion, network, x0, TIMESTEPS, standard_input("noise32", x0.shape))
    for part, values in tables["train_loss_base_legacy"].items():
        torch.testing.assert_close(losses[part], torch.tensor(values), rtol=1e-5, atol=1e-6)
    losses["loss"].mean().backward()
    for name, norm in tables["train_grad_norms_base_legacy"].items():
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-5), name
