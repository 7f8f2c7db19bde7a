"""The reading club of the demo: whoever registers a book tells the mailer and the catalog, each in a group of its own.

Run by `eventbus run eventbus.cli.demo.club:mailer` in processes of its own; what happens is printed, one line a step.
"""

from __future__ import annotations

import os

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

STREAM = os.environ.get("EVENTBUS_DEMO_STREAM", "demo-reading-club")
LEASE = 1.0
"""Seconds: short, so that the work of a killed process is soon taken over."""

FAILS_ONCE = "The Trial"
KILLS = "Frankenstein"
TITLES = ["Dune", "Emma", FAILS_ONCE, "Ulysses", KILLS, "Middlemarch", "Candide", "Dracula"]


class RegisterBook(Command):
    number: int
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True, stream=STREAM)
    number: int
    title: str


class Book(Model):
    number: int
    title: str


class Books(Repository[Book]):
    async def add(self, book: Book) -> None:
        self.seen.append(book)


class ClubUnitOfWork(UnitOfWork):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.books = Books()


club = MessageBus()


@club.listen
async def register_book(command: RegisterBook, uow: ClubUnitOfWork) -> Book:
    book = Book(number=command.number, title=command.title)
    book.messages.append(BookRegistered(number=book.number, title=book.title))
    await uow.books.add(book)

    return book


mail, shelf = MessageBus(), MessageBus()


@mail.listen
async def welcome(event: BookRegistered, delivery: Delivery) -> None:
    if event.title == KILLS and not delivery.suspect and "EVENTBUS_DEMO_STREAM" in os.environ:
        step("mailer", "holds", event)
        await anyio.sleep_forever()  # until the process is killed
    step("mailer", "handled", event)


@shelf.listen
async def put_in_catalog(event: BookRegistered, delivery: Delivery) -> None:
    if event.title == FAILS_ONCE and delivery.attempt == 1:
        step("catalog", "fails", event)
        raise ConnectionError("the catalog's database does not answer")
    step("catalog", "handled", event)


def step(group: str, what: str, event: BookRegistered) -> None:
    """Tell the demo; a line is a group, what happened, a number and a title."""
    print(f"{group}\t{what}\t{event.number}\t{event.title}", flush=True)


def subscriber(bus: MessageBus, group: str) -> Subscriber:
    return Subscriber(
        bus=bus,
        transport=MemoryTransport(),  # the demo names the real one with --url
        streams=[STREAM],
        group=group,
        concurrency=2,
        retry=exponential(attempts=3, base=0.3, maximum=1.0),
        lease=LEASE,
        grace=2.0,
    )


mailer, catalog = subscriber(mail, "mailer"), subscriber(shelf, "catalog")
