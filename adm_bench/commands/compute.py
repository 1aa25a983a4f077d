"""`adm-bench compute`."""

import click

from adm_bench.commands.options import PRECISIONS, device_option, example, parse_changes, print_json, set_option


@click.command(
    epilog=example(
        "adm-bench compute --preset digits8",
        "adm-bench compute --preset digits8 --set model.channels=64 --measure",
    )
)
@click.option("--preset", "preset_name", default="digits8", metavar="NAME", help="Network and training to cost.")
@set_option
@click.option(
    "--sampling-steps", type=click.IntRange(min=2), default=250, help="Network evaluations an image, for sampling."
)
@click.option("--measure", is_flag=True, help="Also time training and sampling on this machine.")
@click.option("--batch", type=click.IntRange(min=1), default=64, help="Images at a time in timed sampling.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Arithmetic of timed training.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Plain data instead of a table.")
def command(
    preset_name: str,
    changes: tuple[str, ...],
    sampling_steps: int,
    measure: bool,
    batch: int,
    precision: str,
    device: str,
    as_json: bool,
) -> None:
    """Count what a preset costs.

    Parameters, MACs and FLOPs; with --measure, images a second on this machine too.
    """
    from adm_bench.compute import measure_forward, measure_training, network_cost
    from adm_bench.devices import choose_device
    from adm_bench.errors import bad_input
    from generators.adm.config import GuideConfig
    from generators.adm.presets import preset
    from generators.configuration import to_mapping, with_changes

    with bad_input("--preset"):
        chosen = preset(preset_name)
    with bad_input("--set"):
        config = with_changes(chosen.config, parse_changes(changes))
    values: dict[str, float] = to_mapping(network_cost(config))
    if not isinstance(config, GuideConfig):
        values["sampling_flops_per_image"] = values["forward_flops_per_image"] * sampling_steps
    values["training_flops"] = values["training_flops_per_image"] * config.training.batch_size * config.training.steps
    if measure:
        on = choose_device(device)
        values["training_images_per_sec"] = measure_training(chosen.trainer, config, on, precision).images_per_sec
        evaluations_per_sec = measure_forward(config, on, batch).images_per_sec
        values["network_evaluations_per_sec"] = evaluations_per_sec
        if not isinstance(config, GuideConfig):
            values["sampling_images_per_sec"] = evaluations_per_sec / sampling_steps
    if as_json:
        print_json({"preset": preset_name, **values})
        return
    click.echo(f"{preset_name}: {chosen.summary}")
    for name, value in values.items():
        click.echo(
            f"{name.replace('_', ' '):<30}{value:>24,.6g}"
            if value % 1
            else f"{name.replace('_', ' '):<30}{value:>24,.0f}"
        )
