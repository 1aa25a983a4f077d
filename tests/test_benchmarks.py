"""Benchmarks run, untimed or at the smallest sizes, so that none is found broken when it is wanted."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def test_benchmarks_of_networks_run() -> None:
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "--benchmark-disable", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "benchmarks/bench_networks.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "train_on_gpu.py --device cpu --presets digits8 --precisions fp32 --no-compile --largest 4 --repeats 1",
            [r"peak of a matrix product in fp32: [\d.e-]+ TFLOP/s", r"naive +batch +2 .* images/s .*% of peak",
             r"optimised +batch +4 ", r"optimised over naive: \d"],
        ),
        (
            "checkpoint_cost.py --network B --saves 1 --steps 1",
            [r"1 of 18 MiB", r"share at an interval of 1000: 0\.\d+%"],
        ),
    ],
)  # fmt: skip
def test_a_benchmark_runs(
    arguments: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *options = arguments.split()
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [script, *options])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    printed = capsys.readouterr().out
    for pattern in expected:
        assert re.search(pattern, printed), printed
