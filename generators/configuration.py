"""Configurations as data: dataclasses from and to plain mappings, checked against their own annotations.

The same rules serve the configuration inside a weights file, a suite file and `--set field=value`.
"""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """The one line that says a name is unknown, suggests the nearest and lists the valid ones."""
    choices = sorted(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{suggestion} (valid: {', '.join(choices) or 'none'})"


def to_mapping(config: object) -> dict[str, Any]:
    """A dataclass as JSON's types: nested dataclasses as mappings, tuples as lists, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return to_mapping(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(config, field.name)) for field in fields(typing.cast("Any", config))}


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """The dataclass `cls` from a mapping, with its defaults for what is absent.

    ValueError in one line for an unknown key, a missing one, a value of another type, or a contradiction
    that the dataclass itself refuses; `where` is the dotted path that the message begins with.
    """
    hints = typing.get_type_hints(cls)
    names = {field.name: field for field in fields(typing.cast("Any", cls))}
    for key in values:
        if key not in names:
            raise ValueError(_placed(where, unknown_name("key", key, names)))
    for name, field in names.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}{name} is missing")
    parsed = {key: parse_value(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        return cls(**parsed)
    except ValueError as error:
        raise ValueError(_placed(where, str(error))) from None


def _placed(where: str, message: str) -> str:
    """A message about the table at the dotted path `where`."""
    return f"{where.rstrip('.: ')}: {message}" if where else message


def parse_value(expected: Any, value: Any, where: str) -> Any:
    """A value as the annotation `expected` wants it; ValueError naming `where` if it cannot be."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        if type(None) in arguments and value in (None, "none"):
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return parse_value(inner, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; expected a list such as [1, 2]")
        return tuple(parse_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; expected a table of keys and values")
        inner = arguments[1] if arguments else typing.Any
        return {
            key: item if inner is typing.Any else parse_value(inner, item, f"{where}.{key}")
            for key, item in value.items()
        }
    if is_dataclass(expected):
        if isinstance(value, Mapping):
            return from_mapping(typing.cast("type[Any]", expected), value, f"{where}.")
        raise ValueError(f"{where} is {value!r}; expected a table of keys and values")
    return parse_scalar(expected, value, where)


def parse_scalar(expected: type, value: Any, where: str) -> Any:
    """A bool, int, float, str or Path; integers stand for floats, and texts for paths."""
    if expected is Path and isinstance(value, str | Path):
        return Path(value)
    if expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; expected a finite number")
        return float(value)
    if isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {value!r}; expected {'text' if expected in (str, Path) else expected.__name__}")


def literal(text: str) -> Any:
    """What is written after `field=`: a number, a truth value, a [list] as in TOML, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_changes(config: C, changes: Mapping[str, Any]) -> C:
    """A copy with dotted fields replaced, all at once: `{"model.channels": 48}`.

    ValueError in one line where a field is unknown or a value does not fit.
    """
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{key} and {parent} cannot both be set")  # noqa: TRY004  user input
        node[last] = value
    merged: C = _merged(config, tree, "")
    return merged


def _merged(config: Any, tree: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(type(config))
    parsed = {}
    for key, value in tree.items():
        if key not in hints:
            raise ValueError(_placed(where, unknown_name("key", key, hints)))
        current = getattr(config, key)
        if isinstance(value, Mapping) and is_dataclass(current):
            parsed[key] = _merged(current, value, f"{where}{key}.")
        else:
            parsed[key] = parse_value(hints[key], value, f"{where}{key}")
    return replace(config, **parsed)
