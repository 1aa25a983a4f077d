"""One training step: its gradients, however they are come by; what it draws, skips, clips and reports."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generators.adm.trainer import ClassifierTrainer, DiffusionTrainer, UpsamplerTrainer
from generators.diffusion.losses import training_losses
from generators.diffusion.noise import training_draws
from generators.protocol import StepReport, TrainingBatch, Validated
from generators.training.alone import Alone
from generators.training.loss_scale import GROWTH_INTERVAL, START, LossScale

Make = Callable[..., DiffusionTrainer]
MakeBatch = Callable[..., TrainingBatch]
BY_LOSSES = {"diffusion.timestep_sampler": "loss-second-moment", "diffusion.num_timesteps": 8}


def gradients(trainer: DiffusionTrainer, batch: TrainingBatch) -> dict[str, Tensor]:
    trainer.optimizer.zero_grad()
    torch.manual_seed(0)
    trainer.accumulate(batch)
    return {name: gradient.clone() for name, gradient in trainer.gradients().items()}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of each tensor's norm, or of a hundredth of the norm of all: some cancel, and leave rounding."""
    assert found.keys() == expected.keys()
    floor = 1e-2 * float(torch.stack([tensor.norm() for tensor in expected.values()]).norm())
    assert floor > 0
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-5 * max(float(tensor.norm()), floor), name


def teach(trainer: DiffusionTrainer) -> None:
    """Give a loss-aware sampler losses of all its steps, larger for later ones."""
    steps = torch.arange(8).repeat(10)
    trainer.timesteps.update(steps, 1.0 + steps)


@pytest.mark.parametrize("kind", ["adm", "classifier", "upsampler"])
@pytest.mark.parametrize("changes", [{}, BY_LOSSES], ids=["uniform", "by losses"])
def test_microbatches_and_recomputed_activations_give_the_same_gradients(
    kind: str, changes: dict[str, Any], make_trainer: Make, training_batch: MakeBatch
) -> None:
    batch = training_batch(0, size=16 if kind == "upsampler" else 8)
    ways: dict[str, dict[str, Any]] = {
        "whole": {},
        "two": {"training.microbatch_size": 8},
        "four": {"training.microbatch_size": 4},
        "uneven": {"training.microbatch_size": 7},
        "larger": {"training.microbatch_size": 100},
        "recomputed": {"training.recompute_activations": True},
        "both": {"training.recompute_activations": True, "training.microbatch_size": 8},
    }
    found = {}
    for way, more in ways.items():
        trainer = make_trainer(kind, filled=True, **changes, **more)
        if changes:
            teach(trainer)
        found[way] = gradients(trainer, batch)
    for way in list(ways)[1:]:
        assert_alike(found[way], found["whole"])


def test_a_compiled_network_gives_the_same_gradients_and_keeps_its_names(
    make_trainer: Make, training_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch traces it, without the minutes that its kernels take to build."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (make_trainer("classifier", filled=True, **{"training.compile": way}) for way in (False, True))
    assert compiled.called is not compiled.wrapped
    assert_alike(gradients(compiled, training_batch(0)), gradients(plain, training_batch(0)))
    assert compiled.state()["model"].keys() == plain.state()["model"].keys()


def test_recomputed_dropout_gives_the_same_gradients(make_trainer: Make, training_batch: MakeBatch) -> None:
    found = [
        gradients(make_trainer("adm", filled=True, **{"model.dropout": 0.3}, **more), training_batch(0))
        for more in ({}, {"training.recompute_activations": True}, {"training.microbatch_size": 8})
    ]
    assert_alike(found[1], found[0])
    with pytest.raises(AssertionError):  # other masks: the dropout is there
        assert_alike(found[2], found[0])


@pytest.mark.parametrize("changes", [{}, BY_LOSSES], ids=["uniform", "by losses"])
def test_gradients_are_those_of_the_plain_formula(
    changes: dict[str, Any], make_trainer: Make, training_batch: MakeBatch
) -> None:
    """The mean of weight * loss, image by image, with draws made here."""
    trainer, batch = make_trainer("adm", filled=True, **changes), training_batch(3)
    num_steps = len(trainer.diffusion)
    probabilities = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
    if changes:
        teach(trainer)
        size = 1 + torch.arange(8, dtype=torch.float64)
        probabilities = 0.999 * size / size.sum() + 0.001 / 8
    found = gradients(trainer, batch)
    trainer.optimizer.zero_grad()
    assert batch.labels is not None
    for row, seed in enumerate(batch.seeds):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand((), dtype=torch.float64, generator=generator)
        noise = torch.randn(1, 3, 8, 8, generator=generator)
        step = int((probabilities.cumsum(0) <= uniform).sum())
        label = batch.labels[row : row + 1]
        x0 = batch.images[row : row + 1] / 127.5 - 1
        loss = training_losses(
            trainer.diffusion, lambda x, t, label=label: trainer.network(x, t, label), x0, torch.tensor([step]), noise
        )["loss"]
        (loss.sum() / (num_steps * probabilities[step]) / len(batch.seeds)).float().backward()
    assert_alike(found, trainer.gradients())


def test_an_image_draws_from_its_seed_alone() -> None:
    uniforms, noise = training_draws(range(50), (3, 4, 4), torch.device("cpu"))
    for chosen in (range(7, 8), range(20, 50), range(49, -1, -1)):
        part_uniforms, part_noise = training_draws(chosen, (3, 4, 4), torch.device("cpu"))
        assert part_uniforms.equal(uniforms[list(chosen)])
        assert part_noise.equal(noise[list(chosen)])
    assert (uniforms.dtype, noise.dtype) == (torch.float64, torch.float32)
    assert len(uniforms.unique()) == 50
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("spoilt", ["loss", "gradients"])
def test_a_step_that_is_not_finite_changes_nothing(
    spoilt: str, precision: str, make_trainer: Make, training_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("classifier", precision, **BY_LOSSES, **{"training.annealing": "linear"})
    start = 64.0 if precision == "fp16" else 1.0
    trainer.scale.value = start
    assert trainer.train_step(training_batch(0)).skipped is None
    before = {group: {name: t.clone() for name, t in tensors.items()} for group, tensors in trainer.state().items()}
    with monkeypatch.context() as injected:
        if spoilt == "loss":
            terms = trainer.terms
            bad = torch.ones(16).index_fill(0, torch.tensor(5), float("nan"))
            injected.setattr(trainer, "terms", lambda *a: {name: value * bad for name, value in terms(*a).items()})
            report = trainer.train_step(training_batch(1))
        else:
            hook = trainer.parameters["out.0.weight"].register_hook(lambda gradient: gradient * float("inf"))
            report = trainer.train_step(training_batch(1))
            hook.remove()
    reasons = {"loss": "the loss is nan", "gradients": "the norm of the gradients is inf"}
    assert report.skipped == reasons[spoilt]
    assert report.values["learning_rate"] == pytest.approx(1e-3 * 39 / 40)
    assert report.values["loss_scale"] == start
    after = trainer.state()
    for group, tensors in before.items():
        for name, tensor in tensors.items():
            if group != "counters":
                assert tensor.equal(after[group][name]), f"{group} {name}"
    assert after["counters"]["optimizer_steps"] == 1
    assert trainer.scale.value == (start / 2 if precision == "fp16" else 1)
    following = trainer.train_step(training_batch(2))
    assert following.skipped is None
    assert following.values["learning_rate"] == pytest.approx(1e-3 * 38 / 40)
    assert trainer.state()["counters"]["optimizer_steps"] == 2


def test_gradients_beyond_half_precision_halve_the_scale_until_they_fit(
    make_trainer: Make, training_batch: MakeBatch
) -> None:
    """An overflow of the arithmetic itself."""
    trainer = make_trainer("classifier", "fp16", filled=True)
    trainer.scale.value = 2.0**32
    reports = [trainer.train_step(training_batch(0))]
    while reports[-1].skipped is not None:
        reports.append(trainer.train_step(training_batch(0)))
    assert [report.values["loss_scale"] for report in reports] == [2.0 ** (32 - n) for n in range(len(reports))]
    assert len(reports) > 5
    plain = make_trainer("classifier", filled=True).train_step(training_batch(0))
    assert reports[-1].values["grad_norm"] == pytest.approx(plain.values["grad_norm"], rel=2e-2)


def test_the_loss_scale_doubles_after_enough_good_steps() -> None:
    scale, none = LossScale(enabled=True), LossScale(enabled=False)
    assert (START, GROWTH_INTERVAL) == (2**16, 2000)
    scale.overflowed()
    for _ in range(1999):
        scale.held()
        none.held()
    assert (scale.value, scale.good_steps) == (2**15, 1999)
    scale.overflowed()
    assert (scale.value, scale.good_steps) == (2**14, 0)
    for _ in range(2001):
        scale.held()
    assert (scale.value, scale.good_steps) == (2**15, 1)
    none.overflowed()
    assert (none.value, none.good_steps) == (1, 0)


def test_steps_are_those_of_plain_adamw_in_the_default_layout(make_trainer: Make, training_batch: MakeBatch) -> None:
    """Which torch's fused one takes only where gradients and moments have the layout of their weights."""
    trainer = make_trainer("adm", filled=True, **{"training.weight_decay": 0.05})
    weights = {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in trainer.parameters.items()}
    assert any(p.stride() != weights[name].stride() for name, p in trainer.parameters.items())
    plain = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.05, fused=False, foreach=False)
    for step in range(3):
        report = trainer.train_step(training_batch(step))
        plain.param_groups[0]["lr"] = report.values["learning_rate"]
        for name, gradient in trainer.gradients().items():
            weights[name].grad = gradient.contiguous()
        plain.step()
    for name, expected in weights.items():
        torch.testing.assert_close(trainer.parameters[name].detach(), expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(("precision", "clip"), [("fp32", 0.1), ("fp32", 1e9), ("fp16", 0.1)])
def test_gradients_are_clipped_as_torch_clips_them(
    precision: str, clip: float, make_trainer: Make, training_batch: MakeBatch
) -> None:
    trainer = make_trainer("classifier", precision, filled=True, **{"training.gradient_clip": clip})
    by_hand = make_trainer("classifier", precision, filled=True)
    by_hand.accumulate(training_batch(0))
    torch._foreach_mul_(list(by_hand.gradients().values()), 1 / by_hand.scale.value)
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters.values(), clip)
    for group in by_hand.optimizer.param_groups:
        group["lr"] = 1e-3
    by_hand.optimizer.step()
    report = trainer.train_step(training_batch(0))
    assert report.skipped is None
    assert report.values["grad_norm"] == pytest.approx(norm.item())
    assert (norm > clip) == (clip < 1)
    expected = by_hand.state()
    for group in ("model", "exp_avg", "exp_avg_sq"):  # of a first step, the moments show the size of gradients
        for name, tensor in trainer.state()[group].items():
            torch.testing.assert_close(tensor, expected[group][name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, BY_LOSSES], ids=["uniform", "by losses"])
def test_means_by_quartile(changes: dict[str, Any], make_trainer: Make, training_batch: MakeBatch) -> None:
    trainer, batch = make_trainer("adm", filled=True, **changes), training_batch(0)
    if changes:
        teach(trainer)
    steps, weights = trainer.timesteps.draw(training_draws(batch.seeds, (3, 8, 8), torch.device("cpu"))[0])
    seen = trainer.accumulate(batch)
    assert seen["timestep"].equal(steps)
    means = trainer.train_step(batch).means
    quartiles = 4 * steps // len(trainer.diffusion)
    for name in ("loss", "mse", "vb"):
        weighted = (seen[name] * weights).double()
        assert means[name].total == pytest.approx(weighted.sum().item())
        assert means[name].number == 16
        for quartile in range(4):
            inside = quartiles == quartile
            assert (f"{name}_q{quartile}" in means) == bool(inside.any())
            if inside.any():
                assert means[f"{name}_q{quartile}"].total == pytest.approx(weighted[inside].sum().item())
                assert means[f"{name}_q{quartile}"].number == inside.sum()
    assert means["loss"].total == pytest.approx(means["mse"].total + means["vb"].total)
    one = trainer.train_step(replace(batch, images=batch.images[:1], labels=batch.labels[:1], seeds=batch.seeds[:1]))
    assert set(one.means) == {f"{name}{q}" for name in ("loss", "mse", "vb") for q in ("", f"_q{quartiles[0]}")}


def test_accuracies_at_1_and_5(make_trainer: Make, training_batch: MakeBatch) -> None:
    trainer, batch = make_trainer("classifier"), training_batch(0)
    assert batch.labels is not None
    places = torch.tensor([0, 0, 0, 4, 4, 4, 4, 5] * 2)  # of the true class among the likeliest
    logits = torch.arange(10.0, 0.0, -1.0).repeat(16, 1)
    for row, (label, place) in enumerate(zip(batch.labels, places, strict=True)):
        logits[row, [label, place]] = logits[row, [place, label]]
    steps = torch.zeros(16, dtype=torch.int64)
    trainer.called = lambda x, timesteps: logits  # type: ignore[assignment]  # noqa: ARG005
    terms = trainer.terms(torch.zeros(16, 3, 8, 8), batch.labels, steps, torch.zeros(16, 3, 8, 8))
    assert terms["accuracy_at_1"].equal((places == 0).float())
    assert terms["accuracy_at_5"].equal((places < 5).float())
    assert terms["loss"].equal(F.cross_entropy(logits, batch.labels, reduction="none"))
    few = make_trainer("classifier", **{"model.num_classes": 5})
    means = few.train_step(replace(batch, labels=batch.labels % 5)).means
    assert "accuracy_at_1_q0" in means
    assert "accuracy_at_5" not in means


def test_validation_learns_nothing_and_takes_the_averaged_weights(
    make_trainer: Make, training_batch: MakeBatch
) -> None:
    trainer = make_trainer("classifier", **BY_LOSSES, **{"model.dropout": 0.5, "training.microbatch_size": 6})
    assert isinstance(trainer, ClassifierTrainer)
    assert isinstance(trainer, Validated)
    assert not isinstance(make_trainer("adm"), Validated)
    teach(trainer)
    for step in range(5):
        trainer.train_step(training_batch(step))
    before = {group: {name: t.clone() for name, t in tensors.items()} for group, tensors in trainer.state().items()}
    random = torch.get_rng_state()
    means = trainer.validate(training_batch(9))
    assert means == trainer.validate(training_batch(9))
    assert torch.get_rng_state().equal(random)
    assert trainer.network.training
    for group, tensors in trainer.state().items():
        assert all(tensor.equal(before[group][name]) for name, tensor in tensors.items()), group
    averaged = make_trainer("classifier", **BY_LOSSES, **{"training.ema_rate": 0.0})
    averaged.network.load_state_dict(trainer.weights())
    raw = make_trainer("classifier", **BY_LOSSES, **{"training.ema_rate": 0.0})
    raw.network.load_state_dict(before["model"])
    assert isinstance(averaged, ClassifierTrainer)
    assert isinstance(raw, ClassifierTrainer)
    expected = averaged.validate(training_batch(9))
    assert means.keys() == expected.keys()
    for name, mean in expected.items():
        assert means[name] == pytest.approx(mean, rel=1e-5)
    assert raw.validate(training_batch(9))["loss"].total != pytest.approx(expected["loss"].total, rel=1e-3)


def test_pairs_of_an_upsampler_are_cropped_and_flipped_together(make_trainer: Make, training_batch: MakeBatch) -> None:
    trainer, batch = make_trainer("upsampler"), training_batch(0, size=16)
    assert isinstance(trainer, UpsamplerTrainer)
    told = []

    def record(_: Any, __: Any, given: dict[str, Tensor]) -> None:
        told.append(given["low_resolution"])

    trainer.network.register_forward_pre_hook(record, with_kwargs=True)
    trainer.accumulate(batch)
    trainer.accumulate(replace(batch, images=batch.images.flip(3)))
    expected = (batch.images / 127.5 - 1).view(16, 3, 8, 2, 8, 2).mean(dim=(3, 5))
    torch.testing.assert_close(told[0], expected)
    torch.testing.assert_close(told[1], expected.flip(3))


class Threads(Alone):
    """Processes that are threads here: they see each other's columns, and keep their own gradients."""

    size = 2

    def __init__(self, rank: int, barrier: Barrier, posted: dict[int, Tensor]) -> None:
        self.rank, self.barrier, self.posted = rank, barrier, posted

    def gather(self, values: Tensor) -> Tensor:
        self.posted[self.rank] = values
        self.barrier.wait(60)
        joined = torch.cat([self.posted[rank] for rank in range(self.size)])
        self.barrier.wait(60)
        return joined


def test_two_processes_report_and_learn_as_one(make_trainer: Make, training_batch: MakeBatch) -> None:
    """Of the first step's losses, which do not depend on gradients; and a loss that one of them spoils."""
    barrier, posted = Barrier(2), {}
    alone = make_trainer("classifier", filled=True, **BY_LOSSES)
    pair = [
        make_trainer("classifier", filled=True, parallel=Threads(rank, barrier, posted), **BY_LOSSES)
        for rank in range(2)
    ]
    for trainer in (alone, *pair):
        teach(trainer)

    def steps(rank: int) -> list[StepReport]:
        rows = slice(8 * rank, 8 * rank + 8)
        first = pair[rank].train_step(training_batch(0, rows=rows))
        if rank == 1:
            with torch.no_grad():
                pair[1].parameters["out.0.weight"].fill_(float("nan"))
        return [first, pair[rank].train_step(training_batch(1, rows=rows))]

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(steps, range(2)))
    expected = alone.train_step(training_batch(0))
    assert reports[0][0].means == reports[1][0].means
    assert reports[0][0].means.keys() == expected.means.keys()
    for name, mean in expected.means.items():
        assert reports[0][0].means[name] == pytest.approx(mean, rel=1e-5), name
    for trainer in pair:
        for name, tensor in alone.timesteps.state().items():
            torch.testing.assert_close(trainer.timesteps.state()[name], tensor, rtol=1e-5, atol=0)
        assert trainer.timesteps.state()["losses"].equal(pair[0].timesteps.state()["losses"])
        assert trainer.state()["counters"]["optimizer_steps"] == 1
    assert [r[1].skipped for r in reports] == ["the loss is nan"] * 2
    assert all(math.isnan(r[1].values["grad_norm"]) for r in reports)


class Afar:
    """A tensor on another device than the trainer's, with which nothing can be done before it is moved."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def to(self, device: torch.device) -> Tensor:
        return self.tensor.to(device)


class GathersOnTheHost(Alone):
    """What shares on a GPU do: whole tensors come back on the CPU."""

    def whole(self, tensor: Tensor) -> Tensor:
        return Afar(tensor)  # type: ignore[return-value]


def test_a_norm_that_comes_back_on_another_device_is_moved(make_trainer: Make, training_batch: MakeBatch) -> None:
    trainers = [make_trainer("classifier", parallel=parallel) for parallel in (GathersOnTheHost(), Alone())]
    reports = [trainer.train_step(training_batch(0)) for trainer in trainers]
    assert reports[0] == reports[1]
