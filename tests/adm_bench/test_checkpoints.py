"""A checkpoint is whole or it is not used, old ones go by policy, and a full disk costs nothing that was there."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from adm_bench.checkpoints import Checkpoints
from adm_bench.disk import size_text
from adm_bench.errors import InputError
from adm_bench.files import fingerprint
from adm_bench.runs import TrainingRun
from generators.adm.networks import build_network
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping
from generators.unet.checkpoint import WeightsHeader, read_header

HEADER = WeightsHeader(kind="adm", config={"some": "configuration"})


def state_at(step: int, size: int = 500) -> dict[str, dict[str, Tensor]]:
    """A state of which every value says which step it is of."""
    groups = ("model", "ema_0.9999", "exp_avg", "exp_avg_sq")
    state = {group: {"a": torch.full((size,), step + 0.5), "b": torch.full((2, 3), float(step))} for group in groups}
    return state | {"counters": {"optimizer_steps": torch.tensor(float(step))}}


def same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> bool:
    return found.keys() == expected.keys() and all(
        found[group].keys() == tensors.keys() and all(found[group][name].equal(tensors[name]) for name in tensors)
        for group, tensors in expected.items()
    )


def filled(folder: Path, steps: list[int], **policy: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, **policy)
    for step in steps:
        checkpoints.save(step, state_at(step), {"elapsed_sec": step / 2}, HEADER)
    return checkpoints


def names(checkpoints: Checkpoints) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in checkpoints.list()]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None
    checkpoints = filled(tmp_path / "c", [10, 20])
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, newest.progress, newest.header()) == (20, {"elapsed_sec": 10.0}, HEADER)
    assert same(newest.state(), state_at(20))
    for name in ("model", "ema_0.9999"):
        assert read_header(newest.folder / f"{name}.safetensors") == HEADER
    with safe_open(newest.folder / "exp_avg.safetensors", framework="pt") as file:
        assert file.metadata() is None
    manifest = json.loads((newest.folder / "manifest.json").read_text())
    assert manifest["format"] == "adm-bench checkpoint 1"
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in newest.folder.iterdir()}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [50, 60, 70]),
        ({"keep": 1}, [70]),
        ({"keep": 9}, [10, 20, 30, 40, 50, 60, 70]),
        ({"keep": 2, "keep_every": 30}, [30, 60, 70]),
        ({"keep": 1, "keep_every": 20}, [20, 40, 60, 70]),
    ],
)
def test_old_ones_go_by_policy(policy: dict[str, int], expected: list[int], tmp_path: Path) -> None:
    assert names(filled(tmp_path, list(range(10, 80, 10)), **policy)) == expected
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"step_"}


@pytest.mark.parametrize("policy", [{"keep": 0}, {"keep": 1, "keep_every": 0}])
def test_a_policy_keeps_at_least_one(policy: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 1 or more"):
        Checkpoints(tmp_path, **policy)


def test_what_was_just_saved_is_never_pruned(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [90], keep=1)
    flip(tmp_path / "step_00000090" / "model.safetensors", -1)
    checkpoints.save(20, state_at(20), {}, HEADER)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 20


def test_steps_of_nine_digits_come_last(tmp_path: Path) -> None:
    assert names(filled(tmp_path, [99_999_999, 100_000_000], keep=2)) == [99_999_999, 100_000_000]


def test_a_damaged_one_is_set_aside_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = filled(tmp_path, [10, 20, 30])
    flip(tmp_path / "step_00000030" / "exp_avg.safetensors", -1)
    (tmp_path / "step_00000020" / "progress.json").unlink()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step_00000030: exp_avg.safetensors is not what was written" in said
    assert "step_00000020: progress.json is missing" in said
    assert "going on from step_00000010" in said
    assert names(checkpoints) == [10]
    assert (tmp_path / "damaged_step_00000030" / "model.safetensors").exists()
    checkpoints.save(20, state_at(20), {}, HEADER)
    assert names(checkpoints) == [10, 20]
    assert sorted(path.name for path in tmp_path.glob("damaged_*")) == ["damaged_step_00000030"]
    checkpoints.save(30, state_at(30), {}, HEADER)
    assert not list(tmp_path.glob("damaged_*"))


def test_a_step_can_be_saved_twice(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10])
    written = (tmp_path / "step_00000010" / "model.safetensors").stat().st_mtime_ns
    checkpoints.save(10, state_at(10), {}, HEADER)
    assert (tmp_path / "step_00000010" / "model.safetensors").stat().st_mtime_ns == written
    flip(tmp_path / "step_00000010" / "model.safetensors", -1)
    checkpoints.save(10, state_at(10), {}, HEADER)
    newest = checkpoints.newest()
    assert newest is not None
    assert same(newest.state(), state_at(10))


def test_where_all_are_damaged_each_is_named_and_none_is_touched(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10, 20])
    for step in (10, 20):
        flip(tmp_path / f"step_{step:08d}" / "model.safetensors", -1)
    for _ in range(2):  # the second time must not begin from the start
        with pytest.raises(InputError, match=r"no checkpoint is whole \(step_00000020: .*; step_00000010: "):
            checkpoints.newest()
    assert names(checkpoints) == [10, 20]


def test_a_newer_format_is_refused_and_no_older_checkpoint_taken(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10, 20])
    path = tmp_path / "step_00000020" / "manifest.json"
    manifest = {"format": "adm-bench checkpoint 2", "something": "new"}
    path.write_text(json.dumps({**manifest, "sha256": fingerprint(manifest)}))
    with pytest.raises(
        InputError, match=r"format 'adm-bench checkpoint 2', and this version reads up to .* 1'; update"
    ):
        checkpoints.newest()
    assert names(checkpoints) == [10, 20]


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"sha256": 1}', '{"sha256": "", "files": []}'])
@pytest.mark.parametrize("name", ["manifest.json", "progress.json"])
def test_malformed_json_is_damage(name: str, content: str, tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10, 20])
    (tmp_path / "step_00000020" / name).write_text(content)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10, 20])
    path = tmp_path / "step_00000020" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["../step_00000010/model.safetensors"] = manifest["files"].pop("model.safetensors")
    path.write_text(json.dumps({**manifest, "sha256": fingerprint(manifest)}))
    _, damaged = checkpoints.search()
    assert list(damaged.values()) == ["manifest.json is no checkpoint's"]


def test_a_renamed_one_is_not_taken_for_another_step(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [10, 20])
    (tmp_path / "step_00000010").rename(tmp_path / "step_00000030")
    found, damaged = checkpoints.search()
    assert found is not None
    assert found.step == 20
    assert list(damaged.values()) == ["is of step 10; somebody has renamed it"]


def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = filled(tmp_path, [10, 20])

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("adm_bench.checkpoints.file_sha256", forbidden)
    with pytest.raises(InputError, match=r"step_00000020/.*: cannot be read \(Permission denied\)"):
        checkpoints.newest()
    assert names(checkpoints) == [10, 20]


def test_the_weights_inside_serve_sampling_directly(run: Callable[..., Any], tmp_path: Path) -> None:
    config = PRESETS["digits8"].config
    network = build_network(config)
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    state = {"model": weights, "ema_0.99": weights, "exp_avg": weights, "exp_avg_sq": weights}
    header = WeightsHeader(kind="adm", config=to_mapping(config))
    folder = Checkpoints(tmp_path / "c").save(1, state, {}, header)
    for name in ("model", "ema_0.99"):
        out = tmp_path / f"{name}.npz"
        options = ["--num", "2", "--sampling-steps", "2", "--device", "cpu", "--out", out]
        run("sample", "adm", "--weights", folder / f"{name}.safetensors", *options)
        assert out.exists()


BIG = 40_000  # four tensors of 160 kB: one such checkpoint fits a MiB, two do not
FULL = (
    r"disk full: needs 6\d\d\.\d KiB, has 3\d\d\.\d KiB free; last checkpoint step_00000010 is intact; free space and"
)


@pytest.mark.parametrize("knows", [True, False], ids=["known beforehand", "found while writing"])
def test_a_really_full_disk_costs_nothing(knows: bool, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(small_disk / "c")
    checkpoints.save(10, state_at(10, BIG), {}, HEADER)
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    if not knows:  # as under a quota, of which the free bytes of the disk say nothing
        real, asked = shutil.disk_usage, []

        def at_first_plenty(path: Path) -> Any:
            asked.append(path)
            return real("/") if len(asked) == 1 else real(path)

        monkeypatch.setattr(shutil, "disk_usage", at_first_plenty)
    with pytest.raises(InputError, match=FULL):
        checkpoints.save(20, state_at(20, BIG), {}, HEADER)
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == before
    newest = checkpoints.newest()
    assert newest is not None
    assert same(newest.state(), state_at(10, BIG))
    shutil.rmtree(newest.folder)
    monkeypatch.undo()
    checkpoints.save(20, state_at(20, BIG), {}, HEADER)
    assert names(checkpoints) == [20]


def test_final_weights_and_starts_on_a_really_full_disk(small_disk: Path) -> None:
    run = TrainingRun(small_disk / "run")
    with run.opened({"kind": "training", "trainer": "adm"}, overwrite=False):
        run.checkpoints.save(10, state_at(10, BIG), {}, HEADER)
        with pytest.raises(InputError, match=FULL):
            run.save_weights(HEADER, {"a": torch.zeros(4 * BIG)})
        assert not run.weights.exists()
        (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        with pytest.raises(InputError, match=r"disk full: .* last checkpoint step_00000010 is intact"):
            run.started(10)
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.step == 10


def test_a_limit_on_file_sizes_is_the_same_line(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path / "c", [10])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"limit on the size of a file reached: needs .* step_00000010 is intact"):
            checkpoints.save(20, state_at(20, BIG), {}, HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step_00000010"]


def test_another_failure_is_not_called_a_full_disk(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(PermissionError), checkpoints.room(1):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("num_bytes", "expected"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"),
                                (5 * 2**29, "2.5 GiB"), (2**41, "2048.0 GiB")]
)  # fmt: skip
def test_sizes_as_text(num_bytes: int, expected: str) -> None:
    assert size_text(num_bytes) == expected
