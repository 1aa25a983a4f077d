"""Likelihood of images under a model: the variational bound, term by term (Ho et al. 2020, equation 5)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generators.diffusion.losses import NATS_PER_BIT, gaussian_kl, mean_over_image, variational_bound_term
from generators.diffusion.process import Denoiser, Diffusion
from generators.diffusion.samplers import Noise


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The bound of B images in bits per dimension, and the errors behind it.

    Tables are (B, steps), and their columns run as sampling does: from the last step down to 0.
    """

    total: Tensor
    """Sum of `vb` and `prior`, (B,): what published NLLs are means of."""
    prior: Tensor
    """Bits of what the last step leaves of the image, (B,)."""
    vb: Tensor
    """The bound's term of each step."""
    x0_mse: Tensor
    """Mean squared error of the guessed image, pixels in [-1, 1]."""
    epsilon_mse: Tensor
    """Mean squared error of the noise that the guessed image implies."""


def bits_per_dim(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Noise,
    *,
    clip: bool = True,
    evaluated: Callable[[], None] | None = None,
) -> Likelihood:
    """The likelihood of images x0 (B, C, H, W) in [-1, 1], from one network evaluation a step; without gradients.

    Each step noises the images with the next draw of `noise`. `clip` clamps the guessed image to [-1, 1];
    `evaluated` is called after every step.
    """
    vb, x0_mse, epsilon_mse = [], [], []
    with torch.inference_mode():
        for step in reversed(range(len(diffusion))):
            steps = torch.full((len(x0),), step, device=x0.device)
            drawn = noise()
            x = diffusion.add_noise(x0, step, drawn)
            posterior = diffusion.posterior(diffusion.call(denoiser, x, step).float(), x, step, clip=clip)
            vb.append(variational_bound_term(diffusion, posterior, x0, x, steps))
            x0_mse.append(mean_over_image((posterior.x0 - x0).square()))
            epsilon_mse.append(mean_over_image((diffusion.epsilon_from_x0(x, step, posterior.x0) - drawn).square()))
            if evaluated is not None:
                evaluated()
        prior = _prior(diffusion, x0)
        terms = torch.stack(vb, dim=1)
        return Likelihood(
            total=terms.sum(dim=1) + prior,
            prior=prior,
            vb=terms,
            x0_mse=torch.stack(x0_mse, dim=1),
            epsilon_mse=torch.stack(epsilon_mse, dim=1),
        )


def _prior(diffusion: Diffusion, x0: Tensor) -> Tensor:
    """Divergence of q(x_T | x_0) from pure noise, in bits per dimension: (B,)."""
    last = len(diffusion) - 1
    mean = diffusion.at(diffusion.signal_scale, last) * x0
    log_variance = diffusion.at(diffusion.log_noise_variance, last)
    nothing = torch.zeros_like(mean)
    return mean_over_image(gaussian_kl(mean, log_variance, nothing, nothing)) / NATS_PER_BIT
