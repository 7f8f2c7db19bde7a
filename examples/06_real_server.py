"""The same over a real server: only the URL changes. Two groups each receive everything; two consumers of a group share it."""

from collections import Counter

import anyio

from eventbus import Delivery, Event, MessageBus, Metadata, Subscriber, UnitOfWork, connect
from eventbus.testing import drain


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    number: int


bus = MessageBus()
received: Counter[str] = Counter()


@bus.listen
async def count(event: BookRegistered, delivery: Delivery) -> None:
    received[delivery.group] += 1


async def main() -> None:
    # A Valkey server of its own, from the extra "embedded", that ends with this block; or "redis://localhost:6379/0".
    async with connect("embedded://", stream="reading-club") as transport:
        async with UnitOfWork(transport=transport) as uow:
            for number in range(100):
                uow.emit(BookRegistered(number=number))
            await uow.commit()  # one round trip, all or none

        mailer = Subscriber(bus=bus, transport=transport, streams=["reading-club"], group="mailer")
        catalog = Subscriber(bus=bus, transport=transport, streams=["reading-club"], group="catalog")
        async with anyio.create_task_group() as tasks:
            for subscriber in (mailer, mailer, catalog):  # two consumers of mailer, one of catalog
                tasks.start_soon(drain, subscriber)

        for group in sorted(received):
            print(f"{group} received {received[group]}, left {bool(await transport.backlog('reading-club', group))}")


anyio.run(main)

# Output:
# catalog received 100, left False
# mailer received 100, left False
