"""Registers a book from the command line: `python -m examples.reading_club.publisher 9780441172719 "Dune" "Frank Herbert"`."""

import argparse
from uuid import uuid4

import anyio

from eventbus import MessageBus, connect
from examples.reading_club.adapters.memory import InMemoryLibrary
from examples.reading_club.domain.messages import RegisterBook
from examples.reading_club.domain.model import Book
from examples.reading_club.service.unit_of_work import Library
from examples.reading_club.settings import STREAM, URL

bus = MessageBus()
bus.scan("examples.reading_club.service.handlers")


async def register(command: RegisterBook, library: Library) -> Book:
    """The edge of the system: it opens the transaction, and commits it."""
    async with library:
        book: Book = await bus.handle(command, library)
        await library.commit()

    return book


def read_command() -> RegisterBook:
    parser = argparse.ArgumentParser(description="Register a book.")
    for name in ("isbn", "title", "author"):
        parser.add_argument(name)
    arguments = parser.parse_args()

    return RegisterBook(id=uuid4(), isbn=arguments.isbn, title=arguments.title, author=arguments.author)


async def main(command: RegisterBook) -> None:
    async with connect(URL, stream=STREAM) as transport:
        book = await register(command, InMemoryLibrary(transport=transport))
    print(f"registered {book.title!r}")


if __name__ == "__main__":
    anyio.run(main, read_command())
