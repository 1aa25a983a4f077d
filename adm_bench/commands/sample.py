"""`adm-bench sample`."""

from pathlib import Path
from typing import Any

import click

from adm_bench.commands.options import (
    FILE,
    device_option,
    example,
    overwrite_option,
    parse_changes,
    print_json,
    seed_option,
    set_option,
)


@click.command(
    epilog=example(
        "adm-bench sample adm --weights runs/adm --num 1797 --out samples.npz",
        "adm-bench sample adm --weights runs/adm --sampler ddim --sampling-steps 25 \\",
        "    --classifier runs/cls --guidance-scale 2 --num 1797 --out guided.npz",
        "adm-bench sample memorizer --data digits --num 1797 --out copies.npz",
    )
)
@click.argument("generator")
@click.option("--weights", type=FILE, help="Trained weights: a file, or the folder of a run.")
@click.option("--data", metavar="NAME|PATH", help="Training set, for generators that are made from one.")
@click.option("--num", "num_images", type=click.IntRange(min=1), default=1000, help="Number of images.")
@click.option("--out", required=True, type=FILE, help="The npz file: arr_0 images, arr_1 labels.")
@click.option("--sampler", type=click.Choice(("ddpm", "ddim")), help="How an ADM samples.  [default: ddpm]")
@click.option("--sampling-steps", type=click.IntRange(min=2), help="Network evaluations.  [default: as trained]")
@click.option("--classifier", type=FILE, help="Weights or run of the classifier that guides.")
@click.option("--guidance-scale", type=click.FloatRange(min=0), help="Strength of the guidance.  [default: 0]")
@click.option(
    "--labels", default="balanced", metavar="balanced|random|FILE", help="Classes of the images; FILE: txt, npy, npz."
)
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=256, help="Images at a time.")
@set_option
@click.option("--size", type=click.IntRange(min=1), help="Image size, where neither data nor weights say it.")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes, likewise.")
@device_option
@seed_option
@overwrite_option
@click.option("--dry-run", is_flag=True, help="Print the resolved plan and its cost, and stop.")
def command(
    generator: str,
    weights: Path | None,
    data: str | None,
    num_images: int,
    out: Path,
    sampler: str | None,
    sampling_steps: int | None,
    classifier: Path | None,
    guidance_scale: float | None,
    labels: str,
    batch_size: int,
    changes: tuple[str, ...],
    size: int | None,
    classes: int | None,
    device: str,
    seed: int,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Sample a generator into an npz file.

    Image i depends on the seed and on i alone, not on --batch. Killed and repeated, the command goes on.
    """
    from adm_bench.compute import sampling_flops_per_image
    from adm_bench.devices import choose_device
    from adm_bench.files import check_new_file, file_sha256
    from adm_bench.images.sources import open_dataset
    from adm_bench.runs import find_weights
    from adm_bench.sampling import SamplingJob, build_generator, choose_labels, sample

    if not dry_run:
        check_new_file(out, overwrite=overwrite, inputs=[weights, data, classifier, labels])
    options: dict[str, Any] = parse_changes(changes)
    if "classifier" in options:
        raise click.BadParameter("the classifier has an option of its own, --classifier", param_hint="--set")
    inputs = {}
    if weights is not None:
        weights = find_weights(weights, "--weights")
        inputs["weights"] = file_sha256(weights)
    if classifier is not None:
        classifier = find_weights(classifier, "--classifier")
        inputs["classifier"] = file_sha256(classifier)
    given = {
        "sampler": sampler,
        "sampling_steps": sampling_steps,
        "guidance_scale": guidance_scale,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    dataset = None if data is None else open_dataset(data, size)
    if dataset is not None:
        inputs["data"] = dataset.digest()
    built = build_generator(
        generator,
        options if classifier is None else {**options, "classifier": classifier},
        device=choose_device(device),
        dataset=dataset,
        weights=weights,
        image_size=size,
        num_classes=classes,
    )
    job = SamplingJob(
        name=generator,
        generator=built,
        description={"generator": generator, "options": options, "inputs": inputs},
        num_images=num_images,
        labels=choose_labels(labels, num_images, built.num_classes, seed),
        seed=seed,
        batch_size=batch_size,
    )
    if dry_run:
        flops = sampling_flops_per_image(built)
        cost = {
            "network_evaluations_per_image": built.network_evaluations,
            "flops_per_image": flops,
            "flops": flops * num_images,
        }
        print_json({**job.plan(), "labels": labels, "out": str(out), "cost": cost})
        return
    result = sample(job, out, overwrite=overwrite)
    click.echo(f"{out}: {result.num_images} images in {result.sec:.1f} s, {result.images_per_sec:.1f} images/s")
