"""A consumer on Redis: reads, keeps its leases, and settles.

The reader (`receive`) does in turn what is due: move delayed entries, sweep for what the dead left, read its own pending entries again after
a failure, and else read on, blocking no longer than until the next of these is due. Acks go out in the same write as the next read, or by a
short timer on a second connection while the reader blocks. A task beside it renews the leases and settles what the server refused to take,
and another is the janitor.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, cast

import anyio

from eventbus.errors import Full, TransportError, Unavailable, only_one
from eventbus.gate import Gate
from eventbus.redis.acks import PER_CALL, Acks, counter
from eventbus.redis.audit import audit, count
from eventbus.redis.dead_letters import dead_letter_words
from eventbus.redis.entries import delivery_of, retried_entry
from eventbus.redis.keys import Keys
from eventbus.redis.link import REPLY_TIMEOUT, Channel, Endpoint, Link, checked, field_of, group_is_gone
from eventbus.redis.retention import Retention, prune, trim
from eventbus.redis.scripts import ACK, BEGIN, BURY, DUE, GLANCE, JOIN, REAP, RELEASE, RENEW, RETRY, SWEEP
from eventbus.transport import Delivery, Subscribe, new_consumer, start_position

logger: Final = logging.getLogger("eventbus.redis")

BLOCK: Final = 2.0
"""Seconds that a read waits for entries, at the most. A line that has gone silent is noticed `REPLY_TIMEOUT` after that."""
SWEEP_EVERY: Final = 5.0
"""Seconds between two sweeps, give or take a fifth."""
ACK_WITHIN: Final = 0.01
"""Seconds after which acks are sent even if no read goes out that could carry them."""
TIDY_EVERY: Final = 60.0
"""Seconds between two rounds of the janitor: dead consumers, old entries, dead letters, audit."""
AUDIT_SHARE: Final = 0.01
"""Part of its time that a consumer spends on audits at the most: they count what is unread, and take long while that is much."""
DEAD_AFTER: Final = 600.0
"""Seconds of silence after which a consumer that holds nothing is removed."""
MOST_UNSETTLED: Final = 10_000
"""Deliveries that wait for the server to take their verdict, at the most; then nothing more is read until it does."""
SETTLED_TOGETHER: Final = 100
"""Of these, how many go in one write once the server takes them. Leases are renewed in between."""
RELEASED_IDLE: Final = 10**11
"""Milliseconds: no consumer that is away is silent for three years, and what was released has been idle for ten."""
LEAVE_WITHIN: Final = 3.0
"""Seconds for the last words to the server when we leave."""

_PLACES: Final = {"checkpoint": "its checkpoint", "start": "where it was when we joined", "beginning": "the beginning"}

Key = tuple[str, str]
"""Where a delivery is pending: its source and its id there."""


class RedisSubscription:
    """One consumer of one group on some streams. Made by `join`."""

    def __init__(self, endpoint: Endpoint, request: Subscribe, retention: Retention) -> None:
        self.consumer: str = new_consumer()
        self.held_until: float = time.monotonic() + request.lease
        self._endpoint = endpoint
        self._request = request
        self._retention = retention
        self._keys = [Keys(stream, request.group) for stream in request.streams]
        self._sources = {source: keys for keys in self._keys for source in (keys.stream, keys.retry)}
        self._turns = deque(self._sources)
        self._generous: list[str] = []
        self._reader = Link(endpoint)
        self._reader_id: int | None = None
        self._plan = ""
        self._reading = False
        self._busy = True
        self._control = Channel(endpoint)
        self._gate = Gate(f"{'+'.join(request.streams)}/{request.group}", logger)
        self._stopped = asyncio.Event()
        self._abandoned = False
        self._broken: TransportError | None = None
        self._held: dict[Key, Delivery] = {}
        self._unsettled: dict[Key, tuple[Any, ...]] = {}
        self._acks = Acks(request.group, self._sources)
        self._flush_timer: asyncio.Handle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._ready: deque[Delivery] = deque()
        self._own: dict[str, str] = {}
        """Sources to be read again for what is pending for us, each behind this id."""
        self._sweeping = False
        self._sweep_next = False
        """Whether it is the turn of a sweep, where there is one to do: what was left may be much, and what is new waits for it only where
        order matters."""
        self._began: dict[str, str] = {}
        """Where our group was on each stream when we joined it."""
        self._doubtful = False
        """Whether a sweep had no answer, so that what is pending for us may be what a dead process held."""
        self._cursors: dict[str, str] = dict.fromkeys(self._sources, "0-0")
        self._answered = time.monotonic()
        self._sweep_at = 0.0
        self._released_only_until = -math.inf
        """Until then a sweep takes only what was given back: who is alive has not renewed since the server was away."""
        self._to_sweep: deque[str] = deque()
        """Sources where something is pending that this sweep has not looked at."""
        self._due_at: dict[str, float] = {keys.stream: math.inf for keys in self._keys}
        self._tidy_at = time.monotonic() + TIDY_EVERY * random.random()
        self._audited: dict[str, tuple[int, int]] = {}
        self._audit_every: dict[str, float] = {}
        self._woken = asyncio.Event()
        """Set when the task that keeps the leases has something to do at once."""
        self._to_renew = False
        self._oldest = math.inf
        """When the oldest read was asked for whose deliveries have come since the last renewal began, which did not cover them."""
        self._renewed_at = -math.inf
        """When the last renewal began that succeeded."""
        self._renewed = asyncio.Event()
        """Set, and replaced, when a renewal has succeeded or we are told to stop."""
        self._asides: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<subscription {self.consumer} of {self._gate.title} on {self._endpoint}>"

    @property
    def reconnects(self) -> int:
        return self._gate.reconnects

    @classmethod
    @asynccontextmanager
    async def join(cls, endpoint: Endpoint, request: Subscribe, retention: Retention) -> AsyncGenerator[RedisSubscription, None]:
        """Enter the group; leave it at the end, giving back what is still held. A server that is not there yet is waited for."""
        subscription = cls(endpoint, request, retention)
        try:
            while not await subscription._made_groups():
                pass
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(subscription._keep)
                tasks.start_soon(subscription._keep_tidy)
                try:
                    yield subscription
                finally:
                    with anyio.CancelScope(shield=True):
                        await subscription._leave()
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only_one(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                await subscription._close()

    # --------------------------------------------------------------------------------------------------------- receive

    async def receive(self, limit: int, /) -> list[Delivery]:
        while not self._stopped.is_set():
            if self._broken is not None:
                raise self._broken
            if self._abandoned:
                await asyncio.Event().wait()
            asked, left_over = time.monotonic(), bool(self._ready)
            if len(self._unsettled) >= MOST_UNSETTLED:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), 0.1)
                continue
            try:
                found = await self._receive(limit)
            except Unavailable as exc:
                await self._reader.close()
                if self._abandoned:
                    continue
                self._own = dict.fromkeys(self._sources, "0")
                self._doubtful, self._sweeping = self._doubtful or self._sweeping, False
                self._let_others_renew()
                if group_is_gone(exc):
                    await self._heal(exc)
                else:
                    await self._gate.wait(exc, self._stopped)
            except Full as exc:
                self._own = dict.fromkeys(self._sources, "0")
                self._sweeping = False  # it has claimed nothing
                await self._gate.wait(exc, self._stopped)
            else:
                self._answered = time.monotonic()
                self._gate.passed()
                if found:
                    self._oldest = min(self._oldest, asked)
                    until = asked + self._request.lease
                    all_is_new = not left_over and len(self._held) == len(found) + len(self._ready)
                    self.held_until = until if all_is_new else min(self.held_until, until)
                    return found

        return []

    def stop(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._renewed.set()
            self._unblock()

    async def confirm(self) -> bool:
        asked = time.monotonic()
        # Where a renewal takes longer than a lease, one that has begun since then, and covered all, is as good an answer as can be had.
        while asked > self.held_until and asked > min(self._renewed_at, self._oldest):
            if self._stopped.is_set():
                return False
            self._renew_soon()
            await self._renewed.wait()

        return True

    async def _receive(self, limit: int) -> list[Delivery]:
        """One turn of the reader: what is due, else what is new."""
        if self._ready:
            return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        if not self._reader.connected:
            await self._reader.open()
            self._meet(await self._reader.run(("HELLO",)))
        now = time.monotonic()
        if now >= self._sweep_at and not self._to_sweep:
            await self._glance(now)
        await self._move_due(now)
        self._sweep_next = not self._sweep_next or self._request.ordered
        if self._to_sweep and self._sweep_next and (found := await self._sweep(limit)):
            return found
        if self._own and (found := await self._read_own(limit)):
            return found

        return await self._read(limit)

    def _meet(self, server: Any) -> None:
        """Take in what the server says of itself and of this connection."""
        self._reader_id = field_of(server, b"id")
        name, version = field_of(server, b"server").decode(), field_of(server, b"version").decode()
        counted_by = "the server" if int(version.partition(".")[0]) >= 7 else "who publishes"  # entries-added came with Redis 7.0
        plan = f"{name} {version}, RESP{field_of(server, b'proto')}; what is added is counted by {counted_by}"
        if plan != self._plan:
            self._plan = plan
            logger.debug("%s: %s", self._gate.title, plan)

    async def _read(self, limit: int) -> list[Delivery]:
        """What is new, waiting for it; acks go along.

        COUNT holds per stream, so a limit is divided: while there is much to read, most of it goes to the streams and the rest to the
        retry streams, without waiting. Only when all are empty does one read wait on all of them.
        """
        if self._busy and limit < len(self._sources):
            if found := await self._read_some(limit):
                return found
        elif self._busy:
            streams, retries = [keys.stream for keys in self._keys], [keys.retry for keys in self._keys]
            share = max(1, limit // (8 * len(retries)))
            rest = max(1, (limit - share * len(retries)) // len(streams))
            found = await self._ask(
                [self._xreadgroup(share, None, *retries), self._xreadgroup(rest, None, *streams)], REPLY_TIMEOUT
            )
            if found:
                return found
        wait = 0.0 if self._to_sweep else min([self._sweep_at, *self._due_at.values()]) - time.monotonic()
        block = max(1, int(min(BLOCK, wait) * 1000))
        began = time.monotonic()
        if self._stopped.is_set():  # while something else was awaited: then nobody ends a read that waits
            return []
        self._reading = True
        try:
            found = await self._ask(
                [self._xreadgroup(max(1, limit // len(self._sources)), block, *self._sources)], block / 1000 + REPLY_TIMEOUT
            )
        finally:
            self._reading = False
        self._busy = bool(found)
        if time.monotonic() - began > block / 1000 + 1:
            self._let_others_renew()
        self._ready.extend(found[limit:])

        return found[:limit]

    async def _read_some(self, limit: int) -> list[Delivery]:
        """What is new, without waiting, where there are more streams than are wanted deliveries.

        Each gives one in its turn, so that none goes short; most come from those few that gave something the last time.
        """
        asked = 0
        while asked < len(self._sources):
            share = max(1, limit // 8) if self._generous else limit
            some = list(islice(self._turns, share))
            self._turns.rotate(-share)
            asked += share
            reads = [self._xreadgroup(1, None, *some)]
            generous = [source for source in self._generous if source not in some][: min(4, limit - share)]
            if generous:
                reads.append(self._xreadgroup((limit - share) // len(generous), None, *generous))
            found = await self._ask(reads, REPLY_TIMEOUT)
            self._generous = list(dict.fromkeys(delivery.source for delivery in found))
            if found:
                return found

        return []

    async def _ask(self, reads: list[tuple[Any, ...]], timeout: float) -> list[Delivery]:
        """Acks and reads in one write; what the reads brought."""
        replies = await self._call_behind_acks(self._reader, *reads, timeout=timeout)
        # All of them are looked at before anything is held: what is held is not read again, and one read may fail beside another.
        brought = [checked(reply, self._endpoint) for reply in replies]

        return [found for reply in brought for found in self._deliveries(reply)]

    async def _call_behind_acks(
        self, server: Link | Channel, *commands: tuple[Any, ...], timeout: float = REPLY_TIMEOUT
    ) -> list[Any]:
        """All acks that wait, then these commands, in one write; the replies to these."""
        batch = self._acks.take()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        acks = batch.commands if batch is not None else []
        try:
            replies = await server.call(*acks, *commands, timeout=timeout)
        except BaseException:
            if batch is not None:
                self._acks.put_back(batch)
            raise
        if batch is not None:
            self._acks.done(batch, replies[: len(acks)])

        return replies[len(acks) :]

    def _xreadgroup(self, count: int, block: int | None, *sources: str) -> tuple[Any, ...]:
        waiting = () if block is None else ("BLOCK", block)
        marks = [">"] * len(sources)

        return ("XREADGROUP", "GROUP", self._request.group, self.consumer, "COUNT", count, *waiting, "STREAMS", *sources, *marks)

    def _let_others_renew(self) -> None:
        """The server was away or stood still, and leases may have run out meanwhile: who is alive renews first, then we sweep.

        Not so after a short trouble, or a line that is cut again and again would keep us from sweeping at all.
        """
        now = time.monotonic()
        if now - self._answered > self._request.lease / 3:
            if self._request.ordered:  # what was given back is nobody's, and comes before what is new
                self._released_only_until = now + self._request.lease / 2
            else:
                self._sweep_at = max(self._sweep_at, now + self._request.lease / 2)
                self._to_sweep.clear()
        self._renew_soon()

    async def _read_own(self, limit: int) -> list[Delivery]:
        """What is pending for us and not in hand: after a failure, what was on its way to us when it happened.

        After one of a sweep it may be what a dead process held. Nobody knows which of it, so all of it is suspect.
        """
        while self._own:
            source, after = next(iter(self._own.items()))
            known = self._in_hand(source)
            reply = await self._reader.run(
                ("XREADGROUP", "GROUP", self._request.group, self.consumer, "COUNT", 100, "STREAMS", source, after)
            )
            entries = _streams(reply).get(source, [])
            if not entries:
                del self._own[source]
                continue
            known |= self._in_hand(source)
            found: list[Delivery] = []
            vanished = [text for id, fields in entries if not fields and (text := id.decode()) not in known]
            if vanished:  # first, for it may fail, and what is held by then would be forgotten
                await self._vanished(source, vanished)
            for id, fields in entries:
                text = id.decode()
                if fields and text not in known:
                    if len(found) == limit:
                        break
                    found.append(self._hold(source, id, fields, suspect=self._doubtful))
                self._own[source] = text
            if found:
                return found
        self._doubtful = False

        return []

    def _in_hand(self, source: str) -> set[str]:
        """What is held, and what is handled and may be pending still. Asked for before the server is and after: an entry that is settled in
        between, over the other connection, may stand in the reply.
        """
        return {id for of, id in self._held if of == source} | self._acks.of(source)

    async def _glance(self, now: float) -> None:
        """Begin a sweep: see where anything is pending or delayed. Where nothing is, that was it."""
        replies = await self._reader.call(*self._glances())
        for keys, reply in zip(self._keys, replies, strict=True):
            pending, again, delayed = checked(reply, self._endpoint)
            self._to_sweep += [source for source, n in ((keys.stream, pending), (keys.retry, again)) if n]
            if delayed:
                self._due_at[keys.stream] = now
        self._sweep_at = now + min(SWEEP_EVERY, max(0.05, self._request.lease / 2)) * random.uniform(0.8, 1.2)

    def _glances(self) -> list[tuple[Any, ...]]:
        args = (self._request.group,)

        return [GLANCE.call(keys.stream, keys.retry, keys.delayed, keys.state, args=args) for keys in self._keys]

    async def _sweep(self, limit: int) -> list[Delivery]:
        """What other consumers left longer than a lease ago."""
        released_only = time.monotonic() < self._released_only_until
        lease = RELEASED_IDLE if released_only else int(self._request.lease * 1000)
        while self._to_sweep:
            source = self._to_sweep[0]
            keys = self._sources[source]
            while True:
                self._sweeping = True
                held = [delivery for (of, _), delivery in self._held.items() if of == source]
                known = self._acks.of(source)
                page = await self._reader.run(
                    SWEEP.call(
                        source, keys.state,
                        args=(
                            self._request.group, self.consumer, lease, self._cursors[source], min(limit, 100),
                            int(source == keys.stream),
                        ),
                    )
                )  # fmt: skip
                self._sweeping = False
                cursor, claimed, vanished, back = page
                self._cursors[source] = cursor.decode()
                if back:
                    logger.warning("%s: the server's clock went back; leases on %s begin anew", self._gate.title, source)
                if vanished:
                    self._say_vanished(source, [id.decode() for id in vanished])
                # What we held before, unless it was lost meanwhile: then the sweep has brought it back.
                known |= self._in_hand(source) | {delivery.source_id for delivery in held if not delivery.lost}
                found = [
                    self._hold(source, id, fields, suspect=count != 0)
                    for id, count, fields in claimed
                    if id.decode() not in known
                ]
                if found:
                    return found  # and go on from the cursor at once
                if self._cursors[source] == "0-0":
                    break
            self._to_sweep.popleft()

        return []

    async def _move_due(self, now: float) -> None:
        for keys in self._keys:
            if now < self._due_at[keys.stream]:
                continue
            self._due_at[keys.stream] = math.inf  # earlier again if a retry is asked for meanwhile, which the script may not see
            try:
                moved, due, unreadable = await self._reader.run(
                    DUE.call(keys.delayed, keys.delayed_entries, keys.retry, keys.state, args=(100,))
                )
            except Full as exc:
                logger.warning("%s: what is due waits, and what is there is read: %s", self._gate.title, exc)
                self._due_at[keys.stream] = min(self._due_at[keys.stream], now + SWEEP_EVERY)
                continue
            except BaseException:
                self._due_at[keys.stream] = now
                raise
            if moved == 100:
                due = 0
            if due >= 0:
                self._due_at[keys.stream] = min(self._due_at[keys.stream], now + due / 1000)
            for member in unreadable:
                logger.error(
                    "%s: the delayed entry %r cannot be read and was set aside in %s",
                    self._gate.title,
                    member,
                    keys.delayed_entries,
                )

    def _deliveries(self, reply: Any) -> list[Delivery]:
        found: list[Delivery] = []
        held, consumer = self._held, self.consumer
        for source, entries in _streams(reply).items():
            keys = self._sources[source]
            stream, group, shared = keys.stream, keys.group, source == keys.stream
            for id, fields in entries:
                if fields:
                    if shared:  # as `delivery_of` would make it
                        text = id.decode()
                        delivery = Delivery(stream, group, consumer, text, fields, stream, text)
                    else:
                        delivery = delivery_of(keys, consumer, source, id, fields)
                    held[source, delivery.source_id] = delivery
                    found.append(delivery)

        return found

    def _hold(self, source: str, id: bytes, fields: Sequence[bytes], *, suspect: bool = False) -> Delivery:
        delivery = delivery_of(self._sources[source], self.consumer, source, id, fields, suspect=suspect)
        self._held[source, delivery.source_id] = delivery

        return delivery

    # ---------------------------------------------------------------------------------------------------------- settle

    def ack(self, delivery: Delivery, /) -> None:
        if not self._let_go(delivery) and delivery.lost:
            return
        self._acks.add(delivery)
        if self._flush_timer is None:  # looked at here too, since it is not for most acks: a call less for each
            self._flush_later()

    def settled(self, delivery: Delivery, /) -> None:
        self._let_go(delivery)

    def _let_go(self, delivery: Delivery) -> bool:
        """Hold it no longer, and whether it was held. It may have come to us once more since it was lost: that one stays held."""
        key = (delivery.source, delivery.source_id)
        if self._held.get(key) is not delivery:
            return False
        del self._held[key]

        return True

    async def retry(self, delivery: Delivery, /, *, after: float, error: Exception | None = None) -> bool:
        keys = self._sources[delivery.source]
        command = RETRY.call(
            delivery.source, keys.delayed, keys.delayed_entries, keys.state,
            args=(
                self._request.group, self.consumer, delivery.source_id, counter(keys, delivery.source), int(after * 1000),
                retried_entry(delivery, error, datetime.now(UTC)),
            ),
        )  # fmt: skip
        settled = await self._settle(delivery, command)
        if settled:
            due = time.monotonic() + after
            if due < self._due_at[keys.stream]:
                self._due_at[keys.stream] = due
                if after < BLOCK:
                    self._unblock()

        return settled

    async def bury(self, delivery: Delivery, /, *, reason: str, error: BaseException | None = None) -> bool:
        return await self._settle(delivery, self._burial(delivery, reason, error))

    def _burial(self, delivery: Delivery, reason: str, error: BaseException | None = None) -> tuple[Any, ...]:
        keys = self._sources[delivery.source]
        words = dead_letter_words(delivery, self.consumer, reason, error, datetime.now(UTC))

        return BURY.call(
            delivery.source, keys.dead, keys.state,
            args=(self._request.group, self.consumer, delivery.source_id, counter(keys, delivery.source), *words),
        )  # fmt: skip

    async def begin(self, delivery: Delivery, /) -> bool:
        delivery.begun = True
        state = self._sources[delivery.source].state
        mark = secrets.token_hex(4)  # asked again after a lost reply, this start is counted once
        command = BEGIN.call(delivery.source, state, args=(self._request.group, self.consumer, delivery.source_id, mark))
        while True:
            if self._abandoned:
                await asyncio.Event().wait()
            try:  # first the ack of the suspect before: if this one takes the process with it, that one is not to be counted again
                [reply] = await self._call_behind_acks(self._control, command)
                starts = checked(reply, self._endpoint)
                break
            except (Unavailable, Full) as exc:
                if group_is_gone(exc):  # and this with it. The reader makes it again, which may have no room before we are done
                    self._let_go(delivery)
                    delivery.lost = True
                    return False
                if self._stopped.is_set():  # not counted, and so not started; given back when we leave
                    delivery.lost = True
                if delivery.lost:
                    return False
                await self._gate.wait(exc, self._stopped)
        if starts == 0:  # held no longer, or it would be renewed and never handled, should a sweep bring it back to us
            self._lose(delivery.source, delivery.source_id)
            delivery.lost = True
            return False
        if starts > self._request.max_crashes:
            await self._settle(delivery, self._burial(delivery, "crash loop"), handled=False)
            return False

        return True

    async def release(self, deliveries: Sequence[Delivery], /) -> None:
        alike: dict[tuple[str, bool], list[str]] = {}
        for delivery in deliveries:
            if self._let_go(delivery):
                alike.setdefault((delivery.source, delivery.stays_suspect), []).append(delivery.source_id)
        for (source, suspect), ids in alike.items():
            state = self._sources[source].state
            for at in range(0, len(ids), PER_CALL):
                try:
                    await self._control.run(
                        RELEASE.call(
                            source, state, args=(self._request.group, self.consumer, int(suspect), *ids[at : at + PER_CALL])
                        )
                    )
                except TransportError as exc:
                    logger.warning(
                        "%s: %d deliveries could not be given back, their lease runs out instead: %s",
                        self._gate.title,
                        len(ids),
                        exc,
                    )

    async def flush(self) -> None:
        while self._acks or self._acks.under_way:
            if self._broken is not None:
                raise self._broken
            self._flush_soon()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])
            else:
                await asyncio.sleep(0.001)

    def abandon(self) -> None:
        """Vanish without a word, as a killed process would: for tests. Nothing more is settled, and the leases run out."""
        self._abandoned = True
        self._acks.forget()
        self._unsettled.clear()
        if self._reader.connected:
            self._aside(self._reader.close())

    async def _settle(self, delivery: Delivery, command: tuple[Any, ...], *, handled: bool = True) -> bool:
        """Run an owner-checked settlement; what the server cannot take now is settled later, and stays ours until then.

        That may take longer than processes live. The counted starts of a suspect whose handler came to an end are forgotten at once.
        """
        if self._abandoned:
            return False
        key = (delivery.source, delivery.source_id)
        try:
            reply = await self._control.run(command)
        except (Unavailable, Full) as exc:
            if self._held.get(key) is not delivery:
                return False
            level = logging.DEBUG if self._unsettled else logging.WARNING  # or a full server would fill the log
            self._unsettled[key] = command
            if delivery.suspect and handled:
                self._acks.forget_starts(delivery)
                self._flush_later()
            if isinstance(exc, Full):
                self._woken.set()
            else:
                self._renew_soon()
            logger.log(level, "%s: %s is not settled yet: %s", self._gate.title, delivery.source_id, exc)
            return True
        self._let_go(delivery)

        return bool(reply)

    def _flush_later(self) -> None:
        if self._flush_timer is None and self._flushing is None:
            within = ACK_WITHIN if self._held else ACK_WITHIN / 10  # not at once: the next read may be about to go out
            self._flush_timer = asyncio.get_running_loop().call_later(within, self._flush_soon)

    def _flush_soon(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._flushing is None and self._acks and not self._abandoned:
            self._flushing = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        """Send acks on the control connection until none wait; a failure waits at the gate, and what is fatal ends the reading."""
        try:
            while self._acks:
                await self._call_behind_acks(self._control)
        except (Unavailable, Full) as exc:
            await self._gate.wait(exc, at_most=self._patience)
            self._flush_timer = asyncio.get_running_loop().call_soon(self._flush_soon)  # once this task has ended
        except TransportError as exc:
            self._broken = exc
            self._unblock()
        finally:
            self._flushing = None

    # ------------------------------------------------------------------------------------------------------------ keep

    async def _keep(self) -> None:
        """Renew the leases, and settle what could not be settled."""
        beat = self._request.lease / 3
        next_beat = time.monotonic() + beat
        while True:
            await self._pause(min(next_beat - time.monotonic(), 0.5 if self._unsettled else beat))
            if self._abandoned:
                return
            try:
                if time.monotonic() >= next_beat or self._to_renew:
                    self._to_renew = False
                    try:
                        await self._renew()
                        next_beat = time.monotonic() + beat
                    except Full:  # a full memory lets leases be renewed; a full disk does not
                        next_beat = time.monotonic() + min(0.5, beat)
                if self._unsettled:
                    with suppress(Full):  # tried again after a pause
                        await self._settle_again(until=next_beat)
            except Unavailable as exc:
                await self._gate.wait(exc, at_most=self._patience)
                next_beat = time.monotonic()

    async def _pause(self, seconds: float) -> None:
        """So long, or until something is to be done at once."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), max(0.0, seconds))
        self._woken.clear()

    def _renew_soon(self) -> None:
        self._to_renew = True
        self._woken.set()

    @property
    def _patience(self) -> float:
        """Seconds between two attempts to reach the server at the most, for who has leases that run out meanwhile."""
        return max(1.0, self._request.lease / 4)

    async def _keep_tidy(self) -> None:
        """Do the janitor's round about once a minute. It takes long where there is much to do, and no lease waits for it."""
        while not self._abandoned:
            await asyncio.sleep(max(0.0, self._tidy_at - time.monotonic()))
            self._tidy_at = time.monotonic() + TIDY_EVERY * random.uniform(0.8, 1.2)
            try:
                await self._tidy()
            except Full as exc:
                logger.warning("%s: the janitor's round waits for the next minute: %s", self._gate.title, exc)
            except Unavailable as exc:
                if not group_is_gone(exc):
                    await self._gate.wait(exc)

    async def _renew(self) -> None:
        began, self._oldest = time.monotonic(), math.inf
        by_source: dict[str, list[str]] = {}
        for source, id in self._held:
            by_source.setdefault(source, []).append(id)
        for source, ids in by_source.items():
            for at in range(0, len(ids), PER_CALL):
                try:
                    lost, gone, settled, unknown = await self._control.run(
                        RENEW.call(
                            source, self._sources[source].state,
                            args=(self._request.group, self.consumer, *ids[at : at + PER_CALL]),
                        )
                    )  # fmt: skip
                except Unavailable as exc:
                    if group_is_gone(exc):
                        break  # which the reader makes again; the leases on other streams do not wait for that
                    raise
                for id in lost:
                    self._lose(source, id.decode())
                # Else nobody can have taken it over so soon: an operator has taken it from us, and we are the only ones to handle it.
                late = time.monotonic() > self.held_until
                for id in settled:
                    if late and not self._may_have_settled(source, id.decode()):
                        self._lose(source, id.decode())
                for id in (*settled, *unknown):  # not pending for anybody, and still handled here: we may be the last to have it
                    self._held.pop((source, id.decode()), None)
                vanished = [id.decode() for id in gone if self._is_gone(source, id.decode())]
                if vanished:
                    self._say_vanished(source, vanished)

        self._have_renewed(began)

    def _have_renewed(self, when: float) -> None:
        self._renewed_at = when
        self.held_until = min(when, self._oldest) + self._request.lease
        self._renewed.set()
        self._renewed = asyncio.Event()

    def _may_have_settled(self, source: str, id: str) -> bool:
        """Whether it may be we who have settled it: by its own commit, or by a verdict whose reply was lost."""
        delivery = self._held.get((source, id))

        return delivery is None or delivery.settled or delivery.committing or (source, id) in self._unsettled

    def _is_gone(self, source: str, id: str) -> bool:
        """Whether we held it until now. What its own commit is settling at this moment is not gone."""
        delivery = self._held.get((source, id))
        if delivery is None or delivery.settled or delivery.committing:
            return False
        del self._held[source, id]

        return True

    def _lose(self, source: str, id: str) -> None:
        delivery = self._held.pop((source, id), None)
        self._unsettled.pop((source, id), None)
        if delivery is not None:
            delivery.lost = True
            if self._request.on_lost is not None:
                self._request.on_lost(delivery)

    async def _settle_again(self, *, until: float = math.inf) -> None:
        """Have the verdicts taken that were not, until all are, it is that late or leases are to be renewed; one at first, then many in a
        write.
        """
        together = 1
        while self._unsettled:
            batch: list[tuple[Key, tuple[Any, ...]]] = []
            for key, command in list(islice(self._unsettled.items(), together)):
                if key in self._held:
                    batch.append((key, command))
                else:
                    del self._unsettled[key]
            if not batch:
                continue
            replies = await self._control.call(*[command for _, command in batch])
            refused: TransportError | None = None
            for (key, _), reply in zip(batch, replies, strict=True):
                try:
                    checked(reply, self._endpoint)
                except TransportError as exc:
                    if not group_is_gone(exc):  # or there is nothing to settle
                        refused = refused or exc
                        continue
                self._unsettled.pop(key, None)
                self._held.pop(key, None)
                self._due_at[self._sources[key[0]].stream] = time.monotonic()  # it may have been a retry: ask when it is due
                self._unblock()
            if refused is not None:
                raise refused
            if self._to_renew or time.monotonic() >= until:
                return
            together = SETTLED_TOGETHER

    async def _tidy(self) -> None:
        """The janitor's round: dead consumers, old entries, old dead letters, and whether the numbers add up."""
        for source in self._sources:
            await self._control.run(REAP.call(source, args=(self._request.group, int(DEAD_AFTER * 1000), self.consumer)))
        for keys in self._keys:
            await trim(self._control, keys.stream, self._retention)
            await prune(self._control, keys, self._retention)
            await self._audit(keys)

    async def _audit(self, keys: Keys) -> None:
        began = time.monotonic()
        found = await audit(
            self._control, keys, interval=max(TIDY_EVERY * 0.8, self._audit_every.get(keys.stream, 0.0)), adopt=True
        )
        if found is None:
            return
        self._audit_every[keys.stream] = (time.monotonic() - began) / AUDIT_SHARE
        lost = (found.lost, found.lost_retries)
        if lost != self._audited.get(keys.stream, (0, 0)):
            self._audited[keys.stream] = lost
            logger.error("%s", found)

    async def _vanished(self, source: str, ids: list[str]) -> None:
        """Entries that were trimmed or deleted under our hands: settle, count and report them."""
        group = self._request.group
        await self._control.run(ACK.call(source, self._sources[source].state, args=(group, "vanished", *ids)))
        self._say_vanished(source, ids)

    def _say_vanished(self, source: str, ids: list[str]) -> None:
        logger.error(
            "%s: %d entries of %s vanished before they were settled, %s to %s: something else trims or deletes there",
            self._gate.title, len(ids), source, ids[0], ids[-1],
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------------- groups

    async def _make_groups(self, *, healing: bool) -> None:
        for keys in self._keys:
            start = self._began.get(keys.stream) or start_position(self._request.start)
            where, id = await self._make_group(keys, start, healing=healing)
            self._began[keys.stream] = id
            if where == "uncounted":
                await audit(self._control, keys, adopt=True)
            elif where and (healing or where != "start"):
                logger.error(
                    "%s: the group was gone from %s and begins again at %s; what the server lost with it is lost",
                    self._gate.title, keys.stream, _PLACES[where],
                )  # fmt: skip

    async def _make_group(self, keys: Keys, start: str, *, healing: bool) -> tuple[str, str]:
        """Where it was made, and the id there. What a long stream has before it is counted in pages, or the server would stand still."""
        counted: tuple[int, str, str] | tuple[()] = ()
        while True:
            args = (self._request.group, start, int(healing), *counted)
            reply = await self._control.run(JOIN.call(keys.stream, keys.retry, keys.state, keys.added, keys.delayed, args=args))
            where, *rest = [text.decode() for text in reply]
            if where != "count":
                return where, rest[0]
            after, upto, first = rest
            before = counted[0] if counted and counted[1] == after else 0
            counted = before + await count(self._control, keys.stream, after, upto), upto, first

    async def _made_groups(self) -> bool:
        """Whether the groups are there; False after a wait if the server is not."""
        try:
            await self._make_groups(healing=False)
        except (Unavailable, Full) as exc:
            self._answered = -math.inf  # who knows since when it is away
            await self._gate.wait(exc, self._stopped)
            return False
        self._gate.passed()
        if self._answered == -math.inf:
            self._let_others_renew()

        return True

    async def _heal(self, error: Exception) -> None:
        """A group is gone: make it again. The gate is passed in any case, so that a server that loses it at once is not stormed."""
        try:
            await self._make_groups(healing=True)
        except (Unavailable, Full) as exc:
            error = exc
        await self._gate.wait(error, self._stopped)

    def _unblock(self) -> None:
        """End a read that waits, without losing what it may be about to bring. Without the right to do so it ends by itself, soon."""
        if self._reading and self._reader_id is not None:
            self._aside(self._ask_to_unblock(self._reader_id))

    async def _ask_to_unblock(self, reader_id: int) -> None:
        """Until the server says that it did: a read that is still on its way there does not wait yet."""
        with suppress(TransportError):
            while self._reading and self._reader_id == reader_id:
                [unblocked] = await self._control.call(("CLIENT", "UNBLOCK", reader_id))
                if unblocked != 0:
                    return
                await asyncio.sleep(0.002)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside, soon."""
        task = asyncio.get_running_loop().create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _leave(self) -> None:
        """Settle, give back, and go."""
        self.stop()
        if self._abandoned:
            return
        with anyio.move_on_after(LEAVE_WITHIN) as scope:
            try:
                await self.flush()
                if self._unsettled:
                    await self._settle_again()
            except TransportError as exc:
                logger.warning("%s: leaving with something unsettled, which will be delivered again: %s", self._gate.title, exc)
            await self.release(list(self._held.values()))
            try:
                replies = await self._control.call(
                    *self._glances(),  # for the checkpoint
                    *(REAP.call(source, args=(self._request.group, 0, "", self.consumer)) for source in self._sources),
                )
                for reply in replies:
                    checked(reply, self._endpoint)
            except TransportError as exc:
                logger.info("%s: could not remove our consumer, others will: %s", self._gate.title, exc)
        if scope.cancelled_caught:
            logger.warning(
                "%s: leaving without an answer for %g s: what was handled last may be delivered again, and what is held when its lease is over",
                self._gate.title, LEAVE_WITHIN,
            )  # fmt: skip

    async def _close(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for task in (self._flushing, *self._asides):
            if task is not None:
                task.cancel()
        await self._reader.close()
        await self._control.close()


def _streams(reply: Any) -> dict[str, list[tuple[bytes, Sequence[bytes]]]]:
    """The entries by stream, from a reply of XREADGROUP under RESP2 (pairs) or RESP3 (a map); nothing for no reply."""
    if not reply:
        return {}
    pairs: Any = cast(dict[bytes, Any], reply).items() if isinstance(reply, dict) else reply

    return {name.decode(): entries for name, entries in pairs}
