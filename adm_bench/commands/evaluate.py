"""`adm-bench evaluate`."""

from pathlib import Path

import click

from adm_bench.commands.options import FILE, device_option, example, inception_weights_option

DEFAULT_METRICS = "fid,sfid,is,precision,recall,copied"


@click.command(
    epilog=example(
        "adm-bench evaluate ref.npz samples.npz --features digits",
        "adm-bench evaluate ref.npz samples.npz --metrics fid,recall --json numbers.json",
        "adm-bench fetch inception; adm-bench evaluate ref.npz samples.npz --features inception",
    )
)
@click.argument("reference", type=FILE)
@click.argument("samples", type=FILE)
@click.option("--features", "features_name", default="digits", metavar="NAME", help="Feature network.")
@click.option("--metrics", default=DEFAULT_METRICS, metavar="NAME,...", help="What to measure.")
@click.option("--json", "json_path", type=FILE, help="Also write every number with its circumstances to this file.")
@click.option("--overwrite", is_flag=True, help="Replace the --json file.")
@inception_weights_option
@device_option
def command(
    reference: Path,
    samples: Path,
    features_name: str,
    metrics: str,
    json_path: Path | None,
    overwrite: bool,
    weights: Path | None,
    device: str,
) -> None:
    """Measure samples against a reference.

    Both are npz files; the feature network names the protocol.
    """
    import json

    from adm_bench.devices import choose_device, describe_device
    from adm_bench.evaluation import evaluate, load_features, load_metrics
    from adm_bench.files import check_new_file, file_sha256, write_json
    from adm_bench.images.npz import NpzFile, read_identity
    from adm_bench.records import Circumstances, evaluated
    from reports.records import to_json_line

    if json_path is not None:
        check_new_file(json_path, overwrite=overwrite, inputs=[reference, samples])
    chosen = load_metrics([name.strip() for name in metrics.split(",") if name.strip()])
    features = load_features(features_name, choose_device(device), weights)
    evaluation = evaluate(reference, samples, features, chosen)
    protocol = evaluation.protocol
    click.echo(
        f"protocol {protocol.name} v{protocol.version}, features {evaluation.features} "
        f"{evaluation.features_sha256[:12]}, {evaluation.num_images} samples "
        f"against {evaluation.num_reference_images or 'an unknown number'}"
    )
    for metric in chosen:
        click.echo(f"{metric.label:<12}{evaluation.values[metric.name]:>14.6g}")
    if json_path is not None:
        identity = read_identity(NpzFile(samples))
        made_by = identity.get("generator", {})
        circumstances = Circumstances(
            run="evaluate",
            generator=samples.stem,
            device=describe_device(features.device),
            seed=identity.get("seed"),
            settings={"generator": made_by.get("generator"), **made_by.get("options", {})},
            inputs={"samples": file_sha256(samples), "reference": file_sha256(reference)},
        )
        records = evaluated(evaluation, chosen, circumstances)
        write_json(json_path, [json.loads(to_json_line(record)) for record in records])
