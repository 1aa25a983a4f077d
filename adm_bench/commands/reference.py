"""`adm-bench reference`."""

from pathlib import Path

import click

from adm_bench.commands.options import (
    FILE,
    device_option,
    example,
    inception_weights_option,
    overwrite_option,
    seed_option,
)


@click.command(epilog=example("adm-bench reference digits --features digits --out ref.npz"))
@click.argument("data", metavar="DATA")
@click.option("--features", "features_name", default="digits", metavar="NAME", help="Feature network.")
@click.option("--size", type=click.IntRange(min=1), help="Image size.  [default: the data's own]")
@click.option("--out", required=True, type=FILE, help="The npz file, in OpenAI's format.")
@inception_weights_option
@device_option
@seed_option
@overwrite_option
def command(
    data: str,
    features_name: str,
    size: int | None,
    out: Path,
    weights: Path | None,
    device: str,
    seed: int,
    overwrite: bool,
) -> None:
    """Measure a whole training set.

    Statistics (mu, sigma, mu_s, sigma_s) are over every image of DATA; up to 10,000 images, chosen by
    seed, are kept in the file for precision and recall.
    """
    from adm_bench.devices import choose_device
    from adm_bench.evaluation import load_features
    from adm_bench.files import check_new_file
    from adm_bench.images.sources import open_dataset
    from adm_bench.references import write_reference

    check_new_file(out, overwrite=overwrite, inputs=[data])
    dataset = open_dataset(data, size)
    features = load_features(features_name, choose_device(device), weights)
    identity = write_reference(dataset, features, out, seed)
    click.echo(
        f"{out}: {identity['num_images']} images of {identity['data']} at {identity['image_size']}x"
        f"{identity['image_size']}, features {identity['features']} {identity['features_sha256'][:12]}"
    )
