"""Registering a book, in memory and in a database: the bus, a handler alone, and what happens without a commit."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from eventbus import MemoryTransport, MessageBus
from eventbus.errors import TransactionError
from examples.reading_club.adapters.memory import InMemoryLibrary
from examples.reading_club.adapters.sql import METADATA, SqlLibrary
from examples.reading_club.domain.messages import BookRegistered, RegisterBook
from examples.reading_club.domain.model import AlreadyRegistered, Book
from examples.reading_club.service.handlers import register_book
from examples.reading_club.service.unit_of_work import Library

DUNE = UUID("6f1f7a2e-0b6a-4b0e-9d0c-3f6f7d1f4c11")
COMMAND = RegisterBook(id=DUNE, isbn="9780441172719", title="Dune", author="Frank Herbert")
EVENT = BookRegistered(id=DUNE, isbn="9780441172719", title="Dune", author="Frank Herbert")
BOOK = Book(id=DUNE, isbn="9780441172719", title="Dune", author="Frank Herbert")

OpenLibrary = Callable[[], Library]
"""A transaction on the books of the test."""


@pytest.fixture
def bus() -> MessageBus:
    bus = MessageBus()
    bus.scan("examples.reading_club.service.handlers")

    return bus


@pytest.fixture(params=["memory", "sqlite"])
async def open_library(
    request: pytest.FixtureRequest, transport: MemoryTransport, tmp_path: Path, anyio_backend_name: str
) -> AsyncIterator[OpenLibrary]:
    if request.param == "memory":
        shelves: dict[str, Book] = {}
        yield lambda: InMemoryLibrary(shelves, transport=transport)
        return
    if anyio_backend_name != "asyncio":
        pytest.skip(f"SQLAlchemy runs under asyncio only, not under {anyio_backend_name}")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'club.db'}")
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield lambda: SqlLibrary(sessions(), transport=transport)
    await engine.dispose()


async def on_the_shelf(open_library: OpenLibrary) -> Book | None:
    """What another transaction sees."""
    async with open_library() as library:
        book = await library.books.with_isbn(COMMAND.isbn)
        await library.rollback()

    return book


async def test_a_registered_book_is_on_the_shelf_and_announced(
    bus: MessageBus, open_library: OpenLibrary, transport: MemoryTransport
) -> None:
    """The command goes in; the book is in the repository, and the event in the stream, in its envelope."""
    async with open_library() as library:
        book = await bus.handle(COMMAND, library)
        await library.commit()

    assert BOOK == book
    assert BOOK == await on_the_shelf(open_library)
    [event] = transport.events
    assert ["id", "created_at", "type", "payload"] == list(event)
    assert 7 == UUID(str(event["id"])).version
    assert datetime.fromisoformat(str(event["created_at"])).tzinfo is not None
    assert "book_registered_v1" == event["type"]
    expected = {"id": str(DUNE), "isbn": "9780441172719", "title": "Dune", "author": "Frank Herbert"}
    assert expected == msgspec.json.decode(event["payload"])
    assert [EVENT] == transport.messages(BookRegistered)


async def test_a_handler_is_a_function(open_library: OpenLibrary) -> None:
    """Called without a bus it leaves what it raised with the book, where a test can look at it."""
    async with open_library() as library:
        book = await register_book(COMMAND, library)

        assert [EVENT] == book.messages

        await library.rollback()


async def test_nothing_is_published_without_a_commit(
    bus: MessageBus, open_library: OpenLibrary, transport: MemoryTransport
) -> None:
    """Forgetting is the safe case: the error says so, nothing is stored and nobody hears of it."""
    with pytest.raises(TransactionError, match="without commit"):
        async with open_library() as library:
            await bus.handle(COMMAND, library)

    assert await on_the_shelf(open_library) is None
    assert [] == transport.events


async def test_a_book_is_registered_once(bus: MessageBus, open_library: OpenLibrary, transport: MemoryTransport) -> None:
    """The second time is an error of the domain, which comes out as it is, and rolls back."""
    async with open_library() as library:
        await bus.handle(COMMAND, library)
        await library.commit()

    with pytest.raises(AlreadyRegistered, match="'Dune'"):
        async with open_library() as library:
            await bus.handle(COMMAND, library)

    assert [EVENT] == transport.messages(BookRegistered)
