"""Places the labels of a scatter plot so that none covers another label or a point."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_NEAR = 4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle: its left and lower edge, its width and height, in one unit of length."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share an area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def inside(self, other: "Box") -> bool:
        """Whether this lies within the other, edges included."""
        return (
            other.x <= self.x
            and other.y <= self.y
            and self.x + self.width <= other.x + other.width
            and self.y + self.height <= other.y + other.height
        )


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    gap: float,
    avoid: Sequence[Box] = (),
) -> list[Box]:
    """Give each point's label a place as near to it as is free.

    A label lies `gap` from its point, beside it if it can, and moves outwards until it covers no point,
    no label placed before it and nothing outside `area`. It spares what is to `avoid` if that takes it
    no further than `_NEAR` steps. Only when the area is full may labels overlap. All lengths are in one unit.
    """
    marks = [Box(x=x - gap / 2, y=y - gap / 2, width=gap, height=gap) for x, y in points]
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        candidates = list(_candidates(point, size, area, gap))
        inside = [box for box in candidates if box.inside(area)]
        free = [box for box in inside if not any(map(box.overlaps, itertools.chain(placed, marks)))]
        near = set(candidates[: _NEAR * len(_DIRECTIONS)])
        sparing = [box for box in free if box in near and not any(map(box.overlaps, avoid))]
        placed.append((sparing or free or inside or candidates)[0])
    return placed


def _candidates(point: tuple[float, float], size: tuple[float, float], area: Box, gap: float) -> Iterator[Box]:
    (x, y), (width, height) = point, size
    steps = math.ceil(math.hypot(area.width, area.height) / (height / 2))
    for step in range(steps):
        away = gap + step * height / 2
        for right, up in _DIRECTIONS:
            reach = away / math.hypot(right, up)
            yield Box(
                x=x + right * reach - width * (1 - right) / 2,
                y=y + up * reach - height * (1 - up) / 2,
                width=width,
                height=height,
            )
