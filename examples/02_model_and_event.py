"""A model says what happened to it; whoever listens is called next, in the same unit of work."""

import anyio

from eventbus import Command, Event, MessageBus, Model, Repository, UnitOfWork


class RegisterBook(Command):
    title: str


class BookRegistered(Event):
    title: str


class Book(Model):
    title: str


class Books(Repository[Book]):
    def __init__(self) -> None:
        self.shelf: list[Book] = []

    def add(self, book: Book) -> None:
        self.shelf.append(book)
        self.seen.append(book)  # so that the unit of work hears what it has to say


class Library(UnitOfWork):
    def __init__(self) -> None:
        super().__init__()
        self.books = Books()


bus = MessageBus()


@bus.listen
async def register_book(command: RegisterBook, library: Library) -> Book:
    book = Book(command.title)
    book.messages.append(BookRegistered(title=book.title))
    library.books.add(book)

    return book


@bus.listen
async def tell_the_members(event: BookRegistered) -> None:
    print(f"new on the shelf: {event.title}")


@bus.listen
async def count(event: BookRegistered, library: Library) -> None:
    print(f"books so far: {len(library.books.shelf)}")


async def main() -> None:
    async with Library() as library:
        book = await bus.handle(RegisterBook(title="Dune"), library)
        await library.commit()
    print(f"registered {book}")


anyio.run(main)

# Output:
# new on the shelf: Dune
# books so far: 1
# registered Book(title='Dune')
