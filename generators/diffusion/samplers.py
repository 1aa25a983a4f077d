"""Samplers: one step of each, of one signature, and the loop that takes them all the way."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from generators.diffusion.process import Denoiser, Diffusion, Posterior, Step

Noise = Callable[[], Tensor]
"""Draws the next standard normal noise of a batch, (B, C, H, W)."""
Guidance = Callable[[Tensor, Tensor], Tensor]
"""(x_t, timesteps (B,)) to the gradient with respect to x_t that the sample is to follow."""
GuidancePoint = Literal["x_t", "mean"]


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


def guided_mean(posterior: Posterior, gradient: Tensor) -> Tensor:
    """The posterior's mean, moved along the gradient by its variance (Dhariwal & Nichol 2021, Algorithm 1)."""
    return posterior.mean + posterior.variance * gradient


def guided_x0(diffusion: Diffusion, x: Tensor, step: Step, x0: Tensor, gradient: Tensor) -> Tensor:
    """The guessed image after the gradient has changed the noise that it implies (Algorithm 2); not clamped."""
    epsilon = diffusion.epsilon_from_x0(x, step, x0) - diffusion.at(diffusion.noise_scale, step) * gradient
    return diffusion.x0_from_epsilon(x, step, epsilon)


def ddpm_step(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x: Tensor,
    step: int,
    noise: Noise,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
    guidance_at: GuidancePoint = "x_t",
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), guided as Dhariwal & Nichol's Algorithm 1.

    The gradient is taken at x_t, as the released code does, or at the posterior `mean`, around which the
    paper's equations 3 to 10 expand: the mean stands for x_{t-1}, so the guidance is told that step's timestep.
    """
    posterior = diffusion.posterior(diffusion.call(denoiser, x, step), x, step, clip=clip)
    mean = posterior.mean
    if guidance is not None:
        point, told = (x, step) if guidance_at == "x_t" else (mean, max(step - 1, 0))
        mean = guided_mean(posterior, diffusion.call(guidance, point, told))
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
    if guidance is not None:
        x0 = guided_x0(diffusion, x, step, x0, diffusion.call(guidance, x, step))
    epsilon = diffusion.epsilon_from_x0(x, step, x0)
    abar, abar_before = diffusion.at(diffusion.abar, step), diffusion.at(diffusion.abar_before, step)
    sigma = eta * torch.sqrt((1 - abar_before) / (1 - abar)) * torch.sqrt(1 - abar / abar_before)
    before = x0 * abar_before.sqrt() + torch.sqrt(1 - abar_before - sigma**2) * epsilon
    return before if eta == 0 or step == 0 else before + sigma * noise()


def tempered(denoiser: Denoiser, diffusion: Diffusion, temperature: float) -> Denoiser:
    """A denoiser of the distribution p^(1 / temperature): its score, and so its epsilon, is divided by it.

    ValueError unless the temperature is above 0, and the network predicts epsilon where it is not 1.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature of epsilon is {temperature}; expected more than 0")
    if temperature == 1:
        return denoiser
    if diffusion.config.prediction != "epsilon":
        raise ValueError(
            f"a temperature of epsilon needs prediction 'epsilon', not '{diffusion.config.prediction}'; "
            "change the temperature of the noise instead"
        )

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        epsilon, values = diffusion.split_output(denoiser(x, timesteps), x)
        cooled = epsilon / temperature
        return cooled if values is None else torch.cat([cooled, values], dim=1)

    return denoise


# Nine parameters: a sampler's four, and five settings that are independent of each other and mostly left alone.
def sample(
    sampler_step: SamplerStep,
    diffusion: Diffusion,
    denoiser: Denoiser,
    noise: Noise,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
    noise_temperature: float = 1.0,
    latent: Tensor | None = None,
    evaluated: Callable[[], None] | None = None,
) -> Tensor:
    """Pure noise, taken through every step of the process: images (B, C, H, W), about in [-1, 1].

    It starts from `latent` (B, C, H, W) where one is given, and from the first draw of `noise` otherwise.
    `noise_temperature` scales what the steps add, not the start (Dhariwal & Nichol 2021, Figure 11).
    `evaluated` is called after every step. ValueError where the temperature is below 0.
    """
    if not noise_temperature >= 0:
        raise ValueError(f"noise_temperature is {noise_temperature}; expected 0 or more")
    x = noise() if latent is None else latent

    def added() -> Tensor:
        return noise_temperature * noise()

    for step in reversed(range(len(diffusion))):
        x = sampler_step(diffusion, denoiser, x, step, added, guidance=guidance, clip=clip)
        if evaluated is not None:
            evaluated()
    return x
