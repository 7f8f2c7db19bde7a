"""Reading back: rows as envelopes, in the order in which they were stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, or_, select

from eventbus.envelope import Envelope, split_type
from eventbus.errors import ConfigurationError
from eventbus.messages import Message
from eventbus.sqlalchemy.database import Database, expecting
from eventbus.sqlalchemy.schema import Tables

PAGE = 400
"""Rows that are read at once."""

TypeOfMessage = str | type[Message]


def values_of(envelope: Envelope) -> dict[str, Any]:
    """What the row of an envelope says of it."""
    return {
        "id": envelope.id,
        "created_at": envelope.created_at,
        "type": envelope.type,
        "payload": envelope.payload,
        "headers": dict(envelope.headers),
        "stream": envelope.stream,
        "key": envelope.key,
    }


def envelope_of(row: Row[Any]) -> Envelope:
    """The envelope in a row, equal to the one that was stored."""
    return Envelope(row.id, row.created_at, row.type, row.payload, row.headers, row.stream, row.key)


async def history(
    database: Database,
    tables: Tables,
    *,
    type: TypeOfMessage | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    published: bool = False,
) -> AsyncIterator[Envelope]:
    """What was stored, oldest first; see `SqlMessageStore.history`. With `published` only what was, or will be, sent.

    It is read in pages, each in a transaction of its own: none is open while the caller is at work.
    """
    columns, last = tables.messages.c, 0
    conditions = [
        *conditions_of(tables, type, since, until),
        *([or_(columns.due_at.is_not(None), columns.sent_at.is_not(None))] if published else []),
    ]
    while True:
        query = select(tables.messages).where(columns.number > last, *conditions).order_by(columns.number).limit(PAGE)
        with expecting(tables):
            async with database.transaction() as connection:
                page = (await connection.execute(query)).all()
        for row in page:
            if not isinstance(type, str) or type in (row.type, split_type(row.type)[0]):  # "book" is no "book_vault_v1"
                yield envelope_of(row)
        if len(page) < PAGE:
            return
        last = page[-1].number


def conditions_of(
    tables: Tables, type: TypeOfMessage | None, since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    """What a row must be, to be of this type and time."""
    columns = tables.messages.c
    conditions: list[ColumnElement[bool]] = []
    if type is not None:
        name = type if isinstance(type, str) else type.metadata.type
        conditions.append(columns.type == name if split_type(name)[1] else columns.type.startswith(f"{name}_v", autoescape=True))
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise ConfigurationError(f"history: {moment!r} has no time zone; write datetime(…, tzinfo=UTC)")
    if since is not None:
        conditions.append(columns.created_at >= since)
    if until is not None:
        conditions.append(columns.created_at < until)

    return conditions
