"""How long rows are kept, and their removal in small steps."""

from __future__ import annotations

from datetime import timedelta

import anyio.lowlevel
from sqlalchemy import ColumnElement, Table, and_, delete, select, tuple_

from eventbus.sqlalchemy.database import Database
from eventbus.sqlalchemy.schema import Tables, from_now

AT_ONCE = 2000
"""Rows that one transaction removes, at the most."""


async def prune(database: Database, tables: Tables, *, keep: timedelta | None, remember: timedelta | None) -> int:
    """Remove some of the messages that were sent `keep` ago, or made so long ago and never to be sent, and of what the inbox has
    remembered for `remember`; how many rows went. None is for ever. What is still to be sent stays. Call it until nothing goes any more.
    """
    messages, inbox = tables.messages.c, tables.inbox.c
    removed = 0
    if keep is not None:
        gone = from_now(-keep.total_seconds())
        at_home = and_(messages.due_at.is_(None), messages.sent_at.is_(None))
        removed = await _remove(database, tables.messages, messages.sent_at < gone)
        removed = removed or await _remove(database, tables.messages, and_(messages.created_at < gone, at_home))
    if remember is not None:
        removed = removed or await _remove(database, tables.inbox, inbox.handled_at < from_now(-remember.total_seconds()))

    return removed


async def _remove(database: Database, table: Table, old: ColumnElement[bool]) -> int:
    """One step, passing over rows that another relay is removing just now."""
    key = list(table.primary_key.columns)
    some = select(*key).where(old).limit(AT_ONCE).with_for_update(skip_locked=True)
    step = delete(table).where((key[0] if len(key) == 1 else tuple_(*key)).in_(some))
    await anyio.lowlevel.checkpoint()  # a transaction is shielded
    async with database.transaction() as connection:
        count: int = (await connection.execute(step)).rowcount

    return count
