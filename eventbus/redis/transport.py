"""`RedisTransport`: the contract of `eventbus.transport` on Redis 6.2 or later, and on Valkey."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import redis.asyncio

from eventbus.envelope import JSON, Codec, Envelope
from eventbus.errors import ConfigurationError, PublishError, Refused, Unavailable
from eventbus.messages import check_name
from eventbus.redis.audit import Audit, audit
from eventbus.redis.dead_letters import dead_letter_from, requeued_words
from eventbus.redis.entries import place_of
from eventbus.redis.exchange import Exchange
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel, Endpoint, Link, checked, field_of, group_is_gone
from eventbus.redis.publisher import Publisher
from eventbus.redis.retention import Retention, trim
from eventbus.redis.scripts import BACKLOG, REQUEUE
from eventbus.redis.subscription import RedisSubscription
from eventbus.transport import Backlog, DeadLetter, Subscribe

if TYPE_CHECKING:
    from eventbus.embedded import EmbeddedServer

COUNTED = 10_000
"""Unread entries are counted up to here."""


class RedisTransport:
    """Streams on a Redis or Valkey server.

    Give a URL (``redis://``, ``rediss://``, ``unix://``), or a `redis.asyncio.Redis` client, of which only the settings are used: the
    transport makes its own connections with its own timeouts, and never uses or closes yours. It runs under asyncio.

    * `stream`: where envelopes go that name no stream.
    * `codec`: how payloads are written, `eventbus.envelope.JSON` or `MSGPACK`; both are always read.
    * `retention`: how long entries are kept, and longer while a group has not settled them: a timedelta, or a `Retention` to say more.
    * `patience`: seconds for which a publish is tried again while the server does not answer.
    """

    def __init__(
        self,
        source: str | redis.asyncio.Redis | EmbeddedServer,
        stream: str = "events",
        *,
        codec: Codec = JSON,
        retention: timedelta | Retention = timedelta(days=7),
        patience: float = 3.0,
    ) -> None:
        self.stream: str = check_name("stream", stream)
        self.codec = codec
        if isinstance(retention, timedelta):
            retention = Retention(entries=retention, max_pin=max(4 * retention, timedelta(days=1)))
        self.retention = retention
        self.endpoint: Endpoint = Endpoint(source)
        self._publisher = Publisher(self.endpoint, self.stream, patience)
        self._channel = Channel(self.endpoint)
        self._exchange = Exchange(self.endpoint, patience)
        self._holders = 0
        self._left = False

    def __repr__(self) -> str:
        return f"<RedisTransport {self.endpoint} stream={self.stream!r}>"

    async def __aenter__(self) -> Self:
        self._open()
        self._holders += 1
        self._left = False

        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()
        self._left = True

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        if self._is_closed:
            raise PublishError.because(Refused(f"{self!r} is closed; enter it again"), envelopes, "not sent")
        self._open()

        return await self._publisher.publish(envelopes)

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncGenerator[RedisSubscription, None]:
        self._open()
        self._holders += 1
        try:
            async with RedisSubscription.join(self.endpoint, request, self.retention) as subscription:
                yield subscription
        finally:
            await self._leave()

    async def backlog(self, stream: str, group: str) -> Backlog:
        """What this group has still to handle; unread entries are counted up to 10,000."""
        self._open()
        keys = Keys(check_name("stream", stream), check_name("group", group))
        unread, pending, delayed, due = await self._channel.run(
            BACKLOG.call(stream, keys.retry, keys.delayed, args=(group, COUNTED))
        )

        return Backlog(unread, pending, delayed, due / 1000 if due >= 0 else None)

    async def dead_letters(self, stream: str, group: str, *, limit: int = 100) -> list[DeadLetter]:
        self._open()
        keys = Keys(check_name("stream", stream), check_name("group", group))
        entries = await self._channel.run(("XRANGE", keys.dead, "-", "+", "COUNT", limit))

        return [dead_letter_from(id.decode(), fields, stream, group) for id, fields in entries]

    async def requeue(self, dead_letter: DeadLetter, /) -> bool:
        self._open()
        keys = Keys(check_name("stream", dead_letter.stream), check_name("group", dead_letter.group))
        id = await self._channel.run(
            REQUEUE.call(keys.dead, keys.retry, keys.state, args=(dead_letter.id, *requeued_words(dead_letter)))
        )

        return bool(id)

    async def groups(self, stream: str) -> list[str]:
        """The groups on a stream, by name; none if there is no such stream. Those of other programs may have names that ours cannot have."""
        self._open()
        try:
            rows = await self._channel.run(("XINFO", "GROUPS", check_name("stream", stream)))
        except Unavailable as exc:
            if not group_is_gone(exc):
                raise
            return []

        return sorted(field_of(row, b"name").decode(errors="replace") for row in rows)

    async def audit(self, stream: str, group: str) -> Audit | None:
        """Whether what was added since the group began is settled, pending or unread, or lost. None if there is no such group."""
        self._open()

        return await audit(self._channel, Keys(check_name("stream", stream), check_name("group", group)))

    async def run_id(self) -> str | None:
        """Which run of the server answers: another after a restart or a failover. None when the user may not ask (`INFO`).

        It is asked over a new connection, and so whoever has the address now.
        """
        self._open()
        link = Link(self.endpoint)
        await link.open()
        [info] = await link.call(("INFO", "server"))
        await link.close()
        found = re.search(rb"run_id:(\w+)", info) if isinstance(info, bytes) else None

        return found[1].decode() if found else None

    async def holds(self, stream: str, entry_ids: Sequence[str], /) -> list[bool]:
        """Whether these entries are in the stream."""
        self._open()
        replies = await self._channel.call(*(("XRANGE", check_name("stream", stream), id, id) for id in entry_ids))

        return [bool(checked(reply, self.endpoint)) for reply in replies]

    async def trimmed(self, stream: str, entry_ids: Sequence[str], /) -> list[bool]:
        """Whether these entries, which are not in the stream, were removed by `trim`, and not lost.

        It removes the oldest. So an entry was lost if the stream is gone, ends before it, has an older one, or has all that was ever added.
        """
        self._open()
        answers = await self._channel.call(
            ("XINFO", "STREAM", check_name("stream", stream)), ("XRANGE", stream, "-", "+", "COUNT", 1)
        )
        try:
            info, oldest = [checked(answer, self.endpoint) for answer in answers]
        except Unavailable as exc:
            if not group_is_gone(exc):
                raise
            return [False] * len(entry_ids)
        try:
            added = field_of(info, b"entries-added")
        except KeyError:  # Redis 6.2 does not count, but those do who publish
            [added] = await self._channel.call(("GET", Keys(stream).added))
        if isinstance(added, int | bytes) and int(added) == field_of(info, b"length"):
            return [False] * len(entry_ids)
        places = [place_of(id.encode()) for id in entry_ids]
        if oldest:
            return [place < place_of(oldest[0][0]) for place in places]
        last = place_of(field_of(info, b"last-generated-id"))

        return [place <= last for place in places]

    async def trim(self, stream: str) -> int:
        """Remove what is older than the retention and settled by every group, now; how many entries went. Subscribers do it by themselves."""
        self._open()

        return await trim(self._channel, check_name("stream", stream), self.retention)

    async def ask(self, command: Sequence[Any], /, *, writes: bool = False, until: float = math.inf) -> Any:
        """The server's answer to a command that may be asked twice, over a connection that many tasks share: for sessions."""
        if self._is_closed:
            raise Refused(f"{self!r} is closed; enter it again")
        self._open()

        return await self._exchange.ask(command, writes=writes, until=until)

    async def delete(self, stream: str) -> None:
        """Delete a stream with everything that belongs to it: entries, groups, retries, dead letters. There is no way back."""
        self._open()
        check_name("stream", stream)
        cursor: Any = "0"
        names: list[Any] = [stream]
        while True:
            cursor, found = await self._channel.run(("SCAN", cursor, "MATCH", f"{{{stream}}}:*", "COUNT", 1000))
            names += found
            if int(cursor) == 0:
                break
        await self._channel.run(("DEL", *names))

    @property
    def _is_closed(self) -> bool:
        """Whether everybody who had entered it has left it, and no subscriber is at work."""
        return self._left and self._holders == 0

    def _open(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "RedisTransport runs under asyncio, as redis-py does; under trio use memory://, or start with anyio.run(main)"
            ) from None
        self.endpoint.start()

    async def _leave(self) -> None:
        """One holder less; the last one closes what is open. What is used again opens again."""
        self._holders -= 1
        if self._holders == 0:
            await self._publisher.close()
            await self._channel.close()
            await self._exchange.close()
            self.endpoint.stop()
