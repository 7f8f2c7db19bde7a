"""A reader that can be killed: a process of its own on a server, and the same thing in this process elsewhere.

What it does is written in a ledger, a file that several of them share, one line for each beginning and each end of a handler.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from eventbus import Delivery, MessageBus, Subscriber, Transport
from eventbus.redis import RedisTransport
from eventbus.transport import Subscribe
from tests.conformance.club import GROUP, STREAM, Registered


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told."""

    ledger: str
    lease: float
    url: str = ""
    concurrency: int = 10
    max_crashes: int = 3
    hang: list[int] = []
    """Numbers whose handler never returns."""
    die: list[int] = []
    """Numbers whose handler takes the process with it."""


class Line(msgspec.Struct, frozen=True):
    """One line of the ledger: a worker has joined, or its handler has begun or ended."""

    verb: str
    worker: str
    number: int = 0
    attempt: int = 0


class Ledger:
    """What all workers of a test went through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, verb: str) -> list[Line]:
        whole = self.path.read_bytes().rpartition(b"\n")[0]

        return [line for text in whole.splitlines() if (line := msgspec.json.decode(text, type=Line)).verb == verb]

    @property
    def began(self) -> list[tuple[int, int]]:
        """Each start of a handler, as (number, attempt)."""
        return [(line.number, line.attempt) for line in self.lines("began")]

    @property
    def handled(self) -> list[int]:
        return [line.number for line in self.lines("handled")]


class Watched:
    """A transport that keeps the subscriptions made on it, for a test to reach the one inside a subscriber."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.subscriptions: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncIterator[Any]:
        async with self.transport.subscribe(request) as subscription:
            self.subscriptions.append(subscription)
            yield subscription


def reader(transport: Transport, orders: Orders, die: Callable[[], Awaitable[None]]) -> Subscriber:
    """The subscriber of a worker."""
    ledger = Path(orders.ledger)
    bus = MessageBus()

    @bus.listen
    async def read(event: Registered, delivery: Delivery) -> None:
        note(ledger, Line("began", delivery.consumer, event.number, delivery.attempt))
        if event.number in orders.hang:
            await anyio.sleep_forever()
        if event.number in orders.die:
            await die()
        note(ledger, Line("handled", delivery.consumer, event.number, delivery.attempt))

    return Subscriber(
        bus=bus,
        transport=transport,
        streams=[STREAM],
        group=GROUP,
        concurrency=orders.concurrency,
        lease=orders.lease,
        max_crashes=orders.max_crashes,
        grace=0.0,
    )


def note(ledger: Path, line: Line) -> None:
    """Append a line, whole, whoever else does."""
    with ledger.open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(line) + b"\n")


async def main(orders: Orders) -> None:
    async def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    transport: Any = Watched(RedisTransport(orders.url))
    subscriber = reader(transport, orders, die)
    async with anyio.create_task_group() as tasks:
        await tasks.start(subscriber.run)
        note(Path(orders.ledger), Line("joined", transport.subscriptions[0].consumer))


def work(orders: bytes, log: str) -> None:
    """What a process does from its beginning to its end. What it says goes to the log."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    anyio.run(main, msgspec.json.decode(orders, type=Orders))
