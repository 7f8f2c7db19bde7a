"""A service that counts the books of each author, in Redis: `eventbus run examples.reading_club.authors:authors`.

`python -m examples.reading_club.authors` prints the counts. Adding one is not the same when it is done twice; here it is done once, since
the count and the ack of the delivery are one step.
"""

import anyio

from eventbus import Event, MessageBus, Metadata, Subscriber, Transport, UnitOfWork, connect
from eventbus.redis import RedisSession
from examples.reading_club.settings import STREAM, URL


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1)
    author: str


class Authors:
    """How many books there are of each author."""

    def __init__(self, session: RedisSession, stream: str) -> None:
        self._session = session
        self.key = f"books-by-author:{{{stream}}}"  # in braces: on a cluster it is where the stream is

    def count(self, author: str) -> None:
        self._session.zincrby(self.key, 1, author)

    async def counts(self) -> dict[str, int]:
        """Most books first."""
        return {author.decode(): int(books) for author, books in await self._session.zrevrange(self.key, 0, -1)}


class ReadModel(UnitOfWork):
    """One transaction on what is kept for reading."""

    def __init__(self, transport: Transport) -> None:
        session = RedisSession(transport)
        super().__init__(session, transport=transport)
        self.authors = Authors(session, transport.stream)


bus = MessageBus()


@bus.listen
async def count_book(event: BookRegistered, model: ReadModel) -> None:
    model.authors.count(event.author)
    print(f"authors: one more by {event.author}", flush=True)


authors = Subscriber(bus=bus, transport=connect(URL, stream=STREAM), streams=[STREAM], group="authors", unit_of_work=ReadModel)


async def main() -> None:
    async with connect(URL, stream=STREAM) as transport:
        for author, books in (await ReadModel(transport).authors.counts()).items():
            print(f"{author}: {books}")


if __name__ == "__main__":
    anyio.run(main)
