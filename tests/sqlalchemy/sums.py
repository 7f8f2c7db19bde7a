"""Sums that are exact, though consumers are killed and every tenth delivery comes twice: in SQL with an inbox, in Redis by `RedisSession`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from sqlalchemy import BigInteger, Column, Integer, Table, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker

from eventbus import MessageBus, Subscriber, Transport
from eventbus.envelope import seal, to_fields
from eventbus.redis import RedisTransport
from eventbus.redis.keys import Keys
from eventbus.sqlalchemy import SqlMessageStore
from eventbus.testing import wait_until
from tests.redis.summer import BY_DIGIT, FORCED, GROUP, STREAM, TOTAL, Numbered, summer
from tests.sqlalchemy.club import METADATA, Club
from tests.sqlalchemy.conftest import engine_on
from tests.sqlalchemy.lives import Life

SUMS = Table("sums", METADATA, Column("digit", Integer, primary_key=True), Column("total", BigInteger), Column("times", Integer))
PATIENCE = 60.0
"""Seconds for one step."""

bus = MessageBus()


@dataclass(frozen=True)
class Size:
    deliveries: int
    kills: int


FULL, SHORT = Size(100_000, 200), Size(400, 2)


@bus.listen
async def add(event: Numbered, uow: Club) -> None:
    mine = SUMS.c.digit == event.number % 10
    await uow.session.execute(update(SUMS).where(mine).values(total=SUMS.c.total + event.number, times=SUMS.c.times + 1))


async def consume(database: str, server: str) -> None:
    """Add up in SQL. SQLite has one writer: there one handler at a time."""
    engine = engine_on(database)
    sessions = async_sessionmaker(engine)

    def unit_of_work(transport: Transport) -> Club:
        session = sessions()

        return Club(session, transport=transport, message_store=SqlMessageStore(session))

    async with RedisTransport(server) as transport:
        await Subscriber(
            bus=bus, transport=transport, streams=[STREAM], group=GROUP, unit_of_work=unit_of_work,
            lease=1.5, max_crashes=1000, concurrency=1 if engine.dialect.name == "sqlite" else 10,
        ).run()  # fmt: skip


async def consume_in_redis(server: str) -> None:
    os.environ["EVENTBUS_URL"] = server
    await summer().run()


async def in_sql(database: str, server: str, size: Size) -> list[str]:
    """What was wrong."""
    engine = engine_on(database)
    async with engine.begin() as connection:
        await connection.execute(insert(SUMS), [{"digit": digit, "total": 0, "times": 0} for digit in range(10)])
    wrong = await under_kills(lambda: Life(consume, database, server), server, size, twice=True)
    async with engine.connect() as connection:
        found = {digit: (total, times) for digit, total, times in await connection.execute(select(SUMS))}
    await engine.dispose()

    return wrong + compare(size, found)


async def in_redis(server: str, size: Size) -> list[str]:
    """Here the first handler of every tenth finds, when it commits, that somebody else has the delivery; see `tests.redis.summer`."""
    wrong = await under_kills(lambda: Life(consume_in_redis, server), server, size)
    async with redis.asyncio.Redis.from_url(server) as client:
        total, times, forced = int(await client.get(TOTAL)), await client.hgetall(BY_DIGIT), await client.scard(FORCED)
    tenth = size.deliveries // 10
    expected = sum(range(size.deliveries)), {b"%d" % digit: b"%d" % tenth for digit in range(10)}, tenth
    found = total, times, forced

    return wrong + ([] if expected == found else [f"the sum, the times and what came twice: {found}, and not {expected}"])


def compare(size: Size, found: dict[int, tuple[int, int]]) -> list[str]:
    expected = {digit: (sum(range(digit, size.deliveries, 10)), size.deliveries // 10) for digit in range(10)}

    return [] if expected == found else [f"the sums are {found}, and not {expected}"]


async def under_kills(start: Callable[[], Life], server: str, size: Size, *, twice: bool = False) -> list[str]:
    """Publish so many numbers to two consumers, a share for each kill and one ahead: whoever is killed leaves work in hand.

    With `twice`, every tenth envelope is in the stream twice, a few entries apart: its handlers often run at the same time.
    """
    rng, share = random.Random(size.deliveries), size.deliveries // (size.kills + 1)
    lives: list[Life] = []
    async with RedisTransport(server) as transport, redis.asyncio.Redis.from_url(server) as client:

        async def publish(first: int, end: int) -> None:
            for at in range(first, end, 20):
                envelopes = [seal(Numbered(number)) for number in range(at, min(at + 20, end))]
                await transport.publish(envelopes)
                for number, envelope in enumerate(envelopes, at):
                    if twice and number % 10 == 0:
                        words = to_fields(envelope)
                        await client.xadd(STREAM, dict(zip(words[::2], words[1::2], strict=True)))

        try:
            lives += [start(), start()]
            await publish(0, share)
            for kill in range(size.kills):
                await publish((kill + 1) * share, (kill + 2) * share)
                settled = kill * share + share // 10
                await wait_until(
                    lambda settled=settled: _holders(client, lives, settled),
                    description=f"{settled} are settled, and others in hand",
                    timeout=PATIENCE,
                )
                victim = rng.choice(await _holders(client, lives, settled) or lives)
                victim.kill()
                lives[lives.index(victim)] = start()
            await publish((size.kills + 1) * share, size.deliveries)
            await wait_until(lambda: _done(transport), description="everything is settled", timeout=PATIENCE)
            audit = await transport.audit(STREAM, GROUP)
            added, dead = await client.xlen(STREAM), await client.xlen(Keys(STREAM, GROUP).dead)
        finally:
            for life in lives:
                life.kill()
    expected = size.deliveries + twice * size.deliveries // 10

    return [] if (expected, 0) == (added, dead) and audit else [f"{added} of {expected} came, {dead} were buried, {audit}"]


async def _holders(client: Any, lives: list[Life], settled: int) -> list[Life]:
    """Those that have deliveries in hand, once so many are settled."""
    if int(await client.hget(Keys(STREAM, GROUP).state, "settled") or 0) < settled + 1:
        return []
    holding = [consumer["name"] for consumer in await client.xinfo_consumers(STREAM, GROUP) if consumer["pending"]]

    return [life for life in lives if any(f"-{life.pid}-".encode() in name for name in holding)]


async def _done(transport: RedisTransport) -> bool:
    return not await transport.backlog(STREAM, GROUP)
