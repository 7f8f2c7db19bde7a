"""Stop"""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import pytest

from eventbus import Delivery, Retry, UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.unit_of_work import TransactionStatus
from tests.conformance.club import Reader, Registered, Run, counts, nothing_left, once, only, publish
from tests.conformance.places import Fake, Place, Real


async def test_069_a_drain_lets_running_handlers_finish(place: Place) -> None:
    """A drain lets running handlers finish and settles them."""
    transport = await place.connect()
    await publish(transport, *range(3))
    may_end = anyio.Event()

    async def does(event: Registered, delivery: Delivery) -> None:
        await may_end.wait()
        if event.number == 1 and delivery.attempt == 1:
            raise Retry(after=0.0)

    reader, run = Reader(transport, does, concurrency=3, grace=20.0), Run()
    async with only() as tasks:
        await tasks.start(reader.run, run)
        await place.wait_until(lambda: len(reader.starts) == 3, description="three handlers run")
        run.scope.cancel()
        await place.wait_until(lambda: not run.ended.is_set(), description="it waits for them")
        may_end.set()
        with anyio.fail_after(10):
            await run.ended.wait()

    assert [0, 2] == sorted(reader.handled)
    assert 1 == sum(await counts(transport))

    await reader.drain()

    assert [0, 1, 2] == sorted(reader.handled)


async def test_070_past_the_grace_it_gives_back_what_it_has(place: Place) -> None:
    """Past `grace` handlers are cancelled and what is unsettled is released: no attempt used, taken by a peer at its next sweep, not \
treated as a suspect."""
    transport = await place.connect()
    await publish(transport, *range(1000))
    hung: list[int] = []
    suspects: list[int] = []

    async def hangs(event: Registered, delivery: Delivery) -> None:
        await anyio.lowlevel.checkpoint()
        if event.number >= 400:
            hung.append(event.number)
            await anyio.sleep_forever()

    async def does(event: Registered, delivery: Delivery) -> None:
        if delivery.suspect:
            suspects.append(event.number)

    leaver = Reader(await place.connect(), hangs, concurrency=3, grace=0.05, lease=place.lease)
    peer, run = Reader(transport, does, lease=place.lease), Run()
    async with only() as tasks:
        await tasks.start(leaver.run, run)
        await place.wait_until(lambda: len(hung) == 3 and leaver.statistics.waiting > 5, description="three run, some wait")
        async with peer.running():
            run.scope.cancel()
            with anyio.fail_after(5):
                await run.ended.wait()
            left = place.time()
            await place.wait_until(lambda: nothing_left(transport), description="the peer has handled everything")
            waited = place.time() - left

    assert once(range(1000)) == once(leaver.handled + peer.handled)
    assert set(hung) <= set(peer.handled)
    assert {1} == {attempt for _, attempt in peer.starts}
    assert [] == suspects
    assert waited <= place.lease * 0.6 + place.tolerance


async def test_071_closing_is_closing_however_often_and_by_whom(place: Place) -> None:
    """Closing is idempotent and safe from several tasks, while blocked in a read, and when nobody reads."""
    transport = await place.connect()
    async with transport.subscribe(place.request()) as reading, transport.subscribe(place.request()) as idle:
        found: list[object] = []

        async def read() -> None:
            found.append(await reading.receive(10))

        async def stop() -> None:
            reading.stop()
            idle.stop()

        with anyio.fail_after(1.5):
            async with only() as tasks:
                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                for _ in range(5):
                    tasks.start_soon(stop)

            assert [[]] == found
            assert ([], []) == (await reading.receive(10), await idle.receive(10))

    async def come_and_go() -> None:
        async with transport, transport.subscribe(place.request()) as subscription:
            subscription.stop()

    async with only() as tasks:
        for _ in range(10):
            tasks.start_soon(come_and_go)
    readers, runs = [Reader(transport) for _ in range(3)], [Run() for _ in range(3)]
    with anyio.fail_after(10):
        async with only() as tasks:
            for reader, run in zip(readers, runs, strict=True):
                await tasks.start(reader.run, run)
            for run in [*runs, *runs]:
                run.scope.cancel()
    await publish(transport, *range(50))
    last = Reader(transport)
    await last.drain()

    assert once(range(50)) == once(last.handled)


@pytest.mark.not_on("memory", because="it has no client")
async def test_072_a_client_that_was_given_stays_open(place: Fake | Real) -> None:
    """Closing closes no client that was given."""
    async with place.given_client() as client:
        connection = await client.client_id()
        async with RedisTransport(client) as transport:
            await publish(transport, 1)
            await Reader(transport).drain()

        assert connection == await client.client_id()


async def test_073_it_can_be_started_again(place: Place) -> None:
    """Start, stop, start again works."""
    transport = await place.connect()
    reader = Reader(transport)
    for number in range(3):
        async with reader.running():
            await publish(transport, number)
            await place.wait_until(lambda number=number: number in reader.handled, description="it is handled")

    assert [0, 1, 2] == reader.handled


@pytest.mark.in_full_once
async def test_074_restarts_lose_nothing(place: Place) -> None:
    """Five restarts over 5000 envelopes lose none."""
    transport = await place.connect()
    handled: list[int] = []
    each = place.so_many(1000)
    for restart in range(5):
        reader = Reader(await place.connect(), lease=place.lease)
        async with reader.running():
            await publish(transport, *range(restart * each, (restart + 1) * each))
            await place.wait_until(lambda reader=reader: len(reader.handled) > each // 2, description="half of it is handled")
        handled += reader.handled
    last = Reader(transport)
    await last.drain()

    assert once(range(5 * each)) == once(handled + last.handled)


async def test_075_a_cancelled_run_ends_cleanly(place: Place) -> None:
    """Cancelling `run()` ends it cleanly; a handler's scope ends with its settlement."""
    transport = await place.connect()
    await publish(transport, *range(20))
    opened: list[UnitOfWork] = []
    during: list[TransactionStatus] = []

    def make(transport: object) -> UnitOfWork:
        opened.append(UnitOfWork())
        return opened[-1]

    async def does(event: Registered, delivery: Delivery) -> None:
        during.append(opened[-1].status)
        if event.number >= 5:
            await anyio.sleep_forever()

    async with AsyncExitStack() as stack:
        first = Reader(transport, does, concurrency=1, grace=0.0, unit_of_work=make)
        await stack.enter_async_context(first.running())
        await place.wait_until(lambda: len(first.starts) == 6, description="five are handled, and one runs")

        assert [TransactionStatus.closed] * 5 == [uow.status for uow in opened[:5]]

    assert [TransactionStatus.running] * 6 == during
    assert [TransactionStatus.closed] * 6 == [uow.status for uow in opened]
    assert [0, 1, 2, 3, 4] == first.handled

    last = Reader(transport)
    await last.drain()

    assert once(range(5, 20)) == once(last.handled)
