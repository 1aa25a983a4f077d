"""The exponential moving averages of weights that samples are drawn from (Ho et al. 2020, appendix B)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """A running average of parameters, kept in float32 beside them, and sharded as they are."""

    def __init__(self, parameters: Mapping[str, Tensor], rate: float, *, warmup: bool) -> None:
        self.rate = rate
        self.warmup = warmup
        self.averaged = {name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Move towards the parameters as they are after step `step`, counted from 0."""
        rate = min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate
        torch._foreach_lerp_(list(self.averaged.values()), list(parameters.values()), 1 - rate)

    @torch.no_grad()
    def swap(self, parameters: Mapping[str, Tensor]) -> None:
        """Exchange the average and the parameters; a second time brings both back, bit for bit."""
        for name, parameter in parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.averaged[name])
            self.averaged[name].copy_(kept)
