"""Options that several commands share, and how their texts become values."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Command = Callable[..., None]
FILE = click.Path(path_type=Path)
PRECISIONS = ("fp32", "bf16", "fp16")
DEFAULT_MEMORY_GB = 4.0


class SamplingSteps(click.ParamType[dict[str, object]]):
    """Steps to sample in: one number, or one for each of equal sections of the process."""

    name = "N|N,N,..."

    def convert(
        self, value: str | dict[str, object], param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        """The option of a diffusion sampler that says so."""
        if isinstance(value, dict):
            return value
        try:
            steps = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no number of steps; expected 250, or 90,60,60,20,20", param, ctx)
        if len(steps) > 1:
            return {"section_steps": steps}
        if steps[0] < 2:
            self.fail(f"{steps[0]} is too few; expected 2 or more", param, ctx)
        return {"sampling_steps": steps[0]}


def device_option(command: F) -> F:
    """`--device`."""
    return click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")(command)


def feature_weights_option(command: F) -> F:
    """`--feature-weights`."""
    return click.option(
        "--feature-weights",
        "--inception-weights",
        "weights",
        type=FILE,
        help="Weights of the feature network.  [default: $ADM_BENCH_INCEPTION (inception, clean) or $ADM_BENCH_DINOV2 "
        "(dinov2), or what fetch got]",
    )(command)


def labels_from_option(command: F) -> F:
    """`--labels`."""
    return click.option(
        "--labels",
        "labels_from",
        type=click.Choice(("auto", "folder", "prefix", "none")),
        default="auto",
        help="Classes: what the data state or their folders (auto), folders, or names up to the first '_' as ADM's.",
    )(command)


def features_option(command: F) -> F:
    """`--features`."""
    return click.option(
        "--features",
        "features_name",
        metavar="NAME",
        help="Feature network.  [default: what the first argument says, or inception]",
    )(command)


def preparation_options(command: F) -> F:
    """`--size` and `--convert`: what is done to images before they are measured."""
    size = click.option("--size", type=click.IntRange(min=1), help="Crop images to this size first, as ADM does.")
    convert = click.option("--convert", is_flag=True, help="Convert greyscale, palettes and transparency to RGB.")
    return size(convert(command))


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse NaN, which no range excludes, and infinity."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number; expected gigabytes, such as 4 or 0.5", ctx, param)
    return value


def keeping_options(command: F) -> F:
    """`--memory-gb` and `--no-cache`: where features lie."""
    memory = click.option(
        "--memory-gb",
        type=click.FloatRange(min=0),
        callback=_finite,
        default=DEFAULT_MEMORY_GB,
        help="Features that stay in memory; more lie in a temporary file.",
    )
    no_cache = click.option("--no-cache", is_flag=True, help="Neither reuse features of the same images nor keep them.")
    return memory(no_cache(command))


def seed_option(command: F) -> F:
    """`--seed`."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything that is drawn.")(
        command
    )


def overwrite_option(command: F) -> F:
    """`--overwrite`."""
    return click.option("--overwrite", is_flag=True, help="Replace what is at --out.")(command)


def set_option(command: F) -> F:
    """`--set FIELD=VALUE`, repeatable."""
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Change one field of the configuration; repeatable. Lists as in TOML: model.channel_mult=[1,2].",
    )(command)


def bundled(kind: type) -> Callable[[Command], Command]:
    """Hand a command those of its options that are fields of a dataclass as one such object, its first argument."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collected(**given: Any) -> None:
            command(kind(**{field.name: given.pop(field.name) for field in fields(kind)}), **given)

        return collected

    return decorate


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """`FIELD=VALUE` texts as a mapping; a usage error where one has no `=`."""
    from generators.configuration import literal

    parsed = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{change!r}; expected FIELD=VALUE", param_hint="--set")
        parsed[name.strip()] = literal(value.strip())
    return parsed


def print_json(value: Any) -> None:
    """Plain data on stdout."""
    import json

    click.echo(json.dumps(value, indent=2))


def example(*lines: str) -> str:
    """An epilog that shows how a command is used, kept line by line."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
