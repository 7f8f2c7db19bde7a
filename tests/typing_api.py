"""Never run: what type checkers accept of a user's code, and what they must refuse.

Each line that is wrong carries the ignore comments of both checkers; a mistake that they no longer see makes the comment unused, and
that is an error.
"""

from typing import assert_type
from uuid import UUID

from eventbus import (
    Command,
    Delivery,
    Envelope,
    Event,
    MemoryTransport,
    MessageBus,
    Metadata,
    Model,
    Repository,
    Subscriber,
    UnitOfWork,
    exponential,
    listen,
)


class RegisterBook(Command):
    id: UUID
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID
    title: str


class BookLent(Event):
    id: UUID


class Owned(Metadata, frozen=True):
    team: str = ""


class BookReturned(Event):
    metadata = Owned(name="book_returned", team="desk")
    id: UUID


class Book(Model):
    id: UUID
    title: str


class Books(Repository[Book]):
    async def add(self, book: Book) -> None:
        self.seen.append(book)


class Library(UnitOfWork):
    def __init__(self) -> None:
        super().__init__(transport=MemoryTransport())
        self.books = Books()


bus = MessageBus(notifier=dict)


@listen
async def register_book(command: RegisterBook, uow: Library) -> Book:
    book = Book(id=command.id, title=command.title)
    book.messages.append(BookRegistered(id=book.id, title=book.title))
    await uow.books.add(book)
    uow.emit(BookLent(id=book.id))

    return book


@bus.listen
async def on_either(event: BookRegistered | BookLent, envelope: Envelope, delivery: Delivery) -> None: ...


@bus.listen
def in_a_thread(event: BookReturned) -> None: ...


async def used(id: UUID) -> None:
    async with Library() as uow:
        await bus.handle(RegisterBook(id=id, title="Dune"), uow)
        await uow.commit()
    assert_type(BookRegistered(id=id, title="Dune").title, str)
    bus.add_listener(RegisterBook, register_book)
    bus.upcast(BookLent, lambda old: BookReturned(id=old.id))
    subscriber = Subscriber(bus=bus, transport=MemoryTransport(), streams=["events"], group="desk", retry=exponential(attempts=2))
    await subscriber.run()


async def refused(id: UUID, event: BookRegistered, library: Library) -> None:
    RegisterBook(id=id, titel="Dune")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RegisterBook(id=id)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RegisterBook(id=id, title=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event.title = "Emma"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    bus.add_listener(BookLent, register_book)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    library.emit("no message")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@listen  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
async def takes_no_message(number: int) -> None: ...
