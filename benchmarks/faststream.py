"""FastStream, with one subscriber in a group, and msgspec as its serializer. Run by the Python of an environment that has it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import fast_depends.msgspec
import faststream.redis

from benchmarks.message import GROUP, STREAM, Order, order
from benchmarks.meter import Meter, paced, percentiles
from benchmarks.server import Server, url
from benchmarks.side import publisher as publisher_process

logging.getLogger().setLevel(logging.ERROR)


def broker() -> Any:
    return faststream.redis.RedisBroker(url(), serializer=fast_depends.msgspec.MsgSpecSerializer(), logger=None)


def subscribed(handle: Any) -> Any:
    ours = broker()
    stream = faststream.redis.StreamSub(
        STREAM, group=GROUP, consumer="faststream", max_records=100, last_id=">", polling_interval=1000
    )
    handle.__annotations__["message"] = Order  # it reads annotations when it registers, where ours are still text
    ours.subscriber(stream=stream)(handle)

    return ours


async def drain(n: int) -> dict[str, Any]:
    """One message at a time, from the start of the first handler to the end of the last."""
    Server().fill(0)
    publisher = broker()
    await publisher.connect()
    for at in range(0, n, 500):
        await _pipeline(publisher, [order(i) for i in range(at, min(at + 500, n))])
    await publisher.stop()
    meter, handled, done = Meter(), 0, asyncio.Event()

    async def handle(message: Order) -> None:
        nonlocal handled
        if not handled:
            meter.__enter__()
        handled += 1
        if handled == n:
            meter.__exit__()
            done.set()

    await subscribed(handle).start()
    await done.wait()

    return meter.result(n)


async def publish(n: int, batch: int = 1) -> dict[str, Any]:
    ours, orders = broker(), [order(i) for i in range(n)]
    await ours.connect()
    with Meter() as meter:
        for at in range(0, n, batch):
            if batch == 1:
                await ours.publish(orders[at], stream=STREAM)
            else:
                await _pipeline(ours, orders[at : at + batch])

    return meter.result(n)


async def latency(rate: float, seconds: float) -> dict[str, Any]:
    Server().fill(0)
    took: list[int] = []
    n, done = int(rate * seconds), asyncio.Event()

    async def handle(message: Order) -> None:
        took.append(time.monotonic_ns() - message.n)
        if len(took) == n:
            done.set()

    await subscribed(handle).start()
    with Meter() as meter:
        sender = await publisher_process("faststream", rate=rate, seconds=seconds)
        await done.wait()
    await sender.wait()

    return meter.result(n, **percentiles(took))


async def publisher(rate: float, seconds: float) -> dict[str, Any]:
    ours = broker()
    await ours.connect()
    await paced(lambda: ours.publish(order(time.monotonic_ns()), stream=STREAM), rate=rate, seconds=seconds)

    return {}


async def _pipeline(publisher: Any, orders: list[Order]) -> None:
    client = publisher.config.broker_config.connection.client
    async with client.pipeline(transaction=False) as pipeline:
        for each in orders:
            await publisher.publish(each, stream=STREAM, pipeline=pipeline)
        await pipeline.execute()
