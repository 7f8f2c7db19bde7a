"""A handler says by raising what is to become of a delivery: again, again later, or never."""

import logging

import anyio

from eventbus import Delivery, Event, MemoryTransport, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork, exponential
from eventbus.testing import drain

logging.disable()  # what follows would be in the log as well


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str


bus = MessageBus()


@bus.listen
async def send_letter(event: BookRegistered, delivery: Delivery) -> None:
    print(f"attempt {delivery.attempt} at {event.title!r}")
    if event.title == "Dune" and delivery.attempt == 1:
        raise Retry(after=60)  # the mail server said: come back in a minute
    if event.title == "Solaris":
        raise ConnectionError("the mail server is down")  # the retry policy decides
    if event.title == "":
        raise Reject("a book without a title")  # never


transport = MemoryTransport("reading-club")
mailer = Subscriber(
    bus=bus,
    transport=transport,
    streams=["reading-club"],
    group="mailer",
    concurrency=1,
    retry=exponential(attempts=3, base=600, jitter=0),
)


async def main() -> None:
    async with UnitOfWork(transport=transport) as uow:
        for title in ("Dune", "Solaris", ""):
            uow.emit(BookRegistered(title=title))
        await uow.commit()

    await drain(mailer)  # until nothing is left; the clock of a MemoryTransport is moved over the waiting

    for letter in await transport.dead_letters("reading-club", "mailer"):
        print(f"dead: {letter.reason} after {letter.attempts}, {letter.error_type}: {letter.error}")
    for letter in await transport.dead_letters("reading-club", "mailer"):
        await transport.requeue(letter)
        print("requeued:", letter.envelope.payload.decode())


anyio.run(main)

# Output:
# attempt 1 at 'Dune'
# attempt 1 at 'Solaris'
# attempt 1 at ''
# attempt 2 at 'Dune'
# attempt 2 at 'Solaris'
# attempt 3 at 'Solaris'
# dead: rejected after 1, Reject: a book without a title
# dead: attempts exhausted after 3, ConnectionError: the mail server is down
# requeued: {"title":""}
# requeued: {"title":"Solaris"}
