"""The diffusion process against what guided-diffusion computes, at the tolerances of its specification."""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from generators.diffusion.encoding import ddim_encode_step
from generators.diffusion.guidance import classifier_guidance
from generators.diffusion.likelihood import bits_per_dim
from generators.diffusion.losses import (
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    training_losses,
)
from generators.diffusion.process import Diffusion, DiffusionConfig, Prediction, Variance
from generators.diffusion.samplers import (
    Guidance,
    SamplerStep,
    ddim_step,
    ddpm_step,
    guided_mean,
    guided_x0,
    sample,
)
from generators.diffusion.schedule import betas, kept_timesteps
from generators.unet.layers import timestep_embedding

Golden = Callable[[str], Tensor]
Tables = dict[str, Mapping[str, Any]]
STEPS = torch.tensor([0, 1, 5, 9])
PREDICTIONS = {"EPSILON": "epsilon", "START_X": "x0", "PREVIOUS_X": "previous-x"}
VARIANCES = {
    "LEARNED": "learned",
    "FIXED_SMALL": "fixed-small",
    "FIXED_LARGE": "fixed-large",
    "LEARNED_RANGE": "learned-range",
}
LOSSES = {
    "MSE": "hybrid",
    "RESCALED_MSE": "rescaled-hybrid",
    "KL": "variational",
    "RESCALED_KL": "rescaled-variational",
}
SCHEDULES = list(itertools.product(("linear", "cosine"), (20, 100, 1000, 4000)))
NO_LINEAR_SCHEDULE = ("linear", 20)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_the_table_names_every_kind() -> None:
    assert set(PREDICTIONS.values()) == set(get_args(Prediction))
    assert set(VARIANCES.values()) == set(get_args(Variance))


def make(
    prediction: str = "EPSILON", variance: str = "LEARNED_RANGE", loss: str = "MSE", schedule: str = "linear"
) -> Diffusion:
    """The reference's 1000 steps, respaced to 10."""
    fixed = variance.startswith("FIXED")
    kind = "simple" if fixed and loss.endswith("MSE") else LOSSES[loss]
    config = DiffusionConfig(
        schedule=schedule, prediction=PREDICTIONS[prediction], variance=VARIANCES[variance], loss=kind
    )
    return Diffusion(config, num_steps=10)


def toy_network(x: Tensor, timesteps: Tensor, *, learned: bool = True) -> Tensor:
    """The goldens' stand-in for a network."""
    prediction = 0.3 * x + 0.1 * torch.sin(timesteps.float() / 100)[:, None, None, None]
    return torch.cat([prediction, 0.5 * torch.tanh(x)], dim=1) if learned else prediction


def toy_guidance(x: Tensor, timesteps: Tensor) -> Tensor:
    """The goldens' stand-in for a classifier's gradient."""
    return -0.7 * x + 0.01 * timesteps.float()[:, None, None, None]


@pytest.fixture
def noise() -> Callable[[], Tensor]:
    """The reference's noise: one stream for the whole batch, seeded 123."""
    generator = torch.Generator().manual_seed(123)
    return lambda: torch.randn(4, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("name", ["in_x0", "in_xt", "in_nz", "in_x32", "in_lr8"])
def test_golden_inputs_follow_their_rules(name: str, golden: Golden, arrays: Mapping[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(golden(name), arrays[name])


@pytest.mark.parametrize(("name", "steps"), [schedule for schedule in SCHEDULES if schedule != NO_LINEAR_SCHEDULE])
def test_golden_betas(name: str, steps: int, arrays: Mapping[str, np.ndarray], tables: Tables) -> None:
    ours, stored = betas(name, steps), arrays[f"betas_{name}_{steps}"]
    np.testing.assert_allclose(ours, stored, rtol=1e-12)
    expected = tables["betas"][f"{name}_{steps}"]
    assert hashlib.sha256(stored.tobytes()).hexdigest() == expected["sha256_float64"]
    found = {"first": ours[0], "second": ours[1], "mid": ours[steps // 2], "last": ours[-1], "sum": ours.sum()}
    assert {**found, "prod_alpha": np.prod(1 - ours)} == pytest.approx(
        {field: value for field, value in expected.items() if field != "sha256_float64"}, rel=1e-12
    )


def test_golden_betas_of_too_few_steps(arrays: Mapping[str, np.ndarray], tables: Tables) -> None:
    stored, expected = arrays["betas_linear_20"], tables["betas"]["linear_20"]
    assert (stored[-1], expected["last"], expected["prod_alpha"]) == (1, 1, 0)  # no signal: tables are infinite
    with pytest.raises(ValueError, match="linear schedule of 20 steps is too short; expected 21 or more"):
        betas("linear", 20)


def test_golden_respacing(tables: Tables) -> None:
    for case, expected in tables["respacing"].items():
        total, respacing = case.split("|")
        if "error" in expected:
            with pytest.raises(ValueError, match="cannot keep"):
                kept_timesteps(int(total), respacing)
            continue
        steps = list(kept_timesteps(int(total), respacing))
        assert hashlib.sha256(",".join(map(str, steps)).encode()).hexdigest() == expected["sha256_csv"], case
        assert (len(steps), steps[:8], steps[-4:]) == (
            expected["n"], expected["first"][:8], expected["last"][-4:]
        ), case  # fmt: skip
        assert expected["all"] in (None, steps), case


def test_golden_respaced_tables(arrays: Mapping[str, np.ndarray]) -> None:
    diffusion = make()
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    np.testing.assert_allclose(diffusion.schedule.betas, arrays["spaced10_betas"], rtol=1e-12)
    close(diffusion.abar, arrays["spaced10_alphas_cumprod"])
    close(diffusion.abar_before, arrays["spaced10_alphas_cumprod_prev"])
    close(diffusion.abar_after, arrays["spaced10_alphas_cumprod_next"])
    close(diffusion.log_posterior_variance, arrays["spaced10_posterior_log_variance_clipped"])
    variance = arrays["spaced10_posterior_variance"]
    assert variance[0] == 0  # why its logarithm is clipped
    close(diffusion.log_posterior_variance.exp()[1:], variance[1:])
    close(diffusion.posterior_x0_weight, arrays["spaced10_posterior_mean_coef1"])
    close(diffusion.posterior_xt_weight, arrays["spaced10_posterior_mean_coef2"])
    np.testing.assert_array_equal(diffusion.network_timesteps, arrays["spaced10_timestep_map"])


def test_golden_network_timesteps(tables: Tables) -> None:
    for case in tables["network_timesteps"].values():
        config = DiffusionConfig(num_timesteps=case["steps"], rescale_timesteps=case["rescale_timesteps"])
        diffusion = Diffusion(config, respacing=case["respacing"] or None)
        told = diffusion.network_timesteps
        assert (len(diffusion), str(told.dtype)) == (case["num_timesteps"], case["dtype"])
        assert told[[0, -1]].tolist() == case["network_sees"]


@pytest.mark.parametrize("width", [7, 8, 64])
def test_golden_timestep_embedding(width: int, golden: Golden) -> None:
    timesteps = torch.tensor([0, 1, 2.5, 500, 999])
    torch.testing.assert_close(timestep_embedding(timesteps, width), golden(f"temb_d{width}"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "variance", "schedule", "clip"),
    list(itertools.product(PREDICTIONS, VARIANCES, ("linear", "cosine"), (True, False))),
)
def test_golden_posterior(prediction: str, variance: str, schedule: str, clip: bool, golden: Golden) -> None:
    diffusion = make(prediction, variance, schedule=schedule)
    network = partial(toy_network, learned=diffusion.config.learns_variance)
    x = golden("in_xt")
    posterior = diffusion.posterior(diffusion.call(network, x, STEPS), x, STEPS, clip=clip)
    name = f"pmv|{prediction}|{variance}|{schedule}|clip{int(clip)}|"
    torch.testing.assert_close(posterior.mean, golden(name + "mean"), **CLOSE)
    torch.testing.assert_close(posterior.log_variance.expand_as(x), golden(name + "log_variance"), **CLOSE)
    torch.testing.assert_close(posterior.x0, golden(name + "pred_xstart"), **CLOSE)


def test_golden_losses(tables: Tables, golden: Golden) -> None:
    assert len(tables["losses"]) == 96
    for case, expected in tables["losses"].items():
        diffusion = make(*case.split("|"))
        network = partial(toy_network, learned=diffusion.config.learns_variance)
        losses = training_losses(diffusion, network, golden("in_x0"), STEPS, golden("in_nz"))
        assert set(losses) == set(expected), case
        for part, values in expected.items():
            torch.testing.assert_close(losses[part], torch.tensor(values), **CLOSE, msg=f"{case} {part}")


def test_golden_densities(golden: Golden) -> None:
    x0, xt = golden("in_x0"), golden("in_xt")
    torch.testing.assert_close(gaussian_kl(x0, 0.1 * xt, xt, x0), golden("normal_kl"), **CLOSE)
    likelihood = discretised_gaussian_log_likelihood(x0, 0.5 * xt, torch.full_like(x0, -3))
    torch.testing.assert_close(likelihood, golden("disc_gauss_ll"), **CLOSE)


def test_golden_noising(golden: Golden) -> None:
    noised = make().add_noise(golden("in_x0"), STEPS, golden("in_nz"))
    torch.testing.assert_close(noised, golden("q_sample"), **CLOSE)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("p_sample", ddpm_step),
        ("p_sample_cond", partial(ddpm_step, guidance=toy_guidance)),
        ("ddim_sample_eta0.0", ddim_step),
        ("ddim_sample_eta0.5", partial(ddim_step, eta=0.5)),
        ("ddim_sample_eta1.0", partial(ddim_step, eta=1.0)),
        ("ddim_sample_cond", partial(ddim_step, guidance=toy_guidance)),
    ],
)
def test_golden_sampler_steps(name: str, step: SamplerStep, golden: Golden, noise: Callable[[], Tensor]) -> None:
    x, drawn = golden("in_xt"), noise()
    rows = [step(make(), toy_network, x[i : i + 1], int(t), lambda i=i: drawn[i : i + 1]) for i, t in enumerate(STEPS)]
    torch.testing.assert_close(torch.cat(rows), golden(name), **CLOSE)


@pytest.mark.parametrize(
    ("name", "step", "guidance"),
    [
        ("p_sample_loop", ddpm_step, None),
        ("p_sample_loop_cond", ddpm_step, toy_guidance),
        ("ddim_sample_loop", ddim_step, None),
        ("ddim_sample_loop_cond", ddim_step, toy_guidance),
    ],
)
def test_golden_sampler_loops(
    name: str, step: SamplerStep, guidance: Guidance | None, golden: Golden, noise: Callable[[], Tensor]
) -> None:
    samples = sample(step, make(), toy_network, noise, guidance=guidance)
    torch.testing.assert_close(samples, golden(name), **CLOSE)


def test_golden_parts_of_guided_steps(golden: Golden) -> None:
    diffusion, x = make(), golden("in_xt")
    posterior = diffusion.posterior(diffusion.call(toy_network, x, STEPS), x, STEPS)
    gradient = diffusion.call(toy_guidance, x, STEPS)
    torch.testing.assert_close(guided_mean(posterior, gradient), golden("condition_mean"), **CLOSE)
    x0 = guided_x0(diffusion, x, STEPS, posterior.x0, gradient)
    torch.testing.assert_close(x0, golden("condition_score_pred_xstart"), **CLOSE)
    torch.testing.assert_close(diffusion.true_posterior_mean(x0, x, STEPS), golden("condition_score_mean"), **CLOSE)


def test_golden_encoding_steps(golden: Golden) -> None:
    x = golden("in_xt")
    rows = [ddim_encode_step(make(), toy_network, x[i : i + 1], int(step)) for i, step in enumerate(STEPS)]
    torch.testing.assert_close(torch.cat(rows), golden("ddim_reverse_sample"), **CLOSE)


def test_golden_bits_per_dimension(golden: Golden, noise: Callable[[], Tensor]) -> None:
    likelihood = bits_per_dim(make(), toy_network, golden("in_x0"), noise)
    names = {
        "total": "bpd_total_bpd", "prior": "bpd_prior_bpd", "vb": "bpd_vb",
        "x0_mse": "bpd_xstart_mse", "epsilon_mse": "bpd_mse",
    }  # fmt: skip
    for field, name in names.items():
        torch.testing.assert_close(getattr(likelihood, field), golden(name), **CLOSE, msg=field)


def test_golden_guidance_gradient(build: Any, golden: Golden) -> None:
    classifier = build("encoder_attention").requires_grad_(requires_grad=False)
    with torch.inference_mode():
        x = golden("in_x32").clone()  # as it comes to guidance in sampling: made in inference mode
        gradient = classifier_guidance(classifier, torch.tensor([1, 7]), 1.0)(x, torch.tensor([3, 971]))
    torch.testing.assert_close(gradient, golden("classifier_guidance_grad"), rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in classifier.parameters())
