import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from reports.layout import compute_grid
from reports.records import Record
from reports.render import Report, render_csv, render_html, render_markdown
from reports.tables import (
    best_in_column,
    comparable_groups,
    compute_sheet,
    compute_table,
    quality_sheet,
    quality_sheets,
    quality_table,
)

RecordMaker = Callable[..., Record]
Records = tuple[Record, ...]


def test_the_quality_table_holds_the_numbers(demo: Records) -> None:
    table = quality_table(demo)
    assert list(table.index) == ["adm", "adm-g", "adm-g-ddim25", "gaussian", "memorizer", "noise"]
    assert list(table.columns) == [
        "FID", "sFID", "IS", "Precision", "Recall", "Copied", "images/sec", "FLOPs/image"
    ]  # fmt: skip
    assert set(table.dtypes.astype(str)) == {"float64"}
    assert table.loc["adm-g", "FID"] == 1.873
    assert table.loc["noise", "FLOPs/image"] == 0


def test_the_compute_table_holds_the_numbers(demo: Records) -> None:
    table = compute_table(demo)
    assert list(table.columns) == [
        "parameters", "forward MACs", "forward FLOPs", "evaluations/image", "FLOPs/image", "images/sec",
        "training images/sec", "training sec", "training images",
    ]  # fmt: skip
    assert table.loc["adm", "forward MACs"] == 104.5e6
    assert math.isnan(table.loc["noise", "training sec"])


def test_rows_stand_in_order_of_appearance(demo: Records) -> None:
    backwards = tuple(reversed(demo))
    assert list(quality_table(backwards).index) == list(reversed(quality_table(demo).index))


@pytest.mark.parametrize(
    ("label", "best"),
    [
        ("FID", ("adm-g",)),
        ("sFID", ("adm-g",)),
        ("IS", ("adm-g",)),
        ("Precision", ("adm-g",)),
        ("Recall", ("adm",)),
        ("Copied", ()),
        ("images/sec", ("adm-g-ddim25",)),
        ("FLOPs/image", ("adm-g-ddim25",)),
    ],
)
def test_the_best_neither_copies_nor_goes_without_a_network(demo: Records, label: str, best: tuple[str, ...]) -> None:
    assert best_in_column(quality_sheet(demo), label) == best


def test_without_the_copies_the_memorizer_would_win(demo: Records) -> None:
    honest = [record for record in demo if record.quantity != "copied"]
    assert best_in_column(quality_sheet(honest), "FID") == ("memorizer",)


@pytest.mark.parametrize(("share", "best"), [(0.5, ("copier",)), (0.51, ("adm",)), (None, ("copier",))])
def test_copying_begins_above_one_half(make_record: RecordMaker, share: float | None, best: tuple[str, ...]) -> None:
    records = [make_record("adm", value=2.0), make_record("copier", value=1.0), make_record("copier", "copied", share)]
    sheet = quality_sheet(records)
    assert best_in_column(sheet, "FID") == best
    assert any("copies training images" in note for note in sheet.notes) == (best == ("adm",))


@pytest.mark.parametrize(
    ("values", "best"),
    [([1.0, 2.0, 1.0], ("0", "2")), ([1.0, 1.0], ()), ([1.0], ("0",)), ([None, 3.0], ("1",)), ([None], ())],
)
def test_ties_and_gaps(make_record: RecordMaker, values: list[float | None], best: tuple[str, ...]) -> None:
    sheet = quality_sheet([make_record(str(index), value=value) for index, value in enumerate(values)])
    assert best_in_column(sheet, "FID") == best


def test_an_unknown_column_is_refused(demo: Records) -> None:
    with pytest.raises(ValueError, match="no column 'fid'; it has FID, sFID"):
        best_in_column(quality_sheet(demo), "fid")


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "adm"},
        {"protocol_version": 2},
        {"features": "inception"},
        {"features_sha256": "0" * 64},
        {"inputs": {"reference": "0" * 64}},
    ],
)
def test_what_was_measured_differently_never_shares_a_table(
    make_record: RecordMaker, change: dict[str, object]
) -> None:
    speed = make_record("adm", "sampling_images_per_sec", 3.0)
    records = [make_record("adm", value=1.0), make_record("adm", value=9.0, **change), speed]
    with pytest.raises(ValueError, match="different protocols cannot share a table"):
        quality_table(records)
    sheets = list(quality_sheets(records).values())
    assert [sheet.frame.loc["adm", "FID"] for sheet in sheets] == [1.0, 9.0]
    assert [sheet.frame.loc["adm", "images/sec"] for sheet in sheets] == [3.0, 3.0]


def test_groups_lose_no_quality_record_and_repeat_none(demo: Records) -> None:
    mixed = (*demo, *(replace(record, protocol="adm") for record in demo if record.protocol))
    groups = comparable_groups(mixed)
    assert len(groups) == 2
    quality = [record for members in groups.values() for record in members if record.protocol]
    assert sorted(map(id, quality)) == sorted(id(record) for record in mixed if record.protocol)


@pytest.mark.parametrize(
    ("quantity", "label", "change", "reason"),
    [
        ("fid", "FID", {"num_images": 500}, "images differ, 1,797 for a; 500 for b"),
        ("recall", "Recall", {"num_reference_images": 10}, "reference images differ, 1,797 for a; 10 for b"),
        ("sampling_images_per_sec", "images/sec", {"device": "cuda"}, "devices differ, cpu for a; cuda for b"),
        ("sampling_images_per_sec", "images/sec", {"world_size": 8}, "processes differ, 1 for a; 8 for b"),
    ],
)
def test_a_column_measured_unequally_is_not_ranked(
    make_record: RecordMaker, quantity: str, label: str, change: dict[str, object], reason: str
) -> None:
    records = [make_record("a", "is", 5.0), make_record("b", "is", 6.0)]
    records += [make_record("a", quantity, 1.0), make_record("b", quantity, 2.0, **change)]
    sheet = quality_sheet(records)
    assert best_in_column(sheet, label) == ()
    assert f"{label} is not ranked: {reason}" in sheet.notes
    assert best_in_column(sheet, "IS") == ("b",)


def test_rows_that_are_never_ranked_may_differ(make_record: RecordMaker) -> None:
    records = [make_record("a"), make_record("b", value=2.0), make_record("c", value=0.0, num_images=3)]
    assert best_in_column(quality_sheet(records), "FID") == ()
    assert best_in_column(quality_sheet([*records, make_record("c", "copied", 1.0)]), "FID") == ("a",)


def test_the_last_of_several_is_shown_and_said(make_record: RecordMaker) -> None:
    sheet = quality_sheet([make_record(value=value) for value in (1.0, 3.0, 2.0)])
    assert sheet.frame.loc["adm", "FID"] == 2.0
    assert sheet.notes == ("FID of adm was measured 3 times (1.00 to 3.00); the last is shown",)


def test_plug_in_metrics_have_columns(make_record: RecordMaker) -> None:
    records = [make_record(name, "lpips", value, higher_is_better=True) for name, value in (("a", 1.0), ("b", 2.0))]
    sheet = quality_sheet(records)
    assert list(sheet.frame.columns)[5:7] == ["Copied", "lpips"]
    assert best_in_column(sheet, "lpips") == ("b",)
    joules = [make_record(name, "joules", value, protocol=None) for name, value in (("a", 1.0), ("b", 2.0))]
    assert best_in_column(compute_sheet(joules), "joules") == ()


def test_unusual_metrics_have_columns_only_where_measured(make_record: RecordMaker) -> None:
    plain, more = [make_record()], [make_record(), make_record(quantity="coverage"), make_record(quantity="kid")]
    assert list(quality_sheet(plain).frame.columns)[:6] == ["FID", "sFID", "IS", "Precision", "Recall", "Copied"]
    columns = list(quality_sheet(more).frame.columns)[:8]
    assert columns == ["FID", "sFID", "KID", "IS", "Precision", "Recall", "Coverage", "Copied"]


def test_a_copier_is_not_crowned_for_its_cost_either(make_record: RecordMaker) -> None:
    speeds = [make_record(name, "sampling_images_per_sec", value) for name, value in (("a", 1.0), ("b", 2.0))]
    assert best_in_column(compute_sheet(speeds), "images/sec") == ("b",)
    assert best_in_column(compute_sheet([*speeds, make_record("b", "copied", 1.0)]), "images/sec") == ("a",)


def test_nothing_measured_gives_empty_tables() -> None:
    assert quality_table([]).shape == (0, 8)
    assert compute_table([]).shape == (0, 9)


def test_numbers_of_one_class_are_in_no_table(demo: Records, make_record: RecordMaker) -> None:
    classes = tuple(
        make_record("adm", name, 900.0 + label, image_class=label, settings={"rank_deficient": True})
        for label in range(3)
        for name in ("fid", "kid")
    )
    everything = (*classes, *demo)
    assert comparable_groups(everything) == comparable_groups(demo)
    assert comparable_groups(classes) == {}
    assert compute_grid(everything) == compute_grid(demo)
    report, with_classes = (Report(title="t", records=records) for records in (demo, everything))
    for render in (render_markdown, render_csv):
        assert render(with_classes) == render(report)
    counted = render_html(with_classes).replace(f"from {len(everything)} records", f"from {len(demo)} records")
    assert counted == render_html(report)
