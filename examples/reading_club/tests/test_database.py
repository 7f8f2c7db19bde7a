"""What only the library in a database does: it tells of a book for sure, and knows of one that came in between."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from eventbus import MemoryTransport
from eventbus.envelope import Envelope
from eventbus.errors import Unavailable
from eventbus.sqlalchemy import Relay
from examples.reading_club.adapters.sql import METADATA, OUTBOX, SqlLibrary
from examples.reading_club.domain.messages import BookRegistered, RegisterBook
from examples.reading_club.domain.model import AlreadyRegistered, Book
from examples.reading_club.publisher import register

COMMAND = RegisterBook(id=uuid4(), isbn="9780441172719", title="Dune", author="Frank Herbert")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'club.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine)


class Away:
    """A server that does not answer."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[str]:
        raise Unavailable("no answer")


async def test_the_relay_tells_of_a_book_when_the_server_was_away(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], transport: MemoryTransport
) -> None:
    """Once: what was sent at the commit is left alone."""
    await register(COMMAND, SqlLibrary(sessions(), transport=Away()))
    assert [] == transport.events

    relay = Relay(engine, transport, tables=OUTBOX)

    assert [1, 0] == [await relay.drain(), await relay.drain()]
    assert ["Dune"] == [event.title for event in transport.messages(BookRegistered)]


async def test_a_book_that_came_in_between_is_registered_already(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Two desks look for it at once, and neither finds it; the second to add it hears what a later one would."""
    book = Book(id=COMMAND.id, isbn=COMMAND.isbn, title=COMMAND.title, author=COMMAND.author)
    async with SqlLibrary(sessions()) as late:
        assert await late.books.with_isbn(book.isbn) is None
        async with SqlLibrary(sessions()) as early:
            await early.books.add(book)
            await early.commit()

        with pytest.raises(AlreadyRegistered, match="'Dune'"):
            await late.books.add(book)

        await late.rollback()
