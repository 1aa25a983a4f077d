"""What the processes of test_ranks.py do: `torchrun ... joined_processes.py SCENARIO FOLDER`."""

import os
import signal
import sys
from pathlib import Path

from adm_bench.errors import AlreadySaidError, InputError
from adm_bench.ranks import Ranks, joined_ranks


def start_up(ranks: Ranks, folder: Path) -> None:
    """The second process cannot open its images."""
    assert ranks.any(flag=ranks.rank == 1)
    assert not ranks.any(flag=False)
    assert ranks.gather_texts("é" * (3 * ranks.rank)) == ["", "ééé"]
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


SCENARIOS = {"start_up": start_up, "restart": restart}

if __name__ == "__main__":
    try:
        with joined_ranks() as joined:
            SCENARIOS[sys.argv[1]](joined, Path(sys.argv[2]))
    except AlreadySaidError as said:
        sys.exit(said.exit_status)
