"""What the processes of test_ranks.py do: `torchrun ... joined_processes.py SCENARIO FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import torch

from adm_bench.errors import AlreadySaidError, InputError
from adm_bench.ranks import Ranks, joined_ranks


def start_up(ranks: Ranks, folder: Path) -> None:
    """The second process cannot open its images."""
    assert ranks.any(flag=ranks.rank == 1)
    assert not ranks.any(flag=False)
    assert ranks.gather_plain({"word": "é" * (3 * ranks.rank)}) == [{"word": ""}, {"word": "ééé"}]
    ranks.agree(None)
    with ranks.agreeing():
        if ranks.rank == 1:
            raise InputError(f"{folder}: no images")
    raise AssertionError("went on alone")


def restart(ranks: Ranks, folder: Path) -> None:
    """At the first try, the second process is killed."""
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    (folder / f"attempt{attempt}.{ranks.rank}").touch()
    ranks.barrier()
    if attempt == "0" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier()


def no_device(_: Ranks, __: Path) -> None:
    """Nobody comes here, for the second process has none."""
    raise AssertionError("went on alone")


def second_has_none() -> torch.device:
    """A device for the first process."""
    if os.environ["RANK"] == "1":
        raise InputError("this is local process 1, counted from 0, but 1 CUDA devices are visible")
    return torch.device("cpu")


SCENARIOS = {"start_up": start_up, "restart": restart, "no_device": no_device}

if __name__ == "__main__":
    try:
        choice = {"choose": second_has_none} if sys.argv[1] == "no_device" else {}
        with joined_ranks(**choice) as joined:
            SCENARIOS[sys.argv[1]](joined, Path(sys.argv[2]))
    except AlreadySaidError as said:
        sys.exit(said.exit_status)
