"""What networks and generators cost: counted (parameters, MACs, FLOPs) and measured (images a second)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adm_bench import registry
from generators.adm.config import GuideConfig, NetworkConfig, UpsamplerConfig
from generators.adm.networks import build_network
from generators.protocol import Generator, Trainable, TrainingBatch, Upsampler
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


def network_cost(config: NetworkConfig) -> NetworkCost:
    """Count a configuration's network."""
    with torch.device("meta"):
        network = build_network(config)
        forward_once = partial(network, **_inputs(config, 1))
    forward = count_cost(forward_once)
    training = count_cost(lambda: forward_once().sum().backward())
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        forward_macs_per_image=forward.macs,
        forward_flops_per_image=forward.flops,
        training_flops_per_image=training.flops,
    )


def _inputs(config: NetworkConfig, batch_size: int) -> dict[str, Tensor]:
    """Arguments of a configuration's network, on torch's default device."""
    size = config.model.image_size
    inputs = {"x": torch.randn(batch_size, 3, size, size), "timesteps": torch.zeros(batch_size)}
    if config.model.num_classes is not None and not isinstance(config, GuideConfig):
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.int64)
    if isinstance(config, UpsamplerConfig):
        low = config.model.low_resolution
        inputs["low_resolution"] = torch.randn(batch_size, 3, low, low)
    return inputs


def sampling_flops_per_image(generator: Generator | Upsampler) -> int:
    """FLOPs of all that one image takes: every network evaluation, guidance included."""
    return count_cost(generator.evaluate_once).flops * max(1, generator.network_evaluations)


def measure_training(trainer_name: str, config: NetworkConfig, device: torch.device, precision: str) -> Throughput:
    """Images a second of whole training steps at the configuration's batch size, on random images."""
    trainer: Trainable = registry.load("trainers", trainer_name)(config, device, precision)
    batch, size = config.training.batch_size, config.model.image_size
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    labels = None if config.model.num_classes is None else torch.arange(batch) % config.model.num_classes
    step = TrainingBatch(step=0, images=images, labels=labels, seeds=range(batch))
    return measure_throughput(lambda: trainer.train_step(step), batch, device=device)


def measure_forward(config: NetworkConfig, device: torch.device, batch_size: int) -> Throughput:
    """Network evaluations a second, an image each, at a batch size."""
    network = build_network(config).to(device).eval()
    inputs = {name: tensor.to(device) for name, tensor in _inputs(config, batch_size).items()}
    with torch.inference_mode():
        return measure_throughput(lambda: network(**inputs), batch_size, device=device)
