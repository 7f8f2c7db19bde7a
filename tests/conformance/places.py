"""Where the statements are shown: in memory, on fakeredis, and on every real server. What differs between them is here and nowhere else.

A test asks its place for transports, for time to pass, for a line that can be cut, and for a worker that can be killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from inspect import isawaitable
from pathlib import Path
from typing import Any, Protocol, Self, cast

import anyio
import anyio.abc
import anyio.lowlevel
import fakeredis
import hiredis
import msgspec
import redis
import redis.asyncio

from eventbus import Delivery, MemoryTransport, Transport
from eventbus.memory import MemorySubscription
from eventbus.redis import RedisTransport
from eventbus.redis.scripts import BY_SHA
from eventbus.testing import wait_until
from eventbus.testing.fake_redis import FakeConnection
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer
from eventbus.transport import Subscribe, Subscription
from tests.conformance.club import GROUP, STREAM, only
from tests.conformance.service import Ledger, Line, Orders, Watched, note, reader, work

Predicate = Callable[[], bool | Awaitable[bool]]


class Place(ABC):
    """What a test may ask for. `lease` is one that is meant to run out, `tolerance` is by how much what is due may be late, and what has
    not come after `patience` does not come.
    """

    name: str
    lease = 0.3
    patience = 10.0
    tolerance = 1.0
    in_full = False
    """Whether a test marked `in_full_once` is to be run at the size that its statement names."""
    client: Any = None
    """A client of the server, to look at it or to do it harm; None in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self.leaving = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @abstractmethod
    def new(self, **options: Any) -> Any:
        """A transport of its own, as another service would have it, not entered."""

    async def connect(self, **options: Any) -> Any:
        """The same, entered, and left when the test ends."""
        return await self.leaving.enter_async_context(self.new(**options))

    def so_many(self, count: int) -> int:
        """The count that a statement names, or a tenth of it."""
        return count if self.in_full else count // 10

    def time(self) -> float:
        """Seconds since 1970, as the streams have it."""
        return time.time()

    async def pass_time(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def wait_until(self, predicate: Predicate, *, description: str, within: float | None = None) -> None:
        """Let time pass until it is true."""
        await wait_until(predicate, description=description, timeout=within or self.patience)

    @abstractmethod
    def line(self) -> AbstractAsyncContextManager[tuple[Any, Any]]:
        """A transport, and the line that it goes through, which can be stalled, and cut where there is one."""

    @abstractmethod
    def worker(self, **orders: Any) -> AbstractAsyncContextManager[Worker]:
        """A reader that can be killed, at work for as long as the block."""

    def request(self, **changes: Any) -> Subscribe:
        """What a consumer asks for, with a lease that is not meant to run out unless it says so."""
        settings: dict[str, Any] = {"streams": [STREAM], "group": GROUP, "lease": 30.0}

        return Subscribe(**settings | changes)

    async def take(self, subscription: Subscription, count: int, *, within: float | None = None) -> list[Delivery]:
        """So many deliveries, while time passes."""
        found: list[Delivery] = []

        async def receive() -> None:
            while len(found) < count:
                found.extend(await subscription.receive(count - len(found)))

        async with only() as tasks:
            tasks.start_soon(receive)
            await self.wait_until(lambda: len(found) == count, description=f"{count} deliveries came", within=within)

        return found


class Worker(Protocol):
    """A reader that can be killed. What it held stays its own until the lease runs out."""

    @property
    def consumer(self) -> str: ...

    async def crash(self) -> None: ...


# --------------------------------------------------------------------------------------------------------------- memory


class Memory(Place):
    """One transport that all share, whose clock is moved: what takes time takes none."""

    name = "memory"
    lease = 30.0
    patience = 150.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.transport = MemoryTransport()

    def new(self, *, protocol: int = 2, **options: Any) -> Any:
        return MemoryTransport(clock=self.transport.clock, **options) if options else self.transport

    def time(self) -> float:
        return self.transport.clock.time()

    async def pass_time(self, seconds: float) -> None:
        self.transport.clock.advance(seconds)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    async def wait_until(self, predicate: Predicate, *, description: str, within: float | None = None) -> None:
        within = within or self.patience
        until = self.time() + within
        while True:
            for _ in range(20):
                answer = predicate()
                if await answer if isawaitable(answer) else answer:
                    return
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
            if self.time() > until:
                raise TimeoutError(f"{description}: not within {within:g} s")
            self.transport.clock.advance(within / 200)

    @asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[Any, Any]]:
        watched = Watched(self.transport)
        yield watched, MemoryLine(watched.subscriptions)

    @asynccontextmanager
    async def worker(self, **orders: Any) -> AsyncIterator[Worker]:
        async with WorkerHere(self, Watched(self.transport), orders, lambda: None).running() as worker:
            yield worker


class MemoryLine:
    """Nothing can be cut in one process; but a consumer can stand still."""

    def __init__(self, subscriptions: list[MemorySubscription]) -> None:
        self._subscriptions = subscriptions

    def stall(self) -> None:
        for subscription in self._subscriptions:
            subscription.freeze()

    def resume(self) -> None:
        for subscription in self._subscriptions:
            subscription.thaw()


class WorkerHere:
    """In this process. Killed, its handlers end in the middle, and nobody hears of them again."""

    def __init__(self, place: Place, transport: Watched, orders: dict[str, Any], cut_off: Callable[[], None]) -> None:
        told = Orders(**{"lease": place.lease, "ledger": str(place.ledger.path), **orders})
        self._subscriber = reader(cast("Transport", transport), told, self._die)
        self._ledger = place.ledger.path
        self._subscriptions = transport.subscriptions
        self._cut_off = cut_off
        self._scope = anyio.CancelScope()

    @property
    def consumer(self) -> str:
        return cast("str", self._subscriptions[0].consumer)

    async def crash(self) -> None:
        self._cut_off()
        self._subscriptions[0].stop()
        self._subscriptions[0].abandon()
        self._scope.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        async with only() as tasks:
            await tasks.start(self._run)
            note(self._ledger, Line("joined", self.consumer))
            yield self
            tasks.cancel_scope.cancel()

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._scope:
            await self._subscriber.run(task_status=task_status)

    async def _die(self) -> None:
        await self.crash()
        await anyio.sleep_forever()


# ------------------------------------------------------------------------------------------------------------ fakeredis


class Fake(Place):
    """The Redis adapter on a server that fakeredis pretends to be."""

    name = "fakeredis"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeRedis(server=self.server)
        self.leaving.callback(self.client.close)

    def new(self, *, protocol: int = 2, **options: Any) -> Any:
        return RedisTransport(self.client_through(FakeLine(), protocol=protocol), **options)

    @asynccontextmanager
    async def given_client(self) -> AsyncIterator[redis.asyncio.Redis]:
        async with self.client_through(FakeLine()) as client:
            yield client

    def client_through(self, line: FakeLine, **settings: Any) -> redis.asyncio.Redis:
        pool = redis.asyncio.ConnectionPool(
            connection_class=FakeConnectionOnLine, server=self.server, line=line, legacy_responses=False, **settings
        )

        return redis.asyncio.Redis(connection_pool=pool)

    @asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[Any, Any]]:
        line = FakeLine()
        async with RedisTransport(self.client_through(line)) as transport:
            try:
                yield transport, line
            finally:
                line.resume()
                line.refusing = False

    @asynccontextmanager
    async def worker(self, **orders: Any) -> AsyncIterator[Worker]:
        line = FakeLine()
        transport = Watched(RedisTransport(self.client_through(line)))
        async with WorkerHere(self, transport, orders, line.break_off).running() as worker:
            yield worker


class FakeLine:
    """What `FaultProxy` does to a connection to a server, done to one that has no wire."""

    def __init__(self) -> None:
        self.passing = asyncio.Event()
        self.passing.set()
        self.refusing = False
        self.connections = 0
        self.faults = 0
        self.commands: Counter[str] = Counter()
        self.open: set[FakeConnectionOnLine] = set()
        self._cuts: dict[str, list[bool]] = {}

    def cut(self, command: str, *, after: bool = False, times: int = 1) -> None:
        self._cuts.setdefault(command, []).extend([after] * times)

    def stall(self) -> None:
        self.passing.clear()

    def resume(self) -> None:
        self.passing.set()

    def reset(self) -> None:
        """Lose every connection, now."""
        for connection in self.open:
            connection.lose()

    def break_off(self) -> None:
        """For good: not a word gets through any more."""
        self.refusing = True

    @property
    def pending_cuts(self) -> int:
        return sum(map(len, self._cuts.values()))

    def fault_at(self, command: str) -> bool | None:
        waiting = self._cuts.get(command)
        if not waiting:
            return None
        self.faults += 1

        return waiting.pop(0)


class FakeConnectionOnLine(FakeConnection):
    """A connection to a fake server that goes through a line."""

    def __init__(self, *args: Any, line: FakeLine, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._line = line
        self._lost = False

    async def _connect(self) -> None:
        self._line.connections += 1
        self._lost = False
        self._check()
        await super()._connect()
        self._line.open.add(self)

    async def disconnect(self, nowait: bool = False, *args: Any, **options: Any) -> None:
        self._line.open.discard(self)
        await super().disconnect(nowait, *args, **options)

    def lose(self) -> None:
        """The line is dead; who waits for an answer is told so."""
        self._lost = True
        socket: Any = self._sock
        if socket is not None:
            socket.put_response(redis.ConnectionError("the line was cut"))

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        for part in _commands(command if isinstance(command, bytes) else b"".join(command)):
            name = _name(part)
            self._line.commands[name] += 1
            await self._line.passing.wait()
            self._check()
            fault = self._line.fault_at(name)
            if fault is not False:
                await super().send_packed_command(part, check_health)
            self._lost = self._lost or fault is not None

    async def read_response(self, *args: Any, **options: Any) -> Any:
        self._check()
        reply = await super().read_response(*args, **options)
        await self._line.passing.wait()
        self._check()

        return reply

    def _check(self) -> None:
        if self._lost or self._line.refusing:
            raise redis.ConnectionError("the line was cut")


def _commands(packed: bytes) -> Iterator[bytes]:
    """Each of them as it goes over the wire."""
    reader: Any = hiredis.Reader(notEnoughData=False)
    reader.feed(packed)
    while (words := reader.gets()) is not False:
        yield vars(hiredis)["pack_command"](tuple(words))


def _name(command: bytes) -> str:
    """What a packed command is called: a script by its own name."""
    words = command.split(b"\r\n")
    name = words[2].decode().lower()
    if name == "evalsha":
        return BY_SHA[words[4].decode()].name
    if name == "eval":
        return next((script.name for script in BY_SHA.values() if script.text.encode() in command), name)

    return name


# --------------------------------------------------------------------------------------------------------- real servers


class Real(Place):
    """The Redis adapter on a real server, which runs for all tests and is emptied after each."""

    name = "server"

    def __init__(self, directory: Path, server: LiveServer, executable: Path) -> None:
        super().__init__(directory)
        self.server = server
        self.executable = executable
        self.client = redis.Redis.from_url(server.url)
        self.leaving.callback(self.client.close)
        self.leaving.callback(self.client.flushall)
        self.leaving.callback(self.client.config_set, "maxmemory", 0)

    def __repr__(self) -> str:
        return f"<{self.server}>"

    def new(self, *, protocol: int | None = None, **options: Any) -> Any:
        url = self.server.url if protocol is None else f"{self.server.url}&protocol={protocol}"

        return RedisTransport(url, **options)

    @asynccontextmanager
    async def given_client(self) -> AsyncIterator[redis.asyncio.Redis]:
        async with redis.asyncio.Redis.from_url(self.server.url) as client:
            yield client

    @asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[Any, Any]]:
        async with FaultProxy(self.server.url) as proxy, RedisTransport(proxy.url) as transport:
            try:
                yield transport, proxy
            finally:
                proxy.resume()
                proxy.refusing = False

    @asynccontextmanager
    async def worker(self, **orders: Any) -> AsyncIterator[Worker]:
        told = Orders(**{"lease": self.lease, "ledger": str(self.ledger.path), "url": self.server.url, **orders})
        with Process(self, told) as worker:
            await self.wait_until(worker.joined, description=f"{told} has joined", within=20)
            yield worker


processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "tests.conformance.service"])


class Process:
    """A process of its own, killed with SIGKILL. It is forked from one that has imported everything."""

    def __init__(self, place: Place, orders: Orders) -> None:
        self._place = place
        self._log = place.directory / "worker.log"
        self._process = processes.Process(target=work, args=(msgspec.json.encode(orders), str(self._log)))
        self.consumer = ""

    def __enter__(self) -> Self:
        self._process.start()

        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.close()

    def joined(self) -> bool:
        """Whether it is at work; an error with its log if it has ended."""
        mine = f"-{self._process.pid}-"
        names = [line.worker for line in self._place.ledger.lines("joined") if mine in line.worker]
        if not names and self._process.exitcode is not None:
            raise RuntimeError(f"the worker has ended:\n{self._log.read_text()}")
        self.consumer = names[-1] if names else ""

        return bool(names)

    async def crash(self) -> None:
        self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
