"""Pictures of how near samples come to the training images: neighbours side by side, distances as curves."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reports.figures import BAND, BEST, CAPTION_GAP_PX, CAPTION_PX, GRID_GAP_PX, INK, MUTED, RULE, caption_font

APART_PX = 24
"""Between a sample and its neighbours."""

_SIZE_PX, _DPI, _FONT_PT = (960, 640), 150, 9.5
_MOST_STEPS = 4000
"""Of a curve, several a pixel."""
_BAND_SHARE = 0.12
"""Share of the axis, in front of the logarithmic part, that stands for copies."""


@dataclass(frozen=True, kw_only=True)
class NeighbourRow:
    """A sample, uint8 (H, W, 3), what it is called, and its nearest images (k, H, W, 3) with their captions."""

    sample: NDArray[np.uint8]
    name: str
    neighbours: NDArray[np.uint8]
    captions: tuple[str, ...]


def neighbour_grid(rows: Sequence[NeighbourRow], titles: tuple[str, str], scale: int) -> Image.Image:
    """Lay out a row a sample, on white: the sample, then its nearest images, each with its caption under it.

    `titles` head the samples and the neighbours. Every pixel becomes `scale` x `scale` pixels, unsmoothed; columns are
    as wide as their captions need. No rows, and images of different shapes, raise ValueError.
    """
    shapes = sorted({images.shape for row in rows for images in (row.sample, row.neighbours[0])})
    counts = {(len(row.neighbours), len(row.captions)) for row in rows}
    if len(shapes) != 1 or counts != {(len(rows[0].neighbours),) * 2}:
        raise ValueError(f"rows of images of shapes {shapes}, with (images, captions) {counts}; expected one of each")
    font = caption_font(CAPTION_PX)
    height, width = (side * scale for side in shapes[0][:2])
    texts = [text for row in rows for text in (row.name, *row.captions)]
    column = max(width, *(math.ceil(font.getlength(text)) for text in texts)) + GRID_GAP_PX
    line = CAPTION_PX + CAPTION_GAP_PX
    first = max(column, math.ceil(font.getlength(titles[0]))) + APART_PX
    title_end = first + math.ceil(font.getlength(titles[1]))
    size = (
        max(first + column * len(rows[0].neighbours) - GRID_GAP_PX, title_end) + 2 * CAPTION_GAP_PX,
        line + len(rows) * (height + line) + CAPTION_GAP_PX,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for x, title in zip((0, first), titles, strict=True):
        draw.text((CAPTION_GAP_PX + x, CAPTION_GAP_PX), title, fill=MUTED, font=font, anchor="lt")
    for number, row in enumerate(rows):
        top = CAPTION_GAP_PX + line + number * (height + line)
        images, captions = [row.sample, *row.neighbours], (row.name, *row.captions)
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            x = CAPTION_GAP_PX + (first + (place - 1) * column if place else 0)
            canvas.paste(Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1)), (x, top))
            draw.text((x + width // 2, top + height + 3), caption, fill=INK, font=font, anchor="mt")
    return canvas


@dataclass(frozen=True, kw_only=True)
class DistanceCurves:
    """Distances [n] of samples to the nearest training image, and [m] of these to the nearest other one.

    Samples up to `copies_up_to` count as copies, which are `copied_share` (0 to 1) of them. `unit` says what the
    distances are measured in, such as "digits features".
    """

    of_samples: NDArray[np.float64]
    of_training: NDArray[np.float64]
    copies_up_to: float
    copied_share: float
    unit: str


def distance_plot(curves: DistanceCurves) -> Image.Image:
    """Draw both distributions as empirical cumulative shares over a logarithmic axis of distances.

    Copies, and training images that occur twice, lie in a band of their own in front of the axis, so that zero has a
    place. The copied share is named in the picture. Empty or negative distances raise ValueError.
    """
    for distances in (curves.of_samples, curves.of_training):
        if not len(distances) or not (distances >= 0).all():
            raise ValueError(f"found {len(distances)} distances, of which some may be negative; expected 0 or more")
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever style the reader's own matplotlib is set to
        mpl.rcParams.update({"font.family": ["DejaVu Sans"], "font.size": _FONT_PT})
        figure = Figure(figsize=(_SIZE_PX[0] / _DPI, _SIZE_PX[1] / _DPI), dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, 0.13, 0.895, 0.66))
        _draw_curves(axes, curves)
        _draw_words(figure, curves)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Image.open(buffer).convert("RGB")


def _draw_curves(axes: Axes, curves: DistanceCurves) -> None:
    everything = np.concatenate([curves.of_samples, curves.of_training])
    apart = everything[everything > curves.copies_up_to]
    low, high = (float(apart.min()), float(apart.max())) if len(apart) else (1.0, 1.0)
    if high < 4 * low:  # never less than a factor of four, so that ticks fit
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    span = (high / low) ** 1.04
    start = low / span**0.03
    left = start / span ** (_BAND_SHARE / (1 - _BAND_SHARE))
    axes.set(xscale="log", xlim=(left, low * span), ylim=(-0.02, 1.02))
    axes.axvspan(left, start, color=BAND, linewidth=0)
    within = math.sqrt(left * start)
    for distances, colour, width, order in (
        (curves.of_samples, BEST, 2.8, 2),
        (curves.of_training, MUTED, 1.3, 3),
    ):
        places = np.sort(np.where(distances > curves.copies_up_to, distances, within))
        drawn = np.unique(np.linspace(0, len(places) - 1, _MOST_STEPS).astype(np.int64))
        places, shares = places[drawn], (drawn + 1) / len(places)
        x, y = np.concatenate([[left], places, [low * span]]), np.concatenate([[0.0], shares, [1.0]])
        axes.step(x, y, where="post", color=colour, linewidth=width, zorder=order)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, pad=5, colors=MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ticks = _ticks(start, low * span)
    axes.set_xticks([within, *ticks], ["copies", *(f"{tick:g}" for tick in ticks)])
    axes.set_xticks([], minor=True)


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    shown: list[float] = []
    for steps, every in (((1, 2, 3, 4, 5, 6, 8), 1), ((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        values = [step * 10.0**decade for decade in decades if decade % every == 0 for step in steps]
        shown = [value for value in values if low < value < high]
        if len(shown) <= 8:
            break
    return shown


def _draw_words(figure: Figure, curves: DistanceCurves) -> None:
    n, m = len(curves.of_samples), len(curves.of_training)
    medians = [f"{float(np.median(distances)):.3g}" for distances in (curves.of_samples, curves.of_training)]
    for height, colour, text in (
        (0.945, BEST, f"{n:,} samples, to the nearest training image (median {medians[0]})"),
        (0.89, MUTED, f"{m:,} training images, to the nearest other one (median {medians[1]})"),
    ):
        figure.text(0.085, height, text, color=colour, va="center")
    share = f"{100 * curves.copied_share:.4g} % of the samples are copies of a training image"
    figure.text(0.085, 0.835, share, color=INK, va="center", fontweight="bold")
    figure.text(0.085, 0.025, "share of images as near, or nearer", color=MUTED)
    figure.text(0.98, 0.025, f"distance in {curves.unit}", color=MUTED, ha="right")
