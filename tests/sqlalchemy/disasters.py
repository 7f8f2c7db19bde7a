"""A server that loses its newest writes under load: by power cuts, by failovers to a stale replica, and while the relay that restores is killed.

Books are registered, announced through the outbox, counted once by readers with an inbox, and that is announced too. In the end everything
that was committed is in the streams, and has had its effect, once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from eventbus import Subscriber, Transport
from eventbus.envelope import decode
from eventbus.errors import TransportError
from eventbus.redis import RedisTransport
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore, relay
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from tests.faults.server import Server
from tests.sqlalchemy.club import BOOKS, EFFECTS, Club, Counted, Register, Registered, desk, reader
from tests.sqlalchemy.conftest import engine_on
from tests.sqlalchemy.crash import Steps
from tests.sqlalchemy.lives import Life
from tests.sqlalchemy.relays import LEASE, payloads_in

STREAM, GROUP = "books", "reader"
WRITERS = 4
PAUSE = 0.01
"""Seconds between two transactions of a writer."""
CUT = 0.5
"""Seconds of which the server forgets everything."""
PATIENCE = 120.0

MESSAGES, SERVERS = TABLES.messages.c, TABLES.servers.c


@dataclass(frozen=True)
class Size:
    faults: int


# --------------------------------------------------------------------------------------------------------------- processes


async def send(database: str, server: str) -> None:
    relay.LEASE = LEASE
    async with RedisTransport(server, stream=STREAM) as transport:
        await Relay(engine_on(database), transport).run()


async def restore(database: str, server: str, last: int) -> None:
    """A relay that dies at this one of its awaits."""
    relay.LEASE = LEASE
    async with RedisTransport(server, stream=STREAM) as transport:
        restoring = Relay(engine_on(database), transport, batch=20)

        async def drain() -> None:
            while True:
                await restoring.drain()

        await Steps(drain(), last, late=False)


async def read(database: str, server: str) -> None:
    engine = engine_on(database)
    sessions = async_sessionmaker(engine)

    def unit_of_work(transport: Transport) -> Club:
        return _club(sessions, transport)

    async with RedisTransport(server, stream=STREAM) as transport:
        await Subscriber(
            bus=reader, transport=transport, streams=[STREAM], group=GROUP, unit_of_work=unit_of_work,
            lease=1.5, concurrency=1 if engine.dialect.name == "sqlite" else 5,
        ).run()  # fmt: skip


def _club(sessions: async_sessionmaker[Any], transport: Transport) -> Club:
    session = sessions()

    return Club(session, transport=transport, message_store=SqlMessageStore(session, relay_after=1.0))


# -------------------------------------------------------------------------------------------------------------------- scene


class Scene:
    """A server at an address that can be given to another, its relay and reader, and writers."""

    def __init__(self, database: str, folder: Path, executable: str | None) -> None:
        self.database = database
        self.engine: AsyncEngine = engine_on(database)
        self.url = f"unix://{folder / 'current.sock'}?db=0"
        self.transport = RedisTransport(self.url, stream=STREAM)
        self.rng = random.Random(0)
        self.lost = 0
        """Entries that the server had taken, and did not have any more or never told its replica; at least."""
        self.deaths: Counter[str] = Counter()
        """Of relays that restored: where they had got to."""
        self.lives: list[Life] = []
        """The relay, and then the readers."""
        self._folder = folder
        self._executable = None if executable is None else Path(executable)
        self._server: Server
        self._servers: list[Server] = []
        self._ended = False

    def _new_server(self) -> Server:
        folder = self._folder / str(len(self._servers))
        self._servers.append(Server(folder, executable=self._executable, options=["--repl-diskless-sync-delay", "0"]))

        return self._servers[-1]

    async def under(self, fault: Callable[[Scene], Awaitable[None]], faults: int) -> list[str]:
        """So many of them while everybody is at work. What was wrong."""
        self._server = self._new_server()
        try:
            async with self.transport:
                await self._serve()
                self.lives += [Life(work, self.database, self.url) for work in (send, read, read)]
                async with anyio.create_task_group() as tasks:
                    for number in range(WRITERS):
                        tasks.start_soon(self._write, number)
                    await wait_until(self._has_effects, description="the reader is at work", timeout=PATIENCE)
                    for _ in range(faults):
                        await anyio.sleep(self.rng.uniform(0.1, 0.6))
                        await fault(self)
                    self._ended = True
                await wait_until(self._is_settled, description="everything is sent and handled", timeout=PATIENCE)
                return await self._verdict()
        finally:
            for life in self.lives:
                life.kill()
            for server in self._servers:
                await server.stop()
            await self.engine.dispose()

    # ----------------------------------------------------------------------------------------------------------------- faults

    async def cut(self) -> None:
        """The power is cut, and the last half second of the file is gone."""
        before, sizes = await self._entries(), self._server.files()
        await anyio.sleep(CUT)  # what is written in this time is lost
        self.lost += await self._entries() - before
        await self._server.kill()
        self._server.cut_to(sizes)
        await self._serve()

    async def fail_over(self) -> None:
        """The server dies when its replica has heard nothing for half a second, and the replica takes its place, under its address."""
        old, replica = self._server, self._new_server()
        await replica.start()
        async with FaultProxy(old.url) as line, replica.client() as there:
            await replica.follow(line.url)
            synced = await there.xlen(STREAM)
            await wait_until(lambda: _has_more(there, synced), description="the replica hears of what is new", timeout=PATIENCE)
            line.stall()
            await anyio.sleep(CUT)
            taken = await self._entries()
            await old.kill()
            await replica.promote()
            self.lost += taken - await there.xlen(STREAM)
        self._server = replica
        await self._serve()

    async def kill_restoring(self) -> None:
        """Cut, and a relay dies when it has begun to restore and has not sent everything; again until that was in the middle."""
        while True:
            self.lives[0].kill()
            await self.cut()
            dying = Life(restore, self.database, self.url, self.rng.randrange(10, 120))
            await asyncio.to_thread(dying.die)
            due = await self._count(TABLES.messages, MESSAGES.due_at.is_not(None), MESSAGES.restored > 0)
            where = "finding out what is lost" if not await self._knows_server() else "sending it" if due else ""
            self.lives[0] = Life(send, self.database, self.url)
            if where:
                self.deaths[where] += 1
                return

    # ---------------------------------------------------------------------------------------------------------------- private

    async def _serve(self) -> None:
        await self._server.start()
        link = self._folder / "next.sock"
        link.symlink_to(self._server.url.removeprefix("unix://").partition("?")[0])
        os.replace(link, self._folder / "current.sock")
        await wait_until(self._answers, description="the transport has noticed", timeout=PATIENCE)

    async def _write(self, writer: int) -> None:
        sessions = async_sessionmaker(self.engine)
        for number in itertools.count():
            if self._ended:
                return
            async with _club(sessions, self.transport) as uow:
                await desk.handle(Register(f"{writer}.{number}"), uow)
                await uow.commit()
            await anyio.sleep(PAUSE)

    async def _answers(self) -> bool:
        try:
            await self._entries()
        except TransportError:
            return False

        return True

    async def _entries(self) -> int:
        found: int = await self.transport._channel.run(("XLEN", STREAM))

        return found

    async def _count(self, what: Any, *conditions: Any) -> int:
        async with self.engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(what).where(*conditions))).scalar_one()

    async def _has_effects(self) -> bool:
        return await self._count(EFFECTS) > 0

    async def _knows_server(self) -> bool:
        run_id = await self.transport.run_id()

        return await self._count(TABLES.servers, SERVERS.run_id == run_id) > 0

    async def _is_settled(self) -> bool:
        """Sent, handled, and what was made of it sent: in this order, since each brings forth the next."""
        if not await self._knows_server() or await self._is_due():
            return False

        return not await self.transport.backlog(STREAM, GROUP) and not await self._is_due()

    async def _is_due(self) -> bool:
        return await self._count(TABLES.messages, MESSAGES.due_at.is_not(None)) > 0

    async def _verdict(self) -> list[str]:
        async with self.engine.connect() as connection:
            committed = Counter((await connection.execute(select(BOOKS.c.title))).scalars())
            effects = Counter((await connection.execute(select(EFFECTS.c.title))).scalars())
        announced = Counter(decode(Registered, payload).title for payload in await payloads_in(self.transport, STREAM))
        counted = Counter(decode(Counted, payload).title for payload in await payloads_in(self.transport, "counts"))
        print(f"  {committed.total():,} committed; the server lost {self.lost:,} entries that it had taken", *self.deaths.items())
        wrong = [] if self.lost else ["the server lost nothing, so nothing was shown"]
        for name, found in {"effects": effects, "announced": announced, "counted": counted}.items():
            if found != committed:
                wrong.append(f"{name}: {(committed - found).total()} lost, {(found - committed).total()} too many")

        return wrong


async def _has_more(client: Any, entries: int) -> bool:
    found: int = await client.xlen(STREAM)

    return found > entries


async def _run(database: str, executable: str | None, fault: Callable[[Scene], Awaitable[None]], faults: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="eventbus-", dir="/tmp") as folder:  # short: a socket's name may have 107 bytes
        return await Scene(database, Path(folder), executable).under(fault, faults)


async def power_cuts(database: str, executable: str | None, size: Size) -> list[str]:
    return await _run(database, executable, Scene.cut, size.faults)


async def failovers(database: str, executable: str | None, size: Size) -> list[str]:
    return await _run(database, executable, Scene.fail_over, size.faults)


async def restore_kills(database: str, executable: str | None, size: Size) -> list[str]:
    return await _run(database, executable, Scene.kill_restoring, size.faults)
