from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adm_bench import registry
from reports.quantities import QUANTITIES, in_percent, in_si, quantity_of
from reports.records import Record


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("fid", 1.234, "1.23"),
        ("fid", 312.449, "312.45"),
        ("fid_infinity", -0.004, "-0.00"),
        ("kid", 0.000123, "0.00012"),
        ("kid_subsets", -0.00004, "-0.00004"),
        ("is_shuffled", 30.831, "30.83"),
        ("precision", 0.7415, "0.742"),
        ("f_score", 0.5, "0.500"),
        ("density", 1.0251, "1.025"),
        ("coverage", 0.7266, "0.727"),
        ("copied", 0.0, "0 %"),
        ("copied", 1.0, "100 %"),
        ("copied", 0.034, "3.4 %"),
        ("copied", 0.00001, "0.1 %"),
        ("copied", 0.99999, "99.9 %"),
        ("parameters", 1.153e6, "1.15 M"),
        ("parameters", 0, "0"),
        ("sampling_flops_per_image", 12.34e9, "12.3 G"),
        ("sampling_flops_per_image", 999.9e9, "1.00 T"),
        ("sampling_flops_per_image", 2.5e22, "25000 E"),
        ("sampling_images_per_sec", 0.01234, "0.0123"),
        ("sampling_images_per_sec", 1.5, "1.50"),
        ("sampling_images_per_sec", 312.0, "312"),
        ("sampling_images_per_sec", 51000.0, "51.0 k"),
        ("network_evaluations_per_image", 1000, "1,000"),
        ("network_evaluations_per_image", 12.5, "12.5"),
        ("training_sec", 1212.4, "1,212"),
        ("fid", None, "–"),
        ("fid", float("nan"), "–"),
    ],
)
def test_numbers_are_written(name: str, value: float | None, text: str) -> None:
    assert QUANTITIES[name].text(value) == text


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([1.2, 30.0], 2), ([0.5], 2), ([0.05, 3.0], 3), ([0.0012], 4), ([1e-9, 2.0], 2), ([], 2), ([float("nan")], 2)],
)
def test_small_numbers_of_a_column_keep_two_digits(values: list[float], decimals: int) -> None:
    assert QUANTITIES["fid"].decimals_for(values) == decimals


def test_only_decimal_quantities_widen() -> None:
    assert QUANTITIES["copied"].decimals_for([0.001]) == 1


@given(st.floats(min_value=1e-3, max_value=1e20))
def test_si_keeps_three_digits(value: float) -> None:
    number, _, prefix = in_si(value, 0).partition(" ")
    exponent = 3 * (" kMGTPE".index(prefix) if prefix else 0)
    assert float(number) * 10.0**exponent == pytest.approx(value, rel=0.00501)


@given(st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True))
def test_some_is_neither_none_nor_all(share: float) -> None:
    assert in_percent(share, 1) not in ("0 %", "0.0 %", "100 %", "100.0 %")


def test_names_and_labels_are_unique() -> None:
    assert all(name == quantity.name for name, quantity in QUANTITIES.items())
    assert len({quantity.label for quantity in QUANTITIES.values()}) == len(QUANTITIES)


@pytest.mark.parametrize(("name", "label"), [("lpips", "lpips"), ("FID", "FID (plug-in)")])
def test_a_plug_in_metric_has_defaults(make_record: Callable[..., Record], name: str, label: str) -> None:
    quantity = quantity_of(make_record(quantity=name, higher_is_better=True))
    assert (quantity.label, quantity.room, quantity.arrow, quantity.text(0.5)) == (label, "quality", "↑", "0.500")


def test_a_plug_in_number_without_protocol_is_a_cost(make_record: Callable[..., Record]) -> None:
    quantity = quantity_of(make_record(quantity="joules", protocol=None, unit="J"))
    assert (quantity.room, quantity.arrow, quantity.text(1500)) == ("sampling", "", "1.50 k")
    assert quantity.meaning == "measured by a plug-in, in J"


@pytest.mark.parametrize("name", sorted(registry.rows("metrics")))
def test_every_metric_has_a_row(name: str) -> None:
    metric, quantity = registry.load("metrics", name), QUANTITIES[name]
    assert (quantity.label, quantity.higher_is_better) == (metric.label, metric.higher_is_better)
    assert quantity.room == "quality"


@pytest.mark.parametrize(
    ("name", "features", "label"),
    [
        ("fid", "inception", "FID"),
        ("fid", "clean", "FID"),
        ("fid", "digits", "FID"),
        ("fid", "dinov2", "FD-DINOv2"),
        ("fid", "torchscript", "FD-torchscript"),
        ("fid_infinity", "dinov2", "FD∞-DINOv2"),
        ("sfid", "mine", "sFD-mine"),
        ("kid", "inception", "KID"),
        ("kid", "dinov2", "KD-DINOv2"),
        ("kid_subsets", "dinov2", "KD-DINOv2 subsets"),
        ("is", "mine", "IS-mine"),
        ("is_shuffled", "mine", "IS-mine shuffled"),
        ("precision", "dinov2", "Precision"),
    ],
)
def test_only_inception_s_numbers_have_its_name(
    make_record: Callable[..., Record], name: str, features: str, label: str
) -> None:
    quantity = quantity_of(make_record(quantity=name, features=features))
    assert (quantity.name, quantity.label) == (name, label)
    assert quantity.short_label.replace("\n", "").replace(" ", "") in (
        label.replace(" ", ""),
        QUANTITIES[name].short_label,
    )
    assert ("compares with nothing published" in quantity.meaning) == (features == "digits")
