"""What networks promise beyond the goldens: ablations, precisions, compilation, recomputed activations."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from generators.adm.sampler import ScheduledEmbedding
from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.unet.classifier import Classifier
from generators.unet.config import ClassifierConfig, SuperResolutionConfig, UNetConfig
from generators.unet.layers import ResBlock
from generators.unet.precision import set_precision
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

SMALL: dict[str, Any] = {
    "image_size": 8, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,),
    "head_channels": 16,
}  # fmt: skip
Build = Callable[[str], nn.Module]
Golden = Callable[[str], Tensor]


def filled(network: nn.Module) -> nn.Module:
    """No layer left at its zero start."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("image_size", [8, 16, 32, 64, 128, 256, 512])
def test_every_size_has_usual_multipliers(image_size: int) -> None:
    config = UNetConfig(image_size=image_size, channels=64, attention_resolutions=(), heads=1, head_channels=None)
    with torch.device("meta"):
        output = UNet(config)(torch.empty(1, 3, image_size, image_size), torch.empty(1))
    assert output.shape == (1, 6, image_size, image_size)


def test_other_sizes_need_multipliers() -> None:
    with pytest.raises(ValueError, match="image_size 48 has no usual channel multipliers"):
        UNetConfig(image_size=48)
    assert UNetConfig(image_size=48, channel_mult=(1, 2), attention_resolutions=(24,)).widths == (128, 256)


def test_an_upsampler_of_512_pixels_has_the_multipliers_of_256() -> None:
    assert SuperResolutionConfig(image_size=512, low_resolution=128, attention_resolutions=(32, 16)).widths[-1] == 512
    with pytest.raises(ValueError, match="low_resolution is 64; expected less than image_size 64"):
        SuperResolutionConfig(image_size=64, low_resolution=64)


def test_rescaling_divides_every_residual_sum() -> None:
    settings: dict[str, Any] = {"adaptive_norm": True, "dropout": 0.0}
    plain = filled(ResBlock(32, 64, 128, **settings)).eval()
    rescaled = ResBlock(32, 64, 128, rescale=True, **settings).eval()
    rescaled.load_state_dict(plain.state_dict())
    x, embedding = torch.randn(2, 32, 4, 4), torch.randn(2, 128)
    torch.testing.assert_close(rescaled(x, embedding) * math.sqrt(2), plain(x, embedding))
    config = UNetConfig(**SMALL, rescale_residual=True)
    blocks = [module for module in UNet(config).modules() if isinstance(module, ResBlock)]
    assert len(blocks) == 10
    assert all(block.rescale for block in blocks)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("way", ["autocast", "converted"])
def test_half_precision_stays_close(
    way: str,
    precision: Any,
    network_name: str,
    build: Build,
    golden: Golden,
    network_inputs: Callable[[str], dict[str, Tensor]],
) -> None:
    expected, network = golden(f"model_{network_name}"), build(network_name)
    inputs = network_inputs(network_name)
    with torch.inference_mode():
        if way == "converted":
            output = set_precision(network, precision)(**inputs)  # type: ignore[type-var]
        else:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            with torch.autocast("cpu", dtype=dtype):
                output = network(**inputs)
    assert output.dtype == torch.float32
    difference = ((output - expected).norm() / expected.norm()).item()
    assert 0 < difference < 2e-2
    narrow = {p.dtype for n, p in network.named_parameters() if p.dtype != torch.float32}
    assert len(narrow) == (way == "converted")


def test_what_stays_in_float32(build: Build) -> None:
    network = set_precision(build("base_legacy"), "bf16")  # type: ignore[type-var]
    for name, parameter in network.named_parameters():
        convolution = parameter.dtype == torch.bfloat16
        inside = name.startswith(("input_blocks", "middle_block", "output_blocks"))
        assert convolution == (inside and not any(part in name for part in ("norm", "emb_layers", "_layers.0"))), name
    share = sum(p.numel() for p in network.parameters() if p.dtype == torch.bfloat16)
    assert share / sum(p.numel() for p in network.parameters()) > 0.8


def test_embeddings_of_a_schedule_are_those_of_its_timesteps(build: Build, golden: Golden) -> None:
    network = build("base_legacy")
    assert isinstance(network, UNet)
    diffusion = Diffusion(DiffusionConfig(num_timesteps=4000, rescale_timesteps=True), num_steps=50)
    embedding = ScheduledEmbedding(network, diffusion)
    x = golden("in_x32")
    for step in (0, 7, 49):
        told = diffusion.network_timesteps[step].expand(2)
        with torch.inference_mode():
            torch.testing.assert_close(network.predict(x, embedding(told)), network(x, told), rtol=1e-5, atol=1e-5)


def gradients(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of the output's sum of squares, dropout drawn from one seed."""
    network.zero_grad()
    torch.manual_seed(5)
    network(*inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_activations_give_the_same_gradients_with_dropout(frozen: bool) -> None:
    network = filled(UNet(UNetConfig(**SMALL, dropout=0.3, num_classes=4))).train()
    if frozen:
        network.get_submodule("input_blocks").requires_grad_(requires_grad=False)
    inputs = (torch.randn(2, 3, 8, 8), torch.tensor([1, 900]), torch.tensor([0, 3]))
    kept = gradients(network, inputs)
    network.recompute_activations = True
    torch.testing.assert_close(gradients(network, inputs), kept, rtol=1e-6, atol=1e-6)


def test_recomputing_keeps_less() -> None:
    network = filled(UNet(UNetConfig(**SMALL))).train()
    assert isinstance(network, UNet)
    kept = {}
    for recompute in (False, True):
        network.recompute_activations = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            network(torch.randn(2, 3, 8, 8), torch.tensor([1, 900]))
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 2


def small_networks() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """One of each kind with its inputs."""
    x, steps, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 900]), torch.tensor([0, 3])
    upsampler = SuperResolutionUNet(SuperResolutionConfig(**SMALL, low_resolution=4))
    classifier = Classifier(ClassifierConfig(**SMALL, num_classes=4))
    return {
        "unet": (UNet(UNetConfig(**SMALL, num_classes=4)), {"x": x, "timesteps": steps, "labels": labels}),
        "upsampler": (upsampler, {"x": x, "timesteps": steps, "low_resolution": torch.randn(2, 3, 4, 4)}),
        "classifier": (classifier, {"x": x, "timesteps": steps}),
    }


@pytest.mark.parametrize("name", ["unet", "upsampler", "classifier"])
@pytest.mark.parametrize("training", [False, True])
def test_networks_compile_without_a_graph_break(name: str, training: bool) -> None:
    network, inputs = small_networks()[name]
    filled(network).train(training)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(compiled(**inputs), network(**inputs), rtol=1e-4, atol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, inside inductor
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_network_equals_eager() -> None:
    network = filled(UNet(UNetConfig(**SMALL | {"channel_mult": (1,), "attention_resolutions": (8,)}))).eval()
    inputs = {"x": torch.randn(2, 3, 8, 8), "timesteps": torch.tensor([1, 900])}
    torch._dynamo.reset()
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.compile(network, fullgraph=True)(**inputs), network(**inputs), rtol=1e-4, atol=1e-4
        )


def test_low_resolution_images_are_asked_for() -> None:
    network, inputs = small_networks()["upsampler"]
    small = inputs.pop("low_resolution")
    with pytest.raises(ValueError, match="low-resolution images are missing"):
        network(**inputs)
    with pytest.raises(ValueError, match=r"labels are \(1,\); expected one for each of 2 images"):
        small_networks()["unet"][0](torch.zeros(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"expected 2 with 3 channels"):
        network(**inputs, low_resolution=small[:1])
    enlarged = F.interpolate(small, 8, mode="bilinear")
    filled(network).eval()
    torch.testing.assert_close(network(**inputs, low_resolution=small), network(**inputs, low_resolution=enlarged))


def test_images_need_not_be_square() -> None:
    network, inputs = small_networks()["upsampler"]
    filled(network).eval()
    small = torch.randn(2, 3, 4, 8)
    enlarged = F.interpolate(small, (8, 16), mode="bilinear")
    inputs |= {"x": torch.randn(2, 3, 8, 16)}
    torch.testing.assert_close(
        network(**inputs | {"low_resolution": small}), network(**inputs | {"low_resolution": enlarged})
    )
