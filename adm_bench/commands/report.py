"""`adm-bench report`."""

from pathlib import Path

import click

from adm_bench.commands.options import FILE, example, overwrite_option


@click.command(
    epilog=example("adm-bench report runs/digits", "adm-bench report runs/digits --format html --out digits.html")
)
@click.argument("run", type=FILE)
@click.option("--format", "kind", type=click.Choice(("rich", "md", "csv", "html")), default="rich", help="Form.")
@click.option("--out", type=FILE, help="A file instead of stdout (not for rich).")
@overwrite_option
def command(run: Path, kind: str, out: Path | None, overwrite: bool) -> None:
    """Show the report of a finished run.

    RUN is a suite's folder. Of a training run, its evaluations are shown, a row a step: the curve of FID.
    """
    from adm_bench.errors import InputError
    from adm_bench.files import check_new_file, write_text
    from adm_bench.reporting import FILE_RENDERERS, print_report, read_report

    report = read_report(run)
    if kind == "rich":
        if out is not None:
            raise InputError(f"--out {out}: format rich is for the terminal; choose --format md, csv or html")
        print_report(report)
        return
    text = FILE_RENDERERS[kind](report)
    if out is None:
        click.echo(text, nl=False)
    else:
        check_new_file(out, overwrite=overwrite)
        write_text(out, text)
