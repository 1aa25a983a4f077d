"""`adm-bench figure neighbours` and `figure memorisation`: samples beside the training images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adm_bench.commands.options import (
    FILE,
    device_option,
    example,
    feature_weights_option,
    features_option,
    keeping_options,
    overwrite_option,
    preparation_options,
    seed_option,
)

if TYPE_CHECKING:
    from adm_bench.extraction import Extraction
    from adm_bench.references import Reference


class Indices(click.ParamType[tuple[int, ...]]):
    """Numbers of images, counted from 0."""

    name = "I,J,..."

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers, in their order."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of images; expected numbers from 0, such as 0,10,25", param, ctx)


OUT = click.option("--out", type=FILE, required=True, help="The PNG file.")


@click.command(
    epilog=example("adm-bench figure neighbours digits samples.npz --features digits \\", "    --num 6 --out e.png")
)
@click.argument("training", type=FILE)
@click.argument("samples", type=FILE)
@click.option("--num", "num_samples", type=click.IntRange(min=1), default=8, help="Samples, a row each.")
@click.option("--neighbours", "num_neighbours", type=click.IntRange(min=1), default=7, help="Training images a row.")
@click.option("--samples", "chosen", type=Indices(), help="Which samples.  [default: --num of them, drawn by --seed]")
@seed_option
@features_option
@feature_weights_option
@preparation_options
@keeping_options
@device_option
@OUT
@click.option(
    "--scale-up",
    type=click.IntRange(1, 64),
    help="Side of the square that a pixel becomes.  [default: images of 64 pixels or more]",
)
@overwrite_option
def neighbours(
    training: Path,
    samples: Path,
    num_samples: int,
    num_neighbours: int,
    chosen: tuple[int, ...] | None,
    seed: int,
    features_name: str | None,
    weights: Path | None,
    size: int | None,
    convert: bool,
    memory_gb: float,
    no_cache: bool,
    device: str,
    out: Path,
    scale_up: int | None,
    overwrite: bool,
) -> None:
    """Show samples beside their nearest training images.

    A row a sample: the sample and its number, then the training images that are nearest in feature space, with
    their distances. Features of the training images are kept as in evaluate. Prints how near they lie.
    """
    from adm_bench.files import check_new_picture
    from adm_bench.images.sources import open_image_set
    from adm_bench.memorisation import choose_samples, open_training, show_neighbours

    check_new_picture(out, overwrite=overwrite, inputs=[training, samples], sources=[training, samples])
    known = open_training(training, size=size, convert=convert)
    images = open_image_set(samples, size=size, convert=convert)
    finding = show_neighbours(
        known,
        images,
        _extraction(known, features_name, weights, device=device, memory_gb=memory_gb, no_cache=no_cache),
        chosen or choose_samples(images, num_samples, seed),
        num_neighbours=num_neighbours,
        scale=scale_up,
    )
    finding.write(out)
    click.echo(f"{out}: {finding.text}")


@click.command(
    epilog=example("adm-bench figure memorisation digits samples.npz --features digits \\", "    --out f.png")
)
@click.argument("training", type=FILE)
@click.argument("samples", type=FILE)
@features_option
@feature_weights_option
@preparation_options
@keeping_options
@device_option
@OUT
@overwrite_option
def memorisation(
    training: Path,
    samples: Path,
    features_name: str | None,
    weights: Path | None,
    size: int | None,
    convert: bool,
    memory_gb: float,
    no_cache: bool,
    device: str,
    out: Path,
    overwrite: bool,
) -> None:
    """Show how near samples come to training images.

    Two cumulative curves of distances in feature space: from samples to the nearest training image, and from
    training images to the nearest other one. A generator that memorises lies left of the training images. Prints
    the share of copies. Time grows with the square of the number of training images.
    """
    from adm_bench.files import check_new_picture
    from adm_bench.images.sources import open_image_set
    from adm_bench.memorisation import open_training, show_memorisation

    check_new_picture(out, overwrite=overwrite, inputs=[training, samples], sources=[training, samples])
    known = open_training(training, size=size, convert=convert)
    images = open_image_set(samples, size=size, convert=convert)
    extraction = _extraction(known, features_name, weights, device=device, memory_gb=memory_gb, no_cache=no_cache)
    finding = show_memorisation(known, images, extraction)
    finding.write(out)
    click.echo(f"{out}: {finding.text}")


def _extraction(
    training: "Reference", name: str | None, weights: Path | None, *, device: str, memory_gb: float, no_cache: bool
) -> "Extraction":
    """How features are made: by the network that is named, else the one that the training images' file names."""
    from adm_bench.devices import choose_device
    from adm_bench.evaluation import load_features
    from adm_bench.extraction import Extraction
    from adm_bench.weights_store import home
    from metrics.rows import MemoryBudget

    return Extraction(
        features=load_features(
            name or training.identity.get("features") or "inception", choose_device(device), weights
        ),
        cache_root=None if no_cache else home() / "features",
        budget=MemoryBudget(bytes_left=memory_gb * 1e9),
    )
