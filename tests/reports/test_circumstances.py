from collections.abc import Callable

import pytest

from reports.circumstances import arithmetic_in_words, by_value, circumstances, shared_and_varying
from reports.layout import settings_by_generator
from reports.records import METRIC_SETTINGS, Record

RecordMaker = Callable[..., Record]


def test_every_circumstance_is_stated(make_record: RecordMaker) -> None:
    row = circumstances([make_record("adm-g")]).loc["adm-g"]
    assert row.to_dict() == {
        "settings": "preset digits · sampler ddpm · sampling steps 250 · guidance scale 1",
        "protocol": "digits v1",
        "features": "digits (sha256 3fa9c1d23fa9)",
        "images": "1,797",
        "reference images": "1,797",
        "seed": "0",
        "arithmetic": "fp32",
        "device": "cpu",
        "processes": "1",
        "reference sha256": "ab12cd34ab12",
        "commit": "0123456789ab with uncommitted changes",
        "versions": "python 3.11.7 · torch 2.13.0",
        "measured on": "2026-11-21",
        "machine": "x86_64 Linux, 2 cores",
    }


def test_what_rows_share_is_said_once(make_record: RecordMaker) -> None:
    records = [make_record("a", seed=1), make_record("a", "is", seed=2), make_record("b", seed=1, device="cuda")]
    parts = shared_and_varying(circumstances(records))
    assert parts.shared["protocol"] == "digits v1"
    assert parts.varying.to_dict("index") == {
        "a": {"seed": "1 · 2", "device": "cpu"},
        "b": {"seed": "1", "device": "cuda"},
    }


def test_choices_behind_a_metric_are_said_beside_the_settings(make_record: RecordMaker) -> None:
    plain = make_record("adm-g").settings
    choices = {"kid_subsets": 100, "seed": 2020}
    records = [
        make_record("adm-g", "kid_subsets", settings={**plain, METRIC_SETTINGS: choices}),
        make_record("adm-g", "precision", settings={**plain, METRIC_SETTINGS: {"neighbours": 3}}),
    ]
    row = circumstances(records).loc["adm-g"]
    assert row["settings"] == "preset digits · sampler ddpm · sampling steps 250 · guidance scale 1"
    assert row["choices"] == "KID subsets: kid subsets 100, seed 2020 · Precision: neighbours 3"
    assert settings_by_generator(records) == {"adm-g": row["settings"]}


def test_a_clean_checkout_is_not_called_changed(make_record: RecordMaker) -> None:
    frame = circumstances([make_record(provenance={"commit": "f" * 40, "dirty": False})])
    assert frame.loc["adm", "commit"] == "f" * 12


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a": 1, "b": 2}, [("a", 1), ("b", 2)]),
        ({"a": 1, "b": 1, "c": 2}, [("a, b", 1), ("c", 2)]),
        ({"a": 1, "b": 1, "c": 2, "d": 1}, [("c", 2), ("the others", 1)]),
        ({"a": 1, "b": 1, "c": 1}, [("a, b, c", 1)]),
        ({}, []),
    ],
)
def test_generators_are_grouped_by_value(values: dict[str, int], said: list[tuple[str, int]]) -> None:
    assert by_value(values) == said


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"fid": "fp32", "recall": "fp32"}, "fp32"),
        ({"precision": "fp16", "fid": "fp32", "is": "fp32"}, "fp32; Precision: fp16"),
        ({"fid": "fp32", "sfid": "fp32", "copied": "fp32", "precision": "fp16", "recall": "fp16"},
         "fp32; Precision, Recall: fp16"),
        ({"fid": None, "is": "fp32"}, "fp32"),
        ({"fid": None}, ""),
    ],
)  # fmt: skip
def test_numbers_of_another_arithmetic_are_named(
    make_record: RecordMaker, stated: dict[str, str | None], said: str
) -> None:
    records = [make_record("a", name, precision=precision) for name, precision in stated.items()]
    assert arithmetic_in_words(records) == said
    frame = circumstances(records)
    assert (frame.loc["a", "arithmetic"] if said else "") == said
