import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.label_layout import Box, place_labels

AREA = Box(x=0, y=0, width=346, height=225)
GAP = 7.0
spots = st.tuples(st.floats(min_value=10, max_value=336), st.floats(min_value=10, max_value=215))


@given(points=st.lists(spots, max_size=12))
def test_labels_cover_neither_labels_nor_points_nor_the_edge(points: list[tuple[float, float]]) -> None:
    boxes = place_labels(points, [(80.0, 14.0)] * len(points), AREA, GAP)
    assert all(box.inside(AREA) for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.x < x < box.x + box.width and box.y < y < box.y + box.height for box in boxes for x, y in points)


def test_a_lone_label_stands_to_the_right() -> None:
    assert place_labels([(100.0, 100.0)], [(40.0, 10.0)], AREA, GAP) == [Box(x=107, y=95, width=40, height=10)]


def test_what_can_be_avoided_is() -> None:
    line = Box(x=100, y=98, width=200, height=4)
    [box] = place_labels([(100.0, 100.0)], [(40.0, 10.0)], AREA, GAP, [line])
    assert not box.overlaps(line)
    [crowded] = place_labels([(100.0, 100.0)], [(40.0, 10.0)], AREA, GAP, [AREA])
    assert crowded == Box(x=107, y=95, width=40, height=10)


def test_a_full_area_still_gives_every_label_a_place() -> None:
    small = Box(x=0, y=0, width=30, height=12)
    boxes = place_labels([(5.0, 5.0)] * 4, [(20.0, 10.0)] * 4, small, GAP)
    assert len(boxes) == 4


@pytest.mark.parametrize(("x", "overlaps"), [(9.9, True), (10.0, False), (-10.0, False), (-9.9, True)])
def test_touching_is_not_overlapping(x: float, overlaps: bool) -> None:
    box = Box(x=0, y=0, width=10, height=10)
    assert box.overlaps(Box(x=x, y=0, width=10, height=10)) is overlaps
