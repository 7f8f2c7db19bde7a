"""`Relay`: sends what was committed and not sent, because a process died, or could not reach the server, or leaves it to the relay.

```python
relay = Relay(engine, connect("redis://localhost:6379/0"))
await relay.run()
```

The way of a message: due, taken, published, marked. Rows are taken by their state and never by a cursor over their numbers: a transaction
that took its number early and commits late is not passed over. While a relay sends to a stream it has a lease on it, which is a row and not a
lock, and sends in the order of the numbers; so a stream keeps its order, however many relays there are. What a relay has sent and could not
mark any more is sent again by another: an envelope is added once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
from sqlalchemy import ColumnElement, Row, Select, bindparam, func, literal, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus.envelope import Envelope
from eventbus.errors import ConfigurationError, PublishError, Refused, TransportError, Unavailable, excerpt, only_one
from eventbus.gate import Gate
from eventbus.messages import check_name
from eventbus.sqlalchemy.database import Database, Sessions, expecting, insert_new, is_away, is_busy
from eventbus.sqlalchemy.history import TypeOfMessage, envelope_of, history
from eventbus.sqlalchemy.notices import listen
from eventbus.sqlalchemy.restore import Server
from eventbus.sqlalchemy.retention import prune
from eventbus.sqlalchemy.schema import TABLES, Tables, from_now
from eventbus.transport import Transport, new_consumer

logger: Final = logging.getLogger("eventbus.sqlalchemy")

LEASE: Final = 10.0
"""Seconds for which a relay has a stream, and within which it has sent its batch: one that dies holds it up for so long."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at which run of the server answers."""
PRUNE_EVERY: Final = 60.0
LEASED_EVERY: Final = 0.2
"""Seconds between two looks of a drain at whether another relay still has a stream."""
AT_ONCE_BYTES: Final = 4 << 20
"""Bytes of payloads in a batch: the one that exceeds it is the last."""
REST: Final = 30.0
"""Seconds for which a stream that the server refuses is left alone."""


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the running `run()` of a relay has done since it began."""

    sent: int = 0
    restored: int = 0
    """Messages that were sent again, since the server was another run."""
    removed: int = 0
    """Old rows."""


@dataclass(frozen=True)
class Relay:
    """Sends what is due in the tables of a database. A declaration, like a `Subscriber`: `run()` is its verb.

    * `source`: the engine, or the sessionmaker, of that database.
    * `transport`: where to; the one to which the units of work publish.
    * `horizon`: seconds before the last sign of life of a server within which it may have lost what it had acknowledged.
    * `keep`: how long messages stay after they were sent; those that stay at home, after they were made. None: for ever.
    * `remember`: how long the inbox knows what was handled. None: for ever. A delivery that comes again later is handled again.
    * `batch`: messages that are sent at once.
    * `poll`: seconds between two looks for what is due, when nobody says that something is.

    Run as many as you like. It runs under asyncio, as SQLAlchemy does.
    """

    source: AsyncEngine | Sessions
    transport: Transport
    _: KW_ONLY
    tables: Tables = TABLES
    horizon: float = 60.0
    keep: timedelta | None = timedelta(days=1)
    remember: timedelta | None = timedelta(days=7)
    batch: int = 400
    poll: float = 0.5
    _runs: set[_Run] = field(default_factory=set["_Run"], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.transport, str):
            raise ConfigurationError("Relay(transport=…) is a URL; write transport=connect(url)")
        if not self.horizon >= 0 or not self.poll > 0 or not self.batch >= 1:
            raise ConfigurationError(f"{self!r}: horizon is seconds, poll more than none of them, and batch one message or more")
        for name in ("keep", "remember"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, timedelta) or value < timedelta(0)):
                raise ConfigurationError(f"Relay({name}={value!r}): a timedelta, or None to keep everything")
        Database.of(self.source, self.tables)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send what is due until cancelled. ``await tg.start(relay.run)`` returns when it has found its tables.

        Cancelled, it finishes the batch that is under way, which may take up to 10 s if the server does not answer. Databases and servers
        that are away are waited for; what cannot be waited out, like a table that is not there, is raised.
        """
        run = _Run(self)
        self._runs.add(run)
        error: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(run.serve)
                tasks.start_soon(run.listen)
                task_status.started()
        except BaseExceptionGroup as group:
            error = only_one(group, beside=anyio.get_cancelled_exc_class())
        finally:
            self._runs.discard(run)
        if error is not None:
            raise error

    async def drain(self) -> int:
        """Send everything that waits, due or not, once; how many messages that was. What fails is raised.

        For tests, and for a job that runs from time to time. A stream that another relay is at is waited for, until its lease runs out if
        that relay has died. One that it has for longer than a lease, since it goes on sending, is left to it.
        """
        run = _Run(self, everything=True)
        with expecting(self.tables):
            await run.server.look()
        await run.drain()

        return run.sent

    async def republish(
        self,
        *,
        type: TypeOfMessage | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        into: str | None = None,
    ) -> int:
        """Publish a range of what was published before once more, in order; how many messages that was. See `SqlMessageStore.history`.

        They go to their own streams, or all `into` one, in the same envelopes: what a stream has got within the last ten minutes is not
        added again, and a group with an inbox handles nothing twice.
        """
        if into is not None:
            check_name("stream", into)
        database = Database.of(self.source, self.tables)
        batch: list[Envelope] = []
        count = 0
        async for envelope in history(database, self.tables, type=type, since=since, until=until, published=True):
            batch.append(envelope if into is None else msgspec.structs.replace(envelope, stream=into))
            if len(batch) == self.batch:
                count += len(await self.transport.publish(batch))
                batch = []

        return count + len(await self.transport.publish(batch))

    def statistics(self) -> Statistics:
        """What the running `run()` of this object does, all of them together; zeros when none is."""
        return Statistics(
            sent=sum(run.sent for run in self._runs),
            restored=sum(run.restored for run in self._runs),
            removed=sum(run.removed for run in self._runs),
        )


class _Run:
    """One `run()` of a relay."""

    def __init__(self, relay: Relay, *, everything: bool = False) -> None:
        self.relay = relay
        self.name = new_consumer()
        self.sent = self.restored = self.removed = 0
        self.database = Database.of(relay.source, relay.tables)
        self.server = Server(self.database, relay.tables, relay.transport, relay.horizon)
        self._woken = asyncio.Event()
        self._resting: dict[str, float] = {}
        self._gate = Gate(f"relay to {getattr(relay.transport, 'endpoint', relay.transport)}", logger)
        messages = relay.tables.messages.c
        self._stream = func.coalesce(messages.stream, relay.transport.stream)
        self._due: ColumnElement[bool] = messages.due_at.is_not(None) if everything else messages.due_at <= from_now()
        self._everything = everything

    # ---------------------------------------------------------------------------------------------------------------- run

    async def listen(self) -> None:
        """Be woken by PostgreSQL when something is to be sent."""
        if self.database.dialect == "postgresql":
            await listen(self.database.engine, self.relay.tables.channel, self._woken.set)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        relay = self.relay
        look_at = prune_at = 0.0
        ready = False
        while True:
            await anyio.lowlevel.checkpoint()  # all else may be shielded
            self._woken.clear()
            try:
                if not ready:
                    await self._streams()
                    task_status.started()
                    ready = True
                if time.monotonic() >= look_at:
                    self.restored += await self.server.look()
                    look_at = time.monotonic() + LOOK_EVERY
                sent, removed = await self.send(), 0
                if time.monotonic() >= prune_at:
                    removed = await prune(self.database, relay.tables, keep=relay.keep, remember=relay.remember)
                    self.removed += removed
                    if not removed:
                        prune_at = time.monotonic() + PRUNE_EVERY * random.uniform(0.8, 1.2)
            except Exception as exc:
                if not _passes(exc):
                    raise
                await self._gate.wait(exc, quiet=is_busy(exc) and not self._gate.failures)
            else:
                self._gate.passed()
                if not sent and not removed:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), relay.poll)

    # -------------------------------------------------------------------------------------------------------------- drain

    async def drain(self) -> None:
        """Send until nothing waits, or nothing could be sent for as long as a lease lasts: what waits then is another relay's."""
        until = time.monotonic() + LEASE
        while True:
            await anyio.lowlevel.checkpoint()  # all else may be shielded
            begun = time.monotonic()
            if await self.send():
                until = time.monotonic() + LEASE
            elif begun > until or not await self._waits():
                return
            else:
                await asyncio.sleep(LEASED_EVERY)

    async def _waits(self) -> bool:
        """Whether something is to be sent, be it on a stream that another relay is at."""
        async with self.database.transaction() as connection:
            return (await connection.execute(select(literal(1)).where(self._due).limit(1))).first() is not None

    # --------------------------------------------------------------------------------------------------------------- send

    async def send(self) -> int:
        """Take a batch of what is due, publish it, and mark it as sent; how many messages that was. Cancelled, it is finished all the same."""
        streams = await self._streams()
        if not streams:
            return 0
        error: Exception | None = None
        rows: Sequence[Row[Any]] = []
        sent: dict[int, str | None] = {}
        with anyio.move_on_after(LEASE, shield=True) as lease:
            taken, rows = await self._take(streams)
            try:
                if rows:
                    sent = dict(zip([row.number for row in rows], await self._publish(rows), strict=True))
            except PublishError as exc:
                error = exc
                failed = {envelope.id for envelope in exc.envelopes}
                sent = {row.number: None for row in rows if failed and row.id not in failed}
            except Exception as exc:
                error = exc
            await self._settle(taken, [row for row in rows if row.number in sent], sent)
            self.sent += len(sent)
        if lease.cancelled_caught:
            raise Unavailable(f"a batch for {', '.join(streams)} was not sent within {LEASE:g} s")
        if error is not None:
            self._rest(error, rows, sent)

        return len(sent)

    async def _publish(self, rows: Sequence[Row[Any]]) -> list[str]:
        return await self.relay.transport.publish([envelope_of(row) for row in rows])

    async def _streams(self) -> list[str]:
        """The streams of the messages that are due next, without those that other relays are at."""
        messages, streams = self.relay.tables.messages.c, self.relay.tables.streams.c
        others = select(streams.stream).where(streams.relay != self.name, streams.until > from_now())
        moment = time.monotonic()
        self._resting = {stream: until for stream, until in self._resting.items() if until > moment}
        due = select(self._stream.label("stream")).where(
            self._due, self._stream.not_in(others), self._stream.not_in(list(self._resting))
        )
        first = due.order_by(messages.number).limit(self.relay.batch).subquery()
        with expecting(self.relay.tables):
            async with self.database.transaction() as connection:
                return list((await connection.execute(select(first.c.stream).distinct())).scalars())

    async def _take(self, streams: Sequence[str]) -> tuple[list[str], Sequence[Row[Any]]]:
        """Lease those of the streams that nobody else has taken meanwhile, or is taking just now; and what is due on them, in order.

        On PostgreSQL a row that another transaction has locked is passed over, and not waited for (SQLite has one writer). So it is but for
        streams that have no row yet: of two that add it at once, the second waits for the first.
        """
        leases = self.relay.tables.streams
        wanted = leases.c.stream.in_(streams)
        free = or_(leases.c.relay == self.name, leases.c.until <= from_now())
        nobody_is_at = select(leases.c.stream).where(wanted, free).order_by(leases.c.stream).with_for_update(skip_locked=True)
        lease = update(leases).where(leases.c.stream.in_(nobody_is_at), free).values(relay=self.name, until=from_now(LEASE))
        async with self.database.transaction() as connection:
            taken = list((await connection.execute(lease.returning(leases.c.stream))).scalars())
            if len(taken) < len(streams):
                known = (await connection.execute(select(leases.c.stream).where(wanted))).scalars()
                taken += await self._lease_new(connection, sorted({*streams}.difference(known)))

            return taken, (await connection.execute(self._batch(taken))).all() if taken else []

    async def _lease_new(self, connection: AsyncConnection, streams: Sequence[str]) -> list[str]:
        """Streams that no relay has had yet."""
        if not streams:
            return []
        leases = self.relay.tables.streams
        rows = [{"stream": stream, "relay": self.name, "until": from_now(LEASE)} for stream in streams]
        new = insert_new(leases, self.database.dialect).values(rows).returning(leases.c.stream)

        return list((await connection.execute(new)).scalars())

    def _batch(self, streams: Sequence[str]) -> Select[Any]:
        messages = self.relay.tables.messages
        first = select(messages).where(self._due, self._stream.in_(streams)).order_by(messages.c.number).limit(self.relay.batch)
        rows = first.subquery()
        before = func.sum(func.length(rows.c.payload)).over(order_by=rows.c.number) - func.length(rows.c.payload)
        sized = select(rows, before.label("before")).subquery()

        return select(sized).where(sized.c.before < AT_ONCE_BYTES).order_by(sized.c.number)

    async def _settle(self, streams: Sequence[str], rows: Sequence[Row[Any]], ids: Mapping[int, str | None]) -> None:
        """Mark what was sent, and give the streams back."""
        messages, leases = self.relay.tables.messages, self.relay.tables.streams
        async with self.database.transaction() as connection:
            give_back = update(leases).where(leases.c.stream.in_(streams), leases.c.relay == self.name)
            await connection.execute(give_back.values(until=from_now()))
            if rows:
                mark = (
                    update(messages)
                    .where(
                        messages.c.number == bindparam("row"),
                        messages.c.restored == bindparam("time"),
                        messages.c.due_at.is_not(None),
                    )
                    .values(sent_at=from_now(), due_at=null(), entry_id=bindparam("entry"))
                )
                await connection.execute(
                    mark, [{"row": row.number, "time": row.restored, "entry": ids[row.number]} for row in rows]
                )

    def _rest(self, error: Exception, rows: Sequence[Row[Any]], sent: Mapping[int, object]) -> None:
        """Leave the streams alone that the server refuses, and go on with the others. What stops them all is raised."""
        if self._everything or not isinstance(error, PublishError) or not isinstance(error, Refused):
            raise error
        for stream in {row.stream or self.relay.transport.stream for row in rows if row.number not in sent}:
            self._resting[stream] = time.monotonic() + REST
            logger.error("nothing can be sent to %s, trying again in %g s: %s", stream, REST, excerpt(str(error)))


def _passes(error: Exception) -> bool:
    """Whether waiting can help."""
    return is_busy(error) or is_away(error) or (isinstance(error, TransportError) and not isinstance(error, Refused))
