"""A small trained model, classifier and reference, made once through the command line itself."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from adm_bench.cli import main
from generators.adm.networks import build_network
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping
from generators.unet.checkpoint import WeightsHeader, write_weights

TINY = [
    "--set",
    "model.num_res_blocks=1",
    "--set",
    "model.attention_resolutions=[4]",
    "--batch",
    "8",
    "--device",
    "cpu",
]
Run = Callable[..., Result]


def run_command(*arguments: str | Path) -> Result:
    """Run `adm-bench ARGUMENTS` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def run() -> Run:
    """`run("train", "adm", ...)`, expected to succeed."""

    def succeed(*arguments: str | Path) -> Result:
        result = run_command(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return succeed


@pytest.fixture(scope="session")
def refuse() -> Callable[..., str]:
    """`refuse("train", ...)`: must exit with 2 and one line of error, which is returned."""

    def fail(*arguments: str | Path) -> str:
        result = run_command(*arguments)
        assert result.exit_code == 2, result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, result.output
        assert "Traceback" not in result.output
        return lines[0]

    return fail


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    """Options that make a digits preset small enough for a test."""
    return TINY


@pytest.fixture(scope="session")
def model(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three training steps."""
    out = tmp_path_factory.mktemp("model") / "adm"
    run("train", "adm", "--data", "digits", "--out", out, "--steps", "3", *TINY)
    return out


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of one network of each kind in which no layer is left at its zero start: every input counts."""
    folder = tmp_path_factory.mktemp("filled")
    paths = {}
    names = {"adm": "digits8", "classifier": "digits8_classifier", "upsampler": "digits8_16_upsampler"}
    for kind, name in names.items():
        config = PRESETS[name].config
        torch.manual_seed(0)
        network = build_network(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        paths[kind] = folder / f"{kind}.safetensors"
        write_weights(paths[kind], WeightsHeader(kind=kind, config=to_mapping(config)), network.state_dict())
    return paths


@pytest.fixture(scope="session")
def classifier(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's run of three training steps."""
    out = tmp_path_factory.mktemp("classifier") / "cls"
    run("train", "classifier", "--data", "digits", "--out", out, "--steps", "3", *TINY)
    return out


@pytest.fixture(scope="session")
def reference(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of the digits at 8x8."""
    out = tmp_path_factory.mktemp("reference") / "ref.npz"
    run("reference", "digits", "--out", out, "--device", "cpu")
    return out


@pytest.fixture(scope="session")
def samples(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty training images as samples."""
    out = tmp_path_factory.mktemp("samples") / "copies.npz"
    run("sample", "memorizer", "--data", "digits", "--num", "60", "--out", out, "--device", "cpu")
    return out


@pytest.fixture(scope="session")
def pngs(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the samples as PNG files whose names sort in their order."""
    root = tmp_path_factory.mktemp("png")
    with np.load(samples) as arrays:
        for index, image in enumerate(arrays["arr_0"]):
            Image.fromarray(image).save(root / f"{index:04d}.png")
    return root


@pytest.fixture(scope="session")
def images() -> Callable[[Path], np.ndarray]:
    """The images of an npz file."""

    def load(path: Path) -> np.ndarray:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["arr_0"]

    return load


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB, where the system lets this process mount one."""
    folder, mount = tmp_path / "disk", shutil.which("mount")
    folder.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Processes:
    """Starts programs of several processes, on one thread each, and leaves none behind."""

    LIMIT_SEC = 180

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def torchrun(self, script: Path, *arguments: str | Path, options: Sequence[str] = ()) -> "subprocess.Popen[str]":
        """Two processes of a script, which meet at a free port."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
        return self.start(*launcher, script, *arguments)

    def start(self, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
        """Python with these arguments."""
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def errors(self, process: "subprocess.Popen[str]") -> str:
        """What a process and its own ones wrote to stderr, once they have ended."""
        return process.communicate(timeout=self.LIMIT_SEC)[1]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Programs of several processes."""
    processes = Processes()
    yield processes
    for process in processes.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
