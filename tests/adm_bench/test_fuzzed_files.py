"""Damaged and hostile files: a result or one line of refusal, within a budget of memory, and nothing is run."""

import io
import math
import pickle
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adm_bench.errors import InputError
from adm_bench.images.decoding import LARGEST_IMAGE_PIXELS
from adm_bench.images.npz import NpzFile, read_identity
from adm_bench.images.sources import open_image_set
from adm_bench.inspection import inspect
from adm_bench.references import Reference

BUDGET_BYTES = 64 * 2**20
FUZZ = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
CASES = {"npz": 250, "header": 150, "zip": 150, "image": 250}


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@contextmanager
def within_budget(budget_bytes: int = BUDGET_BYTES) -> Iterator[None]:
    """Fails where Python and NumPy take more memory than the budget inside."""
    tracemalloc.start(1)
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < budget_bytes, f"took {peak} bytes"


def survives(look: Callable[[], object]) -> str | None:
    """Run it: None where it works, the line of an InputError otherwise; anything else is a failure."""
    with within_budget(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and NumPy warn of damage; no traceback is what counts here
        try:
            look()
        except InputError as error:
            line = str(error)
        else:
            return None
    assert "\n" not in line
    return line


def read_npz(path: Path) -> None:
    """Everything that is ever done with an npz file."""
    file = NpzFile(path)
    for name in file.headers:
        if name != "arr_0":
            file.load(name)
    read_identity(file)
    images = open_image_set(path)
    assert images.labels is None or len(images.labels) == len(images)
    assert sum(map(len, images.batches(4))) == len(images)


def good_npz(compressed: bool) -> bytes:
    file = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    save = np.savez_compressed if compressed else np.savez
    save(file, images, np.arange(5), mu=np.zeros(3), sigma=np.eye(3), adm_bench=np.array('{"lossy": true}'))
    return file.getvalue()


def good_image(form: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


def good_zip(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for index in range(3):
            archive.writestr(f"{'ab'[index % 2]}/{index}.png", good_image("PNG"))
        archive.writestr("dataset.json", '{"labels": [["a/0.png", 1], ["b/1.png", 0], ["a/2.png", 1]]}')
    return file.getvalue()


Damage = list[tuple[str, float, bytes]]
DAMAGE: st.SearchStrategy[Damage] = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "remove", "overwrite")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def with_damage(content: bytes, damage: Damage) -> bytes:
    changed = bytearray(content)
    for kind, where, more in damage:
        place = int(where * len(changed))
        if kind == "flip" and changed:
            changed[place] ^= more[0] or 1
        elif kind == "cut":
            del changed[place:]
        elif kind == "insert":
            changed[place:place] = more
        elif kind == "remove":
            del changed[place : place + len(more)]
        else:
            changed[place : place + len(more)] = more
    return bytes(changed)


@settings(FUZZ, max_examples=CASES["npz"])
@given(compressed=st.booleans(), damage=DAMAGE)
def test_damaged_npz_files(compressed: bool, damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(with_damage(good_npz(compressed), damage))
    survives(lambda: read_npz(path))
    survives(lambda: inspect(path))
    survives(lambda: Reference.open(path))


SHAPES = st.lists(st.integers(-3, 2**70) | st.integers(0, 5), max_size=5)
DESCRIPTIONS = st.sampled_from(
    ["'|u1'", "'<f8'", "'|O'", "'<U9'", "'|V0'", "[('a', '<i4')]", "'<M8[s]'", "('|u1', (2**40,))", "1", "'x'", "{}"]
)
HEADERS = (
    st.builds(
        lambda description, order, shape: f"{{'descr': {description}, 'fortran_order': {order}, 'shape': {shape}}}",
        DESCRIPTIONS,
        st.sampled_from(["True", "False", "3"]),
        SHAPES.map(lambda sides: f"({''.join(f'{side}, ' for side in sides)})")
        | st.sampled_from(["5", "'a'", "(1.5,)"]),
    )
    | st.text(max_size=60)
    | st.sampled_from(["(" * 5000, "{" * 900, "[" * 9000 + "1", "{[]: 1}", "{'shape': (10L,)}", "-" * 9000 + "1"])
)


@settings(FUZZ, max_examples=CASES["header"])
@given(header=HEADERS, name=st.sampled_from(["arr_0", "arr_1", "mu"]), version=st.sampled_from([1, 2, 3, 9]))
def test_npz_files_whose_headers_lie(header: str, name: str, version: int, tmp_path: Path) -> None:
    text = header.encode("utf-8", "replace")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(480))
        if name != "arr_0":
            file = io.BytesIO()
            np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
            archive.writestr("arr_0.npy", file.getvalue())
    survives(lambda: read_npz(path))
    survives(lambda: inspect(path))


@settings(FUZZ, max_examples=CASES["zip"])
@given(method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), damage=DAMAGE)
def test_damaged_archives(method: int, damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(with_damage(good_zip(method), damage))

    def look() -> None:
        images = open_image_set(path)
        assert sum(map(len, images.batches(2))) == len(images)

    survives(look)
    survives(lambda: inspect(path))


@settings(FUZZ, max_examples=CASES["image"])
@given(form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]), damage=DAMAGE, convert=st.booleans())
def test_damaged_images(form: str, damage: Damage, convert: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(with_damage(good_image(form), damage))
    survives(lambda: list(open_image_set(tmp_path, convert=convert).batches(2)))
    survives(lambda: open_image_set(tmp_path, size=4, convert=True, skip_bad=1).digest())
    survives(lambda: inspect(tmp_path))
    path.unlink()


def test_there_are_cases_enough() -> None:
    assert sum(CASES.values()) >= 500


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds hardly anything."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [math.isqrt(LARGEST_IMAGE_PIXELS) + 1, 30_000, 2**31 - 1])
def test_images_that_declare_too_much_are_refused_before_memory_is_taken(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    line = survives(lambda: open_image_set(tmp_path, size=8, convert=True))
    assert line is not None
    assert "a.png: " in line


def test_what_inflates_beyond_its_header_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2, 4, 4, 3)})
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(200 * 2**20))
    line = survives(lambda: read_npz(tmp_path / "set.npz"))
    assert line is not None
    assert "declares (2, 4, 4, 3) uint8 but holds" in line


def test_an_array_beyond_the_budget_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mu.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**27 + 1,)})
        for _ in range(8):
            file.write(bytes(2**24))
        file.write(b"\0")
    line = survives(lambda: NpzFile(tmp_path / "set.npz").load("mu", budget_bytes=2**27))
    assert line is not None
    assert "expected at most 134217728" in line


def test_members_that_inflate_beyond_an_image_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w") as file,
    ):
        file.write(good_image("PNG"))
        for _ in range(17):
            file.write(bytes(2**24))
    line = survives(lambda: open_image_set(tmp_path / "set.zip"))
    assert line is not None
    assert "a.png: has 285212938 bytes" in line


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(trace))
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", objects.getvalue())
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("arr_0.npy", bomb)
    (tmp_path / "c.npz").write_bytes(bomb)
    (tmp_path / "d.npz").write_bytes(objects.getvalue())
    for name in "abcd":
        assert survives(lambda name=name: read_npz(tmp_path / f"{name}.npz")) is not None  # type: ignore[misc]
    (tmp_path / "set").mkdir()
    # PostScript in a file that says it is a PNG: Pillow would hand it to Ghostscript
    (tmp_path / "set" / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n")
    (tmp_path / "set" / "dataset.json").write_bytes(bomb)
    line = survives(lambda: list(open_image_set(tmp_path / "set", convert=True).batches(1)))
    assert line is not None
    (tmp_path / "set" / "dataset.json").unlink()
    line = survives(lambda: list(open_image_set(tmp_path / "set", convert=True).batches(1)))
    assert line is not None
    assert "a.png: not a readable image" in line
    assert not trace.exists()
