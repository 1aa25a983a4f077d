"""Whatever kills a process that saves, or damages what it saved, a whole checkpoint is left and found."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adm_bench.checkpoints import Checkpoints
from generators.unet.checkpoint import WeightsHeader

HEADER = WeightsHeader(kind="adm", config={})
KILLS = 20

# Children of one process that has loaded everything, so that twenty of them take seconds.
KILLED_AT_RANDOM = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from adm_bench.checkpoints import Checkpoints
from generators.unet.checkpoint import WeightsHeader

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
header = WeightsHeader(kind="adm", config={})
checkpoints = Checkpoints(folder, keep=2)


def state_at(step):
    groups = ("model", "ema_0.9999", "exp_avg", "exp_avg_sq")
    return {group: {"a": torch.full((200_000,), float(step))} for group in groups}


def train():
    newest = checkpoints.newest()
    for step in range(1 + (newest.step if newest else 0), 10**6):
        checkpoints.save(step, state_at(step), {}, header)


checkpoints.save(1, state_at(1), {}, header)
began = time.perf_counter()
checkpoints.save(2, state_at(2), {}, header)
one_save_sec = time.perf_counter() - began
cut_short, last = 0, 2
for _ in range(kills):
    child = os.fork()
    if child == 0:
        try:
            train()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    time.sleep(random.uniform(0, 4 * one_save_sec))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed by itself"
    cut_short += any(folder.glob(".*.partial"))
    found, damaged = checkpoints.search()
    assert not damaged, damaged
    assert found.step >= last, (found.step, last)
    last = found.step
    state = found.state()
    assert all(tensor.eq(last).all() for tensors in state.values() for tensor in tensors.values())
    assert len(checkpoints.list()) <= 3
checkpoints.save(last + 1, state_at(last + 1), {}, header)
assert not list(folder.glob(".*")), list(folder.iterdir())
print(json.dumps({"cut_short": cut_short, "last": last}))
"""


def test_killed_at_random_moments_the_newest_is_always_whole(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AT_RANDOM)
    command = [sys.executable, str(script), str(tmp_path / "checkpoints"), str(KILLS), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = json.loads(done.stdout)
    assert found["cut_short"] > 0, f"seed {seed}: no save was cut short, so nothing was tested"
    assert found["last"] > 2, f"seed {seed}: nothing was ever saved"


def state_at(step: int) -> dict[str, dict[str, Tensor]]:
    groups = ("model", "ema_0.9999", "exp_avg", "exp_avg_sq", "counters")
    return {group: {"a": torch.full((50,), float(step))} for group in groups}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("two"))
    for step in (1, 2):
        checkpoints.save(step, state_at(step), {"elapsed_sec": 1.5, "seed": 0}, HEADER)
    return checkpoints


def files() -> list[str]:
    return [*(f"{group}.safetensors" for group in state_at(0)), "progress.json", "manifest.json"]


@pytest.mark.parametrize("name", files())
def test_every_flipped_bit_and_every_truncation_is_found(name: str, two: Checkpoints) -> None:
    """Each position of the small files; of the manifest too, where a version or a name could become another."""
    path = two.folder / "step_00000002" / name
    whole = path.read_bytes()
    source = random.Random(name)
    last = len(whole.rstrip()) - 1  # without the line's end behind it, JSON says the same
    damages = [whole[:length] for length in sorted({0, 1, last, source.randrange(last)})]
    for position in range(0, len(whole), 3):
        bit = 1 << source.randrange(8)
        damages.append(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
    assert len(damages) > 20
    try:
        for content in damages:
            path.write_bytes(content)
            found, damaged = two.search()
            assert found is not None
            assert found.step == 1, content
            assert list(damaged) == [path.parent]
            assert "\n" not in damaged[path.parent]
    finally:
        path.write_bytes(whole)
    found, damaged = two.search()
    assert found is not None
    assert (found.step, damaged) == (2, {})


@pytest.mark.parametrize("name", files())
def test_a_missing_file_is_found(name: str, two: Checkpoints) -> None:
    path = two.folder / "step_00000002" / name
    path.rename(two.folder / "kept")
    try:
        found, damaged = two.search()
        assert found is not None
        assert found.step == 1
        assert damaged == {path.parent: f"{name} is missing"}
    finally:
        (two.folder / "kept").rename(path)


def test_a_full_disk_stops_training_which_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, run: Callable[..., Any], refuse: Callable[..., str], tiny: Sequence[str]
) -> None:
    def remount(num_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(small_disk)], check=True)

    options = ["--data", "digits", "--steps", "4", "--checkpoint-every", "1", *tiny]
    undisturbed, run_there = tmp_path / "undisturbed", small_disk / "run"
    run("train", "adm", "--out", undisturbed, *options)
    newest = Checkpoints(undisturbed / "checkpoints").list()[-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    remount(size * 16 // 10)
    line = refuse("train", "adm", "--out", run_there, *options)
    assert "disk full: needs " in line
    assert "last checkpoint step_00000001 is intact; free space and repeat the command" in line
    assert "last checkpoint step_00000001 is intact" in refuse("train", "adm", "--out", run_there, *options)
    remount(size * 10)
    assert "going on from step 1" in run("train", "adm", "--out", run_there, *options).stderr
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (run_there, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
