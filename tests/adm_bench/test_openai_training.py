"""Training begun by guided-diffusion goes on here, and ours there: the same numbers bit for bit, in both its forms."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adm_bench.checkpoints import Checkpoints, verified
from adm_bench.conversion import begin_from, state_from_openai
from adm_bench.errors import InputError
from generators.adm.config import AdmConfig
from generators.adm.networks import build_network
from generators.adm.presets import PRESETS
from generators.configuration import from_mapping, to_mapping, with_changes
from generators.protocol import StepReport, TrainingBatch
from generators.training.network_trainer import NetworkTrainer, learning_rate_at
from generators.unet.checkpoint import WeightsHeader
from generators.unet.openai_training import openai_name

Run = Callable[..., Any]
Refuse = Callable[..., str]
State = Mapping[str, Mapping[str, Tensor]]
CONFIG = with_changes(
    PRESETS["digits8"].config,
    {
        "model.num_res_blocks": 1, "model.attention_resolutions": [4], "training.ema_rate": 0.9999,
        "training.further_ema_rates": [0.999], "training.learning_rate": 2e-3, "training.weight_decay": 0.05,
    },
)  # fmt: skip
RATES = (0.9999, 0.999)


class Masters:
    """What guided-diffusion's optimizer works on: each parameter, or with `use_fp16` two tensors that join them.

    The first of the two has all parameters of at most one dimension, as (n,), the other the rest, as (1, m).
    """

    def __init__(self, weights: Mapping[str, Tensor], *, half: bool) -> None:
        self.shapes = {name: tensor.shape for name, tensor in weights.items()}
        kinds = [[n for n, s in self.shapes.items() if (len(s) <= 1) == narrow] for narrow in (True, False)]
        self.parts = kinds if half else [[name] for name in self.shapes]
        self.half = half
        self.parameters = [nn.Parameter(tensor) for tensor in self.joined(weights)]

    def joined(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        if not self.half:
            return [tensor.detach().clone() for tensor in tensors.values()]
        flat = [torch.cat([tensors[name].detach().flatten() for name in part]) for part in self.parts]
        return [flat[0], flat[1].view(1, -1)]

    def named(self, values: list[Tensor]) -> dict[str, Tensor]:
        found = {}
        for part, value in zip(self.parts, values, strict=True):
            pieces = value.detach().reshape(-1).split([self.shapes[name].numel() for name in part])
            found |= {name: piece.view(self.shapes[name]) for name, piece in zip(part, pieces, strict=True)}
        return {name: found[name] for name in self.shapes}

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """Learn from gradients that depend on parameter and step alone, in either form."""
        grads = {
            name: torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * 0.37 + number + index)
            .float()
            .view(shape)
            for index, (name, shape) in enumerate(self.shapes.items())
        }
        for parameter, grad in zip(self.parameters, self.joined(grads), strict=True):
            parameter.grad = grad
        optimizer.step()


def train_as_openai(folder: Path, number: int, *, steps: int, half: bool) -> dict[str, dict[str, Tensor]]:
    """Write what guided-diffusion leaves after so many steps; returns what ours must be."""
    torch.manual_seed(1)
    masters = Masters(build_network(CONFIG).state_dict(), half=half)
    optimizer = torch.optim.AdamW(masters.parameters, lr=1e-4, weight_decay=0.05)
    averages = {rate: [parameter.detach().clone() for parameter in masters.parameters] for rate in RATES}
    for step in range(steps):
        masters.step(optimizer, step)
        for rate, tensors in averages.items():
            for average, parameter in zip(tensors, masters.parameters, strict=True):
                average.mul_(rate).add_(parameter.detach(), alpha=1 - rate)
    state = {"model": masters.named(list(masters.parameters))}
    state |= {f"ema_{rate}": masters.named(tensors) for rate, tensors in averages.items()}
    for group, tensors in state.items():
        wrapped = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}  # as its float32 files have them
        torch.save(tensors if half else wrapped, folder / f"{group}{'' if group == 'model' else '_'}{number:06d}.pt")
    torch.save(optimizer.state_dict(), folder / f"opt{number:06d}.pt")
    slots = [optimizer.state[parameter] for parameter in masters.parameters]
    moments = {moment: masters.named([slot[moment] for slot in slots]) for moment in ("exp_avg", "exp_avg_sq")}
    return state | moments | {"counters": {"optimizer_steps": torch.tensor(float(steps))}}


def differing(found: State, expected: State) -> list[str]:
    """The groups that are not the same bit for bit."""
    return [
        group
        for group in {*found, *expected}
        if list(found.get(group, {})) != list(expected.get(group, {}))
        or not all(torch.equal(found[group][name], tensor) for name, tensor in expected[group].items())
    ]


def saved(folder: Path, state: State, step: int) -> Path:
    header = WeightsHeader(kind="adm", config=to_mapping(CONFIG))
    return Checkpoints(folder).save(step, state, {}, header)


def one_more_step(folder: Path, number: int) -> dict[str, Tensor]:
    """The weights after another step, begun as guided-diffusion begins: with what the optimizer's file says."""
    weights = torch.load(folder / f"model{number:06d}.pt", weights_only=True)
    content = torch.load(folder / f"opt{number:06d}.pt", weights_only=True)
    masters = Masters(weights, half=len(content["state"]) == 2)
    optimizer = torch.optim.AdamW(masters.parameters, lr=1.0, weight_decay=0.9)
    optimizer.load_state_dict(content)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    optimizer.param_groups[0]["lr"] = 1e-4
    masters.step(optimizer, number=9)
    return masters.named(list(masters.parameters))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_openai_to_ours_and_back(half: bool, run: Run, tmp_path: Path) -> None:
    expected = train_as_openai(tmp_path, 4, steps=5, half=half)
    state, step = state_from_openai(tmp_path / "model000004.pt", CONFIG)
    assert step == 5  # the optimizer's own count: a periodic save has one less in its name
    assert differing(state, expected) == []
    back = tmp_path / "back"
    said = run("convert", saved(tmp_path / "checkpoints", state, step), "--out", back).output.splitlines()
    names = {"opt000005.pt", "ema_0.9999_000005.pt", "ema_0.999_000005.pt", "model000005.pt"}
    assert {path.name for path in back.iterdir()} == names
    assert {Path(line) for line in said} == set(back.iterdir())
    again, step = state_from_openai(back / "model000005.pt", CONFIG)
    assert step == 5
    assert differing(again, expected) == []
    assert list(torch.load(back / "model000005.pt", weights_only=True)) == list(expected["model"])
    content = torch.load(back / "opt000005.pt", weights_only=True)
    assert content["param_groups"][0]["lr"] == learning_rate_at(CONFIG.training, 5)  # of the step that comes next
    assert content["param_groups"][0]["weight_decay"] == 0.05
    ours, theirs = one_more_step(back, 5), one_more_step(tmp_path, 4)
    assert differing({"model": ours}, {"model": theirs}) == []
    assert not ours["out.2.bias"].equal(expected["model"]["out.2.bias"])


def test_a_run_goes_on_from_its_own_conversion(run: Run, tmp_path: Path) -> None:
    """Trained to the end, or converted on the way and put back: the same weights."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--data", "digits", "--device", "cpu", "--batch", "4", "--steps", "6", "--checkpoint-every", "3"]
    options += ["--set", "model.num_res_blocks=1", "--set", "model.attention_resolutions=[4]"]
    run("train", "adm", "--out", whole, *options)
    kept = verified(whole / "checkpoints" / "step_00000003")
    run("convert", kept.folder, "--out", tmp_path / "openai")
    config = from_mapping(AdmConfig, kept.header().config)
    found, step = state_from_openai(tmp_path / "openai" / "model000003.pt", config)
    assert step == 3
    state = {group: {**tensors, **found.get(group, {})} for group, tensors in kept.state().items()}
    assert differing(state, kept.state()) == []
    assert set(found) == set(kept.state())
    shutil.copytree(whole, cut)
    (cut / "checkpoints" / "step_00000006" / "counters.safetensors").unlink()
    said = run("convert", cut, "--out", tmp_path / "before")
    assert "step_00000006: damaged (counters.safetensors is missing); taking step_00000003, the one" in said.stderr
    assert {path.name for path in (tmp_path / "before").glob("model*")} == {"model000003.pt"}
    shutil.rmtree(cut / "checkpoints")
    for name in ("result.json", "weights.safetensors"):
        (cut / name).unlink()
    Checkpoints(cut / "checkpoints").save(step, state, kept.progress, kept.header())
    assert "going on from step 3" in run("train", "adm", "--out", cut, *options).stderr
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (cut, whole))
    assert differing({"all": ours}, {"all": theirs}) == []


class Trainer:
    """What `begin_from` needs of one."""

    def __init__(self) -> None:
        weights = {name: torch.ones(tensor.shape) for name, tensor in build_network(CONFIG).state_dict().items()}
        self.kept: dict[str, dict[str, Tensor]] = dict.fromkeys(("model", "ema_0.9999", "ema_0.999"), weights)
        self.kept |= dict.fromkeys(("exp_avg", "exp_avg_sq"), weights)
        self.kept["counters"] = {"optimizer_steps": torch.tensor(0.0), "loss_scale": torch.tensor(65536.0)}
        self.kept["timestep_sampler"] = {"history": torch.zeros(3)}

    def state(self) -> dict[str, dict[str, Tensor]]:
        return self.kept

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.kept = {group: dict(tensors) for group, tensors in state.items()}


def test_a_trainer_begins_from_openai(tmp_path: Path) -> None:
    expected = train_as_openai(tmp_path, 5, steps=5, half=False)
    trainer = Trainer()
    assert begin_from(trainer, tmp_path / "model000005.pt", CONFIG) == 5  # type: ignore[arg-type]
    fresh = Trainer().state()
    expected["counters"] |= {"loss_scale": fresh["counters"]["loss_scale"]}
    expected["timestep_sampler"] = fresh["timestep_sampler"]
    assert differing(trainer.kept, expected) == []


@pytest.mark.parametrize(
    ("name", "model_only"),
    [("model000005.pt", True), ("best.pt", False), ("ema_0.9999_000005.pt", False), ("ours.safetensors", False)],
)
def test_weights_alone_begin_afresh(name: str, model_only: bool, tmp_path: Path) -> None:
    expected = train_as_openai(tmp_path, 5, steps=5, half=False)
    for file in ("opt000005.pt", "ema_0.999_000005.pt"):
        (tmp_path / file).unlink()
    weights = expected["ema_0.9999" if name.startswith("ema") else "model"]
    if name == "best.pt":
        (tmp_path / "model000005.pt").rename(tmp_path / name)
    if name == "ours.safetensors":
        shutil.copy(saved(tmp_path / "c", expected, 5) / "model.safetensors", tmp_path / name)
    state, step = state_from_openai(tmp_path / name, CONFIG, model_only=model_only)
    assert step == 0
    assert state["counters"]["optimizer_steps"] == 0
    for group in ("model", "ema_0.9999", "ema_0.999"):
        assert differing({"x": state[group]}, {"x": weights}) == []
    assert not any(tensor.any() for group in ("exp_avg", "exp_avg_sq") for tensor in state[group].values())


BEGINNING = [
    "--data", "digits", "--device", "cpu", "--batch", "4", "--checkpoint-every", "2", "--log-every", "1",
    "--set", "model.num_res_blocks=1", "--set", "model.attention_resolutions=[4]", "--set", "training.ema_rate=0.9999",
    "--set", "training.further_ema_rates=[0.999]", "--set", "training.weight_decay=0.05",
]  # fmt: skip


def test_training_begins_from_openai_goes_on_and_converts_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = train_as_openai(tmp_path, 4, steps=5, half=True)
    start = tmp_path / "model000004.pt"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ["train", "adm", "--from", start, "--steps", "10", *BEGINNING]
    taken, take = [], NetworkTrainer.train_step

    def train_step(self: NetworkTrainer, batch: TrainingBatch) -> StepReport:
        if not taken:
            state = {group: tensors for group, tensors in self.state().items() if group != "counters"}
            assert differing(state, {group: begun[group] for group in state}) == []
        taken.append(batch.step)
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkTrainer, "train_step", train_step)
        assert f"going on from step 5 of {start}" in run(*command, "--out", whole).stderr
    assert taken == [5, 6, 7, 8, 9]
    took = json.loads((whole / "result.json").read_text())  # of ten steps' images, five were somebody else's time
    assert took["images_per_sec"] * took["sec"] == pytest.approx(took["images"] / 2)
    assert verified(whole / "checkpoints" / "step_00000010").state()["counters"]["optimizer_steps"] == 10
    assert "hours are over after step 6 of 10" in run(*command, "--out", cut, "--hours", "1e-9").stderr
    assert "going on from step 6\n" in run(*command, "--out", cut).stderr
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (cut, whole))
    assert differing({"all": ours}, {"all": theirs}) == []
    rates = [json.loads(line)["learning_rate"] for line in (cut / "log.jsonl").read_text().splitlines()]
    config = from_mapping(AdmConfig, verified(whole / "checkpoints" / "step_00000010").header().config)
    assert rates == [learning_rate_at(config.training, step) for step in range(5, 10)]
    run("convert", whole, "--out", tmp_path / "back")
    state, step = state_from_openai(tmp_path / "back" / "model000010.pt", config)
    assert step == 10
    expected = verified(whole / "checkpoints" / "step_00000010").state()
    assert differing({group: {**tensors, **state[group]} for group, tensors in expected.items()}, expected) == []


@pytest.mark.parametrize(
    ("damaged", "content", "options", "said"),
    [
        ("model000004.pt", None, [], "--from {folder}/model000004.pt: no such file"),
        ("opt000004.pt", None, [], "{folder}/model000004.pt: opt000004.pt of the same step is not beside it"),
        ("ema_0.999_000004.pt", b"nothing", [], "{folder}/ema_0.999_000004.pt: "),
        ("", None, ["--set", "model.channels=64"], "{folder}/model000004.pt: does not fit this network: "),
        ("", None, ["--steps", "5"], "--from {folder}/model000004.pt: 5 steps are done, and training.steps is 5"),
    ],
)
def test_a_wrong_start_is_refused_before_anything_is_written(
    damaged: str, content: bytes | None, options: list[str], said: str, refuse: Refuse, tmp_path: Path
) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=False)
    if content is not None:
        (tmp_path / damaged).write_bytes(content)
    elif damaged:
        (tmp_path / damaged).unlink()
    command = ["train", "adm", "--out", tmp_path / "run", "--from", tmp_path / "model000004.pt", *BEGINNING, *options]
    for overwrite in ([], ["--overwrite"]):
        assert said.format(folder=tmp_path) in refuse(*command, *overwrite)
        assert not (tmp_path / "run").exists()


def change_optimizer(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def other_steps(content: dict[str, Any]) -> None:
    content["state"][3]["step"] = torch.tensor(4.0)


def int_steps(content: dict[str, Any]) -> None:
    for slot in content["state"].values():
        slot["step"] = int(slot["step"].item())


def nested_steps(content: dict[str, Any]) -> None:
    for slot in content["state"].values():
        slot["step"] = [5]


def other_shape(content: dict[str, Any]) -> None:
    content["state"][1]["exp_avg_sq"] = torch.zeros(7)


def fewer(content: dict[str, Any]) -> None:
    del content["state"][2]


def half_precision(content: dict[str, Any]) -> None:
    content["state"][2]["exp_avg"] = content["state"][2]["exp_avg"].half()


def shorter(content: dict[str, Any]) -> None:
    content["state"] = {0: content["state"][0]}
    content["param_groups"][0]["params"] = [0]


def groups_gone(content: dict[str, Any]) -> None:
    content["param_groups"] = [{"params": "all"}, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_steps, "its parameters have taken different numbers of steps (4, 5); expected one number"),
        (nested_steps, "its parameters have taken different numbers of steps (None); expected one number"),
        (other_shape, "does not fit this network: exp_avg_sq of time_embed.0.bias is (7,), expected (128,)"),
        (half_precision, "its exp_avg are no tensors of float32"),
        (fewer, "parameters; expected all of them"),
        (shorter, "is of a network of 1 parameters, expected"),
        (groups_gone, "has state for 0 of 0 parameters"),
    ],
)
def test_optimizers_that_do_not_fit(change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=False)
    change_optimizer(tmp_path / "opt000004.pt", change)
    with pytest.raises(InputError) as caught:
        state_from_openai(tmp_path / "model000004.pt", CONFIG)
    assert str(tmp_path / "opt000004.pt") in str(caught.value)
    assert said in str(caught.value)


def test_step_counts_of_older_torch(tmp_path: Path) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=False)
    change_optimizer(tmp_path / "opt000004.pt", int_steps)
    assert state_from_openai(tmp_path / "model000004.pt", CONFIG)[1] == 5


def test_missing_files_are_named(tmp_path: Path) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=False)
    (tmp_path / "opt000004.pt").unlink()
    (tmp_path / "ema_0.999_000004.pt").unlink()
    with pytest.raises(InputError) as caught:
        state_from_openai(tmp_path / "model000004.pt", CONFIG)
    line = str(caught.value)
    assert "opt000004.pt, ema_0.999_000004.pt of the same step are not beside it" in line
    assert "(found ema_0.9999_000004.pt: training.ema_rate decides which are read)" in line
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        state_from_openai(tmp_path / "model000009.pt", CONFIG)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    train_as_openai(tmp_path, 4, steps=5, half=False)
    wider = with_changes(CONFIG, {"model.channels": 64})
    with pytest.raises(InputError, match=r"time_embed.0.weight is 128x32, expected 256x64"):
        state_from_openai(tmp_path / "model000004.pt", wider)
    shutil.copy(tmp_path / "model000004.pt", tmp_path / "opt000004.pt")
    with pytest.raises(InputError, match=r"opt000004.pt: holds no state of an optimizer"):
        state_from_openai(tmp_path / "model000004.pt", CONFIG)


def test_what_convert_refuses_in_one_line(run: Run, refuse: Refuse, filled: dict[str, Path], tmp_path: Path) -> None:
    state = train_as_openai(tmp_path, 5, steps=5, half=False)
    folder = saved(tmp_path / "c", state, 5)
    out = tmp_path / "out"
    assert "neither OUT nor --out" in refuse("convert", folder)
    assert "expected the name of a file, or --out" in refuse("convert", folder, tmp_path / "x.pt", "--out", out)
    assert "leave --preset and --set away" in refuse("convert", folder, "--out", out, "--preset", "digits8")
    assert "is neither a training run nor a checkpoint" in refuse("convert", filled["adm"], "--out", out)
    assert not out.exists()
    run("convert", folder, "--out", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert "exists; choose another name, or pass --overwrite" in refuse("convert", folder, "--out", out)
    run("convert", folder, "--out", out, "--overwrite")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (folder / "model.safetensors").write_bytes(b"")
    assert "damaged checkpoint (model.safetensors has 0 bytes" in refuse("convert", folder, "--out", tmp_path / "new")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "has no checkpoint yet" in refuse("convert", tmp_path / "run", "--out", tmp_path / "new")


@pytest.mark.parametrize(
    ("group", "step", "name"),
    [("model", 4, "model000004.pt"), ("opt", 12, "opt000012.pt"), ("ema_0.9999", 7, "ema_0.9999_000007.pt"),
     ("model", 1_234_567, "model1234567.pt")],
)  # fmt: skip
def test_names_of_openai(group: str, step: int, name: str) -> None:
    assert openai_name(group, step) == name
