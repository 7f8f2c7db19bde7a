"""A blocking Redis client that needs no library: it prepares what a side consumes, and asks the server for its own figures."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.message import GROUP, STREAM, fields, order

VARIABLE = "BENCHMARK_URL"
"""The environment variable that tells a side where the server is."""


def address() -> tuple[str, int]:
    parts = urlsplit(url())

    return parts.hostname or "127.0.0.1", parts.port or 6379


def url() -> str:
    return os.environ[VARIABLE]


class Server:
    """A connection to the server, for one command after another."""

    def __init__(self) -> None:
        self._socket = socket.create_connection(address())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb", buffering=1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._replies.close()
        self._socket.close()

    def __call__(self, *command: Any) -> Any:
        return self.many([command])[0]

    def many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send all in one write; their replies, or the first error."""
        self._socket.sendall(b"".join(map(_pack, commands)))
        replies = [self._reply() for _ in commands]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply

        return replies

    def info(self, section: str) -> dict[str, str]:
        lines = self("INFO", section).decode().splitlines()

        return dict(line.split(":", 1) for line in lines if ":" in line)

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        info = self.info("cpu")

        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def commands(self) -> dict[str, int]:
        """How often each command was called, those inside scripts too."""
        stats = self.info("commandstats")

        return {name.removeprefix("cmdstat_"): int(text.split("calls=")[1].split(",")[0]) for name, text in stats.items()}

    def pending(self, stream: str = STREAM) -> int:
        found: int = self("XPENDING", stream, GROUP)[0]

        return found

    def fill(self, n: int, stream: str = STREAM) -> None:
        """Add n messages to a stream, whose group has read none of them."""
        if not self("EXISTS", stream):
            self("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        for start in range(0, n, 1000):
            self.many([("XADD", stream, "*", *fields(order(i))) for i in range(start, min(start + 1000, n))])

    def _reply(self) -> Any:
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return self._replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]

        raise ConnectionError(f"the server said {line!r}")


def _pack(words: Iterable[Any]) -> bytes:
    packed = [word if isinstance(word, bytes) else str(word).encode() for word in words]

    return b"*%d\r\n" % len(packed) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in packed])
