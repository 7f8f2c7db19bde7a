"""Delay"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import pytest

from eventbus import Delivery, Retry
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, envelopes, nothing_left, once, publish
from tests.conformance.places import Place

DELAY = 0.15

a_mover = pytest.mark.not_on("memory", because="it needs no mover: what is due is there")


async def once_more(event: Registered, delivery: Delivery) -> None:
    """A handler that asks for a second attempt."""
    if delivery.attempt == 1:
        raise Retry(after=DELAY)


@a_mover
async def test_057_what_is_delayed_comes_once_and_in_time(place: Place) -> None:
    """A delayed entry is not delivered before it is due, is delivered within the tolerance after, and once at every crash point of the \
mover."""
    times: dict[tuple[int, int], float] = {}

    async def does(event: Registered, delivery: Delivery) -> None:
        times[event.number, delivery.attempt] = place.time()
        await once_more(event, delivery)

    async with place.line() as (transport, line):
        reader = Reader(transport, does)
        async with reader.running():
            await publish(transport, *range(10))
            await place.wait_until(lambda: _delayed(place) == 10, description="ten are delayed")
            line.cut("due")
            line.cut("due", after=True)
            await place.wait_until(lambda: nothing_left(transport), description="all is settled")

        assert 0 == line.pending_cuts

    assert [(number, attempt) for number in range(10) for attempt in (1, 2)] == sorted(reader.starts)
    assert all(DELAY - 0.01 <= times[number, 2] - times[number, 1] <= DELAY + place.tolerance for number in range(10))


def _delayed(place: Place) -> int:
    return int(place.client.zcard(f"{{{STREAM}}}:delayed:{GROUP}"))


@a_mover
async def test_059_many_movers_move_it_once(place: Place) -> None:
    """A hundred movers at once: one delivery."""
    transport = await place.connect()
    await publish(transport, 1)
    readers = [Reader(await place.connect(), once_more) for _ in range(100 if place.name == "server" else 20)]
    async with AsyncExitStack() as stack:
        for reader in readers:
            await stack.enter_async_context(reader.running())
        await place.wait_until(lambda: nothing_left(transport), description="it is settled")

    assert [(1, 1), (1, 2)] == sorted(start for reader in readers for start in reader.starts)


@a_mover
async def test_060_what_cannot_be_read_is_set_aside(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A delayed entry that cannot be read is set aside with an error; the others flow."""
    transport = await place.connect()
    await publish(transport, *range(5))
    reader = Reader(transport, once_more)
    key = f"{{{STREAM}}}:delayed:{GROUP}"
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with reader.running():
            await place.wait_until(lambda: _delayed(place) == 5, description="five are delayed")
            member = place.client.zrange(key, 0, 0)[0]
            place.client.hset(f"{key}:entries", member, "no entry")
            await place.wait_until(lambda: len(reader.handled) == 4, description="the others are handled")
            await place.wait_until(lambda: nothing_left(transport), description="nothing waits any more")

    assert {b"unreadable " + member: b"no entry"} == place.client.hgetall(f"{key}:entries")
    assert 1 == sum("cannot be read and was set aside" in message for message in caplog.messages)


async def test_061_equal_messages_are_delayed_each_for_itself(place: Place) -> None:
    """Two deliveries with equal content delayed at once are two deliveries."""
    transport = await place.connect()
    await transport.publish(envelopes([7, 7, 7]))
    reader = Reader(transport, once_more)
    await reader.drain()

    assert once([7, 7, 7]) == once(reader.handled)
    assert [(7, 1)] * 3 + [(7, 2)] * 3 == sorted(reader.starts)
    assert (0, 0, 0) == await counts(transport)
