"""Files and their digests."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adm_bench.errors import InputError, explain
from adm_bench.files import atomic_path, file_sha256, remove_folder, remove_partial, sole_user


def test_a_large_file_is_hashed_with_progress_to_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    @contextmanager
    def stage(title: str, total: int, unit: str) -> Iterator[Callable[[float], None]]:
        assert (title, total, unit) == (f"read {tmp_path / 'large'}", 5, "MiB")
        yield seen.append

    (tmp_path / "large").write_bytes(os.urandom(5 * 2**20 + 7))
    expected = file_sha256(tmp_path / "large")
    monkeypatch.setattr("adm_bench.files.LARGE_FILE_BYTES", 2**20)
    monkeypatch.setattr("adm_bench.files.HASH_CHUNK_BYTES", 2**20)
    monkeypatch.setattr("adm_bench.files.progress.stage", stage)
    assert file_sha256(tmp_path / "large") == expected
    assert (len(seen), sum(seen) > 5) == (6, True)


def test_what_is_written_is_everybodys_to_read_as_the_umask_says(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "private").touch(mode=0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "folder" / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with sole_user(tmp_path), pytest.raises(InputError, match="another process is at work there"), sole_user(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with sole_user(tmp_path):
        pass
    assert f"note: {tmp_path}: cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_a_folder_that_another_program_reads_goes_out_of_sight_and_later_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a deleted file that is open, so that its folder is not empty."""

    def not_empty(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    (tmp_path / "old").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", not_empty)
        remove_folder(tmp_path / "old")
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".old.")
        remove_partial(tmp_path)
    remove_partial(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "samples.npz"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert explain(caught.value)[0] == (
        f"{tmp_path / 'samples.npz'}: No space left on device; make room, or choose another place"
    )
    assert list(tmp_path.iterdir()) == []
