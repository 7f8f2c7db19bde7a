"""Never run: mypy --strict and pyright --strict accept the API as a user writes it, and reject what is marked wrong.

A mark that is no longer needed is an error of its own (`warn_unused_ignores`, `reportUnnecessaryTypeIgnoreComment`), so a mistake that one
of the two begins to accept fails the build.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, assert_type
from uuid import UUID, uuid4

import msgspec

from eventbus import (
    Command,
    Delivery,
    Envelope,
    Event,
    EventBusError,
    MemoryTransport,
    Message,
    MessageBus,
    MessageStore,
    Metadata,
    Model,
    Reject,
    Repository,
    Retry,
    Subscriber,
    TransactionStatus,
    Transport,
    UnitOfWork,
    connect,
    exponential,
    listen,
)
from eventbus.errors import PublishError, Unavailable
from eventbus.message_store import InMemoryMessageStore, Record
from eventbus.retry import Policy

# ----------------------------------------------------------------------------------------------------------------- messages


class RegisterBook(Command):
    id: UUID
    isbn: str
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=2, published=True, stream="reading-club", key="id")
    id: UUID
    isbn: str
    title: str = ""
    tags: list[str] = msgspec.field(default_factory=list[str])


class BookRegisteredV1(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID


class AudioBookRegistered(BookRegistered):
    metadata = Metadata(name="audio_book_registered", published=True)
    minutes: int = 0


class BookLost(Event):
    isbn: str


class Owned(Metadata):
    owner: str = ""


class ShelfMoved(Event):
    metadata = Owned(name="shelf_moved", owner="library")
    to: str


registered = BookRegistered(id=uuid4(), isbn="978-0-441-17271-9")
positional = BookRegistered(uuid4(), "978-0-441-17271-9", "Dune")
audio = AudioBookRegistered(id=uuid4(), isbn="1", minutes=7)
assert_type(registered.id, UUID)
assert_type(registered.tags, list[str])
assert_type(BookRegistered.metadata.type, str)
assert_type(ShelfMoved.metadata.name, str)
assert_type(msgspec.structs.replace(registered, title="Emma"), BookRegistered)
also_a_key: dict[Message, int] = {registered: 1, RegisterBook(uuid4(), "1", "Dune"): 2}

BookRegistered(id=uuid4(), isbn="1", pages=412)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
BookRegistered(id=uuid4())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
BookRegistered(id="1", isbn="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
BookRegistered(id=uuid4(), isbn="1", metadata=Metadata(name="x"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
registered.title = "Emma"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
registered.pages = 412  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
BookRegistered.metadata.name = "x"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
Metadata(name=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Metadata(title="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -------------------------------------------------------------------------------------------------- models, repositories


class Book(Model):
    id: UUID
    title: str

    def rename(self, title: str) -> None:
        self.title = title
        self.messages.append(BookLost(isbn=title))


@dataclass
class Card:
    owner: str
    messages: list[Event] = field(default_factory=list[Event])


class Books(Repository[Book]):
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def add(self, book: Book) -> None:
        self.seen.append(book)

    async def by_id(self, id: UUID) -> Book | None:
        return next((book for book in self.seen if book.id == id), None)


class BookRepository(Protocol):
    async def add(self, book: Book) -> None: ...


class InMemoryBooks(Repository[Book]):
    async def add(self, book: Book) -> None:
        self.seen.append(book)


class Cards(Repository[Card]):
    pass


book = Book(id=uuid4(), title="Dune")
book.title = "Emma"
book.messages += [registered]
assert_type(book.messages, list[Message])
assert_type(InMemoryBooks().seen, list[Book])

book.messages.append("Dune")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Book(id=uuid4(), title="Dune", messages=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
InMemoryBooks().seen.append(Card("Leto"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
of_what_raises_nothing: Repository[int]  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]


# -------------------------------------------------------------------------------------------------------- the unit of work


class AsyncSession:
    """As SQLAlchemy has it."""

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


class SyncSession:
    def commit(self) -> None: ...

    def rollback(self) -> None: ...


class LibraryUnitOfWork(UnitOfWork):
    books: BookRepository

    def __init__(
        self, session: AsyncSession, *, transport: Transport | None = None, message_store: MessageStore | None = None
    ) -> None:
        super().__init__(session, transport=transport, message_store=message_store)
        self.books = Books(session)
        self.cards = Cards()


class InMemoryLibrary(UnitOfWork):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.books: BookRepository = InMemoryBooks()


async def in_a_transaction(bus: MessageBus) -> None:
    async with LibraryUnitOfWork(AsyncSession(), transport=MemoryTransport()) as uow:
        assert_type(uow, LibraryUnitOfWork)
        book: Book = await bus.handle(RegisterBook(id=uuid4(), isbn="1", title="Dune"), uow)
        await bus.handle(registered, uow, clock=datetime.now(UTC), tracker=book)
        uow.emit(registered, headers={"traceparent": "00"})
        uow.detach()
        assert_type(uow.status, TransactionStatus)
        try:
            await uow.commit()
        except PublishError as exc:
            assert_type(exc.envelopes, Sequence[Envelope])
            await uow.publish_pending()
        except Unavailable:
            await uow.rollback()
    await uow.close()

    uow.emit("registered")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    uow.emit(registered, headers={"a": 5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await bus.handle(registered)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await bus.handle("registered", uow)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bus.handle(registered, AsyncSession())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    UnitOfWork(SyncSession())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    UnitOfWork(transport="redis://localhost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    UnitOfWork(message_store=MemoryTransport())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------------------------ handlers


class Notifier:
    async def notify(self, text: str) -> None: ...


async def make_notifier() -> Notifier:
    return Notifier()


bus = MessageBus(notifier=Notifier, clock=lambda: datetime.now(UTC), smtp=make_notifier, recursion_limit=10)


@listen
async def register_book(command: RegisterBook, uow: LibraryUnitOfWork, notifier: Notifier) -> Book:
    book = Book(id=command.id, title=command.title)
    book.messages.append(BookRegistered(id=book.id, isbn=command.isbn, title=command.title))
    await uow.books.add(book)

    return book


@bus.listen
async def on_either(event: BookRegistered | BookLost, uow: UnitOfWork, *, envelope: Envelope, optional: int = 0) -> None:
    uow.emit(ShelfMoved(to=envelope.id))


@bus.listen
def in_a_thread(event: BookRegistered, delivery: Delivery) -> None:
    if delivery.attempt > 3:
        raise Reject("enough")

    raise Retry(after=timedelta(minutes=1).total_seconds())


class Mailer:
    @staticmethod
    async def alone(event: BookLost) -> None: ...

    async def __call__(self, event: BookLost, uow: UnitOfWork) -> None: ...

    def method(self, event: BookLost) -> str:
        return event.isbn


async def on_any(event: Event) -> None: ...


async def on_text(event: str, uow: UnitOfWork) -> None: ...


async def on_nothing() -> None: ...


async def called_in_a_test(uow: LibraryUnitOfWork) -> None:
    """A decorated handler has kept its type."""
    assert_type(await register_book(RegisterBook(uuid4(), "1", "Dune"), uow, Notifier()), Book)
    await on_either(BookLost("1"), uow, envelope=Envelope("1", datetime.now(UTC), "x_v1", b"{}"))

    await register_book(BookLost("1"), uow, Notifier())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await register_book(RegisterBook(uuid4(), "1", "Dune"), uow)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


bus.add_listener(RegisterBook, register_book)
bus.add_listener(BookLost, on_either)
bus.add_listener(BookLost, on_any)
bus.add_listener(BookLost, Mailer())
bus.add_listener(BookLost, Mailer().method)
bus.add_listener(BookLost, Mailer.alone)
bus.add_listener(BookLost, lambda event: event.isbn)
bus.remove_listener(BookLost, on_either)
bus.scan("reading_club.service.handlers", "reading_club.reports")
bus.upcast(BookRegisteredV1, lambda old: BookRegistered(id=old.id, isbn=""))
assert_type(bus.types(), Mapping[str, type[Message]])

bus.add_listener(BookLost, register_book)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
bus.add_listener(ShelfMoved, on_either)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
bus.add_listener(BookRegistered, Mailer())  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
bus.add_listener(BookRegistered, on_text)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
bus.add_listener(BookRegistered, on_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.add_listener(str, on_text)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
bus.add_listener("BookLost", on_any)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.remove_listener(BookLost, register_book)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
bus.listen(on_text)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
bus.listen(on_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
listen(on_text)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
bus.upcast(BookRegisteredV1, lambda old: BookLost(old.id))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.upcast(BookRegisteredV1, lambda old: old.id)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
bus.scan(on_text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MessageBus(notifier=Notifier())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --------------------------------------------------------------------------------------------------------- stores, transports


class SqlMessageStore:
    durable = True

    async def add(self, records: Sequence[Record]) -> None: ...

    async def published(self, records: Sequence[Record]) -> None: ...

    async def forget(self, records: Sequence[Record]) -> None: ...


class HalfAStore:
    async def add(self, records: Sequence[Record]) -> None: ...


async def transports() -> None:
    transport = connect("memory://")
    assert_type(transport, Transport)
    UnitOfWork(transport=transport, message_store=SqlMessageStore())
    UnitOfWork(transport=MemoryTransport(), message_store=InMemoryMessageStore())
    assert_type(MemoryTransport().messages(BookRegistered), list[BookRegistered])
    async with MemoryTransport() as memory:
        assert_type(await memory.publish([]), list[str])

    UnitOfWork(message_store=HalfAStore())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------------------------- subscribers


def make_uow(transport: Transport) -> InMemoryLibrary:
    return InMemoryLibrary(transport=transport)


async def make_uow_later(transport: Transport) -> InMemoryLibrary:
    return InMemoryLibrary(transport=transport)


def patient(attempt: int, error: Exception) -> float | None:
    return None if isinstance(error, EventBusError) else 60.0 * attempt


mailer = Subscriber(
    bus=bus,
    transport=connect("memory://"),
    streams=["reading-club"],
    group="mailer",
    unit_of_work=make_uow,
    concurrency=10,
    retry=exponential(attempts=6, base=1.0, factor=4.0, maximum=300.0, jitter=0.25),
    start=datetime(2026, 1, 1, tzinfo=UTC),
    lease=30.0,
    grace=25.0,
    max_crashes=3,
)
policy: Policy = patient
made: Callable[[Transport], UnitOfWork | Awaitable[UnitOfWork]] = make_uow_later
assert_type(replace(mailer, transport=MemoryTransport(), retry=policy, unit_of_work=made), Subscriber)

mailer.group = "catalog"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
Subscriber(bus=bus, transport=MemoryTransport(), streams=["reading-club"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Subscriber(bus=bus, transport="memory://", streams=["a"], group="b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Retry(after=timedelta(minutes=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# A unit of work says which session it has.


class Desk(UnitOfWork):
    session: list[str]


assert_type(Desk().session, list[str])
