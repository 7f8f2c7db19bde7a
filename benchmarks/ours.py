"""eventbus as its users run it: the public API, a unit of work for each message, leases and acks as they are by default."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from benchmarks.message import CUSTOMER, GROUP, NOTE, PRODUCT, STREAM
from benchmarks.meter import Meter, cpu, paced, percentiles, repeated, resident
from benchmarks.server import Server, url
from benchmarks.side import publisher as publisher_process
from eventbus import Command, Event, MessageBus, Metadata, Model, Repository, Subscriber, UnitOfWork, connect
from eventbus.envelope import seal


class OrderPlaced(Event):
    metadata = Metadata(name="order_placed", published=True, stream=STREAM)
    customer: str
    product: str
    note: str
    n: int


def placed(n: int) -> OrderPlaced:
    return OrderPlaced(CUSTOMER, PRODUCT, NOTE, n)


# -------------------------------------------------------------------------------------------------------------- consume


class Count:
    """A handler that counts, and says when it has seen so many."""

    def __init__(self) -> None:
        self.handled = self.wanted = 0
        self.enough = asyncio.Event()

    def want(self, n: int) -> None:
        self.wanted = self.handled + n
        self.enough.clear()

    def __call__(self) -> None:
        self.handled += 1
        if self.handled == self.wanted:
            self.enough.set()


def service(count: Count, *, streams: list[str], concurrency: int = 1, seconds: float = 0.0) -> Subscriber:
    bus = MessageBus()

    if seconds:

        @bus.listen
        async def handle_slowly(event: OrderPlaced, uow: UnitOfWork) -> None:
            await asyncio.sleep(seconds)
            count()

    else:

        @bus.listen
        async def handle(event: OrderPlaced, uow: UnitOfWork) -> None:
            count.handled += 1
            if count.handled == count.wanted:
                count.enough.set()

    return Subscriber(bus=bus, transport=connect(url()), streams=streams, group=GROUP, concurrency=concurrency)


@asynccontextmanager
async def running(*subscribers: Subscriber) -> AsyncIterator[None]:
    """Subscribers that run; left, they are told to stop, and have settled what they handled."""
    async with anyio.create_task_group() as tasks:
        for subscriber in subscribers:
            await tasks.start(subscriber.run)
        yield
        tasks.cancel_scope.cancel()


async def drain(
    n: int,
    *,
    times: int = 1,
    backlog: int = 0,
    pending: int = 0,
    streams: int = 1,
    consumers: int = 1,
    concurrency: int = 1,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Handle n messages of a backlog, from the start of `run()` to its end, so many times.

    `backlog` is how many are there (n if that is more), `pending` how many others a consumer holds who is not there any more.
    """
    server, meter, count = Server(), Meter(), Count()
    names = [STREAM] if streams == 1 else [f"{STREAM}-{i}" for i in range(streams)]
    if pending:
        server.fill(pending)
        server("XREADGROUP", "GROUP", GROUP, "gone", "COUNT", pending, "STREAMS", STREAM, ">")
    there = 0
    for _ in range(times):
        while there < max(n, backlog):
            for name in names:
                server.fill(max(n, backlog) // streams, name)
            there += max(n, backlog) // streams * streams
        workers = [service(count, streams=names, concurrency=concurrency, seconds=seconds) for _ in range(consumers)]
        before = count.handled
        count.want(n)
        with meter:
            async with running(*workers):
                await count.enough.wait()
        there -= count.handled - before
    if not backlog:
        assert pending == sum(map(server.pending, names)), "something was handled and not acked"

    return meter.result(count.handled)


async def calls(n: int) -> dict[str, Any]:
    """How many functions are called for each message that is drained, as cProfile counts them: Python's, and those built in."""
    Server().fill(n)
    count, python, built_in = Count(), 0, 0
    count.want(n)

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal python, built_in
        if event == "call":
            python += 1
        elif event == "c_call":
            built_in += 1

    async with anyio.create_task_group() as tasks:
        sys.setprofile(profile)
        try:
            await tasks.start(service(count, streams=[STREAM]).run)
            await count.enough.wait()
        finally:
            sys.setprofile(None)
        tasks.cancel_scope.cancel()

    return {"n": n, "python_calls": python / n, "calls": (python + built_in) / n}


async def memory(n: int, warm_up: int) -> dict[str, Any]:
    """By how much the process grows while it handles n messages, after the first ones."""
    server, count = Server(), Count()
    server.fill(n + warm_up)
    worker = service(count, streams=[STREAM])
    count.want(warm_up)
    async with running(worker):
        await count.enough.wait()
        before = resident()
        count.want(n - (count.handled - warm_up))
        await count.enough.wait()
        after = resident()

    return {"n": n, "resident_mib": after, "growth_mib": after - before}


async def idle(seconds: float) -> dict[str, Any]:
    """What a subscriber costs that has nothing to do. Its commands are counted by the server."""
    server, count = Server(), Count()
    server.fill(0)
    async with running(service(count, streams=[STREAM], concurrency=10)):
        await asyncio.sleep(min(6.0, seconds))  # it has begun, and looked around once
        clients, everything = _sent(server), _called(server)
        began, used, served = time.monotonic(), cpu(), server.cpu()
        await asyncio.sleep(seconds)
        used, served, lasted = cpu() - used, server.cpu() - served, time.monotonic() - began
        clients, everything = _sent(server) - clients, _called(server) - everything

    return {
        "commands": clients * 60 / lasted,
        "with_scripts": everything * 60 / lasted,
        "client_percent": used / lasted * 100,
        "server_percent": served / lasted * 100,
    }


# -------------------------------------------------------------------------------------------------------------- publish


async def publish(n: int) -> dict[str, Any]:
    """Events one by one, each in its envelope."""
    events = [placed(i) for i in range(n)]
    async with connect(url()) as transport:
        await transport.publish([seal(events[0])])
        with Meter() as meter:
            for event in events:
                await transport.publish([seal(event)])
    assert n + 1 == Server()("XLEN", STREAM)

    return meter.result(n)


async def commit(n: int, batch: int) -> dict[str, Any]:
    """Units of work with so many events each, one after another."""
    events = [placed(i) for i in range(n)]
    async with connect(url()) as transport:
        await _commit(transport, events[:batch])
        with Meter() as meter:
            for at in range(0, n, batch):
                await _commit(transport, events[at : at + batch])
    assert n + batch == Server()("XLEN", STREAM)

    return meter.result(n)


async def tasks(n: int, tasks: int) -> dict[str, Any]:
    """So many tasks, each of which publishes events one by one."""
    events = iter([placed(i) for i in range(n)])
    async with connect(url()) as transport:
        await transport.publish([seal(placed(0))])

        async def work() -> None:
            for event in events:
                await transport.publish([seal(event)])

        with Meter() as meter:
            await asyncio.gather(*[work() for _ in range(tasks)])
    assert n + 1 == Server()("XLEN", STREAM)

    return meter.result(n)


async def _commit(transport: Any, events: list[OrderPlaced]) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for event in events:
            uow.emit(event)
        await uow.commit()


async def entries(n: int) -> dict[str, Any]:
    """What a stream takes in which our events are."""
    async with connect(url()) as transport:
        for at in range(0, n, 100):
            await _commit(transport, [placed(i) for i in range(at, at + 100)])

    return {"n": n, "bytes": Server()("MEMORY", "USAGE", STREAM, "SAMPLES", "0") / n}


async def latency(rate: float, seconds: float) -> dict[str, Any]:
    """From the call that publishes, in another process, to the handler."""
    bus, took, done, n = MessageBus(), [], asyncio.Event(), int(rate * seconds)

    @bus.listen
    async def handle(event: OrderPlaced, uow: UnitOfWork) -> None:
        took.append(time.monotonic_ns() - event.n)
        if len(took) == n:
            done.set()

    Server().fill(0)
    async with running(Subscriber(bus=bus, transport=connect(url()), streams=[STREAM], group=GROUP)):
        with Meter() as meter:
            sender = await publisher_process("ours", rate=rate, seconds=seconds)
            await done.wait()
        await sender.wait()

    return meter.result(n, **percentiles(took))


async def publisher(rate: float, seconds: float) -> dict[str, Any]:
    async with connect(url()) as transport:
        await paced(lambda: transport.publish([seal(placed(time.monotonic_ns()))]), rate=rate, seconds=seconds)

    return {}


# ------------------------------------------------------------------------------------------------------------- dispatch


class PlaceOrder(Command):
    order: str


class Placed(Event):
    order: str


class PurchaseOrder(Model):
    id: str


class Orders(Repository[PurchaseOrder]):
    def __init__(self) -> None:
        self.orders: dict[str, PurchaseOrder] = {}

    async def add(self, order: PurchaseOrder) -> None:
        self.orders[order.id] = order
        self.seen.append(order)


class Shop(UnitOfWork):
    def __init__(self) -> None:
        super().__init__()
        self.orders = Orders()


async def dispatch(n: int) -> dict[str, Any]:
    """A command whose handler makes a model that raises an event, two handlers of that, a commit."""
    bus, first, second = MessageBus(), [], []

    @bus.listen
    async def place(command: PlaceOrder, uow: Shop) -> str:
        order = PurchaseOrder(id=command.order)
        order.messages.append(Placed(order=command.order))
        await uow.orders.add(order)

        return order.id

    @bus.listen
    async def one(event: Placed, uow: Shop) -> None:
        first.append(event.order)

    @bus.listen
    async def two(event: Placed, uow: Shop) -> None:
        second.append(event.order)

    async def once() -> None:
        async with Shop() as uow:
            await bus.handle(PlaceOrder(order="o1"), uow)
            await uow.commit()

    result = await repeated(once, n)
    assert len(first) == len(second) == n + n // 20

    return result


# ---------------------------------------------------------------------------------------------------------------- start


def start() -> dict[str, Any]:
    """Milliseconds that a process takes that imports eventbus, and one that says how the command is used."""
    return {
        "import_ms": _process("-c", "import eventbus"),
        "help_ms": _process("-m", "eventbus", "--help"),
        "python_ms": _process("-c", "pass"),
    }


def _process(*arguments: str, times: int = 5) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    took: list[float] = []
    for _ in range(times + 1):  # the first compiles
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
        took.append(time.perf_counter() - began)

    return sorted(took[1:])[times // 2] * 1e3


def _sent(server: Server) -> int:
    """Commands that a subscriber has sent: what runs inside a script is part of the script."""
    asked = server.commands()

    return sum(asked.get(name, 0) for name in ("xreadgroup", "evalsha", "eval", "hdel", "client|id", "client|unblock"))


def _called(server: Server) -> int:
    """Commands that were run, those inside scripts too, but not those that ask for these numbers."""
    return sum(calls for name, calls in server.commands().items() if name != "info")
