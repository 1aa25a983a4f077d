"""The diffusion process: noising, and what a network's output says about the step before.

Shapes: B batch, C image channels; x and noise (B, C, H, W) float32, images in [-1, 1]. A step is either an
int, the same for the whole batch, or an int64 tensor (B,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generators.diffusion.schedule import Respacing, Schedule, ScheduleName, betas, kept_timesteps
from generators.diffusion.timesteps import TimestepSamplerName

Prediction = Literal["epsilon", "x0", "previous-x"]
Variance = Literal["fixed-small", "fixed-large", "learned", "learned-range"]
Loss = Literal["simple", "hybrid", "rescaled-hybrid", "variational", "rescaled-variational"]
Spacing = Literal["even", "ddim"]
Step = int | Tensor
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t, timesteps (B,)) to (B, C or 2C, H, W): a network with everything else bound."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What a network was trained to predict, and under which noise."""

    num_timesteps: int = 1000
    schedule: ScheduleName = "linear"
    prediction: Prediction = "epsilon"
    variance: Variance = "learned-range"
    loss: Loss = "hybrid"
    rescale_timesteps: bool = False
    """Tell the network timesteps in [0, 1000), whatever their number."""
    timestep_sampler: TimestepSamplerName = "uniform"
    """Which steps training draws: `uniform`, or oftener where the `loss-second-moment` is large."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.loss == "simple" and self.learns_variance:
            raise ValueError(f"loss 'simple' leaves variance '{self.variance}' untrained; use loss 'hybrid'")
        if self.loss in ("hybrid", "rescaled-hybrid") and not self.learns_variance:
            raise ValueError(f"loss '{self.loss}' needs a learned variance, not '{self.variance}'")
        betas(self.schedule, self.num_timesteps)

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output has variance values beside its prediction."""
        return self.variance in ("learned", "learned-range")


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What the network says about x_{t-1}: the moments of p(x_{t-1} | x_t), and its guess of the image."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor
    variance: Tensor
    """Of "fixed-small", 0 at the first step, where `log_variance` stands in the second step's."""


class Diffusion:
    """A diffusion process with its tables on one device; sampling on fewer steps is a respaced one.

    `respacing` says which steps are kept (`kept_timesteps`); `num_steps` with a `spacing` says the same for
    a number of them. Symbols follow Ho et al. 2020: beta, and abar the cumulative product of 1 - beta.
    ValueError where there are no such steps.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        num_steps: int | None = None,
        spacing: Spacing = "even",
        respacing: Respacing = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_steps is not None:
            if respacing is not None:
                raise ValueError(f"num_steps is {num_steps} and respacing {respacing!r}; give one of them")
            respacing = f"ddim{num_steps}" if spacing == "ddim" else num_steps
        self._set_up(config, kept_timesteps(config.num_timesteps, respacing), torch.device(device))

    @classmethod
    def with_timesteps(
        cls, config: DiffusionConfig, timesteps: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> "Diffusion":
        """A process on explicitly chosen steps of the original one."""
        diffusion = cls.__new__(cls)
        diffusion._set_up(config, timesteps, torch.device(device))
        return diffusion

    def _set_up(self, config: DiffusionConfig, timesteps: tuple[int, ...], device: torch.device) -> None:
        self.config = config
        self.schedule = Schedule.respaced(betas(config.schedule, config.num_timesteps), timesteps)
        self.device = device
        beta = self.schedule.betas
        abar = np.cumprod(1 - beta)
        abar_before = np.append(1.0, abar[:-1])
        posterior_variance = beta * (1 - abar_before) / (1 - abar)
        self.abar = self._table(abar)
        self.abar_before = self._table(abar_before)
        self.abar_after = self._table(np.append(abar[1:], 0.0))
        self.signal_scale = self._table(np.sqrt(abar))
        self.noise_scale = self._table(np.sqrt(1 - abar))
        self.inverse_signal_scale = self._table(np.sqrt(1 / abar))
        self.inverse_noise_ratio = self._table(np.sqrt(1 / abar - 1))
        self.posterior_x0_weight = self._table(beta * np.sqrt(abar_before) / (1 - abar))
        self.posterior_xt_weight = self._table((1 - abar_before) * np.sqrt(1 - beta) / (1 - abar))
        self.posterior_variance = self._table(posterior_variance)
        self.log_noise_variance = self._table(np.log(1 - abar))
        self.log_posterior_variance = self._table(np.log(np.append(posterior_variance[1], posterior_variance[1:])))
        self.log_beta = self._table(np.log(beta))
        self.log_fixed_large = self._table(np.log(np.append(posterior_variance[1], beta[1:])))
        told = torch.tensor(self.schedule.timesteps, device=device)
        if config.rescale_timesteps:
            told = told.float() * (1000.0 / config.num_timesteps)
        self.network_timesteps = told

    def _table(self, values: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(values).float().to(self.device)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.schedule.timesteps)

    def at(self, table: Tensor, step: Step) -> Tensor:
        """The table's entries at the step, shaped to scale images."""
        entries = table[step]
        return entries if entries.ndim == 0 else entries[:, None, None, None]

    def call(self, denoiser: Denoiser, x: Tensor, step: Step) -> Tensor:
        """The network's output for x at a step of this process, which may be a respaced one."""
        return denoiser(x, self.network_timesteps[step].expand(len(x)))

    def add_noise(self, x0: Tensor, step: Step, noise: Tensor) -> Tensor:
        """A sample of q(x_t | x_0) (Ho et al., equation 4)."""
        return self.at(self.signal_scale, step) * x0 + self.at(self.noise_scale, step) * noise

    def true_posterior_mean(self, x0: Tensor, x: Tensor, step: Step) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (equation 7)."""
        return self.at(self.posterior_x0_weight, step) * x0 + self.at(self.posterior_xt_weight, step) * x

    def x0_from_epsilon(self, x: Tensor, step: Step, epsilon: Tensor) -> Tensor:
        """The image that x is a noising of, if epsilon was the noise."""
        return self.at(self.inverse_signal_scale, step) * x - self.at(self.inverse_noise_ratio, step) * epsilon

    def epsilon_from_x0(self, x: Tensor, step: Step, x0: Tensor) -> Tensor:
        """The noise in x, if x0 was the image."""
        return (self.at(self.inverse_signal_scale, step) * x - x0) / self.at(self.inverse_noise_ratio, step)

    def posterior(self, output: Tensor, x: Tensor, step: Step, *, clip: bool = True) -> Posterior:
        """p(x_{t-1} | x_t) from the network's output; `clip` clamps the guessed image to [-1, 1].

        ValueError where the output has not the channels that the configuration asks for.
        """
        prediction, values = self.split_output(output, x)
        if self.config.prediction == "epsilon":
            x0 = self.x0_from_epsilon(x, step, prediction)
        elif self.config.prediction == "x0":
            x0 = prediction
        else:
            unweighted = prediction - self.at(self.posterior_xt_weight, step) * x
            x0 = unweighted / self.at(self.posterior_x0_weight, step)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean = self.true_posterior_mean(x0, x, step)
        if self.config.prediction == "previous-x":
            mean = prediction
        log_variance = self._log_variance(values, step)
        variance = log_variance.exp()
        if self.config.variance == "fixed-small":
            variance = self.at(self.posterior_variance, step)
        return Posterior(mean=mean, log_variance=log_variance, x0=x0, variance=variance)

    def split_output(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A network's output as (prediction, variance values or None)."""
        channels = x.shape[1]
        expected = 2 * channels if self.config.learns_variance else channels
        if output.shape[1] != expected:
            raise ValueError(
                f"the network gives {output.shape[1]} channels; variance '{self.config.variance}' needs {expected}"
            )
        if not self.config.learns_variance:
            return output, None
        prediction, values = output.chunk(2, dim=1)
        return prediction, values

    def _log_variance(self, values: Tensor | None, step: Step) -> Tensor:
        if self.config.variance == "fixed-small":
            return self.at(self.log_posterior_variance, step)
        if self.config.variance == "fixed-large":
            return self.at(self.log_fixed_large, step)
        assert values is not None  # split_output gives them for learned variances
        if self.config.variance == "learned":
            return values
        low, high = self.at(self.log_posterior_variance, step), self.at(self.log_beta, step)
        return torch.lerp(low, high, (values + 1) / 2)  # Nichol & Dhariwal, equation 15; not clamped
