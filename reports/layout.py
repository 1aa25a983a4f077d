"""What every renderer shows, in its order: sections of comparable quality, compute, circumstances, legend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reports.circumstances import (
    SEPARATOR,
    Circumstances,
    circumstances,
    generators_own,
    settings_texts,
    shared_and_varying,
)
from reports.quantities import Quantity, quantity_of
from reports.records import Record
from reports.summary import headline
from reports.tables import (
    MeasuredUnder,
    Sheet,
    best_in_column,
    comparable_groups,
    compute_sheet,
    quality_sheet,
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as text, and whether it is the best of its column."""

    text: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A generator's cells, whether it copies training images, and its settings in words."""

    generator: str
    copies: bool
    settings: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The rows of a sheet as text, under those of its columns that were measured at all."""

    columns: tuple[Quantity, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def has_best(self, column: int) -> bool:
        """Whether a cell of the column is marked as its best."""
        return any(row.cells[column].best for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is shown of the quality records that may be compared."""

    under: MeasuredUnder
    sentences: tuple[str, ...]
    quality: Grid
    measured: Circumstances
    records: tuple[Record, ...]


def sections(records: Iterable[Record]) -> tuple[Section, ...]:
    """Lay out the quality records, a section for each group that may be compared."""
    return tuple(_section(under, members) for under, members in comparable_groups(records).items())


def compute_grid(records: Iterable[Record]) -> Grid:
    """Lay out what networks, sampling and training cost; without rows where nothing was measured."""
    everything = tuple(records)
    return _grid(compute_sheet(everything), everything)


def circumstances_by_part(records: Iterable[Record]) -> list[tuple[str, Circumstances]]:
    """Return each section's circumstances under its title, then those of compute that are not stated yet."""
    everything = tuple(records)
    parts = [(f"Quality: {section.under}", section.measured) for section in sections(everything)]
    cost = [record for record in everything if quantity_of(record).room != "quality"]
    if not cost:
        return parts
    stated = [measured for _, measured in parts]
    compute = shared_and_varying(circumstances(cost))
    news = Circumstances(
        shared={
            name: text
            for name, text in compute.shared.items()
            if not stated or any(known.shared.get(name) != text for known in stated)
        },
        varying=compute.varying.loc[
            :,
            [
                not any(name in known.varying and known.varying[name].equals(column) for known in stated)
                for name, column in compute.varying.items()
            ],
        ],
    )
    return [*parts, ("Compute, where it differs" if stated else "Compute", news)]


def legend(grids: Iterable[Grid]) -> list[Quantity]:
    """Return the quantities of all columns, each once under each of its names and meanings."""
    return list({(column.label, column.meaning): column for grid in grids for column in grid.columns}.values())


def settings_by_generator(records: Iterable[Record]) -> dict[str, str]:
    """Return each generator's settings in words, those of its quality records if it has any."""
    settings: dict[str, str] = {}
    of_all = (record for record in records if record.image_class is None)
    for record in sorted(of_all, key=lambda record: quantity_of(record).room != "quality"):
        settings.setdefault(record.generator, SEPARATOR.join(settings_texts(generators_own(record.settings))))
    return settings


def _section(under: MeasuredUnder, members: Sequence[Record]) -> Section:
    quality = [record for record in members if quantity_of(record).room == "quality"]
    return Section(
        under=under,
        sentences=headline(members),
        quality=_grid(quality_sheet(members), members),
        measured=shared_and_varying(circumstances(quality)),
        records=tuple(members),
    )


def _grid(sheet: Sheet, records: Iterable[Record]) -> Grid:
    columns = sheet.measured
    texts = {column.name: sheet.texts(column) for column in columns}
    best = {column.name: best_in_column(sheet, column.label) for column in columns}
    settings = settings_by_generator(records)
    rows = tuple(
        Row(
            generator=generator,
            copies=generator in sheet.copying,
            settings=settings.get(generator, ""),
            cells=tuple(
                Cell(text=texts[column.name][generator], best=generator in best[column.name]) for column in columns
            ),
        )
        for generator in map(str, sheet.frame.index)
    )
    return Grid(columns=columns, rows=rows, notes=sheet.notes)
