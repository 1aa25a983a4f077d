"""`adm-bench sample`."""

from pathlib import Path
from typing import Any

import click

from adm_bench.commands.options import (
    FILE,
    PRECISIONS,
    SamplingSteps,
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
        "adm-bench sample upsampler --weights runs/up --base samples.npz \\",
        "    --out large.npz",
        "adm-bench sample adm --preset 256x256_diffusion \\",
        "    --weights 256x256_diffusion.pt --classifier-preset 256x256_classifier \\",
        "    --classifier 256x256_classifier.pt --out adm-g.npz",
        "adm-bench sample memorizer --data digits --num 1797 --out copies.npz",
    )
)
@click.argument("generator")
@click.option("--weights", type=FILE, help="Trained weights: a file, or the folder of a run.")
@click.option("--preset", metavar="NAME", help="What weights from elsewhere (.pt) are; gives sampling settings too.")
@click.option("--data", metavar="NAME|PATH", help="Training set, for generators that are made from one.")
@click.option("--base", type=FILE, help="Samples (npz) that an upsampler enlarges, labels kept.")
@click.option(
    "--num", "num_images", type=click.IntRange(min=1), help="Number of images.  [default: 1000, or all of --base]"
)
@click.option("--out", type=FILE, help="The npz file: arr_0 images, arr_1 labels.  [required but for --dry-run]")
@click.option("--sampler", type=click.Choice(("ddpm", "ddim")), help="How an ADM samples.  [default: ddpm]")
@click.option(
    "--sampling-steps",
    type=SamplingSteps(),
    help="Network evaluations: 250, or 90,60,60,20,20 in equal sections.  [default: the preset's, or as trained]",
)
@click.option("--classifier", type=FILE, help="Weights or run of the classifier that guides.")
@click.option("--classifier-preset", metavar="NAME", help="What classifier weights from elsewhere are.")
@click.option("--guidance-scale", type=click.FloatRange(min=0), help="Strength of guidance.  [default: the preset's]")
@click.option(
    "--labels",
    metavar="balanced|random|FILE",
    help="Classes of the images; FILE: txt, npy, npz.  [default: the base's, or balanced]",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic of the convolutions.  [default: fp32]")
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
    preset: str | None,
    data: str | None,
    base: Path | None,
    num_images: int | None,
    out: Path | None,
    sampler: str | None,
    sampling_steps: dict[str, object] | None,
    classifier: Path | None,
    classifier_preset: str | None,
    guidance_scale: float | None,
    labels: str | None,
    precision: str | None,
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
    import torch

    from adm_bench.compute import sampling_flops_per_image
    from adm_bench.devices import choose_device
    from adm_bench.files import check_new_file, file_sha256
    from adm_bench.images.sources import open_dataset
    from adm_bench.runs import find_weights
    from adm_bench.sampling import build_generator, decide, sample
    from generators.protocol import Described

    if out is None and not dry_run:
        raise click.UsageError("Missing option '--out'.")
    options: dict[str, Any] = parse_changes(changes)
    if "classifier" in options:
        raise click.BadParameter("the classifier has an option of its own, --classifier", param_hint="--set")
    weights = None if weights is None else find_weights(weights, "--weights")
    classifier = None if classifier is None else find_weights(classifier, "--classifier")
    if out is not None and not dry_run:
        check_new_file(out, overwrite=overwrite, inputs=[weights, data, base, classifier, labels])
    files = {"weights": weights, "classifier": classifier}
    inputs = {name: file_sha256(file) for name, file in files.items() if file is not None}
    given = {
        "preset": preset,
        "sampler": sampler,
        **(sampling_steps or {}),
        "classifier_preset": classifier_preset,
        "guidance_scale": guidance_scale,
        "precision": precision,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    dataset = None if data is None else open_dataset(data, size)
    if dataset is not None:
        inputs["data"] = dataset.digest()
    built = build_generator(
        generator,
        options if classifier is None else {**options, "classifier": classifier},
        device=torch.device("meta") if dry_run and weights is None and preset else choose_device(device),
        dataset=dataset,
        weights=weights,
        image_size=size,
        num_classes=classes,
    )
    job = decide(
        generator,
        built,
        {"generator": generator, "options": options, "inputs": inputs},
        num_images=num_images,
        labels=labels,
        base=base,
        seed=seed,
        batch_size=batch_size,
    )
    if dry_run:
        flops = sampling_flops_per_image(built)
        cost = {
            "network_evaluations_per_image": built.network_evaluations,
            "flops_per_image": flops,
            "flops": flops * job.num_images,
            "flops_per_50k_images": flops * 50_000,
        }
        resolved = {"settings": built.settings()} if isinstance(built, Described) else {}
        to = {"labels": labels, "out": None if out is None else str(out)}
        print_json({**job.plan(), **to, **resolved, "cost": cost})
        return
    assert out is not None  # refused above
    result = sample(job, out, overwrite=overwrite)
    click.echo(f"{out}: {result.num_images} images in {result.sec:.1f} s, {result.images_per_sec:.1f} images/s")
