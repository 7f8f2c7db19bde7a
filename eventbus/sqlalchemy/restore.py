"""What a server may have lost is made due again.

A server that dies, or is replaced by a replica that was behind, loses the newest part of what it had. It then runs under another run id. So
for each server a row says which run of it the relays know, and when they last saw it; when another run answers, everything becomes due again
that was sent since shortly before then. What the server still has is not added twice: it remembers envelope ids for ten minutes, and of
what was sent longer ago it is asked whether the entry is there, or was removed since it was old and settled.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from sqlalchemy import ColumnElement, and_, func, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus.sqlalchemy.database import Database, insert_new
from eventbus.sqlalchemy.schema import Tables, from_now
from eventbus.transport import Transport

logger: Final = logging.getLogger("eventbus.sqlalchemy")

REMEMBERED: Final = 540.0
"""Seconds after which we do not count on a transport to know an envelope id any more; it promises ten minutes."""
NOTE_EVERY: Final = 10.0
"""Seconds between two notes that a server still runs."""
PAGE: Final = 500


@runtime_checkable
class Forgetful(Protocol):
    """A transport whose server can lose what it had last, and says when it is another run."""

    async def run_id(self) -> str | None: ...

    async def holds(self, stream: str, entry_ids: Sequence[str], /) -> list[bool]: ...


@runtime_checkable
class Trimming(Protocol):
    """One that removes what is old and settled, and knows that from what was lost."""

    async def trimmed(self, stream: str, entry_ids: Sequence[str], /) -> list[bool]: ...


class Known(NamedTuple):
    """What the row of a server says, and the time of the database then."""

    run_id: str | None
    seen_at: datetime
    now: datetime


class Server:
    """The server behind a transport, as the relays of this database know it."""

    def __init__(self, database: Database, tables: Tables, transport: Transport, horizon: float) -> None:
        self._database = database
        self._tables = tables
        self._transport = transport
        self._horizon = timedelta(seconds=horizon)
        self._name = str(getattr(transport, "endpoint", transport))
        self._silent = False

    async def look(self) -> int:
        """Ask which run of it answers; if it is another than the known one, make due again what may be lost. How many messages that was.

        The row is read before the server is asked: what it says was true no later than that.
        """
        transport = self._transport
        if not isinstance(transport, Forgetful):
            return 0
        known = await self._known()
        run_id = await transport.run_id()
        if run_id is None:
            self._say_silent()
        elif run_id != known.run_id:
            return await self._restore(transport, known, run_id)
        elif known.now - known.seen_at > timedelta(seconds=NOTE_EVERY):
            servers = self._tables.servers
            async with self._database.transaction() as connection:
                note = update(servers).where(servers.c.server == self._name, servers.c.run_id == run_id)
                await connection.execute(note.values(seen_at=known.now))

        return 0

    async def _known(self) -> Known:
        """Its row; a new one for a server that nobody has looked at before: it may have lost something already."""
        servers, messages = self._tables.servers, self._tables.messages
        query = select(servers.c.run_id, servers.c.seen_at, from_now().label("now")).where(servers.c.server == self._name)
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            newest = select(func.max(messages.c.sent_at)).scalar_subquery()
            async with self._database.transaction() as connection:
                await connection.execute(
                    insert_new(servers, self._database.dialect).values(
                        server=self._name, seen_at=func.coalesce(newest, from_now())
                    )
                )
                row = (await connection.execute(query)).one()

        return Known(row.run_id, row.seen_at, row.now)

    async def _restore(self, transport: Forgetful, known: Known, run_id: str) -> int:
        """Make due again what was sent since the horizon, counted back from when the old run was last seen, or from the newest message
        that was sent, if that is earlier. The new run id is noted in the same transaction: who is killed before its end has done nothing
        that would not be done again.

        What waits to be sent is counted as restored too: whoever has sent it to the old run, and is about to mark it, marks nothing. And it
        is due at once, since nobody else sends it then.
        """
        servers, messages = self._tables.servers, self._tables.messages
        columns = messages.c
        async with self._database.transaction() as connection:
            newest: datetime | None = (await connection.execute(select(func.max(columns.sent_at)))).scalar()
        since = min(known.seen_at, newest or known.seen_at) - self._horizon
        recent = max(since, known.now - timedelta(seconds=REMEMBERED))
        count = await self._restore_old(transport, since, recent)

        async with self._database.transaction() as connection:
            note = update(servers).where(servers.c.server == self._name, servers.c.run_id.is_not_distinct_from(known.run_id))
            if not (await connection.execute(note.values(run_id=run_id, seen_at=known.now))).rowcount:
                return count  # another relay has done it
            waiting = update(messages).where(columns.due_at.is_not(None))
            await connection.execute(waiting.values(due_at=from_now(), restored=columns.restored + 1))
            count += await self._make_due(connection, columns.sent_at >= recent)
        logger.log(
            logging.INFO if known.run_id is None else logging.WARNING,
            "%s is %s: %d messages that were sent since %s are sent again; what it has is not added twice",
            self._name, "not known yet" if known.run_id is None else "another run than before",
            count, since.isoformat(timespec="seconds"),
            extra={"event": "restored", "messages": count},
        )  # fmt: skip

        return count

    async def _restore_old(self, transport: Forgetful, since: datetime, until: datetime) -> int:
        """Make due again, of what was sent so long ago that its id is forgotten, what its stream has lost."""
        columns, last, count = self._tables.messages.c, 0, 0
        query = select(columns.number, columns.stream, columns.entry_id).where(columns.sent_at >= since, columns.sent_at < until)
        query = query.order_by(columns.number).limit(PAGE)
        while True:
            async with self._database.transaction() as connection:
                page = (await connection.execute(query.where(columns.number > last))).all()
            if lost := await self._lost(transport, page):
                async with self._database.transaction() as connection:
                    count += await self._make_due(connection, and_(columns.number.in_(lost), columns.sent_at < until))
            if len(page) < PAGE:
                return count
            last = page[-1].number

    async def _lost(self, transport: Forgetful, rows: Collection[Any]) -> list[int]:
        """The numbers of those rows whose entries are not known, or not there, and were not trimmed."""
        lost = [row.number for row in rows if row.entry_id is None]
        streams: defaultdict[str, list[Any]] = defaultdict(list)
        for row in rows:
            if row.entry_id is not None:
                streams[row.stream or self._transport.stream].append(row)
        for stream, theirs in streams.items():
            there = await transport.holds(stream, [row.entry_id for row in theirs])
            missing = [row for row, held in zip(theirs, there, strict=True) if not held]
            if missing and isinstance(transport, Trimming):
                trimmed = await transport.trimmed(stream, [row.entry_id for row in missing])
                missing = [row for row, gone in zip(missing, trimmed, strict=True) if not gone]
            lost += [row.number for row in missing]

        return lost

    async def _make_due(self, connection: AsyncConnection, which: ColumnElement[bool]) -> int:
        messages = self._tables.messages
        again = (
            update(messages)
            .where(which)
            .values(due_at=from_now(), sent_at=null(), entry_id=null(), restored=messages.c.restored + 1)
        )
        count: int = (await connection.execute(again)).rowcount

        return count

    def _say_silent(self) -> None:
        if not self._silent:
            self._silent = True
            logger.warning(
                "%s does not say which run it is: what it loses when it dies is not sent again; let its user run INFO", self._name
            )
