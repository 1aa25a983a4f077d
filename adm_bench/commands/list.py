"""`adm-bench list`."""

import click

from adm_bench.commands.options import example, print_json

KINDS = ("generators", "presets", "metrics", "features", "datasets", "trainers")


@click.command(epilog=example("adm-bench list generators", "adm-bench list presets --json"))
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--json", "as_json", is_flag=True, help="Plain data instead of a table.")
def command(kind: str, as_json: bool) -> None:
    """List what can be named.

    Built in, or added by plug-ins.
    """
    from adm_bench import registry

    if kind == "presets":
        rows = presets()
    else:
        rows = {name: {"description": text} for name, text in registry.describe(kind).items()}
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", *next(iter(rows.values()))):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(name, *(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)


def presets() -> dict[str, dict[str, object]]:
    """Each preset's trainer, size, classes, parameters and summary."""
    from adm_bench.compute import network_cost
    from generators.adm.presets import PRESETS

    return {
        name: {
            "trainer": preset.trainer,
            "size": preset.config.model.image_size,
            "classes": preset.config.model.num_classes,
            "parameters": network_cost(preset.config).parameters,
            "summary": preset.summary,
        }
        for name, preset in PRESETS.items()
    }
