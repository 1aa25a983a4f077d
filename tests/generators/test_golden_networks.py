"""Every network of the goldens: names, shapes, order and outputs equal guided-diffusion's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion, DiffusionConfig

TIMESTEPS = torch.tensor([3, 971])
NETWORKS = [
    "base_legacy", "new_attn_order", "no_updown", "no_ssn", "conv_resample_off", "num_heads4", "heads4_up2",
    "class_cond10", "half_mult", "default_heads", "superres",
    "encoder_adaptive", "encoder_attention", "encoder_spatial", "encoder_spatial_v2",
]  # fmt: skip


def test_the_list_is_complete(tables: dict[str, Any]) -> None:
    assert set(NETWORKS) == set(tables["models"])


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_state_dict(name: str, tables: dict[str, Any], build: Callable[[str], nn.Module]) -> None:
    ours = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in build(name).state_dict().items()]
    assert ours == tables["models"][name]["keys"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_golden_output(
    name: str, memory_format: torch.memory_format, build: Callable[[str], nn.Module], golden: Callable[[str], Tensor]
) -> None:
    network = build(name).to(memory_format=memory_format)
    x = golden("in_x32")
    beside = {"low_resolution": golden("in_lr8")} if name == "superres" else {}
    labels = (torch.tensor([1, 7]),) if name == "class_cond10" else ()
    with torch.inference_mode():
        output = network(x.to(memory_format=memory_format), TIMESTEPS, *labels, **beside)
    torch.testing.assert_close(output, golden(f"model_{name}"), rtol=0, atol=1e-4)


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
