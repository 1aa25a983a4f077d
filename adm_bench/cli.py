"""The command line: a group whose commands are imported when they are needed."""

import importlib
import os
from typing import Any

import click

from adm_bench.commands.options import example
from adm_bench.errors import AlreadySaidError, InputError, explain

COMMANDS = (
    "train",
    "sample",
    "figure",
    "reference",
    "evaluate",
    "likelihood",
    "compute",
    "report",
    "run",
    "list",
    "inspect",
    "convert",
    "fetch",
)


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count."""


class BadInput(click.ClickException):
    """What the user can mend, as one line."""

    exit_code = 2


class OurFailure(click.ClickException):
    """What only we can mend, as one line."""

    exit_code = 1


class LazyGroup(click.Group):
    """Imports a command's module, `adm_bench.commands.NAME`, on first use, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """In the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"adm_bench.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but suggesting the nearest name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from generators.configuration import unknown_name

            ctx.fail(unknown_name("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with `--debug`, errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of our output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if ctx.params["debug"]:
                raise
            if isinstance(error, AlreadySaidError):
                ctx.exit(error.exit_status)
            line, exit_status = explain(error)
            if isinstance(error, InputError) and os.environ.get("RANK", "0") != "0":
                ctx.exit(exit_status)  # the first process of torchrun says it, once
            raise (BadInput if exit_status == BadInput.exit_code else OurFailure)(line) from error


@click.group(
    cls=LazyGroup,
    epilog=example(
        "adm-bench run examples/digits.toml     everything at once; or step by step:",
        "adm-bench train adm --data digits --out runs/adm",
        "adm-bench sample adm --weights runs/adm --num 1797 --out samples.npz",
        "adm-bench reference digits --features digits --out ref.npz",
        "adm-bench evaluate ref.npz samples.npz --features digits",
    ),
    context_settings={"show_default": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="adm-bench")
def main(debug: bool) -> None:
    """Train, sample, measure and compare image generators.

    Exit status: 0, 2 for bad input, 1 for a failure of adm-bench itself.
    """
