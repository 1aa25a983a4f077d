"""A report as Markdown, as CSV, as one self-contained HTML page and for the terminal."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from reports.circumstances import SEPARATOR, Circumstances, arithmetic_in_words, by_value
from reports.figures import quality_cost_plot
from reports.layout import (
    Grid,
    Section,
    circumstances_by_part,
    compute_grid,
    legend,
    sections,
    settings_by_generator,
)
from reports.quantities import quantity_of
from reports.records import Record
from reports.tables import comparable_groups, compute_sheet, quality_sheet

_PAGE = Path(__file__).with_name("page.html.j2")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CSV_OF_QUALITY = (
    "protocol",
    "protocol_version",
    "features",
    "features_sha256",
    "num_images",
    "num_reference_images",
)
_CSV_OF_ALL = ("seed", "precision", "device", "world_size")
_CSV_NAMES = {"precision": "arithmetic"}  # beside a column Precision, the field's name would mislead


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
class Sample:
    """A picture of a generator's samples as a data URI, and what to know beside it."""

    generator: str
    uri: str
    fids: tuple[str, ...]
    copies: bool
    settings: str


def render_markdown(report: Report) -> str:
    """Render headlines, tables, circumstances and the meaning of the columns as GitHub Markdown."""
    shown, compute = sections(report.records), compute_grid(report.records)
    blocks = [f"# {_escaped(report.title)}", _escaped(report.subtitle or "")]
    for section in shown:
        blocks.append(f"## Quality: {_escaped(str(section.under))}")
        blocks.append(_markdown_list(map(_escaped, section.sentences)))
        blocks += _markdown_grid(section.quality)
    if compute.rows:
        blocks += ["## Compute", *_markdown_grid(compute)]
    blocks.append("## How these numbers were measured")
    for title, measured in circumstances_by_part(report.records):
        blocks += [f"**{_escaped(title)}**", _markdown_circumstances(measured)]
    blocks.append("## What the columns mean")
    meanings = (
        f"**{_escaped(f'{quantity.label} {quantity.arrow}'.strip())}**: {_escaped(quantity.meaning)}"
        for quantity in legend([*(section.quality for section in shown), compute])
    )
    blocks.append(_markdown_list(meanings))
    return "\n\n".join(block for block in blocks if block) + "\n"


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
        copies = pd.Series(sheet.frame.index.isin(sheet.copying), sheet.frame.index, name="copies_training_images")
        costs = compute.drop(columns=[label for label in compute if label in sheet.frame])
        parts.append(known.join(copies).join(sheet.frame).join(costs))
    if len(without_quality) or not parts:
        rest = [record for record in report.records if record.generator in without_quality]
        parts.append(_csv_circumstances(rest, without_quality).join(compute))
    # concatenated as text, so that neither integers nor empty cells change
    return pd.concat([part.astype(object) for part in parts]).to_csv(lineterminator="\n")


def render_html(report: Report) -> str:
    """Render one page that fetches nothing: styles, plots and pictures are inside it."""
    shown, compute = sections(report.records), compute_grid(report.records)
    plots = [quality_cost_plot(section.records) or "" for section in shown]
    return _page().render(
        report=report,
        sections=[
            (section, Markup(plot))  # noqa: S704 - our own SVG, in which all text is escaped
            for section, plot in zip(shown, plots, strict=True)
        ],
        compute=compute,
        samples=_samples(report, shown),
        measured=circumstances_by_part(report.records),
        legend=legend([*(section.quality for section in shown), compute]),
    )


def render_rich(report: Report, width: int = 80) -> RenderableType:
    """Return what rich prints in a terminal of `width` columns: headlines, tables, and what all rows share.

    The settings and digests of each row are left to the other forms, so that the tables stay on the screen.
    """
    compute = compute_grid(report.records)
    parts: list[RenderableType] = [Text(report.title, style="bold")]
    if report.subtitle:
        parts.append(Text(report.subtitle, style="dim"))
    for section in sections(report.records):
        parts.append(Text(f"\nQuality: {section.under}\n", style="bold"))
        parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in section.sentences]
        parts += ["", *_rich_grid(section.quality, width)]
    if compute.rows:
        parts += [Text("\nCompute\n", style="bold"), *_rich_grid(compute, width)]
    for title, measured in circumstances_by_part(report.records):
        shared = SEPARATOR.join(f"{name} {text}" for name, text in measured.shared.items())
        if shared:
            parts += ["", Text(f"{title}, measured with: {shared}", style="dim")]
    return Constrain(Group(*parts), width)


RENDERERS: dict[str, Callable[[Report], RenderableType]] = {
    "csv": render_csv,
    "html": render_html,
    "md": render_markdown,
    "rich": render_rich,
}
"""By file suffix, and `rich` for the terminal; all but that one return text."""


def _samples(report: Report, shown: Sequence[Section]) -> list[Sample]:
    settings = settings_by_generator(report.records)
    samples = []
    for generator, png in report.grids.items():
        fids: dict[str, str] = {}
        copies = False
        for section in shown:
            row = next((row for row in section.quality.rows if row.generator == generator), None)
            for column, quantity in enumerate(section.quality.columns):
                if row is not None and quantity.name == "fid":
                    fids[f"{quantity.label} {row.cells[column].text}"] = f" ({section.under})"
            copies |= row is not None and row.copies
        samples.append(
            Sample(
                generator=generator,
                uri=f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}",
                fids=tuple(fids) if len(fids) < 2 else tuple(f"{text}{under}" for text, under in fids.items()),
                copies=copies,
                settings=settings.get(generator, ""),
            )
        )
    return samples


def _csv_circumstances(records: Sequence[Record], generators: pd.Index) -> pd.DataFrame:
    """Lay circumstances out by generator; where a generator's records differ, a cell joins what they say."""
    names = (*_CSV_OF_QUALITY, *_CSV_OF_ALL)
    rows: dict[str, dict[str, dict[object, None]]] = {
        str(generator): {name: {} for name in names} for generator in generators
    }
    for record in records:
        is_quality = quantity_of(record).room == "quality"
        for name in names if is_quality else _CSV_OF_ALL:
            rows[record.generator][name][getattr(record, name)] = None  # a set that keeps its order
    for generator, row in rows.items():
        row["precision"] = {arithmetic_in_words(record for record in records if record.generator == generator): None}
    settings = settings_by_generator(records)
    return pd.DataFrame(
        [[settings[generator], *map(_joined, row.values())] for generator, row in rows.items()],
        index=generators,
        columns=["settings", *(_CSV_NAMES.get(name, name) for name in names)],
        dtype=object,
    )


def _joined(values: Iterable[object]) -> object:
    known = [value for value in values if value is not None]
    return known[0] if len(known) == 1 else "; ".join(map(str, known))


def _markdown_grid(grid: Grid) -> list[str]:
    heads = [f"{_escaped(column.label)} {column.arrow}".strip() for column in grid.columns]
    lines = [f"| generator | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for row in grid.rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        name = f"{_escaped(row.generator)}{' †' if row.copies else ''}"
        lines.append(f"| {' | '.join([name, *cells])} |")
    return ["\n".join(lines), *(f"{_escaped(note)}." for note in grid.notes)]


def _markdown_circumstances(measured: Circumstances) -> str:
    shared = [f"{_escaped(name)}: {_escaped(text)}" for name, text in measured.shared.items()]
    varying = [f"{_escaped(name)}: {_escaped(text)}" for name, text in _varying_texts(measured)]
    return _markdown_list([*shared, *varying])


def _markdown_list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _varying_texts(measured: Circumstances) -> list[tuple[str, str]]:
    return [
        (f"{name} of {who}", text or "not stated")
        for name, column in measured.varying.items()
        for who, text in by_value({str(generator): str(text) for generator, text in column.items()})
    ]


def _escaped(text: str) -> str:
    for character in "\\|*<[`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _rich_grid(grid: Grid, width: int) -> list[RenderableType]:
    names = [f"{row.generator} †" if row.copies else row.generator for row in grid.rows]
    pads = [" " if grid.has_best(index) else "" for index in range(len(grid.columns))]  # where a * may stand
    columns = [
        [f"{row.cells[index].text}{'*' if row.cells[index].best else pad}" for row in grid.rows]
        for index, pad in enumerate(pads)
    ]
    headings = [[*column.short_label.split("\n"), column.arrow] for column in grid.columns]
    widths = [max(map(len, (*lines, *texts))) for lines, texts in zip(headings, columns, strict=True)]
    if max(map(len, ("generator", *names))) + sum(1 + each for each in widths) > width:
        headings = [[part for line in lines for part in _before_slash(line)] for lines in headings]
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("generator", overflow="fold", vertical="bottom")
    for lines, texts, pad in zip(headings, columns, pads, strict=True):
        longest = max(map(len, (*lines, *texts)))
        heading = "\n".join(f"{line}{pad}"[:longest] for line in lines)
        table.add_column(Text(heading), justify="right", overflow="fold", vertical="bottom")
    for row, name, line in zip(grid.rows, names, zip(*columns, strict=True), strict=True):
        cells = [Text(text, "bold green" if cell.best else "") for text, cell in zip(line, row.cells, strict=True)]
        table.add_row(Text(name), *cells, style="dim" if row.copies else "")
    notes = ["* best of its column", *grid.notes] if any(pads) else grid.notes
    return [table, *(Text(note, style="dim") for note in notes)]


def _before_slash(line: str) -> list[str]:
    start, slash, end = line.partition("/")
    return [start, slash + end] if start and slash else [line]


@cache
def _page() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(_PAGE.read_text(encoding="utf-8"))
