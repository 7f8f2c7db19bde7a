"""A library in memory that keeps what a database would: nothing counts before the commit."""

from eventbus import MessageStore, Repository
from eventbus.transport import Publisher
from examples.reading_club.domain.model import Book
from examples.reading_club.service.unit_of_work import Library


class InMemoryLibrary(Library):
    """A transaction on some shelves, which many transactions may share."""

    def __init__(
        self,
        shelves: dict[str, Book] | None = None,
        *,
        transport: Publisher | None = None,
        message_store: MessageStore | None = None,
    ) -> None:
        session = ShelfSession({} if shelves is None else shelves)
        super().__init__(session, transport=transport, message_store=message_store)
        self.books = InMemoryBooks(session)


class InMemoryBooks(Repository[Book]):
    """Books by ISBN. What is handed out or taken in is `seen`, so that the unit of work hears what it has to say."""

    def __init__(self, session: "ShelfSession") -> None:
        self._session = session

    async def add(self, book: Book) -> None:
        self._session.added[book.isbn] = book
        self.seen.append(book)

    async def with_isbn(self, isbn: str) -> Book | None:
        book = self._session.added.get(isbn) or self._session.shelves.get(isbn)
        if book is not None:
            self.seen.append(book)

        return book


class ShelfSession:
    """What a unit of work commits: anything with `commit` and `rollback`, as an SQLAlchemy session has."""

    def __init__(self, shelves: dict[str, Book]) -> None:
        self.shelves = shelves
        self.added: dict[str, Book] = {}

    async def commit(self) -> None:
        self.shelves.update(self.added)
        self.added.clear()

    async def rollback(self) -> None:
        self.added.clear()
