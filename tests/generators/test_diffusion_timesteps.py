"""Samplers of training timesteps against plain NumPy."""

import typing
from collections import defaultdict, deque

import numpy as np
import pytest
import torch

from generators.configuration import from_mapping
from generators.diffusion.process import DiffusionConfig
from generators.diffusion.timesteps import (
    LossSecondMoment,
    TimestepSamplerName,
    UniformTimesteps,
    timestep_sampler,
)

Batch = tuple[torch.Tensor, torch.Tensor]


def batches(num_steps: int, num: int, seed: int = 0) -> list[Batch]:
    """Batches of steps, some of them twice in one, with losses that are larger for later steps."""
    rng = np.random.default_rng(seed)
    steps = [rng.integers(0, num_steps, 7) for _ in range(num)]
    return [(torch.from_numpy(s), torch.from_numpy((1 + s) * rng.gamma(2, size=7)).float()) for s in steps]


def plain_probabilities(seen: list[Batch], num_steps: int, history: int, uniform_share: float) -> np.ndarray:
    kept: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=history))
    for steps, losses in seen:
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
            kept[step].append(loss)
    if any(len(kept[step]) < history for step in range(num_steps)):
        return np.full(num_steps, 1 / num_steps)
    size = np.array([np.sqrt(np.mean(np.square(kept[step]))) for step in range(num_steps)])
    return (1 - uniform_share) * size / size.sum() + uniform_share / num_steps


@pytest.mark.parametrize("num_batches", [0, 5, 20, 40, 200])
@pytest.mark.parametrize(("history", "uniform_share"), [(10, 0.001), (3, 0.2)])
def test_probabilities_and_weights(num_batches: int, history: int, uniform_share: float) -> None:
    sampler = LossSecondMoment(5, history, uniform_share)
    seen = batches(5, num_batches)
    for batch in seen:
        sampler.update(*batch)
    expected = plain_probabilities(seen, 5, history, uniform_share)
    np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-12)
    steps, weights = sampler.draw(torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert (steps.dtype, weights.dtype, steps.shape, weights.shape) == (torch.int64, torch.float32, (4000,), (4000,))
    np.testing.assert_allclose(weights, 1 / (5 * expected[steps]), rtol=1e-6)
    np.testing.assert_allclose(np.bincount(steps, minlength=5) / 4000, expected, atol=4 * 0.5 / 4000**0.5)


def test_the_largest_losses_are_drawn_most_once_all_are_known() -> None:
    sampler = LossSecondMoment(3, history=2, uniform_share=0.1)
    sampler.update(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([3.0, 4.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(sampler.probabilities(), np.full(3, 1 / 3))
    sampler.update(torch.tensor([2, 2]), torch.tensor([0.0, 5.0]))  # the 1 is shifted out
    np.testing.assert_allclose(sampler.probabilities(), [0.45 + 0.1 / 3, 0.1 / 3, 0.45 + 0.1 / 3])


LARGEST = 1 - 2.0**-53  # below 1, as uniform numbers are


@pytest.mark.parametrize(
    ("uniform", "num_steps", "step"),
    [
        (0.0, 1000, 0),
        (0.25, 1000, 250),
        (0.2499, 1000, 249),
        (LARGEST, 1000, 999),
        (LARGEST, 3, 2),
        (LARGEST, 4096, 4095),
    ],
)
def test_uniform_steps_are_shares_of_all(uniform: float, num_steps: int, step: int) -> None:
    sampler = UniformTimesteps(num_steps)
    sampler.update(torch.tensor([2]), torch.tensor([5.0]))
    steps, weights = sampler.draw(torch.tensor([uniform, 0.5], dtype=torch.float64))
    assert steps.equal(torch.tensor([step, num_steps // 2]))
    assert weights.equal(torch.ones(2))


def test_steps_by_losses_divide_the_unit_interval_by_their_probabilities() -> None:
    sampler = LossSecondMoment(4, history=1, uniform_share=0.4)
    sampler.update(torch.arange(4), torch.tensor([0.0, 3.0, 2.0, 5.0]))
    np.testing.assert_allclose(sampler.probabilities(), [0.1, 0.28, 0.22, 0.4])
    uniforms = torch.tensor([0.0, 0.099, 0.101, 0.379, 0.381, 0.599, 0.601, LARGEST], dtype=torch.float64)
    steps, weights = sampler.draw(uniforms)
    assert steps.equal(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    np.testing.assert_allclose(weights, 0.25 / sampler.probabilities()[steps], rtol=1e-6)
    for row, uniform in enumerate(uniforms):  # on its own number alone
        assert sampler.draw(uniform[None])[0].item() == steps[row]


def test_weighted_losses_are_expected_to_be_those_of_uniform_steps() -> None:
    sampler = LossSecondMoment(5)
    for batch in batches(5, 200):
        sampler.update(*batch)
    probabilities = sampler.probabilities()
    assert probabilities.std() > 0.01
    first = np.append(0, probabilities.cumsum()[:-1])
    steps, weights = sampler.draw(torch.from_numpy(first + probabilities / 2))  # each step once
    assert steps.equal(torch.arange(5))
    losses = np.array([3.0, -1.0, 4.0, 1.5, 9.0])
    assert np.sum(probabilities * weights.numpy() * losses) == pytest.approx(losses.mean(), rel=1e-6)


@pytest.mark.parametrize("taken", [3, 60])
def test_a_resumed_sampler_is_the_same(taken: int) -> None:
    seen = batches(5, 120)
    through = LossSecondMoment(5)
    for batch in seen[:taken]:
        through.update(*batch)
    resumed = LossSecondMoment(5)
    state = through.state()
    resumed.load_state(state)
    for batch in seen[taken:]:
        through.update(*batch)
        resumed.update(*batch)
    uniforms = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = [sampler.draw(uniforms) for sampler in (through, resumed)]
    assert draws[0][0].equal(draws[1][0])
    assert draws[0][1].equal(draws[1][1])
    assert state["counts"].sum() == 7 * taken  # a copy, which later losses leave alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_are_left_out(bad: float) -> None:
    sampler, clean = LossSecondMoment(5), LossSecondMoment(5)
    for steps, losses in batches(5, 40):
        clean.update(steps, losses)
        sampler.update(torch.cat([torch.tensor([0, 4]), steps]), torch.cat([torch.tensor([bad, bad]), losses]))
    np.testing.assert_array_equal(sampler.probabilities(), clean.probabilities())


def test_losses_of_nothing_are_uniform() -> None:
    sampler = LossSecondMoment(3, history=1)
    sampler.update(torch.arange(3), torch.zeros(3))
    np.testing.assert_array_equal(sampler.probabilities(), np.full(3, 1 / 3))


def test_foreign_states_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'losses': \(5, 10\).* expected .*'losses': \(6, 10\)"):
        LossSecondMoment(6).load_state(LossSecondMoment(5).state())
    with pytest.raises(ValueError, match=r"state has .*'losses'.*; expected nothing"):
        UniformTimesteps(5).load_state(LossSecondMoment(5).state())
    with pytest.raises(ValueError, match=r"state has nothing; expected"):
        LossSecondMoment(5).load_state(UniformTimesteps(5).state())
    UniformTimesteps(5).load_state({})


@pytest.mark.parametrize("arguments", [{"history": 0}, {"uniform_share": 0.0}, {"uniform_share": 1.5}])
def test_impossible_samplers_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, and above 0 up to 1"):
        LossSecondMoment(5, **arguments)


def test_every_name_has_a_sampler_and_weights_files_of_before_are_uniform() -> None:
    made = {name: type(timestep_sampler(name, 4)) for name in typing.get_args(TimestepSamplerName)}
    assert made == {"uniform": UniformTimesteps, "loss-second-moment": LossSecondMoment}
    assert from_mapping(DiffusionConfig, {"schedule": "cosine"}).timestep_sampler == "uniform"
    with pytest.raises(ValueError, match="timestep_sampler is 'loss'; expected one of uniform, loss-second-moment"):
        from_mapping(DiffusionConfig, {"timestep_sampler": "loss"})
