"""Sets of images from everywhere: the same pixels, order, labels and digest whatever they come in."""

import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images import stores
from adm_bench.images.crops import center_crop
from adm_bench.images.dataset import ImageSet
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.sources import open_dataset, open_image_set
from adm_bench.inspection import inspect

NAMES = [f"{kind}/{index:02d}.png" for kind in ("cat", "dog") for index in range(12)]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """24 images (N, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (24, 6, 8, 3), np.uint8)


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def in_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def in_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in reversed(files.items()):  # a zip's own order is nobody's
            archive.writestr(name, content)
    return path


def in_lmdb(path: Path, files: dict[str, bytes]) -> Path:
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for name, content in files.items():
            transaction.put(name.encode(), content)
    return path


def in_shards(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    path.mkdir()
    for shard, places in enumerate(np.array_split(np.arange(len(images)), [5, 6, 20])):
        np.savez(path / f"shard{shard}.npz", images[places], labels[places])
    return path


def made(kind: str, root: Path, pixels: np.ndarray) -> ImageSet:
    files = {name: encoded(image) for name, image in zip(NAMES, pixels, strict=True)}
    labels = np.repeat([0, 1], 12)
    if kind == "iterated":
        chunks = torch.split(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), 7)
        return IteratedImages("made", chunks, len(pixels), (6, 8), labels)
    if kind == "npz":
        np.savez_compressed(root / "set.npz", pixels, labels)
        return open_image_set(root / "set.npz")
    make: dict[str, Callable[[], Path]] = {
        "folder": lambda: in_folder(root / "folder", files),
        "zip": lambda: in_zip(root / "set.zip", files),
        "deflated zip": lambda: in_zip(root / "set.zip", files, zipfile.ZIP_DEFLATED),
        "one folder in a zip": lambda: in_zip(root / "set.zip", {f"top/{name}": files[name] for name in files}),
        "lmdb": lambda: in_lmdb(root / "lmdb", files),
        "shards": lambda: in_shards(root / "shards", pixels, labels),
    }
    return open_image_set(make[kind]())


KINDS = ("folder", "zip", "deflated zip", "one folder in a zip", "lmdb", "npz", "shards", "iterated")


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_what_went_in(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    images = made(kind, tmp_path, pixels)
    assert (len(images), images.image_shape, images.lossy) == (24, (6, 8), False)
    batches = list(images.batches(7))
    assert max(map(len, batches)) == 7
    assert {batch.dtype for batch in batches} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.concatenate(batches).transpose(0, 2, 3, 1), pixels)
    assert images.labels is not None
    np.testing.assert_array_equal(images.labels, np.repeat([0, 1], 12))
    for start in np.cumsum([0, *map(len, batches)]):  # a pass that goes on cuts the same batches
        rest = list(images.batches(7, int(start)))
        assert [len(batch) for batch in rest] == [len(batch) for batch in batches][len(batches) - len(rest) :]
        np.testing.assert_array_equal(np.concatenate([*rest, batches[0][:0]]).transpose(0, 2, 3, 1), pixels[start:])


def test_a_folder_and_its_zip_have_one_digest_and_every_change_another(pixels: np.ndarray, tmp_path: Path) -> None:
    folder = made("folder", tmp_path, pixels)
    digest = folder.digest()
    assert made("deflated zip", tmp_path, pixels).digest() == digest
    passed = open_image_set(tmp_path / "folder")
    list(passed.batches(5))
    assert isinstance(passed, EncodedImages)
    assert passed._digest == digest  # learned on the way, without reading twice
    digests, prints = {digest}, {folder.fingerprint()}
    digests.add(open_image_set(tmp_path / "folder", size=4).digest())
    digests.add(open_image_set(tmp_path / "folder", convert=True).digest())
    (tmp_path / "folder/cat/00.png").write_bytes(encoded(pixels[1]))
    for change in range(3):
        if change == 1:
            (tmp_path / "folder/cat/00.png").rename(tmp_path / "folder/cat/0.png")
        if change == 2:
            (tmp_path / "folder/dog").rename(tmp_path / "folder/eel")
            (tmp_path / "folder/cat").rename(tmp_path / "folder/dog")
        prints.add(open_image_set(tmp_path / "folder").fingerprint())
        digests.add(open_image_set(tmp_path / "folder").digest())
    assert (len(digests), len(prints)) == (6, 4)


@pytest.mark.parametrize("kind", ["npz", "shards"])
def test_npz_digests_and_fingerprints_follow_their_files(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    before = made(kind, tmp_path, pixels)
    states = {(before.digest(), before.fingerprint())}
    path = Path(before.name)
    file = path if path.is_file() else path / "shard2.npz"
    np.savez(file, pixels[:9])
    if kind == "shards":
        with pytest.raises(InputError, match=r"shard2.npz: has no labels .* expected all or none"):
            open_image_set(path).labels  # noqa: B018  reading it is the point
    states.add((open_image_set(path).digest(), open_image_set(path).fingerprint()))
    assert len({digest for digest, _ in states}) == len({each for _, each in states}) == 2


@pytest.mark.parametrize("kind", ["folder", "zip", "lmdb", "npz"])
def test_a_size_asks_for_adms_crop(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    images = open_image_set(made(kind, tmp_path, pixels).name, size=4)
    expected = np.stack([center_crop(Image.fromarray(image), 4) for image in pixels])
    assert images.image_shape == (4, 4)
    assert images.preparation["center_crop"] == 4
    np.testing.assert_array_equal(np.concatenate(list(images.batches(9))).transpose(0, 2, 3, 1), expected)


@pytest.mark.parametrize("kind", ["folder", "zip", "lmdb", "shards"])
def test_any_source_is_a_training_set(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    squares = np.ascontiguousarray(pixels[:, :, :6])
    dataset = open_dataset(made(kind, tmp_path, squares).name)
    images, labels = dataset.read([13, 2])
    assert (dataset.image_size, dataset.num_classes) == (6, 2)
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), squares[[13, 2]])
    assert labels is not None
    assert labels.tolist() == [1, 0]


def test_mixed_sizes_are_refused_by_both_names_before_and_while_decoding(pixels: np.ndarray, tmp_path: Path) -> None:
    in_folder(tmp_path, {"a.png": encoded(pixels[0]), "b/c.png": encoded(pixels[0][:5])})
    for go in (lambda images: images.digest(), lambda images: list(images.batches(2))):
        with pytest.raises(InputError, match=r"b/c.png: is 5 x 8, but .*a.png is 6 x 8; .* give --size"):
            go(open_image_set(tmp_path))
    assert sum(map(len, open_image_set(tmp_path, size=4).batches(2))) == 2


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_pngs_of_16_bits_are_refused_unless_conversion_is_asked_for(colour: int, channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (5, 4, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    in_folder(tmp_path, {"b.png": b"\x89PNG\r\n\x1a\n" + body})
    for go in (lambda images: images.digest(), lambda images: list(images.batches(2))):
        with pytest.raises(InputError, match=r"b.png: has 16 bits a channel; expected RGB of 8: .*--convert"):
            go(open_image_set(tmp_path))
    converted = next(open_image_set(tmp_path, convert=True).batches(2))[0]
    np.testing.assert_array_equal(converted.transpose(1, 2, 0), values[..., :3] >> 8)
    assert inspect(tmp_path)["modes"] == {f"{'RGBA'[:channels]}, 16 bits a channel": 1}


def damaged(root: Path, count: int, bad: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(1)
    files = {f"{index:05d}.png": encoded(rng.integers(0, 256, (6, 6, 3), np.uint8)) for index in range(count)}
    for index in bad:
        files[f"{index:05d}.png"] = files[f"{index:05d}.png"][:60]
    return in_folder(root, files)


def test_a_corrupt_image_among_many_is_named(tmp_path: Path) -> None:
    root = damaged(tmp_path, 600, (431,))
    with pytest.raises(InputError, match=r"00431.png: not a readable image .*; mend or remove it"):
        list(open_image_set(root).batches(64))


def test_so_many_bad_images_as_allowed_are_left_out_and_recorded(tmp_path: Path) -> None:
    root = damaged(tmp_path / "bad", 40, (0, 17))
    with pytest.raises(InputError, match=r"00000.png: .*; 2 of 40 images are unreadable, and --skip-bad allows 1"):
        open_image_set(root, skip_bad=1)
    images = open_image_set(root, skip_bad=2)
    assert len(images) == sum(map(len, images.batches(7))) == 38
    assert list(images.preparation["skipped"]) == ["00000.png", "00017.png"]
    good = damaged(tmp_path / "good", 40, ())
    expected = np.delete(np.concatenate(list(open_image_set(good).batches(64))), [0, 17], axis=0)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(7))), expected)
    assert images.digest() == open_image_set(root, skip_bad=5).digest()


def test_labels_of_a_dataset_json(pixels: np.ndarray, tmp_path: Path) -> None:
    files = {name: encoded(image) for name, image in zip(NAMES, pixels, strict=True)}
    stated = [[name, 7 - index % 3] for index, name in enumerate(NAMES)]

    def opened(labels: object) -> EncodedImages:
        content = json.dumps({"labels": labels}).encode() if labels != "broken" else b"{"
        found = open_image_set(in_zip(tmp_path / "edm.zip", files | {"dataset.json": content}))
        assert isinstance(found, EncodedImages)
        return found

    images = opened(stated)
    assert images.labels is not None
    assert images.labels.tolist() == [7 - index % 3 for index in range(24)]
    assert (images.num_classes, images.class_names) == (8, ())
    assert opened(None).labels is None  # stated to have none: folders are no classes then
    for labels, expected in (
        (stated[1:], "says None of cat/00.png"),
        ([[name, [0.5, 1.0]] for name in NAMES], r"says \[0.5, 1.0\] of cat/00.png"),
        ("broken", "is no JSON of the form"),
        (5, "is no JSON of the form"),
    ):
        with pytest.raises(InputError, match=rf"dataset.json: {expected}"):
            opened(labels)


def test_names_that_are_no_utf8_are_names(pixels: np.ndarray, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    in_folder(tmp_path / "set", {name: encoded(pixels[0]), "good.png": encoded(pixels[1])})
    images = open_image_set(tmp_path / "set")
    assert len(images) == sum(map(len, images.batches(4))) == 2
    assert len(images.digest()) == len(images.fingerprint()) == 64
    (tmp_path / "set" / name).write_bytes(b"no image")
    skipping = open_image_set(tmp_path / "set", skip_bad=1)
    assert list(skipping.preparation["skipped"]) == [r"caf\xe9.png"]
    json.dumps(dict(skipping.preparation)).encode()


def test_what_is_hidden_and_other_files_are_no_images(pixels: np.ndarray, tmp_path: Path) -> None:
    image = encoded(pixels[0])
    left_out = ("__MACOSX/._a.png", "b/._c.png", "b/.ipynb_checkpoints/0.png", ".trash/0.png", ".d.png", "notes.txt")
    files = {"a.png": image, "b/c.d.png": image} | dict.fromkeys(left_out, image)
    for path in (in_zip(tmp_path / "set.zip", files), in_folder(tmp_path / ".cache/set", files)):
        found = open_image_set(path)
        assert isinstance(found, EncodedImages)
        assert found.store.names == ["a.png", "b/c.d.png"]


@pytest.mark.parametrize("target", ["real", "gone", "set"])  # the last goes round in circles
def test_links_to_folders_are_refused_and_others_followed(target: str, pixels: np.ndarray, tmp_path: Path) -> None:
    real = in_folder(tmp_path / "real", {"x.png": encoded(pixels[1])})
    root = in_folder(tmp_path / "set", {"cat/a.png": encoded(pixels[0]), ".hidden/b.png": b"x"})
    (root / "cat/b.png").symlink_to(real / "x.png")
    (root / ".hidden/c").symlink_to(real)
    (tmp_path / "link").symlink_to(root)
    assert len(open_image_set(tmp_path / "link")) == 2
    (root / "dog").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"set/dog: is a link to a folder, or to nothing; .* remove the link$"):
        open_image_set(root)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("set.zip", b"PK\x03\x04 nothing more", "not a readable zip archive"),
        ("set.txt", b"hello", "not a data set; expected a folder of images"),
        ("set", None, "holds no images"),
        ("absent.zip", None, "no such file or folder"),
    ],
)
def test_what_holds_no_images_is_refused(name: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        open_image_set(tmp_path / name)


def test_archives_compressed_without_a_bound_are_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = in_zip(tmp_path / "set.zip", {"a.png": encoded(pixels[0])}, method)
        with pytest.raises(InputError, match=r"a.png: is encrypted or compressed unusually"):
            open_image_set(path)
        with zipfile.ZipFile(tmp_path / "set.npz", "w", method) as archive:
            archive.writestr("arr_0.npy", b"x")
        with pytest.raises(InputError, match="compressed unusually"):
            open_image_set(tmp_path / "set.npz")


@pytest.mark.parametrize("name", ["dog", "dog/b.png", ".hidden/dog"])
def test_links_inside_archives_are_refused(name: str, pixels: np.ndarray, tmp_path: Path) -> None:
    path = in_zip(tmp_path / "set.zip", {"cat/a.png": encoded(pixels[0])})
    link = zipfile.ZipInfo(name)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16  # as zip --symlinks writes them
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "../elsewhere")
    if name.startswith("."):
        assert len(open_image_set(path)) == 1
        return
    with pytest.raises(InputError, match=rf"set.zip: {name} is a symbolic link, .* pack what it stands for"):
        open_image_set(path)


def test_an_archive_with_two_images_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/0.png", b"one")
        archive.writestr("b/0.png", b"other")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/0.png", b"again")
    with pytest.raises(InputError, match=r"set.zip: holds a/0.png twice; make it anew, with one of the two"):
        open_image_set(tmp_path / "set.zip")


def test_files_larger_than_an_image_can_be_are_refused(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LARGEST_FILE_BYTES", 100)
    with pytest.raises(InputError, match=r"a.png: has \d+ bytes; expected at most 100"):
        open_image_set(in_folder(tmp_path / "set", {"a.png": encoded(pixels[0])}))
    with pytest.raises(InputError, match=r"a.png: has \d+ bytes; expected at most 100"):
        open_image_set(in_zip(tmp_path / "set.zip", {"a.png": encoded(pixels[0])}))


def test_an_lmdb_that_is_truncated_or_no_lmdb_is_refused(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_lmdb(tmp_path / "set", {f"{index}": encoded(pixels[0]) * 50 for index in range(30)})
    data = path / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(InputError, match="is truncated"):
        open_image_set(path)
    data.write_bytes(b"no LMDB" * 4000)
    with pytest.raises(InputError, match="not a readable LMDB"):
        open_image_set(path)
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(InputError, match=r"the package lmdb is absent: pip install 'adm-bench\[lmdb\]'"):
        open_image_set(path)


def test_folders_of_images_and_npz_files_and_of_samples_and_references_are_refused(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    root = in_shards(tmp_path / "set", pixels, np.zeros(24, int))
    in_folder(root, {"._shard0.npz": b"x"})
    (root / "shard2.npz").rename(root / "shard2.NPZ")
    assert len(open_image_set(root)) == 24
    np.savez(root / "ref.npz", pixels, mu=np.zeros(3))
    with pytest.raises(InputError, match=r"set/ref.npz: holds mu, so it is a reference, in a folder of samples; "):
        open_image_set(root)
    in_folder(root, {"b/a.png": encoded(pixels[0])})
    with pytest.raises(InputError, match=r"set: holds images \(b/a.png\) and npz files \(ref.npz\); expected one or"):
        open_image_set(root)


def test_a_data_set_and_a_folder_of_one_name_are_told_apart(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(open_image_set("digits")) == len(open_image_set(Path("digits"))) == 1797
    in_folder(tmp_path / "digits", {"a.png": encoded(pixels[0])})
    for go in (open_image_set, lambda source: open_dataset(str(source))):
        for source in ("digits", Path("./digits")):
            with pytest.raises(InputError, match=r"^digits is a data set and a folder here; give an absolute path"):
                go(source)
        assert len(go(tmp_path / "digits")) == 1
    assert len(open_image_set("./digits")) == 1
    (tmp_path / "digits/a.png").unlink()
    (tmp_path / "digits").rmdir()
    (tmp_path / "digits").write_bytes(b"anything")
    with pytest.raises(InputError, match="is a data set and a file here"):
        open_image_set("digits")
