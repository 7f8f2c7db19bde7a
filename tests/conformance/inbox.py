"""An inbox in this process: a database with one table, of what each group has handled, and a session that is also its message store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import anyio

from eventbus import UnitOfWork
from eventbus.message_store import Record, SinkholeMessageStore
from eventbus.transport import Delivery


class Database:
    """What was handled, and what is being handled. `effects` is what the handlers have written, as far as it was committed."""

    def __init__(self) -> None:
        self.handled: set[tuple[str, str]] = set()
        self.claimed: dict[tuple[str, str], anyio.Event] = {}
        self.effects: list[int] = []

    def unit_of_work(self, transport: Any) -> InboxUnitOfWork:
        """For a subscriber: a transaction of its own for each delivery."""
        return InboxUnitOfWork(Transaction(self), transport)


class Transaction(SinkholeMessageStore):
    """One transaction. Its claim is a row that others wait for, as they would for a row with a unique key."""

    is_inbox: ClassVar[bool] = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key: tuple[str, str] | None = None
        self.writes: list[int] = []

    async def claim(self, delivery: Delivery) -> bool:
        key = (delivery.group, delivery.envelope.id)
        while (other := self._database.claimed.get(key)) is not None:
            await other.wait()
        if key in self._database.handled:
            return False
        self._database.claimed[key] = anyio.Event()
        self._key = key

        return True

    async def confirm(self, records: Sequence[Record]) -> bool:
        return self._key in self._database.handled

    async def commit(self) -> None:
        self._database.effects += self.writes
        if self._key is not None:
            self._database.handled.add(self._key)
        self._end()

    async def rollback(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._key is not None:
            self._database.claimed.pop(self._key).set()
            self._key = None


class InboxUnitOfWork(UnitOfWork):
    """What a handler writes becomes an effect when it is committed, together with the note that it was handled."""

    def __init__(self, transaction: Transaction, transport: Any) -> None:
        super().__init__(transaction, transport=transport, message_store=transaction)
        self.writes = transaction.writes
