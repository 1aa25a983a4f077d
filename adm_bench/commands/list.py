"""`adm-bench list`."""

from typing import Any

import click

from adm_bench.commands.options import example, print_json

KINDS = ("generators", "presets", "metrics", "features", "datasets", "trainers")
NUMBERS = ("params", "pixels", "classes", "scale", "FID")


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
        shown = {name: preset_columns(row) for name, row in rows.items()}
    else:
        rows = shown = {name: {"description": text} for name, text in registry.describe(kind).items()}
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", *next(iter(shown.values()))):
        table.add_column(column, no_wrap=kind == "presets", justify="right" if column in NUMBERS else "left")
    for name, row in shown.items():
        table.add_row(name, *map(str, row.values()))
    Console().print(table)


def presets() -> dict[str, dict[str, Any]]:
    """Everything about each preset, by name."""
    import torch

    from generators.adm.config import SamplerConfig
    from generators.adm.networks import build_network
    from generators.adm.presets import PRESETS, PresetSampling

    rows = {}
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            network = build_network(preset.config)
        sampling = preset.sampling or PresetSampling()
        model = preset.config.model
        rows[name] = {
            "trainer": preset.trainer,
            "size": model.image_size,
            "low_resolution": getattr(model, "low_resolution", None),
            "classes": model.num_classes,
            "parameters": sum(p.numel() for p in network.parameters()),
            "sampler": SamplerConfig().sampler,
            "sampling_steps": sampling.sampling_steps,
            "guidance_scale": sampling.guidance_scale,
            "classifier": sampling.classifier,
            "published_fid": preset.published_fid,
            "published": preset.published or None,
            "summary": preset.summary,
        }
    return rows


def preset_columns(row: dict[str, Any]) -> dict[str, str]:
    """What a table 80 characters wide has room for."""
    low, size = row["low_resolution"], row["size"]
    columns = {
        "params": f"{row['parameters'] / 1e6:,.1f}M",
        "pixels": f"{low} -> {size}" if low else f"{size}",
        "classes": row["classes"],
        "sampler": row["sampling_steps"] and f"{row['sampler']} {row['sampling_steps']}",
        "scale": row["guidance_scale"],
        "FID": None if row["published_fid"] is None else f"{row['published_fid']:.2f}",
    }
    return {column: "" if value is None else str(value) for column, value in columns.items()}
