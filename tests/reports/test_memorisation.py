"""Pictures of memorisation: every image and every share stands where it is said to stand."""

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reports.figures import BEST, CAPTION_GAP_PX, png_bytes
from reports.memorisation import APART_PX, DistanceCurves, NeighbourRow, distance_plot, neighbour_grid

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(0)


def images(count: int, height: int = 8, width: int = 6) -> Pixels:
    return RNG.integers(1, 255, (count, height, width, 3)).astype(np.uint8)


def row(count: int, name: str = "#1") -> NeighbourRow:
    captions = tuple(f"{index}.5" for index in range(count))
    return NeighbourRow(sample=images(1)[0], name=name, neighbours=images(count), captions=captions)


def found_at(picture: Pixels, image: Pixels, scale: int) -> tuple[int, int]:
    """The one place, from the top left, of an enlarged image."""
    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = enlarged.shape[:2]
    corners = np.argwhere((picture[: -height + 1, : -width + 1] == enlarged[0, 0]).all(axis=2))
    places = [(y, x) for y, x in corners if (picture[y : y + height, x : x + width] == enlarged).all()]
    assert len(places) == 1
    return int(places[0][0]), int(places[0][1])


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("count", [1, 5])
def test_a_sample_stands_before_its_neighbours_in_their_order(scale: int, count: int) -> None:
    rows = [row(count, "#7"), row(count, "#123456")]
    picture = np.asarray(neighbour_grid(rows, ("sample", "nearest"), scale))
    tops = []
    for each in rows:
        places = [found_at(picture, image, scale) for image in (each.sample, *each.neighbours)]
        top = {y for y, _ in places}
        assert len(top) == 1
        tops.append(top.pop())
        columns = [x for _, x in places]
        assert columns[1] - columns[0] >= 6 * scale + APART_PX
        assert (np.diff(columns[1:]) >= 6 * scale).all()
        below = picture[tops[-1] + 8 * scale : tops[-1] + 8 * scale + 18]
        inked = [(below[:, x : x + 6 * scale] < 128).any() for x in columns]
        assert all(inked)  # a caption under each
    assert tops[0] < tops[1]
    assert (picture[:, -CAPTION_GAP_PX + 2 :] == 255).all()


def test_rows_that_do_not_fit_each_other_are_refused() -> None:
    other = NeighbourRow(sample=images(1, 4)[0], name="a", neighbours=images(2), captions=("1", "2"))
    for rows in ([], [row(2), row(3)], [other], [row(2), NeighbourRow(**(vars(row(2)) | {"captions": ("1",)}))]):
        with pytest.raises(ValueError, match="expected one of each"):
            neighbour_grid(rows, ("sample", "nearest"), 1)


def curves(of_samples: object, of_training: object, share: float = 0.0) -> DistanceCurves:
    return DistanceCurves(
        of_samples=np.array(of_samples, float),
        of_training=np.array(of_training, float),
        copies_up_to=1e-3,
        copied_share=share,
        unit="features",
    )


def heights(picture: Image.Image, column: int) -> tuple[float, float]:
    """Highest and lowest share, 0 to 1, that the samples' curve has in a column of the picture."""
    colour = np.array([int(BEST[place : place + 2], 16) for place in (1, 3, 5)])
    rows = np.flatnonzero((np.abs(np.asarray(picture)[120:, column].astype(int) - colour) < 40).all(axis=1)) + 120
    top, bottom = 640 * (1 - 0.79), 640 * (1 - 0.13)  # of the axes, whose limits are -0.02 and 1.02
    share = 1.02 - 1.04 * (rows - top) / (bottom - top)
    return float(share.max()), float(share.min())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_copied_share_is_where_the_curve_leaves_the_band(share: float) -> None:
    copies = round(400 * share)
    apart = RNG.uniform(2, 8, 400 - copies)
    picture = distance_plot(curves([*([0] * (copies // 2)), *([5e-4] * (copies - copies // 2)), *apart], [2, 9], share))
    assert picture.size == (960, 640)
    # at the band's right-hand edge all copies are counted and nothing else; at the right-hand end everything is
    assert heights(picture, 180)[0] == pytest.approx(share, abs=0.02)
    assert heights(picture, 930)[0] == pytest.approx(1, abs=0.02)
    assert heights(picture, 85)[0] == pytest.approx(0, abs=0.02)


def test_farther_samples_lie_to_the_right() -> None:
    training = RNG.uniform(1, 2, 300)
    near, far = (distance_plot(curves(scale * RNG.uniform(1, 2, 300), training)) for scale in (0.5, 2))
    column = 570  # of distances just below 1 in the one, 2 in the other
    assert heights(near, column)[0] > 0.9
    assert heights(far, column)[0] < 0.1


@pytest.mark.parametrize(
    ("samples", "training"),
    [([0], [0, 0]), ([3], [3, 3]), ([0, 1e-9], [1e9, 2e-2]), (np.geomspace(1, 50, 200_000), [1, 2])],
)
def test_extreme_distances_are_drawn(samples: object, training: object) -> None:
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        picture = distance_plot(curves(samples, training))
    assert png_bytes(picture) == png_bytes(distance_plot(curves(samples, training)))


@pytest.mark.parametrize(("samples", "training"), [([], [1]), ([1], []), ([1, -1], [1]), ([np.nan], [1])])
def test_what_is_no_distance_is_refused(samples: object, training: object) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        distance_plot(curves(samples, training))
