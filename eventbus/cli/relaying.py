"""What `eventbus relay` and `eventbus republish` do: relays as the program of a process, and a range of what was published once more."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Final

import anyio
import click

from eventbus.cli import logs
from eventbus.cli.endings import Code, Failure, described, failure
from eventbus.cli.servers import Away, address, answered, reach
from eventbus.cli.service import moved
from eventbus.cli.signals import two_signals
from eventbus.cli.targets import find, look_here
from eventbus.sqlalchemy import Relay
from eventbus.sqlalchemy.database import Database, is_away

logger: Final = logging.getLogger("eventbus.cli")

THREADS_WITHIN: Final = 1.0
"""Seconds for a thread of a connection to end."""


def run(targets: Sequence[str], *, url: str | None, wait: float, drain: bool, log_level: str, log_format: str) -> int:
    """Run the relays that the targets name until a signal stops them, or until nothing waits. `Failure` if they do not start, or fail."""
    formatter = logs.configure(log_level, log_format)
    relays = _found(targets, url)

    def last_words(signal: str) -> str:
        text = f"ended at once by a second signal, {signal}: what was under way is sent again, and added once"

        return formatter.format(logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None))

    if drain:
        click.echo(f"sent {anyio.run(drained, relays, wait)}")
    else:
        anyio.run(serve, relays, wait, last_words)

    return Code.OK


def republish(
    target: str, *, url: str | None, type: str | None, since: datetime, until: datetime | None, into: str | None, wait: float
) -> int:
    """Publish a range of what was published before once more, and say how much that was."""
    relays = _found([target], url)
    if len(relays) > 1:
        raise Failure(f"{target} is {len(relays)} relays: name the one whose database it is", Code.USAGE)

    async def publish() -> int:
        async with _reached(relays, wait):
            return await relays[0].republish(type=type, since=since, until=until, into=into)

    count = anyio.run(publish)
    click.echo(f"published {count} again" + (f", into {into}" if into else ""))

    return Code.OK


async def serve(relays: Sequence[Relay], wait: float, last_words: Callable[[str], str]) -> None:
    """Run until the first signal, then end with the batch under way. `Failure` if a database or server does not answer, or one fails."""
    work = anyio.CancelScope()

    def stop(signal: str) -> None:
        sent = sum(relay.statistics().sent for relay in relays)
        text = "stopping on %s, after the batch under way; %d sent so far; a second signal ends at once"
        logger.info(text, signal, sent, extra={"event": "stopping", "sent": sent})
        work.cancel()

    try:
        with two_signals(stop, last_words), work:
            async with _reached(relays, wait), anyio.create_task_group() as running:
                for relay in relays:
                    await running.start(relay.run)
                    database = Database.of(relay.source, relay.tables)
                    logger.info(
                        "what is due in %s of %s is sent to %s",
                        relay.tables.messages.fullname, _url(database), address(relay.transport),
                        extra={"event": "ready", "tables": relay.tables.messages.fullname},
                    )  # fmt: skip
    except Exception as exc:
        raise failure(exc) from exc


async def drained(relays: Sequence[Relay], wait: float) -> int:
    """Send everything that waits; how many messages that was."""
    try:
        async with _reached(relays, wait):
            return sum([await relay.drain() for relay in relays])
    except Exception as exc:
        raise failure(exc) from exc


def _found(targets: Sequence[str], url: str | None) -> list[Relay]:
    look_here()
    relays = find(targets, Relay)

    return relays if url is None else moved(relays, url)


@asynccontextmanager
async def _reached(relays: Sequence[Relay], wait: float) -> AsyncGenerator[None]:
    """While the databases and servers answer: they are asked first, and closed in the end."""
    async with AsyncExitStack() as opened:
        for database in [Database.of(relay.source, relay.tables) for relay in relays]:
            opened.push_async_callback(_leave, database)
            await _reach(database, wait)
        for transport in {id(one.transport): one.transport for one in relays}.values():
            await opened.enter_async_context(transport)
            await reach(transport, transport.stream, "relay", wait=wait)
        yield


async def _reach(database: Database, wait: float) -> None:
    """Return when the database answers. `Failure` with `Code.UNREACHABLE` if it does not, tried for `wait` seconds, or does not let us in."""

    async def ask() -> None:
        try:
            await database.ask()
        except Exception as exc:
            why = f"no answer from {_url(database)}: {described(exc)}"
            raise (Away(why) if is_away(exc) else Failure(why, Code.UNREACHABLE)) from exc

    await answered(ask, wait)


async def _leave(database: Database) -> None:
    """Close its connections, also when we are told to stop: a connection of aiosqlite that is not closed complains.

    So does the thread of one that could not be opened, should it end after the event loop: nobody else waits for that.
    """
    with anyio.CancelScope(shield=True):
        await database.engine.dispose()
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                await anyio.to_thread.run_sync(thread.join, THREADS_WITHIN)


def _url(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=True)
