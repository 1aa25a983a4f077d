"""Images in tar files: found by headers alone, as any program writes them, and whole or refused."""

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images.batches import TrainingBatches, training_record
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.sources import open_dataset, open_image_set
from adm_bench.images.tar_headers import members
from adm_bench.images.tar_store import TarStore, expand

Files = dict[str, bytes]


def png(index: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: Files, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(folder: Path, count: int, files: Callable[[int], Files]) -> Path:
    folder.mkdir()
    for shard in range(count):
        write_tar(folder / f"train-{shard:03d}.tar", files(shard))
    return folder


def with_classes(shard: int) -> Files:
    """Five images a shard, with the same keys in each, and their classes as WebDataset writes them."""
    files = {}
    for index in range(5):
        files[f"{index:05d}.png"] = png(10 * shard + index)
        files[f"{index:05d}.cls"] = b"%d" % (shard * 2 + index % 2)
        files[f"{index:05d}.json"] = b'{"label": 77, "width": 8}'
    return files


def opened(source: Path | str, **options: Any) -> EncodedImages:
    dataset = open_dataset(str(source), **options)
    assert isinstance(dataset, EncodedImages)
    return dataset


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("longest", [20, 90, 99, 100, 101, 140, 254])
def test_members_are_those_that_tarfile_finds(form: int, longest: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(longest)
    folder = longest * 3 // 5  # ustar has room for 155 bytes of it, and for 100 behind it
    files = {f"{'f' * folder}/{'n' * (longest - folder - 8)}é{i}.png": rng.bytes(i * 130) for i in range(9)}
    if form == tarfile.USTAR_FORMAT:
        files = {name.replace("é", "e"): content for name, content in files.items()}
    path = write_tar(tmp_path / "a.tar", files, form)
    found = list(members(path))
    content = path.read_bytes()
    assert {member.name: content[member.offset : member.offset + member.size] for member in found} == files
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    assert [(member.name, member.offset, member.size) for member in found] == expected


def test_what_the_program_tar_writes_is_read_with_the_digest_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index in range(6):
        path = root / ("cat" if index < 3 else "dog") / ("x" * 60) / f"{'x' * 60}{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
    expected = open_image_set(root)
    for form in ("gnu", "ustar", "pax", "posix"):
        for place, what in ((root, "."), (root, "cat dog"), (tmp_path, "set")):
            path = tmp_path / "a.tar"
            subprocess.run(["tar", "--create", f"--format={form}", "-f", path, "-C", place, *what.split()], check=True)
            images = open_image_set(path)
            assert images.labels is not None
            assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
            np.testing.assert_array_equal(
                np.concatenate(list(images.batches(4))), np.concatenate(list(expected.batches(4)))
            )
            assert (images.digest() == expected.digest()) == (what != "set")


@pytest.mark.parametrize("pattern", ["train-{000..003}.tar", ""])
def test_shards_of_webdataset_are_a_training_set(pattern: str, tmp_path: Path) -> None:
    root = shards(tmp_path / "set", 4, with_classes)
    dataset = opened(f"{root}/{pattern}")
    assert (len(dataset), dataset.num_classes, dataset.labels_from) == (20, 8, "cls")
    assert dataset.class_names == ()
    assert isinstance(dataset.store, TarStore)
    assert dataset.store.counts == [5, 5, 5, 5]
    images, labels = dataset.read([0, 7, 19])
    assert labels is not None
    assert labels.tolist() == [0, 2, 6]
    for image, index in zip(images, (0, 12, 34), strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(png(index)))))
    seen = [batch.labels for batch in TrainingBatches(dataset, batch_size=4, seed=0, workers=3).from_step(0, 5)]
    assert np.bincount(np.concatenate(seen)).tolist() == [3, 2] * 4
    some = opened(f"{root}/train-{{001..002}}.tar")
    assert len(some) == 10
    assert open_dataset(f"{root}/train-{{000..003}}.tar", labels="none").num_classes is None


def test_labels_of_json_members_and_of_folders_inside_shards(tmp_path: Path) -> None:
    def stated(key: str) -> Callable[[int], Files]:
        return lambda shard: {
            f"a/{shard}.png": png(shard),
            f"a/{shard}.json": b'{"' + key.encode() + b'": ' + str(3 - shard).encode() + b"}",
        }

    for key in ("label", "cls"):
        dataset = opened(shards(tmp_path / key, 3, stated(key)))
        assert dataset.labels is not None
        assert (dataset.labels.tolist(), dataset.labels_from) == ([3, 2, 1], "json")
    assert opened(shards(tmp_path / "caption", 2, stated("caption"))).labels is None
    folders = opened(shards(tmp_path / "folders", 2, lambda s: {f"top/{c}/{s}.png": png(s) for c in ("dog", "cat")}))
    assert folders.labels is not None
    assert (folders.labels.tolist(), folders.class_names) == ([0, 1, 0, 1], ("cat", "dog"))
    prefixes = opened(
        shards(tmp_path / "names", 2, lambda s: {f"{c}_{s}.png": png(s) for c in ("dog", "cat")}), labels="prefix"
    )
    assert prefixes.labels is not None
    assert (prefixes.labels.tolist(), prefixes.labels_from) == ([0, 1, 0, 1], "prefixes")
    edm = write_tar(
        tmp_path / "edm.tar",
        {"0/a.png": png(0), "1/b.png": png(1), "dataset.json": b'{"labels": [["0/a.png", 4], ["1/b.png", 0]]}'},
    )
    assert opened(edm).labels_from == "dataset.json"
    assert training_record(opened(edm))["classes"] == 5


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.png": png(0), "a.cls": b"x1", "b.png": png(1), "b.cls": b"2"}, "says 'x1' of a.png; expected its class"),
        ({"a.png": png(0), "a.cls": b"-1"}, "says '-1' of a.png"),
        ({"a.png": png(0), "a.json": b'{"label": "cat"}'}, "says 'cat' of a.png; .* choose other labels"),
        ({"a.png": png(0), "a.json": b"{"}, "says 'no JSON that can be read' of a.png"),
        ({"a.png": png(0), "a.json": b"[" * 100_000}, "says 'no JSON that can be read' of a.png"),
        ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "says None of b.png"),
        ({"a.x.png": png(0), "a.y.png": png(1), "a.cls": b"1"}, "a.x.png and a.y.png have one key"),
        ({"a.txt": b"", "b.cls": b"1"}, "holds no images"),
    ],
)
def test_labels_that_are_none_are_refused(files: Files, expected: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(InputError, match=expected):
        open_dataset(str(path))
    if "no images" not in expected:
        assert len(open_dataset(str(path), labels="none")) >= 1


def test_names_lead_nowhere(tmp_path: Path) -> None:
    names = ["../../etc/x.png", "/abs/y.png", "./z.png", "a//b.png"]
    dataset = opened(write_tar(tmp_path / "a.tar", {name: png(place) for place, name in enumerate(names)}))
    assert dataset.store.names == ["/abs/y.png", "../../etc/x.png", "a//b.png", "z.png"]
    assert len(dataset.read(range(4))[0]) == 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar"]


def test_tar_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": png(index, 20) for index in range(4)})
    content = path.read_bytes()
    end = content.rstrip(b"\0")
    whole = (len(end) + 511) // 512 * 512
    packed = {"gzip": gzip.compress(content), "zstd": b"\x28\xb5\x2f\xfd" + content, "xz": b"\xfd7zXZ\0" + content}
    damaged = bytearray(content)
    damaged[3] ^= 1
    for case, expected in (
        (content[: whole - 600], "is cut off inside 3.png"),
        (content[:whole], "ends without a tar file's end mark"),
        (content[: whole + 100], "ends without"),
        (content + content, "goes on after its end mark, as joined files do"),
        (content[: whole + 1024] + content, "goes on after its end mark"),
        (bytes(damaged), "has no valid tar header at byte 0"),
        (b"", "ends without"),
        (packed["gzip"], r"is compressed \(gzip\), .*; decompress it first"),
        (packed["zstd"], r"is compressed \(zstd\)"),
        (packed["xz"], r"is compressed \(xz\)"),
    ):
        path.write_bytes(case)
        with pytest.raises(InputError, match=rf"a\.tar: {expected}"):
            open_dataset(str(path))
    path.rename(tmp_path / "a.tar.gz")
    for source in (tmp_path / "a.tar.gz", tmp_path):
        with pytest.raises(InputError, match=r"a\.tar\.gz: is compressed"):
            open_dataset(str(source))


def test_twins_links_and_sparse_files_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": png(0)})
    with tarfile.open(path, "a") as archive:
        archive.addfile(*_member("./a.png", png(1)))
    with pytest.raises(InputError, match=r"a\.tar: holds a.png twice"):
        open_dataset(str(path))
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        with tarfile.open(path, "w") as archive:
            archive.addfile(*_member("a.png", png(0)))
            link = tarfile.TarInfo("b.png")
            link.type, link.linkname, link.size = kind, "a.png", 700  # the size of a link says nothing
            archive.addfile(link)
            archive.addfile(*_member("c.png", png(1)))
        with pytest.raises(InputError, match=r"a\.tar: holds b.png as a link, .* --hard-dereference"):
            open_dataset(str(path))
    with (tmp_path / "hole.png").open("wb") as file:
        file.truncate(10**6)
        file.seek(10**6)
        file.write(png(0))
    for form in ("gnu", "posix"):
        subprocess.run(
            ["tar", "-c", "--sparse", f"--format={form}", "-f", path, "-C", tmp_path, "hole.png"], check=True
        )
        with pytest.raises(InputError, match=r"a\.tar: holds .*hole.png as a sparse file"):
            open_dataset(str(path))


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, io.BytesIO(content)


def test_shards_that_are_missing_or_mixed_with_others_are_refused(tmp_path: Path) -> None:
    root = shards(tmp_path / "set", 2, with_classes)
    with pytest.raises(InputError, match=r"train-002.tar: no such file; expected every shard of"):
        open_dataset(f"{root}/train-{{000..002}}.tar")
    (root / "more").mkdir()
    (root / "more/a.png").write_bytes(png(0))
    with pytest.raises(InputError, match=r"set: holds images \(more/a.png\) and tar files \(train-000.tar\); expected"):
        open_dataset(str(root))
    for pattern in ("x-{3..2}.tar", "x-{0..999999999}.tar", "x-{000..999}-{000..999}.tar"):
        with pytest.raises(InputError, match=r"expected 1 to 100000|stands for more than 100000 files"):
            open_dataset(f"{root}/{pattern}")
    assert [path.name for path in expand("a/{0..1}-{08..10}.tar")] == [
        f"{a}-{b}.tar" for a in "01" for b in ("08", "09", "10")
    ]


def test_an_image_is_named_with_its_shard(tmp_path: Path) -> None:
    root = shards(tmp_path / "set", 2, lambda shard: {"0.png": png(0), f"{shard + 1}.png": png(1)[:40]})
    with pytest.raises(InputError, match=r"set/train-001.tar/2.png: not a readable image"):
        opened(root, image_size=8, labels="none").read([3])
    kept = open_image_set(str(root), size=8, skip_bad=2)
    assert list(kept.preparation["skipped"]) == ["train-000.tar/1.png", "train-001.tar/2.png"]
    dataset = opened(root, image_size=8, labels="none")
    (root / "train-001.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-001.tar/0.png: is cut off; train-001.tar has changed"):
        dataset.read([2])


@given(st.data())
def test_damaged_headers_never_do_more_than_refuse(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write_tar(folder / "fuzzed.tar", {f"{'x' * 150}{i}.png": png(i) for i in range(3)}, tarfile.PAX_FORMAT)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 2047))
        content[place] = data.draw(st.integers(0, 255))
        header = place // 512 * 512
        if data.draw(st.booleans()):  # with a sum that fits, or the sum would be all that is ever refused
            content[header + 148 : header + 156] = b" " * 8
            content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    path.write_bytes(content)
    try:
        dataset = open_dataset(str(path), 8)
        dataset.read(range(len(dataset)))
    except InputError as error:
        line = str(error)
    else:
        line = ""
    assert "\n" not in line
