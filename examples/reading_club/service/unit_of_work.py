"""What a transaction of the library offers to handlers. Adapters say how."""

from typing import Protocol

from eventbus import UnitOfWork
from examples.reading_club.domain.model import Book


class Books(Protocol):
    """Where books are kept."""

    async def add(self, book: Book) -> None: ...

    async def with_isbn(self, isbn: str) -> Book | None: ...


class Library(UnitOfWork):
    """One transaction of the library."""

    books: Books
