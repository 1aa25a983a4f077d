"""`adm-bench reference`."""

import os
from pathlib import Path

import click

from adm_bench.commands.options import (
    FILE,
    device_option,
    example,
    feature_weights_option,
    overwrite_option,
    seed_option,
)


@click.command(
    epilog=example(
        "adm-bench reference digits --features digits --out ref.npz",
        "adm-bench reference imagenet/train --size 256 --split train --out ref256.npz",
    )
)
@click.argument("data", metavar="DATA")
@click.option(
    "--features",
    "features_name",
    metavar="NAME",
    help="Feature network.  [default: digits for the data set digits, otherwise inception]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Crop to this size and convert to RGB, as ADM does.  [default: images as they are, all of one size]",
)
@click.option("--convert", is_flag=True, help="Convert greyscale, palettes and transparency to RGB without --size.")
@click.option(
    "--skip-bad", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out up to N unreadable images."
)
@click.option("--split", metavar="TEXT", help="What part of a data set this is; kept in the file.")
@click.option("--out", required=True, type=FILE, help="The npz file, in OpenAI's format.")
@feature_weights_option
@device_option
@seed_option
@overwrite_option
def command(
    data: str,
    features_name: str | None,
    size: int | None,
    convert: bool,
    skip_bad: int,
    split: str | None,
    out: Path,
    weights: Path | None,
    device: str,
    seed: int,
    overwrite: bool,
) -> None:
    """Measure a whole training set.

    DATA is a data set's name, a folder of images or of npz files, a zip archive of images, an LMDB, or an npz file.
    Statistics (mu, sigma, mu_s, sigma_s) are over every image of it; up to 10,000 images, chosen by
    seed, are kept in the file for precision and recall. Killed and repeated, the command goes on where it was.
    """
    from adm_bench import progress
    from adm_bench.devices import choose_device
    from adm_bench.errors import InputError
    from adm_bench.evaluation import load_features
    from adm_bench.files import check_new_file
    from adm_bench.images.encoded import EncodedImages
    from adm_bench.images.sources import open_image_set
    from adm_bench.reference_building import write_reference

    check_new_file(out, overwrite=overwrite, inputs=[data])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("reference runs in one process; start it without torchrun")
    chosen = features_name or ("digits" if data == "digits" else "inception")
    features = load_features(chosen, choose_device(device), weights)
    images = open_image_set(data, size=size, convert=convert or size is not None, skip_bad=skip_bad)
    if images.lossy:
        progress.say(f"{data}: is stored with loss (JPEG or the like), which shows in every number against it")
    left_out = images.left_out() if isinstance(images, EncodedImages) else None
    if left_out is not None:
        progress.say(f"warning: {data}: {left_out}")
    for name, reason in images.preparation.get("skipped", {}).items():
        progress.say(f"{data}/{name}: left out: {reason}")
    identity = write_reference(images, features, out, seed, split=split, overwrite=overwrite)
    size_text = "x".join(map(str, images.image_shape))
    click.echo(
        f"{out}: {identity['num_images']} images of {identity['data']} at {size_text}, "
        f"features {identity['features']} {identity['features_sha256'][:12]}"
    )
