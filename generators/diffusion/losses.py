"""Training losses, one value an image, averaged over its dimensions (Nichol & Dhariwal 2021, section 3.1)."""

import math

import torch
from torch import Tensor

from generators.diffusion.process import Denoiser, Diffusion, Posterior

NATS_PER_BIT = math.log(2.0)
HALF_BIN = 1 / 255
SMALLEST_PROBABILITY = 1e-12


def mean_over_image(values: Tensor) -> Tensor:
    """(B, ...) to (B,)."""
    return values.flatten(1).mean(dim=1)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of the first normal distribution from the second, per element, in nats."""
    spread = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 - 1 + spread + distance)


def standard_normal_cdf(z: Tensor) -> Tensor:
    """The tanh approximation that ADM's likelihoods were computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, per element in nats, of the 8-bit level that x in [-1, 1] stands for.

    The outermost levels take the whole tails (Ho et al. 2020, equation 13).
    """
    centred, inverse_scale = x - mean, torch.exp(-log_scale)
    below_upper = standard_normal_cdf(inverse_scale * (centred + HALF_BIN))
    below_lower = standard_normal_cdf(inverse_scale * (centred - HALF_BIN))
    probability = torch.where(
        x < -0.999, below_upper, torch.where(x > 0.999, 1 - below_lower, below_upper - below_lower)
    )
    return probability.clamp(min=SMALLEST_PROBABILITY).log()


def variational_bound_term(diffusion: Diffusion, posterior: Posterior, x0: Tensor, x: Tensor, steps: Tensor) -> Tensor:
    """One term of the variational bound for each image, in bits per dimension: (B,).

    The likelihood of x0 at step 0, and the divergence of the true posterior elsewhere.
    """
    log_variance = posterior.log_variance.expand_as(x)
    true_mean = diffusion.true_posterior_mean(x0, x, steps)
    true_log_variance = diffusion.at(diffusion.log_posterior_variance, steps)
    divergence = gaussian_kl(true_mean, true_log_variance, posterior.mean, log_variance)
    likelihood = discretised_gaussian_log_likelihood(x0, posterior.mean, 0.5 * log_variance)
    term = torch.where(steps == 0, -mean_over_image(likelihood), mean_over_image(divergence))
    return term / NATS_PER_BIT


def training_losses(
    diffusion: Diffusion, denoiser: Denoiser, x0: Tensor, steps: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """`loss` and its parts `mse` and `vb`, each (B,), for images noised to their steps.

    `hybrid` is L_simple + the bound's term with the mean detached, which in bits per dimension over 1000
    steps amounts to the paper's lambda of 0.001; the `rescaled` kinds multiply the term by steps / 1000
    (hybrid) or by the number of steps (variational).
    """
    kind = diffusion.config.loss
    x = diffusion.add_noise(x0, steps, noise)
    output = diffusion.call(denoiser, x, steps).float()
    if kind in ("variational", "rescaled-variational"):
        posterior = diffusion.posterior(output, x, steps, clip=False)
        loss = variational_bound_term(diffusion, posterior, x0, x, steps)
        return {"loss": loss * len(diffusion) if kind == "rescaled-variational" else loss}
    prediction, values = diffusion.split_output(output, x)
    target = {
        "epsilon": lambda: noise,
        "x0": lambda: x0,
        "previous-x": lambda: diffusion.true_posterior_mean(x0, x, steps),
    }[diffusion.config.prediction]()
    mse = mean_over_image((target - prediction).square())
    if values is None:
        return {"loss": mse, "mse": mse}
    frozen = torch.cat([prediction.detach(), values], dim=1)
    vb = variational_bound_term(diffusion, diffusion.posterior(frozen, x, steps, clip=False), x0, x, steps)
    if kind == "rescaled-hybrid":
        vb = vb * (len(diffusion) / 1000)
    return {"loss": mse + vb, "mse": mse, "vb": vb}
