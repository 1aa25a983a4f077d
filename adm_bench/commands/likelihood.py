"""`adm-bench likelihood`."""

from pathlib import Path
from typing import Any

import click

from adm_bench.commands.options import (
    FILE,
    SamplingSteps,
    device_option,
    example,
    parse_changes,
    seed_option,
    set_option,
)

ROWS = {
    "bits_per_dim": "total",
    "prior": "prior",
    "vb_step0": "step 0 alone",
    "vb_q0": "first quarter of steps",
    "vb_q1": "second quarter",
    "vb_q2": "third quarter",
    "vb_q3": "last quarter",
}


@click.command(
    epilog=example(
        "adm-bench likelihood digits --weights runs/adm",
        "adm-bench likelihood digits --weights runs/adm --num 200 \\",
        "    --sampling-steps 250 --json nll.json --terms terms.npz",
    )
)
@click.argument("data", metavar="DATA")
@click.option("--weights", type=FILE, required=True, help="Trained weights of an adm: a file, or a run's folder.")
@click.option("--preset", metavar="NAME", help="What weights from elsewhere (.pt) are.")
@click.option(
    "--num", "num_images", type=click.IntRange(min=1), help="Images to measure, evenly over classes.  [default: all]"
)
@click.option(
    "--sampling-steps",
    type=SamplingSteps(),
    help="Steps of the bound; fewer bound another, coarser process.  [default: as trained]",
)
@set_option
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=64, help="Images at a time.")
@device_option
@seed_option
@click.option("--json", "json_path", type=FILE, help="Also write every number with its circumstances to this file.")
@click.option("--terms", "terms_path", type=FILE, help="Also write the mean of every step's terms to this npz file.")
@click.option("--overwrite", is_flag=True, help="Replace the --json and --terms files.")
def command(
    data: str,
    weights: Path,
    preset: str | None,
    num_images: int | None,
    sampling_steps: dict[str, object] | None,
    changes: tuple[str, ...],
    batch_size: int,
    device: str,
    seed: int,
    json_path: Path | None,
    terms_path: Path | None,
    overwrite: bool,
) -> None:
    """Measure the likelihood of images under a diffusion model.

    DATA is a data set's name, a folder of images, or an npz file. What is measured is the variational bound, in
    bits per dimension: mean and standard error over images. Each step noises image i with draws of (seed, i).

    The arrays of --terms are those of OpenAI's image_nll: vb_terms, mse_terms and xstart_mse_terms, the last
    step first; and timesteps.
    """
    import json

    from adm_bench.devices import choose_device, describe_device
    from adm_bench.exploration import open_images
    from adm_bench.files import check_new_file, file_sha256, write_json
    from adm_bench.likelihood import likelihood_records, measure_likelihood, open_likelihood_model, write_terms
    from adm_bench.records import Circumstances
    from adm_bench.runs import find_weights
    from reports.records import to_json_line

    file = find_weights(weights, "--weights")
    if json_path is not None and terms_path is not None and json_path.resolve() == terms_path.resolve():
        raise click.UsageError(f"--json and --terms are both {json_path}; give each a file of its own.")
    for path in (json_path, terms_path):
        if path is not None:
            check_new_file(path, overwrite=overwrite, inputs=[file, data])
    options: dict[str, Any] = parse_changes(changes) | (sampling_steps or {})
    if preset is not None:
        options["preset"] = preset
    model = open_likelihood_model(file, options, choose_device(device))
    dataset = open_images(data, model)
    found = measure_likelihood(model, dataset, num_images=num_images, seed=seed, batch_size=batch_size)
    images = "1 image" if found.num_images == 1 else f"{found.num_images} images"
    click.echo(f"bits per dimension of {images} of {data}, {model.network_evaluations} steps; mean ± standard error")
    for name, label in ROWS.items():
        spread = "" if found.num_images == 1 else f" ± {found.standard_error(name):.4f}"
        click.echo(f"{label:<24}{found.mean(name):>9.4f}{spread}")
    if terms_path is not None:
        write_terms(found, terms_path)
    if json_path is not None:
        settings = model.settings()
        deciding = ("clip", "epsilon_temperature", "sampling_steps", "first_timesteps", "last_timesteps", "diffusion")
        circumstances = Circumstances(
            run="likelihood",
            generator=weights.stem,
            device=describe_device(model.device),
            precision=model.options.precision,
            seed=seed,
            num_images=found.num_images,
            settings={name: settings[name] for name in ("preset", *deciding, "model")},
            inputs={"weights": file_sha256(file), "data": dataset.digest()},
        )
        records = likelihood_records(found, circumstances)
        write_json(json_path, [json.loads(to_json_line(record)) for record in records])
