"""Sums that are exact, though processes are killed and deliveries come twice."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from eventbus import UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.redis.keys import Keys
from eventbus.testing import wait_until
from eventbus.testing.servers import LiveServer
from tests.processes import ROOT, environment
from tests.redis.summer import BY_DIGIT, FORCED, GROUP, STREAM, TOTAL, Numbered

DELIVERIES = 5_000
KILLS = 6


@contextmanager
def process(url: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "eventbus", "run", "tests.redis.summer:summer"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(EVENTBUS_URL=url), stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


async def test_sums_are_exact_over_kills_and_duplicates(redis_server: LiveServer, server: Any) -> None:
    """5,000 deliveries, every tenth of them handled twice, and one of two processes killed again and again under its work."""
    async with RedisTransport(redis_server.url) as transport:
        async with UnitOfWork(transport=transport) as uow:
            for number in range(DELIVERIES):
                uow.emit(Numbered(number))
            await uow.commit()

        with process(redis_server.url):
            for kill in range(1, KILLS + 1):
                with process(redis_server.url) as victim:
                    await wait_until(
                        lambda victim=victim, kill=kill: working(server, victim.pid) and done(server) >= 400 * kill,
                        description=f"the victim is at work, after {done(server)}",
                    )
                    victim.kill()
            await wait_until(lambda: done(server) == DELIVERIES, description="everything was handled", timeout=40)
            audit = await transport.audit(STREAM, GROUP)

    assert [] == server.client.xrange(Keys(STREAM, GROUP).dead)
    assert b"%d" % sum(range(DELIVERIES)) == server.client.get(TOTAL)
    assert {b"%d" % digit: b"500" for digit in range(10)} == server.client.hgetall(BY_DIGIT)
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
    try:
        consumers = server.client.xinfo_consumers(STREAM, GROUP)
    except Exception:
        return False

    return any(f"-{pid}-".encode() in consumer["name"] and consumer["pending"] for consumer in consumers)
