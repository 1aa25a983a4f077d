"""Processes agree on starting, and are brought back; those that are alone need nobody."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from adm_bench import registry
from adm_bench.cli import main
from adm_bench.devices import choose_device
from adm_bench.errors import AlreadySaidError, InputError
from adm_bench.ranks import joined_ranks

SCRIPT = Path(__file__).with_name("joined_processes.py")


def test_a_failure_in_start_up_stops_all_with_its_message_first(processes: Any, tmp_path: Path) -> None:
    started = processes.torchrun(SCRIPT, "start_up", tmp_path)
    errors = processes.errors(started)
    assert started.returncode != 0
    lines = [line for line in errors.splitlines() if line]
    assert lines[0] == f"Error: rank 1: {tmp_path}: no images"
    assert sum("no images" in line for line in lines) == 1
    assert "went on alone" not in errors
    assert "exitcode: 2" in errors.replace(" ", "").replace("exitcode:2", "exitcode: 2")


def test_a_process_without_a_device_says_so_and_stops_all(processes: Any, tmp_path: Path) -> None:
    """More processes than GPUs: the first ones have theirs, and know of nothing."""
    started = processes.torchrun(SCRIPT, "no_device", tmp_path)
    errors = processes.errors(started)
    assert started.returncode != 0
    lines = [line for line in errors.splitlines() if line]
    assert lines[0] == "Error: rank 1: this is local process 1, counted from 0, but 1 CUDA devices are visible"
    assert errors.count("Error: ") == 1 + errors.count("ChildFailedError: ")
    assert "went on alone" not in errors


def test_torchrun_brings_a_run_back(processes: Any, tmp_path: Path) -> None:
    started = processes.torchrun(SCRIPT, "restart", tmp_path, options=["--max-restarts=1"])
    errors = processes.errors(started)
    assert started.returncode == 0, errors
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"attempt0.0", "attempt0.1", "attempt1.0", "attempt1.1"}


def test_one_process_needs_nobody() -> None:
    with joined_ranks() as ranks:
        ranks.agree(None)
        ranks.barrier()
        assert ranks.any(flag=True)
        assert not ranks.any(flag=False)
        with pytest.raises(InputError, match="no images"), ranks.agreeing():
            raise InputError("no images")


def test_errors_that_were_said_end_a_command_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
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
