"""A service is tested as it is, in memory: another transport, a fake at its edge, and `drain`.

pytest gives you the transport as the fixture `transport`, see docs/testing.md; nothing else is needed than what is here.
"""

from dataclasses import replace

import anyio

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork, connect
from eventbus.testing import drain


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    title: str


class Smtp:
    sent: list[str] = []  # noqa: RUF012 - a fake as simple as can be

    async def send(self, text: str) -> None:
        self.sent.append(text)


bus = MessageBus(smtp=Smtp)


@bus.listen
async def send_letter(event: BookRegistered, smtp: Smtp) -> None:
    await smtp.send(f"new on the shelf: {event.title}")


# The service, as it runs in production.
mailer = Subscriber(bus=bus, transport=connect("redis://localhost:6379/0"), streams=["reading-club"], group="mailer")


async def test_members_get_a_letter() -> None:
    transport = MemoryTransport("reading-club")
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(BookRegistered(title="Dune"))
        await uow.commit()

    statistics = await drain(replace(mailer, transport=transport))

    assert ["new on the shelf: Dune"] == Smtp.sent
    assert 1 == statistics.handled
    print("passed:", Smtp.sent)


anyio.run(test_members_get_a_letter)

# Output:
# passed: ['new on the shelf: Dune']
