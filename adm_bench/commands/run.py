"""`adm-bench run`."""

from pathlib import Path

import click

from adm_bench.commands.options import FILE, device_option, example, print_json


@click.command(epilog=example("adm-bench run examples/digits.toml", "adm-bench run examples/digits.toml --dry-run"))
@click.argument("suite", type=FILE)
@click.option("--out", type=FILE, help="Folder of the run.  [default: runs/NAME-OF-SUITE]")
@device_option
@click.option("--overwrite", is_flag=True, help="Do stages again whose settings have changed.")
@click.option("--dry-run", is_flag=True, help="Print the resolved suite and stop.")
def command(suite: Path, out: Path | None, device: str, overwrite: bool, dry_run: bool) -> None:
    """Do everything that a suite file names.

    Train, sample, measure, report. What is finished is kept and reused; killed and repeated, it goes on where it was.
    """
    from adm_bench.devices import choose_device
    from adm_bench.reporting import print_report, read_report
    from adm_bench.suite import SuiteRun
    from adm_bench.suite_file import read_suite, resolved
    from generators.configuration import to_mapping

    read = read_suite(suite)
    folder = out or Path("runs") / suite.stem
    if dry_run:
        print_json({"out": str(folder), "suite": to_mapping(read), "train": resolved(read)})
        return
    SuiteRun(read, folder, choose_device(device), overwrite=overwrite).run()
    print_report(read_report(folder))
    click.echo(f"\nReport: {folder / 'report.html'} (also .md, .csv; every number: {folder / 'records.jsonl'})")
