"""What `eventbus audit` does: take the numbers of the groups of a stream, and say whether they add up."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click
import msgspec

from eventbus.cli.endings import Code, Failure, did_you_mean
from eventbus.cli.servers import address, reach
from eventbus.connect import connect
from eventbus.errors import ConfigurationError, excerpt
from eventbus.messages import check_name


def run(stream: str, groups: Sequence[str], *, url: str, as_json: bool) -> int:
    """Audit the groups, all of the stream if none is named, one line each; the exit code."""
    return anyio.run(_run, stream, groups, url, as_json)


async def _run(stream: str, groups: Sequence[str], url: str, as_json: bool) -> int:
    async with connect(url) as transport:
        from eventbus.redis import RedisTransport

        if not isinstance(transport, RedisTransport):
            raise Failure(f"{address(transport)} keeps no counts; an audit is of streams on a server", Code.USAGE)
        await reach(transport, stream, groups[0] if groups else "audit", advice="start it, or name another with --url")
        there, strange = _sorted_out(await transport.groups(stream))
        for name in strange if not groups else ():
            click.echo(f"stream {stream!r} has a group {excerpt(name)!r} too, which is none of ours: left out", err=True)
        if not there:
            raise Failure(f"{address(transport)} has no stream {stream!r} with groups on it", Code.USAGE)
        lost = False
        for group in groups or there:
            found = await transport.audit(stream, group)
            if found is None:
                hint = did_you_mean(group, there) or f"; there are {', '.join(there)}"
                raise Failure(f"stream {stream!r} has no group {group!r}{hint}", Code.USAGE)
            lost = lost or not found
            click.echo(msgspec.json.encode(found).decode() if as_json else str(found))

    return Code.LOST if lost else Code.OK


def _sorted_out(groups: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names that a group of ours may have, and names that it may not."""
    ours: list[str] = []
    strange: list[str] = []
    for name in groups:
        try:
            ours.append(check_name("group", name))
        except ConfigurationError:
            strange.append(name)

    return ours, strange
