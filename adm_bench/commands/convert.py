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
        "adm-bench convert runs/adm --out openai/",
    )
)
@click.argument("source", type=FILE)
@click.argument("out", type=FILE, required=False)
@click.option("--out", "folder", type=FILE, help="Folder for the files of OpenAI's training, to go on there.")
@click.option("--preset", "preset_name", metavar="NAME", help="Network of a .pt that its name does not say.")
@set_option
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def command(
    source: Path,
    out: Path | None,
    folder: Path | None,
    preset_name: str | None,
    changes: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Convert weights between OpenAI's form and ours.

    SOURCE is a file, or the folder of a run. A .pt becomes a .safetensors with its configuration inside, and a
    .safetensors becomes a .pt that guided-diffusion loads. Values stay the same, bit for bit.

    With --out, SOURCE is a run or one of its checkpoints, and becomes modelNNNNNN.pt, an ema file for each average,
    and optNNNNNN.pt, from which guided-diffusion's training goes on; N is the number of steps done.
    """
    from adm_bench.conversion import convert, write_openai_training
    from adm_bench.errors import InputError
    from adm_bench.runs import find_weights

    if (out is None) == (folder is None):
        found = f"OUT {out} and --out {folder}" if out is not None else "neither OUT nor --out"
        raise InputError(f"{found}: expected the name of a file, or --out and a folder for those of a checkpoint")
    if folder is not None:
        if preset_name is not None or changes:
            raise InputError(f"--out {folder}: a checkpoint has its own configuration; leave --preset and --set away")
        for path in write_openai_training(source, folder, overwrite=overwrite):
            click.echo(path)
        return
    assert out is not None  # one of the two is given
    source = find_weights(source, "SOURCE")
    if not out.suffix:
        raise InputError(f"{out}: names no file; end it in .pt or .safetensors, or give --out {out} for a folder")
    result = convert(source, out, preset_name=preset_name, changes=parse_changes(changes), overwrite=overwrite)
    click.echo(
        f"{out}: weights of kind {result.kind}, {result.num_tensors} tensors, {result.num_parameters:,} parameters, "
        f"sha256 {result.sha256[:16]}"
    )
