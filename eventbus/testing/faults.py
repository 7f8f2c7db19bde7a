"""A proxy in front of a Redis server that loses what it is told to lose.

```python
async with FaultProxy("redis://localhost:6379/0") as proxy:
    transport = RedisTransport(proxy.url)
    proxy.cut("publish", after=True)  # the next publish is carried out, and its reply is lost
    await transport.publish(envelopes)
    assert 1 == proxy.faults
```

It listens on a free port of 127.0.0.1 and reads the commands that pass. At a chosen one it can cut the connection (before it, after it, or
in the middle of it or of its reply), go silent, or hold the command back; and at any time reset every connection, refuse new ones, slow
everything down or stand still. Commands are named as Redis names them; a script of eventbus by its own name (``publish``, ``ack``,
``sweep``, …).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from eventbus.connect import hide_password, scheme_of
from eventbus.errors import ConfigurationError
from eventbus.redis.scripts import BY_SHA


@dataclass
class _Fault:
    """What is to happen at a command of some name."""

    after: bool = False
    """To its reply, and not to the command itself."""
    skip: int = 0
    """How many of that name pass before it happens."""
    keep: int = 0
    """Bytes that still pass."""
    silent: bool = False
    """The connection stays open, and nothing more passes."""
    hold: float = 0.0
    """Seconds to wait, and nothing is lost."""


class FaultProxy:
    """A server as seen through a line that can be cut. Enter it; `url` is where it listens."""

    def __init__(self, url: str) -> None:
        if scheme_of(url) not in ("redis", "unix"):
            raise ConfigurationError(
                f"FaultProxy({hide_password(url)!r}): it reads what passes, so it stands before redis:// and unix:// servers only"
            )
        self._upstream = url
        self._faults: dict[str, list[_Fault]] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.passing: asyncio.Event = asyncio.Event()
        self.passing.set()
        self.refusing: bool = False
        """New connections are reset while this is set."""
        self.delay: float = 0.0
        """Seconds that each command is held back."""
        self.commands: Counter[str] = Counter()
        """How often each command has reached the proxy."""
        self.connections: int = 0
        """How often somebody has connected, or tried to."""
        self.faults: int = 0
        """How many of the faults that were asked for have come about."""

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

    def cut(self, command: str, *, after: bool = False, times: int = 1, skip: int = 0, keep: int = 0) -> None:
        """Reset the connection at the next commands of this name: before they reach the server, or after, so that the reply is lost.

        The first `skip` of them pass. Of the command that is cut, or of its reply, the first `keep` bytes still pass.
        """
        self._ask_for(command, times, skip, _Fault(after=after, keep=keep))

    def silence(self, command: str, *, after: bool = False, times: int = 1, skip: int = 0) -> None:
        """As `cut`, but nobody is told: the connection stays open, and from then on nothing passes on it in either direction."""
        self._ask_for(command, times, skip, _Fault(after=after, silent=True))

    def hold(self, command: str, seconds: float, *, times: int = 1, skip: int = 0) -> None:
        """Let the next commands of this name, and what follows them on their connection, wait for so long."""
        self._ask_for(command, times, skip, _Fault(hold=seconds))

    def heal(self) -> None:
        """No more faults: forget those that have not come about, pass everything on, refuse nobody."""
        self._faults.clear()
        self.refusing, self.delay = False, 0.0
        self.passing.set()

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
        """Faults that were asked for and have not come about yet."""
        return sum(map(len, self._faults.values()))

    def fault_at(self, command: str) -> _Fault | None:
        """What is to happen at this command, if anything."""
        waiting = self._faults.get(command)
        if not waiting:
            return None
        if waiting[0].skip:
            waiting[0].skip -= 1
            return None
        self.faults += 1

        return waiting.pop(0)

    def _ask_for(self, command: str, times: int, skip: int, fault: _Fault) -> None:
        faults = [replace(fault) for _ in range(times)]
        if faults:
            faults[0].skip = skip
        self._faults.setdefault(command.lower(), []).extend(faults)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
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
        self._fault: _Fault | None = None
        """What happens to the replies from now on."""

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
        proxy, buffer = self._proxy, b""
        with suppress(OSError, ValueError):
            while data := await self._client[0].read(1 << 18):
                buffer += data
                passed = at = 0
                while (found := _command(buffer, at)) is not None:
                    name, end = found
                    proxy.commands[name] += 1
                    fault = proxy.fault_at(name)
                    if fault is not None or proxy.delay or not proxy.passing.is_set():
                        await self._pass_on(buffer[passed:at])
                        passed = at
                        await proxy.passing.wait()
                        await asyncio.sleep(proxy.delay + (fault.hold if fault else 0.0))
                    at = end
                    if fault is None or fault.hold:
                        continue
                    self._fault = fault if fault.after or fault.silent else None
                    if fault.after and not fault.silent:
                        continue
                    await self._pass_on(buffer[passed : at if fault.after else passed + fault.keep])
                    if fault.silent:
                        while await self._client[0].read(1 << 18):
                            pass
                    else:
                        await _arrive(fault.keep)
                    return
                await self._pass_on(buffer[passed:at])
                buffer = buffer[at:]

    async def _pass_on(self, data: bytes) -> None:
        if data:
            self._server[1].write(data)
            await self._server[1].drain()

    async def _replies(self) -> None:
        kept = 0
        with suppress(OSError):
            while data := await self._server[0].read(1 << 18):
                await self._proxy.passing.wait()
                fault = self._fault
                if fault is not None:
                    data = data[: max(0, fault.keep - kept)] if fault.after else b""
                    kept += len(data)
                self._client[1].write(data)
                await self._client[1].drain()
                if fault is not None and not fault.silent and kept >= fault.keep:
                    await _arrive(fault.keep)
                    return
            if self._fault is not None and self._fault.silent:
                await asyncio.Event().wait()  # until the client gives up


def _command(buffer: bytes, start: int) -> tuple[str, int] | None:
    """The command that begins here, its name and where it ends; None if it is not there as a whole."""
    end = buffer.find(b"\n", start)
    if end < 0:
        return None
    at, words = end + 1, [b""]
    for index in range(int(buffer[start + 1 : end])):
        end = buffer.find(b"\n", at)
        if end < 0:
            return None
        begin, at = end + 1, end + 3 + int(buffer[at + 1 : end])
        if at > len(buffer):
            return None
        if index < 2:
            words.append(buffer[begin : at - 2])

    return _name(words[1:]), at


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

    return await asyncio.open_connection(parts.hostname or "localhost", parts.port or 6379)


async def _arrive(some: int) -> None:
    """Let what was sent arrive before a reset, which overtakes what is not read yet."""
    if some:
        await asyncio.sleep(0.01)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye, so that the other side sees a reset."""
    raw = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
