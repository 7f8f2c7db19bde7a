"""`eventbus run`: subscribers as a service of their own, until they are told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eventbus.cli import logs, options
from eventbus.cli.endings import DEBUG, show_tracebacks

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(context_settings={"show_default": True})
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--url", envvar="EVENTBUS_URL", show_envvar=True, help="The server to use instead of the one that the subscribers name."
)
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", envvar="EVENTBUS_CONCURRENCY", show_envvar=True,
              help="Handlers at once, instead of what the subscribers say.")  # fmt: skip
@options.wait("a server")
@logs.options
@click.option("--traceback", is_flag=True, help=f"Show whole tracebacks, as {DEBUG}=1 does.")
def command(
    targets: Sequence[str],
    url: str | None,
    concurrency: int | None,
    wait: float,
    log_level: str,
    log_format: str,
    traceback: bool,
) -> int:
    """Run subscribers until SIGINT or SIGTERM.

    A TARGET is module:attribute, where the attribute is a Subscriber, a list of them, or a function that returns either; or a module
    alone, for every Subscriber at its top level. Modules are looked for in the current directory first.

    The first signal lets running handlers end and gives back what has not started; a second one ends at once, with exit code 130.

    \b
    Exit codes: 0 stopped as asked, 1 something failed, 2 the target or an option is wrong,
    3 the server does not answer, 130 ended at once.
    """
    if traceback:
        show_tracebacks()

    from eventbus.cli.service import run

    return run(targets, url=url, concurrency=concurrency, wait=wait, log_level=log_level, log_format=log_format)
