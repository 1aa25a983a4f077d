"""The exponential moving average of weights that samples are drawn from (Ho et al. 2020, appendix B)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running average of a network's parameters, kept in float32 beside it."""

    def __init__(self, network: nn.Module, rate: float, *, warmup: bool) -> None:
        self.rate = rate
        self.warmup = warmup
        self.averaged = {name: p.detach().float().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """Move towards the parameters as they are after step `step`, counted from 0."""
        rate = min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate
        torch._foreach_lerp_(list(self.averaged.values()), [p.detach() for p in parameters], 1 - rate)
