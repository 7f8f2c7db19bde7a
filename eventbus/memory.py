"""`MemoryTransport`: streams, groups and everything a transport promises, in this process, without I/O. The executable specification.

It keeps the same contract as Redis (`eventbus.testing.TransportContract` runs over both), under asyncio and trio, and its clock can be
moved forward: a test of a delay of an hour takes no time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

import anyio

from eventbus.envelope import JSON, Codec, Envelope, decode, timestamp, to_fields
from eventbus.errors import PublishError, Refused, excerpt, excerpt_of_traceback, text_of
from eventbus.messages import Message, check_name
from eventbus.transport import Backlog, DeadLetter, Delivery, Subscribe, granted_after, new_consumer, start_position, utc

M = TypeVar("M", bound=Message)

PUBLISH_WINDOW = 600.0
"""Seconds, at least, for which an envelope id is remembered."""


class Clock:
    """Time that can be moved forward. It runs with the wall unless ``running=False``: then only `advance` moves it."""

    def __init__(self, *, running: bool = True) -> None:
        self._running = running
        self._offset = time.time() - (time.monotonic() if running else 0.0)
        self._sleepers: set[anyio.Event] = set()

    def time(self) -> float:
        """Seconds since 1970."""
        return self._offset + (time.monotonic() if self._running else 0.0)

    def advance(self, seconds: float) -> None:
        """Move the time forward, and wake whoever waited for it."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"advance({seconds!r}): time goes forward, by so many seconds")
        self._offset += seconds
        for sleeper in self._sleepers:
            sleeper.set()

    async def wait(self, event: anyio.Event, until: float | None) -> None:
        """Wait for the event, for the time, or for the clock to be moved, whichever is first."""
        self._sleepers.add(event)
        try:
            if until is None or not self._running:
                await event.wait()
            else:
                with anyio.move_on_after(max(0.0, until - self.time())):
                    await event.wait()
        finally:
            self._sleepers.discard(event)


class MemoryTransport:
    """Streams in this process.

    `events` and `messages` show what was published. The clock runs, and may be moved with ``transport.clock.advance(seconds)``;
    ``MemoryTransport(clock=Clock(running=False))`` stands still in between.
    """

    def __init__(self, stream: str = "events", *, codec: Codec = JSON, clock: Clock | None = None) -> None:
        self.stream: str = check_name("stream", stream)
        self.codec = codec
        self.clock: Clock = clock or Clock()
        self.envelopes: list[Envelope] = []
        """Every envelope that was published, in order."""
        self._streams: dict[str, _Stream] = {}
        self._changes = _Changes()
        self._holders = 0
        self._left = False

    def __repr__(self) -> str:
        return f"<MemoryTransport {len(self.envelopes)} published>"

    @property
    def events(self) -> list[dict[str, str | bytes]]:
        """Each published envelope as a mapping with ``id``, ``created_at``, ``type`` and ``payload``, as it lies in a stream."""
        return [
            {
                "id": envelope.id,
                "created_at": timestamp(envelope.created_at),
                "type": envelope.type,
                "payload": envelope.payload.decode() if envelope.content_type == JSON.content_type else envelope.payload,
            }
            for envelope in self.envelopes
        ]

    def messages(self, message_type: type[M]) -> list[M]:
        """The published messages of a type, decoded, in order."""
        return [
            decode(message_type, envelope.payload, envelope.content_type)
            for envelope in self.envelopes
            if envelope.type == message_type.metadata.type
        ]

    async def __aenter__(self) -> Self:
        self._holders += 1
        self._left = False

        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holders -= 1
        self._left = True

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        if self._left and self._holders == 0:
            raise PublishError.because(Refused("the transport is closed; enter it again"), envelopes, "not sent")
        names = [check_name("stream", envelope.stream or self.stream) for envelope in envelopes]
        entries = [[item.encode() if isinstance(item, str) else item for item in to_fields(envelope)] for envelope in envelopes]
        await anyio.lowlevel.checkpoint()
        ids: list[str] = []
        for name, envelope, fields in zip(names, envelopes, entries, strict=True):
            id, added = self._stream(name).add(envelope.id, fields, self.clock.time())
            ids.append(id)
            if added:
                self.envelopes.append(envelope)
        self._changes.happen()

        return ids

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncGenerator[MemorySubscription]:
        await anyio.lowlevel.checkpoint()
        groups: list[_Group] = []
        for name in request.streams:
            stream = self._stream(name)
            if request.group not in stream.groups:
                stream.groups[request.group] = _Group(stream, request.group, stream.position(request.start))
            groups.append(stream.groups[request.group])
        subscription = MemorySubscription(groups, request, self.clock, self._changes)
        self._holders += 1
        try:
            yield subscription
        finally:
            self._holders -= 1
            subscription.close()
            self._changes.happen()

    async def backlog(self, stream: str, group: str) -> Backlog:
        await anyio.lowlevel.checkpoint()
        found, state = self._found(stream, group)
        if state is None:
            return Backlog(unread=len(found.entries) if found else 0, pending=0, delayed=0)
        now = self.clock.time()
        times = [state.delayed[0][0]] if state.delayed else []
        times += [held.until for held in state.orphans.values()]

        return Backlog(
            unread=len(state.stream.entries) - state.position + len(state.retry),
            pending=len(state.pending),
            delayed=len(state.delayed),
            next_in=max(0.0, min(times) - now) if times else None,
        )

    async def dead_letters(self, stream: str, group: str, *, limit: int = 100) -> list[DeadLetter]:
        await anyio.lowlevel.checkpoint()
        _, state = self._found(stream, group)

        return list(itertools.islice(state.dead.values(), limit)) if state else []

    async def requeue(self, dead_letter: DeadLetter, /) -> bool:
        await anyio.lowlevel.checkpoint()
        _, state = self._found(dead_letter.stream, dead_letter.group)
        if state is None or state.dead.pop(dead_letter.id, None) is None:
            return False
        fields = [item for pair in dead_letter.fields.items() for item in pair]
        state.retry.append(_Again(dead_letter.entry_id, fields, state.next_id(), 1, None, None))
        self._changes.happen()

        return True

    def _found(self, stream: str, group: str) -> tuple[_Stream | None, _Group | None]:
        check_name("stream", stream)
        check_name("group", group)
        found = self._streams.get(stream)

        return found, found.groups.get(group) if found else None

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            self._streams[name] = _Stream(name)

        return self._streams[name]

    def next_change(self) -> anyio.Event:
        """An event that is set when something is published or settled, or a consumer comes to a stop: for tests that wait."""
        return self._changes.next()


class MemorySubscription:
    """A consumer of a `MemoryTransport`.

    A living one keeps its leases without doing anything for it. For tests it can be made to die (`abandon`) or to stand still (`freeze`,
    `thaw`), and its leases then run out as they would.
    """

    def __init__(self, groups: list[_Group], request: Subscribe, clock: Clock, changes: _Changes) -> None:
        self.consumer: str = new_consumer()
        self.held_until: float = math.inf
        self._groups = deque(groups)
        self._request = request
        self._clock = clock
        self._changes = changes
        self._held: dict[tuple[str, str], Delivery] = {}
        self._stopped = False
        self._frozen = False
        self._alive = True

    def __repr__(self) -> str:
        return f"<subscription {self.consumer} of {self._request.group}>"

    async def receive(self, limit: int, /) -> list[Delivery]:
        await anyio.lowlevel.checkpoint()
        while not self._stopped:
            if not self._frozen and (found := self._take(limit)):
                return found
            event = self._changes.next()
            try:
                await self._clock.wait(event, None if self._frozen else self._next())
            finally:
                self._changes.forget(event)

        return []

    def stop(self) -> None:
        self._stopped = True
        self._changes.happen()

    def ack(self, delivery: Delivery, /) -> None:
        if self._alive and (self._let_go(delivery) or not delivery.lost):
            self._group(delivery).settle(delivery)
            self._changes.happen()

    def settled(self, delivery: Delivery, /) -> None:
        if not self._let_go(delivery):
            return
        group = self._group(delivery)
        held = group.pending.get((delivery.source, delivery.source_id))
        if held is not None and held.owner == self.consumer:  # then nobody renews its lease any more
            group.orphan(held, self._clock.time() + self._request.lease, suspect=True)

    def _let_go(self, delivery: Delivery) -> bool:
        """Hold it no longer, and whether it was held. It may have come to us once more since it was lost: that one stays held."""
        key = delivery.source, delivery.source_id
        if self._held.get(key) is not delivery:
            return False
        del self._held[key]

        return True

    async def retry(self, delivery: Delivery, /, *, after: float, error: Exception | None = None) -> bool:
        group = await self._ours(delivery)
        if group is None:
            return False
        now = self._clock.time()
        again = _Again(
            delivery.entry_id,
            delivery.fields,
            group.next_id(),
            delivery.attempt + 1,
            delivery.first_failure or utc(now),
            excerpt(f"{type(error).__name__}: {text_of(error)}") if error is not None else delivery.last_error,
            granted_after(delivery, error),
        )
        heapq.heappush(group.delayed, (now + after, group.next_number(), again))
        self._settled(group, delivery)

        return True

    async def bury(self, delivery: Delivery, /, *, reason: str, error: BaseException | None = None) -> bool:
        group = await self._ours(delivery)
        if group is None:
            return False
        now = utc(self._clock.time())
        id = group.next_id()
        group.dead[id] = DeadLetter(
            id=id,
            stream=delivery.stream,
            group=delivery.group,
            consumer=self.consumer,
            entry_id=delivery.entry_id,
            fields=dict(zip(delivery.fields[::2], delivery.fields[1::2], strict=True)),
            attempts=delivery.attempt,
            reason=reason,
            error_type=type(error).__name__ if error is not None else "",
            error=excerpt(text_of(error), 2000) if error is not None else delivery.last_error or "",
            traceback=excerpt_of_traceback(error) if error is not None else "",
            first_failure=delivery.first_failure or now,
            last_failure=now,
        )
        self._settled(group, delivery)

        return True

    async def confirm(self) -> bool:
        while self._frozen and not self._stopped:
            event = self._changes.next()
            try:
                await event.wait()
            finally:
                self._changes.forget(event)

        return not self._frozen

    async def begin(self, delivery: Delivery, /) -> bool:
        delivery.begun = True
        group = await self._ours(delivery)
        if group is None:
            return False
        held = group.pending[delivery.source, delivery.source_id]
        if held.crashes >= self._request.max_crashes:
            await self.bury(delivery, reason="crash loop")
            return False
        held.crashes += 1

        return True

    async def release(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            group = None if delivery.lost else await self._ours(delivery)  # lost, it may be ours again as another delivery
            if group is not None:
                held = group.pending[delivery.source, delivery.source_id]
                group.orphan(held, 0.0, suspect=delivery.stays_suspect)
                self._held.pop((delivery.source, delivery.source_id), None)
        self._changes.happen()

    async def flush(self) -> None:
        await anyio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """Vanish without a word, as a killed process would: nothing more is settled, and the leases run out."""
        self.freeze()
        self._alive = False

    def freeze(self) -> None:
        """Stand still, as a stopped process would: the leases are not renewed, and nothing is received."""
        if self._frozen:
            return
        self._frozen, self.held_until = True, -math.inf
        until = self._clock.time() + self._request.lease
        for delivery in self._held.values():
            group = self._group(delivery)
            held = group.pending.get((delivery.source, delivery.source_id))
            if held is not None and held.owner == self.consumer:
                group.orphan(held, until, suspect=True)
        self._changes.happen()

    def thaw(self) -> None:
        """Go on: leases that are still ours are renewed, and those that are not are reported as lost. The dead stay dead."""
        if not self._alive:
            return
        self._frozen, self.held_until = False, math.inf
        for key, delivery in list(self._held.items()):
            group = self._group(delivery)
            held = group.pending.get(key)
            if held is not None and held.owner == self.consumer:
                group.orphans.pop(key, None)
            else:
                del self._held[key]
                delivery.lost = True
                if self._request.on_lost is not None:
                    self._request.on_lost(delivery)
        self._changes.happen()

    def close(self) -> None:
        """Give back whatever is still held."""
        if self._alive:
            self._stopped = True
            for key, delivery in self._held.items():
                group = self._group(delivery)
                held = group.pending.get(key)
                if held is not None and held.owner == self.consumer:
                    group.orphan(held, 0.0, suspect=delivery.stays_suspect)
            self._held.clear()
            self._changes.happen()

    def _take(self, limit: int) -> list[Delivery]:
        """What there is, from each stream in turn: the one that was asked first is asked last the next time, so that none goes short."""
        found: list[Delivery] = []
        now = self._clock.time()
        for group in self._groups:
            found += group.take(self, now, limit - len(found))
        self._groups.rotate(-1)
        for delivery in found:
            self._held[delivery.source, delivery.source_id] = delivery

        return found

    def _next(self) -> float | None:
        """When something may become deliverable by itself."""
        times = [group.delayed[0][0] for group in self._groups if group.delayed]
        times += [held.until for group in self._groups for held in group.orphans.values()]

        return min(times) if times else None

    async def _ours(self, delivery: Delivery) -> _Group | None:
        await anyio.lowlevel.checkpoint()
        group = self._group(delivery)
        held = group.pending.get((delivery.source, delivery.source_id))

        return group if self._alive and held is not None and held.owner == self.consumer else None

    def _settled(self, group: _Group, delivery: Delivery) -> None:
        self._held.pop((delivery.source, delivery.source_id), None)
        group.settle(delivery)
        self._changes.happen()

    def _group(self, delivery: Delivery) -> _Group:
        return next(group for group in self._groups if group.stream.name == delivery.stream)


class _Changes:
    """Wakes whoever waits for something to happen."""

    def __init__(self) -> None:
        self._waiting: set[anyio.Event] = set()

    def next(self) -> anyio.Event:
        event = anyio.Event()
        self._waiting.add(event)

        return event

    def forget(self, event: anyio.Event) -> None:
        self._waiting.discard(event)

    def happen(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for event in waiting:
            event.set()


class _Stream:
    """Entries in order, and the ids that were published lately."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[tuple[str, list[bytes]]] = []
        self.groups: dict[str, _Group] = {}
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._last = (0, 0)

    def add(self, envelope_id: str, fields: list[bytes], now: float) -> tuple[str, bool]:
        """The entry id of the envelope with that id, and whether it was added now."""
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest][1] > now - PUBLISH_WINDOW:
                break
            del self._known[oldest]
        if envelope_id in self._known:
            return self._known[envelope_id][0], False
        ms = int(now * 1000)
        self._last = (ms, 0) if ms > self._last[0] else (self._last[0], self._last[1] + 1)
        id = f"{self._last[0]}-{self._last[1]}"
        self.entries.append((id, fields))
        self._known[envelope_id] = (id, now)

        return id, True

    def position(self, start: str | datetime) -> int:
        """How many entries lie before the start of a group."""
        at = start_position(start)
        if at == "$":
            return len(self.entries)
        wanted = _ordinal(at)

        return sum(1 for id, _ in self.entries if _ordinal(id) <= wanted)


class _Group:
    """What a group has read of a stream, what is pending, and what waits."""

    def __init__(self, stream: _Stream, name: str, position: int) -> None:
        self.stream = stream
        self.name = name
        self.position = position
        self.pending: dict[tuple[str, str], _Held] = {}
        self.orphans: dict[tuple[str, str], _Held] = {}  # those of the pending whose lease nobody renews
        self.retry: deque[_Again] = deque()
        self.delayed: list[tuple[float, int, _Again]] = []
        self.dead: dict[str, DeadLetter] = {}
        self.settled = 0
        self._numbers = itertools.count(1)
        self._retry_stream = f"{{{stream.name}}}:retry:{name}"

    def next_number(self) -> int:
        return next(self._numbers)

    def next_id(self) -> str:
        return f"{self.next_number()}-0"

    def settle(self, delivery: Delivery) -> None:
        key = (delivery.source, delivery.source_id)
        self.orphans.pop(key, None)
        if self.pending.pop(key, None) is not None:
            self.settled += 1

    def orphan(self, held: _Held, until: float, *, suspect: bool) -> None:
        """From that time on another consumer may claim it. The counted starts of what is no suspect are forgotten."""
        held.until, held.suspect = until, suspect
        if not suspect:
            held.crashes = 0
        self.orphans[held.source, held.id] = held

    def take(self, subscription: MemorySubscription, now: float, limit: int) -> Iterator[Delivery]:
        """Up to `limit` deliveries for a consumer: what others left, what is due again, what is new."""
        while self.delayed and self.delayed[0][0] <= now:
            self.retry.append(heapq.heappop(self.delayed)[2])
        for held in [held for held in self.orphans.values() if held.until <= now][: max(0, limit)]:
            del self.orphans[held.source, held.id]
            held.owner = subscription.consumer
            limit -= 1
            yield self._delivery(held, subscription.consumer)
        while self.retry and limit > 0:
            limit -= 1
            again = self.retry.popleft()
            held = _Held(again, self._retry_stream, again.id, subscription.consumer)
            self.pending[held.source, held.id] = held
            yield self._delivery(held, subscription.consumer)
        while self.position < len(self.stream.entries) and limit > 0:
            limit -= 1
            id, fields = self.stream.entries[self.position]
            self.position += 1
            held = _Held(_Again(id, fields, id, 1, None, None), self.stream.name, id, subscription.consumer)
            self.pending[held.source, held.id] = held
            yield self._delivery(held, subscription.consumer)

    def _delivery(self, held: _Held, consumer: str) -> Delivery:
        entry = held.entry

        return Delivery(
            self.stream.name,
            self.name,
            consumer,
            entry.entry_id,
            tuple(entry.fields),
            source=held.source,
            source_id=held.id,
            attempt=entry.attempt,
            first_failure=entry.first_failure,
            last_error=entry.last_error,
            granted=entry.granted,
            suspect=held.suspect,
        )


class _Again:
    """An entry as a group has it: the original, and how often it was tried."""

    __slots__ = ("attempt", "entry_id", "fields", "first_failure", "granted", "id", "last_error")

    def __init__(
        self,
        entry_id: str,
        fields: Sequence[bytes],
        id: str,
        attempt: int,
        first_failure: datetime | None,
        last_error: str | None,
        granted: int = 0,
    ) -> None:
        self.entry_id, self.fields, self.id, self.attempt = entry_id, fields, id, attempt
        self.first_failure, self.last_error, self.granted = first_failure, last_error, granted


class _Held:
    """An entry in the pending list: whose it is, and until when if the owner does not renew it."""

    __slots__ = ("crashes", "entry", "id", "owner", "source", "suspect", "until")

    def __init__(self, entry: _Again, source: str, id: str, owner: str) -> None:
        self.entry, self.source, self.id = entry, source, id
        self.owner = owner
        self.until = 0.0  # once it is an orphan
        self.suspect = False  # whether its last owner may have died of it
        self.crashes = 0


def _ordinal(id: str) -> tuple[int, int]:
    ms, _, number = id.partition("-")

    return int(ms), int(number or 0)
