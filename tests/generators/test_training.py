"""Trainers: they learn, in every precision; their state is whole; schedules and averages are as written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from generators.adm.trainer import DiffusionTrainer
from generators.protocol import Trainable, TrainingBatch
from generators.training.average import WeightAverage
from generators.training.config import TrainingConfig
from generators.training.network_trainer import learning_rate_at

Make = Callable[..., DiffusionTrainer]
MakeBatch = Callable[..., TrainingBatch]


def advance(trainer: Trainable, training_batch: MakeBatch, start: int, stop: int) -> list[float]:
    losses = []
    for step in range(start, stop):
        torch.manual_seed(step)
        loss = trainer.train_step(training_batch(step)).means["loss"]
        losses.append(loss.total / loss.number)
    return losses


# Half precision is emulated on many CPUs, and slow: the diffusion model takes fewer steps in it.
@pytest.mark.parametrize(
    ("kind", "precision", "steps", "share"),
    [
        ("adm", "fp32", 40, 0.3),
        ("adm", "bf16", 16, 0.5),
        ("adm", "fp16", 16, 0.5),
        ("classifier", "fp32", 40, 0.9),
        ("classifier", "bf16", 40, 0.9),
        ("classifier", "fp16", 40, 0.9),
    ],
)
def test_it_learns(
    kind: str, precision: str, steps: int, share: float, make_trainer: Make, training_batch: MakeBatch
) -> None:
    trainer = make_trainer(kind, precision)
    assert isinstance(trainer, Trainable)
    losses = advance(trainer, training_batch, 0, steps)
    assert sum(losses[-4:]) < share * sum(losses[:4])
    assert all(weight.dtype == torch.float32 for weight in trainer.weights().values())


@pytest.mark.parametrize(("kind", "precision"), [("adm", "fp32"), ("classifier", "fp32"), ("classifier", "fp16")])
def test_state_is_whole(kind: str, precision: str, make_trainer: Make, training_batch: MakeBatch) -> None:
    changes: dict[str, Any] = {
        "model.dropout": 0.1,
        "training.further_ema_rates": [0.5],
        "diffusion.timestep_sampler": "loss-second-moment",
        "diffusion.num_timesteps": 4,
    }
    through, first, second = (make_trainer(kind, precision, **changes) for _ in range(3))
    advance(through, training_batch, 0, 6)
    advance(first, training_batch, 0, 4)
    state = {
        group: {name: tensor.clone() for name, tensor in tensors.items()} for group, tensors in first.state().items()
    }
    average = f"ema_{first.training.ema_rate}"
    assert set(state) == {"model", average, "ema_0.5", "exp_avg", "exp_avg_sq", "counters", "timestep_sampler"}
    assert (state["timestep_sampler"]["counts"] >= 10).all()  # what was learned decides what is drawn
    second.load_state(state)
    advance(second, training_batch, 4, 6)
    found = second.state()
    for group, tensors in through.state().items():
        for name, tensor in tensors.items():
            assert tensor.equal(found[group][name]), f"{group} {name}"


def test_foreign_state_is_refused(make_trainer: Make) -> None:
    state = make_trainer("adm").state()
    with pytest.raises(ValueError, match="group 'model' has other tensors than this network; first: "):
        make_trainer("classifier").load_state(state)
    with pytest.raises(ValueError, match=r"no group 'ema_0\.9', which this network needs; it has model, ema_0\.998,"):
        make_trainer("adm", **{"training.ema_rate": 0.9}).load_state(state)
    del state["counters"]["loss_scale"]
    with pytest.raises(ValueError, match="group 'counters' has other tensors than this network; first: loss_scale"):
        make_trainer("adm").load_state(state)


def test_precision_is_checked(make_trainer: Make) -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'; expected one of fp32, bf16, fp16"):
        make_trainer("adm", "fp8")


def test_a_classifier_needs_labels(make_trainer: Make, training_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="no labels"):
        make_trainer("classifier").train_step(replace(training_batch(0), labels=None))


@pytest.mark.parametrize(
    ("annealing", "expected"),
    [("none", [0.5, 1, 1, 1]), ("linear", [0.5, 0.75, 0.5, 0.25]), ("cosine", [0.5, 0.853553, 0.5, 0.146447])],
)
def test_learning_rates(annealing: str, expected: list[float]) -> None:
    config = TrainingConfig(steps=4, learning_rate=1.0, annealing=annealing, warmup_steps=2)  # type: ignore[arg-type]
    assert [learning_rate_at(config, step) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def test_the_rate_that_is_reported_is_the_rate_that_is_used(
    make_trainer: Make, training_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("classifier", **{"training.annealing": "linear", "training.warmup_steps": 3})
    used = []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: used.append(trainer.optimizer.param_groups[0]["lr"]))
    reported = [trainer.train_step(training_batch(step)).values["learning_rate"] for step in range(5)]
    assert used == reported == [learning_rate_at(trainer.training, step) for step in range(5)]
    assert len(set(used)) == 5


def test_the_average_is_exponential() -> None:
    parameters = {"weight": torch.zeros(1)}
    average = WeightAverage(parameters, 0.9, warmup=False)
    warm = WeightAverage(parameters, 0.9, warmup=True)
    parameters["weight"].fill_(1.0)
    for step in range(3):
        average.update(parameters, step)
        warm.update(parameters, step)
    assert average.averaged["weight"].item() == pytest.approx(1 - 0.9**3)
    assert warm.averaged["weight"].item() == pytest.approx(1 - (1 / 10) * (2 / 11) * (3 / 12))


@pytest.mark.parametrize(
    ("rate", "further", "averages"),
    [(0.5, (), ["ema_0.5"]), (0.0, (), []), (0.0, (0.9999,), ["ema_0.9999"]), (0.9, (0.2,), ["ema_0.9", "ema_0.2"])],
)
def test_averages_of_several_rates(
    rate: float, further: tuple[float, ...], averages: list[str], make_trainer: Make, training_batch: MakeBatch
) -> None:
    changes = {"training.ema_rate": rate, "training.further_ema_rates": list(further), "training.ema_warmup": False}
    trainer = make_trainer("classifier", **changes)
    start = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.train_step(training_batch(0))
    state = trainer.state()
    assert [group for group in state if group.startswith("ema_")] == averages
    for kept, group in zip([rate, *further] if rate else further, averages, strict=True):
        for name, average in state[group].items():
            torch.testing.assert_close(average, kept * start[name] + (1 - kept) * state["model"][name])
    sampled = state[f"ema_{rate}" if rate else "model"]
    assert all(weight.equal(sampled[name]) for name, weight in trainer.weights().items())
    assert not all(weight.equal(start[name]) for name, weight in trainer.weights().items())


@pytest.mark.parametrize(
    "name", ["steps", "batch_size", "learning_rate", "ema_rate", "weight_decay", "microbatch_size", "gradient_clip",
             "most_skipped"],
)  # fmt: skip
def test_impossible_trainings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        TrainingConfig(**{name: -1})


@pytest.mark.parametrize(
    ("rate", "further", "expected"),
    [
        (0.9999, (1.0,), r"further_ema_rates are \(1.0,\); expected each above 0 and below 1"),
        (0.9999, (0.99, 0.0), r"further_ema_rates are \(0.99, 0.0\); expected each above 0"),
        (0.9999, (0.9999,), r"\(0.9999,\), beside ema_rate 0.9999; expected each rate once"),
        (0.0, (0.9, 0.9), r"\(0.9, 0.9\), beside ema_rate 0.0; expected each rate once"),
    ],
)
def test_impossible_averages_are_refused(rate: float, further: tuple[float, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TrainingConfig(ema_rate=rate, further_ema_rates=further)
