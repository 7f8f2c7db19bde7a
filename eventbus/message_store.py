"""What is written inside the transaction: the messages that a unit of work handled, and those it will publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeGuard, runtime_checkable

import msgspec

from eventbus.envelope import JSON, Codec, Envelope, new_id, now, seal
from eventbus.messages import Message

if TYPE_CHECKING:
    from eventbus.transport import Delivery


class Carried(Protocol):
    """What came in an envelope: a `Delivery`."""

    @property
    def envelope(self) -> Envelope: ...


class Record(msgspec.Struct, eq=False):
    """One message of a unit of work: what it is, what caused it, and its envelope, made when somebody asks for it.

    Most messages never leave their process and need no envelope: a record costs next to nothing until then.
    """

    message: Message
    cause: Record | None = None
    _origin: Carried | None = None
    _headers: Mapping[str, str] | None = None
    _codec: Codec = JSON
    entry_id: str | None = None
    """Where in its stream it is, once it was published for a durable store."""
    _envelope: Envelope | None = None
    _id: str | None = None
    _created_at: datetime | None = None
    _depth: int = -1

    def __repr__(self) -> str:
        return f"<record of {self.message!r}>"

    @property
    def depth(self) -> int:
        """How many causes it has, one behind the other."""
        if self._depth < 0:
            self._depth = 0 if self.cause is None else self.cause.depth + 1

        return self._depth

    @property
    def outgoing(self) -> bool:
        """Whether the unit of work publishes it when it commits: not if it came from a stream."""
        return self._origin is None and type(self.message).metadata.published

    @property
    def received(self) -> bool:
        """Whether it came in an envelope, and was not made here."""
        return self._origin is not None

    @property
    def id(self) -> str:
        if self._origin is not None or self._envelope is not None:
            return self.envelope.id
        if self._id is None:
            self._id, self._created_at = new_id(), now()

        return self._id

    @property
    def correlation_id(self) -> str:
        first = self
        while first._origin is None and first.cause is not None:
            first = first.cause

        return first.id if first._origin is None else first.envelope.correlation_id

    @property
    def envelope(self) -> Envelope:
        """The envelope, always the same one. The first time, `EncodeError` when the message cannot be encoded."""
        if self._envelope is None:
            if self._origin is not None:
                self._envelope = self._origin.envelope
            else:
                self._envelope = seal(
                    self.message,
                    codec=self._codec,
                    cause=self.cause,
                    headers=self._headers,
                    id=self.id,
                    created_at=self._created_at,
                )

        return self._envelope


@runtime_checkable
class MessageStore(Protocol):
    """Keeps the messages of a unit of work, inside its transaction.

    `durable` says that what was added and committed is delivered by somebody even if this process never publishes it: a publish that
    fails after the commit is then logged and not raised.
    """

    durable: bool

    async def add(self, records: Sequence[Record]) -> None:
        """Keep what was handled and raised, in order. Called once, at commit, before the session commits; an error stops the commit."""

    async def published(self, records: Sequence[Record]) -> None:
        """Those of the records that were `outgoing` are in their streams. Called after the commit."""

    async def forget(self, records: Sequence[Record]) -> None:
        """The transaction in which these were added did not commit."""


class Inbox(MessageStore, Protocol):
    """A message store that also remembers what was handled, in the handler's own transaction: a second delivery has no second effect.

    It says so by ``is_inbox = True`` in its class.
    """

    is_inbox: ClassVar[bool]

    async def claim(self, delivery: Delivery) -> bool:
        """Note, inside the transaction and before any handler, that this group handles this envelope. False: it has done so before.

        Of two transactions that claim the same at once, the second waits for the first, or fails and is retried.
        """
        ...

    async def confirm(self, records: Sequence[Record]) -> bool:
        """The session's commit raised an error: whether it took place all the same. Asked outside of the transaction."""
        ...


def is_inbox(store: MessageStore) -> TypeGuard[Inbox]:
    """Whether the class says so; a mock, which has every attribute, does not."""
    return getattr(type(store), "is_inbox", False) is True


class SinkholeMessageStore:
    """Keeps nothing, and costs nothing. The default."""

    durable = False

    async def add(self, records: Sequence[Record]) -> None:
        pass

    async def published(self, records: Sequence[Record]) -> None:
        pass

    async def forget(self, records: Sequence[Record]) -> None:
        pass


SINKHOLE: Final = SinkholeMessageStore()
"""The one that all units of work share that were given none."""


class InMemoryMessageStore:
    """Keeps everything that committed, in this process, in order: for tests.

    One store may serve many units of work; a rollback forgets what was its own and nothing else.
    """

    durable = False

    def __init__(self) -> None:
        self._records: list[Record] = []

    def __repr__(self) -> str:
        return f"<InMemoryMessageStore of {self.messages!r}>"

    @property
    def messages(self) -> list[Message]:
        """The messages, in the order in which they were handled or raised."""
        return [record.message for record in self._records]

    @property
    def envelopes(self) -> list[Envelope]:
        """The same in their envelopes."""
        return [record.envelope for record in self._records]

    async def add(self, records: Sequence[Record]) -> None:
        self._records += records

    async def published(self, records: Sequence[Record]) -> None:
        pass

    async def forget(self, records: Sequence[Record]) -> None:
        dropped = {id(record) for record in records}
        self._records = [record for record in self._records if id(record) not in dropped]
