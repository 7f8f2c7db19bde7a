"""Crash and claim"""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from eventbus import Delivery, MessageBus, Subscriber
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, nothing_left, once, only, publish
from tests.conformance.places import Place

SWEEP = 0.6
"""The longest time between two sweeps, in leases as short as these: half a lease, and a fifth of that."""


async def test_033_what_a_dead_consumer_held_goes_to_another_in_time(place: Place) -> None:
    """A consumer that dies in a handler: another has the delivery within lease plus one sweep."""
    transport = await place.connect()
    await publish(transport, 1)
    async with place.worker(hang=[1]) as worker:
        await place.wait_until(lambda: bool(place.ledger.began), description="the worker has begun")
        heir = Reader(transport, lease=place.lease)
        async with heir.running():
            await worker.crash()
            died = place.time()
            await place.wait_until(lambda: bool(heir.handled), description="another has handled it", within=2 * place.lease + 2)
            waited = place.time() - died

    assert [(1, 1)] == heir.starts
    assert waited <= (1 + SWEEP) * place.lease + place.tolerance


async def test_034_a_restarted_process_finishes_what_it_left(place: Place) -> None:
    """A restarted process finishes what it left."""
    transport = await place.connect()
    await publish(transport, *range(20))
    async with place.worker(hang=[3, 7], concurrency=2) as worker:
        await place.wait_until(lambda: {3, 7} <= {n for n, _ in place.ledger.began}, description="two handlers hang")
        await worker.crash()
    async with place.worker(concurrency=2):
        await place.wait_until(lambda: nothing_left(transport), description="the next has finished everything")

    assert set(range(20)) == set(place.ledger.handled)
    assert [] == await transport.dead_letters(STREAM, GROUP)


async def test_035_a_handler_may_take_as_long_as_it_likes(place: Place) -> None:
    """A handler that takes five leases runs once."""
    transport = await place.connect()
    lease = 0.8 * place.lease
    await publish(transport, 1)

    async def does(event: Registered, delivery: Delivery) -> None:
        await place.pass_time(5 * lease)

    readers = [Reader(await place.connect(), does, lease=lease) for _ in range(2)]
    async with readers[0].running(), readers[1].running():
        await place.wait_until(lambda: nothing_left(transport), description="it is settled")

    assert [(1, 1)] == readers[0].starts + readers[1].starts
    assert [1] == readers[0].handled + readers[1].handled


async def test_036_what_waits_behind_a_slow_handler_is_not_claimed(place: Place) -> None:
    """What waits in the local buffer is not claimed by others."""
    transport = await place.connect()
    lease = 4 * place.lease  # fakeredis needs long for so many entries, and nobody can renew meanwhile
    slow, go_on = anyio.Event(), anyio.Event()

    async def does(event: Registered, delivery: Delivery) -> None:
        await anyio.lowlevel.checkpoint()
        if len(first.starts) > 100 and first.statistics.waiting > 5 and not slow.is_set():
            slow.set()
            await go_on.wait()

    first = Reader(await place.connect(), does, lease=lease, concurrency=1)
    second = Reader(await place.connect(), lease=lease)
    await publish(transport, *range(600))
    async with first.running():
        with anyio.fail_after(20):
            await slow.wait()
        async with second.running():
            await place.wait_until(lambda: _nothing_but(transport, first), description="the second has read the rest")
            held = first.statistics.held
            await place.pass_time(1.5 * lease)

            assert held == first.statistics.held > 5

            go_on.set()
            await place.wait_until(lambda: nothing_left(transport), description="everything is settled")

        assert (0, 0) == (first.statistics.lost_leases, second.statistics.lost_leases)
    assert once(range(600)) == once(first.handled + second.handled)


async def _nothing_but(transport: Any, reader: Reader) -> bool:
    """Whether all that is left is in the hands of this one."""
    return (0, reader.statistics.held, 0) == await counts(transport)


async def test_037_a_late_heartbeat_takes_nothing_back(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A heartbeat never takes back what was lost; the loser's handler is cancelled with `LeaseLost` and its outcome discarded."""
    transport = await place.connect()
    await publish(transport, 1)
    ended: list[str] = []
    may_end = anyio.Event()

    async def loses(event: Registered, delivery: Delivery) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            ended.append("cancelled")
            raise

    async def wins(event: Registered, delivery: Delivery) -> None:
        await may_end.wait()

    async with place.line() as (behind, line):
        loser, winner = Reader(behind, loses, lease=place.lease), Reader(transport, wins, lease=place.lease)
        async with loser.running():
            await place.wait_until(lambda: bool(loser.starts), description="the first has begun")
            line.stall()
            async with winner.running():
                await place.wait_until(lambda: bool(winner.starts), description="another has taken over")
                with caplog.at_level(logging.WARNING, "eventbus"):
                    line.resume()
                    await place.wait_until(lambda: bool(ended), description="the loser's handler is cancelled")
                await place.pass_time(0.5 * place.lease)

                assert (1, 0, 0) == (
                    loser.statistics.lost_leases, loser.statistics.held, loser.statistics.handled
                )  # fmt: skip
                assert (0, 1) == (winner.statistics.lost_leases, winner.statistics.held)

                may_end.set()
                await place.wait_until(lambda: nothing_left(transport), description="it is settled")

    assert ([(1, 1)], [(1, 1)]) == (loser.starts, winner.starts)
    assert ([], [1]) == (loser.handled, winner.handled)
    assert "another consumer has taken it over" in caplog.text


@pytest.mark.in_full_once
async def test_038_what_is_stale_does_not_hide_behind_what_is_fresh(place: Place) -> None:
    """One stale entry behind 1000 fresh ones is claimed within one sweep."""
    transport = await place.connect()
    fresh = place.so_many(1000)
    await publish(transport, *range(fresh + 1))
    async with transport.subscribe(place.request(lease=place.lease)) as living:
        await place.take(living, fresh)
        async with place.worker(hang=[fresh]) as worker:
            await place.wait_until(lambda: bool(place.ledger.began), description="the worker has begun")
            await worker.crash()
            died = place.time()
            heir = Reader(await place.connect(), lease=place.lease)
            async with heir.running():
                await place.wait_until(lambda: bool(heir.handled), description="it was claimed", within=2 * place.lease + 2)
                waited = place.time() - died

        assert [fresh] == heir.handled
        assert waited <= (1 + SWEEP) * place.lease + place.tolerance
        assert (0, fresh, 0) == await counts(transport)


async def test_039_two_sweeps_never_get_the_same(place: Place) -> None:
    """Two sweeps at once never both get the same entry."""
    transport = await place.connect()
    await publish(transport, *range(100))
    async with place.worker(hang=[*range(100)], concurrency=100) as worker:
        await place.wait_until(lambda: len(place.ledger.began) == 100, description="the worker holds everything")
        await worker.crash()
    await place.pass_time(place.lease)
    heirs = [Reader(await place.connect(), lease=place.lease) for _ in range(5)]
    async with AsyncExitStack() as stack:
        for heir in heirs:
            await stack.enter_async_context(heir.running())
        await place.wait_until(lambda: nothing_left(transport), description="everything is settled")

    assert once(range(100)) == once(number for heir in heirs for number in heir.began)


@pytest.mark.not_on("memory", "fakeredis", because="all consumers share one event loop there, and one that blocks stops them all")
async def test_040_a_handler_that_blocks_the_loop_is_reported(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An event loop blocked past the lease stops renewing, and is reported with the handler's name."""
    transport = await place.connect()
    bus = MessageBus()
    begun, go = anyio.Event(), anyio.Event()

    def reported() -> bool:
        return any("stood still" in message and "hogs_the_loop" in message for message in caplog.messages)

    @bus.listen
    async def hogs_the_loop(event: Registered) -> None:
        begun.set()
        await go.wait()
        until = time.monotonic() + 20
        while (place.ledger.handled != [1] or not reported()) and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251 - that is the mistake

    await publish(transport, 1)
    blocked = Subscriber(bus=bus, transport=transport, streams=[STREAM], group=GROUP, lease=place.lease)
    with caplog.at_level(logging.WARNING, "eventbus"):
        async with only() as tasks:
            await tasks.start(blocked.run)
            with anyio.fail_after(10):
                await begun.wait()
            async with place.worker():
                go.set()
                await place.wait_until(lambda: place.ledger.handled == [1], description="another process has taken it over")
                await place.wait_until(lambda: blocked.statistics().held == 0, description="the handler has ended")
            tasks.cancel_scope.cancel()

    assert reported()


async def test_041_what_kills_its_process_is_buried_and_its_neighbours_are_handled(place: Place) -> None:
    """A message that kills the process is buried as a crash loop after `max_crashes`; every neighbour is handled."""
    transport = await place.connect()
    await publish(transport, *range(30))
    while not await transport.dead_letters(STREAM, GROUP):
        deaths = _deaths(place)
        async with place.worker(die=[13], concurrency=3, max_crashes=2, lease=0.6 * place.lease):
            await place.wait_until(
                lambda deaths=deaths: _dead_or_buried(place, transport, deaths),
                description="the worker dies, or buries what kills it",
            )
    last = Reader(transport, lease=place.lease)
    await last.drain()
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert 1 + 2 == _deaths(place)
    assert ("crash loop", 1) == (letter.reason, letter.attempts)
    assert set(range(30)) - {13} == set(place.ledger.handled + last.handled)
    assert 13 not in place.ledger.handled


async def _dead_or_buried(place: Place, transport: Any, deaths: int) -> bool:
    return _deaths(place) > deaths or bool(await transport.dead_letters(STREAM, GROUP))


def _deaths(place: Place) -> int:
    """How often the handler of what kills was begun."""
    return sum(number == 13 for number, _ in place.ledger.began)


async def test_042_a_sweep_hands_nobody_what_it_holds(place: Place) -> None:
    """A sweep hands no consumer what it holds itself."""
    transport = await place.connect()
    await publish(transport, *range(3))
    may_end = anyio.Event()

    async def does(event: Registered, delivery: Delivery) -> None:
        await may_end.wait()

    async with place.line() as (behind, line):
        reader = Reader(behind, does, lease=place.lease)
        async with reader.running():
            await place.wait_until(lambda: len(reader.starts) == 3, description="three handlers run")
            line.stall()  # its leases run out, and nobody else is there
            await place.pass_time(1.2 * place.lease)
            line.resume()
            await place.pass_time(0.8 * place.lease)

            assert 3 == reader.statistics.held

            may_end.set()
            await place.wait_until(lambda: nothing_left(transport), description="everything is settled")

    assert [(0, 1), (1, 1), (2, 1)] == sorted(reader.starts)
