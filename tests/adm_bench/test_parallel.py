"""Many processes train as one, whole or in shares, put their state away and take it up, and end together."""

import importlib.util
import signal
import socket
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench.parallel import Replicated, Sharded, parallel_for
from adm_bench.ranks import joined_ranks
from generators.training.alone import Alone

SCRIPT = Path(__file__).with_name("training_processes.py")
TOLERANCE = 1e-5
Tensors = dict[str, Tensor]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(title: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{title}/"): t for name, t in tensors.items() if name.startswith(f"{title}/")}


def joined(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def assert_close(one: Tensors, other: Tensors) -> None:
    """Relative in L2, of all together and of each; what cancels out (biases before norms) is measured by the rest."""
    assert one.keys() == other.keys()
    total = joined(other).norm()
    for name, tensor in other.items():
        allowed = TOLERANCE * max(tensor.norm(), 1e-3 * total)
        assert (one[name] - tensor).norm() <= allowed, name


@pytest.fixture(scope="module")
def runs(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    """What one process did on whole batches, and two of each kind on halves of them."""
    folder = tmp_path_factory.mktemp("runs")
    script = load_script()
    training = script.Training(Alone())
    alone = script.record(training)
    save_file(of("state", alone), folder / "alone.safetensors")
    alone["more"] = script.more(training)
    started = processes.torchrun(SCRIPT, "train", folder)
    errors = processes.errors(started)
    assert started.returncode == 0, errors
    return {"alone": alone} | {kind: load_file(folder / f"{kind}.safetensors") for kind in ("none", "full")}


KINDS = pytest.mark.parametrize("kind", ["none", "full"])


@KINDS
@pytest.mark.parametrize("what", ["gradient", "accumulated", "recomputed"])
def test_gradients_are_those_of_one_process_on_the_joined_batch(kind: str, what: str, runs: dict[str, Tensors]) -> None:
    assert_close(of(what, runs[kind]), of("gradient", runs["alone"]))


@KINDS
def test_twenty_steps_are_those_of_one_process(kind: str, runs: dict[str, Tensors]) -> None:
    for what in ("losses", "norms"):
        torch.testing.assert_close(runs[kind][what], runs["alone"][what], rtol=TOLERANCE, atol=0)
    assert runs["alone"]["losses"][-5:].mean() < 0.9 * runs["alone"]["losses"][:5].mean()


def test_shares_train_as_replicas_do(runs: dict[str, Tensors]) -> None:
    torch.testing.assert_close(runs["full"]["losses"], runs["none"]["losses"], rtol=TOLERANCE, atol=0)
    training = load_script().Training(Alone())
    for group in ("model", "average"):  # by what they do: biases that cancel out follow the rounding of their gradients
        one, other = (training.output(of(f"state/{group}", runs[kind])) for kind in ("full", "none"))
        assert (one - other).norm() <= TOLERANCE * other.norm()
    for group in ("exp_avg", "exp_avg_sq"):
        one, other = (of(f"state/{group}", runs[kind]) for kind in ("full", "none"))
        assert one.keys() == other.keys()
        assert (joined(one) - joined(other)).norm() <= TOLERANCE * joined(other).norm()


@KINDS
def test_state_goes_from_many_processes_to_many_and_to_one(kind: str, runs: dict[str, Tensors]) -> None:
    found = runs[kind]
    assert torch.equal(found["resumed"], found["more"])
    script = load_script()
    training = script.Training(Alone(), seed=2)
    training.load(of("state", found))
    torch.testing.assert_close(script.more(training), found["more"], rtol=TOLERANCE, atol=0)


@KINDS
def test_state_goes_from_one_process_to_many(kind: str, runs: dict[str, Tensors]) -> None:
    kept, expected = of("kept", runs[kind]), of("state", runs["alone"])
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    torch.testing.assert_close(runs[kind]["from_alone"], runs["alone"]["more"], rtol=TOLERANCE, atol=0)


@KINDS
def test_an_overflow_anywhere_is_skipped_everywhere(kind: str, runs: dict[str, Tensors]) -> None:
    assert runs[kind]["skips_an_overflow"]


@KINDS
def test_gathered_rows_are_in_the_order_of_ranks(kind: str, runs: dict[str, Tensors]) -> None:
    assert runs[kind]["gathered"].flatten().tolist() == [0, 1, 2, 10, 11, 12]
    assert runs[kind]["gathered_bool"].flatten().tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("how", "said"), [("killed", "another process has ended"), ("failed", "rank 1: internal failure: ValueErr")]
)
def test_others_end_soon_after_one_that_dies(how: str, said: str, processes: Any, tmp_path: Path) -> None:
    """Started by environment alone, as on many machines: nobody but the connection tells them."""
    folder = tmp_path / how
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [processes.start(SCRIPT, "die", folder, RANK=str(rank), **place) for rank in range(2)]
    errors = [processes.errors(each) for each in both]
    assert time.time() - float((folder / "began").read_text()) < 20, errors
    assert both[0].returncode == 1
    assert both[1].returncode == (-signal.SIGKILL if how == "killed" else 1)
    lines = [line for text in errors for line in text.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"Error: {said}")
    assert "Traceback" not in errors[0] + errors[1]


def test_one_process_can_be_sharded_in_a_group_of_one() -> None:
    script = load_script()
    expected = script.Training(Alone()).step(0)
    with joined_ranks(group_of_one=True) as ranks:
        assert isinstance(parallel_for(ranks, "none"), Alone)
        parallel = parallel_for(ranks, "full")
        assert isinstance(parallel, Sharded)
        assert script.Training(parallel).step(0) == pytest.approx(expected, rel=TOLERANCE)
        with pytest.raises(ValueError, match=r"whole tensor is \(2,\); expected"):
            parallel.copy(torch.zeros(2), next(iter(script.Training(parallel).parameters.values())))
        for each in (parallel, Replicated(ranks)):
            with pytest.raises(ValueError, match=r"has a buffer, running_mean"):
                each.wrap(torch.nn.BatchNorm2d(3))
    assert not torch.distributed.is_initialized()
