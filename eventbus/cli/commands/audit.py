"""`eventbus audit`: whether anything was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument("stream")
@click.argument("groups", metavar="[GROUP...]", nargs=-1)
@click.option("--url", envvar="EVENTBUS_URL", show_envvar=True, default="redis://localhost:6379/0", show_default=True,
              help="The server.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(stream: str, groups: Sequence[str], url: str, as_json: bool) -> int:
    """Add up what each GROUP of a STREAM was given: all of them, where none is named.

    What was added since a group began is settled, pending or unread; the rest was removed before the group had settled it, and is lost.

    \b
    Exit codes: 0 everything adds up, 2 there is no such group or stream,
    3 the server does not answer, 4 something is lost.
    """
    from eventbus.cli.auditing import run

    return run(stream, groups, url=url, as_json=as_json)
