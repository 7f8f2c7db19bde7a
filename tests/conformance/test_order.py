"""Order"""

from __future__ import annotations

import anyio.lowlevel

from eventbus import Delivery, UnitOfWork
from eventbus.unit_of_work import TransactionStatus
from tests.conformance.club import Reader, Registered, publish
from tests.conformance.places import Place


async def test_051_one_handles_in_the_order_of_the_stream(place: Place) -> None:
    """One consumer at concurrency 1: stream order."""
    transport = await place.connect()
    reader = Reader(transport, concurrency=1)
    await publish(transport, *range(300))
    async with reader.running():
        for number in range(300, 600, 20):
            await publish(transport, *range(number, number + 20))
        await place.wait_until(lambda: len(reader.handled) == 600, description="all are handled")

    assert [*range(600)] == reader.handled


async def test_052_one_ends_before_the_next_begins(place: Place) -> None:
    """At concurrency 1 no handler starts before the previous unit of work has ended."""
    transport = await place.connect()
    await publish(transport, *range(100))
    opened: list[UnitOfWork] = []
    before: list[set[TransactionStatus]] = []

    def make(transport: object) -> UnitOfWork:
        opened.append(UnitOfWork())
        return opened[-1]

    async def does(event: Registered, delivery: Delivery) -> None:
        before.append({uow.status for uow in opened[:-1]})
        await anyio.lowlevel.checkpoint()
        before.append({uow.status for uow in opened[:-1]})

    await Reader(transport, does, concurrency=1, unit_of_work=make).drain()

    assert [set(), set(), *[{TransactionStatus.closed}] * 198] == before
