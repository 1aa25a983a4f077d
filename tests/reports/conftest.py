"""A maker of records, and the records of a made-up run whose winners are known."""

from collections.abc import Callable
from typing import Any

import pytest

from reports.quantities import QUANTITIES
from reports.records import Record

RecordMaker = Callable[..., Record]

DEMO: dict[str, dict[str, float]] = {
    "adm": {
        "fid": 2.614, "sfid": 3.902, "is": 9.41, "precision": 0.741, "recall": 0.662, "copied": 0.0011,
        "parameters": 1.153e6, "forward_macs_per_image": 104.5e6, "forward_flops_per_image": 209e6,
        "network_evaluations_per_image": 250, "sampling_flops_per_image": 52.2e9,
        "sampling_images_per_sec": 1.84, "training_images_per_sec": 312.0, "training_sec": 1212.0,
    },
    "adm-g": {
        "fid": 1.873, "sfid": 3.554, "is": 9.782, "precision": 0.843, "recall": 0.601, "copied": 0.0028,
        "parameters": 1.42e6, "forward_macs_per_image": 104.5e6, "forward_flops_per_image": 209e6,
        "network_evaluations_per_image": 250, "sampling_flops_per_image": 91.4e9,
        "sampling_images_per_sec": 1.12, "training_images_per_sec": 290.0, "training_sec": 1300.0,
    },
    "adm-g-ddim25": {
        "fid": 2.214, "sfid": 4.12, "is": 9.7, "precision": 0.822, "recall": 0.583, "copied": 0.0022,
        "parameters": 1.42e6, "forward_macs_per_image": 104.5e6, "forward_flops_per_image": 209e6,
        "network_evaluations_per_image": 25, "sampling_flops_per_image": 9.14e9,
        "sampling_images_per_sec": 11.3, "training_images_per_sec": 290.0, "training_sec": 1300.0,
    },
    "gaussian": {
        "fid": 24.1, "sfid": 31.22, "is": 7.44, "precision": 0.402, "recall": 0.512, "copied": 0.0,
        "network_evaluations_per_image": 0, "sampling_flops_per_image": 0, "sampling_images_per_sec": 14300.0,
    },
    "memorizer": {
        "fid": 0.071, "sfid": 0.16, "is": 9.83, "precision": 1.0, "recall": 0.981, "copied": 1.0,
        "network_evaluations_per_image": 0, "sampling_flops_per_image": 0, "sampling_images_per_sec": 88123.0,
    },
    "noise": {
        "fid": 312.45, "sfid": 402.2, "is": 1.21, "precision": 0.0, "recall": 0.0, "copied": 0.0,
        "network_evaluations_per_image": 0, "sampling_flops_per_image": 0, "sampling_images_per_sec": 51000.0,
    },
}  # fmt: skip

SETTINGS: dict[str, dict[str, object]] = {
    "adm": {"preset": "digits", "sampler": "ddpm", "sampling_steps": 250, "guidance_scale": None},
    "adm-g": {"preset": "digits", "sampler": "ddpm", "sampling_steps": 250, "guidance_scale": 1.0},
    "adm-g-ddim25": {"preset": "digits", "sampler": "ddim", "sampling_steps": 25, "guidance_scale": 1.0},
}


def _make_record(generator: str = "adm", quantity: str = "fid", value: float | None = 1.5, **changes: Any) -> Record:
    is_quality = quantity not in QUANTITIES or QUANTITIES[quantity].room == "quality"
    fields: dict[str, Any] = {
        "run": "demo",
        "generator": generator,
        "quantity": quantity,
        "value": value,
        "unit": "",
        "higher_is_better": None,
        "protocol": "digits" if is_quality else None,
        "protocol_version": 1 if is_quality else None,
        "features": "digits" if is_quality else None,
        "features_sha256": "3fa9c1d2" * 8 if is_quality else None,
        "num_images": 1797 if is_quality else 64,
        "num_reference_images": 1797 if is_quality else None,
        "seed": 0,
        "precision": "fp32",
        "device": "cpu",
        "settings": SETTINGS.get(generator, {}),
        "inputs": {"reference": "ab12cd34" * 8} if is_quality else {},
        "provenance": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": True,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "created": "2026-11-21T08:50:11+00:00",
            "machine": "x86_64 Linux, 2 cores",
        },
    }
    return Record(**(fields | changes))


@pytest.fixture(name="make_record")
def fixture_make_record() -> RecordMaker:
    return _make_record


@pytest.fixture
def demo() -> tuple[Record, ...]:
    return tuple(
        _make_record(generator, quantity, value)
        for generator, values in DEMO.items()
        for quantity, value in values.items()
    )
