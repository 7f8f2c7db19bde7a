"""What the club is told to do, and what it tells others."""

from uuid import UUID

from eventbus import Command, Event, Metadata


class RegisterBook(Command):
    id: UUID
    isbn: str
    title: str
    author: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID
    isbn: str
    title: str
    author: str
