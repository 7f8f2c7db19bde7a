"""A proxy in front of a Redis server that loses what it is told to lose.

```python
async with FaultProxy("redis://localhost:6379/0") as proxy:
    transport = RedisTransport(proxy.url)
    proxy.cut("publish", after=True)  # the next publish is carried out, and its reply is lost
    await transport.publish(envelopes)
    assert 1 == proxy.faults
```

It listens on a free port of 127.0.0.1, reads the commands that pass, and can cut the connection before or after a chosen one, hold it back,
refuse new connections or stand still. Commands are named as Redis names them; a script of eventbus by its own name (``publish``, ``ack``,
``sweep``, …).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from eventbus.errors import ConfigurationError
from eventbus.redis.scripts import BY_SHA


class FaultProxy:
    """A server as seen through a line that can be cut. Enter it; `url` is where it listens."""

    def __init__(self, url: str) -> None:
        self._upstream = url
        self._cuts: dict[str, list[tuple[bool, int]]] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.passing = asyncio.Event()
        self.passing.set()
        self.refusing = False
        """New connections are reset while this is set."""
        self.delay = 0.0
        """Seconds that each command is held back."""
        self.commands: Counter[str] = Counter()
        """How often each command has reached the proxy."""
        self.faults = 0
        """How many cuts were made."""

    @property
    def url(self) -> str:
        if self._server is None:
            raise ConfigurationError("the proxy is not running: enter it first, `async with FaultProxy(url) as proxy`")
        host, port = self._server.sockets[0].getsockname()
        parts = urlsplit(self._upstream)
        login = parts.netloc.rpartition("@")[0]
        database = parse_qs(parts.query).get("db", ["0"])[0] if parts.scheme == "unix" else parts.path.strip("/") or "0"

        return f"redis://{login}{'@' if login else ''}{host}:{port}/{database}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.passing.set()
        self.reset()
        while self._connections:
            await asyncio.wait([connection.done for connection in self._connections])
        await self._server.wait_closed()

    def cut(self, command: str, *, after: bool = False, times: int = 1, skip: int = 0) -> None:
        """Reset the connection at the next commands of this name: before they reach the server, or after, so that the reply is lost.

        The first `skip` of them pass.
        """
        self._cuts.setdefault(command.lower(), []).extend([(after, skip)] + [(after, 0)] * (times - 1))

    def reset(self) -> None:
        """Reset every connection, now."""
        for connection in list(self._connections):
            connection.reset()

    def stall(self) -> None:
        """Pass nothing on, in either direction, until `resume`."""
        self.passing.clear()

    def resume(self) -> None:
        self.passing.set()

    @property
    def pending_cuts(self) -> int:
        """Cuts that were asked for and have not come about yet."""
        return sum(map(len, self._cuts.values()))

    def fault_at(self, command: str) -> bool | None:
        """Whether the connection is to be cut at this command: False before it, True after it, None not at all."""
        waiting = self._cuts.get(command)
        if not waiting:
            return None
        after, skip = waiting[0]
        if skip:
            waiting[0] = (after, skip - 1)
            return None
        waiting.pop(0)
        self.faults += 1

        return after

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            upstream = await _connect(self._upstream)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(self, (reader, writer), upstream)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            connection.done.set_result(None)


class _Connection:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._proxy = proxy
        self._client, self._server = client, server
        self._lose_reply = False

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.reset()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def reset(self) -> None:
        _reset(self._client[1])
        _reset(self._server[1])

    async def _requests(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            async for name, data in _commands(self._client[0]):
                self._proxy.commands[name] += 1
                await self._proxy.passing.wait()
                if self._proxy.delay:
                    await asyncio.sleep(self._proxy.delay)
                fault = self._proxy.fault_at(name)
                if fault is False:
                    return
                if fault:
                    self._lose_reply = True
                self._server[1].write(data)
                await self._server[1].drain()

    async def _replies(self) -> None:
        with suppress(OSError):
            while data := await self._server[0].read(1 << 16):
                if self._lose_reply:
                    return
                await self._proxy.passing.wait()
                self._client[1].write(data)
                await self._client[1].drain()


async def _commands(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """The commands on a connection: each one's name, and its bytes."""
    while head := await reader.readline():
        parts: list[bytes] = [head]
        words: list[bytes] = []
        for _ in range(int(head[1:])):
            size = await reader.readuntil(b"\n")
            word = await reader.readexactly(int(size[1:]) + 2)
            parts += (size, word)
            words.append(word[:-2])
        yield _name(words), b"".join(parts)


def _name(words: list[bytes]) -> str:
    """What a command is called: a script by its own name, whether it comes by its digest or in full."""
    name = words[0].decode(errors="replace").lower()
    if name == "evalsha":
        script = BY_SHA.get(words[1].decode(errors="replace"))
    elif name == "eval":
        script = next((known for known in BY_SHA.values() if known.text.encode() == words[1]), None)
    else:
        script = None

    return name if script is None else script.name


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return await asyncio.open_unix_connection(unquote(parts.path))
    if parts.scheme == "redis":
        return await asyncio.open_connection(parts.hostname or "localhost", parts.port or 6379)

    raise ConfigurationError(f"FaultProxy({parts.scheme}://…): it stands before redis:// and unix:// servers")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye, so that the other side sees a reset."""
    raw = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
