import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.records import (
    NOT_IN_OLDER_FILES,
    SCHEMA_PATH,
    SCHEMA_VERSION,
    Record,
    from_json_line,
    read_records,
    to_json_line,
)

RecordMaker = Callable[..., Record]


def test_a_line_gives_the_record_back(make_record: RecordMaker) -> None:
    record = make_record("naïve\n", settings={"widths": [1, 2], "nested": {"eta": 0.5}})
    line = to_json_line(record)
    assert "\n" not in line
    assert from_json_line(line) == record


@given(value=st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_value_survives_exactly(value: float | None) -> None:
    content = {field.name: None for field in dataclasses.fields(Record)}
    content |= {"schema_version": 1, "run": "r", "generator": "g", "quantity": "q", "value": value, "unit": ""}
    content |= {"world_size": 1, "settings": {}, "inputs": {}, "provenance": {}, "interval": {}}
    assert from_json_line(json.dumps(content)).value == value
    assert from_json_line(to_json_line(from_json_line(json.dumps(content)))).value == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_written_as_null(make_record: RecordMaker, number: float) -> None:
    line = to_json_line(make_record(value=number, settings={"eta": number, "list": [number]}))
    assert json.loads(line)["value"] is None
    assert json.loads(line)["settings"] == {"eta": None, "list": [None]}
    assert from_json_line(line).value is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown record key colour"),
        ({"value": "2.1"}, "'value' is '2.1', expected a number or null"),
        ({"value": True}, "'value' is True, expected a number or null"),
        ({"num_images": 1.5}, "'num_images' is 1.5, expected an integer or null"),
        ({"seed": False}, "'seed' is False, expected an integer or null"),
        ({"higher_is_better": 1}, "'higher_is_better' is 1, expected a boolean or null"),
        ({"generator": None}, "'generator' is None, expected text"),
        ({"generator": ""}, "'generator' is empty, expected a name"),
        ({"inputs": {"reference": 3}}, "'inputs' is {'reference': 3}, expected a mapping of names to text"),
        ({"settings": []}, "'settings' is [], expected a mapping of names to anything"),
        ({"world_size": 0}, "'world_size' is 0, expected at least 1"),
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema_version {SCHEMA_VERSION + 1}, this adm-bench reads"),
        ({"schema_version": SCHEMA_VERSION + 1, "colour": "red"}, "this adm-bench reads"),
        ({"schema_version": None}, "'schema_version' is None, expected an integer"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(make_record: RecordMaker, change: dict[str, object], message: str) -> None:
    content = json.loads(to_json_line(make_record())) | change
    with pytest.raises(ValueError, match="record") as error:
        from_json_line(json.dumps(content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Record) if f.name not in NOT_IN_OLDER_FILES])
def test_every_key_must_be_there(make_record: RecordMaker, name: str) -> None:
    content = json.loads(to_json_line(make_record()))
    del content[name]
    with pytest.raises(ValueError, match=f"record key {name} is missing"):
        from_json_line(json.dumps(content))


@pytest.mark.parametrize("name", NOT_IN_OLDER_FILES)
def test_a_file_from_before_a_field_is_read(make_record: RecordMaker, name: str) -> None:
    content = json.loads(to_json_line(make_record()))
    del content[name]
    assert from_json_line(json.dumps(content)) == make_record()


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "is not JSON"), ("[1]", "is not a JSON object"), ('{"value": NaN}', "NaN is not JSON")],
)
def test_what_is_no_record_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json_line(line)


def test_settings_that_json_cannot_say_are_refused(make_record: RecordMaker) -> None:
    with pytest.raises(ValueError, match="record of 'fid' of 'adm' cannot be written as JSON"):
        to_json_line(make_record(settings={"path": Path()}))


def test_a_file_is_read_in_order_and_a_bad_line_is_named(make_record: RecordMaker, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = (make_record("b"), make_record("a\u2028c"))  # a separator that str.splitlines would split at
    path.write_text("\n\n".join(map(to_json_line, records)) + "\n", encoding="utf-8")
    assert read_records(path) == records
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 4: .*utf-8"):
        read_records(path)


def test_the_schema_says_what_the_dataclass_says() -> None:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    hints = get_type_hints(Record)
    assert schema["required"] == [name for name in hints if name not in NOT_IN_OLDER_FILES]
    assert list(schema["properties"]) == list(hints)
    assert schema["additionalProperties"] is False
    for name, hint in hints.items():
        stated = schema["properties"][name]
        assert stated["type"] == _json_type(hint), name
        if name == "inputs":
            assert stated["additionalProperties"] == {"type": "string"}
        if name == "interval":
            assert stated["additionalProperties"] == {"type": "number"}
    assert schema["properties"]["schema_version"]["maximum"] == SCHEMA_VERSION


def _json_type(hint: Any) -> object:
    if get_origin(hint) is UnionType:
        return [_json_type(member) for member in get_args(hint)]
    names = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
    return names.get(hint, "object")
