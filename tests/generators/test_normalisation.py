"""The folded norm of channels-last images on CPUs: torch's values and gradients, in all uses."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.unet.classifier import Classifier
from generators.unet.config import ClassifierConfig, UNetConfig
from generators.unet.normalisation import FoldedNorm, GroupNorm
from generators.unet.unet import UNet

SMALL: dict[str, Any] = {
    "image_size": 8, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,),
    "head_channels": 16,
}  # fmt: skip


def filled(network: nn.Module) -> nn.Module:
    """No layer left at its zero start."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def last(x: Tensor) -> Tensor:
    """Channels last, and a leaf that wants a gradient."""
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


def folded_calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs of every folded norm from here on."""
    seen: list[Tensor] = []
    apply = FoldedNorm.apply

    def watched(x: Tensor, *rest: Any) -> Any:
        seen.append(x)
        return apply(x, *rest)

    monkeypatch.setattr(FoldedNorm, "apply", watched)
    return seen


@pytest.mark.parametrize("groups_of", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inference", [True, False])
def test_folded_norm_equals_torchs(groups_of: int, dtype: torch.dtype, *, inference: bool) -> None:
    channels = 32 * groups_of
    norm = filled(GroupNorm(channels))
    x = (3 + 2 * torch.randn(2, channels, 8, 8)).to(dtype)
    scale, shift = torch.randn(2, channels), torch.randn(1, channels)
    expected = norm(x, scale, shift, activate=True)
    with torch.inference_mode(inference):
        folded = norm(x.to(memory_format=torch.channels_last), scale, shift, activate=True)
    assert folded.dtype == expected.dtype == dtype
    assert folded.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(folded, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_small_scale_in_half_precision_is_not_lost_beside_the_1(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    norm, x = filled(GroupNorm(32)), torch.randn(2, 32, 4, 4).to(memory_format=layout)
    scale, shift = (torch.full((2, 32), value, dtype=dtype) for value in (2.0**-12, 2.0**-5))
    assert norm(x, scale, shift).equal(norm(x, scale.float(), shift.float()))
    assert not norm(x, scale, shift).equal(norm(x, torch.zeros_like(scale), shift))


@pytest.mark.parametrize("groups_of", [1, 2, 4])
@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("conditions", [0, 1, 3], ids=["plain", "shared", "conditioned"])
def test_gradients_of_the_folded_norm_are_torchs(groups_of: int, conditions: int, *, activate: bool) -> None:
    channels = 32 * groups_of
    norm = filled(GroupNorm(channels))
    x, weights = 3 + 2 * torch.randn(3, channels, 6, 4), torch.randn(3, channels, 6, 4)
    gradients = []
    for image in (x.requires_grad_(), last(x)):
        condition = [torch.ones(conditions, channels).mul(0.3 * k).requires_grad_() for k in (1, 2) if conditions]
        leaves = [image, *norm.parameters(), *condition]
        gradients.append(torch.autograd.grad((norm(image, *condition, activate=activate) * weights).sum(), leaves))
    assert gradients[1][0].is_contiguous(memory_format=torch.channels_last)
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert ((found - expected).norm() / expected.norm()).item() < 1e-6


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_the_folded_norm_are_differences(batch: int, *, activate: bool) -> None:
    torch.manual_seed(0)
    x = last(torch.randn(2, 6, 3, 2, dtype=torch.float64))
    factor, offset = (torch.randn(batch, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *inputs: FoldedNorm.apply(*inputs, 3, 1e-5, activate), (x, factor, offset))


def test_an_image_alone_can_have_the_gradient() -> None:
    """As guidance asks: nothing of the network is learned."""
    norm = filled(GroupNorm(32)).requires_grad_(requires_grad=False)
    x = torch.randn(2, 32, 4, 4, requires_grad=True)
    other = last(x)
    for image in (x, other):
        torch.autograd.backward(norm(image, activate=True).square().sum(), inputs=[image])
    torch.testing.assert_close(other.grad, x.grad)
    assert norm.weight.grad is None


@pytest.mark.parametrize(("mean", "deviation", "side"), [(1, 0.1, 8), (1, 0.01, 8), (10, 0.1, 8), (1, 1, 1)])
def test_folded_norm_keeps_its_digits_on_flat_maps(mean: float, deviation: float, side: int) -> None:
    norm = filled(GroupNorm(64))
    x, weights = mean + deviation * torch.randn(4, 64, side, side), torch.randn(4, 64, side, side)

    def value_and_gradient(image: Tensor, *, ours: bool) -> Tensor:
        image = image.detach().requires_grad_()
        weight, bias = norm.weight.to(image.dtype), norm.bias.to(image.dtype)
        out = norm(image) if ours else F.group_norm(image, 32, weight, bias, 1e-5)
        (gradient,) = torch.autograd.grad((out * weights).sum(), image)
        return torch.stack([out.detach(), gradient])

    exact = value_and_gradient(x.double(), ours=False)
    plain = (value_and_gradient(x, ours=False) - exact).abs().amax((1, 2, 3, 4))
    folded = (value_and_gradient(last(x), ours=True) - exact).abs().amax((1, 2, 3, 4))
    assert (folded < 4 * plain + 1e-6 * exact.abs().amax((1, 2, 3, 4)).clamp(min=1)).all()


def test_maps_of_one_value_a_group() -> None:
    """One image, 1x1 and 32 channels: the norm of a single value is its bias."""
    norm = filled(GroupNorm(32))
    x = torch.randn(1, 32, 1, 1, requires_grad=True)
    torch.testing.assert_close(norm(x).flatten(), norm.bias)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x.to(memory_format=torch.channels_last)).flatten(), norm.bias)


def gradients_of(network: nn.Module, x: Tensor, autocast: torch.dtype | None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        out = network(x, torch.tensor([3, 500]))
    leaves = [x, *network.parameters()]
    return list(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves))


@pytest.mark.parametrize("kind", ["unet", "classifier"])
@pytest.mark.parametrize("use", ["plain", "recomputed", "autocast"])
def test_networks_have_the_same_gradients_in_both_layouts(kind: str, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = UNet(UNetConfig(**SMALL)) if kind == "unet" else Classifier(ClassifierConfig(**SMALL, num_classes=5))
    filled(network).recompute_activations = use == "recomputed"
    autocast = torch.bfloat16 if use == "autocast" else None
    x = torch.randn(2, 3, 8, 8)
    expected = gradients_of(network, x, None)
    seen = folded_calls(monkeypatch)
    found = gradients_of(copy.deepcopy(network).to(memory_format=torch.channels_last), x, autocast)
    num_norms = sum(isinstance(module, GroupNorm) for module in network.modules())
    assert len(seen) > num_norms if use == "recomputed" else len(seen) == num_norms
    whole = [torch.cat([gradient.flatten() for gradient in each]) for each in (expected, found)]
    difference = ((whole[1] - whole[0]).norm() / whole[0].norm()).item()
    assert difference < (2e-2 if autocast else 2e-6)
    assert (difference > 1e-4) == (autocast is not None)
