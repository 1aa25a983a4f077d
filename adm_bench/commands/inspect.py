"""`adm-bench inspect`."""

from pathlib import Path

import click

from adm_bench.commands.options import FILE, example, print_json


@click.command(
    epilog=example(
        "adm-bench inspect samples.npz",
        "adm-bench inspect images.zip",
        "adm-bench inspect 64x64_diffusion.pt",
        "adm-bench inspect runs/digits",
    )
)
@click.argument("path", type=FILE)
def command(path: Path) -> None:
    """Say what a file, a folder of images or a run is.

    Samples, a reference, images in a folder, a zip archive or an LMDB, weights (ours, or a .pt of OpenAI's form),
    the folder of a training run or of a suite run. Of images it says sizes, range, labels and whether they are
    sorted, exact duplicates, lossy origin, what is unreadable, and which metrics they can serve.
    """
    from adm_bench.inspection import inspect

    print_json(inspect(path))
