"""The reading club: who registers a book tells the mailer and the catalog, each of which is a group of its own.

The worker processes of the demo run `eventbus run eventbus.cli.demo.club:mailer` (or `:catalog`). What they do is told in the log.
"""

from __future__ import annotations

import logging
import os
from typing import ClassVar, Final
from uuid import UUID, uuid4

import anyio

from eventbus import (
    Command,
    Delivery,
    Event,
    MemoryTransport,
    MessageBus,
    Metadata,
    Model,
    Repository,
    Subscriber,
    UnitOfWork,
    exponential,
)
from eventbus.transport import Publisher

logger: Final = logging.getLogger("eventbus.demo")

STREAM = "EVENTBUS_DEMO_STREAM"
"""The environment variable that names the stream."""

HEAVY, BUSY, POISON = "Frankenstein", "The Trial", "Necronomicon"
"""What goes wrong with these: its first process is killed, the mail server is busy once, no letter can be written."""
TITLES = ("Emma", BUSY, "Dracula", HEAVY, "Ulysses", POISON, "Candide", "Persuasion")


class RegisterBook(Command):
    id: UUID
    title: str


class BookRegistered(Event):
    metadata: ClassVar[Metadata] = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID
    title: str


class Book(Model):
    id: UUID
    title: str


class Books(Repository[Book]):
    """On no shelf at all: what matters here is what the books have to say."""

    async def add(self, book: Book) -> None:
        self.seen.append(book)


class Club(UnitOfWork):
    def __init__(self, transport: Publisher) -> None:
        super().__init__(transport=transport)
        self.books: Books = Books()


desk: Final = MessageBus()
mail: Final = MessageBus()
shelf: Final = MessageBus()


async def register(title: str, transport: Publisher) -> None:
    """Register a book in a transaction of its own."""
    async with Club(transport) as club:
        await desk.handle(RegisterBook(id=uuid4(), title=title), club)
        await club.commit()


@desk.listen
async def register_book(command: RegisterBook, club: Club) -> Book:
    book = Book(id=command.id, title=command.title)
    book.messages.append(BookRegistered(id=book.id, title=book.title))
    await club.books.add(book)

    return book


@mail.listen
async def write_letter(event: BookRegistered, delivery: Delivery) -> None:
    if event.title == HEAVY and not delivery.suspect:
        _tell("holds", delivery, event, "has begun a long letter about")
        await anyio.sleep_forever()  # until the demo kills this process
    if event.title == BUSY and delivery.attempt == 1:
        raise ConnectionError(f"the mail server is busy ({event.title!r})")
    if event.title == POISON:
        raise ValueError(f"nobody can write about {event.title!r}")
    _tell("handled", delivery, event, "sent a letter about")


@shelf.listen
async def put_on_the_shelf(event: BookRegistered, delivery: Delivery) -> None:
    _tell("handled", delivery, event, "put on the shelf")


def mailer() -> Subscriber:
    return _subscriber(mail, "mailer")


def catalog() -> Subscriber:
    return _subscriber(shelf, "catalog")


GROUPS = {"mailer": mailer, "catalog": catalog}


def title_of(number: int) -> str:
    """The titles in turn; only the first copy of a book makes trouble."""
    copy, index = divmod(number, len(TITLES))

    return TITLES[index] if copy == 0 else f"{TITLES[index]}, copy {copy + 1}"


def _subscriber(bus: MessageBus, group: str) -> Subscriber:
    """Delays and lease are short, so that nobody waits long. The transport is the one that `eventbus run --url` names."""
    stream = os.environ.get(STREAM, "reading-club")

    return Subscriber(
        bus=bus,
        transport=MemoryTransport(stream),
        streams=[stream],
        group=group,
        concurrency=2,
        retry=exponential(attempts=3, base=0.2, factor=2.0),
        lease=2.0,
        grace=2.0,
    )


def _tell(step: str, delivery: Delivery, event: BookRegistered, text: str) -> None:
    what = {"step": step, "group": delivery.group, "id": delivery.envelope.id, "attempt": delivery.attempt}
    logger.info("%s %r", text, event.title, extra=what)
