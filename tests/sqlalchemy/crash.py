"""A scenario, killed at its first await, then at its second, and so on until it gets through: every point at which it can die.

    python -m tests.sqlalchemy.crash SCENARIO DATABASE-URL SERVER-URL [EVERY]

``python -m tests.sqlalchemy crash-points`` runs all of them, each on a new database and server.

Each life is a process, forked from this one. An await is where the task gives up control: what it has asked of the database or the server
is on its way then. It is killed at once (``early``), when that may have been carried out or not; and, in another life, when it certainly was
(``late``). After each death another process puts things in order, as a relay or the next consumer does. In the end everything is compared.
With EVERY, only every so many of them. What it says is JSON: how many points there were, and what was wrong.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import anyio
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from eventbus import Delivery, Event, Metadata
from eventbus.envelope import decode, seal, to_fields
from eventbus.redis import RedisTransport
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore
from eventbus.sqlalchemy.schema import from_now
from tests.processes import ROOT, environment
from tests.sqlalchemy.club import BOOKS, EFFECTS, Club, Counted, Register, Registered, desk, reader
from tests.sqlalchemy.conftest import engine_on

LATE = 0.02
"""Seconds within which what was asked for has been done."""
PARTS = 3
"""Messages that are left to a relay, which sends two at once."""
TASKS = "/proc/self/task"
"""Where Linux lists the threads of a process."""


@dataclass(frozen=True)
class Size:
    every: int
    """Of so many points, one."""


FULL, SHORT = Size(1), Size(10)


class Part(Event):
    """One of some that are left in one transaction, on two streams."""

    metadata = Metadata(name="part", published=True)
    of: str
    number: int


class Steps:
    """Runs a coroutine, and dies at one of its awaits."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], last: int, late: bool) -> None:
        self._coroutine, self._last, self._late = coroutine, last, late

    def __await__(self) -> Generator[Any, Any, None]:
        inner, step, send = self._coroutine.__await__(), 0, self._coroutine.send
        argument: Any = None
        while True:
            try:
                waits_for = send(argument)
            except StopIteration:
                return
            step += 1
            if step == self._last:
                if self._late:
                    time.sleep(LATE)
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                argument, send = (yield waits_for), self._coroutine.send
            except BaseException as exc:
                argument, send = exc, inner.throw


class World:
    """What a life has: a database and a server."""

    def __init__(self, engine: AsyncEngine, server: str) -> None:
        self.engine = engine
        self.sessions = async_sessionmaker(self.engine)
        self.transport = RedisTransport(server, stream="events")
        self.relay = Relay(self.engine, self.transport, batch=2)

    async def warm(self) -> None:
        """Connect to the database, so that this is not among the points."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def club(self, **options: Any) -> Club:
        session = self.sessions()

        return Club(session, transport=self.transport, message_store=SqlMessageStore(session, relay_after=0), **options)

    async def stream(self, name: str = "events") -> list[Any]:
        """The payloads in a stream."""
        found = []
        for _, fields in await self.transport._channel.run(("XRANGE", name, "-", "+")):
            values = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
            found.append(values[b"payload"])

        return found

    async def rows(self, statement: Any) -> list[Any]:
        async with self.engine.connect() as connection:
            return list((await connection.execute(statement)).scalars())

    async def drain(self) -> None:
        """What a relay does in time: it comes again when the lease of the dead has run out, which is now."""
        async with self.engine.begin() as connection:
            await connection.execute(update(TABLES.streams).values(until=from_now(-1)))
        await self.relay.drain()


class Publish:
    """Register a book, commit, publish at once, mark."""

    afterwards = None
    """What is done and looked at after each death; here all is, in the end."""

    async def prepare(self, world: World, name: str) -> None: ...

    async def run(self, world: World, name: str) -> None:
        async with await world.club() as uow:
            await desk.handle(Register(name), uow)
            await uow.commit()

    async def verdict(self, world: World) -> list[str]:
        await world.drain()
        committed = Counter(await world.rows(select(BOOKS.c.title)))
        announced = Counter(decode(Registered, payload).title for payload in await world.stream())

        return [] if committed == announced else [f"committed {committed}, announced {announced}"]


class RollBack(Publish):
    """The same without a commit."""

    async def run(self, world: World, name: str) -> None:
        async with await world.club() as uow:
            await desk.handle(Register(name), uow)
            await SqlMessageStore(uow.session, relay_after=0).add(uow.gather(uow.handling))
            await uow.rollback()

    async def verdict(self, world: World) -> list[str]:
        return [*await super().verdict(world), *await world.rows(select(BOOKS.c.title))]


class Send:
    """A relay sends what was left, in several batches."""

    async def prepare(self, world: World, name: str) -> None:
        async with await world.club() as uow:
            uow.transport = None
            for number in range(PARTS):
                uow.emit(Part(name, number))
            await uow.commit()

    async def run(self, world: World, name: str) -> None:
        await world.relay.drain()

    async def afterwards(self, world: World, name: str) -> list[str]:
        await world.drain()

        return []

    async def verdict(self, world: World) -> list[str]:
        left = await world.rows(select(func.count()).select_from(TABLES.messages))
        parts = [decode(Part, payload) for payload in await world.stream()]
        names = list(dict.fromkeys(part.of for part in parts))
        expected = [Part(name, number) for name in names for number in range(PARTS)]

        return [] if expected == parts and left == [len(parts)] else [f"{left} were left, and the stream has {parts}"]


class Restore:
    """A relay finds another run of the server, which has lost everything, and sends it again."""

    async def prepare(self, world: World, name: str) -> None:
        await world.relay.drain()
        async with world.engine.begin() as connection:
            await connection.execute(delete(TABLES.messages))
        async with await world.club() as uow:
            for number in range(PARTS):
                uow.emit(Part(name, number))
            await uow.commit()
        await world.transport.delete("events")
        async with world.engine.begin() as connection:
            await connection.execute(update(TABLES.servers).values(run_id="the one before"))

    async def run(self, world: World, name: str) -> None:
        await world.relay.drain()

    async def afterwards(self, world: World, name: str) -> list[str]:
        await world.drain()
        parts = [decode(Part, payload) for payload in await world.stream()]

        return [] if [Part(name, number) for number in range(PARTS)] == parts else [f"{name}: the stream has {parts}"]

    async def verdict(self, world: World) -> list[str]:
        return []


class Handle:
    """A consumer handles a delivery in a transaction with an inbox; after its death it comes again, twice."""

    def delivery(self, name: str) -> Delivery:
        envelope = seal(Registered(name), id=name)
        fields = [word if isinstance(word, bytes) else word.encode() for word in to_fields(envelope)]

        return Delivery("elsewhere", "reader", "consumer", "1-0", fields)

    async def prepare(self, world: World, name: str) -> None: ...

    async def run(self, world: World, name: str) -> None:
        delivery = self.delivery(name)
        async with await world.club() as uow:
            if await uow.begin(delivery):
                await reader.handle(Registered(name), uow, delivery=delivery)
                await uow.commit()
            else:
                await uow.rollback()

    async def afterwards(self, world: World, name: str) -> list[str]:
        for _ in range(2):
            await self.run(world, name)

        return []

    async def verdict(self, world: World) -> list[str]:
        await world.drain()
        inbox = Counter(await world.rows(select(TABLES.inbox.c.envelope_id)))
        effects = Counter(await world.rows(select(EFFECTS.c.title)))
        told = Counter(decode(Counted, payload).title for payload in await world.stream("counts"))

        return [] if inbox == effects == told else [f"handled {inbox}, effects {effects}, told {told}"]


SCENARIOS = {scenario.__name__.lower(): scenario() for scenario in (Publish, RollBack, Send, Restore, Handle)}


async def points(scenario: str, database: str, server: str, size: Size) -> tuple[int, list[str]]:
    """Run it in a process of its own, from which the others can be forked: how many points there were, and what was wrong."""
    command = [sys.executable, "-m", "tests.sqlalchemy.crash", scenario, database, server, str(size.every)]
    ran = await anyio.run_process(command, cwd=ROOT, env=environment(), check=False)
    if ran.stderr or ran.returncode:
        return 0, [f"{scenario}: {ran.stderr.decode()}"]
    found = json.loads(ran.stdout)

    return found["points"], found["wrong"]


def main(scenario: str, database: str, server: str, every: str = "1") -> None:
    logging.disable()  # that a server is another run than before is what we do
    story, stride, points, wrong = SCENARIOS[scenario], int(every), 0, list[str]()
    engine = engine_on(database)
    asyncio.run(life(lambda world: undisturbed(world, story), engine, server))  # and SQLAlchemy has compiled everything
    until_alone()
    gc.freeze()  # or each life would copy all of it when it collects
    for late, step in ((False, 1), (True, 1 + stride // 2)):
        while True:
            name = f"{'late' if late else 'early'} {step}"
            dead = in_a_process(
                lambda world, name=name, step=step, late=late: live(world, story, name, step, late), engine, server
            )
            wrong += dead.lines
            if story.afterwards is not None:
                wrong += in_a_process(lambda world, name=name: story.afterwards(world, name), engine, server).lines
            if dead.status == 0:
                break
            if os.WTERMSIG(dead.status) != signal.SIGKILL:
                wrong.append(f"{name}: ended with status {dead.status}")
                break
            points += 1
            step += stride
    wrong += in_a_process(story.verdict, engine, server).lines
    print(json.dumps({"points": points, "wrong": wrong}))


async def undisturbed(world: World, story: Any) -> list[str]:
    await story.prepare(world, "undisturbed")
    await story.run(world, "undisturbed")

    return [] if story.afterwards is None else await story.afterwards(world, "undisturbed")


async def live(world: World, story: Any, name: str, step: int, late: bool) -> list[str]:
    await story.prepare(world, name)
    await world.warm()
    await Steps(story.run(world, name), step, late)

    return []


def until_alone() -> None:
    """Wait for the threads that a driver has left to end, in the eyes of the system too: beside others a process should not fork."""
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join()
    while os.path.exists(TASKS) and len(os.listdir(TASKS)) > 1:
        time.sleep(0.001)


class Ended:
    def __init__(self, status: int, lines: list[str]) -> None:
        self.status, self.lines = status, lines


def in_a_process(what: Callable[[World], Awaitable[list[str]]], engine: AsyncEngine, server: str) -> Ended:
    """How it ended, and what it found wrong."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, "\n".join(asyncio.run(life(what, engine, server))).encode())
            code = 0
        except BaseException as exc:
            os.write(write, f"{exc!r}".encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as said:
        lines = said.read().splitlines()
    status = os.waitpid(pid, 0)[1]

    return Ended(status, lines)


async def life(what: Callable[[World], Awaitable[list[str]]], engine: AsyncEngine, server: str) -> list[str]:
    world = World(engine, server)
    async with world.transport:
        found = await what(world)
    await engine.dispose()

    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
