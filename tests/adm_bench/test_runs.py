"""Which folder a run may start in, and under which changes it goes on."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from adm_bench import runs
from adm_bench.errors import InputError
from adm_bench.runs import HARMLESS, TrainingRun, differences, find_weights
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping, with_changes
from generators.unet.checkpoint import WeightsHeader

Run = Callable[..., Any]
Refuse = Callable[..., str]
HEADER = WeightsHeader(kind="adm", config={})


def plan(*, trainer: str = "adm", data: str = "digits", precision: str = "fp32", **training: Any) -> dict[str, Any]:
    fields = {f"training.{name}": value for name, value in training.items()}
    config = with_changes(PRESETS["digits8"].config, {"training.annealing": "none", "training.steps": 100, **fields})
    return {
        "kind": "training",
        "trainer": trainer,
        "config": to_mapping(config),
        "data": {"name": data, "digest": "d"},
        "precision": precision,
    }


@contextmanager
def opened(folder: Path, *, overwrite: bool = False, **changed: Any) -> Iterator[TrainingRun]:
    run = TrainingRun(folder)
    with run.opened(plan(**changed), overwrite=overwrite):
        yield run


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def starts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def reach(run: TrainingRun, step: int) -> None:
    run.checkpoints.save(step, {"model": {"a": torch.zeros(3)}}, {}, HEADER)


def finish(run: TrainingRun) -> None:
    run.save_weights(HEADER, {"a": torch.zeros(3)})
    run.result.write_text("{}")


def test_every_start_is_noted(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.started(0)
    with opened(tmp_path / "run", compile=True, steps=200) as run:
        run.started(40, ranks=2)
    first, second = starts(tmp_path / "run")
    assert (first["from_step"], first["ranks"], first["changed"]) == (0, 1, [])
    assert (second["from_step"], second["ranks"]) == (40, 2)
    assert second["changed"] == ["config.training.compile: False -> True", "config.training.steps: 100 -> 200"]
    assert {"time", "command", "host", "commit", "versions"} <= set(first)
    assert stored(tmp_path / "run") == plan(compile=True, steps=200)


@pytest.mark.parametrize(
    "changed",
    [
        {"most_skipped": 3},
        {"microbatch_size": 4},
        {"recompute_activations": True},
        {"compile": True},
        {"data": "/there"},
    ],
)
def test_harmless_changes_go_on(changed: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 10)
    with opened(tmp_path / "run", **changed) as run:
        assert stored(run.folder) == plan()  # until it has started
        run.started(10)
        assert run.checkpoints.newest() is not None
    assert stored(tmp_path / "run") == plan(**changed)
    assert len(HARMLESS) == 5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precision": "bf16"}, "precision: fp32 -> bf16"),
        ({"learning_rate": 0.5}, "config.training.learning_rate: 0.002 -> 0.5"),
        ({"batch_size": 3}, "config.training.batch_size: 32 -> 3"),
        ({"ema_rate": 0.5}, "config.training.ema_rate: "),
        ({"annealing": "linear"}, "config.training.annealing: none -> linear"),
        ({"annealing": "linear", "steps": 200}, "steps: 100 -> 200, but annealing 'linear' depends on it"),
        ({"steps": 39}, "config.training.steps: 100 -> 39, but 40 are done"),
        ({"compile": True, "flip": True}, "holds a run that differs (config.training.flip: False -> True)"),
        ({"trainer": "classifier"}, "holds a training run of trainer 'adm', not 'classifier'"),
    ],
)
def test_other_changes_are_refused_and_named(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 40)
    with pytest.raises(InputError) as caught, opened(tmp_path / "run", **changed):
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stored(tmp_path / "run") == plan()
    with opened(tmp_path / "run", overwrite=True, **changed) as run:
        assert run.checkpoints.list() == ()
    assert stored(tmp_path / "run") == plan(**changed)


@pytest.mark.parametrize("steps", [40, 41, 1000])
def test_any_length_that_is_not_past_will_do(steps: int, tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 40)
    with opened(tmp_path / "run", steps=steps) as run:
        run.started(40)
    assert stored(tmp_path / "run") == plan(steps=steps)


def test_a_finished_run_goes_on_when_it_is_made_longer(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 100)
        finish(run)
    with pytest.raises(InputError, match="100 -> 99, but 100 are done"), opened(tmp_path / "run", steps=99):
        pass
    with opened(tmp_path / "run", compile=True) as run:
        assert run.result.exists()
    with opened(tmp_path / "run", steps=200) as run:
        assert not run.result.exists()
        assert run.weights.exists()
    with pytest.raises(InputError, match="the run has not finished"):
        find_weights(tmp_path / "run", "--weights")


def test_a_finished_run_without_checkpoints_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    """They may have been deleted for their size; the weights and the log are worth what training took."""
    with opened(tmp_path / "run") as run:
        finish(run)
    with (
        pytest.raises(InputError, match="no checkpoint of the finished run is left"),
        opened(tmp_path / "run", steps=200),
    ):
        pass
    assert TrainingRun(tmp_path / "run").result.exists()
    with opened(tmp_path / "run") as run:
        assert run.result.exists()


def test_another_program_that_was_there_a_moment_ago_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts, and is killed, after the folder was looked at and before it was locked."""
    (tmp_path / "run").mkdir()

    def looked_at(folder: Path) -> None:
        with TrainingRun(folder).opened(plan(flip=True), overwrite=False):
            reach(TrainingRun(folder), 40)

    with monkeypatch.context() as patch:
        real = runs.what_is
        patch.setattr(runs, "what_is", lambda folder: (patch.setattr(runs, "what_is", real), looked_at(folder))[1])
        with pytest.raises(InputError, match="flip: True -> False"), opened(tmp_path / "run"):
            pass


def test_checkpoints_that_cannot_be_written_are_known_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch

    def refused(self: Path, *arguments: Any) -> None:
        if self.parent.name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(self))
        touch(self, *arguments)

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(InputError, match="checkpoints: cannot be written"), opened(tmp_path / "run"):
        pass


def test_a_process_that_does_not_see_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine has a disk of its own under that name."""
    monkeypatch.setattr(runs, "SEEN_SEC", 0.0)
    with opened(tmp_path / "run") as run:
        run.require_seen()
        reach(run, 10)
        assert run.checkpoints.of(10).step == 10
        with pytest.raises(InputError, match=r"step_00000020: is whole for the first process, but not on .*missing"):
            run.checkpoints.of(20)
    with pytest.raises(InputError, match=r"is not where the first process writes .* that all machines share"):
        TrainingRun(tmp_path / "other").require_seen()


def test_overwrite_goes_on_with_an_unfinished_run_of_the_same_plan(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 40)
    with opened(tmp_path / "run", overwrite=True) as run:
        assert len(run.checkpoints.list()) == 1
        finish(run)
    with opened(tmp_path / "run", overwrite=True) as run:
        assert run.checkpoints.list() == ()
        assert not run.weights.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("suite.json", "{}", "the folder of a suite's run"),
        ("plan.json", "{}", "the parts of samples or of a reference"),
        ("manifest.json", "{}", "a checkpoint of a training run"),
        ("notes.txt", "", "a folder with other files in it (notes.txt)"),
        ("run.json", '{"kind": "other"}', "though it has a run.json"),
        ("run.json", "[]", "though it has a run.json"),
    ],
)
def test_folders_of_others_are_refused_by_what_they_are(
    name: str, content: str, what: str, overwrite: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(InputError) as caught, opened(folder, overwrite=overwrite):
        pass
    assert f"{folder}: is no training run" in str(caught.value)
    assert what in str(caught.value)
    assert (folder / name).read_text() == content


def test_a_file_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is no training run but a file of samples or a reference"), opened(path):
        pass


def test_differences_of_plain_data() -> None:
    assert differences({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": "x" * 50}) == [
        "a.c: [1] -> [2]",
        "d: 2 -> None",
        f"e: None -> {'x' * 40}...",
    ]


def test_a_checkpoint_is_no_file_of_weights(refuse: Refuse, tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        reach(run, 40)
    folder = tmp_path / "run" / "checkpoints" / "step_00000040"
    line = refuse("sample", "adm", "--weights", folder, "--num", "1", "--out", tmp_path / "x.npz")
    assert "is a checkpoint; name a file of weights in it, as model.safetensors" in line


def test_inspect_says_what_is_whole(run: Run, tmp_path: Path) -> None:
    with opened(tmp_path / "run") as started:
        for step in (10, 20):
            reach(started, step)
    checkpoints = tmp_path / "run" / "checkpoints"
    with (checkpoints / "step_00000010" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    found = json.loads(run("inspect", tmp_path / "run").output)
    assert found["what"] == "training run"
    assert found["checkpoints"]["step_00000020"] == "step 20, kind adm, digests ok"
    assert found["checkpoints"]["step_00000010"].startswith("damaged: model.safetensors has ")
    one = json.loads(run("inspect", checkpoints / "step_00000020").output)
    assert (one["what"], one["step"], one["kind"]) == ("checkpoint of a training run", 20, "adm")
    assert (one["digests"], one["groups"]) == ("ok", ["model"])
    assert json.loads(run("inspect", checkpoints / "step_00000010").output)["digests"].startswith("damaged: ")
    assert len(list(checkpoints.iterdir())) == 2  # looking moves nothing
