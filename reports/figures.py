"""Pictures: a grid of samples, and the plot of quality against cost."""

import html
import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, ConnectionPatch
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reports.label_layout import Box, place_labels
from reports.quantities import QUANTITIES, Quantity
from reports.records import Record
from reports.tables import Sheet, best_in_column, compute_sheet, quality_sheet

GRID_GAP_PX = 2
CAPTION_GAP_PX = 8

CAPTION_PX = 14
INK, MUTED, RULE, BAND, BEST = "#1d2329", "#5b6570", "#d5dae0", "#f1f3f5", "#0b6e69"

_WIDTH_PT, _HEIGHT_PT = 400, 300
_FONT_PT = 12.5  # 11 px on a phone, where the plot is about 350 px wide
_LABEL_GAP_PT = 7.0
_DARK = {INK: "#e7eaee", MUTED: "#9aa5b1", RULE: "#39424c", BAND: "#20262d", BEST: "#4fc3b8"}


def sample_grid(images: NDArray[np.uint8], columns: int, scale: int) -> Image.Image:
    """Lay uint8 images, N x H x W x 3, row by row in a grid; the gaps between them are transparent.

    Every pixel becomes `scale` x `scale` pixels, unsmoothed. The grid holds the N images and no more: a
    last row that they do not fill stays empty, and columns that they do not reach are left out.
    No images, another shape or type, and `columns` or `scale` below 1 raise ValueError.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, expected uint8, (N, height, width, 3)")
    if columns < 1 or scale < 1:
        raise ValueError(f"a grid of {columns} columns at scale {scale}, expected at least 1 of each")
    num_images, height, width = images.shape[:3]
    columns = min(columns, num_images)
    rows = math.ceil(num_images / columns)
    step_y, step_x = height * scale + GRID_GAP_PX, width * scale + GRID_GAP_PX
    canvas = np.zeros((rows * step_y - GRID_GAP_PX, columns * step_x - GRID_GAP_PX, 4), dtype=np.uint8)
    for index, image in enumerate(images.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = index // columns * step_y, index % columns * step_x
        tile = canvas[top : top + height * scale, left : left + width * scale]
        tile[..., :3] = image
        tile[..., 3] = 255
    return Image.fromarray(canvas)


def captioned_strips(strips: Sequence[tuple[str, NDArray[np.uint8]]], scale: int) -> Image.Image:
    """Lay rows of uint8 images, N x H x W x 3 each, one below the other on white, a caption to the left of each.

    The images lie as in `sample_grid`, every pixel enlarged to `scale` x `scale`. Captions are a line each, and
    never higher than their images. No rows, rows of different shapes, and what `sample_grid` refuses raise
    ValueError.
    """
    shapes = sorted({images.shape for _, images in strips})
    if len(shapes) != 1:
        raise ValueError(f"strips of shapes {', '.join(map(str, shapes)) or 'none'}, expected one or more of one shape")
    grid = sample_grid(np.concatenate([images for _, images in strips]), max(1, shapes[0][0]), scale)
    tile = shapes[0][1] * scale
    font = caption_font(min(CAPTION_PX, tile))
    left = max(math.ceil(font.getlength(caption)) for caption, _ in strips) + 2 * CAPTION_GAP_PX
    canvas = Image.new("RGB", (left + grid.width + CAPTION_GAP_PX, grid.height + 2 * CAPTION_GAP_PX), "white")
    canvas.paste(grid, (left, CAPTION_GAP_PX), mask=grid)
    draw = ImageDraw.Draw(canvas)
    for row, (caption, _) in enumerate(strips):
        middle = CAPTION_GAP_PX + row * (tile + GRID_GAP_PX) + tile // 2
        draw.text((left - CAPTION_GAP_PX, middle), caption, fill=INK, font=font, anchor="rm")
    return canvas


def caption_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return the typeface of captions; it comes with matplotlib, so no picture depends on what is installed."""
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size_px)


def png_bytes(image: Image.Image) -> bytes:
    """Encode a picture as PNG; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def quality_cost_plot(records: Iterable[Record]) -> str | None:
    """Plot FID against the cost of an image as a standalone SVG; None where no generator has both.

    Both axes are logarithmic, with a place of their own for zeros. The cost is in FLOPs where they are known
    for every generator that has an FID, else in network evaluations. A dashed line joins the generators that
    no other beats on both axes; those that copy training images are hollow and never on it. The
    picture has no background and follows the reader's light or dark scheme.
    Records measured under different protocols, features or references raise ValueError.
    """
    everything = tuple(records)
    sheet = quality_sheet(everything)
    fid = sheet.column("fid")
    cost, points = _points(sheet, fid, compute_sheet(everything))
    if not points:
        return None
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever style the reader's own matplotlib is set to
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",  # text stays text: searchable, and in the page's own typeface
                "svg.hashsalt": "adm-bench",
                "font.family": ["DejaVu Sans"],  # comes with matplotlib, and is wider than what browsers use
                "font.size": _FONT_PT,
            }
        )
        figure = _draw(points, fid, cost)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    names = ", ".join(f"{point.name} {fid.text(point.fid)}" for point in points)
    return _finished_svg(buffer.getvalue(), f"{fid.label} against {cost.label} on logarithmic axes: {names}")


@dataclass(frozen=True, kw_only=True)
class _Point:
    name: str
    cost: float
    fid: float
    best: bool
    copies: bool

    @property
    def colour(self) -> str:
        return MUTED if self.copies else BEST if self.best else INK

    @property
    def label(self) -> str:
        return f"{self.name} (copies)" if self.copies else self.name


@dataclass(frozen=True, kw_only=True)
class _LogAxis:
    """A logarithmic axis from `low` to `high`, both positive, with a place for zero below it."""

    low: float
    high: float
    has_zero: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> "_LogAxis":
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        if high < 4 * low:  # never less than a factor of four, so that ticks fit
            middle = math.sqrt(low * high)
            low, high = middle / 2, middle * 2
        return cls(low=low, high=high, has_zero=min(values) <= 0)

    @property
    def _span(self) -> float:
        return math.log10(self.high / self.low)

    @property
    def zero(self) -> float:
        return math.log10(self.low) - 0.24 * self._span

    @property
    def limits(self) -> tuple[float, float]:
        start = self.zero if self.has_zero else math.log10(self.low)
        return start - 0.11 * self._span, math.log10(self.high) + 0.11 * self._span

    def position(self, value: float) -> float:
        return math.log10(value) if value > 0 else self.zero

    def tick_values(self) -> list[float]:
        start = math.log10(self.low) - 0.05 * self._span
        end = math.log10(self.high) + 0.05 * self._span  # not at the edge, which would cut the label
        decades = range(math.floor(start) - 1, math.ceil(end) + 1)
        for steps, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
            values = [step * 10.0**decade for decade in decades if decade % every == 0 for step in steps]
            shown = [value for value in values if start <= math.log10(value) <= end]
            if len(shown) <= 6:
                break
        return shown


def _points(quality: Sheet, fid: Quantity, compute: Sheet) -> tuple[Quantity, list[_Point]]:
    fids = quality.frame[fid.label].dropna()
    flops, evaluations = QUANTITIES["sampling_flops_per_image"], QUANTITIES["network_evaluations_per_image"]
    known = {cost.name: compute.frame[cost.label].dropna() for cost in (flops, evaluations)}
    cost = flops if fids.index.isin(known[flops.name].index).all() else evaluations
    costs = {str(name): float(value) for name, value in known[cost.name].items()}
    best = best_in_column(quality, fid.label)
    return cost, [
        _Point(
            name=str(name),
            cost=costs[str(name)],
            fid=float(value),
            best=name in best,
            copies=name in quality.copying,
        )
        for name, value in fids.items()
        if str(name) in costs
    ]


def _draw(points: Sequence[_Point], fid: Quantity, cost: Quantity) -> Figure:
    across, up = _LogAxis.of([point.cost for point in points]), _LogAxis.of([point.fid for point in points])
    figure = Figure(figsize=(_WIDTH_PT / 72, _HEIGHT_PT / 72), dpi=72)
    FigureCanvasAgg(figure)  # measures text; one dot a point
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.115, 0.155, 0.865, 0.75))
    axes.set(xlim=across.limits, ylim=up.limits)
    _draw_frame(axes, across, up, (fid, cost))
    front = [(across.position(point.cost), up.position(point.fid)) for point in _front(points)]
    axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, dashes=(3, 3), zorder=2)
    centres = _in_points(axes, [(across.position(point.cost), up.position(point.fid)) for point in points])
    for point, centre in zip(points, centres, strict=True):
        mark = Circle(centre, 3.8, facecolor="none" if point.copies else point.colour, edgecolor=point.colour)
        mark.set(linewidth=1.4, transform=IdentityTransform(), zorder=3)
        axes.add_artist(mark)
    _draw_labels(axes, points, centres, avoid=_along(_in_points(axes, front)))
    return figure


def _draw_frame(axes: Axes, across: _LogAxis, up: _LogAxis, shown: tuple[Quantity, Quantity]) -> None:
    fid, cost = shown
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6, colors=MUTED)
    x_ticks, y_ticks = across.tick_values(), up.tick_values()
    x_labels, y_labels = [_short(value, cost) for value in x_ticks], [f"{value:g}" for value in y_ticks]
    if across.has_zero:
        axes.axvspan(across.limits[0], (across.zero + math.log10(across.low)) / 2, color=BAND, linewidth=0)
        x_ticks, x_labels = [0.0, *x_ticks], ["0", *x_labels]
        at = axes.transData + axes.figure.transFigure.inverted()
        axes.figure.text(at.transform((across.zero, 0))[0], 0.012, "no network", color=MUTED, ha="center")
    if up.has_zero:
        y_ticks, y_labels = [0.0, *y_ticks], ["0", *y_labels]
    axes.set_xticks([across.position(value) for value in x_ticks], x_labels)
    axes.set_yticks([up.position(value) for value in y_ticks], y_labels)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    title = "FLOPs for one image" if cost.name.endswith("flops_per_image") else "network evaluations for one image"
    axes.figure.text(0.98, 0.012, title, color=MUTED, ha="right")
    axes.figure.text(0.012, 0.945, f"{fid.label}, lower is better", color=MUTED)


def _draw_labels(
    axes: Axes, points: Sequence[_Point], centres: Sequence[tuple[float, float]], avoid: Sequence[Box]
) -> None:
    texts = [axes.text(0, 0, point.label, color=point.colour, parse_math=False, zorder=4) for point in points]
    for text, point in zip(texts, points, strict=True):
        text.set(transform=IdentityTransform(), fontweight="bold" if point.best else "normal")
    extents = [text.get_window_extent() for text in texts]
    sizes = [(extent.width + 2, extent.height) for extent in extents]
    area = Box(x=axes.bbox.x0, y=axes.bbox.y0, width=axes.bbox.width, height=axes.bbox.height)
    boxes = place_labels(centres, sizes, area, _LABEL_GAP_PT, avoid)
    for text, centre, box in zip(texts, centres, boxes, strict=True):
        text.set_position((box.x + 1, box.y + 0.25 * box.height))
        nearest = (_clamped(centre[0], box.x, box.width), _clamped(centre[1], box.y, box.height))
        if math.dist(centre, nearest) > 2 * _LABEL_GAP_PT:
            leader = ConnectionPatch(centre, nearest, coordsA="figure points", coordsB="figure points")
            leader.set(color=MUTED, linewidth=0.7)
            axes.add_artist(leader)


def _in_points(axes: Axes, positions: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turn data coordinates into points from the figure's lower left corner."""
    return [(float(x), float(y)) for x, y in axes.transData.transform(positions)]


def _along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Cover a line with small boxes, one every three points of length."""
    boxes = []
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        steps = math.ceil(math.dist((x1, y1), (x2, y2)) / 3)
        for step in range(steps + 1):
            share = step / steps
            boxes.append(Box(x=x1 + share * (x2 - x1) - 1, y=y1 + share * (y2 - y1) - 1, width=2, height=2))
    return boxes


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Return those that copy nothing and have a better FID than all that cost no more, cheapest first."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.fid)):
        if not point.copies and (not front or point.fid < front[-1].fid):
            front.append(point)
    return front


def _short(value: float, quantity: Quantity) -> str:
    number, _, prefix = quantity.text(value).partition(" ")
    return f"{float(number.replace(',', '')):g} {prefix}".strip()


def _clamped(value: float, start: float, length: float) -> float:
    return min(max(value, start), start + length)


def _finished_svg(svg: str, description: str) -> str:
    """Cut what only a file needs, name the picture for screen readers, and add the dark scheme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and two plots may share a page
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    rules = "".join(
        f'.quality-cost [style*="{name}: {light}"]{{{name}:{dark}!important}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    svg = svg.replace(">*{", ">.quality-cost *{")  # inside a page, style sheets reach beyond the picture
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    head = f"<title>{html.escape(description)}</title>\n{style}"
    return re.sub(
        r"<svg ([^>]*)>",
        lambda match: f'<svg class="quality-cost" role="img" {match[1]}>\n{head}',
        svg,
        count=1,
    )
