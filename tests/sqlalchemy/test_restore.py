"""What a server has lost is sent again: what it had last when it died, and nothing that it still has."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select, update

from eventbus import Envelope, Event, MemoryTransport, Metadata
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.envelope import decode
from eventbus.errors import Unavailable
from eventbus.message_store import Record
from eventbus.redis import RedisTransport
from eventbus.redis.keys import Keys
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore, relay, restore
from eventbus.sqlalchemy import database as own
from eventbus.sqlalchemy.schema import from_now
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import find_servers
from tests.sqlalchemy.club import Club
from tests.sqlalchemy.conftest import Database

MESSAGES, SERVERS = TABLES.messages.c, TABLES.servers.c


class Numbered(Event):
    metadata = Metadata(name="numbered", published=True)
    number: int


class Server(MemoryTransport):
    """A transport whose server can be another one from one moment to the next, without the newest of what it had."""

    endpoint = "the-server"

    def __init__(self) -> None:
        super().__init__()
        self.run = "first"
        self.there: dict[str, int] = {}
        self.publishes = 0
        self.dying = -1
        self._count = 0

    async def run_id(self) -> str | None:
        return self.run

    async def holds(self, stream: str, entry_ids: Sequence[str], /) -> list[bool]:
        return [id in self.there for id in entry_ids]

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        if self.publishes == self.dying:
            raise Unavailable("it has just died")
        self.publishes += 1
        ids = []
        for envelope in envelopes:
            self._count += 1
            number = decode(Numbered, envelope.payload).number
            known = next((id for id, there in self.there.items() if there == number), None)
            ids.append(known or f"{self._count}-0")
            self.there.setdefault(ids[-1], number)

        return ids

    def die(self, lost: int, run: str = "second") -> None:
        """The newest of its entries are gone."""
        for id in list(self.there)[len(self.there) - lost :]:
            del self.there[id]
        self.run = run

    @property
    def numbers(self) -> list[int]:
        """What is in its stream, in order."""
        return list(self.there.values())


@pytest.fixture
def server() -> Server:
    return Server()


async def publish(database: Database, transport: Any, *numbers: int) -> list[Record]:
    """Commit and publish at once; what was published."""
    session = database.sessions()
    async with Club(session, transport=transport, message_store=SqlMessageStore(session)) as uow:
        for number in numbers:
            uow.emit(Numbered(number))
        records = list(uow.gather(None))
        await uow.commit()

    return records


async def age(database: Database, seconds: float, *numbers: int) -> None:
    """These were sent so long ago, or all of them."""
    payloads = [b'{"number":%d}' % number for number in numbers]
    which = MESSAGES.payload.in_(payloads) if numbers else MESSAGES.sent_at.is_not(None)
    await database.do(update(TABLES.messages).where(which).values(sent_at=from_now(-seconds)))


async def known(database: Database) -> list[tuple[str, str]]:
    return await database.rows(select(SERVERS.server, SERVERS.run_id))


async def met(database: Database, server: Server, *, seen: float = 0.0) -> Relay:
    """A relay that knows the server, and saw it last so many seconds ago."""
    sending = Relay(database.engine, server)
    await sending.drain()
    await database.do(update(TABLES.servers).values(seen_at=from_now(-seen)))

    return sending


async def test_what_another_run_has_lost_is_sent_again(database: Database, server: Server) -> None:
    """In order, and what it still has is not there twice."""
    sending = await met(database, server)
    await publish(database, server, *range(10))
    server.die(4)
    assert [0, 1, 2, 3, 4, 5] == server.numbers

    await sending.drain()

    assert list(range(10)) == server.numbers
    assert [("the-server", "second")] == await known(database)
    assert 0 == await sending.drain()


async def test_the_same_run_gets_nothing_again(database: Database, server: Server) -> None:
    sending = await met(database, server)
    await publish(database, server, 1)

    assert 0 == await sending.drain()

    assert 1 == server.publishes
    assert [("the-server", "first")] == await known(database)


async def test_only_what_was_sent_within_the_horizon_is_sent_again(database: Database, server: Server) -> None:
    """Counted back from when the server was last seen."""
    sending = replace(await met(database, server, seen=10), horizon=30)
    await publish(database, server, *range(4))
    await age(database, 50, 0)
    await age(database, 35, 1)
    await age(database, 5, 2)
    server.die(0)

    assert 3 == await sending.drain()


async def test_the_horizon_is_counted_back_from_the_newest_message(database: Database, server: Server) -> None:
    """If that was sent before the server was last seen: whoever is quiet for long may have lost something all the same."""
    sending = replace(await met(database, server), horizon=30)
    await publish(database, server, *range(3))
    await age(database, 300, 0)
    await age(database, 280, 1)
    await age(database, 260, 2)
    server.die(2)

    assert 2 == await sending.drain()
    assert [0, 1, 2] == server.numbers


async def test_what_others_have_sent_to_the_new_run_hides_nothing(database: Database, server: Server) -> None:
    """The relay was away when the server died; its processes went on for longer than the horizon."""
    sending = await met(database, server, seen=600)
    await publish(database, server, *range(4))
    await age(database, 601)
    server.die(2)
    await publish(database, server, 4, 5)

    await sending.drain()

    assert [0, 1, 4, 5, 2, 3] == server.numbers


@pytest.mark.one_driver
async def test_what_was_sent_long_ago_is_looked_for_first(database: Database, server: Server) -> None:
    """The server knows the ids of the last ten minutes only: an orderly restart after a quiet hour must not send letters twice."""
    sending = await met(database, server)
    await publish(database, server, *range(1200))
    await age(database, 3600)
    server.die(3)

    assert 3 == await sending.drain()
    assert list(range(1200)) == server.numbers


async def test_a_server_that_is_seen_for_the_first_time_may_have_lost_something(database: Database, server: Server) -> None:
    """Nobody knows whether it was another run when that was sent."""
    await publish(database, server, *range(5))
    server.die(2)

    await Relay(database.engine, server).drain()

    assert [0, 1, 2, 3, 4] == server.numbers
    assert [("the-server", "second")] == await known(database)


async def test_who_marks_too_late_marks_nothing(database: Database, server: Server) -> None:
    """It has published to the run that died, and was held up; meanwhile the relay has found another run, and sends it without delay."""
    sending = await met(database, server)
    held_up = anyio.Event()

    class Slow(SqlMessageStore):
        async def published(self, records: Sequence[Record]) -> None:
            await held_up.wait()
            await super().published(records)

    async def publish_slowly() -> None:
        session = database.sessions()
        async with Club(session, transport=server, message_store=Slow(session, relay_after=3600)) as uow:
            uow.emit(Numbered(1))
            await uow.commit()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish_slowly)
        await wait_until(lambda: [1] == server.numbers, description="it was published")
        server.die(1)
        await restore.Server(own.Database(database.engine), TABLES, server, 60.0).look()
        held_up.set()
    assert [] == server.numbers

    async with anyio.create_task_group() as tasks:
        await tasks.start(sending.run)
        await wait_until(lambda: [1] == server.numbers, description="it was sent again")
        tasks.cancel_scope.cancel()


@pytest.mark.one_driver
async def test_a_relay_that_dies_in_the_middle_of_it_does_no_harm(database: Database, server: Server) -> None:
    """What it has not sent yet is due, and sent by the next; also if the server dies again meanwhile."""
    sending = replace(await met(database, server), batch=2)
    await publish(database, server, *range(10))
    server.die(6)
    server.dying = server.publishes + 2
    with pytest.raises(Unavailable):
        await sending.drain()
    assert len(server.numbers) < 10

    server.dying = -1
    server.die(2, "third")
    await replace(sending).drain()

    assert set(range(10)) == set(server.numbers)
    assert [("the-server", "third")] == await known(database)


async def test_a_second_death_long_after_the_first_loses_nothing_either(database: Database, server: Server) -> None:
    """What was sent again was sent now, and is within the horizon of the next death."""
    sending = await met(database, server, seen=500)
    await publish(database, server, *range(4))
    await age(database, 520)
    server.die(4)
    await sending.drain()
    assert [0, 1, 2, 3] == server.numbers

    server.die(4, "third")
    await sending.drain()

    assert [0, 1, 2, 3] == server.numbers


async def test_two_relays_that_find_it_out_at_once(database: Database, server: Server) -> None:
    """One of them makes due what may be lost."""
    sending = await met(database, server)
    await publish(database, server, *range(200))
    server.die(50)
    looks = [restore.Server(own.Database(database.engine), TABLES, server, 60.0) for _ in range(3)]
    counts: list[int] = []

    async def look(one: restore.Server) -> None:
        counts.append(await one.look())

    async with anyio.create_task_group() as tasks:
        for one in looks:
            tasks.start_soon(look, one)

    assert [0, 0, 200] == sorted(counts)
    assert 200 == await sending.drain()
    assert set(range(200)) == set(server.numbers)


async def test_a_server_that_lives_is_noted_from_time_to_time(
    database: Database, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "NOTE_EVERY", 0.0)
    sending = await met(database, server, seen=500)
    await sending.drain()

    [(seen,)] = await database.rows(select(SERVERS.seen_at > from_now(-100)))
    assert seen


@pytest.mark.one_driver
async def test_a_server_that_does_not_say_which_run_it_is(
    database: Database, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user may not ask: that is said once, however often it is looked at, and everything else works."""
    monkeypatch.setattr(relay, "LOOK_EVERY", 0.01)
    asked = 0

    class Silent(Server):
        async def run_id(self) -> str | None:
            nonlocal asked
            asked += 1

            return None

    silent = Silent()
    sending = Relay(database.engine, silent, poll=0.01)
    async with anyio.create_task_group() as tasks:
        await tasks.start(sending.run)
        await publish(database, silent, 1)
        before = asked
        await wait_until(lambda: asked >= before + 3, description="it has looked again")
        tasks.cancel_scope.cancel()

    assert 1 == caplog.text.count("the-server does not say which run it is")
    assert [("the-server", None)] == await known(database)


# ------------------------------------------------------------------------------------------------------- on a real server

needs_server = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to start")


@needs_server
@pytest.mark.one_driver
async def test_a_server_that_is_killed_and_loses_the_end_of_its_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times: what it had acknowledged and lost is in the stream again, everything once."""
    monkeypatch.setattr(relay, "LOOK_EVERY", 0.05)
    with EmbeddedServer(tmp_path / "server", options=["--appendfsync", "always"]) as process:
        async with RedisTransport(process.url, stream="numbers") as transport, anyio.create_task_group() as tasks:
            sending = Relay(database.engine, transport, poll=0.05)
            await tasks.start(sending.run)

            async def noticed() -> bool:
                return [await transport.run_id()] == [run for _, run in await known(database)]

            for first in (0, 100, 200):
                await publish(database, transport, *range(first, first + 60))
                file = append_only_file(tmp_path / "server")
                size = file.stat().st_size
                await publish(database, transport, *range(first + 60, first + 100))
                os.kill(process.pid, signal.SIGKILL)
                await wait_until(lambda: not process.running, description="the server is gone")
                os.truncate(file, size)
                process.start()
                await wait_until(noticed, description="it has noticed")
                await wait_until(lambda: nothing_due(database), description="everything is sent")
            entries = await numbers_in(transport)
            tasks.cancel_scope.cancel()

    assert list(range(300)) == sorted(entries)


def append_only_file(folder: Path) -> Path:
    """There is a folder of them since Redis 7, before that a single one."""
    return max(path for path in folder.glob("**/appendonly.aof*") if path.name == "appendonly.aof" or ".incr." in path.name)


async def nothing_due(database: Database) -> bool:
    return not await database.rows(select(MESSAGES.number).where(MESSAGES.due_at.is_not(None)).limit(1))


async def numbers_in(transport: RedisTransport) -> list[int]:
    entries = await transport._channel.run(("XRANGE", transport.stream, "-", "+"))

    return [decode(Numbered, fields[7] if isinstance(fields, list) else fields[b"payload"]).number for _, fields in entries]


@needs_server
async def test_which_run_of_a_server_answers(tmp_path: Path) -> None:
    """The same as long as it lives, another afterwards; asked over a new connection each time, and so of whoever is there."""
    with EmbeddedServer(tmp_path / "server") as process:
        async with FaultProxy(process.url) as proxy, RedisTransport(proxy.url, stream="numbers") as transport:
            first = await transport.run_id()
            assert first == await transport.run_id()
            assert 2 == proxy.connections
            os.kill(process.pid, signal.SIGKILL)
            await wait_until(lambda: not process.running, description="the server is gone")
            with pytest.raises(Unavailable):
                await transport.run_id()
            process.start()
            assert await transport.run_id() not in (first, None)


@needs_server
async def test_a_user_who_may_not_ask(tmp_path: Path) -> None:
    import redis

    with EmbeddedServer(tmp_path / "server") as process:
        with redis.Redis.from_url(process.url) as client:
            client.execute_command("ACL SETUSER club on >secret ~* +@all -info")
        async with (
            FaultProxy(process.url) as proxy,
            RedisTransport(proxy.url.replace("redis://", "redis://club:secret@"), stream="numbers") as transport,
        ):
            assert await transport.run_id() is None


@needs_server
async def test_whether_entries_are_there(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server") as process:
        async with RedisTransport(process.url, stream="numbers") as transport:
            records = [Record(Numbered(number)) for number in range(3)]
            ids = await transport.publish([record.envelope for record in records])
            await transport._channel.run(("XDEL", "numbers", ids[1]))

            assert [True, False, True, False] == await transport.holds("numbers", [*ids, "1-1"])
            assert [False] == await transport.holds("other", ids[:1])


async def trim(transport: RedisTransport, entries: int) -> None:
    """Remove so many, as soon as they are a millisecond old."""
    removed = 0

    async def are_gone() -> bool:
        nonlocal removed
        removed += await transport.trim("numbers")
        return removed == entries

    await wait_until(are_gone, description="they are old enough")


@pytest.mark.parametrize("executable", [str(path) for path in find_servers()])
async def test_whether_entries_were_trimmed(tmp_path: Path, executable: str) -> None:
    """The oldest are. What the stream ends before, or has older ones than, was lost, and everything where nothing was ever removed."""
    with EmbeddedServer(tmp_path / "server", executable=executable) as process:
        async with RedisTransport(process.url, stream="numbers", retention=timedelta(0)) as transport:
            run = transport._channel.run
            first, second, third = await transport.publish([Record(Numbered(number)).envelope for number in range(3)])
            after = f"{int(third.partition('-')[0]) + 1}-0"

            assert [False, False] == await transport.trimmed("numbers", ["1-1", after])
            await run(("XDEL", "numbers", second))
            assert [True, False, False] == await transport.trimmed("numbers", ["1-1", second, after])
            await trim(transport, 2)
            assert [True, True, True, False] == await transport.trimmed("numbers", [first, second, third, after])
            assert [False] == await transport.trimmed("other", [first])


@needs_server
@pytest.mark.one_driver
@pytest.mark.parametrize(
    ("trimmed", "lost", "others", "expected"),
    [
        (True, "nothing", [], []),
        (True, "nothing", [4], [4]),
        (True, "the end", [], [2, 3]),
        (False, "the end", [4], [0, 1, 2, 3, 4]),
        (False, "everything", [], [0, 1, 2, 3]),
        (False, "everything", [4], [0, 1, 2, 3, 4]),
    ],
)
async def test_what_was_trimmed_is_not_lost(
    database: Database, tmp_path: Path, trimmed: bool, lost: str, others: list[int], expected: list[int]
) -> None:
    """A server is back after quiet hours, and then the relay: what was lost is sent again, and what every group had settled is not."""
    with EmbeddedServer(tmp_path / "server", options=["--appendfsync", "always"]) as process:
        async with RedisTransport(process.url, stream="numbers", retention=timedelta(0)) as transport:
            await Relay(database.engine, transport).drain()
            await publish(database, transport, 0, 1)
            if trimmed:
                await trim(transport, 2)
            await forget_ids(transport)
            size = append_only_file(tmp_path / "server").stat().st_size
            if lost != "nothing":
                await publish(database, transport, 2, 3)
        await age(database, 13 * 3600)
        await database.do(update(TABLES.servers).values(seen_at=from_now(-13 * 3600)))
        os.kill(process.pid, signal.SIGKILL)
        await wait_until(lambda: not process.running, description="the server is gone")
        if lost != "nothing":
            os.truncate(append_only_file(tmp_path / "server"), size if lost == "the end" else 0)
        process.start()
        async with RedisTransport(process.url, stream="numbers") as transport:
            if others:
                await publish(database, transport, *others)

            await Relay(database.engine, transport).drain()

            assert expected == sorted(await numbers_in(transport))


async def forget_ids(transport: RedisTransport) -> None:
    """As the server does within twenty minutes."""
    await transport._channel.run(("DEL", *Keys(transport.stream).published))
