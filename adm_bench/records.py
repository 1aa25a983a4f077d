"""Numbers become records here: each with its run, its protocol and everything it was measured with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adm_bench.evaluation import Evaluation
from adm_bench.files import write_text
from adm_bench.images.dataset import ImageSet
from adm_bench.provenance import provenance
from adm_bench.references import Reference
from generators.configuration import to_mapping
from metrics.protocol import Metric
from reports.records import METRIC_SETTINGS, Record, to_json_line

UNITS = {"sampling_images_per_sec": "images/sec", "training_images_per_sec": "images/sec", "training_sec": "sec"}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What all numbers of one row of a run share."""

    run: str
    generator: str
    device: str | None = None
    precision: str | None = "fp32"
    """Arithmetic of the networks that were timed or counted; metrics have their protocol's."""
    seed: int | None = None
    num_images: int | None = None
    world_size: int = 1
    settings: Mapping[str, object] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


def skipped_images(samples: ImageSet, reference: Reference) -> dict[str, Any]:
    """How many unreadable images either side was measured without, and those of the reference by name, as settings.

    Nothing where there are none; a sample's preparation names its own.
    """
    theirs = {} if reference.images is None else reference.images.preparation.get("skipped", {})
    counts = {"samples": len(samples.preparation.get("skipped", {})), "reference": len(theirs)}
    named = {"reference_skipped": theirs} if theirs else {}
    return {"num_skipped": counts, **named} if any(counts.values()) else {}


def measured(values: Mapping[str, float], circumstances: Circumstances) -> list[Record]:
    """Records of plain quantities, which no protocol or feature network is behind."""
    return [_record(quantity, value, circumstances) for quantity, value in values.items()]


def evaluated(evaluation: Evaluation, metrics: Sequence[Metric], circumstances: Circumstances) -> list[Record]:
    """Records of an evaluation's metrics."""
    records = [
        _record(
            metric.name,
            evaluation.values[metric.name],
            circumstances,
            higher_is_better=metric.higher_is_better,
            evaluation=evaluation,
        )
        for metric in metrics
    ]
    return [
        replace(record, num_reference_images=evaluation.num_reference_rows) if "pool_rows" in metric.needs else record
        for record, metric in zip(records, metrics, strict=True)
    ]


def evaluated_by_class(evaluation: Evaluation, circumstances: Circumstances) -> list[Record]:
    """Records of an evaluation's classes: FID and KID of each, with the images behind them."""
    return [
        replace(
            _record(quantity, value, circumstances, higher_is_better=False, evaluation=evaluation),
            image_class=each.label,
            num_images=each.num_samples,
            num_reference_images=each.num_reference_images,
            settings={**circumstances.settings, "rank_deficient": each.rank_deficient},
            interval={},
        )
        for each in evaluation.classes
        for quantity, value in (("fid", each.fid), ("kid", each.kid))
    ]


def _record(
    quantity: str,
    value: float,
    circumstances: Circumstances,
    *,
    higher_is_better: bool | None = None,
    evaluation: Evaluation | None = None,
) -> Record:
    return Record(
        run=circumstances.run,
        generator=circumstances.generator,
        quantity=quantity,
        value=float(value),
        unit=UNITS.get(quantity, ""),
        higher_is_better=higher_is_better,
        protocol=evaluation.protocol.name if evaluation else None,
        protocol_version=evaluation.protocol.version if evaluation else None,
        features=evaluation.features if evaluation else None,
        features_sha256=evaluation.features_sha256 if evaluation else None,
        num_images=evaluation.num_images if evaluation else circumstances.num_images,
        num_reference_images=evaluation.num_reference_images if evaluation else None,
        seed=circumstances.seed,
        precision=evaluation.protocol.arithmetic_of(quantity) if evaluation else circumstances.precision,
        device=circumstances.device,
        world_size=circumstances.world_size,
        settings={**circumstances.settings, **_of_metric(quantity, evaluation)},
        inputs=dict(circumstances.inputs),
        provenance=provenance(),
        interval=to_mapping(evaluation.intervals[quantity]) if evaluation and quantity in evaluation.intervals else {},
    )


def _of_metric(quantity: str, evaluation: Evaluation | None) -> dict[str, Any]:
    """The protocol's choices behind a metric, under one name."""
    if evaluation is None:
        return {}
    choices = evaluation.protocol.settings_of(quantity)
    return {METRIC_SETTINGS: choices} if choices else {}


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(f"{to_json_line(record)}\n" for record in records))
