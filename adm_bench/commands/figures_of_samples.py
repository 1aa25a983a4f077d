"""`adm-bench figure neighbours` and `figure memorisation`: samples beside the training images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adm_bench.commands.options import (
    FILE,
    bundled,
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
    from adm_bench.images.dataset import ImageSet
    from adm_bench.memorisation import Finding
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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What both figures are asked with: two sets of images, how their features are made, and where the picture goes."""

    training: Path
    samples: Path
    features_name: str | None
    weights: Path | None
    size: int | None
    convert: bool
    memory_gb: float
    no_cache: bool
    device: str
    out: Path
    overwrite: bool

    def opened(self) -> tuple["Reference", "ImageSet", "Extraction"]:
        """Training images, samples, and how features are made: by the network named, else the one the former name.

        InputError where the picture cannot go to --out.
        """
        from adm_bench.devices import choose_device
        from adm_bench.evaluation import load_features
        from adm_bench.extraction import Extraction
        from adm_bench.files import check_new_picture
        from adm_bench.images.sources import open_image_set
        from adm_bench.memorisation import open_training
        from adm_bench.weights_store import home
        from metrics.rows import MemoryBudget

        inputs = [self.training, self.samples]
        check_new_picture(self.out, overwrite=self.overwrite, inputs=inputs, sources=inputs)
        training = open_training(self.training, size=self.size, convert=self.convert)
        samples = open_image_set(self.samples, size=self.size, convert=self.convert)
        name = self.features_name or training.identity.get("features") or "inception"
        extraction = Extraction(
            features=load_features(name, choose_device(self.device), self.weights),
            cache_root=None if self.no_cache else home() / "features",
            budget=MemoryBudget(bytes_left=self.memory_gb * 1e9),
        )
        return training, samples, extraction

    def keep(self, finding: "Finding") -> None:
        """Write the picture and print what it shows."""
        finding.write(self.out)
        click.echo(f"{self.out}: {finding.text}")


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
@bundled(Request)
def neighbours(
    request: Request,
    num_samples: int,
    num_neighbours: int,
    chosen: tuple[int, ...] | None,
    seed: int,
    scale_up: int | None,
) -> None:
    """Show samples beside their nearest training images.

    A row a sample: the sample and its number, then the training images that are nearest in feature space, with
    their distances. Features of the training images are kept as in evaluate. Prints how near they lie.
    """
    from adm_bench.memorisation import choose_samples, show_neighbours

    training, samples, extraction = request.opened()
    finding = show_neighbours(
        training,
        samples,
        extraction,
        chosen or choose_samples(samples, num_samples, seed),
        num_neighbours=num_neighbours,
        scale=scale_up,
    )
    request.keep(finding)


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
@bundled(Request)
def memorisation(request: Request) -> None:
    """Show how near samples come to training images.

    Two cumulative curves of distances in feature space: from samples to the nearest training image, and from
    training images to the nearest other one. A generator that memorises lies left of the training images. Prints
    the share of copies. Time grows with the square of the number of training images.
    """
    from adm_bench.memorisation import show_memorisation

    request.keep(show_memorisation(*request.opened()))
