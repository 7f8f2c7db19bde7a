"""`eventbus relay`: what was committed and not published is published, by a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventbus.cli import logs, options
from eventbus.cli.endings import DEBUG, needs, show_tracebacks

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(context_settings={"show_default": True})
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--url", envvar="EVENTBUS_URL", show_envvar=True, help="The server to use instead of the one that the relays name.")
@click.option("--drain", is_flag=True, help="Send everything that waits, say how much that was, and end.")
@options.wait("a database or server")
@logs.options
@click.option("--traceback", is_flag=True, help=f"Show whole tracebacks, as {DEBUG}=1 does.")
def command(
    targets: Sequence[str], url: str | None, drain: bool, wait: float, log_level: str, log_format: str, traceback: bool
) -> int:
    """Send what was committed and not published, until SIGINT or SIGTERM.

    A TARGET is module:attribute, where the attribute is a Relay, a list of them, or a function that returns either; or a module
    alone, for every Relay at its top level. Modules are looked for in the current directory first. Run it as often as you like.

    The first signal lets the batch under way end; a second one ends at once, with exit code 130.

    \b
    Exit codes: 0 stopped as asked, 1 something failed, 2 the target or an option is wrong,
    3 the database or the server does not answer, 130 ended at once.
    """
    if traceback:
        show_tracebacks()
    needs("sqlalchemy")

    from eventbus.cli.relaying import run

    return run(targets, url=url, wait=wait, drain=drain, log_level=log_level, log_format=log_format)
