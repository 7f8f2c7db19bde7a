"""With a database: events are stored in the transaction that they tell of, and a relay sends what a lost publish left."""

import logging
from collections.abc import Sequence

import anyio
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventbus import Command, Event, MemoryTransport, MessageBus, Metadata, UnitOfWork
from eventbus.envelope import Envelope
from eventbus.errors import Unavailable
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore
from eventbus.transport import Publisher

logging.disable()  # that a publish was lost would be in the log as well


class Base(DeclarativeBase):
    metadata = TABLES.metadata  # ours and those of the store, made together


class Book(Base):
    __tablename__ = "books"
    title: Mapped[str] = mapped_column(primary_key=True)


class RegisterBook(Command):
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str


class Library(UnitOfWork):
    def __init__(self, session: AsyncSession, transport: Publisher) -> None:
        super().__init__(session, transport=transport, message_store=SqlMessageStore(session))
        self.books = session


class Away:
    """A server that does not answer."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[str]:
        raise Unavailable("no answer")


bus = MessageBus()


@bus.listen
async def register_book(command: RegisterBook, library: Library) -> None:
    library.books.add(Book(title=command.title))
    library.emit(BookRegistered(title=command.title))


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")  # in memory; postgresql+asyncpg://… is one on a server
    sessions = async_sessionmaker(engine)
    transport = MemoryTransport("reading-club")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async def register(title: str, transport: Publisher) -> None:
        async with sessions() as session, Library(session, transport) as library:
            await bus.handle(RegisterBook(title=title), library)
            await library.commit()

    await register("Dune", transport)
    await register("Solaris", Away())
    print("published:", transport.messages(BookRegistered))

    async with sessions() as session:
        print("in the database:", [envelope.type async for envelope in SqlMessageStore(session).history()])
    print("sent by the relay:", await Relay(engine, transport).drain())  # in production: eventbus relay module:relay
    print("published:", transport.messages(BookRegistered))
    await engine.dispose()


anyio.run(main)

# Output:
# published: [BookRegistered(title='Dune')]
# in the database: ['register_book_v1', 'book_registered_v1', 'register_book_v1', 'book_registered_v1']
# sent by the relay: 1
# published: [BookRegistered(title='Dune'), BookRegistered(title='Solaris')]
