"""The command `eventbus` itself: it finds its subcommands, and turns every way out into an exit code."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

import eventbus
from eventbus.cli import commands
from eventbus.cli.endings import Code, Failure, did_you_mean, failure


class Commands(click.Group):
    """Each module of `eventbus.cli.commands` is a command, and has it as ``command``: `dead_letters.py` is ``dead-letters``.

    They are imported when they are asked for, and import what they need when they run: help is quick.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._modules())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self._modules().get(cmd_name)
        if module is None:
            return None
        command: click.Command = import_module(f"{commands.__name__}.{module}").command

        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self._modules():
            ctx.fail(f"there is no command {name!r}{did_you_mean(name, self._modules())}")

        return super().resolve_command(ctx, args)

    def _modules(self) -> Mapping[str, str]:
        return {module.name.replace("_", "-"): module.name for module in pkgutil.iter_modules(commands.__path__)}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(eventbus.__version__, prog_name="eventbus", message="%(prog)s %(version)s")
def program() -> None:
    """Commands and events in one process, and on Redis streams between many."""


def execute(arguments: list[str] | None = None) -> int:
    """Do what the arguments (those of this process, by default) say; the exit code. Errors are told on stderr."""
    try:
        code: Any = program.main(arguments, prog_name="eventbus", standalone_mode=False)
    except Failure as exc:
        exc.show()
        return exc.code
    except click.ClickException as exc:
        exc.show()
        return Code.USAGE
    except (click.Abort, KeyboardInterrupt):
        return Code.FORCED
    except Exception as exc:
        ending = failure(exc)
        ending.show()
        return ending.code

    return code if isinstance(code, int) else Code.OK
