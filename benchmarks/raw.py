"""redis-py as its documentation shows it: what one writes without a library."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis.asyncio

from benchmarks.message import GROUP, STREAM, Order, decode, fields, order
from benchmarks.meter import Meter, paced, percentiles
from benchmarks.server import Server, address
from benchmarks.side import publisher as publisher_process

handled = 0


async def handle(message: Any) -> None:
    global handled
    handled += 1


async def connect() -> Any:
    host, port = address()
    client = redis.asyncio.Redis(host=host, port=port, protocol=3)
    await client.ping()

    return client


def mapping(order: Order) -> dict[Any, Any]:
    words = fields(order)

    return dict(zip(words[::2], words[1::2], strict=True))


async def read(client: Any) -> list[Any]:
    """Up to 100 entries, each an id and a dictionary."""
    reply = await client.xreadgroup(GROUP, "raw", {STREAM: ">"}, count=100, block=2000)
    entries = next(iter(reply.values())) if isinstance(reply, dict) and reply else reply[0][1] if reply else []
    nested = entries and isinstance(entries[0], list) and isinstance(entries[0][0], tuple | list)
    found: list[Any] = entries[0] if nested else entries

    return found


async def drain(n: int) -> dict[str, Any]:
    """Read 100, handle them one after another, ack them."""
    Server().fill(n)
    client = await connect()
    with Meter() as meter:
        while handled < n:
            ids = []
            for id, words in await read(client):
                await handle(decode(words[b"payload"]))
                ids.append(id)
            await client.xack(STREAM, GROUP, *ids)
    assert Server().pending() == 0

    return meter.result(n)


async def publish(n: int, batch: int = 1) -> dict[str, Any]:
    client, orders = await connect(), [order(i) for i in range(n)]
    with Meter() as meter:
        for at in range(0, n, batch):
            if batch == 1:
                await client.xadd(STREAM, mapping(orders[at]))
                continue
            pipeline = client.pipeline(transaction=False)
            for each in orders[at : at + batch]:
                pipeline.xadd(STREAM, mapping(each))
            await pipeline.execute()

    return meter.result(n)


async def tasks(n: int, tasks: int) -> dict[str, Any]:
    """So many tasks, each of which publishes one after another over the client's pool."""
    client, orders = await connect(), iter([order(i) for i in range(n)])

    async def work() -> None:
        for each in orders:
            await client.xadd(STREAM, mapping(each))

    with Meter() as meter:
        await asyncio.gather(*[work() for _ in range(tasks)])

    return meter.result(n)


async def latency(rate: float, seconds: float) -> dict[str, Any]:
    Server().fill(0)
    client, n = await connect(), int(rate * seconds)
    sender = await publisher_process("raw", rate=rate, seconds=seconds)
    took: list[int] = []
    with Meter() as meter:
        while len(took) < n:
            ids = []
            for id, words in await read(client):
                took.append(time.monotonic_ns() - decode(words[b"payload"]).n)
                ids.append(id)
            if ids:
                await client.xack(STREAM, GROUP, *ids)
    await sender.wait()

    return meter.result(n, **percentiles(took))


async def publisher(rate: float, seconds: float) -> dict[str, Any]:
    client = await connect()

    async def send() -> None:
        await client.xadd(STREAM, mapping(order(time.monotonic_ns())))

    await paced(send, rate=rate, seconds=seconds)

    return {}
