"""Dataclasses from and to plain data, and the one line for everything that does not fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from generators.configuration import from_mapping, literal, to_mapping, unknown_name, with_changes


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float = 0.5
    widths: tuple[int, ...] = (1, 2)
    limit: int | None = None
    flag: bool = False
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)
    rows: dict[str, Inner] = field(default_factory=dict)


FULL = Outer(
    name="n",
    rate=2.0,
    widths=(4,),
    limit=7,
    flag=True,
    path=Path("p"),
    inner=Inner(size=9),
    rows={"x": Inner(kind="b")},
)


@pytest.mark.parametrize("config", [FULL, Outer(name="other")])
def test_there_and_back(config: Outer) -> None:
    assert from_mapping(Outer, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "name is missing"),
        ({"name": "n", "nam": 1}, "unknown key 'nam'; did you mean 'name'?"),
        ({"name": 3}, "name is 3; expected text"),
        ({"name": "n", "rate": "fast"}, "rate is 'fast'; expected float"),
        ({"name": "n", "rate": True}, "rate is True; expected float"),
        ({"name": "n", "limit": 1.5}, "limit is 1.5; expected int"),
        ({"name": "n", "limit": True}, "limit is True; expected int"),
        ({"name": "n", "flag": 1}, "flag is 1; expected bool"),
        ({"name": "n", "widths": 3}, "widths is 3; expected a list"),
        ({"name": "n", "widths": [1, "b"]}, "widths[1] is 'b'; expected int"),
        ({"name": "n", "inner": 3}, "inner is 3; expected a table"),
        ({"name": "n", "inner": {"kind": "c"}}, "inner.kind is 'c'; expected one of a, b"),
        ({"name": "n", "inner": {"size": -1}}, "inner: size is -1; expected 0 or more"),
        ({"name": "n", "rows": {"x": {"sise": 1}}}, "rows.x: unknown key 'sise'; did you mean 'size'?"),
        ({"name": "n", "rows": 1}, "rows is 1; expected a table"),
    ],
)
def test_refusals_name_the_place(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=r"^") as error:
        from_mapping(Outer, values)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("cosine", "cosine"),
        ("none", "none"),
    ],
)
def test_literals(text: str, value: object) -> None:
    assert literal(text) == value


def test_changes_are_made_together() -> None:
    changed = with_changes(FULL, {"inner.size": 1, "inner.kind": "b", "limit": "none", "rate": 3, "widths": [8]})
    assert changed.inner == Inner(size=1, kind="b")
    assert (changed.limit, changed.rate, changed.widths, changed.name) == (None, 3.0, (8,), "n")
    with pytest.raises(ValueError, match="inner: unknown key 'sise'; did you mean 'size'"):
        with_changes(FULL, {"inner.sise": 1})


def test_names_without_a_neighbour_get_no_suggestion() -> None:
    assert unknown_name("key", "zzz", ["b", "a"]) == "unknown key 'zzz' (valid: a, b)"
