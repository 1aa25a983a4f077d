"""`adm-bench figure`: one sub-command a kind of figure."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from adm_bench.commands.figures_of_samples import memorisation, neighbours
from adm_bench.commands.options import (
    FILE,
    SamplingSteps,
    bundled,
    device_option,
    example,
    overwrite_option,
    parse_changes,
    seed_option,
    set_option,
)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them, none below 0, and none 0 either where that is asked for."""

    name = "N,N,..."

    def __init__(self, *, zero: bool) -> None:
        self.zero = zero

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers, in their order."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; expected such as 1,0.5", param, ctx)
        for number in numbers:
            if not math.isfinite(number) or number < 0 or (number == 0 and not self.zero):
                self.fail(f"{number:g} is out of range; expected {'0 or more' if self.zero else 'above 0'}", param, ctx)
        return numbers


class Pairs(click.ParamType[tuple[tuple[int, int], ...]]):
    """Pairs of indices of images."""

    name = "I:J,K:L,..."

    def convert(
        self, value: str | tuple[tuple[int, int], ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        """The pairs, in their order."""
        if isinstance(value, tuple):
            return value
        pairs = []
        for part in value.split(","):
            first, _, second = part.partition(":")
            try:
                pairs.append((int(first), int(second)))
            except ValueError:
                self.fail(f"{part!r} is no pair of images; expected two indices, such as 0:10", param, ctx)
        return tuple(pairs)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every figure is asked with: a model, and where the picture goes."""

    weights: Path
    preset: str | None
    sampling_steps: dict[str, object] | None
    changes: tuple[str, ...]
    batch_size: int
    device: str
    out: Path
    scale_up: int | None
    overwrite: bool

    def prepared(self, inputs: Sequence[Path | str], data: str | None = None) -> tuple[Path, dict[str, Any]]:
        """The weights file and the sampling options; InputError where the picture cannot go to --out."""
        from adm_bench.files import check_new_picture
        from adm_bench.runs import find_weights

        weights = find_weights(self.weights, "--weights")
        sources = [] if data is None else [data]
        check_new_picture(self.out, overwrite=self.overwrite, inputs=[weights, *inputs], sources=sources)
        options = parse_changes(self.changes) | (self.sampling_steps or {})
        return weights, options if self.preset is None else options | {"preset": self.preset}


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def all_of(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which help lists them."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def drawing_options(steps_default: str) -> Decorator:
    """How a model is run, and where the picture goes."""
    return all_of(
        click.option(
            "--sampling-steps",
            type=SamplingSteps(),
            help=f"Steps of the process: 250, or 90,60,60,20,20 in sections.  [default: {steps_default}]",
        ),
        set_option,
        click.option("--batch", "batch_size", type=click.IntRange(min=1), default=16, help="Images at a time."),
        device_option,
        click.option("--out", type=FILE, required=True, help="The PNG file."),
        click.option(
            "--scale-up",
            type=click.IntRange(1, 64),
            help="Side of the square that a pixel becomes.  [default: images of 64 pixels or more]",
        ),
        overwrite_option,
        bundled(Request),
    )


MODEL = all_of(
    click.option("--weights", type=FILE, required=True, help="Trained weights of an adm: a file, or a run's folder."),
    click.option("--preset", metavar="NAME", help="What weights from elsewhere (.pt) are."),
)
DATA = click.option(
    "--data", required=True, metavar="NAME|PATH", help="Real images; labelled where the model knows classes."
)
SAMPLES = all_of(
    click.option("--num", "num_images", type=click.IntRange(min=1), default=10, help="Samples in each row."),
    click.option(
        "--labels", default="balanced", metavar="balanced|random|FILE", help="Their classes; FILE: txt, npy, npz."
    ),
    seed_option,
)


class InOrder(click.Group):
    """Lists its commands as they are defined, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names."""
        return list(self.commands)


@click.group(
    cls=InOrder,
    epilog=example(
        "adm-bench figure reconstruction --weights runs/adm --data digits --out a.png",
        "adm-bench figure interpolation --weights runs/adm --data digits --out b.png",
        "adm-bench figure guidance --weights runs/adm --classifier runs/cls \\",
        "    --out c.png",
        "adm-bench figure temperature --weights runs/adm --of epsilon --out d.png",
        "adm-bench figure neighbours digits samples.npz --features digits --out e.png",
        "adm-bench figure memorisation digits samples.npz --features digits \\",
        "    --out f.png",
    ),
)
def command() -> None:
    """Draw what a diffusion model has learned, or whether samples repeat what it was trained on.

    Each kind writes one PNG and prints one line with what it measured.
    """


@command.command(
    epilog=example("adm-bench figure reconstruction --weights runs/adm --data digits \\", "    --num 16 --out a.png")
)
@MODEL
@DATA
@click.option(
    "--num", "num_images", type=click.IntRange(min=1), default=8, help="Images, evenly over classes; 16 are shown."
)
@drawing_options("250")
def reconstruction(request: Request, data: str, num_images: int) -> None:
    """Encode real images and decode them again.

    Both are DDIM without noise. Three rows: the images, their latents (clamped), and the reconstructions.
    Prints the PSNR over all images, and of the worst.
    """
    from adm_bench.devices import choose_device
    from adm_bench.exploration import open_images, open_round_trip_model, reconstruct, write_figure

    weights, options = request.prepared([], data)
    model = open_round_trip_model(weights, options, choose_device(request.device))
    exploration = reconstruct(model, open_images(data, model), num_images, request.batch_size)
    write_figure(exploration, request.out, request.scale_up)
    click.echo(f"{request.out}: {exploration.finding}")


@command.command(
    epilog=example(
        "adm-bench figure interpolation --weights runs/adm --data digits \\", "    --pairs 0:10,3:13 --out b.png"
    )
)
@MODEL
@DATA
@click.option("--pairs", type=Pairs(), help="Indices of images.  [default: up to 4 pairs, each of one class]")
@click.option("--points", "num_points", type=click.IntRange(min=2), default=9, help="Images a row, both ends included.")
@drawing_options("250")
def interpolation(request: Request, data: str, pairs: tuple[tuple[int, int], ...] | None, num_points: int) -> None:
    """Go from one real image to another.

    A row a pair: both are encoded by DDIM, and points on the great circle between their latents are decoded. A
    class-conditional model is told the class of the nearer end, in the middle the first one's. Prints the PSNR
    of the ends.
    """
    from adm_bench.devices import choose_device
    from adm_bench.exploration import default_pairs, open_images, open_round_trip_model, show_ways, write_figure

    weights, options = request.prepared([], data)
    model = open_round_trip_model(weights, options, choose_device(request.device))
    dataset = open_images(data, model)
    exploration = show_ways(model, dataset, pairs or default_pairs(dataset), num_points, request.batch_size)
    write_figure(exploration, request.out, request.scale_up)
    click.echo(f"{request.out}: {exploration.finding}")


@command.command(
    epilog=example(
        "adm-bench figure guidance --weights runs/adm --classifier runs/cls \\", "    --scales 0,1,4 --out c.png"
    )
)
@MODEL
@click.option("--classifier", type=FILE, required=True, help="Weights or run of the classifier that guides.")
@click.option("--classifier-preset", metavar="NAME", help="What classifier weights from elsewhere are.")
@click.option("--scales", type=Numbers(zero=True), default="0,1,2,5,10", help="Strengths of guidance, 0 is none.")
@SAMPLES
@drawing_options("the preset's, or as trained")
def guidance(
    request: Request,
    classifier: Path,
    classifier_preset: str | None,
    scales: tuple[float, ...],
    num_images: int,
    labels: str,
    seed: int,
) -> None:
    """Guide the same samples more and more.

    A row a scale, the same seeds and labels in every row. Prints the share of samples that the guiding
    classifier, at timestep 0, takes for their label: a measure of its influence, not of quality.
    """
    from adm_bench.devices import choose_device
    from adm_bench.exploration import GUIDING_OPTIONS, compare_guidance, open_model, require_unset, write_figure
    from adm_bench.runs import find_weights
    from adm_bench.sampling import choose_labels

    classifier = find_weights(classifier, "--classifier")
    weights, options = request.prepared([classifier, labels])
    require_unset(options, GUIDING_OPTIONS, "figure guidance has --classifier, --classifier-preset and --scales")
    if not any(scales):
        raise click.BadParameter("0 alone guides nothing; expected a scale above 0 too", param_hint="--scales")
    guiding = {"classifier": classifier, "classifier_preset": classifier_preset, "guidance_scale": max(scales)}
    model = open_model(weights, {**options, **guiding}, choose_device(request.device))
    chosen = choose_labels(labels, num_images, model.num_classes, seed)
    assert chosen is not None  # the classifier has classes
    exploration = compare_guidance(model, scales, chosen, seed=seed, batch_size=request.batch_size)
    write_figure(exploration, request.out, request.scale_up)
    click.echo(f"{request.out}: {exploration.finding}")


@command.command(epilog=example("adm-bench figure temperature --weights runs/adm --of epsilon --out d.png"))
@MODEL
@click.option(
    "--of",
    type=click.Choice(("noise", "epsilon")),
    default="noise",
    help="What is cooled: the noise that steps add, or the predicted one (divided by it).",
)
@click.option(
    "--temperatures", type=Numbers(zero=False), default="1,0.98,0.95,0.9", help="One a row; 1 changes nothing."
)
@SAMPLES
@drawing_options("the preset's, or as trained")
def temperature(
    request: Request,
    of: Literal["noise", "epsilon"],
    temperatures: tuple[float, ...],
    num_images: int,
    labels: str,
    seed: int,
) -> None:
    """Sample at reduced temperatures.

    A row a temperature, the same seeds and labels in every row. Prints how much neighbouring pixels differ.
    """
    from adm_bench.devices import choose_device
    from adm_bench.exploration import GUIDING_OPTIONS, compare_temperatures, open_model, require_unset, write_figure
    from adm_bench.sampling import choose_labels

    weights, options = request.prepared([labels])
    require_unset(options, GUIDING_OPTIONS, "this figure is not guided")
    require_unset(options, ("noise_temperature", "epsilon_temperature"), "is what --of and --temperatures are for")
    model = open_model(weights, options, choose_device(request.device))
    exploration = compare_temperatures(
        model,
        of,
        temperatures,
        choose_labels(labels, num_images, model.num_classes, seed),
        num_images=num_images,
        seed=seed,
        batch_size=request.batch_size,
    )
    write_figure(exploration, request.out, request.scale_up)
    click.echo(f"{request.out}: {exploration.finding}")


command.add_command(neighbours)
command.add_command(memorisation)
