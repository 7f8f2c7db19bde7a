"""`eventbus republish`: a range of what was published, once more."""

from __future__ import annotations

from datetime import datetime

import click

from eventbus.cli import options
from eventbus.cli.endings import needs


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """A time in ISO 8601 with its zone."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time: write it like 2026-11-25T08:30:00Z") from None
    if time.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no time zone: write it like {time.isoformat()}Z")

    return time


@click.command()
@click.argument("target")
@click.option(
    "--since",
    metavar="TIME",
    callback=moment,
    required=True,
    help="From when on, by the time in the envelope, like 2026-11-25T08:30:00Z.",
)
@click.option("--until", metavar="TIME", callback=moment, help="Up to when, not included.")
@click.option("--type", "kind", metavar="TYPE", help="Only these: book_registered_v1, or book_registered for all its versions.")
@click.option("--into", metavar="STREAM", help="Into this stream, instead of their own.")
@click.option("--url", envvar="EVENTBUS_URL", show_envvar=True, help="The server to use instead of the one that the relay names.")
@options.wait("a database or server")
def command(
    target: str, since: datetime, until: datetime | None, kind: str | None, into: str | None, url: str | None, wait: float
) -> int:
    """Publish once more what was published, and is still in the tables of the Relay that TARGET, module:attribute, names.

    In order, and in the same envelopes: a group with an inbox handles nothing twice, and what a stream was given within the last ten
    minutes is not added again. Every other group handles it again, unless it goes into a stream of its own.

    \b
    Exit codes: 0 published, 1 something failed, 2 the target or an option is wrong,
    3 the database or the server does not answer.
    """
    needs("sqlalchemy")

    from eventbus.cli.relaying import republish

    return republish(target, url=url, type=kind, since=since, until=until, into=into, wait=wait)
