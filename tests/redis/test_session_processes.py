"""Sums that are exact, though processes are killed and deliveries come twice."""

import signal
import sys
from collections import Counter
from typing import Any

import msgspec

from eventbus import UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.redis.keys import Keys
from eventbus.testing import wait_until
from eventbus.testing.servers import LiveServer
from tests.processes import ROOT, Process, environment
from tests.redis.summer import BY_DIGIT, FORCED, GROUP, STREAM, TOTAL, Numbered

DELIVERIES = 4_000
KILLS = 4


def summer(url: str) -> Process:
    return Process([sys.executable, "-m", "eventbus", "run", "tests.redis.summer:summer"], ROOT, environment(EVENTBUS_URL=url))


async def test_sums_are_exact_over_kills_and_duplicates(redis_server: LiveServer, server: Any) -> None:
    """4,000 deliveries, every tenth of them handled twice, and one of two processes killed again and again under its work."""
    async with RedisTransport(redis_server.url) as transport:
        with summer(redis_server.url):
            for first in range(0, DELIVERIES, DELIVERIES // KILLS):
                with summer(redis_server.url) as victim:
                    victim.line("summer reads numbers")
                    async with UnitOfWork(transport=transport) as uow:
                        for number in range(first, first + DELIVERIES // KILLS):
                            uow.emit(Numbered(number))
                        await uow.commit()
                    await wait_until(lambda victim=victim: working(server, victim.pid), description="the victim is at work")
                    victim.signal(signal.SIGKILL)
            await wait_until(lambda: done(server) == DELIVERIES, description="everything was handled", timeout=40)
            audit = await transport.audit(STREAM, GROUP)

    assert [] == server.client.xrange(Keys(STREAM, GROUP).dead)
    assert b"%d" % sum(range(DELIVERIES)) == server.client.get(TOTAL)
    assert {b"%d" % digit: b"%d" % (DELIVERIES // 10) for digit in range(10)} == server.client.hgetall(BY_DIGIT)
    assert dict.fromkeys(range(DELIVERIES), 1) == Counter(
        msgspec.json.decode(fields[b"payload"])["number"] for _, fields in server.client.xrange("sums")
    )
    assert DELIVERIES // 10 == server.client.scard(FORCED)
    assert audit is not None
    assert (DELIVERIES, 0, 0) == (audit.settled, audit.pending, audit.lost)


def done(server: Any) -> int:
    return int(server.client.hget(Keys(STREAM, GROUP).state, "settled") or 0)


def working(server: Any, pid: int) -> bool:
    """Whether a process holds deliveries."""
    consumers = server.client.xinfo_consumers(STREAM, GROUP)

    return any(f"-{pid}-".encode() in consumer["name"] and consumer["pending"] for consumer in consumers)
