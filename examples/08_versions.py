"""Messages change. A new field gets a default; a new meaning gets a new version, and old deliveries are turned into new messages."""

import anyio

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork
from eventbus.testing import drain


class BookRegisteredV1(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str
    author: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=2, published=True)
    title: str
    authors: list[str]
    pages: int = 0  # a later addition: what was published before it is still read


def to_v2(old: BookRegisteredV1) -> BookRegistered:
    return BookRegistered(title=old.title, authors=[old.author])


bus = MessageBus()
bus.upcast(BookRegisteredV1, to_v2)


@bus.listen
async def show(event: BookRegistered) -> None:
    print(event)


async def main() -> None:
    transport = MemoryTransport("reading-club")
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(BookRegisteredV1(title="Roadside Picnic", author="Strugatsky"))
        uow.emit(BookRegistered(title="Good Omens", authors=["Pratchett", "Gaiman"], pages=288))
        await uow.commit()
    print([event["type"] for event in transport.events])

    await drain(Subscriber(bus=bus, transport=transport, streams=["reading-club"], group="catalog", concurrency=1))


anyio.run(main)

# Output:
# ['book_registered_v1', 'book_registered_v2']
# BookRegistered(title='Roadside Picnic', authors=['Strugatsky'], pages=0)
# BookRegistered(title='Good Omens', authors=['Pratchett', 'Gaiman'], pages=288)
