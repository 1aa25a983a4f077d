"""One step of training a network: loss, gradients, optimizer, weight average, in a chosen precision."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from generators.training.average import WeightAverage
from generators.training.config import TrainingConfig
from generators.unet.encoder import Encoder
from generators.unet.precision import TYPES

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """The learning rate used at a step, counted from 0."""
    rate = config.learning_rate
    if config.warmup_steps:
        rate *= min(1.0, (step + 1) / config.warmup_steps)
    remaining = 1 - step / config.steps
    if config.annealing == "linear":
        rate *= remaining
    elif config.annealing == "cosine":
        rate *= 0.5 - 0.5 * math.cos(math.pi * remaining)
    return rate


class NetworkTrainer(ABC):
    """AdamW on one network with an averaged copy; what both kinds of trainer share.

    Subclasses give `losses`. Weights, average and optimizer state stay float32 in every precision.
    """

    def __init__(self, network: Encoder, config: TrainingConfig, device: torch.device, precision: str) -> None:
        if precision not in TYPES:
            raise ValueError(f"precision is {precision!r}; expected one of {', '.join(TYPES)}")
        self.network = network.to(device).train()
        self.network.recompute_activations = config.recompute_activations
        self.compiled = torch.compile(self.network) if config.compile else self.network
        self.training = config
        self.device = device
        self.autocast_type = TYPES[precision]
        self.parameters = dict(network.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average = WeightAverage(network, config.ema_rate, warmup=config.ema_warmup)

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """`loss` (scalar) and what else a log shows, for images (B, 3, H, W) in [-1, 1]."""

    def train_step(self, step: int, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """See `generators.protocol.Trainable`."""
        x = images.to(self.device, torch.float32) / 127.5 - 1
        if self.training.flip:
            mirrored = torch.rand(len(x), device=self.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        rate = learning_rate_at(self.training, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        enabled = self.autocast_type != torch.float32
        with torch.autocast(self.device.type, dtype=self.autocast_type if enabled else None, enabled=enabled):
            losses = self.losses(x, None if labels is None else labels.to(self.device))
        torch.autograd.backward(self.scaler.scale(losses["loss"]))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.parameters.values(), step)
        return {name: value.item() for name, value in losses.items()} | {"learning_rate": rate}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `generators.protocol.Trainable`."""
        groups = {"model": {name: p.detach() for name, p in self.parameters.items()}, "ema": self.average.averaged}
        for moment in MOMENTS:
            groups[moment] = {}
            for name, parameter in self.parameters.items():
                slot = self.optimizer.state.get(parameter)
                groups[moment][name] = slot[moment] if slot else torch.zeros_like(parameter)
        steps_taken = [slot["step"] for slot in self.optimizer.state.values()]
        scale = self.scaler.state_dict()
        groups["counters"] = {
            "optimizer_steps": steps_taken[0] if steps_taken else torch.zeros(()),
            "loss_scale": torch.tensor(scale.get("scale", 1.0)),
            "steps_since_overflow": torch.tensor(scale.get("_growth_tracker", 0)),
        }
        return groups

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `generators.protocol.Trainable`."""
        for group, expected in self.state().items():
            found = {name: value.shape for name, value in state.get(group, {}).items()}
            wanted = {name: value.shape for name, value in expected.items()}
            if found != wanted:
                differing = sorted({name for name in {*found, *wanted} if found.get(name) != wanted.get(name)})
                raise ValueError(f"group '{group}' has other tensors than this network; first: {differing[0]}")
        counters = state["counters"]
        for name, parameter in self.parameters.items():
            parameter.copy_(state["model"][name])
            self.average.averaged[name].copy_(state["ema"][name])
            slot: dict[str, Tensor] = {"step": counters["optimizer_steps"].to(self.device, copy=True)}
            slot |= {moment: state[moment][name].to(self.device, copy=True) for moment in MOMENTS}
            self.optimizer.state[parameter] = slot
        if self.scaler.is_enabled():
            scale = {"scale": "loss_scale", "_growth_tracker": "steps_since_overflow"}
            restored = {name: counters[counter].item() for name, counter in scale.items()}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **restored})

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, or the raw ones where the average's rate is 0."""
        if self.training.ema_rate == 0:
            return {name: p.detach() for name, p in self.parameters.items()}
        return self.average.averaged
