"""What the statements are shown with: a message that has a number, who publishes it, and a reader who writes down what it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgspec

from eventbus import Delivery, Envelope, Event, MessageBus, Metadata, Subscriber, Transport, UnitOfWork
from eventbus.envelope import seal
from eventbus.errors import only_one
from eventbus.subscriber import Statistics
from eventbus.testing import drain

STREAM = "club"
GROUP = "readers"


class Registered(Event):
    """A book came in. The handler of a `Reader` does with it what the test says."""

    metadata = Metadata(name="registered", published=True, stream=STREAM)
    number: int
    tags: list[str] = msgspec.field(default_factory=list[str])


def envelopes(numbers: Iterable[int], *, stream: str = STREAM) -> list[Envelope]:
    """Sealed messages, for those who publish without a unit of work."""
    return [msgspec.structs.replace(seal(Registered(number)), stream=stream) for number in numbers]


async def publish(transport: Transport, *numbers: int) -> None:
    """One unit of work that raises these."""
    async with UnitOfWork(transport=transport) as uow:
        for number in numbers:
            uow.emit(Registered(number))
        await uow.commit()


class Run:
    """One run of a reader: what stops it, and whether it has ended."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()


Does = Callable[[Registered, Delivery], Awaitable[None]]


class Reader:
    """A subscriber and what it went through: each start as (number, attempt), and the numbers of what it handled."""

    def __init__(self, transport: Transport, does: Does | None = None, **settings: Any) -> None:
        self.starts: list[tuple[int, int]] = []
        self.handled: list[int] = []
        self.bus = MessageBus()

        @self.bus.listen
        async def read(event: Registered, delivery: Delivery) -> None:
            self.starts.append((event.number, delivery.attempt))
            if does is not None:
                await does(event, delivery)
            self.handled.append(event.number)

        defaults: dict[str, Any] = {"streams": [STREAM], "group": GROUP, "grace": 2.0}
        self.subscriber = Subscriber(bus=self.bus, transport=transport, **{**defaults, **settings})

    @property
    def began(self) -> list[int]:
        """The numbers of what its handler was called with, in order."""
        return [number for number, _ in self.starts]

    @property
    def statistics(self) -> Statistics:
        return self.subscriber.statistics()

    async def drain(self) -> Statistics:
        """Read until nothing is left."""
        return await drain(self.subscriber)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work for as long as the block."""
        async with only() as tasks:
            await tasks.start(self.subscriber.run)
            yield
            tasks.cancel_scope.cancel()

    async def run(self, run: Run, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """At work until the run is stopped, for tests that look on while it stops."""
        with run.scope:
            await self.subscriber.run(task_status=task_status)
        run.ended.set()


@asynccontextmanager
async def only() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group whose one error comes out as it is: a failed assert, not a group of one."""
    error: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error = only_one(group)
    if error is not None:
        raise error


async def nothing_left(transport: Transport, *, stream: str = STREAM, group: str = GROUP) -> bool:
    """Whether the group has settled everything."""
    return not await transport.backlog(stream, group)


async def counts(transport: Transport, *, stream: str = STREAM, group: str = GROUP) -> tuple[int, int, int]:
    """Unread, pending, delayed."""
    backlog = await transport.backlog(stream, group)

    return backlog.unread, backlog.pending, backlog.delayed


def once(numbers: Iterable[int]) -> Counter[int]:
    """Each of these once, to compare with a count of what was handled."""
    return Counter(numbers)
