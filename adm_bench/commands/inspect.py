"""`adm-bench inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adm_bench.commands.options import FILE, example, labels_from_option, print_json

if TYPE_CHECKING:
    from adm_bench.images.labels import LabelSource


@click.command(
    epilog=example(
        "adm-bench inspect samples.npz",
        "adm-bench inspect images.zip",
        "adm-bench inspect imagenet/ --size 64 --labels prefix",
        "adm-bench inspect 64x64_diffusion.pt",
        "adm-bench inspect runs/digits",
    )
)
@click.argument("path", type=FILE)
@click.option("--size", type=click.IntRange(min=1), metavar="PIXELS", help="Count images whose short side is below.")
@labels_from_option
def command(path: Path, size: int | None, labels_from: "LabelSource") -> None:
    """Say what a file, a folder of images or a run is.

    Samples, a reference, a data set by its name, images in a folder, a zip archive, tar files or an LMDB, weights
    (ours, or a .pt of OpenAI's form), the folder of a training run or of a suite run. Of images it says sizes,
    range, classes and whether they are sorted, exact duplicates, lossy origin, what is unreadable, and which metrics
    they can serve.
    """
    from adm_bench.inspection import inspect

    print_json(inspect(path, size, labels_from))
