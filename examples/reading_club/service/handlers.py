"""The handlers of the club. They neither commit nor publish: whoever opened the unit of work does the first, and so the second."""

from eventbus import listen
from examples.reading_club.domain.messages import RegisterBook
from examples.reading_club.domain.model import AlreadyRegistered, Book
from examples.reading_club.service.unit_of_work import Library


@listen
async def register_book(command: RegisterBook, library: Library) -> Book:
    if await library.books.with_isbn(command.isbn) is not None:
        raise AlreadyRegistered(f"{command.title!r} ({command.isbn}) is registered already")
    book = Book.register(command.id, command.isbn, command.title, command.author)
    await library.books.add(book)

    return book
