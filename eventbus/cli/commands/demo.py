"""`eventbus demo`: the reading club at work, with everything that can go wrong."""

from __future__ import annotations

import click


@click.command(context_settings={"show_default": True})
@click.option(
    "--url", help="Run it on this server, under a stream name of its own, and clean up.  [default: a server of its own]"
)
@click.option("--books", type=click.IntRange(6, 10_000), default=8, metavar="N", help="How many books are registered.")
def command(url: str | None, books: int) -> int:
    """Watch commands become events, and two groups of processes handle them.

    Books are registered and published; a mailer (two processes) and a catalog handle them, each in its own group. One handler
    fails and is retried, one message can never be handled and another cannot even be read: both are buried. One process is killed
    while it handles, and another finishes its work. In the end it must add up: published = acked + buried, in each group.

    It starts a Valkey server of its own, which ends with it; where there is none to start it runs on memory:// and says so.
    """
    from eventbus.cli.demo.show import show

    return show(url, books)
