"""Tables of records: quality, compute, and the circumstances both were measured under.

Quality numbers of different protocols, features or references never meet in one table. Inside a table
no column names a best row unless its rows were measured alike, and a generator that copies training
images is never best.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from reports.circumstances import by_value
from reports.quantities import QUANTITIES, Quantity, Room, of_features, quantity_of
from reports.records import REFERENCE_INPUT, Record

COPIES_ABOVE = 0.5
"""A generator copies when more than this share of its samples repeats a training image."""

_QUALITY_COSTS = ("sampling_images_per_sec", "sampling_flops_per_image")
_ROOMS_OF_COMPUTE: tuple[Room, ...] = ("network", "sampling", "training")


@dataclass(frozen=True, kw_only=True)
class MeasuredUnder:
    """What quality numbers must share to stand in one table. sha256 values are hexadecimal."""

    protocol: str | None
    protocol_version: int | None
    features: str | None
    features_sha256: str | None
    reference_sha256: str | None

    def __str__(self) -> str:
        version = "" if self.protocol_version is None else f" v{self.protocol_version}"
        parts = [f"protocol {self.protocol or 'unknown'}{version}"]
        if self.features is not None:
            parts.append(f"features {self.features}{_sha256_in_brackets(self.features_sha256)}")
        if self.reference_sha256 is not None:
            parts.append(f"reference {self.reference_sha256[:12]}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of numbers with what is needed to read it.

    `frame` has a row a generator, in order of first appearance, and a float64 column a quantity, NaN where
    there is no number. `measured` are the columns that have a record at all, `copying` the generators never
    ranked, `networkless` those left out of the ranking by cost. `unranked` says by column label why its rows
    cannot be ranked, `repeats` which numbers were measured more than once.
    """

    frame: pd.DataFrame
    columns: tuple[Quantity, ...]
    copying: tuple[str, ...] = ()
    networkless: tuple[str, ...] = ()
    measured: tuple[Quantity, ...] = ()
    unranked: Mapping[str, str] = field(default_factory=dict)
    repeats: tuple[str, ...] = ()

    def column(self, name: str) -> Quantity:
        """Return the column of a quantity, by its name in records; ValueError where there is none."""
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            known = ", ".join(column.name for column in self.columns)
            raise ValueError(f"the table has no column of {name!r}; it has those of {known}")
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know below the table, a sentence each; the first explains the dagger."""
        notes = []
        if self.copying:
            notes.append(
                f"† copies training images: more than {100 * COPIES_ABOVE:.0f} % of its samples repeat one, "
                "so it is never counted as best"
            )
        costs = [column for column in self.columns if column.room != "quality" and column.ranked]
        if self.networkless and any(best_in_column(self, column.label) for column in costs):
            notes.append("Best cost: among the generators that run a network")
        notes += [f"{label} is not ranked: {reason}" for label, reason in self.unranked.items()]
        return (*notes, *self.repeats)

    def texts(self, quantity: Quantity) -> dict[str, str]:
        """Write a column's numbers with decimals that suit all its ranked rows, by generator."""
        column = self.frame[quantity.label]
        decimals = quantity.decimals_for(column.drop(list(self.copying)))
        return {str(generator): quantity.text(float(value), decimals) for generator, value in column.items()}


def measured_under(record: Record) -> MeasuredUnder:
    """Return what a quality record may be compared under."""
    return MeasuredUnder(
        protocol=record.protocol,
        protocol_version=record.protocol_version,
        features=record.features,
        features_sha256=record.features_sha256,
        reference_sha256=record.inputs.get(REFERENCE_INPUT),
    )


def comparable_groups(records: Iterable[Record]) -> dict[MeasuredUnder, tuple[Record, ...]]:
    """Split records into groups whose quality may be compared, each with its generators' compute records.

    Numbers of a single class are in none.
    """
    quality: dict[MeasuredUnder, list[Record]] = defaultdict(list)
    compute = []
    for record in records:
        if record.image_class is not None:
            continue
        if quantity_of(record).room == "quality":
            quality[measured_under(record)].append(record)
        else:
            compute.append(record)
    return {
        under: (*members, *_of_generators(compute, {record.generator for record in members}))
        for under, members in quality.items()
    }


def quality_sheets(records: Iterable[Record]) -> dict[MeasuredUnder, Sheet]:
    """Build a quality sheet for each group of comparable records."""
    return {under: quality_sheet(members) for under, members in comparable_groups(records).items()}


def quality_sheet(records: Iterable[Record]) -> Sheet:
    """Build the sheet of quality, images/sec and FLOPs/image; the rows are the generators with a quality.

    Records measured under different protocols, features or references raise ValueError.
    """
    groups = comparable_groups(records)
    if len(groups) > 1:
        found = "; ".join(map(str, groups))
        raise ValueError(
            f"records measured under different protocols cannot share a table ({found}): "
            "build one table for each with quality_sheets"
        )
    under, members = next(iter(groups.items()), (None, ()))
    features = None if under is None else under.features
    measured = {record.quantity for record in members}
    columns = _known_columns(
        of_features(quantity, features)
        for name, quantity in QUANTITIES.items()
        if quantity.room == "quality" and (quantity.usual or name in measured)
    )
    for record in members:
        if quantity_of(record).room == "quality":
            columns.setdefault(record.quantity, quantity_of(record))
    columns |= _known_columns(QUANTITIES[name] for name in _QUALITY_COSTS)
    return _sheet(members, columns)


def compute_sheet(records: Iterable[Record]) -> Sheet:
    """Build the sheet of what the networks, sampling and training cost, whatever the protocol."""
    everything = tuple(records)
    members = [record for record in everything if quantity_of(record).room != "quality"]
    columns: dict[str, Quantity] = {}
    for room in _ROOMS_OF_COMPUTE:
        columns |= _known_columns(quantity for quantity in QUANTITIES.values() if quantity.room == room)
        columns |= _known_columns(map(quantity_of, (r for r in members if quantity_of(r).room == room)))
    return _sheet(members, columns, copying=_copying(everything))


def quality_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return `quality_sheet`'s numbers: generators x (FID, sFID, IS, ..., images/sec, FLOPs/image)."""
    return quality_sheet(records).frame


def compute_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return `compute_sheet`'s numbers: generators x (parameters, forward MACs, ..., training images)."""
    return compute_sheet(records).frame


def best_in_column(sheet: Sheet, label: str) -> tuple[str, ...]:
    """Name the best generator of a column, several at a tie; none if all are level or cannot be ranked.

    A column that the sheet does not have raises ValueError.
    """
    quantity = next((column for column in sheet.columns if column.label == label), None)
    if quantity is None:
        known = ", ".join(column.label for column in sheet.columns)
        raise ValueError(f"the table has no column {label!r}; it has {known}")
    if quantity.higher_is_better is None or not quantity.ranked or label in sheet.unranked:
        return ()
    excluded = set(sheet.copying)
    if quantity.room != "quality":
        excluded |= set(sheet.networkless)
    values = sheet.frame[label].drop(list(excluded)).dropna()
    best = values.max() if quantity.higher_is_better else values.min()
    if len(values) > 1 and (values == best).all():
        return ()
    return tuple(str(generator) for generator in values.index[values == best])


def _sheet(members: Sequence[Record], columns: Mapping[str, Quantity], copying: Sequence[str] = ()) -> Sheet:
    generators = list(dict.fromkeys(record.generator for record in members))
    measured: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in members:
        measured[record.quantity][record.generator].append(record)
    frame = pd.DataFrame(index=pd.Index(generators, name="generator", dtype=object))
    copies = {*copying, *_copying(members)}
    networkless = _networkless(measured, generators)
    unranked, repeats = {}, []
    for name, quantity in columns.items():
        latest = {generator: several[-1] for generator, several in measured[name].items()}
        values = {generator: record.value for generator, record in latest.items()}
        frame[quantity.label] = pd.Series(values, dtype="float64").reindex(frame.index)
        apart = copies if quantity.room == "quality" else copies.union(networkless)
        if reason := _why_not_alike((latest[name] for name in latest if name not in apart), quantity):
            unranked[quantity.label] = reason
        repeats += [
            _repeat_note(generator, quantity, several)
            for generator, several in measured[name].items()
            if len(several) > 1
        ]
    return Sheet(
        frame=frame,
        columns=tuple(columns.values()),
        copying=tuple(generator for generator in generators if generator in copies),
        networkless=networkless,
        measured=tuple(quantity for name, quantity in columns.items() if measured[name]),
        unranked=unranked,
        repeats=tuple(repeats),
    )


def _of_generators(records: Iterable[Record], generators: set[str]) -> list[Record]:
    return [record for record in records if record.generator in generators]


def _known_columns(quantities: Iterable[Quantity]) -> dict[str, Quantity]:
    return {quantity.name: quantity for quantity in quantities}


def _copying(records: Iterable[Record]) -> tuple[str, ...]:
    shares = {record.generator: record.value or 0.0 for record in records if record.quantity == "copied"}
    return tuple(generator for generator, share in shares.items() if share > COPIES_ABOVE)


def _networkless(measured: Mapping[str, Mapping[str, Sequence[Record]]], generators: Sequence[str]) -> tuple[str, ...]:
    costs = [measured.get(name, {}) for name in ("network_evaluations_per_image", "sampling_flops_per_image")]
    return tuple(
        generator
        for generator in generators
        if any(generator in cost and cost[generator][-1].value == 0 for cost in costs)
    )


def _why_not_alike(records: Iterable[Record], quantity: Quantity) -> str | None:
    """Say which circumstance of a column differs between its rows, None where they were measured alike."""
    with_value = [record for record in records if record.value is not None]
    for circumstance in quantity.must_agree:
        values = {record.generator: getattr(record, circumstance) for record in with_value}
        if len(set(values.values())) > 1:
            rows = "; ".join(f"{_said(value)} for {who}" for who, value in by_value(values))
            return f"{_CIRCUMSTANCE_LABELS[circumstance]} differ, {rows}"
    return None


def _repeat_note(generator: str, quantity: Quantity, several: Sequence[Record]) -> str:
    values = [record.value for record in several if record.value is not None]
    decimals = quantity.decimals_for(values)
    span = f" ({quantity.text(min(values), decimals)} to {quantity.text(max(values), decimals)})" if values else ""
    return f"{quantity.label} of {generator} was measured {len(several)} times{span}; the last is shown"


_CIRCUMSTANCE_LABELS = {
    "num_images": "images",
    "num_reference_images": "reference images",
    "device": "devices",
    "world_size": "processes",
}


def _sha256_in_brackets(sha256: str | None) -> str:
    return "" if sha256 is None else f" ({sha256[:12]})"


def _said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "unknown")
