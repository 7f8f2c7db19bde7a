"""Three relays, one after another killed at its work, while rows are committed: the order of each stream is kept, and nothing is there twice."""

from __future__ import annotations

import random
from dataclasses import dataclass

import anyio
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from eventbus import Event, Metadata, UnitOfWork
from eventbus.envelope import decode
from eventbus.redis import RedisTransport
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore, relay
from eventbus.sqlalchemy.schema import from_now
from eventbus.testing import wait_until
from tests.sqlalchemy.conftest import engine_on
from tests.sqlalchemy.lives import Life

STREAMS = 100
"""More than are in one batch, so that several relays are at work at once."""
BATCH = 30
AT_ONCE = 100
"""Rows of a transaction."""
LEASE = 1.0
"""Seconds for which a relay that was killed holds up its streams; by default ten, which would be most of a run."""
PATIENCE = 600.0

MESSAGES, LEASES = TABLES.messages.c, TABLES.streams.c


@dataclass(frozen=True)
class Size:
    rows: int
    kills: int


FULL, SHORT = Size(50_000, 100), Size(1_000, 2)


class Row(Event):
    number: int


ROWS = [type(f"Row{n}", (Row,), {"metadata": Metadata(name=f"row_{n}", published=True, stream=f"s{n}")}) for n in range(STREAMS)]


async def send(database: str, server: str) -> None:
    relay.LEASE = LEASE
    async with RedisTransport(server) as transport:
        await Relay(engine_on(database), transport, batch=BATCH).run()


async def order_is_kept(database: str, server: str, size: Size) -> list[str]:
    """What was wrong."""
    engine = engine_on(database)
    rng = random.Random(size.rows)
    lives = [Life(send, database, server) for _ in range(3)]
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit, engine, size.rows)
            for kill in range(size.kills):
                sent = size.rows * kill // (size.kills + 1)
                await wait_until(lambda sent=sent: _sent(engine, sent), description=f"{sent} are sent", timeout=PATIENCE)
                victim: list[Life] = []
                with anyio.fail_after(PATIENCE):
                    while not victim:
                        victim = await _at_work(engine, lives)
                await anyio.sleep(rng.uniform(0, 0.02))
                victim[0].kill()
                lives[lives.index(victim[0])] = Life(send, database, server)
        await wait_until(lambda: _sent(engine, size.rows), description="everything is sent", timeout=PATIENCE)
    finally:
        for life in lives:
            life.kill()
    await engine.dispose()
    wrong: list[str] = []
    async with RedisTransport(server) as transport:
        for row in ROWS:
            stream, expected = str(row.metadata.stream), list(range(size.rows // STREAMS))
            found = [decode(row, payload).number for payload in await payloads_in(transport, stream)]
            if expected != found:
                wrong.append(
                    f"{stream} has {len(found)} of {len(set(found))} numbers, {'not ' * (found != sorted(found))}in order"
                )

    return wrong


async def commit(engine: AsyncEngine, rows: int) -> None:
    """Leave so many to the relays, the numbers of each stream in order."""
    sessions = async_sessionmaker(engine)
    for first in range(0, rows, AT_ONCE):
        async with sessions() as session, UnitOfWork(session, message_store=SqlMessageStore(session, relay_after=0)) as uow:
            for row in range(first, first + AT_ONCE):
                uow.emit(ROWS[row % STREAMS](row // STREAMS))
            await uow.commit()


async def payloads_in(transport: RedisTransport, stream: str) -> list[bytes]:
    found: list[bytes] = []
    for _, fields in await transport._channel.run(("XRANGE", stream, "-", "+")):
        values = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        found.append(values[b"payload"])

    return found


async def _sent(engine: AsyncEngine, rows: int) -> bool:
    async with engine.connect() as connection:
        return (await connection.execute(select(func.count()).where(MESSAGES.sent_at.is_not(None)))).scalar_one() >= rows


async def _at_work(engine: AsyncEngine, lives: list[Life]) -> list[Life]:
    """Those that have leases on streams."""
    async with engine.connect() as connection:
        names = (await connection.execute(select(LEASES.relay).where(LEASES.until > from_now()))).scalars().all()

    return [life for life in lives if any(f"-{life.pid}-" in name for name in names)]
