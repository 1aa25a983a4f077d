"""Images to latents and back, where the answer is known; and the way between latents."""

import numpy as np
import pytest
import torch
from torch import Tensor

from generators.diffusion.encoding import encode, interpolate
from generators.diffusion.process import Denoiser, Diffusion, DiffusionConfig
from generators.diffusion.samplers import ddim_step, sample

CONFIG = DiffusionConfig(variance="fixed-small", loss="simple")
EVERY_ABAR = Diffusion(CONFIG).abar
VARIANCE = 0.25


def standard_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decode(diffusion: Diffusion, denoiser: Denoiser, latent: Tensor, *, clip: bool = True) -> Tensor:
    def no_noise() -> Tensor:
        raise AssertionError("decoding is deterministic")

    return sample(ddim_step, diffusion, denoiser, no_noise, latent=latent, clip=clip)


def gaussian_denoiser(x: Tensor, timesteps: Tensor) -> Tensor:
    """The best there is where every pixel is normal around 0 with variance `VARIANCE`."""
    abar = EVERY_ABAR[timesteps][:, None, None, None]
    return x * torch.sqrt(1 - abar) / (VARIANCE * abar + 1 - abar)


@pytest.mark.parametrize("respacing", ["2", "ddim25", "10,5", None])
def test_levels_are_those_that_decoding_starts_from(respacing: str | None) -> None:
    """A network that always names one noise makes every step of DDIM exact."""
    diffusion = Diffusion(CONFIG, respacing=respacing)
    x0, epsilon = standard_normal(4, 3, 4, 4).clamp(-1, 1), standard_normal(4, 3, 4, 4, seed=1)
    latent = encode(diffusion, lambda _x, _timesteps: epsilon, x0, clip=False)
    torch.testing.assert_close(latent, diffusion.add_noise(x0, len(diffusion) - 1, epsilon), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        decode(diffusion, lambda _x, _timesteps: epsilon, latent, clip=False), x0, rtol=0, atol=2e-2
    )  # the last step's signal is 0.006 of the latent: what float32 leaves


def test_errors_vanish_with_finer_steps() -> None:
    x0 = VARIANCE**0.5 * standard_normal(4, 3, 8, 8)
    errors = []
    for num_steps in (25, 50, 100, 200):
        diffusion = Diffusion(CONFIG, num_steps=num_steps)
        latent = encode(diffusion, gaussian_denoiser, x0, clip=False)
        abar = diffusion.abar[-1]
        exact = x0 * torch.sqrt(abar + (1 - abar) / VARIANCE)  # the flow keeps each pixel's quantile
        back = decode(diffusion, gaussian_denoiser, latent, clip=False)
        errors.append([(latent - exact).abs().max().item(), (back - x0).abs().max().item()])
    ratios = np.divide(errors[1:], errors[:-1])
    assert (ratios > 0.4).all()
    assert (ratios < 0.6).all()  # first order: half the step, half the error
    assert errors[-1][1] < 0.1


def test_encoding_costs_what_decoding_costs() -> None:
    evaluated, seen = [], []
    diffusion = Diffusion(CONFIG, num_steps=5)

    def denoiser(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(int(timesteps[0]))
        return gaussian_denoiser(x, timesteps)

    encode(diffusion, denoiser, standard_normal(1, 3, 2, 2), evaluated=lambda: evaluated.append(1))
    assert len(evaluated) == len(diffusion)
    assert seen == [0, *diffusion.schedule.timesteps[:-1]]


def test_clipping_bounds_the_guessed_images() -> None:
    diffusion, x0 = Diffusion(CONFIG, num_steps=5), standard_normal(2, 3, 4, 4).clamp(-1, 1)

    def overshooting(x: Tensor, timesteps: Tensor) -> Tensor:
        return -3 * gaussian_denoiser(x, timesteps)

    def bounded(x: Tensor, timesteps: Tensor) -> Tensor:
        step = diffusion.schedule.timesteps.index(int(timesteps[0]))
        guess = diffusion.x0_from_epsilon(x, step, overshooting(x, timesteps))
        return diffusion.epsilon_from_x0(x, step, guess.clamp(-1, 1))

    clipped = encode(diffusion, overshooting, x0)
    torch.testing.assert_close(clipped, encode(diffusion, bounded, x0, clip=False), rtol=1e-4, atol=1e-4)
    assert not clipped.allclose(encode(diffusion, overshooting, x0, clip=False), atol=0.1)


def test_interpolation_is_on_the_great_circle() -> None:
    first, second = standard_normal(2, 3, 4, 4), standard_normal(2, 3, 4, 4, seed=1)
    fractions = (0.0, 0.3, 1.0)
    between = interpolate(first, second, fractions)
    assert between.shape == (3, 2, 3, 4, 4)
    for row in range(2):
        a, b = (x[row].double().numpy() for x in (first, second))
        angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        for place, far in enumerate(fractions):
            expected = (np.sin((1 - far) * angle) * a + np.sin(far * angle) * b) / np.sin(angle)
            np.testing.assert_allclose(between[place, row], expected, rtol=1e-5, atol=1e-6)


def test_interpolated_latents_are_as_noisy_as_their_ends() -> None:
    first, second = standard_normal(8, 3, 32, 32), standard_normal(8, 3, 32, 32, seed=1)
    spreads = interpolate(first, second, (0.25, 0.5)).flatten(2).std(dim=2)
    assert (spreads - 1).abs().max() < 0.05  # a straight line's would be 0.79 and 0.71


@pytest.mark.parametrize(("factor", "halfway"), [(1.0, 1.0), (1.0001, 1.00005), (3.0, 2.0), (-1.0, 0.0)])
def test_rows_on_one_line_are_joined_straight(factor: float, halfway: float) -> None:
    first = standard_normal(2, 3, 4, 4)
    torch.testing.assert_close(interpolate(first, factor * first, (0.5,))[0], halfway * first)


def test_latents_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of shapes \(1, 3, 4, 4\) and \(1, 3, 8, 8\); expected two of one"):
        interpolate(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), (0.5,))
