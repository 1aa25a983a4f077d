"""`adm-bench convert`."""

from pathlib import Path

import click

from adm_bench.commands.options import FILE, example, parse_changes, set_option


@click.command(
    epilog=example(
        "adm-bench convert 256x256_diffusion.pt 256x256_diffusion.safetensors",
        "adm-bench convert ema_0.9999_500000.pt cats.safetensors --preset lsun_cat",
        "adm-bench convert model050000.pt mine.safetensors --preset 64x64_diffusion \\",
        "    --set model.channels=128 --set model.num_classes=10",
        "adm-bench convert runs/adm adm.pt",
    )
)
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@click.option("--preset", "preset_name", metavar="NAME", help="Network of a .pt that its name does not say.")
@set_option
@click.option("--overwrite", is_flag=True, help="Replace what is at OUT.")
def command(source: Path, out: Path, preset_name: str | None, changes: tuple[str, ...], overwrite: bool) -> None:
    """Convert weights between OpenAI's form and ours.

    SOURCE is a file, or the folder of a run. A .pt becomes a .safetensors with its configuration inside, and a
    .safetensors becomes a .pt that guided-diffusion loads. Values stay the same, bit for bit.
    """
    from adm_bench.conversion import convert
    from adm_bench.runs import find_weights

    source = find_weights(source, "SOURCE")
    result = convert(source, out, preset_name=preset_name, changes=parse_changes(changes), overwrite=overwrite)
    click.echo(
        f"{out}: weights of kind {result.kind}, {result.num_tensors} tensors, {result.num_parameters:,} parameters, "
        f"sha256 {result.sha256[:16]}"
    )
