"""How many commands and how many round trips a message costs, as the server counts them: a guard of speed that needs no clock."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
import pytest

from eventbus import Event, MessageBus, Metadata, Subscriber, UnitOfWork
from eventbus.envelope import seal
from eventbus.redis import RedisTransport, subscription
from eventbus.testing import wait_until
from eventbus.testing.servers import LiveServer

S = "club"


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True, stream=S)
    number: int


class Traffic(NamedTuple):
    sent: Counter[str]
    """What clients asked for, by command; what runs inside a script is part of the script."""
    round_trips: int
    """How often the server read something from a connection."""


SENT = {"evalsha", "eval", "xreadgroup", "hello", "client", "client|id", "client|setinfo", "client|unblock"}


class Counting:
    """Counts from its making on; a look at the counts is not counted."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._looks = 0
        client.config_resetstat()

    def so_far(self) -> Traffic:
        info = self._client.info("all")  # in one answer, or something would happen between two
        self._looks += 1
        reads = info["total_reads_processed"]
        calls = {name.removeprefix("cmdstat_"): row["calls"] for name, row in info.items() if name.startswith("cmdstat_")}
        sent = Counter({name: n for name, n in calls.items() if name in SENT})

        return Traffic(sent, reads - self._looks)


@pytest.fixture
async def transport(redis_server: LiveServer, server: Any) -> Any:
    async with RedisTransport(redis_server.url, stream=S) as transport:
        await transport.publish([seal(BookRegistered(0))])  # connects, and makes the server know the script
        yield transport


@pytest.fixture
def count(server: Any) -> Callable[[], Counting]:
    return lambda: Counting(server.client)


async def commit(transport: RedisTransport, *numbers: int) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for number in numbers:
            uow.emit(BookRegistered(number))
        await uow.commit()


def service(transport: RedisTransport, handle: Callable[[], None], **settings: Any) -> Subscriber:
    bus = MessageBus()

    @bus.listen
    async def registered(event: BookRegistered) -> None:
        handle()

    return Subscriber(bus=bus, transport=transport, streams=[S], group="g", **settings)


@pytest.mark.parametrize("events", [1, 100])
async def test_a_commit_is_one_command(transport: RedisTransport, count: Callable[[], Counting], events: int) -> None:
    """Whether it publishes one event or a hundred."""
    counting = count()
    await commit(transport, *range(events))

    traffic = counting.so_far()
    assert Counter(evalsha=1) == traffic.sent
    assert traffic.round_trips <= 1 + events * 400 // 16384  # what is long is read in parts


async def test_what_many_tasks_publish_at_once_goes_together(transport: RedisTransport, count: Callable[[], Counting]) -> None:
    """The first goes alone; what the others ask for meanwhile is one command more."""
    counting = count()
    await asyncio.gather(*(commit(transport, number) for number in range(50)))

    traffic = counting.so_far()
    assert Counter(evalsha=2) == traffic.sent
    assert traffic.round_trips <= 3


async def test_a_drained_message_costs_a_share_of_a_round_trip(transport: RedisTransport, count: Callable[[], Counting]) -> None:
    """One by one, in a unit of work each, and acked: about a hundred of them are read and acked together."""
    n, handled = 5000, 0
    for first in range(1, n, 500):
        await transport.publish([seal(BookRegistered(number)) for number in range(first, min(first + 500, n))])
    enough = anyio.Event()

    def handle() -> None:
        nonlocal handled
        handled += 1
        if handled == n:
            enough.set()

    counting = count()
    async with anyio.create_task_group() as tasks:
        await tasks.start(service(transport, handle, concurrency=1).run)
        await enough.wait()
        tasks.cancel_scope.cancel()

    traffic = counting.so_far()
    assert traffic.round_trips <= n / 40
    assert traffic.sent.total() <= n / 15  # an ack, a read of the retry stream and one of the stream, each time


async def test_an_idle_subscriber_looks_and_waits(
    transport: RedisTransport, count: Callable[[], Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at what there is to sweep, and reads that wait until the next: some 48 commands a minute, and 5 of the janitor."""
    looks, reads = 60 / subscription.SWEEP_EVERY, math.ceil(subscription.SWEEP_EVERY / subscription.BLOCK)
    assert 48 == looks * (1 + reads)

    monkeypatch.setattr(subscription, "SWEEP_EVERY", 0.1)
    monkeypatch.setattr(subscription, "TIDY_EVERY", 1e6)
    handled = 0

    def handle() -> None:
        nonlocal handled
        handled += 1

    async with anyio.create_task_group() as tasks:
        await tasks.start(service(transport, handle).run)
        await wait_until(lambda: handled == 1, description="it has handled what was there")
        before = count()
        await wait_until(lambda: before.so_far().sent["evalsha"] >= 3, description="the ack is sent")
        counting = count()
        await wait_until(lambda: counting.so_far().sent["evalsha"] >= 10, description="it looked ten times")
        traffic = counting.so_far()
        tasks.cancel_scope.cancel()

    assert {"evalsha", "xreadgroup"} == set(traffic.sent)
    assert abs(traffic.sent["xreadgroup"] - traffic.sent["evalsha"]) <= 1
    assert traffic.round_trips <= traffic.sent.total() + 1  # a command that waits is counted when it ends
