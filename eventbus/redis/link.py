"""The border to redis-py: connections, and the translation of what goes wrong.

An `Endpoint` is where a server is and how to log in; a `Link` is one connection to it, on which commands go out in batches and replies
come back in order. Nothing is retried here: redis-py's own retries add an entry twice and strand what was read (redis-py #3554).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, cast

import hiredis
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from eventbus.connect import hide_password, hide_passwords
from eventbus.embedded import EmbeddedServer
from eventbus.errors import ConfigurationError, Full, Refused, TransportError, Unavailable, excerpt
from eventbus.redis.scripts import BY_SHA
from eventbus.redis.wire import Wire

CONNECT_TIMEOUT: Final = 5.0
REPLY_TIMEOUT: Final = 5.0
"""Seconds of silence after which a server that was asked counts as gone."""
RECONNECT_EVERY: Final = 2.0
"""Seconds between two new connections, at the least, while a server says that it is no master: its address may lead to another one by now,
or not yet, and it keeps the connections that it has.
"""

_DRIVER: Final = DriverInfo()  # made once: each of it looks redis-py's version up in the files of its package
_pack_command: Any = vars(hiredis)["pack_command"]  # which takes more than its stub says

# Said by the server, anywhere in the text: 6.2 wraps the errors of scripts.
_FULL = re.compile(r"\b(OOM|MISCONF)\b")
_NO_RIGHT = re.compile(r"\bNOPERM\b|The user executing the script can't|ACL failure in script")
_REFUSED = re.compile(
    r"\b(NOAUTH|WRONGPASS|WRONGTYPE)\b|invalid username-password|AUTH failed|invalid password"
    r"|unauthenticated (multi)?bulk length"  # of a command that is too long to be looked at before a password was given
    rf"|{_NO_RIGHT.pattern}"
)
_UNAVAILABLE = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|NOREPLICAS|MOVED|ASK|UNKILLABLE|UNBLOCKED)\b"
    r"|max number of clients"
)
_DEMOTED = re.compile(r"\b(READONLY|MASTERDOWN)\b")
_NO_GROUP = re.compile(r"\b(NOGROUP|UNBLOCKED)\b|requires the key to exist|no such key", re.IGNORECASE)


_UNREADABLE: Final = (
    "its host and port cannot be read; write /, ?, #, [ and ] in a password as urllib.parse.quote(password, safe='') does"
)
_KEYS: Final = "asked about "
"""Begins the note on an error that says which keys the command was about."""


class Endpoint:
    """A server, as named by a URL, by a client of the user's, or by a server of our own that is still to be started.

    From a client only its settings are taken: the connections are ours, and the client is never closed or used.
    """

    def __init__(self, source: str | redis.asyncio.Redis | EmbeddedServer) -> None:
        self._class: type[AbstractConnection]
        self.server: EmbeddedServer | None = None
        self._settings: dict[str, Any] = {}
        if isinstance(source, str):
            self._from_url(source)
        elif isinstance(source, redis.asyncio.Redis):
            pool = source.connection_pool
            if isinstance(pool, SentinelConnectionPool):
                raise ConfigurationError(
                    "RedisTransport(client): a client made by Sentinel is not supported; give the address of the master"
                )
            self._class, self._settings = pool.connection_class, dict(pool.connection_kwargs)
        elif isinstance(source, EmbeddedServer):
            self.server = source
        else:
            raise ConfigurationError(f"RedisTransport({type(source).__name__} …): give a URL or a redis.asyncio.Redis client")

    def __repr__(self) -> str:
        return f"<endpoint {self}>"

    def __str__(self) -> str:
        """Where it is, without secrets."""
        if self.server is not None and not self._settings:
            return "embedded://"
        if path := self._settings.get("path"):
            return f"unix://{path}?db={self._settings.get('db') or 0}"
        scheme = "rediss" if self._settings and issubclass(self._class, SSLConnection) else "redis"
        host, port = self._settings.get("host", "localhost"), self._settings.get("port", 6379)

        return f"{scheme}://{host}:{port}/{self._settings.get('db') or 0}"

    def start(self) -> None:
        """Start the server, if it is one of our own. Blocks for some milliseconds."""
        if self.server is not None:
            self.server.start()
            self._from_url(self.server.url)

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def connection(self) -> AbstractConnection:
        """A connection of our own, not yet open."""
        ours: dict[str, Any] = {
            "decode_responses": False,
            "health_check_interval": 0,
            "legacy_responses": False,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "retry_on_timeout": False,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_timeout": None,  # a batch has one of its own, see Link.call
        }
        settings: dict[str, Any] = {"driver_info": _DRIVER} | self._settings | ours
        for name in ("maint_notifications_pool_handler", "event_dispatcher", "himport_registry"):
            settings.pop(name, None)
        try:
            return self._class(**settings)
        except TypeError as exc:
            raise ConfigurationError(f"{self}: the URL has an option that redis-py does not know: {exc}") from exc
        except (ValueError, redis.exceptions.RedisError) as exc:
            raise ConfigurationError(f"{self}: the URL has an option with a value that redis-py does not take: {exc}") from exc

    def _from_url(self, url: str) -> None:
        try:
            settings: dict[str, Any] = dict(parse_url(url))
        except ValueError as exc:
            # Of redis-py, or of `urlsplit`, which tells what it could not read: a part of the password, perhaps.
            why = str(exc) if str(exc).startswith(("Redis URL ", "Invalid value for ")) else _UNREADABLE
            raise ConfigurationError(f"{hide_password(url)!r} is not a Redis URL: {why}") from None
        self._class = settings.pop("connection_class", redis.asyncio.Connection)
        if settings.get("path") and not issubclass(self._class, UnixDomainSocketConnection):
            settings.pop("path")
        self._settings = settings


class Link:
    """One connection. A failure closes it; it is not used again."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.sent: bool = False
        """Whether the last call may have reached the server."""
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._told: set[str] = set()
        """The scripts, by their digests, whose text went over this connection."""

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def open(self) -> None:
        """Connect and log in. `Unavailable`, or `Refused` when the server does not let us in."""
        self.sent = False
        connection = self.endpoint.connection()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT + REPLY_TIMEOUT):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as exc:
            await _disconnect(connection)
            if isinstance(exc, Exception):
                raise translate(exc, f"cannot connect to {self.endpoint}") from exc
            raise
        self._connection, self._wire = connection, Wire.over(connection)
        self._told.clear()

    async def call(self, *commands: Sequence[Any], timeout: float = REPLY_TIMEOUT) -> list[Any]:
        """Send the commands in one write; their replies in order, a server's error as the exception that redis-py makes of it.

        `Unavailable` when nothing has come for so long: what became of the commands is then unknown, and the link is closed. A
        script goes out in full the first time. One that the server has forgotten since is run after the other commands, which may be
        late: one of them may be a read that waits.
        """
        connection = self._connection
        if connection is None:
            raise Unavailable(f"not connected to {self.endpoint}")
        self.sent = False
        try:
            packed = self._pack(commands[0]) if len(commands) == 1 else b"".join([self._pack(command) for command in commands])
            self.sent = True
            if self._wire is not None:
                replies = await self._wire.ask(packed, len(commands), timeout)
            else:
                replies = await _ask(connection, packed, len(commands), timeout)
        except BaseException as exc:
            await self.close()
            if isinstance(exc, Exception):
                raise translate(
                    exc,
                    f"no answer from {self.endpoint} within {timeout:g} s"
                    if isinstance(exc, TimeoutError)
                    else f"lost the connection to {self.endpoint}",
                ) from exc
            raise
        for index, reply in enumerate(replies):
            if isinstance(reply, redis.exceptions.NoScriptError):
                replies[index] = (await self.call(_in_full(commands[index]), timeout=timeout))[0]
            elif isinstance(reply, Exception):
                reply.add_note(f"{_KEYS}{', '.join(map(str, _keys_of(commands[index])))}")

        return replies

    async def run(self, command: Sequence[Any], *, timeout: float = REPLY_TIMEOUT) -> Any:
        """One command; its reply, or its error translated."""
        [reply] = await self.call(command, timeout=timeout)

        return checked(reply, self.endpoint)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if self._wire is not None:
            self._wire.close()
        if connection is not None:
            await _disconnect(connection)

    def _pack(self, command: Sequence[Any]) -> bytes:
        if command[0] == "EVALSHA" and command[1] not in self._told:
            self._told.add(command[1])
            command = _in_full(command)
        packed: bytes = _pack_command(tuple(command))

        return packed


class Channel:
    """A link that opens itself, for calls of many tasks, one after another. It belongs to one event loop, and begins anew in another."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.opened: int = 0
        """How many connections it has had."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: Link | None = None
        self._reconnects_at = 0.0
        self._lock: asyncio.Lock | None = None

    async def call(self, *commands: Sequence[Any], timeout: float = REPLY_TIMEOUT) -> list[Any]:
        """As `Link.call`, over a connection that is opened if need be."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._lock is None:
            self._loop, self._link, self._lock = loop, None, asyncio.Lock()
            self._reconnects_at = 0.0
        async with self._lock:
            link = self._link
            if link is None or not link.connected:
                link = self._link = Link(self.endpoint)
                await link.open()
                self.opened += 1
            replies = await link.call(*commands, timeout=timeout)
            if loop.time() >= self._reconnects_at and any(map(_is_demoted, replies)):
                self._reconnects_at = loop.time() + RECONNECT_EVERY
                await link.close()
            return replies

    async def run(self, command: Sequence[Any], *, timeout: float = REPLY_TIMEOUT) -> Any:
        """One command; its reply, or its error translated."""
        [reply] = await self.call(command, timeout=timeout)

        return checked(reply, self.endpoint)

    @property
    def sent(self) -> bool:
        """Whether the last call may have reached the server."""
        return self._link is not None and self._link.sent

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None and self._loop is asyncio.get_running_loop():
            await link.close()


def checked(reply: Any, endpoint: Endpoint) -> Any:
    """The reply, unless it is an error."""
    if isinstance(reply, Exception):
        raise translate(reply, f"{endpoint} said") from reply

    return reply


def _is_demoted(reply: Any) -> bool:
    return isinstance(reply, Exception) and bool(_DEMOTED.search(str(translate(reply, ""))))


def field_of(row: Any, name: bytes) -> Any:
    """A field of a reply with names: a map under RESP3, names and values in turn under RESP2."""
    pairs: Any = cast("dict[bytes, Any]", row).items() if isinstance(row, dict) else zip(row[::2], row[1::2], strict=True)

    return dict(pairs)[name]


def group_is_gone(error: BaseException | None) -> bool:
    """Whether a server's error says that a group, or its stream, is not there any more."""
    while isinstance(error, TransportError):
        error = error.__cause__

    return isinstance(error, redis.exceptions.ResponseError) and bool(_NO_GROUP.search(str(error)))


def translate(error: Exception, what: str) -> TransportError:
    """Ours for theirs: whether trying again can help, and what to do if not."""
    if isinstance(error, TransportError):
        return error
    while isinstance(error, redis.exceptions.ConnectionError) and isinstance(error.__cause__, redis.exceptions.RedisError):
        error = (
            error.__cause__
        )  # over a unix socket redis-py says that it could not connect, whatever the server said to its greeting
    code = getattr(error, "status_code", None)  # redis-py takes the first word of what the server said off the text
    said = f"{code} {error}" if isinstance(code, str) and not str(error).startswith(code) else str(error)
    text = excerpt(hide_passwords(said) or type(error).__name__, 300)
    keys = next((note.removeprefix(_KEYS) for note in getattr(error, "__notes__", ()) if note.startswith(_KEYS)), "")
    if _FULL.search(text):
        return Full(f"{what}: {text} (the server takes no more writes; free memory or disk, consumers go on and drain it)")
    if isinstance(error, redis.exceptions.AuthenticationError) or _REFUSED.search(text):
        return Refused(f"{what}: {text} ({_advice(text, excerpt(keys, 300))})")
    if (
        isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError | TimeoutError | EOFError)
        or _UNAVAILABLE.search(text)
        or _NO_GROUP.search(text)
    ):
        return Unavailable(f"{what}: {text}" if not isinstance(error, TimeoutError) else what)

    return Refused(f"{what}: {text}")


def _advice(text: str, keys: str) -> str:
    if "WRONGTYPE" in text:
        where = f"of the keys {keys} one" if ", " in keys else f"the key {keys}" if keys else "a key of this stream"
        return f"{where} holds something else; choose another stream name, or delete the key"
    if _NO_RIGHT.search(text):
        return "the user may not do this; see docs/operations.md for the rights that are needed"

    return "the server does not accept the user name or password in the URL"


def _keys_of(command: Sequence[Any]) -> Sequence[Any]:
    """The keys that a command is about."""
    if command[0] in ("EVAL", "EVALSHA"):
        return command[3 : 3 + int(command[2])]
    if command[0] == "XREADGROUP":
        names = command[list(command).index("STREAMS") + 1 :]
        return names[: len(names) // 2]

    return command[1:2]


def _in_full(command: Sequence[Any]) -> Sequence[Any]:
    """The call of a script, with its text."""
    _, sha, *rest = command

    return ("EVAL", BY_SHA[sha].text, *rest)


async def _ask(connection: AbstractConnection, packed: bytes, count: int, timeout: float) -> list[Any]:
    """What `Wire.ask` does, on a connection that it cannot take over."""
    replies: list[Any] = []
    async with asyncio.timeout(timeout):
        await connection.send_packed_command(packed, check_health=False)
        for _ in range(count):
            try:
                replies.append(await connection.read_response())
            except redis.exceptions.ResponseError as exc:
                replies.append(exc)

    return replies


async def _disconnect(connection: AbstractConnection) -> None:
    with suppress(Exception):  # it is gone either way
        await connection.disconnect(nowait=True)
