"""Registers a book from the command line: `python -m examples.reading_club.publisher 9780441172719 "Dune" "Frank Herbert"`."""

import argparse
from uuid import uuid4

import anyio

from eventbus import MessageBus, Transport, connect
from examples.reading_club.adapters.memory import InMemoryLibrary
from examples.reading_club.domain.messages import RegisterBook
from examples.reading_club.domain.model import Book
from examples.reading_club.settings import STREAM, URL

bus = MessageBus()
bus.scan("examples.reading_club.service.handlers")

shelves: dict[str, Book] = {}


async def register(command: RegisterBook, transport: Transport) -> Book:
    """The edge of the system: it opens the transaction, and commits it."""
    async with InMemoryLibrary(shelves, transport=transport) as library:
        book: Book = await bus.handle(command, library)
        await library.commit()

    return book


async def main(isbn: str, title: str, author: str) -> None:
    async with connect(URL, stream=STREAM) as transport:
        book = await register(RegisterBook(id=uuid4(), isbn=isbn, title=title, author=author), transport)
    print(f"registered {book.title!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Register a book.")
    for name in ("isbn", "title", "author"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    anyio.run(main, arguments.isbn, arguments.title, arguments.author)
