"""One process and two train the same network, whole or in shares, and take each other's runs up."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from reports.records import read_records

SCRIPT = Path(__file__).with_name("command_processes.py")
STEPS, HALF = 20, 10
RELATIVE = 1e-5
KINDS = ("none", "full")
Rows = dict[int, dict[str, float]]


def command(out: Path, reference: Path, *more: str) -> list[str]:
    """Twenty steps, every one logged, with pictures and evaluations at the middle and the end."""
    return [
        "train", "adm", "--data", "digits", "--out", str(out), "--device", "cpu", "--batch", "8",
        "--steps", str(STEPS), "--set", "model.num_res_blocks=1", "--set", "model.attention_resolutions=[4]",
        "--set", "training.warmup_steps=5", "--log-every", "1", "--checkpoint-every", str(HALF),
        "--samples-every", str(HALF), "--evaluate-every", str(HALF), "--reference", str(reference),
        "--evaluate-images", "20", "--sampling-steps", "2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(
    processes: Any, run: Callable[..., Any], reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """What one process did and two did, of each kind, from the start or going on with another's run."""
    folder = tmp_path_factory.mktemp("runs")
    found = {name: folder / name for name in ("one", "none", "full", "one to two", "none to full", "two to one")}
    run(*command(found["one"], reference))
    commands = [
        command(found["none"], reference),
        ["killed", found["none"], found["none to full"]],
        ["killed", found["none"], found["two to one"]],
        ["killed", found["one"], found["one to two"]],
        command(found["one to two"], reference),
        command(found["none to full"], reference, "--sharding", "full"),
        command(found["full"], reference, "--sharding", "full"),
    ]
    (folder / "commands.json").write_text(json.dumps(commands, default=str))
    started = processes.torchrun(SCRIPT, folder / "commands.json")
    errors = processes.errors(started)
    assert started.returncode == 0, errors
    run(*command(found["two to one"], reference))
    return found


def rows(run: Path, event: str) -> Rows:
    """The numbers of an event, by step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["event"] == event]
    assert [line["step"] for line in found] == sorted({line["step"] for line in found})  # each once
    return {line["step"]: line for line in found}


def losses(run: Path) -> Rows:
    """Every mean over images that was logged, all of them but what is timed."""
    kept = ("loss", "mse", "vb")
    return {
        step: {name: value for name, value in row.items() if name.startswith(kept) and name != "loss_scale"}
        for step, row in rows(run, "training").items()
    }


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("none", "one"),
        ("full", "one"),
        ("full", "none"),
        ("one to two", "one"),
        ("two to one", "one"),
        ("none to full", "none"),
    ],
)
def test_every_loss_is_the_same_however_many_processes_train(name: str, like: str, runs: Mapping[str, Path]) -> None:
    ours, theirs = losses(runs[name]), losses(runs[like])
    assert list(ours) == list(theirs) == list(range(STEPS))
    for step, expected in theirs.items():
        assert expected.keys() == ours[step].keys()
        assert ours[step] == pytest.approx(expected, rel=RELATIVE, abs=0), step


def test_the_losses_would_tell_another_order_of_the_images(runs: Mapping[str, Path]) -> None:
    values = [row["loss"] for row in losses(runs["one"]).values()]
    gaps = [abs(one - other) / one for one in values for other in values if one != other]
    assert min(gaps) > RELATIVE


@pytest.mark.parametrize("name", ["none", "full", "one to two", "two to one", "none to full"])
def test_pictures_and_evaluations_are_those_of_one_process(name: str, runs: Mapping[str, Path]) -> None:
    for step in (HALF, STEPS):
        picture = f"samples/step_{step:08d}.png"
        assert (runs[name] / picture).is_file()
        assert rows(runs[name], "samples")[step - 1]["picture"] == picture
        expected = rows(runs["one"], "evaluation")[step - 1]["fid"]
        assert rows(runs[name], "evaluation")[step - 1]["fid"] == pytest.approx(expected, rel=1e-3)
    records = list(read_records(runs[name] / "evaluations.jsonl"))
    assert [record.settings["step"] for record in records] == [HALF, STEPS]


def test_starts_say_how_many_processes_there_were(runs: Mapping[str, Path]) -> None:
    def ranks(name: str) -> list[tuple[int, int]]:
        lines = (runs[name] / "starts.jsonl").read_text().splitlines()
        return [(line["from_step"], line["ranks"]) for line in map(json.loads, lines)]

    assert ranks("one to two") == [(0, 1), (HALF, 2)]
    assert ranks("two to one") == [(0, 2), (HALF, 1)]


def test_weights_are_those_of_one_process(runs: Mapping[str, Path]) -> None:
    ours, theirs = (load_file(runs[name] / "weights.safetensors") for name in ("none", "one"))
    assert ours.keys() == theirs.keys()
    distance = sum(float((ours[name] - theirs[name]).norm() ** 2) for name in theirs) ** 0.5
    assert distance < 1e-4 * sum(float(tensor.norm() ** 2) for tensor in theirs.values()) ** 0.5
