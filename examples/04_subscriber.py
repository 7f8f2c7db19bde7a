"""Another service listens: a bus of its own, in a group of its own. Its handlers look like all the others."""

import anyio

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str


bus = MessageBus()
done = anyio.Event()


@bus.listen
async def send_letter(event: BookRegistered) -> None:
    print(f"letter: new on the shelf, {event.title}")
    if event.title == "Solaris":
        done.set()


transport = MemoryTransport("reading-club")
mailer = Subscriber(bus=bus, transport=transport, streams=["reading-club"], group="mailer", concurrency=1)


async def main() -> None:
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(BookRegistered(title="Dune"))
        uow.emit(BookRegistered(title="Solaris"))
        await uow.commit()

    async with anyio.create_task_group() as tasks:
        await tasks.start(mailer.run)  # returns when the group exists; a new group reads from the beginning
        await done.wait()
        tasks.cancel_scope.cancel()  # it drains: what runs is finished and acked
    print("left:", await transport.backlog("reading-club", "mailer"))


anyio.run(main)

# Output:
# letter: new on the shelf, Dune
# letter: new on the shelf, Solaris
# left: Backlog(unread=0, pending=0, delayed=0, next_in=None)
