"""Samplers: one step of each, of one signature, and the loop that takes them all the way."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from generators.diffusion.process import Denoiser, Diffusion

Noise = Callable[[], Tensor]
"""Draws the next standard normal noise of a batch, (B, C, H, W)."""
Guidance = Callable[[Tensor, Tensor], Tensor]
"""(x_t, timesteps (B,)) to the gradient with respect to x_t that the sample is to follow."""


class SamplerStep(Protocol):
    """Takes a batch from one step of the process to the one before."""

    def __call__(
        self,
        diffusion: Diffusion,
        denoiser: Denoiser,
        x: Tensor,
        step: int,
        noise: Noise,
        *,
        guidance: Guidance | None = None,
        clip: bool = True,
    ) -> Tensor:
        """x_t (B, C, H, W) to x_{t-1}; `clip` clamps the guessed image to [-1, 1] on the way."""


def ddpm_step(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x: Tensor,
    step: int,
    noise: Noise,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), guided as Dhariwal & Nichol's Algorithm 1.

    The guidance gradient is taken at x_t, as the released code does, not at the mean.
    """
    posterior = diffusion.posterior(diffusion.call(denoiser, x, step), x, step, clip=clip)
    mean = posterior.mean
    if guidance is not None:
        mean = mean + posterior.log_variance.exp() * diffusion.call(guidance, x, step)
    if step == 0:
        return mean
    return mean + torch.exp(0.5 * posterior.log_variance) * noise()


def ddim_step(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x: Tensor,
    step: int,
    noise: Noise,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2020, equation 12), guided as Dhariwal & Nichol's Algorithm 2.

    `eta` is the share of ancestral noise: 0 is deterministic and draws none.
    """
    x0 = diffusion.posterior(diffusion.call(denoiser, x, step), x, step, clip=clip).x0
    epsilon = diffusion.epsilon_from_x0(x, step, x0)
    if guidance is not None:
        gradient = diffusion.call(guidance, x, step)
        x0 = diffusion.x0_from_epsilon(x, step, epsilon - diffusion.at(diffusion.noise_scale, step) * gradient)
        epsilon = diffusion.epsilon_from_x0(x, step, x0)
    abar, abar_before = diffusion.at(diffusion.abar, step), diffusion.at(diffusion.abar_before, step)
    sigma = eta * torch.sqrt((1 - abar_before) / (1 - abar)) * torch.sqrt(1 - abar / abar_before)
    before = x0 * abar_before.sqrt() + torch.sqrt(1 - abar_before - sigma**2) * epsilon
    return before if eta == 0 or step == 0 else before + sigma * noise()


def sample(
    sampler_step: SamplerStep,
    diffusion: Diffusion,
    denoiser: Denoiser,
    noise: Noise,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
    evaluated: Callable[[], None] | None = None,
) -> Tensor:
    """Pure noise, taken through every step of the process: images (B, C, H, W), about in [-1, 1].

    `evaluated` is called after every step.
    """
    x = noise()
    for step in reversed(range(len(diffusion))):
        x = sampler_step(diffusion, denoiser, x, step, noise, guidance=guidance, clip=clip)
        if evaluated is not None:
            evaluated()
    return x
