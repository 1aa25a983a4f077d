"""`adm-bench train`."""

from pathlib import Path

import click

from adm_bench.commands.options import (
    FILE,
    PRECISIONS,
    device_option,
    example,
    overwrite_option,
    parse_changes,
    print_json,
    seed_option,
    set_option,
)

DEFAULT_PRESETS = {"adm": "digits8", "classifier": "digits8_classifier", "upsampler": "digits8_16_upsampler"}


@click.command(
    epilog=example(
        "adm-bench train adm --data digits --preset digits8 --out runs/adm",
        "adm-bench train classifier --data digits --preset digits8_classifier \\",
        "    --out runs/cls",
        "adm-bench train upsampler --data digits --preset digits8_16_upsampler \\",
        "    --out runs/up",
        "adm-bench train adm --data digits --set model.channels=64 --steps 2000 \\",
        "    --out runs/wide",
    )
)
@click.argument("trainer")
@click.option("--data", required=True, metavar="NAME|PATH", help="Data set: a name, a folder of images, or an npz.")
@click.option("--out", required=True, type=FILE, help="Folder of the run; repeat the command to go on with it.")
@click.option("--preset", "preset_name", metavar="NAME", help="Where to start from.  [default: digits8 and its kind]")
@set_option
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.  [default: the preset's]")
@click.option("--batch", type=click.IntRange(min=1), help="Images a step.  [default: the preset's]")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Arithmetic of the network.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, help="Steps between checkpoints.")
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
    steps: int | None,
    batch: int | None,
    precision: str,
    checkpoint_every: int,
    device: str,
    seed: int,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Train a network on a data set.

    TRAINER is adm, classifier or upsampler. Killed and repeated, the command goes on where it was.
    """
    from adm_bench import registry
    from adm_bench.compute import network_cost
    from adm_bench.devices import choose_device
    from adm_bench.errors import InputError, bad_input
    from adm_bench.images.sources import open_dataset
    from adm_bench.training import TrainingJob, train
    from generators.adm.presets import preset
    from generators.configuration import to_mapping, with_changes

    registry.load("trainers", trainer)
    with bad_input("--preset"):
        chosen = preset(preset_name or DEFAULT_PRESETS[trainer])
    if chosen.trainer != trainer:
        raise InputError(f"--preset {preset_name}: is for trainer '{chosen.trainer}', not '{trainer}'")
    wanted = parse_changes(changes)
    wanted |= {"training.steps": steps} if steps else {}
    wanted |= {"training.batch_size": batch} if batch else {}
    with bad_input("--set"):
        config = with_changes(chosen.config, wanted)
    job = TrainingJob(
        trainer=trainer,
        config=config,
        dataset=open_dataset(data, config.model.image_size),
        device=choose_device(device),
        precision=precision,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    if dry_run:
        job.check()
        print_json({**job.plan(), "device": str(job.device), "out": str(out), "cost": to_mapping(network_cost(config))})
        return
    result = train(job, out, overwrite=overwrite)
    click.echo(
        f"{out}: {result.steps} steps, {result.images} images in {result.sec:.0f} s, "
        f"{result.images_per_sec:.0f} images/s, {result.num_parameters} parameters"
    )
