"""Reports of a run's folder: records and grids in, files that a person opens out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path, read_json, write_text
from adm_bench.images.npz import NpzFile
from adm_bench.places import RUN_FILE, SUITE_FILE
from adm_bench.runs import EVALUATIONS_FILE, EVENTS_FOLDER, LOG_FILE, SAMPLES_FOLDER
from reports.figures import png_bytes, sample_grid
from reports.records import read_records
from reports.render import Report, render_csv, render_html, render_markdown, render_rich

RECORDS_FILE = "records.jsonl"
GRIDS = "grids"
GRID_ROWS = 8
GRID_COLUMNS = 10
SMALLEST_TILE = 32
FILE_RENDERERS = {"md": render_markdown, "csv": render_csv, "html": render_html}


def write_grid(samples: Path, folder: Path, row: str, num_classes: int | None) -> None:
    """A PNG of a row's first samples; a column a class, where there are few and balanced labels count through."""
    columns = num_classes if num_classes and num_classes <= 2 * GRID_COLUMNS else GRID_COLUMNS
    images = next(NpzFile(samples).batches(columns * GRID_ROWS)).transpose(0, 2, 3, 1)
    scale = -(-SMALLEST_TILE // images.shape[1])
    with atomic_path(folder / GRIDS / f"{row}.png") as temporary:
        temporary.write_bytes(png_bytes(sample_grid(np.ascontiguousarray(images), columns, scale)))


def read_report(folder: Path) -> Report:
    """The report of a finished suite, or of a training run's evaluations; InputError where the folder holds none."""
    if not (folder / RECORDS_FILE).is_file():
        if (folder / RUN_FILE).is_file():
            return _training_report(folder)
        raise InputError(f"{folder}: has no {RECORDS_FILE}; expected the folder of a finished adm-bench run")
    with bad_input(folder / RECORDS_FILE):
        records = tuple(read_records(folder / RECORDS_FILE))
    suite = read_json(folder / SUITE_FILE) if (folder / SUITE_FILE).exists() else {"title": folder.name}
    rows = dict.fromkeys(record.generator for record in records)
    grids = {row: path.read_bytes() for row in rows if (path := folder / GRIDS / f"{row}.png").is_file()}
    return Report(title=suite["title"], records=records, grids=grids)


def _training_report(folder: Path) -> Report:
    """A row an evaluation, in the order of steps: the curves of FID and of what else was measured on the way."""
    if not (folder / EVALUATIONS_FILE).is_file():
        raise InputError(
            f"{folder}: is a training run without evaluations (--evaluate-every and --reference make them); its losses "
            f"are in {LOG_FILE}, and tensorboard --logdir {folder / EVENTS_FOLDER} shows them"
        )
    with bad_input(folder / EVALUATIONS_FILE):
        records = read_records(folder / EVALUATIONS_FILE)
    rows = {int(str(record.settings["step"])): f"step {record.settings['step']}" for record in records}
    pictures = {row: folder / SAMPLES_FOLDER / f"step_{step:08d}.png" for step, row in rows.items()}
    return Report(
        title=folder.name,
        subtitle="samples of the network while it was trained",
        records=tuple(replace(record, generator=rows[int(str(record.settings["step"]))]) for record in records),
        grids={row: path.read_bytes() for row, path in pictures.items() if path.is_file()},
    )


def write_reports(folder: Path) -> None:
    """Write `report.md`, `report.csv` and `report.html` into a run's folder."""
    report = read_report(folder)
    for ending, render in FILE_RENDERERS.items():
        write_text(folder / f"report.{ending}", render(report))


def print_report(report: Report) -> None:
    """Show a report on stdout, as wide as the terminal."""
    console = Console()
    console.print(render_rich(report, console.width))
