"""Bits per dimension where the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from generators.diffusion.likelihood import bits_per_dim
from generators.diffusion.process import Diffusion, DiffusionConfig

CONFIG = DiffusionConfig(variance="fixed-small", loss="simple")
EVERY_ABAR = Diffusion(CONFIG).abar


class Draws:
    """Noise that remembers what it drew."""

    def __init__(self, seed: int, *shape: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.drawn: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.drawn.append(torch.randn(self.shape, generator=self.generator))
        return self.drawn[-1]


def images(variance: float) -> Tensor:
    return (variance**0.5 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def denoiser_for(variance: float, asked: list[int] | None = None) -> torch.nn.Module:
    """The best there is for pixels that are normal around 0, as a network with a parameter."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.variance = torch.nn.Parameter(torch.tensor(variance))

        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            if asked is not None:
                asked.append(int(timesteps[0]))
            abar = EVERY_ABAR[timesteps][:, None, None, None]
            return x * torch.sqrt(1 - abar) / (self.variance * abar + 1 - abar)

    return Network()


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(1000, 5), (4000, 7), (4000, 4000)])
def test_the_prior_keeps_its_digits_where_hardly_any_signal_is_left(num_timesteps: int, num_steps: int) -> None:
    config = DiffusionConfig(num_timesteps=num_timesteps, variance="fixed-small", loss="simple")
    diffusion, x0 = Diffusion(config, num_steps=num_steps), images(0.25)[:2]
    found = bits_per_dim(diffusion, lambda x, _timesteps: x, x0, Draws(0, 2, 3, 8, 8)).prior
    abar = float(np.prod(1 - diffusion.schedule.betas))
    squares = x0.double().square().mean(dim=(1, 2, 3))
    expected = 0.5 * (-1 - math.log(1 - abar) + (1 - abar) + abar * squares) / math.log(2)
    # float32 differences of numbers near 1 keep some 1e-7 of them
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-7)


def test_a_network_that_knows_the_noise_makes_no_errors_but_at_the_end() -> None:
    diffusion, noise = Diffusion(CONFIG, num_steps=10), Draws(1, 4, 3, 8, 8)
    x0 = images(0.09)[:4]
    likelihood = bits_per_dim(diffusion, lambda _x, _timesteps: noise.drawn[-1], x0, noise)
    assert likelihood.vb.shape == likelihood.x0_mse.shape == likelihood.epsilon_mse.shape == (4, 10)
    # x0 from the last step's signal of 0.006 has float32's rounding, so many times over
    assert likelihood.x0_mse.max() < 1e-6
    assert likelihood.epsilon_mse.max() < 1e-6
    assert likelihood.vb[:, :-1].abs().max() < 1e-4
    # at step 0 the mean is x0 itself: the share of a normal distribution within half a level of its mean,
    # but for the approximate distribution function, and more for pixels at the ends of the range
    scale = math.exp(0.5 * diffusion.log_posterior_variance[0])
    nats = -math.log(math.erf(1 / 255 / scale / math.sqrt(2)))
    assert likelihood.vb[:, -1].tolist() == pytest.approx([nats / math.log(2)] * 4, abs=0.03)


def test_the_prior_is_what_the_last_step_leaves() -> None:
    diffusion, x0 = Diffusion(CONFIG, respacing=(2, 1)), images(0.25)  # ends at timestep 500: much is left
    likelihood = bits_per_dim(diffusion, denoiser_for(0.25), x0, Draws(2, *x0.shape))
    abar = math.prod(1 - beta for beta in diffusion.schedule.betas)
    squares = abar * x0.double().square().mean(dim=(1, 2, 3))
    expected = 0.5 * (squares + (1 - abar) - 1 - math.log(1 - abar)) / math.log(2)
    torch.testing.assert_close(likelihood.prior.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(likelihood.total, likelihood.vb.sum(dim=1) + likelihood.prior)


def test_the_right_model_has_the_fewest_bits() -> None:
    diffusion, x0 = Diffusion(CONFIG), images(0.01)
    bits = {
        variance: bits_per_dim(diffusion, denoiser_for(variance), x0, Draws(3, *x0.shape)).total.mean().item()
        for variance in (0.0025, 0.01, 0.04)
    }
    assert min(bits, key=bits.__getitem__) == 0.01
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.01) + math.log2(127.5)  # of a pixel in levels of 2 / 255
    assert entropy < bits[0.01] < entropy + 0.8


def test_steps_run_down_and_nothing_is_kept_for_gradients() -> None:
    asked: list[int] = []
    evaluated: list[int] = []
    diffusion, x0, noise = Diffusion(CONFIG, num_steps=5), images(0.25), Draws(4, 16, 3, 8, 8)
    likelihood = bits_per_dim(diffusion, denoiser_for(0.25, asked), x0, noise, evaluated=lambda: evaluated.append(1))
    assert asked == list(reversed(diffusion.schedule.timesteps))
    assert (len(evaluated), len(noise.drawn)) == (5, 5)
    assert not likelihood.total.requires_grad
    assert (likelihood.x0_mse.mean(dim=0).diff()[1:] < 0).all()  # easier towards step 0


def test_images_do_not_know_of_each_other() -> None:
    diffusion, x0, noise = Diffusion(CONFIG, num_steps=5), images(0.25), Draws(5, 16, 3, 8, 8)
    whole = bits_per_dim(diffusion, denoiser_for(0.25), x0, noise)
    rows = iter([drawn[3:5] for drawn in noise.drawn])
    part = bits_per_dim(diffusion, denoiser_for(0.25), x0[3:5], lambda: next(rows))
    torch.testing.assert_close(part.total, whole.total[3:5])


def test_clipping_the_guess_helps_a_model_that_overshoots() -> None:
    diffusion, x0 = Diffusion(CONFIG, num_steps=10), images(0.25)
    clipped, free = (
        bits_per_dim(diffusion, denoiser_for(4.0), x0, Draws(6, *x0.shape), clip=clip) for clip in (True, False)
    )
    assert clipped.x0_mse.sum() < 0.9 * free.x0_mse.sum()
    assert clipped.total.mean() < free.total.mean()
