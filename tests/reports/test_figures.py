import io
import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reports.figures import (
    CAPTION_GAP_PX,
    GRID_GAP_PX,
    captioned_strips,
    png_bytes,
    quality_cost_plot,
    sample_grid,
)
from reports.records import Record

RecordMaker = Callable[..., Record]
Records = tuple[Record, ...]
SVG = "{http://www.w3.org/2000/svg}"


def _images(num_images: int, height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num_images, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("num_images", "columns", "rows_shown", "columns_shown"), [(6, 3, 2, 3), (7, 3, 3, 3), (2, 8, 1, 2), (1, 1, 1, 1)]
)
def test_a_grid_holds_every_image_once_and_nothing_else(
    num_images: int, columns: int, rows_shown: int, columns_shown: int
) -> None:
    images, scale = _images(num_images), 3
    picture = np.asarray(sample_grid(images, columns, scale))
    height, width = 4 * scale, 6 * scale
    gap = GRID_GAP_PX
    assert picture.shape == (rows_shown * (height + gap) - gap, columns_shown * (width + gap) - gap, 4)
    for index, image in enumerate(images):
        top, left = index // columns_shown * (height + gap), index % columns_shown * (width + gap)
        tile = picture[top : top + height, left : left + width]
        assert (tile[::scale, ::scale, :3] == image).all()
        assert (tile == np.kron(tile[::scale, ::scale], np.ones((scale, scale, 1), dtype=np.uint8))).all()
    assert (picture[..., 3] == 255).sum() == num_images * height * width
    assert set(np.unique(picture[..., 3])) <= {0, 255}


@pytest.mark.parametrize(
    ("images", "columns", "scale"),
    [
        (np.zeros((2, 4, 4, 3), dtype=np.float32), 1, 1),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), 1, 1),
        (np.zeros((4, 4, 3), dtype=np.uint8), 1, 1),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), 1, 1),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), 0, 1),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), 1, 0),
    ],
)
def test_a_grid_of_something_else_is_refused(images: NDArray[np.uint8], columns: int, scale: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        sample_grid(images, columns, scale)


@pytest.mark.parametrize("scale", [1, 5, 20])
def test_strips_stand_below_each_other_with_captions_beside_them(scale: int) -> None:
    images = _images(6)
    captions = ("a", "a much longer caption: ünï")
    picture = np.asarray(captioned_strips([(captions[0], images[:3]), (captions[1], images[3:])], scale))
    height, width = 4 * scale, 6 * scale
    left = picture.shape[1] - CAPTION_GAP_PX - 3 * width - 2 * GRID_GAP_PX
    assert picture.shape[0] == 2 * height + GRID_GAP_PX + 2 * CAPTION_GAP_PX
    for index, image in enumerate(images):
        x = left + index % 3 * (width + GRID_GAP_PX)
        y = CAPTION_GAP_PX + index // 3 * (height + GRID_GAP_PX)
        tile = picture[y : y + height, x : x + width]
        assert (tile[::scale, ::scale] == image).all()
    beside = picture[:, :left]
    inked = [(beside[y : y + height] < 255).any(axis=(0, 2)) for y in (CAPTION_GAP_PX, CAPTION_GAP_PX + height + 2)]
    assert 0 < inked[0].sum() < inked[1].sum() / 4
    for columns in inked:
        assert not columns[: CAPTION_GAP_PX - 1].any()
        assert not columns[1 - CAPTION_GAP_PX :].any()
        assert columns[-2 * CAPTION_GAP_PX : 1 - CAPTION_GAP_PX].any()
    margins = (slice(0, CAPTION_GAP_PX - 2), slice(2 - CAPTION_GAP_PX, None))
    assert all((picture[margin] == 255).all() for margin in margins)


@pytest.mark.parametrize("shapes", [[], [(2, 4, 4, 3), (3, 4, 4, 3)], [(0, 4, 4, 3)], [(2, 4, 4)]])
def test_strips_of_something_else_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        captioned_strips([("caption", np.zeros(shape, dtype=np.uint8)) for shape in shapes], 1)


def test_png_bytes_hold_the_picture() -> None:
    picture = sample_grid(_images(3), 2, 2)
    with Image.open(io.BytesIO(png_bytes(picture))) as read:
        assert (np.asarray(read) == np.asarray(picture)).all()
    assert png_bytes(picture) == png_bytes(picture)


def _marks(svg: str) -> dict[str, tuple[float, float]]:
    """Return where each generator's mark stands, in pixels from the top left, by the order of the title."""
    names = re.findall(r"[:,] ([^,<:]+) [-0-9.]+(?=[,<])", svg[svg.index("<title>") : svg.index("</title>") + 8])
    circles = []
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        data = path.get("d", "")
        if data.count("C") == 8:
            numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", data)]
            circles.append((sum(numbers[::2]) / len(numbers[::2]), sum(numbers[1::2]) / len(numbers[1::2])))
    assert len(circles) == len(names)
    return dict(zip(names, circles, strict=True))


def _texts(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]


def test_better_stands_lower_and_cheaper_stands_left(demo: Records) -> None:
    svg = quality_cost_plot(demo)
    assert svg is not None
    marks = _marks(svg)
    assert list(marks) == ["adm", "adm-g", "adm-g-ddim25", "gaussian", "memorizer", "noise"]
    by_fid = sorted(marks, key=lambda name: marks[name][1])
    assert by_fid == ["noise", "gaussian", "adm", "adm-g-ddim25", "adm-g", "memorizer"]
    assert marks["adm-g-ddim25"][0] < marks["adm"][0] < marks["adm-g"][0]
    assert marks["gaussian"][0] == pytest.approx(marks["noise"][0])
    assert marks["gaussian"][0] < marks["adm-g-ddim25"][0]
    assert {*marks, "no network", "FLOPs for one image"} - {"memorizer"} <= set(_texts(svg))
    assert "memorizer (copies)" in _texts(svg)


def test_only_the_copier_is_hollow_and_only_the_best_is_bold(demo: Records) -> None:
    root = ET.fromstring(quality_cost_plot(demo) or "")
    circles = [path for path in root.iter(f"{SVG}path") if path.get("d", "").count("C") == 8]
    assert ["fill: none" in circle.get("style", "") for circle in circles] == [False] * 4 + [True, False]
    assert [text.text for text in root.iter(f"{SVG}text") if "700" in text.get("style", "")] == ["adm-g"]


def test_without_flops_the_cost_is_in_evaluations(demo: Records) -> None:
    partly = [r for r in demo if (r.generator, r.quantity) != ("adm", "sampling_flops_per_image")]
    assert "network evaluations for one image" in _texts(quality_cost_plot(partly) or "")


def test_the_same_records_give_the_same_picture_whatever_the_users_style(demo: Records) -> None:
    plain = quality_cost_plot(demo)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert quality_cost_plot(demo) == plain
        assert mpl.rcParams["font.size"] == 30


def test_a_plot_fetches_nothing_and_stays_inside_its_own_styles(demo: Records) -> None:
    svg = quality_cost_plot(demo) or ""
    assert svg.startswith("<svg ")
    assert not re.search(r"<(image|script|a|foreignObject)\b|@import|url\((?!#)", svg)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"]
    sheets = "".join(re.findall(r"<style[^>]*>([^<]*)</style>", svg))
    selectors = re.findall(r"([^{}]+)\{", sheets)
    assert len(selectors) > 10
    assert all(selector.startswith((".quality-cost ", "@media ")) for selector in selectors)


@pytest.mark.parametrize("name", ["a$b$c", "<script>alert(1)</script>", 'q"&', "ünï"])
def test_names_are_drawn_as_they_are(make_record: RecordMaker, name: str) -> None:
    svg = quality_cost_plot([make_record(name), make_record(name, "network_evaluations_per_image", 3)])
    assert svg is not None
    assert name in _texts(svg)
    assert "<script" not in svg


@pytest.mark.parametrize(
    "values",
    [[(1.0, 1.0)], [(0.0, 0.0)], [(-1e-9, 5.0), (3.0, 5.0)], [(1e-6, 1.0), (1e6, 1e15)], [(2.0, 3.0)] * 6],
)
def test_extreme_numbers_have_their_place(make_record: RecordMaker, values: list[tuple[float, float]]) -> None:
    records = []
    for index, (fid, cost) in enumerate(values):
        records.append(make_record(f"g{index}", "fid", fid))
        records.append(make_record(f"g{index}", "network_evaluations_per_image", cost))
    svg = quality_cost_plot(records)
    assert svg is not None
    marks = _marks(svg)
    assert len(marks) == len(values)
    assert all(46 < x < 392 and 28 < y < 254 for x, y in marks.values())


def test_labels_of_a_crowd_do_not_overlap(make_record: RecordMaker) -> None:
    records = []
    for index in range(10):
        records.append(make_record(f"model-{index}", "fid", 2 + 0.01 * index))
        records.append(make_record(f"model-{index}", "network_evaluations_per_image", 50 + index))
    root = ET.fromstring(quality_cost_plot(records) or "")
    places = [text.get("transform", "") for text in root.iter(f"{SVG}text") if "model-" in (text.text or "")]
    corners = [tuple(map(float, re.findall(r"-?\d+\.?\d+", place)[-2:])) for place in places]
    assert len(corners) == 10
    assert all(abs(x1 - x2) > 50 or abs(y1 - y2) > 11 for (x1, y1), (x2, y2) in itertools.combinations(corners, 2))


def test_nothing_to_plot_gives_no_plot(make_record: RecordMaker) -> None:
    assert quality_cost_plot([]) is None
    assert quality_cost_plot([make_record("a")]) is None
