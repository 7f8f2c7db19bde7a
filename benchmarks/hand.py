"""The limit: a protocol of asyncio's, hiredis' parser and packer, and nothing else. No library can do less in Python."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis

from benchmarks.message import GROUP, PAYLOAD, STREAM, decode, encode, fields, order
from benchmarks.meter import Meter, paced, percentiles
from benchmarks.server import Server, address
from benchmarks.side import publisher as publisher_process

pack: Any = vars(hiredis)["pack_command"]
READ = ("XREADGROUP", "GROUP", GROUP, "hand", "COUNT", "100", "BLOCK", "2000", "STREAMS", STREAM, ">")

handled = 0


async def handle(message: Any) -> None:
    global handled
    handled += 1


class Connection(asyncio.Protocol):
    """Replies go to whoever asked, in order."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader()
        self.waiting: deque[asyncio.Future[Any] | None] = deque()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            waiting = self.waiting.popleft()
            if waiting is not None:
                waiting.set_result(reply)

    def send(self, *commands: Sequence[Any]) -> asyncio.Future[Any]:
        """Send all in one write; the reply to the last of them."""
        self.transport.write(b"".join([pack(tuple(command)) for command in commands]))
        self.waiting.extend([None] * (len(commands) - 1))
        last = asyncio.get_running_loop().create_future()
        self.waiting.append(last)

        return last


async def connect() -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, *address())

    return connection


async def drain(n: int) -> dict[str, Any]:
    """Read 100, handle them one after another, and ack them in the same write as the next read."""
    Server().fill(n)
    connection = await connect()
    with Meter() as meter:
        reply = await connection.send(READ)
        while True:
            ids = []
            for id, words in reply[0][1]:
                await handle(decode(words[PAYLOAD]))
                ids.append(id)
            ack = ("XACK", STREAM, GROUP, *ids)
            if handled >= n:
                await connection.send(ack)
                break
            reply = await connection.send(ack, READ)
    assert Server().pending() == 0

    return meter.result(n)


async def publish(n: int, batch: int = 1) -> dict[str, Any]:
    connection, orders = await connect(), [order(i) for i in range(n)]
    with Meter() as meter:
        for at in range(0, n, batch):
            await connection.send(*[("XADD", STREAM, "*", *fields(each)) for each in orders[at : at + batch]])

    return meter.result(n)


async def latency(rate: float, seconds: float) -> dict[str, Any]:
    Server().fill(0)
    connection, n = await connect(), int(rate * seconds)
    sender = await publisher_process("hand", rate=rate, seconds=seconds)
    took: list[int] = []
    with Meter() as meter:
        acks: list[tuple[Any, ...]] = []
        while len(took) < n:
            reply = await connection.send(*acks, READ)
            ids = []
            for id, words in reply[0][1] if reply else ():
                took.append(time.monotonic_ns() - decode(words[PAYLOAD]).n)
                ids.append(id)
            acks = [("XACK", STREAM, GROUP, *ids)] if ids else []
        await connection.send(*acks)
    await sender.wait()

    return meter.result(n, **percentiles(took))


async def publisher(rate: float, seconds: float) -> dict[str, Any]:
    connection = await connect()

    async def send() -> None:
        await connection.send(("XADD", STREAM, "*", *fields(order(time.monotonic_ns()))))

    await paced(send, rate=rate, seconds=seconds)

    return {}


async def one_field(n: int) -> dict[str, Any]:
    """What a stream takes whose entries have one field, with the whole message in it as JSON."""
    server = Server()
    for start in range(0, n, 1000):
        server.many([("XADD", STREAM, "*", "message", encode(order(i))) for i in range(start, min(start + 1000, n))])

    return {"n": n, "bytes": server("MEMORY", "USAGE", STREAM, "SAMPLES", "0") / n}
