"""The tables: what a service has handled and published, what its groups have handled, and who sends what a crash left.

| table | a row is |
|---|---|
| ``eventbus_messages`` | a message that was handled or raised, in its envelope |
| ``eventbus_inbox`` | an envelope that a group has handled |
| ``eventbus_streams`` | a stream, and the relay that is sending to it, or was the last to |
| ``eventbus_servers`` | a server, and the run of it that the relays know |

A message is to be sent while `due_at` says from when on; it was sent at `sent_at`; one that stays at home has neither. `restored` counts how
often it was taken for lost and made due again: whoever marks it as sent says of which time, so that an old success marks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    BindParameter,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    literal,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine


class Moment(TypeDecorator[datetime]):
    """A time in UTC, to the microsecond. SQLite keeps no time zone."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = DateTime(timezone=True)
    cache_ok: bool | None = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None

        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class from_now(FunctionElement[datetime]):  # noqa: N801 - reads as the function that it is
    """The time of the database, so many seconds from now: one clock for all processes. It goes on during a transaction."""

    type: TypeEngine[datetime] = Moment()
    inherit_cache: bool | None = True

    def __init__(self, seconds: float | BindParameter[float] = 0.0) -> None:
        super().__init__(literal(float(seconds), Float(53)) if isinstance(seconds, int | float) else seconds)


@compiles(from_now, "postgresql")
def _on_postgresql(element: from_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(from_now, "sqlite")
def _on_sqlite(element: from_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {compiler.process(element.clauses, **kw)})) || '000')"


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of one service; made by `tables`."""

    messages: Table
    inbox: Table
    streams: Table
    servers: Table

    def __repr__(self) -> str:
        return f"<tables {self.messages.fullname}, …>"

    @property
    def metadata(self) -> MetaData:
        return self.messages.metadata

    @property
    def all(self) -> list[Table]:
        return [self.messages, self.inbox, self.streams, self.servers]

    @property
    def channel(self) -> str:
        """Where PostgreSQL is told that something is to be sent."""
        return self.messages.fullname[-63:]

    async def create_all(self, bind: AsyncEngine | AsyncConnection) -> None:
        """Make those that are not there. A service with migrations has them there instead, see docs/transactions.md."""
        if isinstance(bind, AsyncEngine):
            async with bind.begin() as connection:
                await self.create_all(connection)
        else:
            await bind.run_sync(self.metadata.create_all, tables=self.all)


def tables(prefix: str = "eventbus_", metadata: MetaData | None = None, *, schema: str | None = None) -> Tables:
    """The tables, in the metadata of your application if you give it: then they are part of its migrations."""
    if metadata is None:
        metadata = MetaData()
    messages = Table(
        f"{prefix}messages",
        metadata,
        Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("id", String, nullable=False, unique=True),
        Column("created_at", Moment, nullable=False),
        Column("type", String, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("headers", JSON, nullable=False),
        Column("stream", String),
        Column("key", String),
        Column("due_at", Moment),
        Column("sent_at", Moment),
        Column("entry_id", String),
        Column("restored", Integer, nullable=False, server_default="0"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    columns = messages.c
    due, sent = columns.due_at.is_not(None), columns.sent_at.is_not(None)
    Index(f"{prefix}messages_due", columns.number, postgresql_where=due, sqlite_where=due)
    Index(f"{prefix}messages_sent", columns.sent_at, postgresql_where=sent, sqlite_where=sent)
    Index(f"{prefix}messages_created", columns.created_at)
    inbox = Table(
        f"{prefix}inbox",
        metadata,
        Column("group", String, primary_key=True),
        Column("envelope_id", String, primary_key=True),
        Column("handled_at", Moment, nullable=False),
        schema=schema,
    )
    Index(f"{prefix}inbox_handled", inbox.c.handled_at)
    streams = Table(
        f"{prefix}streams",
        metadata,
        Column("stream", String, primary_key=True),
        Column("relay", String, nullable=False),
        Column("until", Moment, nullable=False),
        schema=schema,
    )
    servers = Table(
        f"{prefix}servers",
        metadata,
        Column("server", String, primary_key=True),
        Column("run_id", String),
        Column("seen_at", Moment, nullable=False),
        schema=schema,
    )

    return Tables(messages, inbox, streams, servers)


TABLES = tables()
"""With the names above, and metadata of their own."""
