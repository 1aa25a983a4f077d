"""The goldens of guided-diffusion, and the rules that make their inputs (tests/golden/README.md)."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from generators.adm.presets import PRESETS
from generators.adm.trainer import AdmTrainer, ClassifierTrainer, DiffusionTrainer, UpsamplerTrainer
from generators.configuration import with_changes
from generators.protocol import Parallel, TrainingBatch
from generators.training.network_trainer import ALONE
from generators.unet.classifier import Classifier
from generators.unet.config import ClassifierConfig, SuperResolutionConfig, UNetConfig
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

NETWORKS = [
    "base_legacy", "new_attn_order", "no_updown", "no_ssn", "conv_resample_off", "num_heads4", "heads4_up2",
    "class_cond10", "half_mult", "default_heads", "superres",
    "encoder_adaptive", "encoder_attention", "encoder_spatial", "encoder_spatial_v2",
]  # fmt: skip


@pytest.fixture(scope="session", params=NETWORKS)
def network_name(request: pytest.FixtureRequest) -> str:
    """Every network of the goldens in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def network_inputs(golden: Callable[[str], Tensor]) -> Callable[[str], dict[str, Tensor]]:
    """The inputs with which a network's golden output was made."""

    def inputs(name: str) -> dict[str, Tensor]:
        beside = {"superres": {"low_resolution": golden("in_lr8")}, "class_cond10": {"labels": torch.tensor([1, 7])}}
        return {"x": golden("in_x32"), "timesteps": torch.tensor([3, 971]), **beside.get(name, {})}

    return inputs


@pytest.fixture(scope="session")
def tables(diffusion_goldens: Any) -> dict[str, Mapping[str, Any]]:
    """Scalars and configurations: the tables' entries by name, or by place."""
    return diffusion_goldens.tables


@pytest.fixture(scope="session")
def arrays(diffusion_goldens: Any) -> Mapping[str, np.ndarray]:
    """Every array, by name."""
    return diffusion_goldens.arrays


def rule_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values that the rule gives a state-dict entry."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    if len(shape) >= 2:
        return z / np.sqrt(np.prod(shape[1:]))
    return 1 + 0.1 * z if name.endswith(".weight") else 0.1 * z


@pytest.fixture(scope="session")
def fill() -> Callable[[nn.Module], nn.Module]:
    """Fill a network by the rule, so that no layer is left at its zero start, and set it to eval mode."""

    def apply(network: nn.Module) -> nn.Module:
        state = network.state_dict()
        network.load_state_dict(
            {name: torch.from_numpy(rule_values(name, tuple(value.shape))).float() for name, value in state.items()}
        )
        return network.eval()

    return apply


@pytest.fixture(scope="session")
def build(tables: dict[str, Any], fill: Callable[[nn.Module], nn.Module]) -> Callable[[str], nn.Module]:
    """A network of the goldens by its name, filled."""

    def make(name: str) -> nn.Module:
        model = tables["models"][name]
        return fill(network_for(model["cls"], dict(model["args"])))

    return make


def network_for(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """Our network for the reference's constructor arguments (guided-diffusion's names)."""
    size = arguments["image_size"]
    head_channels = arguments["num_head_channels"]
    encoder = {
        "image_size": size,
        "in_channels": arguments["in_channels"],
        "channels": arguments["model_channels"],
        "channel_mult": tuple(arguments["channel_mult"]),
        "num_res_blocks": arguments["num_res_blocks"],
        "attention_resolutions": tuple(size // factor for factor in arguments["attention_resolutions"]),
        "heads": arguments.get("num_heads", 1),
        "head_channels": None if head_channels == -1 else head_channels,
        "attention_order": "qkv-major" if arguments.get("use_new_attention_order") else "head-major",
        "resampling": "biggan"
        if arguments["resblock_updown"]
        else "conv"
        if arguments.get("conv_resample", True)
        else "pool",
        "adaptive_norm": arguments["use_scale_shift_norm"],
    }
    if kind == "EncoderUNetModel":
        return Classifier(ClassifierConfig(**encoder, num_classes=arguments["out_channels"], pool=arguments["pool"]))
    decoder = {
        "out_channels": arguments["out_channels"],
        "num_classes": arguments.get("num_classes"),
        "heads_upsample": arguments.get("num_heads_upsample"),
    }
    if kind == "SuperResModel":
        return SuperResolutionUNet(SuperResolutionConfig(**encoder, **decoder, low_resolution=8))
    return UNet(UNetConfig(**encoder, **decoder))


@pytest.fixture(scope="session")
def golden(arrays: Mapping[str, np.ndarray]) -> Callable[[str], Tensor]:
    """A golden array as a tensor; inputs (`in_...`) are made by their rule, and their golden arrays left unread."""
    return lambda name: rule_input(name) if name.startswith("in_") else torch.from_numpy(arrays[name])


@pytest.fixture(scope="session")
def standard_input() -> Callable[[str, tuple[int, ...]], Tensor]:
    """The rule's standard normal input of a tag."""
    return rule_normal


def rule_normal(tag: str, shape: tuple[int, ...]) -> Tensor:
    """`inp` of the rules."""
    seed = int(hashlib.sha256(f"input:{tag}".encode()).hexdigest()[:8], 16)
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32))


def rule_input(name: str) -> Tensor:
    """An input by the name of its golden array."""
    side = {"in_x32": 32, "in_lr8": 8}.get(name, 4)
    drawn = rule_normal(name.removeprefix("in_"), (4 if side == 4 else 2, 3, side, side))
    if name == "in_x0":
        drawn = (0.6 * drawn).clamp(-1, 1)
        drawn[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    return drawn


TRAINERS: dict[str, tuple[str, type[Any]]] = {
    "adm": ("digits8", AdmTrainer),
    "classifier": ("digits8_classifier", ClassifierTrainer),
    "upsampler": ("digits8_16_upsampler", UpsamplerTrainer),
}
BATCH = 16


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., DiffusionTrainer]:
    """A trainer of a digits network by its kind, with attention at its second level; `filled`: no layer is at zero."""

    def make(
        kind: str, precision: str = "fp32", *, parallel: Parallel = ALONE, filled: bool = False, **changes: object
    ) -> DiffusionTrainer:
        torch.manual_seed(0)
        preset, trainer_type = TRAINERS[kind]
        small = {
            "model.attention_resolutions": [8 if kind == "upsampler" else 4],
            "training.steps": 40,
            "training.warmup_steps": 0,
        }
        config = with_changes(PRESETS[preset].config, small | changes)
        trainer: DiffusionTrainer = trainer_type(config, torch.device("cpu"), precision, parallel)
        if filled:
            with torch.no_grad():
                for parameter in trainer.parameters.values():
                    parameter.normal_(std=0.1)
        return trainer

    return make


@pytest.fixture(scope="session")
def training_batch() -> Callable[..., TrainingBatch]:
    """The batch of a step: images that are brighter the higher their label; `rows` is a process's share."""

    def make(step: int, *, size: int = 8, rows: slice = slice(None)) -> TrainingBatch:
        generator = torch.Generator().manual_seed(step)
        labels = torch.arange(BATCH) % 10
        images = 20 * labels[:, None, None, None] + torch.randint(50, (BATCH, 3, size, size), generator=generator)
        seeds = range(step * BATCH, (step + 1) * BATCH)
        return TrainingBatch(step=step, images=images.to(torch.uint8)[rows], labels=labels[rows], seeds=seeds[rows])

    return make
