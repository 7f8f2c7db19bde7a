"""The aggregate: it keeps its own rules, and says what happened to it."""

from __future__ import annotations

from uuid import UUID

from eventbus import Model
from examples.reading_club.domain.messages import BookRegistered


class Book(Model):
    id: UUID
    isbn: str
    title: str
    author: str

    @classmethod
    def register(cls, id: UUID, isbn: str, title: str, author: str) -> Book:
        """A new book, which has something to tell."""
        book = cls(id, isbn, title, author)
        book.messages.append(BookRegistered(id=id, isbn=isbn, title=title, author=author))

        return book


class AlreadyRegistered(Exception):
    """A book is registered once."""
