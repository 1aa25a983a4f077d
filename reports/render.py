"""A report as Markdown, as CSV, as one self-contained HTML page and for the terminal."""

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reports.circumstances import SEPARATOR, Circumstances, circumstances, settings_texts, shared_and_varying
from reports.figures import quality_cost_plot
from reports.quantities import QUANTITIES, Quantity, quantity_of
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

_PAGE = Path(__file__).with_name("page.html.j2")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CSV_CIRCUMSTANCES = {
    "protocol": "protocol",
    "protocol_version": "protocol_version",
    "features": "features",
    "features_sha256": "features_sha256",
    "num_images": "num_images",
    "num_reference_images": "num_reference_images",
    "seed": "seed",
    "arithmetic": "precision",  # beside a column Precision, the word would mislead
    "device": "device",
    "world_size": "world_size",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the renderers render: a title, the records, and PNG files of samples by generator.

    A grid that is no PNG raises ValueError.
    """

    title: str
    subtitle: str | None = None
    records: tuple[Record, ...]
    grids: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, png in self.grids.items():
            if not png.startswith(_PNG_SIGNATURE):
                raise ValueError(f"the grid of {name!r} starts with {png[:8]!r}, expected the bytes of a PNG")


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
    """The rows of a sheet as text, under those of its columns that have a number at all."""

    columns: tuple[Quantity, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is shown of the quality records that may be compared."""

    under: MeasuredUnder
    sentences: tuple[str, ...]
    quality: Grid
    measured: Circumstances
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture of a generator's samples as a data URI, and what to know beside it."""

    generator: str
    uri: str
    fids: tuple[str, ...]
    copies: bool
    settings: str


def render_markdown(report: Report) -> str:
    """Render headlines, tables, circumstances and the meaning of the columns as GitHub Markdown."""
    sections, compute = _sections(report), _compute(report)
    lines = [f"# {_escaped(report.title)}", *([_escaped(report.subtitle)] if report.subtitle else [])]
    for section in sections:
        lines.append(f"## Quality: {_escaped(str(section.under))}")
        lines.append("\n".join(f"- {_escaped(sentence)}" for sentence in section.sentences))
        lines += _markdown_grid(section.quality)
    if compute.rows:
        lines += ["## Compute", *_markdown_grid(compute)]
    lines.append("## How these numbers were measured")
    for title, measured in _measured(report, sections):
        lines += [f"**{_escaped(title)}**", _markdown_circumstances(measured)]
    lines.append("## What the columns mean")
    lines.append(
        "\n".join(
            f"- **{_escaped(quantity.label)}** {quantity.arrow}{' ' if quantity.arrow else ''}"
            f"{_escaped(quantity.meaning)}"
            for quantity in _legend(sections, compute)
        )
    )
    return "\n\n".join(line for line in lines if line) + "\n"


def render_csv(report: Report) -> str:
    """Render a row for each generator and protocol: circumstances, quality, compute; empty where unknown."""
    groups = comparable_groups(report.records)
    compute = compute_sheet(report.records).frame
    without_quality = compute.index.difference(
        [record.generator for members in groups.values() for record in members], sort=False
    )
    parts = []
    for members in groups.values():
        sheet = quality_sheet(members)
        known = _csv_circumstances(members, sheet.frame.index)
        copies = pd.Series(
            sheet.frame.index.isin(sheet.copying), sheet.frame.index, name="copies_training_images"
        )
        costs = compute.drop(columns=[label for label in compute if label in sheet.frame])
        parts.append(known.join(copies).join(sheet.frame).join(costs))
    if len(without_quality) or not parts:
        rest = [record for record in report.records if record.generator in without_quality]
        parts.append(_csv_circumstances(rest, without_quality).join(compute))
    # concatenated as text, so that neither integers nor empty cells change
    return pd.concat([part.astype(object) for part in parts]).to_csv(lineterminator="\n")


def render_html(report: Report) -> str:
    """Render one page that fetches nothing: styles, plots and pictures are inside it."""
    sections, compute = _sections(report), _compute(report)
    return _page().render(
        report=report,
        sections=[(section, Markup(quality_cost_plot(section.records) or "")) for section in sections],  # noqa: S704 - ours, escaped by matplotlib
        compute=compute,
        samples=_samples(report, sections),
        measured=_measured(report, sections),
        legend=_legend(sections, compute),
    )


def render_rich(report: Report, width: int = 80) -> RenderableType:
    """Return what rich prints in a terminal of `width` columns: headlines, tables and circumstances."""
    sections, compute = _sections(report), _compute(report)
    parts: list[RenderableType] = [Text(report.title, style="bold")]
    if report.subtitle:
        parts.append(Text(report.subtitle, style="dim"))
    for section in sections:
        parts.append(Text(f"\nQuality: {section.under}", style="bold"))
        parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in section.sentences]
        parts += ["", *_rich_grid(section.quality)]
    if compute.rows:
        parts += [Text("\nCompute\n", style="bold"), *_rich_grid(compute)]
    parts.append(Text("\nHow these numbers were measured", style="bold"))
    for title, measured in _measured(report, sections):
        parts.append(_rich_circumstances(title, measured))
    return Constrain(Group(*parts), width)


RENDERERS: dict[str, Callable[[Report], RenderableType]] = {
    "csv": render_csv,
    "html": render_html,
    "md": render_markdown,
    "rich": render_rich,
}
"""By file suffix, and `rich` for the terminal; all but that one return text."""


def _sections(report: Report) -> list[Section]:
    sections = []
    for under, members in comparable_groups(report.records).items():
        quality = [record for record in members if quantity_of(record).room == "quality"]
        sections.append(
            Section(
                under=under,
                sentences=headline(members),
                quality=_grid(quality_sheet(members), members),
                measured=shared_and_varying(circumstances(quality)),
                records=members,
            )
        )
    return sections


def _compute(report: Report) -> Grid:
    return _grid(compute_sheet(report.records), report.records)


def _grid(sheet: Sheet, records: Iterable[Record]) -> Grid:
    columns = tuple(column for column in sheet.columns if sheet.frame[column.label].notna().any())
    texts = {column.name: sheet.texts(column) for column in columns}
    best = {column.name: best_in_column(sheet, column.label) for column in columns}
    settings = _settings(records)
    rows = tuple(
        Row(
            generator=generator,
            copies=generator in sheet.copying,
            settings=settings.get(generator, ""),
            cells=tuple(
                Cell(text=texts[column.name][generator], best=generator in best[column.name])
                for column in columns
            ),
        )
        for generator in map(str, sheet.frame.index)
    )
    return Grid(columns=columns, rows=rows, notes=sheet.notes)


def _settings(records: Iterable[Record]) -> dict[str, str]:
    """Return each generator's settings in words, those of its quality records if it has any."""
    by_room = sorted(records, key=lambda record: quantity_of(record).room != "quality")
    settings: dict[str, str] = {}
    for record in by_room:
        settings.setdefault(record.generator, SEPARATOR.join(settings_texts(record.settings)))
    return settings


def _measured(report: Report, sections: Iterable[Section]) -> list[tuple[str, Circumstances]]:
    """Return the circumstances of each section, then those of compute that no section states."""
    measured = [(f"Quality: {section.under}", section.measured) for section in sections]
    cost = [record for record in report.records if quantity_of(record).room != "quality"]
    if cost:
        compute = shared_and_varying(circumstances(cost))
        said = [shared.shared for _, shared in measured]
        news = {
            name: text
            for name, text in compute.shared.items()
            if not said or any(known.get(name) != text for known in said)
        }
        measured.append(("Compute", Circumstances(shared=news, varying=compute.varying)))
    return measured


def _legend(sections: Iterable[Section], compute: Grid) -> list[Quantity]:
    grids = [*(section.quality for section in sections), compute]
    return list({column.name: column for grid in grids for column in grid.columns}.values())


def _samples(report: Report, sections: Iterable[Section]) -> list[Sample]:
    shown = list(sections)
    fid, settings = QUANTITIES["fid"], _settings(report.records)
    samples = []
    for generator, png in report.grids.items():
        fids, copies = [], False
        for section in shown:
            for row in section.quality.rows:
                if row.generator == generator and fid in section.quality.columns:
                    text = row.cells[section.quality.columns.index(fid)].text
                    fids.append(f"FID {text}" if len(shown) == 1 else f"FID {text} ({section.under})")
                    copies |= row.copies
        uri = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
        samples.append(
            Sample(
                generator=generator,
                uri=uri,
                fids=tuple(fids),
                copies=copies,
                settings=settings.get(generator, ""),
            )
        )
    return samples


def _csv_circumstances(records: Iterable[Record], generators: pd.Index) -> pd.DataFrame:
    """Lay the records' circumstances out by generator; values that differ inside a cell are joined by `; `."""
    rows: dict[str, dict[str, dict[object, None]]] = {str(name): {} for name in generators}
    quality_only = {
        "protocol",
        "protocol_version",
        "features",
        "features_sha256",
        "num_images",
        "num_reference_images",
    }
    for record in records:
        is_quality = quantity_of(record).room == "quality"
        for column, name in _CSV_CIRCUMSTANCES.items():
            value = getattr(record, name)
            if value is not None and (is_quality or name not in quality_only):
                rows[record.generator].setdefault(column, {})[value] = None
    settings = _settings(records)
    return pd.DataFrame(
        [
            [settings.get(name, ""), *(_joined(row.get(column, {})) for column in _CSV_CIRCUMSTANCES)]
            for name, row in rows.items()
        ],
        index=generators,
        columns=["settings", *_CSV_CIRCUMSTANCES],
        dtype=object,
    )


def _joined(values: Iterable[object]) -> object:
    several = list(values)
    return several[0] if len(several) == 1 else "; ".join(map(str, several))


def _markdown_grid(grid: Grid) -> list[str]:
    heads = [f"{_escaped(column.label)} {column.arrow}".strip() for column in grid.columns]
    lines = [f"| generator | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for row in grid.rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        name = f"{_escaped(row.generator)}{' †' if row.copies else ''}"
        lines.append(f"| {' | '.join([name, *cells])} |")
    return ["\n".join(lines), *(f"{_escaped(note)}." for note in grid.notes)]


def _markdown_circumstances(measured: Circumstances) -> str:
    lines = [f"- {_escaped(name)}: {_escaped(text)}" for name, text in measured.shared.items()]
    for name in measured.varying:
        lines.append(f"- {_escaped(str(name))}:")
        lines += [
            f"  - {_escaped(str(generator))}: {_escaped(text)}"
            for generator, text in measured.varying[name].items()
            if text
        ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    for character in "\\|*<[`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _rich_grid(grid: Grid) -> list[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("generator", overflow="fold")
    for column in grid.columns:
        table.add_column(f"{column.short_label}\n{column.arrow}", justify="right", overflow="fold")
    for row in grid.rows:
        cells = [
            Text(f"{cell.text}*" if cell.best else f"{cell.text} ", "bold green" if cell.best else "")
            for cell in row.cells
        ]
        table.add_row(
            Text(f"{row.generator} †" if row.copies else row.generator),
            *cells,
            style="dim" if row.copies else "",
        )
    notes = [
        *(["* best of its column"] if any(cell.best for row in grid.rows for cell in row.cells) else []),
        *grid.notes,
    ]
    return [table, *(Text(note, style="dim") for note in notes)]


def _rich_circumstances(title: str, measured: Circumstances) -> RenderableType:
    lines: list[RenderableType] = [Text(title)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, text in measured.shared.items():
        table.add_row(Text(name), Text(text))
    for name in measured.varying:
        for generator, text in measured.varying[name].items():
            if text:
                table.add_row(Text(f"{name} of {generator}"), Text(text))
    lines.append(Padding(table, (0, 0, 0, 2)))
    return Group(*lines)


@cache
def _page() -> Template:
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(_PAGE.read_text(encoding="utf-8"))
