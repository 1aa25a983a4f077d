"""Many processes train as one, agree on starting, and end together: real ones, by torchrun and by environment alone."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench.devices import choose_device
from adm_bench.errors import AlreadySaidError, InputError
from adm_bench.parallel import Sharded, parallel_for
from adm_bench.ranks import Ranks, joined_ranks
from generators.training.alone import Alone

SCRIPT = Path(__file__).with_name("training_processes.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
TOLERANCE = 1e-5
LIMIT_SEC = 120
Tensors = dict[str, Tensor]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(started: "subprocess.Popen[str]") -> str:
    """What it wrote to stderr, once it has ended, with all of its own processes."""
    try:
        return started.communicate(timeout=LIMIT_SEC)[1]
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)


def start(command: list[str | Path], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        list(map(str, command)),
        env=ENVIRONMENT | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def torchrun(scenario: str, folder: Path, *options: str) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return start([*launcher, SCRIPT, scenario, folder])


def of(title: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{title}/"): t for name, t in tensors.items() if name.startswith(f"{title}/")}


def assert_close(one: Tensors, other: Tensors) -> None:
    """Relative in L2, of all together and of each; what cancels out (biases before norms) is measured by the rest."""
    assert one.keys() == other.keys()
    total = torch.cat([tensor.flatten() for tensor in other.values()]).norm()
    for name, tensor in other.items():
        allowed = TOLERANCE * max(tensor.norm(), 1e-3 * total)
        assert (one[name] - tensor).norm() <= allowed, name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tensors]]:
    """What one process did on whole batches, and two of each kind on halves of them."""
    folder = tmp_path_factory.mktemp("runs")
    script = load_script()
    training = script.Training(Alone())
    alone = script.record(training)
    save_file(of("state", alone), folder / "alone.safetensors")
    alone["more"] = script.more(training)
    started = torchrun("train", folder)
    errors = finished(started)
    assert started.returncode == 0, errors
    yield {"alone": alone} | {kind: load_file(folder / f"{kind}.safetensors") for kind in ("none", "full")}


KINDS = pytest.mark.parametrize("kind", ["none", "full"])


@KINDS
@pytest.mark.parametrize("what", ["gradient", "accumulated", "recomputed"])
def test_gradients_are_those_of_one_process_on_the_joined_batch(
    kind: str, what: str, runs: dict[str, Tensors]
) -> None:
    assert_close(of(what, runs[kind]), of("gradient", runs["alone"]))


@KINDS
def test_twenty_steps_are_those_of_one_process(kind: str, runs: dict[str, Tensors]) -> None:
    for what in ("losses", "norms"):
        torch.testing.assert_close(runs[kind][what], runs["alone"][what], rtol=TOLERANCE, atol=0)
    assert runs["alone"]["losses"][-5:].mean() < 0.9 * runs["alone"]["losses"][:5].mean()


def test_shares_train_as_replicas_do(runs: dict[str, Tensors]) -> None:
    torch.testing.assert_close(runs["full"]["losses"], runs["none"]["losses"], rtol=TOLERANCE, atol=0)
    for group in ("model", "average", "exp_avg", "exp_avg_sq"):
        assert_close(of(f"state/{group}", runs["full"]), of(f"state/{group}", runs["none"]))


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


def test_a_failure_in_start_up_stops_all_with_its_message_first(tmp_path: Path) -> None:
    began = time.monotonic()
    started = torchrun("start_up", tmp_path)
    errors = finished(started)
    assert started.returncode != 0
    assert time.monotonic() - began < 60
    lines = [line for line in errors.splitlines() if line]
    assert lines[0] == f"Error: rank 1: {tmp_path}: no images"
    assert sum("no images" in line for line in lines) == 1
    assert "went on alone" not in errors
    assert "exitcode: 2" in errors.replace(" ", "").replace("exitcode:2", "exitcode: 2")


def test_torchrun_brings_a_run_back(tmp_path: Path) -> None:
    started = torchrun("restart", tmp_path, "--max-restarts=1")
    errors = finished(started)
    assert started.returncode == 0, errors
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"attempt0.0", "attempt0.1", "attempt1.0", "attempt1.1"}


@pytest.mark.parametrize(
    ("how", "said"), [("killed", "rank 0: another process has ended"), ("failed", "rank 1: internal failure: ValueErr")]
)
def test_others_end_soon_after_one_that_dies(how: str, said: str, tmp_path: Path) -> None:
    """Started by environment alone, as on many machines: nobody but the connection tells them."""
    folder = tmp_path / how
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start([sys.executable, SCRIPT, "die", folder], RANK=str(rank), **place) for rank in range(2)]
    errors = [finished(each) for each in both]
    assert time.time() - float((folder / "began").read_text()) < 20, errors
    assert both[0].returncode == 1
    assert both[1].returncode == (-signal.SIGKILL if how == "killed" else 1)
    lines = [line for text in errors for line in text.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"Error: {said}")
    assert "Traceback" not in errors[0] + errors[1]


def test_one_process_needs_nobody() -> None:
    with joined_ranks() as ranks:
        ranks.agree(None)
        ranks.barrier()
        assert ranks.any(flag=True)
        assert not ranks.any(flag=False)
        assert isinstance(parallel_for(ranks, "none"), Alone)
        with pytest.raises(InputError, match="no images"), ranks.agreeing():
            raise InputError("no images")


def test_one_process_can_be_sharded_in_a_group_of_one() -> None:
    script = load_script()
    expected = [script.Training(Alone()).step(0)]
    with joined_ranks(group_of_one=True) as ranks:
        parallel = parallel_for(ranks, "full")
        assert isinstance(parallel, Sharded)
        assert [script.Training(parallel).step(0)] == pytest.approx(expected, rel=TOLERANCE)
        with pytest.raises(ValueError, match=r"whole tensor is \(2,\); expected"):
            parallel.copy(torch.zeros(2), next(iter(script.Training(parallel).parameters.values())))
    assert not torch.distributed.is_initialized()


def test_errors_that_were_said_end_a_command_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from adm_bench import registry
    from adm_bench.cli import main

    def refuse(*_: object) -> None:
        raise AlreadySaidError(2)

    monkeypatch.setattr(registry, "load", refuse)
    result = CliRunner().invoke(main, ["train", "adm", "--data", "digits", "--out", "nowhere"])
    assert (result.exit_code, result.output) == (2, "")


def test_each_local_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert choose_device(name) == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="local process 2, counted from 0, but 2 CUDA devices are visible"):
        choose_device("auto")


def test_ranks_compute_on_the_cpu_unless_told_otherwise() -> None:
    assert Ranks().device == torch.device("cpu")
