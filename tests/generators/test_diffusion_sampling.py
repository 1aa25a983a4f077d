"""What sampling may be asked for beside a sampler: where guidance looks, temperatures, a start."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.diffusion.samplers import Noise, SamplerStep, ddim_step, ddpm_step, sample, tempered

SHAPE = (4, 3, 8, 8)


def process(num_steps: int = 10, **changes: object) -> Diffusion:
    return Diffusion(DiffusionConfig(**{"variance": "fixed-small", "loss": "simple", **changes}), num_steps=num_steps)


def stream(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def gaussian_denoiser(x: Tensor, timesteps: Tensor) -> Tensor:
    """The best there is where every pixel is normal around 0 with variance 0.25."""
    abar = Diffusion(DiffusionConfig(variance="fixed-small", loss="simple")).abar[timesteps][:, None, None, None]
    return x * torch.sqrt(1 - abar) / (0.25 * abar + 1 - abar)


@pytest.mark.parametrize(("step", "timestep_of_the_mean"), [(9, 888), (1, 0), (0, 0)])
def test_guidance_looks_where_it_is_told(step: int, timestep_of_the_mean: int) -> None:
    diffusion, x, asked = process(), stream(0)(), []

    def guidance(point: Tensor, timesteps: Tensor) -> Tensor:
        asked.append((point, timesteps.tolist()))
        return 0.1 * point

    posterior = diffusion.posterior(diffusion.call(gaussian_denoiser, x, step), x, step)
    expected = {"x_t": (x, diffusion.schedule.timesteps[step]), "mean": (posterior.mean, timestep_of_the_mean)}
    for guidance_at, (point, timestep) in expected.items():
        moved = ddpm_step(
            diffusion,
            gaussian_denoiser,
            x,
            step,
            lambda: torch.zeros(SHAPE),
            guidance=guidance,
            guidance_at=guidance_at,
        )
        seen, told = asked.pop()
        assert seen.equal(point)
        assert told == [timestep] * len(x)
        torch.testing.assert_close(moved, posterior.mean + posterior.variance * 0.1 * point)
    torch.testing.assert_close(ddpm_step(diffusion, gaussian_denoiser, x, 0, stream(1), guidance=guidance),
                               ddpm_step(diffusion, gaussian_denoiser, x, 0, stream(2), guidance=guidance))  # fmt: skip


@pytest.mark.parametrize(("variance", "moves"), [("fixed-small", False), ("fixed-large", True)])
def test_a_step_without_variance_is_not_guided(variance: str, moves: bool) -> None:
    """The posterior's variance is 0 at the first step, whatever stands in its logarithm there."""
    diffusion, x = process(variance=variance), stream(0)()
    plain = ddpm_step(diffusion, gaussian_denoiser, x, 0, stream(1))
    guided = ddpm_step(diffusion, gaussian_denoiser, x, 0, stream(1), guidance=lambda x, _: torch.full_like(x, 100.0))
    assert guided.equal(plain) != moves


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.5])
def test_noise_temperature_scales_what_steps_add_and_not_the_start(temperature: float) -> None:
    reference, drawn = stream(3), []

    def step(_diffusion: Diffusion, _denoiser: object, x: Tensor, _step: int, noise: Noise, **_: object) -> Tensor:
        drawn.append(noise())
        return x

    start = sample(step, process(), gaussian_denoiser, stream(3), noise_temperature=temperature)
    assert start.equal(reference())
    assert len(drawn) == 10
    assert all(noise.equal(temperature * reference()) for noise in drawn)


def spread(step: SamplerStep, temperature: float = 1.0, noise_temperature: float = 1.0) -> float:
    diffusion = process(50)
    denoiser = tempered(gaussian_denoiser, diffusion, temperature)
    return sample(step, diffusion, denoiser, stream(4), clip=False, noise_temperature=noise_temperature).std().item()


def test_lower_temperatures_narrow_the_distribution() -> None:
    assert spread(ddpm_step) == pytest.approx(0.5, rel=0.15)
    assert spread(ddim_step) == pytest.approx(0.5, rel=0.15)
    assert (
        spread(ddpm_step)
        > 1.05 * spread(ddpm_step, noise_temperature=0.9)
        > 1.1 * spread(ddpm_step, noise_temperature=0.8)
    )
    assert spread(partial(ddim_step, eta=1.0), noise_temperature=0.9) < 0.95 * spread(partial(ddim_step, eta=1.0))
    assert spread(ddim_step, noise_temperature=0.5) == spread(ddim_step)  # it adds none
    for step in (ddpm_step, ddim_step):
        narrow = spread(step, temperature=1 / 1.05)
        assert narrow < 0.95 * spread(step)


def test_temperature_of_epsilon_leaves_the_variance_alone() -> None:
    diffusion = process(variance="learned-range", loss="hybrid")
    output = torch.cat([stream(5)(), stream(6)()], dim=1)
    halved = tempered(lambda _x, _timesteps: output, diffusion, 2.0)(torch.zeros(SHAPE), torch.zeros(4))
    assert halved[:, :3].equal(output[:, :3] / 2)
    assert halved[:, 3:].equal(output[:, 3:])
    assert tempered(gaussian_denoiser, diffusion, 1.0) is gaussian_denoiser


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_are_checked(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature of epsilon is .*; expected more than 0"):
        tempered(gaussian_denoiser, process(), temperature)
    if temperature != 0:
        with pytest.raises(ValueError, match=r"noise_temperature is .*; expected 0 or more"):
            sample(ddpm_step, process(), gaussian_denoiser, stream(0), noise_temperature=temperature)


@pytest.mark.parametrize("prediction", ["x0", "previous-x"])
def test_temperature_of_epsilon_needs_epsilon(prediction: str) -> None:
    with pytest.raises(ValueError, match=f"needs prediction 'epsilon', not '{prediction}'"):
        tempered(gaussian_denoiser, process(prediction=prediction), 0.9)
    assert tempered(gaussian_denoiser, process(prediction=prediction), 1.0) is gaussian_denoiser


@pytest.mark.parametrize(("step", "draws"), [(ddpm_step, 9), (ddim_step, 0)])
def test_a_latent_takes_the_place_of_the_first_draw_only(step: SamplerStep, draws: int) -> None:
    drawn: list[Tensor] = []

    def counted(noise: Noise) -> Callable[[], Tensor]:
        return lambda: drawn.append(noise()) or drawn[-1]

    whole = sample(step, process(), gaussian_denoiser, counted(stream(7)))
    assert len(drawn) == draws + 1
    rest, latent = stream(7), drawn[0]
    drawn.clear()
    rest()
    assert sample(step, process(), gaussian_denoiser, counted(rest), latent=latent).equal(whole)
    assert len(drawn) == draws
