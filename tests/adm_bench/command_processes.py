"""Runs commands one after another in the same processes: `torchrun ... command_processes.py COMMANDS.json`."""

import json
import os
import shutil
import sys
from pathlib import Path

from adm_bench.cli import main
from adm_bench.runs import TrainingRun


def killed(run: Path, out: Path) -> Path:
    """A copy of a finished run as it would be, had it been killed when its newest checkpoint was not yet there."""
    copy = TrainingRun(Path(shutil.copytree(run, out)))
    shutil.rmtree(copy.checkpoints.list()[-1])
    for path in (copy.weights, copy.result):
        path.unlink()
    return out


if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if arguments[0] != "killed":
            main.main(arguments, prog_name="adm-bench", standalone_mode=False)
        elif os.environ["RANK"] == "0":
            killed(*map(Path, arguments[1:]))
