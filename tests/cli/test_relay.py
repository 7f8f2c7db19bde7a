"""`eventbus relay` and `eventbus republish`: what they find, what they say, and how they end."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
import redis
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from eventbus import Event, Metadata, UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.sqlalchemy import TABLES, SqlMessageStore
from eventbus.sqlalchemy.schema import from_now
from eventbus.testing import wait_until
from eventbus.testing.servers import LiveServer
from tests.cli.conftest import Command, Start

Write = Callable[[str, str], None]
Shop = Callable[..., None]

SHOP = """
import os
import re

from sqlalchemy.ext.asyncio import create_async_engine

from eventbus import MemoryTransport, connect
from eventbus.sqlalchemy import Relay

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shop.db"))
sending = Relay(engine, connect(os.environ.get("SERVER_URL", "memory://"), stream="relayed"), poll=0.02)
nothing = []


def both():
    return [sending, Relay(engine, MemoryTransport())]
"""


LATE = """
import asyncio, atexit, threading
import aiosqlite.core

IT = "_connection_worker_thread"
over = threading.Event()  # somebody waits for the thread, or the event loop is closed
join, close = threading.Thread.join, asyncio.SelectorEventLoop.close


def joined(self, timeout=None):
    if IT in self.name:
        over.set()
    join(self, timeout)


def closed(self):
    close(self)
    over.set()


threading.Thread.join, asyncio.SelectorEventLoop.close = joined, closed
aiosqlite.core.LOG.debug = lambda _, what="": "close_and_stop" in repr(what) and over.wait(20)
atexit.register(lambda: [thread.join(20) for thread in threading.enumerate() if IT in thread.name])
"""


class Ticked(Event):
    metadata = Metadata(name="ticked", published=True)
    number: int


@pytest.fixture
def shop(write: Write, tmp_path: Path) -> Shop:
    """A service whose outbox is given ten messages, and more when it is called."""
    write("shop", SHOP)
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"

    async def leave(*numbers: int) -> None:
        engine = create_async_engine(url)
        await TABLES.create_all(engine)
        async with (
            AsyncSession(engine) as session,
            UnitOfWork(session, message_store=SqlMessageStore(session, relay_after=0)) as uow,
        ):
            for number in numbers:
                uow.emit(Ticked(number))
            await uow.commit()
        await engine.dispose()

    anyio.run(leave, *range(10))

    return lambda *numbers: anyio.run(leave, *numbers)


@pytest.fixture
def server(redis_server: LiveServer) -> Iterator[LiveServer]:
    """A server that has not got them yet."""

    async def forget() -> None:
        async with RedisTransport(redis_server.url) as transport:
            for stream in ("relayed", "again"):
                await transport.delete(stream)

    yield redis_server
    anyio.run(forget)


def numbers(server: LiveServer, stream: str = "relayed") -> list[int]:
    """What a stream has, in order."""
    with redis.Redis.from_url(server.url) as client:
        return [msgspec.json.decode(fields[b"payload"])["number"] for _, fields in client.xrange(stream)]


# ----------------------------------------------------------------------------------------------------------------- relay


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop:sendin", "shop has no 'sendin'; did you mean sending?"),
        ("shop:engine", "shop:engine is an AsyncEngine, not a Relay or a list of them; its relays are sending"),
        ("shop:nothing", "shop:nothing is an empty list, not a Relay or a list of them; its relays are sending"),
        ("empty", "empty has no Relay at its top level; name what returns one: empty:attribute"),
    ],
)
def test_a_wrong_target_is_one_line(eventbus: Command, shop: Shop, write: Write, target: str, said: str) -> None:
    write("empty", "")

    done = eventbus("relay", target)

    assert (2, "", f"eventbus: {said}\n") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_sends_until_it_is_told_to_stop(start: Start, shop: Shop, server: LiveServer, number: signal.Signals) -> None:
    """What waits, and what comes; exit code 0."""
    with start("relay", "shop", SERVER_URL=server.url) as process:
        process.line("what is due in eventbus_messages of sqlite+aiosqlite:///shop.db is sent to ")
        shop(10, 11)
        wait_for(lambda: len(numbers(server)) == 12)
        process.signal(number)

        assert 0 == process.end()
        assert f"stopping on {number.name}, after the batch under way" in process.output
        assert "error" not in process.output
        assert "Traceback" not in process.output
    assert list(range(12)) == numbers(server)


def test_a_second_signal_ends_at_once(start: Start, shop: Shop) -> None:
    """Also while a server does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with start("relay", "shop:sending", "--wait", "30", SERVER_URL=url) as process:
            process.line("waiting up to 30 s")
            for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # so both are there before it can end
                process.signal(number)

            assert 130 == process.end()
        line = process.line("ended at once by a second signal, ")  # which of both comes first is for the system to say
        assert re.search(", SIG(INT|TERM): what was under way is sent again, and added once$", line)


def test_it_can_end_when_nothing_waits(eventbus: Command, shop: Shop, server: LiveServer) -> None:
    """For a job that runs from time to time. One place of two has what the other has not to send any more."""
    assert ["sent 10\n", "sent 0\n"] == [eventbus("relay", "shop:both", "--drain", "--url", server.url).stdout for _ in range(2)]
    assert list(range(10)) == numbers(server)


def test_the_end_waits_for_what_a_dead_relay_holds(eventbus: Command, shop: Shop, server: LiveServer, tmp_path: Path) -> None:
    """Until its lease has run out: nothing is left when the job ends."""

    async def hold() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
        async with engine.begin() as connection:
            await connection.execute(insert(TABLES.streams).values(stream="relayed", relay="dead", until=from_now(4)))
        await engine.dispose()

    anyio.run(hold)

    assert "sent 10\n" == eventbus("relay", "shop:sending", "--drain", SERVER_URL=server.url).stdout
    assert list(range(10)) == numbers(server)


@pytest.mark.parametrize("how", [(), ("--drain",)])
def test_a_server_that_is_not_there_is_one_line(eventbus: Command, shop: Shop, how: tuple[str, ...]) -> None:
    done = eventbus("relay", "shop:sending", *how, SERVER_URL="redis://127.0.0.1:1/0", EVENTBUS_LOG_LEVEL="error")

    assert (3, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://club:secret@127.0.0.1:1/club", "no answer from postgresql+asyncpg://club:***@127.0.0.1:1/club: "),
        ("postgresql+psycopg://club:secret@127.0.0.1:1/club", "no answer from postgresql+psycopg://club:***@127.0.0.1:1/club: "),
        ("sqlite+aiosqlite:////nowhere/shop.db", "no answer from sqlite+aiosqlite:////nowhere/shop.db: OperationalError"),
    ],
)
def test_a_database_that_is_not_there_is_one_line(eventbus: Command, shop: Shop, url: str, said: str) -> None:
    done = eventbus("relay", "shop:sending", DATABASE_URL=url)

    assert (3, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith(f"eventbus: {said}")
    assert "secret" not in done.stderr


def test_a_thread_that_ends_late_says_nothing(eventbus: Command, shop: Shop, write: Write) -> None:
    """That of aiosqlite answers the event loop once more after a database could not be opened, and complains if that is gone."""
    write("shop", LATE + SHOP)
    done = eventbus("relay", "shop:sending", DATABASE_URL="sqlite+aiosqlite:////nowhere/shop.db")

    assert 3 == done.returncode
    assert 1 == len(done.stderr.splitlines())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_it_can_wait_for_the_database(start: Start, shop: Shop, driver: str) -> None:
    url = f"postgresql+{driver}://club@127.0.0.1:1/club"
    with start("relay", "shop:sending", "--wait", "0.5", DATABASE_URL=url) as process:
        process.line("waiting up to 0.5 s: no answer from")

        assert 3 == process.end()
        assert "(waited 0.5 s)" in process.output


def test_tables_that_are_not_there_are_one_line(eventbus: Command, write: Write, server: LiveServer) -> None:
    """Exit code 2: the service has not been set up."""
    write("shop", SHOP)

    for command in (["relay"], ["relay", "--drain"], ["republish", "--since", "2026-01-01T00:00:00Z"]):
        done = eventbus(*command, "shop:sending", SERVER_URL=server.url)

        assert (2, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith("eventbus: eventbus_messages and the tables beside it are not there: make them with")


# ------------------------------------------------------------------------------------------------------------- republish


def test_a_range_is_published_once_more(eventbus: Command, shop: Shop, server: LiveServer) -> None:
    """By default into its own stream, which has it still; into another one if that is said."""
    eventbus("relay", "shop:sending", "--drain", SERVER_URL=server.url)

    done = eventbus("republish", "shop:sending", "--since", "2026-01-01T00:00:00Z", "--into", "again", SERVER_URL=server.url)
    assert (0, "published 10 again, into again\n", "") == (done.returncode, done.stdout, done.stderr)
    assert list(range(10)) == numbers(server, "again")

    done = eventbus("republish", "shop", "--since", "2026-01-01T00:00:00Z", "--type", "ticked", SERVER_URL=server.url)
    assert (0, "published 10 again\n", "") == (done.returncode, done.stdout, done.stderr)
    assert list(range(10)) == numbers(server)

    done = eventbus("republish", "shop", "--since", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z")
    assert (0, "published 0 again\n") == (done.returncode, done.stdout)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "yesterday"), "'yesterday' is no time: write it like 2026-11-25T08:30:00Z"),
        (("--since", "2026-11-25"), "'2026-11-25' has no time zone: write it like 2026-11-25T00:00:00Z"),
        ((), "Missing option '--since'"),
    ],
)
def test_a_range_that_is_not_clear_is_refused(eventbus: Command, shop: Shop, options: tuple[str, ...], said: str) -> None:
    done = eventbus("republish", "shop:sending", *options)

    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr


def test_one_database_is_named(eventbus: Command, shop: Shop) -> None:
    done = eventbus("republish", "shop:both", "--since", "2026-01-01T00:00:00Z")

    assert (2, "eventbus: shop:both is 2 relays: name the one whose database it is\n") == (done.returncode, done.stderr)


def wait_for(happened: Callable[[], bool]) -> None:
    async def wait() -> None:
        await wait_until(happened, description="the relay has done it")

    anyio.run(wait)
