"""Features of images in parts: cached, shared among processes, the same numbers always."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench import extraction
from adm_bench.errors import InputError
from adm_bench.extraction import BATCH_SIZE, PART_IMAGES, Extraction, Reader
from adm_bench.images.dataset import pixel_hashes
from metrics.features.digits import DigitsFeatures
from metrics.rows import MemoryBudget
from metrics.statistics import NEEDS, FeatureBatch, FeatureSet

IMAGES = np.random.default_rng(0).integers(0, 256, (130, 3, 8, 8), dtype=np.uint8)


@dataclass
class Source:
    """Images in memory; `broken` cannot be read."""

    images: np.ndarray = field(default_factory=lambda: IMAGES)
    name: str = "some images"
    broken: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int]:
        return int(self.images.shape[2]), int(self.images.shape[3])

    def digest(self) -> str:
        return str(int(self.images.sum()))

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        for first in range(start, len(self) if stop is None else stop, batch_size):
            if self.broken is not None and self.broken < first + batch_size:
                raise InputError(f"image {self.broken}: not a readable image")
            yield self.images[first : min(first + batch_size, stop or len(self))]


class CountingFeatures(DigitsFeatures):
    """The digits' features, and how many images went through them."""

    seen = 0

    def __call__(self, images: Tensor) -> FeatureBatch:
        self.seen += len(images)
        return super().__call__(images)


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> CountingFeatures:
    monkeypatch.setattr(extraction, "PART_IMAGES", 40)
    monkeypatch.setattr(extraction, "BATCH_SIZE", 20)
    return CountingFeatures.load(torch.device("cpu"))


def assert_same(one: FeatureSet, other: FeatureSet) -> None:
    assert one.num_images == other.num_images
    for ours, theirs in ((one.pool, other.pool), (one.spatial, other.spatial)):
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        np.testing.assert_array_equal(ours.M2, theirs.M2)
    np.testing.assert_array_equal(one.pool_rows, other.pool_rows)
    assert one.logit_rows is not None
    assert other.logit_rows is not None
    np.testing.assert_array_equal(one.logit_rows, other.logit_rows)


def test_a_part_holds_whole_batches() -> None:
    assert PART_IMAGES % BATCH_SIZE == 0


def test_all_images_are_measured_in_their_order(features: CountingFeatures) -> None:
    measured = Extraction(features=features).measure(Source(), NEEDS, "test")
    expected = features(torch.from_numpy(IMAGES))
    np.testing.assert_allclose(measured.pool_rows, expected.pool.numpy(), rtol=1e-5, atol=1e-5)
    assert measured.num_images == 130


def test_the_cache_answers_instead_of_the_network(features: CountingFeatures, tmp_path: Path) -> None:
    plain = Extraction(features=features).measure(Source(), NEEDS, "test")
    cached = Extraction(features=features, cache_root=tmp_path)
    features.seen = 0
    assert_same(cached.measure(Source(), NEEDS, "test"), plain)
    assert features.seen == 130
    assert_same(cached.measure(Source(name="the same under another name"), NEEDS, "test"), plain)
    assert features.seen == 130
    cached.measure(Source(images=IMAGES[:, :, ::-1] // 2), NEEDS, "other images")
    assert features.seen == 260


def test_what_was_done_before_a_failure_is_kept(features: CountingFeatures, tmp_path: Path) -> None:
    cached = Extraction(features=features, cache_root=tmp_path)
    with pytest.raises(InputError, match="image 97: not a readable image"):
        cached.measure(Source(broken=97), NEEDS, "test")
    features.seen = 0
    assert_same(cached.measure(Source(), NEEDS, "test"), Extraction(features=features).measure(Source(), NEEDS, "test"))
    assert features.seen == 130 - 80 + 130


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-7])


def empty(part: Path) -> None:
    part.write_bytes(b"")


def zero(part: Path) -> None:
    content = part.read_bytes()
    part.write_bytes(content[:-500] + bytes(500))


def rewrite(part: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    with safe_open(part, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(part)), part, metadata)


def fewer_rows(part: Path) -> None:
    rewrite(part, lambda tensors: {name: rows[:-1].contiguous() for name, rows in tensors.items()})


def a_layer_less(part: Path) -> None:
    rewrite(part, lambda tensors: {name: rows for name, rows in tensors.items() if name != "pool"})


@pytest.mark.parametrize("damage", [cut, empty, zero, fewer_rows, a_layer_less])
def test_a_damaged_part_is_made_again(
    damage: Callable[[Path], None], features: CountingFeatures, tmp_path: Path
) -> None:
    cached = Extraction(features=features, cache_root=tmp_path)
    plain = cached.measure(Source(), NEEDS, "test")
    damage(sorted(tmp_path.rglob("part_*.safetensors"))[1])
    features.seen = 0
    assert_same(cached.measure(Source(), NEEDS, "test"), plain)
    assert features.seen == 40


def test_batches_are_cut_the_same_wherever_the_sets_own_end(features: CountingFeatures) -> None:
    """As those of shards of 33 images do, whose batches begin anew in every shard."""

    class Shards(Source):
        def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Any]:  # noqa: ARG002
            for shard in range(0, len(self), 33):
                end = min(shard + 33, len(self))
                for first in range(max(shard, start), end, batch_size):
                    yield self.images[first : min(first + batch_size, end)]

    def sizes(reader: Reader, *runs: tuple[int, int]) -> list[list[int]]:
        return [[len(batch) for batch in reader.read(*run)] for run in runs]

    runs = ((0, 40), (40, 80), (80, 120), (120, 130))
    assert sizes(Reader(Shards()), *runs) == [[20, 20], [20, 20], [20, 20], [10]]
    assert [sizes(Reader(Shards()), run)[0] for run in runs] == [[20, 20], [20, 20], [20, 20], [10]]
    assert_same(
        Extraction(features=features).measure(Shards(), NEEDS, "test"),
        Extraction(features=features).measure(Source(), NEEDS, "test"),
    )


def test_rows_beyond_the_budget_change_nothing(features: CountingFeatures) -> None:
    plain = Extraction(features=features).measure(Source(), NEEDS, "test")
    tight = Extraction(features=features, budget=MemoryBudget(bytes_left=10_000)).measure(Source(), NEEDS, "test")
    assert isinstance(tight.pool_rows, np.memmap)
    assert_same(tight, plain)


RANKED = """
import sys
from pathlib import Path
import numpy as np
import torch
from adm_bench import extraction
from adm_bench.errors import InputError
from adm_bench.ranks import joined_ranks
from metrics.features.digits import DigitsFeatures
from metrics.statistics import NEEDS
sys.path.insert(0, sys.argv[1])
from test_extraction import Source

extraction.PART_IMAGES, extraction.BATCH_SIZE = 40, 20
with joined_ranks() as ranks:
    task = extraction.Extraction(features=DigitsFeatures.load(torch.device("cpu")), ranks=ranks)
    try:
        hashes = []
        measured = task.measure(Source(broken=int(sys.argv[3]) if len(sys.argv) > 3 else None), NEEDS, "test", hashes)
    except InputError as error:
        sys.exit(f"rank {ranks.rank} ends: {error}")
    if ranks.is_first:
        means, M2 = measured.spatial.mean, measured.spatial.M2
        np.savez(sys.argv[2], rows=measured.pool_rows, mean=means, M2=M2, hashes=np.concatenate(hashes))
"""


def torchrun(script: Path, *arguments: str | Path, processes: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("processes", [2, 3])
def test_many_processes_give_what_one_does(processes: int, features: CountingFeatures, tmp_path: Path) -> None:
    script = tmp_path / "ranked.py"
    script.write_text(RANKED)
    started = torchrun(script, Path(__file__).parent, tmp_path / "out.npz", processes=processes)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    alone = Extraction(features=features).measure(Source(), NEEDS, "test")
    assert alone.spatial is not None
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["rows"], alone.pool_rows, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found["hashes"], pixel_hashes(IMAGES))
        np.testing.assert_allclose(found["M2"], alone.spatial.M2, rtol=1e-5, atol=1e-4)


def test_all_stop_where_one_fails_and_say_why(tmp_path: Path) -> None:
    script = tmp_path / "ranked.py"
    script.write_text(RANKED)
    started = torchrun(script, Path(__file__).parent, tmp_path / "out.npz", "50", processes=2)
    try:
        _, errors = started.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    assert started.returncode != 0
    assert "rank 0 ends: rank 1: image 50: not a readable image" in errors
    assert not (tmp_path / "out.npz").exists()
