"""What the numbers of a table were measured with: a row a generator, then what all rows share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from reports.quantities import quantity_of
from reports.records import METRIC_SETTINGS, Record

SEPARATOR = " · "
SHA256_SHOWN = 12

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """`shared` holds by name what every row says, `varying` the other columns, a row a generator."""

    shared: Mapping[str, str]
    varying: pd.DataFrame


def circumstances(records: Iterable[Record]) -> pd.DataFrame:
    """Lay out the circumstances of records as text: a row a generator, a column a circumstance.

    A cell lists every value that the generator's records state, and is empty where they state none.
    """
    rows: dict[str, dict[str, dict[str, None]]] = {}
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(record.generator, []).append(record)
    for generator, several in members.items():
        row = rows.setdefault(generator, {})
        for name, text in (each for record in several for each in _stated(record)):
            row.setdefault(name, {})[text] = None  # a set that keeps its order
        if "arithmetic" in row:
            row["arithmetic"] = {arithmetic_in_words(several): None}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return pd.DataFrame(
        [[SEPARATOR.join(row.get(name, ())) for name in names] for row in rows.values()],
        index=pd.Index(list(rows), name="generator", dtype=object),
        columns=pd.Index(names, dtype=object),
        dtype=object,
    )


def shared_and_varying(frame: pd.DataFrame) -> Circumstances:
    """Split what `circumstances` returns into what all rows share and what tells them apart."""
    shared = {str(name): str(frame[name].iloc[0]) for name in frame if frame[name].nunique() == 1}
    return Circumstances(shared=shared, varying=frame.drop(columns=list(shared)))


def arithmetic_in_words(records: Iterable[Record]) -> str:
    """Say in which arithmetic a generator's numbers came about: `fp32`, or `fp32; Precision, Recall: fp16`.

    What most numbers have in common comes first, without their names; nothing where none states any.
    """
    labels: dict[str, dict[str, None]] = {}
    for record in records:
        if record.precision is not None:
            labels.setdefault(record.precision, {})[quantity_of(record).label] = None
    first, *others = sorted(labels, key=lambda name: -len(labels[name])) or [""]
    return "; ".join([first, *(f"{', '.join(labels[name])}: {name}" for name in others)])


def by_value(values: Mapping[str, Value]) -> list[tuple[str, Value]]:
    """Group generators by value: (names, value); the largest group, from three on, is `the others`."""
    groups: dict[Value, list[str]] = {}
    for generator, value in values.items():
        groups.setdefault(value, []).append(generator)
    said = [(", ".join(names), value) for value, names in groups.items()]
    largest = max(groups, key=lambda value: len(groups[value]), default=None)
    if len(groups) > 1 and largest is not None and len(groups[largest]) > 2:
        said = [(who, value) for who, value in said if value != largest]
        said.append(("the others", largest))
    return said


def settings_texts(settings: Mapping[str, object]) -> list[str]:
    """Write settings in their own order, `sampling steps 25`, without those that are None."""
    return [
        f"{name.replace('_', ' ')} {value if name == 'seed' else _in_words(value)}"
        for name, value in settings.items()
        if value is not None
    ]


def generators_own(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings without what the protocol chose for the metric."""
    return {name: value for name, value in settings.items() if name != METRIC_SETTINGS}


def _stated(record: Record) -> Iterator[tuple[str, str]]:
    for text in settings_texts(generators_own(record.settings)):
        yield "settings", text
    choices = record.settings.get(METRIC_SETTINGS)
    if isinstance(choices, Mapping):
        yield "choices", f"{quantity_of(record).label}: {', '.join(settings_texts(choices))}"
    if record.protocol is not None:
        version = "" if record.protocol_version is None else f" v{record.protocol_version}"
        yield "protocol", f"{record.protocol}{version}"
    if record.features is not None:
        sha256 = "" if record.features_sha256 is None else f" (sha256 {record.features_sha256[:SHA256_SHOWN]})"
        yield "features", f"{record.features}{sha256}"
    plain = {
        "images": record.num_images,
        "reference images": record.num_reference_images,
        "seed": record.seed,
        "arithmetic": record.precision,
        "device": record.device,
        "processes": record.world_size,
    }
    for name, value in plain.items():
        if value is not None:
            yield name, str(value) if name == "seed" else _in_words(value)
    for name, sha256 in record.inputs.items():
        yield f"{name} sha256", sha256[:SHA256_SHOWN]
    yield from _provenance(record.provenance)


def _provenance(provenance: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in provenance.items():
        if value is None or name == "dirty":
            continue
        if name == "commit":
            dirty = " with uncommitted changes" if provenance.get("dirty") else ""
            yield "commit", f"{str(value)[:SHA256_SHOWN]}{dirty}"
        elif name == "created":
            yield "measured on", str(value)[:10]  # the day of an ISO 8601 time
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield name, f"{key} {_in_words(item)}"
        else:
            yield name.replace("_", " "), _in_words(value)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_in_words(item) for item in value)
    return str(value)
