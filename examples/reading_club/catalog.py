"""A service that keeps a catalog by author: `eventbus run examples.reading_club.catalog:catalog`.

It could live in another repository: it has a class of its own for the event, with the fields that it needs. What the two sides share is
the name on the wire.
"""

from uuid import UUID

from eventbus import Event, MessageBus, Metadata, Subscriber, connect
from examples.reading_club.settings import STREAM, URL


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1)
    id: UUID
    title: str
    author: str


class Catalog:
    """Titles by author, each book once: a delivery may come twice, and changes nothing the second time."""

    def __init__(self) -> None:
        self._books: dict[UUID, tuple[str, str]] = {}

    def add(self, id: UUID, author: str, title: str) -> None:
        self._books[id] = (author, title)

    def titles_of(self, author: str) -> list[str]:
        return sorted(title for by, title in self._books.values() if by == author)


shelf = Catalog()
bus = MessageBus(catalog=lambda: shelf)


@bus.listen
async def put_in_catalog(event: BookRegistered, catalog: Catalog) -> None:
    catalog.add(event.id, event.author, event.title)
    print(f"catalog: {event.author}: {', '.join(catalog.titles_of(event.author))}", flush=True)


catalog = Subscriber(bus=bus, transport=connect(URL, stream=STREAM), streams=[STREAM], group="catalog")
