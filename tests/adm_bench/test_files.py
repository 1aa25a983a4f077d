"""Files and their digests."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adm_bench.files import atomic_path, file_sha256


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
