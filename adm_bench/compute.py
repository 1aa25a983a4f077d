"""What networks and generators cost: counted (parameters, MACs, FLOPs) and measured (images a second)."""

from dataclasses import dataclass

import torch
from torch import nn

from adm_bench import registry
from generators.adm.config import AdmConfig, GuideConfig
from generators.protocol import Generator, Trainable
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet
from metrics.flops import count_cost
from metrics.throughput import Throughput, measure_throughput


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """One network, one image: counted on the meta device, where nothing is computed."""

    parameters: int
    forward_macs_per_image: int
    forward_flops_per_image: int
    training_flops_per_image: int
    """Forward and backward pass."""


def build_network(config: AdmConfig | GuideConfig) -> nn.Module:
    """The network that a configuration describes, on torch's default device."""
    return UNet(config.model) if isinstance(config, AdmConfig) else Classifier(config.model)


def network_cost(config: AdmConfig | GuideConfig) -> NetworkCost:
    """Count a configuration's network."""
    with torch.device("meta"):
        network = build_network(config)
        inputs = [torch.empty(1, 3, config.model.image_size, config.model.image_size), torch.empty(1)]
        if isinstance(config, AdmConfig) and config.model.num_classes is not None:
            inputs.append(torch.empty(1, dtype=torch.int64))
    forward = count_cost(lambda: network(*inputs))
    training = count_cost(lambda: network(*inputs).sum().backward())
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        forward_macs_per_image=forward.macs,
        forward_flops_per_image=forward.flops,
        training_flops_per_image=training.flops,
    )


def sampling_flops_per_image(generator: Generator) -> int:
    """FLOPs of all that one image takes: every network evaluation, guidance included."""
    return count_cost(generator.evaluate_once).flops * max(1, generator.network_evaluations)


def measure_training(
    trainer_name: str, config: AdmConfig | GuideConfig, device: torch.device, precision: str
) -> Throughput:
    """Images a second of whole training steps at the configuration's batch size, on random images."""
    trainer: Trainable = registry.load("trainers", trainer_name)(config, device, precision)
    batch, size = config.training.batch_size, config.model.image_size
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    labels = None if config.model.num_classes is None else torch.arange(batch) % config.model.num_classes
    return measure_throughput(lambda: trainer.train_step(0, images, labels), batch, device=device)


def measure_forward(config: AdmConfig | GuideConfig, device: torch.device, batch_size: int) -> Throughput:
    """Network evaluations a second, an image each, at a batch size."""
    network = build_network(config).to(device).eval()
    size, conditional = config.model.image_size, isinstance(config, AdmConfig) and config.model.num_classes
    x = torch.randn(batch_size, 3, size, size, device=device)
    timesteps = torch.zeros(batch_size, device=device)
    labels = [torch.zeros(batch_size, dtype=torch.int64, device=device)] if conditional else []
    with torch.inference_mode():
        return measure_throughput(lambda: network(x, timesteps, *labels), batch_size, device=device)
