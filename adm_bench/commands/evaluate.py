"""`adm-bench evaluate`."""

from pathlib import Path
from typing import Any

import click

from adm_bench.commands.options import (
    FILE,
    device_option,
    example,
    feature_weights_option,
    features_option,
    keeping_options,
    preparation_options,
)


@click.command(
    epilog=example(
        "adm-bench evaluate ref.npz samples.npz",
        "adm-bench evaluate ref.npz samples/ --metrics fid,recall,kid --json out.json",
        "adm-bench evaluate VIRTUAL_imagenet256_labeled.npz samples.npz --intervals",
        "adm-bench evaluate ref.npz samples.npz --metrics fid,kid --per-class \\",
        "    --json numbers.json",
        "torchrun --nproc-per-node 8 -m adm_bench evaluate ref.npz samples.npz",
    )
)
@click.argument("reference", type=FILE)
@click.argument("samples", type=FILE)
@features_option
@click.option(
    "--metrics",
    metavar="NAME,...",
    help="What to measure; list metrics shows them.  [default: fid,sfid,is,precision,recall,copied, if possible]",
)
@click.option(
    "--pr-precision",
    type=click.Choice(("fp16", "fp32")),
    help="Arithmetic of precision and recall.  [default: the protocol's; adm: fp16]",
)
@click.option("--intervals", "with_intervals", is_flag=True, help="Also 95 % intervals of FID, IS, precision, recall.")
@click.option("--per-class", is_flag=True, help="Also FID and KID class by class; both sides need labels.")
@preparation_options
@click.option(
    "--skip-bad",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Leave out up to N unreadable images of either side.",
)
@keeping_options
@click.option("--json", "json_path", type=FILE, help="Also write every number with its circumstances to this file.")
@click.option("--overwrite", is_flag=True, help="Replace the --json file.")
@feature_weights_option
@device_option
def command(
    reference: Path,
    samples: Path,
    features_name: str | None,
    metrics: str | None,
    pr_precision: Any,
    with_intervals: bool,
    per_class: bool,
    size: int | None,
    convert: bool,
    skip_bad: int,
    memory_gb: float,
    no_cache: bool,
    json_path: Path | None,
    overwrite: bool,
    weights: Path | None,
    device: str,
) -> None:
    """Measure samples against a reference.

    Either is an npz file in OpenAI's format, a folder of images or of npz files, a zip archive of images, or an LMDB;
    a reference may also hold statistics only. Features are kept in $ADM_BENCH_HOME/features and reused where the
    images are the same, so that a killed command goes on.
    """
    import json

    from adm_bench import progress
    from adm_bench.devices import choose_device, describe_device
    from adm_bench.evaluation import default_metrics, evaluate, load_features, load_metrics
    from adm_bench.extraction import Extraction
    from adm_bench.files import check_new_file, write_json
    from adm_bench.images.npz import NpzFile, read_identity
    from adm_bench.images.sources import open_image_set
    from adm_bench.ranks import joined_ranks
    from adm_bench.records import Circumstances, evaluated, evaluated_by_class, skipped_images
    from adm_bench.references import Reference
    from adm_bench.weights_store import home
    from metrics.rows import MemoryBudget
    from reports.records import to_json_line

    if json_path is not None:
        check_new_file(json_path, overwrite=overwrite, inputs=[reference, samples])
    against = Reference.open(reference, size=size, convert=convert, skip_bad=skip_bad)
    images = open_image_set(samples, size=size, convert=convert, skip_bad=skip_bad)
    skipped = skipped_images(images, against)
    for side, count in skipped.get("num_skipped", {}).items():
        progress.say(f"{side}: unreadable images left out: {count}")
    with joined_ranks() as ranks:
        features = load_features(
            features_name or against.identity.get("features") or "inception", choose_device(device), weights
        )
        names = default_metrics(against, images, features) if metrics is None else metrics.split(",")
        chosen = load_metrics([name.strip() for name in names if name.strip()])
        extraction = Extraction(
            features=features,
            cache_root=None if no_cache else home() / "features",
            budget=MemoryBudget(bytes_left=memory_gb * 1e9),
            ranks=ranks,
        )
        evaluation = evaluate(
            against,
            images,
            extraction,
            chosen,
            pr_precision=pr_precision,
            with_intervals=with_intervals,
            per_class=per_class,
        )
    if evaluation is None:
        return
    click.echo(evaluation.headline)
    for metric in chosen:
        line = f"{evaluation.label(metric):<16}{evaluation.values[metric.name]:>14.6g}"
        if metric.name in evaluation.intervals:
            interval = evaluation.intervals[metric.name]
            line += f"   {100 * interval.level:.0f} %: {interval.low:.6g} to {interval.high:.6g}"
        click.echo(line)
    for line in evaluation.class_table:
        click.echo(line)
    if json_path is not None:
        identity = read_identity(NpzFile(samples)) if samples.suffix == ".npz" and samples.is_file() else {}
        made_by = identity.get("generator", {})
        told = {"warnings": list(evaluation.warnings)} if evaluation.warnings else {}
        circumstances = Circumstances(
            run="evaluate",
            generator=samples.stem,
            device=describe_device(features.device),
            seed=identity.get("seed"),
            world_size=ranks.size,
            settings={
                "generator": made_by.get("generator"),
                **made_by.get("options", {}),
                **images.preparation,
                **skipped,
                **told,
            },
            inputs={"samples": images.digest(), "reference": against.digest()},
        )
        records = [*evaluated(evaluation, chosen, circumstances), *evaluated_by_class(evaluation, circumstances)]
        write_json(json_path, [json.loads(to_json_line(record)) for record in records])
