"""The read model in Redis, on a real server: each book is counted once, whatever happens on its way."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import anyio
import pytest

from eventbus import MessageBus, Retry, Subscriber, Transport
from eventbus.redis import RedisSession, RedisTransport
from eventbus.testing import drain
from examples.reading_club.adapters.memory import InMemoryLibrary
from examples.reading_club.authors import BookRegistered, ReadModel, authors, count_book
from examples.reading_club.domain.messages import RegisterBook
from examples.reading_club.publisher import register

BOOKS = [("Dune", "Frank Herbert"), ("Solaris", "Stanisław Lem"), ("Eden", "Stanisław Lem")]


@pytest.fixture
async def club(live_transport: RedisTransport) -> AsyncIterator[RedisTransport]:
    """The counts go with the test: they are ours, and on a server that is not they would stay."""
    yield live_transport
    session = RedisSession(live_transport)
    session.delete(ReadModel(live_transport).authors.key)
    await session.commit()


async def publish(transport: Transport) -> None:
    for title, author in BOOKS:
        command = RegisterBook(id=uuid4(), isbn=str(uuid4()), title=title, author=author)
        await register(command, InMemoryLibrary(transport=transport))


def authors_on(transport: Transport) -> Subscriber:
    return replace(authors, transport=transport, streams=[transport.stream])


async def test_the_books_of_each_author_are_counted(club: RedisTransport) -> None:
    """By two consumers of one group, which share the work."""
    await publish(club)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(drain, authors_on(club))

    assert {"Stanisław Lem": 2, "Frank Herbert": 1} == await ReadModel(club).authors.counts()


async def test_a_book_is_counted_once_when_its_handling_failed_after_the_count(club: RedisTransport) -> None:
    """What was counted in a transaction that did not commit is not counted."""
    bus = MessageBus()
    bus.add_listener(BookRegistered, count_book)
    failed: list[str] = []

    @bus.listen
    async def fail_once(event: BookRegistered) -> None:
        if event.author not in failed:
            failed.append(event.author)
            raise Retry(after=0.01)

    await publish(club)

    statistics = await drain(replace(authors_on(club), bus=bus, concurrency=1))

    assert (3, 2, 0) == (statistics.handled, statistics.retried, statistics.buried)
    assert {"Stanisław Lem": 2, "Frank Herbert": 1} == await ReadModel(club).authors.counts()
