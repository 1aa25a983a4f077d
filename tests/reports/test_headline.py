from collections.abc import Callable

import pytest

from reports.records import Record
from reports.summary import headline

RecordMaker = Callable[..., Record]


def _with_costs(make_record: RecordMaker, rows: dict[str, tuple[float, float]]) -> list[Record]:
    return [
        record
        for name, (fid, evaluations) in rows.items()
        for record in (
            make_record(name, "fid", fid),
            make_record(name, "network_evaluations_per_image", evaluations),
        )
    ]


def test_the_demo_is_told(demo: tuple[Record, ...]) -> None:
    assert headline(demo) == (
        "adm-g has the best FID of the generators that do not copy: 1.87, at 250 network evaluations an image.",
        "adm-g-ddim25 reaches 2.21 at a tenth of the compute.",
        "Without a network, gaussian reaches 24.10.",
        "adm-g also leads on sFID (3.55), IS (9.78) and Precision (0.843); adm leads on Recall (0.662).",
        "memorizer is not ranked: 100 % of its samples repeat training images.",
    )


@pytest.mark.parametrize(
    ("rows", "sentences"),
    [
        ({"a": (1.0, 1.0)}, ["a has the best FID: 1.00, at 1 network evaluation an image."]),
        (
            {"a": (1.0, 100), "b": (1.5, 50), "c": (1.9, 10)},
            [
                "a has the best FID: 1.00, at 100 network evaluations an image.",
                "b reaches 1.50 at half of the network evaluations.",
            ],
        ),
        (
            {"a": (1.0, 100), "b": (1.5, 51), "c": (2.1, 10)},
            ["a has the best FID: 1.00, at 100 network evaluations an image."],
        ),
        (
            {"a": (1.0, 100), "b": (1.9, 14)},
            [
                "a has the best FID: 1.00, at 100 network evaluations an image.",
                "b reaches 1.90 at 14 % of the network evaluations.",
            ],
        ),
        ({"a": (1.0, 0), "b": (2.0, 9)}, ["a has the best FID: 1.00, without a network."]),
        (
            {"a": (1.0, 7), "b": (1.0, 7), "c": (2.0, 7)},
            ["a and b have the best FID: 1.00, at 7 network evaluations an image."],
        ),
    ],
)
def test_best_and_cheaper(make_record: RecordMaker, rows: dict[str, tuple[float, float]], sentences: list[str]) -> None:
    assert list(headline(_with_costs(make_record, rows))) == sentences


def test_no_cost_no_claim_about_it(make_record: RecordMaker) -> None:
    assert headline([make_record("a", value=1.0), make_record("b", value=2.0)]) == ("a has the best FID: 1.00.",)


def test_nothing_is_claimed_of_numbers_measured_unequally(make_record: RecordMaker) -> None:
    assert headline([make_record("a", value=1.0), make_record("b", value=2.0, num_images=9)]) == ()
    assert headline([]) == ()
