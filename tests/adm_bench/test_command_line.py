"""The command line as users' scripts know it: its options are frozen, its help is complete."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from adm_bench.cli import COMMANDS, main

FROZEN = Path(__file__).with_name("command_line.json")


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def commands() -> dict[str, click.Command]:
    """Every command by its name, those of groups as `group command`."""
    found = {}
    for name in COMMANDS:
        found[name] = command(name)
        if isinstance(found[name], click.Group):
            found |= {f"{name} {inner}": each for inner, each in found[name].commands.items()}  # type: ignore[attr-defined]
    return found


def described(parameter: click.Parameter) -> dict[str, Any]:
    kind = parameter.type
    default = None if repr(parameter.default) == "Sentinel.UNSET" else parameter.default
    return {
        "names": [*parameter.opts, *parameter.secondary_opts],
        "type": repr(kind) if isinstance(kind, click.Choice | click.IntRange | click.FloatRange) else kind.name,
        "default": list(default) if isinstance(default, tuple) else default,
        "required": parameter.required,
        "multiple": getattr(parameter, "multiple", False),
    }


def test_options_are_frozen() -> None:
    """A change here breaks scripts: if it is meant, say so in CHANGELOG.md and write the file anew."""
    now = {name: [described(parameter) for parameter in each.params] for name, each in commands().items()}
    assert json.loads(json.dumps(now)) == json.loads(FROZEN.read_text())


@pytest.mark.parametrize("name", commands())
def test_help_is_complete(name: str) -> None:
    for parameter in commands()[name].params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name} {parameter.opts}: no help"
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert f"adm-bench {name}" in result.output.partition("Example:")[2]
    assert max(len(line) for line in result.output.splitlines()) <= 100


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_fits_a_terminal_of_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if len(line) > 80] == []


def test_help_shows_defaults_and_ranges() -> None:
    text = CliRunner().invoke(main, ["sample", "--help"], terminal_width=100).output
    for expected in ("[default: 256; x>=1]", "[default: 1000, or all of", "[ddpm|ddim]", "[x>=1]"):
        assert expected in text


@pytest.mark.parametrize("kind", ["generators", "presets", "metrics", "features", "datasets", "trainers"])
def test_list_says_what_there_is(kind: str) -> None:
    rows = json.loads(CliRunner().invoke(main, ["list", kind, "--json"]).output)
    assert rows
    table = CliRunner().invoke(main, ["list", kind]).output
    for name, row in rows.items():
        assert name in table
        assert all(str(value).strip() for value in row.values()), f"{name}: {row}"


def test_ctrl_c_ends_as_shells_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:  # noqa: ARG001  the registry's
        raise KeyboardInterrupt

    monkeypatch.setattr("adm_bench.registry.rows", interrupted)
    result = CliRunner().invoke(main, ["list", "generators"])
    assert (result.exit_code, result.stderr) == (130, "Aborted!\n")
