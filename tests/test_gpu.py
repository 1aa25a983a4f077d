"""The same road on a GPU, where there is one: `pytest -m gpu`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adm_bench.cli import main
from adm_bench.devices import choose_device
from adm_bench.parallel import Replicated, Sharded
from adm_bench.ranks import joined_ranks
from generators.adm.presets import PRESETS
from generators.adm.trainer import ClassifierTrainer
from generators.protocol import Parallel, TrainingBatch
from generators.training.alone import Alone

pytestmark = pytest.mark.gpu
TINY = ["--set", "model.num_res_blocks=1", "--steps", "20", "--batch", "16"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module", autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("-m gpu needs a CUDA device, and there is none")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_road_on_a_gpu(precision: str, tmp_path: Path) -> None:
    for kind in ("adm", "classifier"):
        run(
            "train",
            kind,
            "--data",
            "digits",
            "--out",
            tmp_path / kind,
            *TINY,
            "--precision",
            precision,
            "--device",
            "cuda",
        )
    guided = ["--classifier", tmp_path / "classifier", "--guidance-scale", 1, "--sampling-steps", 10, "--num", 32]
    images = {}
    for device in ("cuda", "cpu"):
        out = tmp_path / f"{device}.npz"
        run("sample", "adm", "--weights", tmp_path / "adm", *guided, "--device", device, "--out", out)
        with np.load(out) as arrays:
            images[device] = arrays["arr_0"].astype(int)
    assert np.abs(images["cuda"] - images["cpu"]).mean() < 1
    run("reference", "digits", "--device", "cuda", "--out", tmp_path / "ref.npz")
    assert "Precision" in run("evaluate", tmp_path / "ref.npz", tmp_path / "cuda.npz", "--device", "cuda")


def test_baselines_on_a_gpu(tmp_path: Path) -> None:
    for name in ("gaussian", "memorizer", "noise"):
        run("sample", name, "--data", "digits", "--num", 20, "--device", "cuda", "--out", tmp_path / f"{name}.npz")


@pytest.mark.parametrize("form", [Replicated, Sharded])
def test_processes_that_train_together_on_a_gpu(form: type[Replicated | Sharded]) -> None:
    """A group of one, by NCCL: the same steps as without a group, state that goes in and out, an overflow skipped."""
    path = Path(__file__).parent / "adm_bench" / "training_processes.py"
    spec = importlib.util.spec_from_file_location("training_processes", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    device = choose_device("cuda")
    alone = script.Training(Alone(), device=str(device))
    expected = [alone.step(step) for step in range(3)]
    with joined_ranks(lambda: device, group_of_one=True) as ranks:
        ranks.agree(None)
        assert ranks.any(flag=True)
        training = script.Training(form(ranks), device=str(device))
        assert np.allclose([training.step(step) for step in range(3)], expected, rtol=1e-4)
        other = script.Training(form(ranks), seed=1, device=str(device))
        state = training.state()
        other.load(state)
        assert all(torch.equal(state[name], tensor) for name, tensor in other.state().items())
        assert script.skips_an_overflow(form(ranks), str(device))
        rows = torch.arange(3, device=device)
        assert torch.equal(form(ranks).gather(rows), rows)


@pytest.mark.parametrize("form", [Replicated, Sharded])
def test_a_trainer_in_a_group_on_a_gpu(form: type[Replicated | Sharded]) -> None:
    """A group of one takes the steps of a process without a group; validation and the state that is kept, too."""
    device, images = choose_device("cuda"), torch.arange(3 * 8 * 8).repeat(16).view(16, 3, 8, 8).to(torch.uint8)

    def numbers(parallel: Parallel) -> list[float]:
        torch.manual_seed(0)
        trainer = ClassifierTrainer(PRESETS["digits8_classifier"].config, device, "fp32", parallel)  # type: ignore[arg-type]
        batches = [
            TrainingBatch(
                step=step, images=images, labels=torch.arange(16) % 10, seeds=range(16 * step, 16 * step + 16)
            )
            for step in range(4)
        ]
        reports = [trainer.train_step(batch) for batch in batches[:3]]
        trainer.load_state(trainer.state())
        seen = [report.means["loss"] for report in reports] + [trainer.validate(batches[3])["loss"]]
        return [mean.total / mean.number for mean in seen] + [report.values["grad_norm"] for report in reports]

    expected = numbers(Alone())
    with joined_ranks(device, group_of_one=True) as ranks:
        assert np.allclose(numbers(form(ranks)), expected, rtol=1e-4)
