"""Groups"""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from eventbus.transport import utc
from tests.conformance.club import Reader, nothing_left, once, only, publish
from tests.conformance.places import Place


async def test_014_two_groups_each_get_everything(place: Place) -> None:
    """Two groups each get everything."""
    transport = await place.connect()
    await publish(transport, *range(50))
    mailer, catalog = Reader(transport, group="mailer"), Reader(transport, group="catalog")
    await mailer.drain()
    await publish(transport, *range(50, 100))
    async with only() as tasks:
        tasks.start_soon(mailer.drain)
        tasks.start_soon(catalog.drain)

    assert once(range(100)) == once(mailer.handled)
    assert once(range(100)) == once(catalog.handled)


async def test_015_many_consumers_of_a_group_get_everything_together(place: Place) -> None:
    """One group of 50 consumers: together they get everything."""
    transport = await place.connect()
    readers = [Reader(await place.connect()) for _ in range(50)]
    async with AsyncExitStack() as stack:
        for reader in readers:
            await stack.enter_async_context(reader.running())
        for start in range(0, 1000, 50):
            await publish(transport, *range(start, start + 50))
        await place.wait_until(lambda: nothing_left(transport), description="everything is settled")

    assert once(range(1000)) == once(number for reader in readers for number in reader.handled)
    assert len([reader for reader in readers if reader.handled]) > 1


async def test_016_a_new_group_begins_where_it_was_told_to(place: Place) -> None:
    """A new group sees the whole history; one that starts at `$` only what comes later; an id or a time in between."""
    transport = await place.connect()
    await publish(transport, 1)
    async with transport.subscribe(place.request(group="first")) as subscription:
        [delivery] = await place.take(subscription, 1)
    await place.pass_time(0.02)
    noon = utc(place.time())
    await place.pass_time(0.02)
    await publish(transport, 2)

    begins = {"all": "0", "later": "$", "id": delivery.entry_id, "time": noon}
    readers = {name: Reader(transport, group=name, start=start, concurrency=1) for name, start in begins.items()}
    async with readers["later"].running():
        pass
    await publish(transport, 3)
    for reader in readers.values():
        await reader.drain()

    assert {"all": [1, 2, 3], "later": [3], "id": [2, 3], "time": [2, 3]} == {
        name: reader.handled for name, reader in readers.items()
    }


async def test_017_a_group_may_be_made_by_many_at_once(place: Place) -> None:
    """Creating a group twice, or from two processes at once, is harmless."""
    transport = await place.connect()
    await publish(transport, *range(20))
    readers = [Reader(await place.connect()) for _ in range(5)]
    done = anyio.Event()

    async def work() -> None:
        async with place.worker(lease=30.0):  # which does not run out while the machine has others to serve
            await done.wait()

    async with only() as tasks:
        tasks.start_soon(work)
        tasks.start_soon(work)
        for reader in readers:
            await tasks.start(reader.subscriber.run)
        await place.wait_until(lambda: len(place.ledger.lines("joined")) == 2, description="both workers have joined")
        await publish(transport, *range(20, 40))
        await place.wait_until(lambda: nothing_left(transport), description="everything is settled")
        done.set()
        tasks.cancel_scope.cancel()

    assert once(range(40)) == once([*place.ledger.handled, *(number for reader in readers for number in reader.handled)])


async def test_018_no_two_subscribers_share_a_name(place: Place) -> None:
    """Two subscribers never share a consumer name."""
    transports = [await place.connect() for _ in range(3)]
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(place.worker()) for _ in range(2)]
        subscriptions = [
            await stack.enter_async_context(transport.subscribe(place.request())) for transport in transports for _ in range(10)
        ]

        assert 32 == len({consumer.consumer for consumer in [*workers, *subscriptions]})
