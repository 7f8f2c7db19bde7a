"""`SqlMessageStore`: what a unit of work handled, what it will publish, and what it has handled before, in its own SQL transaction."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, Final

from sqlalchemy import (
    Boolean,
    Float,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from eventbus.envelope import Envelope, now
from eventbus.errors import ConfigurationError, Retry
from eventbus.message_store import Record
from eventbus.messages import check_name
from eventbus.sqlalchemy.database import AnySession, Database, expecting, insert_new, is_busy
from eventbus.sqlalchemy.history import TypeOfMessage, history, values_of
from eventbus.sqlalchemy.schema import TABLES, Tables, from_now
from eventbus.transport import Delivery

logger: Final = logging.getLogger("eventbus.sqlalchemy")

WAIT_FOR_COMMIT = 5.0
"""Seconds, at most, to wait for the end of a commit whose answer was lost."""


class SqlMessageStore:
    """The local event store, the outbox and the inbox of one transaction.

    ```python
    async with sessions() as session:
        async with LibraryUnitOfWork(session, transport=transport, message_store=SqlMessageStore(session)) as uow:
            await bus.handle(RegisterBook(...), uow)
            await uow.commit()
    ```

    Give it the session that the unit of work commits. Everything that was handled or raised is inserted at commit, in that transaction. What
    is published goes to the transport right after it, and is marked as sent in a transaction of its own; what is not marked within
    `relay_after` seconds is sent by a `Relay`. With ``relay_after=0``, and a unit of work without a transport, the relay sends everything,
    in the order of the rows.

    Under a subscriber the first statement of the transaction notes that this group handles this envelope: a second delivery has no second
    effect. `group` is another name than the subscriber's to note it under.

    One store serves one session, for one transaction after another.
    """

    durable: bool = True
    is_inbox: ClassVar[bool] = True

    def __init__(
        self,
        session: AnySession,
        *,
        tables: Tables = TABLES,
        group: str | None = None,
        relay_after: float = 5.0,
    ) -> None:
        if not isinstance(session, AsyncSession | async_scoped_session):
            raise ConfigurationError(f"SqlMessageStore({type(session).__name__} …): give the AsyncSession of the unit of work")
        if not relay_after >= 0:
            raise ConfigurationError(f"SqlMessageStore(relay_after={relay_after!r}): seconds, zero or more")
        self.session = session
        self.tables = tables
        self.group: str | None = None if group is None else check_name("group", group)
        self.relay_after = relay_after
        self._claimed: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"<SqlMessageStore in {self.tables.messages.fullname}>"

    def history(
        self, *, type: TypeOfMessage | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[Envelope]:
        """What was stored, oldest first: ``async for envelope in store.history(type=BookRegistered, since=yesterday)``.

        `type` is a message class, a type on the wire (``"book_registered_v1"``), or a name, for all its versions. `since` (included) and
        `until` (not included) are times at which envelopes were made. What has not committed is not seen, also of this session; a relay
        removes what is older than it was told to keep.
        """
        return history(self._database, self.tables, type=type, since=since, until=until)

    # -------------------------------------------------------------------------------------------- called by the unit of work

    async def claim(self, delivery: Delivery) -> bool:
        """See `Inbox.claim`. While another transaction claims the same, PostgreSQL waits for its end.

        SQLite has one writer: from here to the end of the transaction everybody else waits, and after the timeout of the connection (5 s,
        if nothing else was said) is told to come again, which costs no attempt.
        """
        group = self.group or delivery.group
        self._claimed = delivery.envelope.id, group
        row = {"group": group, "envelope_id": delivery.envelope.id}
        try:
            with expecting(self.tables):
                return await _insert(self.session, self._statements.claim, row)
        except DBAPIError as exc:
            if is_busy(exc):
                raise Retry(f"another transaction is in the way: {exc.orig}", after=random.uniform(0.05, 0.5)) from exc
            raise

    async def add(self, records: Sequence[Record]) -> None:
        if not records:
            return
        more = {"relay_after": float(self.relay_after)}
        rows = [{**values_of(record.envelope), "outgoing": record.outgoing, **more} for record in records]
        with expecting(self.tables):
            await self.session.execute(self._statements.add, rows)
        notify = self._statements.notify
        if notify is not None and not self.relay_after and any(record.outgoing for record in records):
            await self.session.execute(notify)

    async def published(self, records: Sequence[Record]) -> None:
        """See `MessageStore.published`. What a relay has taken for lost since, and made due again, stays due."""
        marks = [{"envelope": record.id, "entry": record.entry_id} for record in records if record.outgoing]
        if marks:
            async with self._database.transaction() as connection:
                await connection.execute(self._statements.mark, marks)

    async def forget(self, records: Sequence[Record]) -> None:
        pass  # the transaction has taken them with it

    async def confirm(self, records: Sequence[Record]) -> bool:
        """See `Inbox.confirm`. A row that only this transaction can have written is looked for, and waited for if it is under way.

        The session is rolled back first: that undoes no commit, and lets go of what a failed one still holds. False, with a warning, when it
        cannot be looked up.
        """
        own = next((record for record in records if not record.received), None)
        handled = any(record.received and self._claimed and record.id == self._claimed[0] for record in records)
        with suppress(SQLAlchemyError, OSError):
            await self.session.rollback()
        try:
            if own is not None:
                took_place = await self._is_there(self.tables.messages, values_of(own.envelope), ["id"])
            elif handled and self._claimed is not None:
                id, group = self._claimed
                row = {"group": group, "envelope_id": id, "handled_at": now()}
                took_place = await self._is_there(self.tables.inbox, row, ["group", "envelope_id"])
            else:
                took_place = False
        except (SQLAlchemyError, OSError) as exc:
            logger.warning("a commit was answered with an error, and whether it took place could not be looked up: %s", exc)
            took_place = False

        return took_place

    # ------------------------------------------------------------------------------------------------------------- private

    @property
    def _database(self) -> Database:
        return Database.of_session(self.session, self.tables)

    @property
    def _statements(self) -> _Statements:
        return _statements(self.tables, self._database.dialect)

    async def _is_there(self, table: Table, row: Mapping[str, Any], key: Sequence[str]) -> bool:
        """Whether a row is there. PostgreSQL tells it by way of an INSERT that is rolled back: it waits for whoever is inserting the same."""
        database = self._database
        async with database.transaction() as connection:
            if database.dialect != "postgresql":
                found = select(literal(1)).where(*(table.c[name] == row[name] for name in key))
                return (await connection.execute(found)).first() is not None
            await connection.execute(text(f"SET LOCAL lock_timeout = {WAIT_FOR_COMMIT * 1000:.0f}"))
            async with connection.begin_nested() as trial:
                inserted = await _insert(connection, _counted(insert_new(table, database.dialect)), row)
                await trial.rollback()

            return not inserted


@dataclass(frozen=True)
class _Statements:
    """Those of every transaction."""

    claim: Insert
    add: Insert
    notify: Select[Any] | None
    mark: Update


@lru_cache(maxsize=64)
def _statements(tables: Tables, dialect: str) -> _Statements:
    """Built once: building one, and the key by which SQLAlchemy finds it compiled, takes half as long again as executing it."""
    columns = tables.messages.c
    due = case((bindparam("outgoing", type_=Boolean()), from_now(bindparam("relay_after", type_=Float(53)))))

    return _Statements(
        claim=_counted(
            insert_new(tables.inbox, dialect).values(
                group=bindparam("group"), envelope_id=bindparam("envelope_id"), handled_at=from_now()
            )
        ),
        add=insert_new(tables.messages, dialect).values(due_at=due),
        notify=select(func.pg_notify(tables.channel, "")) if dialect == "postgresql" else None,
        mark=(
            update(tables.messages)
            .where(columns.id == bindparam("envelope"), columns.due_at.is_not(None), columns.restored == 0)
            .values(sent_at=from_now(), due_at=null(), entry_id=bindparam("entry"))
        ),
    )


def _counted(insert: Insert) -> Insert:
    """psycopg has forgotten how many were inserted when it is asked later, so SQLAlchemy is told to ask at once.

    RETURNING would say it too, but with it readers on SQLite were seen to hold the lock for more than five seconds while their server was
    being killed.
    """
    return insert.execution_options(preserve_rowcount=True)


async def _insert(executor: AnySession | AsyncConnection, statement: Insert, row: Mapping[str, Any]) -> bool:
    """Whether a row was not there, and is now."""
    result: Any = await executor.execute(statement, row)
    inserted: bool = result.rowcount == 1

    return inserted
