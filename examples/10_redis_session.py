"""State in Redis, beside the stream: what handlers write and the ack of the delivery are one step, so nothing is counted twice."""

import anyio

from eventbus import Event, MessageBus, Metadata, Subscriber, Transport, UnitOfWork, connect
from eventbus.redis import RedisSession
from eventbus.testing import drain

COUNTS = "books-by-author:{reading-club}"  # the name of the stream in braces: on a cluster they live together


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str
    author: str


class Authors(UnitOfWork):
    def __init__(self, transport: Transport) -> None:
        self.redis = RedisSession(transport)
        super().__init__(self.redis, transport=transport)


bus = MessageBus()


@bus.listen
async def count(event: BookRegistered, uow: Authors) -> None:
    uow.redis.zincrby(COUNTS, 1, event.author)  # gathered until the commit; await uow.redis.zscore(…) would read at once


async def main() -> None:
    async with connect("embedded://", stream="reading-club") as transport:
        async with UnitOfWork(transport=transport) as uow:
            uow.emit(BookRegistered(title="Dune", author="Frank Herbert"))
            uow.emit(BookRegistered(title="Solaris", author="Stanisław Lem"))
            uow.emit(BookRegistered(title="Eden", author="Stanisław Lem"))
            await uow.commit()

        await drain(Subscriber(bus=bus, transport=transport, streams=["reading-club"], group="authors", unit_of_work=Authors))

        for author, books in await RedisSession(transport).zrevrange(COUNTS, 0, -1):
            print(f"{author.decode()}: {books:g}")


anyio.run(main)

# Output:
# Stanisław Lem: 2
# Frank Herbert: 1
