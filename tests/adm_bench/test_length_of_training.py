"""How long a training lasts, what it keeps and what it looks at on the way, however many starts it takes."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adm_bench.cli import main
from adm_bench.observations import SampleGrid
from generators.protocol import StepReport, TrainingBatch
from generators.training.network_trainer import NetworkTrainer

Run = Callable[..., Any]
Refuse = Callable[..., str]
TINY = [
    "--data", "digits", "--device", "cpu", "--batch", "4", "--log-every", "2", "--set", "model.channels=32",
    "--set", "model.num_res_blocks=1", "--set", "model.channel_mult=[1]", "--set", "model.attention_resolutions=[]",
]  # fmt: skip


def training(out: Path, *options: str | Path) -> list[str | Path]:
    return ["train", "adm", "--out", out, *TINY, *options]


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == event]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def twelve(run: Run, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights after twelve steps."""
    out = tmp_path_factory.mktemp("twelve") / "run"
    run(*training(out, "--steps", "12"))
    return (out / "weights.safetensors").read_bytes()


def test_hours_count_over_all_starts(run: Run, twelve: bytes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):  # the second start finds that they are over, and takes no step
        ended = run(*training(out, "--steps", "12", "--hours", "1e-9"))
        assert ended.stdout == ""
        assert ended.stderr.splitlines()[-1] == (
            f"{out}: 1e-09 hours are over after step 1 of 12; repeat the command with more to go on, or sample from "
            f"{out / 'checkpoints' / 'step_00000001'}"
        )
        assert checkpoints(out) == [1]
    assert not (out / "weights.safetensors").exists()
    run(*training(out, "--steps", "12", "--hours", "9"))
    assert (out / "weights.safetensors").read_bytes() == twelve
    assert [row["step"] for row in rows(out, "training")] == [1, 3, 5, 7, 9, 11]
    assert "already trained" in run(*training(out, "--steps", "12", "--hours", "1e-9")).stderr
    (out / "weights.safetensors").write_bytes(twelve[:1000])
    assert "making it again from the newest checkpoint" in run(*training(out, "--steps", "12")).stderr
    assert (out / "weights.safetensors").read_bytes() == twelve


@pytest.mark.parametrize("left", [b'{"event": "training", "st', b"\0\0\0\0}", b'\xff{"step": 0}', b'{"step": 0}', b"7"])
def test_what_a_crash_leaves_in_the_log_is_dropped(left: bytes, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(*training(out, "--steps", "3", "--hours", "1e-9", "--log-every", "1"))
    with (out / "log.jsonl").open("ab") as file:
        file.write(left)
    run(*training(out, "--steps", "3", "--log-every", "1"))
    assert [row["step"] for row in rows(out, "training")] == [0, 1, 2]


@pytest.mark.parametrize("images", ["45", "48"])
def test_length_in_images_is_rounded_up_to_steps(images: str, run: Run, twelve: bytes, tmp_path: Path) -> None:
    said = run(*training(tmp_path / "run", "--images", images)).stdout
    assert "12 steps, 48 images in" in said
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == twelve


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "5", "--images", "10"], "--steps 5 and --images 10: give one of them"),
        (["--steps", "5", "--set", "training.steps=6"], "--steps says training.steps 5, and --set says 6"),
        (["--images", "9", "--set", "training.steps=6"], "--images says training.steps 3, and --set says 6"),
        (["--set", "training.batch_size=6"], "--batch says training.batch_size 4, and --set says 6"),
        (
            ["--compile", "--set", "training.compile=false"],
            "--compile says training.compile True, and --set says False",
        ),
        (["--steps", "5", "--evaluate-every", "5"], "--evaluate-every and --reference belong together"),
        (["--steps", "5", "--validation", "digits"], "trainer 'adm' cannot be validated, only classifiers can"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], said: str, refuse: Refuse, tmp_path: Path) -> None:
    assert said in refuse(*training(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [6, 9, 12]),
        (["--keep", "1"], [12]),
        (["--keep", "1", "--keep-every", "6"], [6, 12]),
        (["--keep", "2", "--keep-every", "4"], [4, 8, 9, 12]),  # made too, though they lie between others
    ],
)
def test_which_checkpoints_stay(options: list[str], expected: list[int], run: Run, tmp_path: Path) -> None:
    run(*training(tmp_path / "run", "--steps", "12", "--checkpoint-every", "3", *options))
    assert checkpoints(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("ends_at", "by", "status", "going_on_from"),
    [
        (7, signal.SIGTERM, 143, 8),  # before the picture that is due after this step
        (8, signal.SIGTERM, 143, 9),  # after it
        (9, None, 1, 8),  # after it, and its checkpoint is what the run goes on from
    ],
)
def test_what_is_due_at_a_checkpoint_is_looked_at_once(
    ends_at: int,
    by: signal.Signals | None,
    status: int,
    going_on_from: int,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, observe, take = [], SampleGrid.observe, NetworkTrainer.train_step

    def noted(self: SampleGrid, trainer: Any, step: int, *others: Any) -> Mapping[str, Any]:
        seen.append(step)
        return observe(self, trainer, step, *others)

    def ended(self: NetworkTrainer, batch: TrainingBatch) -> StepReport:
        if batch.step == ends_at:
            if by is None:
                raise OSError("the cable is out")
            os.kill(os.getpid(), by)
        return take(self, batch)

    monkeypatch.setattr(SampleGrid, "observe", noted)
    out = tmp_path / "run"
    options = ["--steps", "12", "--checkpoint-every", "4", "--samples-every", "4", "--sampling-steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(NetworkTrainer, "train_step", ended)
        result = CliRunner().invoke(main, [str(argument) for argument in training(out, *options)])
        assert result.exit_code == status
    assert f"going on from step {going_on_from}" in run(*training(out, *options)).stderr
    assert seen == [4, 8, 12]
    assert [row["step"] for row in rows(out, "samples")] == [3, 7, 11]
    assert len(list((out / "samples").iterdir())) == 3
