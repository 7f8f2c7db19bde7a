"""What is flagged as published goes to a stream when its unit of work commits, and never otherwise."""

import anyio

from eventbus import Command, Event, MemoryTransport, MessageBus, Metadata, UnitOfWork
from eventbus.errors import TransactionError


class RegisterBook(Command):
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str


bus = MessageBus()


@bus.listen
async def register_book(command: RegisterBook, uow: UnitOfWork) -> None:
    uow.emit(BookRegistered(title=command.title))


async def main() -> None:
    transport = MemoryTransport()  # streams in this process; connect("redis://localhost") is one on a server

    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(RegisterBook(title="Dune"), uow)
        print("before the commit:", transport.messages(BookRegistered))
        await uow.commit()
    print("after the commit:", transport.messages(BookRegistered))

    try:
        async with UnitOfWork(transport=transport) as uow:
            await bus.handle(RegisterBook(title="Solaris"), uow)
    except TransactionError as exc:
        print(f"without a commit: {type(exc).__name__}")
    for event in transport.events:
        print("in the stream:", event["type"], event["payload"])


anyio.run(main)

# Output:
# before the commit: []
# after the commit: [BookRegistered(title='Dune')]
# without a commit: TransactionError
# in the stream: book_registered_v1 {"title":"Dune"}
