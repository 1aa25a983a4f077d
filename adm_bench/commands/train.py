"""`adm-bench train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adm_bench.commands.options import (
    FILE,
    PRECISIONS,
    device_option,
    example,
    labels_from_option,
    overwrite_option,
    parse_changes,
    print_json,
    seed_option,
    set_option,
)

if TYPE_CHECKING:
    from adm_bench.training import Observation, TrainingJob
    from generators.adm.config import NetworkConfig

DEFAULT_PRESETS = {"adm": "digits8", "classifier": "digits8_classifier", "upsampler": "digits8_16_upsampler"}
POSITIVE = click.IntRange(min=1)
GRID_SIDE = 8
MOST_COLUMNS = 20


@click.command(
    epilog=example(
        "adm-bench train adm --data digits --out runs/adm",
        "adm-bench train classifier --data digits --out runs/cls",
        "adm-bench train upsampler --data digits --out runs/up",
        "adm-bench train adm --data digits --out runs/wide --set model.channels=64",
        "torchrun --nproc-per-node 8 -m adm_bench train adm --data imagenet/ \\",
        "    --preset 128x128_diffusion --precision fp16 --out runs/adm128",
    )
)
@click.argument("trainer")
@click.option("--data", required=True, metavar="NAME|PATH", help="Images: a name, folder, zip, LMDB, npz or tars.")
@click.option("--out", required=True, type=FILE, help="Folder of the run; repeat the command to go on with it.")
@click.option("--preset", "preset_name", metavar="NAME", help="Where to start from.  [default: digits8 and its kind]")
@set_option
@click.option("--steps", type=POSITIVE, help="Training steps.  [default: the preset's]")
@click.option("--images", type=POSITIVE, help="Training length in images, instead of --steps.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Stop, saved, after so long in all.")
@click.option("--batch", type=POSITIVE, help="Images a step, of all processes.  [default: the preset's]")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Arithmetic of the network.")
@click.option("--sharding", type=click.Choice(("none", "full")), default="none", help="full: FSDP2 instead of DDP.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network; pays on GPUs.")
@labels_from_option
@click.option(
    "--skip-bad",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Pass over N unreadable images of each set.",
)
@click.option("--workers", type=POSITIVE, help="Threads that decode images.  [default: as many as cores]")
@click.option("--checkpoint-every", type=POSITIVE, default=500, help="Steps between checkpoints.")
@click.option("--keep", type=POSITIVE, default=3, help="Newest checkpoints to keep.")
@click.option("--keep-every", type=POSITIVE, help="Keep checkpoints of every so many steps for ever.")
@click.option("--log-every", type=POSITIVE, default=50, help="Steps between lines of the log.")
@click.option("--samples-every", type=POSITIVE, help="Steps between pictures of samples.")
@click.option("--validation", metavar="NAME|PATH", help="Images that a classifier is validated on.")
@click.option("--validate-every", type=POSITIVE, default=500, help="Steps between validations.")
@click.option("--evaluate-every", type=POSITIVE, help="Steps between evaluations of samples; needs --reference.")
@click.option("--evaluate-images", type=POSITIVE, default=1000, help="Samples of an evaluation.")
@click.option("--reference", type=FILE, help="What samples are evaluated against.")
@click.option("--metrics", default="fid", metavar="NAME,...", help="What evaluations measure.")
@click.option("--sampling-steps", type=POSITIVE, default=25, help="DDIM steps of samples on the way.")
@click.option("--from", "start_from", type=FILE, help="Begin with weights; guided-diffusion's modelNNNNNN.pt goes on.")
@device_option
@seed_option
@overwrite_option
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def command(
    trainer: str,
    data: str,
    out: Path,
    preset_name: str | None,
    changes: tuple[str, ...],
    device: str,
    precision: str,
    seed: int,
    overwrite: bool,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Train a network on a data set.

    TRAINER is adm, classifier or upsampler. Killed and repeated, the command goes on where it was. Started by
    torchrun, its processes share every batch.
    """
    from adm_bench import progress
    from adm_bench.compute import network_cost
    from adm_bench.devices import choose_device
    from adm_bench.images.sources import open_dataset
    from adm_bench.ranks import joined_ranks
    from adm_bench.training import Routine, TrainingJob, train
    from adm_bench.training_data import notes
    from generators.configuration import to_mapping

    config = _configuration(trainer, preset_name, changes, settings)
    is_sharded = settings["sharding"] == "full"
    with joined_ranks(lambda: choose_device(device), group_of_one=is_sharded) as ranks:
        with ranks.agreeing():
            dataset = open_dataset(data, config.model.image_size, labels=settings["labels_from"])
            if ranks.is_first:
                for note in notes(dataset, config):
                    progress.say(f"note: {dataset.name}: {note}")
            job = TrainingJob(
                trainer=trainer,
                config=config,
                dataset=dataset,
                device=ranks.device,
                precision=precision,
                seed=seed,
                start_from=settings["start_from"],
                skip_bad=settings["skip_bad"],
            )
            observations = () if dry_run else _observations(job, out, settings)
        if dry_run:
            job.check()
            if ranks.is_first:
                cost = to_mapping(network_cost(config))
                print_json({**job.plan(), "device": str(job.device), "out": str(out), "cost": cost})
            return
        routine = Routine(
            observations=observations,
            **{
                name: settings[name]
                for name in ("checkpoint_every", "keep", "keep_every", "log_every", "hours", "workers")
            },
        )
        parallel = None
        if ranks.size > 1 or is_sharded:
            from adm_bench.parallel import parallel_for  # most of a second, which a single process need not spend

            parallel = parallel_for(ranks, settings["sharding"])
        result = train(job, out, routine=routine, ranks=ranks, parallel=parallel, overwrite=overwrite)
    if result is not None and ranks.is_first:
        click.echo(
            f"{out}: {result.steps} steps, {result.images} images in {result.sec:.0f} s, "
            f"{result.images_per_sec:.0f} images/s, {result.num_parameters} parameters"
        )


def _configuration(
    trainer: str, preset_name: str | None, changes: tuple[str, ...], settings: dict[str, Any]
) -> "NetworkConfig":
    """The preset's, changed as asked; InputError where two options say different things of one field."""
    import math

    from adm_bench import registry
    from adm_bench.errors import InputError, bad_input
    from generators.adm.presets import preset
    from generators.configuration import with_changes

    registry.load("trainers", trainer)
    with bad_input("--preset"):
        chosen = preset(preset_name or DEFAULT_PRESETS[trainer])
    if chosen.trainer != trainer:
        raise InputError(f"--preset {preset_name}: is for trainer '{chosen.trainer}', not '{trainer}'")
    wanted = parse_changes(changes)
    options = {"--steps": "training.steps", "--batch": "training.batch_size", "--compile": "training.compile"}
    given = {"--steps": settings["steps"], "--batch": settings["batch"], "--compile": settings["compiled"] or None}
    if settings["images"] is not None:
        if settings["steps"] is not None:
            raise InputError(f"--steps {settings['steps']} and --images {settings['images']}: give one of them")
        batch = settings["batch"] or wanted.get("training.batch_size", chosen.config.training.batch_size)
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"--set: training.batch_size is {batch!r}; expected 1 or more")
        options["--images"], given["--images"] = "training.steps", math.ceil(settings["images"] / batch)
    for option, value in given.items():
        field = options[option]
        if value is not None and wanted.setdefault(field, value) != value:
            raise InputError(f"{option} says {field} {value}, and --set says {wanted[field]}; give one of them")
    with bad_input("--set"):
        return with_changes(chosen.config, wanted)


def _observations(job: "TrainingJob", out: Path, settings: dict[str, Any]) -> "tuple[Observation, ...]":
    """What is looked at on the way; InputError for options that need each other."""
    from adm_bench.errors import InputError
    from adm_bench.evaluation import load_features, load_metrics
    from adm_bench.images.sources import open_dataset
    from adm_bench.observations import OnlineEvaluation, SampleGrid, TrainedSamples, Validation
    from adm_bench.references import Reference

    def samples(num_images: int) -> TrainedSamples:
        options = {"sampler": "ddim", "sampling_steps": settings["sampling_steps"]}
        return TrainedSamples(job=job, folder=out, num_images=num_images, options=options)

    found: list[Observation] = []
    if settings["validation"] is not None:
        size = job.config.model.image_size
        dataset = open_dataset(settings["validation"], size, labels=settings["labels_from"])
        found.append(Validation(every=settings["validate_every"], dataset=dataset, skip_bad=settings["skip_bad"]))
    if settings["samples_every"] is not None:
        classes = job.config.model.num_classes
        columns = GRID_SIDE
        if classes and classes <= MOST_COLUMNS and job.trainer != "upsampler":  # whose classes are as they come
            columns = classes
        found.append(SampleGrid(every=settings["samples_every"], samples=samples(columns * GRID_SIDE), columns=columns))
    if (settings["evaluate_every"] is None) != (settings["reference"] is None):
        raise InputError("--evaluate-every and --reference belong together; give both or neither")
    if settings["evaluate_every"] is not None:
        reference = Reference.open(settings["reference"])
        features = load_features(reference.identity.get("features") or "inception", job.device)
        metrics = load_metrics([name.strip() for name in settings["metrics"].split(",")])
        found.append(
            OnlineEvaluation(
                every=settings["evaluate_every"],
                samples=samples(settings["evaluate_images"]),
                reference=reference,
                features=features,
                metrics=metrics,
            )
        )
    return tuple(found)
