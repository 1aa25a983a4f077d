"""Trainers: they learn, in every precision; their state is whole; schedules and averages are as written."""

import pytest
import torch

from generators.adm.config import AdmConfig, GuideConfig
from generators.adm.presets import PRESETS
from generators.adm.trainer import AdmTrainer, ClassifierTrainer
from generators.configuration import with_changes
from generators.protocol import Trainable
from generators.training.average import WeightAverage
from generators.training.config import TrainingConfig
from generators.training.network_trainer import learning_rate_at

CPU = torch.device("cpu")
SMALL = {"model.attention_resolutions": [4], "training.steps": 40, "training.warmup_steps": 0}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are brighter the higher their label."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(16) % 10
    images = 20 * labels[:, None, None, None] + torch.randint(50, (16, 3, 8, 8), generator=generator)
    return images.to(torch.uint8), labels


def make(kind: str, precision: str = "fp32", **changes: object) -> Trainable:
    torch.manual_seed(0)
    if kind == "adm":
        config = with_changes(PRESETS["digits8"].config, {**SMALL, **changes})
        assert isinstance(config, AdmConfig)
        return AdmTrainer(config, CPU, precision)
    guide = with_changes(PRESETS["digits8_classifier"].config, {**SMALL, **changes})
    assert isinstance(guide, GuideConfig)
    return ClassifierTrainer(guide, CPU, precision)


def advance(trainer: Trainable, start: int, stop: int) -> list[float]:
    losses = []
    for step in range(start, stop):
        torch.manual_seed(step)
        losses.append(trainer.train_step(step, *batch(step))["loss"])
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
def test_it_learns(kind: str, precision: str, steps: int, share: float) -> None:
    trainer = make(kind, precision)
    assert isinstance(trainer, Trainable)
    losses = advance(trainer, 0, steps)
    assert sum(losses[-4:]) < share * sum(losses[:4])
    assert all(weight.dtype == torch.float32 for weight in trainer.weights().values())


@pytest.mark.parametrize(("kind", "precision"), [("adm", "fp32"), ("classifier", "fp32"), ("classifier", "fp16")])
def test_state_is_whole(kind: str, precision: str) -> None:
    changes = {"model.dropout": 0.1, "training.flip": True}
    through, first, second = (make(kind, precision, **changes) for _ in range(3))
    advance(through, 0, 6)
    advance(first, 0, 3)
    second.load_state({group: {k: v.clone() for k, v in tensors.items()} for group, tensors in first.state().items()})
    advance(second, 3, 6)
    for group, tensors in through.state().items():
        for name, tensor in tensors.items():
            assert tensor.equal(second.state()[group][name]), f"{group} {name}"


def test_foreign_state_is_refused() -> None:
    state = make("adm").state()
    with pytest.raises(ValueError, match="group 'model' has other tensors"):
        make("classifier").load_state(state)


def test_precision_is_checked() -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'; expected one of fp32, bf16, fp16"):
        make("adm", "fp8")


def test_a_classifier_needs_labels() -> None:
    with pytest.raises(ValueError, match="no labels"):
        make("classifier").train_step(0, batch(0)[0], None)


@pytest.mark.parametrize(
    ("annealing", "expected"),
    [("none", [0.5, 1, 1, 1]), ("linear", [0.5, 0.75, 0.5, 0.25]), ("cosine", [0.5, 0.853553, 0.5, 0.146447])],
)
def test_learning_rates(annealing: str, expected: list[float]) -> None:
    config = TrainingConfig(steps=4, learning_rate=1.0, annealing=annealing, warmup_steps=2)  # type: ignore[arg-type]
    assert [learning_rate_at(config, step) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def test_the_average_is_exponential() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 0.0)
    average = WeightAverage(network, 0.9, warmup=False)
    warm = WeightAverage(network, 0.9, warmup=True)
    torch.nn.init.constant_(network.weight, 1.0)
    for step in range(3):
        average.update(network.parameters(), step)
        warm.update(network.parameters(), step)
    assert average.averaged["weight"].item() == pytest.approx(1 - 0.9**3)
    assert warm.averaged["weight"].item() == pytest.approx(1 - (1 / 10) * (2 / 11) * (3 / 12))


@pytest.mark.parametrize("name", ["steps", "batch_size", "learning_rate", "ema_rate", "weight_decay"])
def test_impossible_trainings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        TrainingConfig(**{name: -1})
