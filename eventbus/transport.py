"""What a transport promises. A service is written against these; `MemoryTransport` and `RedisTransport` keep them.

A transport has streams of envelopes, in order. A consumer **group** reads a stream; each entry goes to one **consumer** of each group, and
stays **pending** until it is settled: acked (done), retried (again later, for this group alone) or buried (a dead letter of this group,
with the story of its failure). What a consumer holds is leased to it; when the lease runs out, because the process died, another consumer
takes the entry over. So a delivery comes at least once, and may come again.

`eventbus.testing.TransportContract` is this page as tests, to be run over a transport of your own.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import msgspec

from eventbus.envelope import Codec, Envelope, from_fields
from eventbus.errors import ConfigurationError, Retry
from eventbus.messages import check_name


class Publisher(Protocol):
    """The half of a transport that a unit of work needs."""

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        """Append the envelopes to their streams, in order, all or none per stream; their entry ids, in the same order.

        An envelope id is added once: asked again within ten minutes, the first entry id is returned. `PublishError` carries the envelopes
        that are not known to be in their stream, and no others.
        """
        ...


@runtime_checkable
class Transport(Publisher, Protocol):
    """Where envelopes are published and delivered. `async with transport:` opens and closes it; unopened, it opens at its first use."""

    stream: str
    """The default stream, for envelopes that name none."""
    codec: Codec
    """How payloads are encoded for it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def subscribe(self, request: Subscribe, /) -> AbstractAsyncContextManager[Subscription]:
        """Join a group on some streams: entered, the groups exist and a consumer of our own reads; left, it is gone.

        Leaving settles what was handed to `Subscription.ack`, and gives back what is still held, to be taken by another consumer at once.
        """
        ...

    async def backlog(self, stream: str, group: str) -> Backlog:
        """What this group has still to handle of a stream."""
        ...

    async def dead_letters(self, stream: str, group: str, *, limit: int = 100) -> list[DeadLetter]:
        """What this group has buried, oldest first."""
        ...

    async def requeue(self, dead_letter: DeadLetter, /) -> bool:
        """Deliver a dead letter again, to the group that buried it and to no other, as a first attempt. False: it is not there any more."""
        ...


class Subscribe(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber asks of a transport. `ConfigurationError` for a name that no stream or group can have."""

    streams: Sequence[str]
    group: str
    start: str | datetime = "0"
    """Where the group begins if it does not exist yet: ``"0"`` (everything), ``"$"`` (what comes), an entry id, a datetime."""
    lease: float = 30.0
    """Seconds after which a consumer that shows no sign of life loses what it holds."""
    max_crashes: int = 3
    """How often a delivery may take its process with it before it is buried."""
    ordered: bool = False
    """Whether one delivery is handled at a time: then what was given back comes before what is new, as it stands in the stream."""
    on_lost: Callable[[Delivery], None] | None = None
    """Called when another consumer has taken over a delivery that we still hold; what we say of it from then on changes nothing."""

    def __post_init__(self) -> None:
        for stream in self.streams:
            check_name("stream", stream)
        check_name("group", self.group)


class Subscription(Protocol):
    """A consumer at work. Its methods are for one subscriber; no two tasks may `receive` at once."""

    consumer: str
    """The name under which we hold deliveries; no two subscriptions share one."""

    held_until: float
    """Until when, by `time.monotonic`, nobody else can have taken over what we hold: each renewal moves it. Once it is past, a subscriber
    asks `confirm` before it starts a handler. `math.inf` where leases do not run out. A server's clock that was set, or a consumer of the
    group with a shorter lease, is not foreseen."""

    async def receive(self, limit: int, /) -> list[Delivery]:
        """Wait for deliveries; between 1 and `limit` of them, in stream order. Empty only after `stop`.

        What is returned is ours: its lease is renewed until it is settled or released. Errors of the connection are waited out; what the
        server refuses for good is raised.
        """
        ...

    def stop(self) -> None:
        """Read no more: `receive` returns what it has, and then nothing. May be called from any task, also twice."""
        ...

    def ack(self, delivery: Delivery, /) -> None:
        """It is handled. Sent soon, together with others; `flush` waits for it."""
        ...

    def settled(self, delivery: Delivery, /) -> None:
        """Nothing more will be said of it: the commit of its unit of work has settled it, it is not ours, or our process ends by it."""
        ...

    async def retry(self, delivery: Delivery, /, *, after: float, error: Exception | None = None) -> bool:
        """Deliver it again to this group after so many seconds, as the next attempt. False, and nothing happens, if it is not ours."""
        ...

    async def bury(self, delivery: Delivery, /, *, reason: str, error: BaseException | None = None) -> bool:
        """Move it to the dead letters of this group, with the story. False, and nothing happens, if it is not ours.

        While the dead letter cannot be written the delivery stays pending.
        """
        ...

    async def confirm(self) -> bool:
        """Wait until it is known which of what we hold is ours still, after the process or the server stood still for longer than a lease.

        What is not is `lost` then. While the server is away, that is waited for. False if we were stopped before it was known.
        """
        ...

    async def begin(self, delivery: Delivery, /) -> bool:
        """Count the start of a suspect, before its handler runs. False if it is not ours, or was now buried as a crash loop."""
        ...

    async def release(self, deliveries: Sequence[Delivery], /) -> None:
        """Give back what was not started: another consumer takes it soon, as the same attempt. So too what was begun and cancelled by us.

        A suspect that was not begun stays one, with its counted starts; any other is none from then on. What is not ours is left alone.
        """
        ...

    async def flush(self) -> None:
        """Wait until everything acked so far is settled."""
        ...


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One entry on its way to its handlers in a group.

    `stream` and `entry_id` say where it was published; `attempt` is 1 for the first and rises by one with each retry, over restarts and
    other consumers. `envelope` is what was published; a failed attempt leaves no trace in it.
    """

    stream: str
    group: str
    consumer: str
    entry_id: str
    fields: Sequence[bytes]
    """What the entry holds, names and values in turn, as bytes."""
    source: str = ""
    """For the transport: the stream in whose pending list it is, the shared one or the group's retry stream."""
    source_id: str = ""
    """Its id there."""
    attempt: int = 1
    first_failure: datetime | None = None
    last_error: str | None = None
    granted: int = 0
    """How many of the attempts before this one were put off by a `Retry` with a delay of its own: the policy does not count them."""
    suspect: bool = False
    """Whether its last consumer died with it in hand: it is started alone, and the start is counted."""
    lost: bool = False
    """Whether another consumer has taken it over, and may have settled it."""
    settled: bool = False
    """Whether the commit of its unit of work has settled it too."""
    committing: bool = False
    """Whether that commit was asked for, and what came of it is not known."""
    begun: bool = False
    """Whether its start, that of a suspect, may have been counted."""
    _envelope: Envelope | None = None

    def __repr__(self) -> str:
        return f"<delivery {self.entry_id} of {self.stream} to {self.group}, attempt {self.attempt}>"

    @property
    def stays_suspect(self) -> bool:
        """Whether it is a suspect also when it is given back now: one that nobody has started was cleared of nothing."""
        return self.suspect and not self.begun

    @property
    def envelope(self) -> Envelope:
        """The envelope; `DecodeError` if the entry is none."""
        if self._envelope is None:
            self._envelope = from_fields(self.fields, self.stream)

        return self._envelope


class Backlog(msgspec.Struct, frozen=True):
    """What a group has still to handle: entries nobody has read, entries in hand, and retries that wait for their time."""

    unread: int
    pending: int
    delayed: int
    next_in: float | None = None
    """Seconds until the next of those that wait becomes deliverable, as far as it is known."""

    def __bool__(self) -> bool:
        return bool(self.unread or self.pending or self.delayed)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that will not be tried again, and its story."""

    id: str
    """Its place among the dead letters of the group."""
    stream: str
    group: str
    consumer: str
    entry_id: str
    fields: Mapping[bytes, bytes]
    """The original entry, byte for byte."""
    attempts: int
    reason: str
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    first_failure: datetime
    last_failure: datetime

    @property
    def envelope(self) -> Envelope:
        """The envelope; `DecodeError` if the entry was none."""
        return from_fields([item for pair in self.fields.items() for item in pair], self.stream)


def utc(seconds: float) -> datetime:
    """A time in seconds since 1970 as a datetime."""
    return datetime.fromtimestamp(seconds, UTC)


def granted_after(delivery: Delivery, error: BaseException | None) -> int:
    """How many of its attempts the policy will not count when it comes again after this error."""
    return delivery.granted + (isinstance(error, Retry) and error.after is not None)


def start_position(start: str | datetime) -> str:
    """Where a new group begins, as an id: the entries after it are delivered. ``"$"`` is the end as it is then.

    A datetime is a time from which on entries are delivered, the moment itself included. `ConfigurationError` for anything else.
    """
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError(f"start={start!r} has no time zone; write datetime(…, tzinfo=UTC)")
        ms = max(0, math.ceil(start.timestamp() * 1000))
        return f"{ms - 1}-{2**64 - 1}" if ms else "0-0"
    if start == "$":
        return "$"
    if isinstance(start, str) and (found := _ENTRY_ID.fullmatch(start)) and max(int(found[1]), int(found[2] or 0)) < 2**64:
        return f"{found[1]}-{found[2] or 0}"

    raise ConfigurationError(
        f'start={start!r:.80}: a new group begins at "0" (everything), "$" (what comes), after an entry id like "1700000000000-0", '
        "or at a datetime"
    )


_ENTRY_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")


def new_consumer() -> str:
    """A name that no other consumer has: ``<host>-<pid>-<random>``."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-") or "host"

    return f"{host}-{os.getpid()}-{os.urandom(4).hex()}"
