"""The benchmarks of networks run, once each and untimed, so that none is found broken when it is wanted."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_benchmarks_of_networks_run() -> None:
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "--benchmark-disable", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "benchmarks/bench_networks.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
