"""One measured number with everything it was measured with, and its form as a line of JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("schema.json")
NOT_IN_OLDER_FILES = ("interval", "image_class")
METRIC_SETTINGS = "metric"
"""The name in `Record.settings` under which the protocol's choices behind the number stand, as a mapping."""
REFERENCE_INPUT = "reference"
"""The name in `Record.inputs` under which the reference set's sha256 stands."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number and its circumstances. Every circumstance must be stated, if only as None.

    `value` is None where the measurement gave no number. `settings` holds the generator's own choices
    (sampler, sampling_steps, guidance_scale, preset), `inputs` maps an input's name to its sha256, and
    `provenance` says what measured it: commit, dirty, versions, created (ISO 8601) and machine. `interval` may hold
    `low`, `high`, `std_error` and the confidence `level` of the value, besides the `estimate` that they are around.
    `precision` is the arithmetic that the number itself came about in: of sampling for a speed; for a metric that of
    its distances ("fp16" for precision and recall as ADM's evaluator has them), and how the images were sampled is
    among the settings. Numbers measured by early versions say "fp32" there whatever the metric.
    `image_class` is the class whose images alone were measured, None for a number of all; tables leave out the former.
    A field of the wrong type, an empty name, a newer schema or a world without processes raises ValueError.
    """

    schema_version: int = SCHEMA_VERSION
    run: str
    generator: str
    quantity: str
    value: float | None
    unit: str
    higher_is_better: bool | None
    protocol: str | None
    protocol_version: int | None
    features: str | None
    features_sha256: str | None
    num_images: int | None
    num_reference_images: int | None
    seed: int | None
    precision: str | None
    device: str | None
    world_size: int = 1
    settings: Mapping[str, object]
    inputs: Mapping[str, str]
    provenance: Mapping[str, object]
    interval: Mapping[str, float] = field(default_factory=dict)
    image_class: int | None = None

    def __post_init__(self) -> None:
        for name, hint in _field_types().items():
            value = getattr(self, name)
            if not _is_of_type(value, hint):
                raise ValueError(f"record field {name!r} is {_shortened(value)}, expected {_type_in_words(hint)}")
        _check_version(self.schema_version)
        for name in ("run", "generator", "quantity"):
            if not getattr(self, name):
                raise ValueError(f"record field {name!r} is empty, expected a name")
        if self.world_size < 1:
            raise ValueError(f"record field 'world_size' is {self.world_size}, expected at least 1")


def to_json_line(record: Record) -> str:
    """Write a record as one line of JSON, without the line feed; NaN and infinities become null.

    Settings or provenance that JSON cannot say raise ValueError.
    """
    content = {field.name: _finite(getattr(record, field.name)) for field in fields(record)}
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(
            f"the record of {record.quantity!r} of {record.generator!r} cannot be written as JSON: {error}; "
            "use strings, numbers, lists and mappings"
        ) from error


def from_json_line(line: str) -> Record:
    """Read what `to_json_line` wrote.

    What is no JSON object, has unknown or missing keys, a wrong type or a newer `schema_version` raises
    ValueError.
    """
    try:
        content = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{_shortened(line)} is not JSON ({error.msg}), expected one record") from error
    if not isinstance(content, dict):
        message = f"{_shortened(line)} is not a JSON object, expected one record"
        raise ValueError(message)  # noqa: TRY004 - a file's content is input, not a caller's type error
    _check_version(content.get("schema_version"))
    known = _field_types().keys()
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"unknown record key {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [name for name in known if name not in content and name not in NOT_IN_OLDER_FILES]:
        raise ValueError(f"record key {', '.join(missing)} is missing; write null where nothing is known")
    return Record(**content)


def read_records(path: str | Path) -> tuple[Record, ...]:
    """Read a file of JSON lines in UTF-8, in file order; empty lines are skipped.

    A line that is not a record raises ValueError, which names the file and the line.
    """
    records = []
    for number, raw in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            records.append(from_json_line(raw.decode("utf-8")))
        except ValueError as error:  # a UnicodeDecodeError is one too
            raise ValueError(f"{path}, line {number}: {error}") from error
    return tuple(records)


@cache
def _field_types() -> dict[str, Any]:
    return get_type_hints(Record)


def _is_of_type(value: object, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_is_of_type(value, member) for member in get_args(hint))
    if get_origin(hint) is Mapping:
        content = get_args(hint)[1]
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _is_of_type(item, content) for key, item in value.items()
        )
    if isinstance(value, bool):  # Python calls True an int; a record does not
        return hint in (bool, object)
    return isinstance(value, (int, float) if hint is float else hint)


def _type_in_words(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(_type_in_words(member) for member in get_args(hint))
    if get_origin(hint) is Mapping:
        return f"a mapping of names to {_type_in_words(get_args(hint)[1])}"
    words = {
        str: "text",
        int: "an integer",
        float: "a number",
        bool: "a boolean",
        NoneType: "null",
        object: "anything",
    }
    return words[hint]


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_version(version: object) -> None:
    if isinstance(version, int) and not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"the record has schema_version {version}, this adm-bench reads 1 to {SCHEMA_VERSION}: "
            "read it with the adm-bench that wrote it, or a newer one"
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; a record says null where there is no number")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
