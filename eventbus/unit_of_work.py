"""One business transaction: it holds the repositories, gathers what was raised, and publishes what was committed.

```python
async with LibraryUnitOfWork(session, transport=transport) as uow:
    await bus.handle(RegisterBook(...), uow)
    await uow.commit()
```

The life of a commit: gather, encode, store, commit the session, publish, tell the dependencies. Up to the session's commit every failure
leaves nothing behind; after it nothing is ever called a rollback again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Mapping, Sequence
from inspect import isawaitable
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, Self, TypeGuard

import anyio

from eventbus.envelope import JSON, Codec, Envelope
from eventbus.errors import ConfigurationError, PublishError, TransactionError, TransportError
from eventbus.message_store import SINKHOLE, MessageStore, Record, is_inbox
from eventbus.messages import Message
from eventbus.models import Repository, Seen, moment
from eventbus.shield import Deferral, shielded
from eventbus.transport import Delivery, Publisher

logger: Final = logging.getLogger("eventbus")

_REPOSITORY: Any = Repository
"""What its models are is not known here, and need not be."""
_ENDING = 30.0
"""Seconds that a commit or rollback in progress may take after its task was cancelled."""


class Session(Protocol):
    """What a unit of work commits: SQLAlchemy's `AsyncSession` fits without knowing us."""

    def commit(self) -> Awaitable[Any]: ...

    def rollback(self) -> Awaitable[Any]: ...


class Carrier(Session, Protocol):
    """A session that publishes and settles in its own commit, in one step with its writes. It says so by ``carries = True`` in its class."""

    carries: ClassVar[bool]

    def carry(self, envelopes: Sequence[Envelope], delivery: Delivery | None) -> None:
        """What the commit that follows is to publish, and the delivery that it is to ack, if there is one.

        The commit then raises `LeaseLost`, and changes nothing, when the delivery is not ours any more.
        """
        ...


class TransactionStatus(enum.Enum):
    """Where a unit of work is in its life."""

    running = "running"
    committed = "committed"
    rolledback = "rolledback"
    streaming = "streaming"
    closed = "closed"


_RUNNING, _COMMITTED = TransactionStatus.running, TransactionStatus.committed
_STREAMING, _CLOSED = TransactionStatus.streaming, TransactionStatus.closed
"""A name of the module is found three times as fast as a member of an enum."""


class UnitOfWork:
    """One transaction. Subclass it and make your repositories attributes of it; or use it as it is.

    `session` is anything with awaitable `commit()` and `rollback()`, or None. `transport` takes what is published, `message_store` keeps
    what was handled. An object may be used for one transaction after another, by one task at a time.

    * Leaving the block without commit or rollback rolls back and raises `TransactionError`; leaving it by an exception rolls back and
      lets the exception through. After a commit neither happens.
    * Rolling back forgets every message that was gathered.
    * Commit or rollback twice, handling or emitting after either, or entering while it is open is `TransactionError`.
    """

    __slots__ = (
        "__dict__", "__weakref__", "_committing", "_dependencies", "_emitted", "_ended", "_outgoing", "_records", "_unpublished",
        "delivery", "handling", "message_store", "session", "status", "transport",
    )  # fmt: skip

    def __init__(
        self,
        session: Session | None = None,
        *,
        transport: Publisher | None = None,
        message_store: MessageStore | None = None,
    ) -> None:
        if isinstance(transport, str):
            raise ConfigurationError(f"{type(self).__name__}(transport=…) is a URL; write transport=connect(url)")
        self.session: Any = session  # a Session or None; a subclass may declare which, and a narrower type would not let it
        self.transport: Publisher | None = transport
        self.message_store: MessageStore = SINKHOLE if message_store is None else message_store
        self.status: TransactionStatus = _CLOSED
        self._emitted: list[tuple[int, Message, Mapping[str, str] | None]] = []
        self._records: list[Record] = []
        self._outgoing: list[Record] = []
        self.handling: Record | None = None
        """What the bus is calling the handlers of, and so the cause of what is raised now."""
        self.delivery: Delivery | None = None
        """Under a subscriber, what is being handled."""
        self._dependencies: dict[int, Any] = {}
        self._committing = False
        self._ended: TransactionStatus | None = None
        self._unpublished: list[Record] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status.value}>"

    # ------------------------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        if self.status is not _CLOSED:
            raise TransactionError(
                f"{self!r} is in use: a unit of work is one transaction of one task; make another, or leave this one first"
            )
        self.status = _RUNNING
        if self._ended is not None or self._records or self._dependencies:  # it was used before
            self._ended = self.handling = self.delivery = None
            self._records, self._outgoing, self._dependencies = [], [], {}

        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self.status is _STREAMING:
            return
        if self._ended is not None:
            self._close()
            return
        try:
            await self._roll_back_quietly(error)
            if error is None:
                raise TransactionError(
                    f"{type(self).__name__} was left without commit() or rollback(): it was rolled back and nothing was published; "
                    "end the block with `await uow.commit()`"
                )
        finally:
            self._close()

    async def commit(self) -> None:
        """Make it true: store, commit the session, publish, run the hooks.

        What is published is encoded first: `EncodeError` and the errors of the message store and the session leave the transaction
        running, to be rolled back. From the session's commit on the status is committed. Then everything flagged `published` goes to the
        transport in one batch, in the order raised; if that fails and the message store is not durable, `PublishError` carries what is
        not known to be in the stream, and `publish_pending` tries again. Hooks named ``on_after_commit`` of the dependencies run last,
        each of them whatever the others do; their error is raised at the end.

        Cancellation, also asyncio's own, waits for a commit that has begun. It has 30 seconds, cancelled or not: then `TransactionError` if the
        session, or `PublishError` if the transport has not answered, and in both cases what happened is unknown.
        """
        if self.status is not _RUNNING or self._committing:
            self._check_open("commit")
        if self._emitted or self.__dict__:
            self.gather(self.handling)
        outgoing = self._outgoing
        failure: PublishError | None = None
        deferral: Deferral | None = None
        if self.session is None and not outgoing and self.message_store is SINKHOLE:
            self.status = self._ended = _COMMITTED
        else:
            envelopes = [record.envelope for record in outgoing]
            self._committing = True
            try:
                with shielded(_ENDING) as scope:
                    deferral = Deferral(scope)
                    if _is_carrier(self.session):
                        self.session.carry(envelopes, self.delivery)
                        await self._store(deferral)
                        if self.delivery is not None:
                            self.delivery.settled = True
                    else:
                        await self._store(deferral)
                        failure = await self._publish(outgoing, envelopes, deferral)
            except Exception as exc:
                if deferral is not None and deferral.cancelled:
                    logger.error("%r was cancelled, and so this is not raised: %s", self, exc, exc_info=exc)
                    raise deferral.cancelled[0] from exc
                raise
            finally:
                self._committing = False
            if scope.cancelled_caught:
                failure = self._cut_short(envelopes)
        if failure is not None:
            self._unpublished += _those_of(failure, outgoing)
        cancelled = [] if deferral is None else deferral.cancelled
        if self._dependencies:
            await self._run_hooks("on_after_commit", failure, cancelled)
        elif cancelled and failure is not None:
            logger.error("%r was cancelled, and so this is not raised: %s", self, failure, exc_info=failure)
        if cancelled:
            raise cancelled[0]
        if failure is not None:
            raise failure

    async def rollback(self) -> None:
        """Undo it: roll the session back, forget every message, run the hooks named ``on_after_rollback``.

        Cancellation waits for it, for up to 30 seconds.
        """
        self._check_open("roll back")
        self.status = self._ended = TransactionStatus.rolledback
        self._emitted, self._records, self._outgoing = [], [], []
        self._forget()
        try:
            if self.session is not None:
                with anyio.CancelScope(deadline=anyio.current_time() + _ENDING, shield=True) as scope:
                    await self.session.rollback()
                if scope.cancelled_caught:
                    raise TransactionError(f"{self!r}: the session's rollback did not end within {_ENDING:g} s")
        finally:
            if self._dependencies:
                await self._run_hooks("on_after_rollback", None, [])

    def detach(self) -> None:
        """Keep the transaction open past the end of the block, until `close()`: for a response that is streamed from it."""
        if self.status is TransactionStatus.closed:
            raise TransactionError(f"{self!r} cannot be detached: enter it first")
        self.status = TransactionStatus.streaming

    async def close(self) -> None:
        """End a detached transaction: roll back if nothing was committed; keep a commit. Closing twice is harmless."""
        if self.status is TransactionStatus.closed:
            return
        if self._ended is None:
            self._check_open("close")
        try:
            if self._ended is None:
                await self.rollback()
        finally:
            self._close()

    # --------------------------------------------------------------------------------------------------------- messages

    def emit(self, message: Message, *, headers: Mapping[str, str] | None = None) -> None:
        """Raise a message without a model. The headers travel with it if it is published."""
        self._check_open("emit")
        self._emitted.append((moment(), message, headers))

    def gather(self, cause: Record | None) -> Sequence[Record]:
        """Collect what was raised since the last time, in the order raised, as caused by `cause`. The bus does this after each handler."""
        emitted, attributes = self._emitted, self.__dict__
        if not emitted and not attributes:
            return ()
        taken: list[Any] = []
        if emitted:
            taken, self._emitted = emitted, []
        for value in attributes.values():
            if isinstance(value, _REPOSITORY):
                seen = value.seen
                taken += seen.take() if isinstance(seen, Seen) else Seen(seen).take()
        if not taken:
            return ()
        if len(taken) > 1:
            taken.sort(key=_moment_of)
        codec: Codec = getattr(self.transport, "codec", JSON)
        records = [Record(message, cause, None, headers, codec) for _, message, headers in taken]
        self._records += records
        self._outgoing += [record for record in records if record.outgoing]

        return records

    def receive(self, message: Message, origin: Delivery | None) -> list[Record]:
        """Take in a message that is to be handled: one that came in a delivery, or that the caller made. Before it goes what was raised."""
        if self.status is not _RUNNING or self._committing:
            self._check_open("handle a message in")
        cause = self.handling
        queue = [*self.gather(cause)] if self._emitted or self.__dict__ else []
        if origin is not None:
            self.delivery = origin
            record = Record(message, cause, origin)
        else:
            record = Record(message, cause, None, None, getattr(self.transport, "codec", JSON))
            if isinstance(message, Message) and record.outgoing:
                self._outgoing.append(record)
        queue.append(record)
        self._records.append(record)

        return queue

    def check_left(self, left: Sequence[Message], handler: str) -> None:
        """A handler has ended the transaction before these were handled. They went with a rollback; after a commit, `TransactionError`."""
        if left and self._ended is _COMMITTED:
            names = ", ".join(sorted({type(message).__name__ for message in left}))
            raise TransactionError(
                f"{handler} has committed {self!r}, in which {names} was still to be handled: leave the commit to whoever called "
                "`bus.handle`"
            )

    async def begin(self, delivery: Delivery) -> bool:
        """This transaction handles a delivery. False if its message store knows that it was handled before; then nothing is to be done."""
        if self.status is not _RUNNING or self._committing:
            self._check_open("handle a delivery in")
        self.delivery = delivery
        store = self.message_store

        return await store.claim(delivery) if store is not SINKHOLE and is_inbox(store) else True

    def depend(self, dependency: object) -> None:
        """Tell this object when the transaction ends, by its ``on_after_commit`` or ``on_after_rollback`` if it has them."""
        self._dependencies.setdefault(id(dependency), dependency)

    async def publish_pending(self) -> None:
        """Publish what the commits of this object could not. `PublishError` if it fails again; nothing to do is fine."""
        records = self._unpublished
        if not records:
            return
        failure = await self._publish(records, [record.envelope for record in records])
        self._unpublished = _those_of(failure, records)
        if failure is not None:
            raise failure

    # ---------------------------------------------------------------------------------------------------------- private

    def _check_open(self, verb: str) -> None:
        if self._committing:
            raise TransactionError(f"cannot {verb} {self!r} while it is being committed: one task uses a unit of work at a time")
        if self._ended is not None and self.status is not TransactionStatus.closed:
            raise TransactionError(f"cannot {verb} {self!r}: one transaction ends once; enter a unit of work again for the next")
        if self.status is TransactionStatus.closed:
            raise TransactionError(f"cannot {verb} {self!r}: enter it first, `async with uow: …`")

    async def _store(self, deferral: Deferral) -> None:
        """The part of a commit that may fail without a trace."""
        records = self._records
        try:
            if self.message_store is not SINKHOLE:
                await self.message_store.add(records)
            if self.session is not None:
                await deferral.finish(self._commit_session(records))
        except BaseException:
            if self.message_store is not SINKHOLE:
                with anyio.CancelScope(shield=True):
                    await self.message_store.forget(records)
            raise
        self.status = self._ended = TransactionStatus.committed

    async def _commit_session(self, records: list[Record]) -> None:
        """Commit. An error may come after the fact, when only the answer was lost: then it is looked up before it is called a failure."""
        assert self.session is not None
        try:
            await self.session.commit()
        except Exception as exc:
            if not is_inbox(self.message_store) or not await self.message_store.confirm(records):
                raise
            logger.warning("%r: the commit took place, though it was answered with an error: %s", self, exc)

    async def _publish(
        self, records: list[Record], envelopes: list[Envelope], deferral: Deferral | None = None
    ) -> PublishError | None:
        """The part of a commit that comes after it; the failure is returned, so that the hooks run all the same."""
        if not envelopes:
            return None
        transport = self.transport
        if transport is None:
            if not self.message_store.durable:
                _warn_unpublished(type(self), envelopes)
            return None
        try:
            if deferral is None:
                ids = await transport.publish(envelopes)
            else:
                ids = await deferral.until_answered(lambda: transport.publish(envelopes))
        except Exception as exc:
            failure = _publish_error(exc, envelopes)
        else:
            try:
                if self.message_store.durable:
                    for record, id in zip(records, ids, strict=True):
                        record.entry_id = id
                await self.message_store.published(records)
            except Exception:
                logger.warning("published, but the message store could not note it; it will be published again", exc_info=True)
            return None

        return self._unless_durable(failure)

    def _cut_short(self, envelopes: list[Envelope]) -> PublishError | None:
        """The commit did not end within its time."""
        if self._ended is None:
            raise TransactionError(
                f"{self!r}: the session's commit did not end within {_ENDING:g} s; whether it happened is unknown"
            )
        failure = PublishError.because(TransportError(f"no answer within {_ENDING:g} s"), envelopes, "unknown")

        return self._unless_durable(failure)

    def _unless_durable(self, failure: PublishError) -> PublishError | None:
        if not self.message_store.durable:
            return failure
        logger.warning("not published at once, the relay will: %s", failure)

        return None

    def _close(self) -> None:
        self.status = _CLOSED
        if self.__dict__ and self._forget(shared=False):
            logger.warning(
                "%s: a model raised messages after the end of the transaction, and they are lost", type(self).__qualname__
            )

    def _forget(self, *, shared: bool = True) -> int:
        """Let go of the models, and drop what they have raised; how many messages that was."""
        dropped = 0
        for value in self.__dict__.values():
            if isinstance(value, _REPOSITORY):
                seen = value.seen
                if isinstance(seen, Seen):
                    dropped += seen.forget(shared=shared)
                else:
                    dropped += Seen(seen).forget()
                    seen.clear()

        return dropped

    async def _roll_back_quietly(self, error: BaseException | None) -> None:
        """Roll back on the way out: a failure of that must not hide why we are leaving."""
        try:
            await self.rollback()
        except Exception as exc:
            logger.exception("rollback of %s failed: %s", repr(self), exc)  # as it is now, whenever the line is written
            if error is not None:
                error.add_note(f"and the rollback failed: {exc!r}")

    async def _run_hooks(self, name: str, failure: PublishError | None, cancelled: list[BaseException]) -> None:
        dependencies, self._dependencies = self._dependencies, {}
        errors: list[Exception] = []
        for dependency in dependencies.values():
            hook = getattr(dependency, name, None)
            if not callable(hook):
                continue
            try:
                result = hook()
                if isawaitable(result):
                    await result
            except Exception as exc:
                errors.append(exc)
            except anyio.get_cancelled_exc_class() as exc:  # the others are run first
                cancelled.append(exc)
        if cancelled:
            for error in (*errors, *([failure] if failure else [])):
                logger.error("%s was cancelled, and so this is not raised: %s", name, error, exc_info=error)
            raise cancelled[0]
        if failure is not None:
            for error in errors:
                logger.error("%s failed after a failed publish: %s", name, error, exc_info=error)
                failure.add_note(f"and {name} failed: {error!r}")
        elif len(errors) == 1:
            raise errors[0]
        elif errors:
            raise ExceptionGroup(f"{len(errors)} hooks {name} failed", errors)


def _is_carrier(session: Session | None) -> TypeGuard[Carrier]:
    """Whether the class says so; a mock, which has every attribute, does not."""
    return session is not None and getattr(type(session), "carries", False) is True


def _moment_of(taken: tuple[int, Message, object]) -> int:
    return taken[0]


def _those_of(failure: PublishError | None, records: list[Record]) -> list[Record]:
    """The records whose envelopes are not known to be in their streams."""
    if failure is None:
        return []
    left = {envelope.id for envelope in failure.envelopes}

    return [record for record in records if record.id in left]


def _publish_error(error: Exception, envelopes: list[Envelope]) -> PublishError:
    if isinstance(error, PublishError) and error.envelopes:
        return error
    cause = error if isinstance(error, TransportError) else TransportError(f"{type(error).__name__}: {error}")
    failure = PublishError.because(cause, envelopes, "not sent" if isinstance(error, ConfigurationError) else "unknown")
    failure.__cause__ = error

    return failure


_warned: set[type] = set()


def _warn_unpublished(kind: type, envelopes: list[Envelope]) -> None:
    """Said once for each class: a test without a transport is fine, a service without one is not."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(
            "%s has no transport: %s was committed and published nowhere; give it transport=…",
            kind.__qualname__,
            ", ".join(sorted({envelope.type for envelope in envelopes})),
        )
