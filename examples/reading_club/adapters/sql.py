"""A library in a database. What it tells others is stored in the same transaction, so that a lost publish loses nothing."""

from typing import Any

import msgspec
from sqlalchemy import Column, MetaData, String, Table, Uuid, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus import Repository
from eventbus.sqlalchemy import SqlMessageStore, tables
from eventbus.transport import Publisher
from examples.reading_club.domain.model import AlreadyRegistered, Book
from examples.reading_club.service.unit_of_work import Library

METADATA = MetaData()
BOOKS = Table(
    "books",
    METADATA,
    Column("isbn", String, primary_key=True),
    Column("id", Uuid, nullable=False),
    Column("title", String, nullable=False),
    Column("author", String, nullable=False),
)
OUTBOX = tables("club_", METADATA)


class SqlLibrary(Library):
    """A transaction of a session, which it closes at the end."""

    def __init__(self, session: AsyncSession, *, transport: Publisher | None = None) -> None:
        super().__init__(session, transport=transport, message_store=SqlMessageStore(session, tables=OUTBOX))
        self.books = SqlBooks(session)
        self._sql = session

    async def __aexit__(self, *failure: Any) -> None:
        try:
            await super().__aexit__(*failure)
        finally:
            await self._sql.close()


class SqlBooks(Repository[Book]):
    """Books by ISBN, in a table. The model knows nothing of it."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, book: Book) -> None:
        try:
            await self._session.execute(insert(BOOKS).values(msgspec.structs.asdict(book)))
        except IntegrityError as exc:  # by somebody else, since it was looked for
            raise AlreadyRegistered(f"{book.title!r} ({book.isbn}) is registered already") from exc
        self.seen.append(book)

    async def with_isbn(self, isbn: str) -> Book | None:
        row = (await self._session.execute(select(BOOKS).where(BOOKS.c.isbn == isbn))).one_or_none()
        if row is None:
            return None
        book = Book(id=row.id, isbn=row.isbn, title=row.title, author=row.author)
        self.seen.append(book)

        return book
