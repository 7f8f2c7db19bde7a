"""A consumer of one group: takes deliveries, runs their handlers in a unit of work, and settles them.

```python
mailer = Subscriber(bus=bus, transport=connect(url), streams=["reading-club"], group="mailer")
await mailer.run()
```

The way of a delivery: receive, decode, handle, commit, settle. What a handler says by returning or raising becomes one of three verdicts:
ack, retry or bury. Nothing is acked before its unit of work committed, and nothing is dropped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from eventbus.bus import MessageBus
from eventbus.envelope import JSON, decode, is_harmless, is_plain, split_type
from eventbus.errors import (
    ConfigurationError,
    DecodeError,
    LeaseLost,
    Reject,
    Retry,
    TransportError,
    excerpt,
    only_one,
    seconds_of,
    text_of,
)
from eventbus.message_store import SINKHOLE
from eventbus.messages import Message, check_name
from eventbus.retry import Policy, exponential
from eventbus.shield import cancellations
from eventbus.transport import Delivery, Subscribe, Subscription, Transport, start_position
from eventbus.unit_of_work import TransactionStatus, UnitOfWork
from eventbus.watchdog import Watchdog

logger: Final = logging.getLogger("eventbus")

_STREAMING = TransactionStatus.streaming
_SQUARE, _CURLY = ord("["), ord("{")

MOST_CONCURRENCY = 10_000
"""Handlers at once, at most: each has a task of its own from the beginning."""
READ_AHEAD = 200
"""Entries, at most, that wait behind those being handled."""
READ_AHEAD_SECONDS = 0.1
"""What waits is what can start within this time at the present rate."""
READ_AHEAD_BYTES = 8 << 20
SUSPECTS_ASIDE = 1000
"""Suspects, at most, that wait for their turn without taking the room of others."""

# A server that does not answer when we leave: grace, these, and the last words of the subscription are within the 30 s of Kubernetes.
SETTLE_WITHIN = 0.5
"""Seconds after the grace for verdicts and a read that are under way."""
RELEASE_WITHIN = 1.0
"""Seconds to give back what was not started."""


class Ack(msgspec.Struct, frozen=True):
    """Handled."""


class Again(msgspec.Struct, frozen=True):
    """To be delivered once more, in so many seconds."""

    after: float
    error: Exception | None = None


class Bury(msgspec.Struct, frozen=True):
    """Not to be tried again."""

    reason: str
    error: Exception | None = None


def verdict(error: Exception | None, attempt: int, policy: Policy) -> Ack | Again | Bury:
    """What becomes of a delivery whose attempt ended so."""
    match error:
        case None:
            return Ack()
        case Reject():
            return Bury("rejected", error)
        case Retry(after=float() | int() as seconds):
            return Again(seconds, error)
        case DecodeError():
            return Bury("undecodable", error)
        case _:
            pass
    delay = policy(attempt, error)
    if delay is not None and not 0 <= delay < float("inf"):
        raise ConfigurationError(
            f"a retry policy answers with seconds, zero or more, or None to give up; this one said {delay!r:.80}"
        )

    return Bury("attempts exhausted", error) if delay is None else Again(seconds_of(delay), error)


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """A look inside a running subscriber. Counts are since its `run()` began."""

    waiting: int = 0
    """Deliveries in hand that no handler has started on."""
    running: int = 0
    handled: int = 0
    duplicates: int = 0
    """Acked without a handler: the message store knew that they had been handled before."""
    ignored: int = 0
    """Acked without a handler: types that the bus does not know."""
    retried: int = 0
    buried: int = 0
    lost_leases: int = 0
    reconnects: int = 0
    last_progress: float | None = None
    """`time.monotonic` of the last settlement, None before the first."""

    @property
    def held(self) -> int:
        """Deliveries in hand."""
        return self.waiting + self.running


@dataclass(frozen=True, kw_only=True)
class Subscriber:
    """What a service listens to, and how. A declaration: `run()` is its verb, `dataclasses.replace` makes another.

    * `streams`, `group`: whose deliveries these are. Run it in ten processes and they are ten consumers of one group.
    * `unit_of_work`: called with the transport for each delivery, returns a unit of work (or an awaitable of one); by default a plain
      one that publishes to the same transport.
    * `concurrency`: how many handlers run at once, 10,000 at most. One handles in stream order; more keep no order.
    * `retry`: what follows a failed attempt; see `eventbus.retry`.
    * `start`: where the group begins when it is first created: ``"0"``, ``"$"``, an entry id or a datetime.
    * `lease`: seconds after which a consumer without a sign of life loses what it holds. Handlers may run as long as they like.
    * `grace`: seconds that running handlers have to end when the subscriber is told to stop.
    * `max_crashes`: how often a delivery may take its process with it before it is buried.
    """

    bus: MessageBus
    transport: Transport
    streams: Sequence[str]
    group: str
    unit_of_work: Callable[[Transport], UnitOfWork | Awaitable[UnitOfWork]] | None = None
    concurrency: int = 10
    retry: Policy = field(default_factory=exponential)
    start: str | datetime = "0"
    lease: float = 30.0
    grace: float = 25.0
    max_crashes: int = 3
    _runs: set[_Run] = field(default_factory=set["_Run"], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.streams, str) or not self.streams:
            raise ConfigurationError(f"Subscriber(streams={self.streams!r}): give a list of stream names, like ['reading-club']")
        for stream in self.streams:
            check_name("stream", stream)
        if len(set(self.streams)) < len(self.streams):
            raise ConfigurationError(f"Subscriber(streams={self.streams!r}): a stream is named twice")
        check_name("group", self.group)
        start_position(self.start)
        if not isinstance(self.bus, MessageBus):
            raise ConfigurationError(f"Subscriber(bus={self.bus!r:.80}): give a MessageBus")
        if isinstance(self.transport, str):
            raise ConfigurationError("Subscriber(transport=…) is a URL; write transport=connect(url)")
        for name, kind, least in (("concurrency", int, 1), ("lease", float, 0.05), ("grace", float, 0), ("max_crashes", int, 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, kind)) or not value >= least:
                what = "a whole number" if kind is int else "seconds"
                raise ConfigurationError(f"Subscriber({name}={value!r}): {what}, {least} or more")
        if self.concurrency > MOST_CONCURRENCY:
            raise ConfigurationError(f"Subscriber(concurrency={self.concurrency!r:.80}): {MOST_CONCURRENCY} at the most")
        if self.lease == float("inf"):
            raise ConfigurationError("Subscriber(lease=inf): what a dead process held would never be taken over; give seconds")
        if not callable(self.retry):
            raise ConfigurationError(f"Subscriber(retry={self.retry!r:.80}): give a policy, like exponential(attempts=6)")
        if self.unit_of_work is not None and not callable(self.unit_of_work):
            raise ConfigurationError(
                f"Subscriber(unit_of_work={self.unit_of_work!r:.80}): give a function of the transport that returns a unit of work"
            )

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Handle deliveries until cancelled. ``await tg.start(subscriber.run)`` returns once the groups exist.

        Cancelled, it drains: it reads no more, lets running handlers end for up to `grace` seconds, settles them, and gives back what it
        did not start. It returns in no other way: what cannot be waited out (a refused password, a key of the wrong type, a mistake in
        the program) is raised.
        """
        run = _Run(self)
        request = Subscribe(
            streams=tuple(self.streams),
            group=self.group,
            start=self.start,
            lease=self.lease,
            max_crashes=self.max_crashes,
            ordered=self.concurrency == 1,
            on_lost=run.lose,
        )
        error: BaseException | None = None
        self._runs.add(run)
        try:
            async with anyio.create_task_group() as tasks:
                # Not `tasks.start`, which when cancelled waits for a task that waits to be told to stop.
                tasks.start_soon(run.serve, request)
                try:
                    await run.serving.wait()
                    task_status.started()
                    await anyio.sleep_forever()
                finally:
                    run.stopping.set()
        except BaseExceptionGroup as group:
            error = only_one(group, beside=anyio.get_cancelled_exc_class())
        finally:
            self._runs.discard(run)
            logger.info(
                "%s: stopped; %d handled, %d retried, %d buried, %d ignored",
                run.title, run.handled, run.retried, run.buried, run.ignored,
            )  # fmt: skip
        if error is not None:  # raised here, so that its own cause is still its cause
            raise error

    def statistics(self) -> Statistics:
        """What the running `run()` of this object does, all of them together; zeros when none is."""
        runs = list(self._runs)
        progress = [run.last_progress for run in runs if run.last_progress is not None]

        return Statistics(
            waiting=sum(run.in_hand - len(run.running) for run in runs),
            running=sum(len(run.running) for run in runs),
            handled=sum(run.handled for run in runs),
            duplicates=sum(run.duplicates for run in runs),
            ignored=sum(run.ignored for run in runs),
            retried=sum(run.retried for run in runs),
            buried=sum(run.buried for run in runs),
            lost_leases=sum(run.lost_leases for run in runs),
            reconnects=sum(getattr(run.subscription, "reconnects", 0) for run in runs),
            last_progress=max(progress, default=None),
        )


class _Run:
    """One `run()` of a subscriber: its reader, its workers, and what they hold."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.title: str = f"{'+'.join(subscriber.streams)}/{subscriber.group}"
        self.subscription: Subscription | None = None
        self.serving = anyio.Event()
        self.stopping = anyio.Event()
        self.in_hand = 0
        self.running: dict[Delivery, anyio.CancelScope] = {}
        self.suspects: deque[Delivery] = deque()
        self.suspect_running = False
        self.left: list[Delivery] = []
        self.room = anyio.Event()
        self.room_at = -1
        """The number in hand at which the reader goes on that waits for `room`; -1 when it does not wait."""
        self.handled = self.duplicates = self.ignored = self.retried = self.buried = self.lost_leases = 0
        self.last_progress: float | None = None
        self.waiting: deque[Delivery] = deque()
        self.idle: list[anyio.Event] = []
        """Of the workers that have nothing to do: the event that calls one of them to look at what waits."""
        self.closed = False
        self.working = anyio.CancelScope()
        """Around the workers; the grace ends it."""
        self.reading = anyio.CancelScope()
        """Around the reader. It outlasts the grace: what the server has already handed to us is to be given back."""
        self.settling: set[anyio.CancelScope] = set()
        self.settled_by = math.inf
        """When what the server has not taken is left to its lease: soon after the grace, once that has begun."""
        self.types = {name.encode(): message_type for name, message_type in subscriber.bus.types().items()}
        self.names = {split_type(name)[0] for name in subscriber.bus.types()}
        self.decoders: dict[bytes, Callable[[bytes], Message]] = {}
        """For the types that came before, as JSON, and that no upcast changes."""
        self.transport = subscriber.transport
        self.make = subscriber.unit_of_work
        self.handle = subscriber.bus.handle

    async def serve(self, request: Subscribe) -> None:
        """Join the groups, and work until told to stop. In a task of its own: a cancellation of `run`, also asyncio's, is not ours."""
        with anyio.CancelScope() as scope:
            async with self.subscriber.transport.subscribe(request) as subscription:
                scope.shield = True  # from here on a cancellation is a drain
                self.serving.set()
                watchdog = Watchdog(self.title, request.lease)
                with watchdog.watching():
                    async with anyio.create_task_group() as beating:
                        beating.start_soon(watchdog.beat)
                        await self.consume(subscription)
                        beating.cancel_scope.cancel()
        if not self.stopping.is_set():
            raise TransportError(
                f"{self.subscription!r} delivered nothing, though nobody stopped it: this transport breaks its promise"
            )

    async def consume(self, subscription: Subscription) -> None:
        """Read and handle until told to stop; then finish, and give back the rest."""
        self.subscription = subscription
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._work_all, subscription)
                async with anyio.create_task_group() as until_read:
                    until_read.start_soon(self._stop, subscription)
                    with self.reading:
                        await self._read(subscription)
                    until_read.cancel_scope.cancel()
                self._take_back()
                self.working.deadline = min(self.working.deadline, anyio.current_time() + self.subscriber.grace)
        finally:
            self._take_back()
            with anyio.move_on_after(RELEASE_WITHIN, shield=True) as scope:
                await subscription.release(self.left)
            if scope.cancelled_caught:
                logger.warning(
                    "%s: %d deliveries could not be given back, their lease runs out instead: no answer within %g s",
                    self.title, len(self.left), RELEASE_WITHIN,
                )  # fmt: skip

    def lose(self, delivery: Delivery) -> None:
        """Another consumer has taken this over: its outcome is discarded, and its handler, should it run, cancelled."""
        if delivery in self.waiting or delivery in self.suspects:
            self.lost_leases += 1
            logger.info("%s: another consumer has taken it over before it was started here", _title(delivery))
            return
        self._say_lost(delivery)
        scope = self.running.get(delivery)
        if scope is not None:
            scope.cancel()

    def _say_lost(self, delivery: Delivery) -> None:
        self.lost_leases += 1
        logger.warning(
            "%s", LeaseLost(f"{_title(delivery)}: another consumer has taken it over; what was done here is discarded")
        )

    # ------------------------------------------------------------------------------------------------------------ read

    async def _stop(self, subscription: Subscription) -> None:
        await self.stopping.wait()
        # From now on, however long a server keeps the reader waiting.
        self.working.deadline = anyio.current_time() + self.subscriber.grace
        self.settled_by = self.working.deadline + SETTLE_WITHIN
        for scope in (self.reading, *self.settling):
            scope.deadline = self.settled_by
        subscription.stop()
        self.room.set()

    async def _read(self, subscription: Subscription) -> None:
        """Keep the workers busy: read when a slot is free, ahead only as far as handlers are fast."""
        concurrency = self.subscriber.concurrency
        ahead, size = 0, 256
        finished, since = 0, anyio.current_time()
        while not self.stopping.is_set():
            elapsed = anyio.current_time() - since
            done = self.handled + self.duplicates + self.retried + self.buried + self.ignored
            if elapsed >= READ_AHEAD_SECONDS / 10 or done - finished >= 16:
                startable = (done - finished) / max(elapsed, 1e-6) * READ_AHEAD_SECONDS
                ahead = int(min(READ_AHEAD, READ_AHEAD_BYTES / size, (ahead + startable) / 2 + 1))
                finished, since = done, anyio.current_time()
            allowed = concurrency + ahead
            if self.suspects:
                allowed += min(len(self.suspects), SUSPECTS_ASIDE, READ_AHEAD_BYTES // size)
            room = allowed - self.in_hand
            if room < max(1, ahead // 2):
                self.room, self.room_at = anyio.Event(), allowed - max(1, ahead // 2)
                await self.room.wait()
                self.room_at = -1
                continue
            deliveries = await subscription.receive(room)
            if not deliveries:
                return
            self.in_hand += len(deliveries)
            self.waiting += deliveries
            if self.stopping.is_set():
                return
            for _ in range(min(len(deliveries), len(self.idle))):
                self.idle.pop().set()
            if len(deliveries) <= concurrency:
                await anyio.lowlevel.checkpoint()  # their handlers first: what is quick is acked along with the next read
            some = deliveries[::8]
            size = sum(map(len, chain.from_iterable([delivery.fields for delivery in some]))) // len(some) + 1

    def _take_back(self) -> None:
        """What no worker has started on will be given back."""
        for waiting in (self.suspects, self.waiting):
            self.left += waiting
            waiting.clear()
        self.closed = True
        while self.idle:
            self.idle.pop().set()

    # ------------------------------------------------------------------------------------------------------------ work

    async def _work_all(self, subscription: Subscription, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self.working:
            async with anyio.create_task_group() as workers:
                for _ in range(self.subscriber.concurrency):
                    workers.start_soon(self._work, subscription)
                task_status.started()

    async def _work(self, subscription: Subscription) -> None:
        """Handle one delivery after another. A handler whose lease is lost takes its scope with it, so there is one scope per loss."""
        cancelled = cancellations()
        more = True
        while more:
            with anyio.CancelScope() as scope:
                more = await self._work_until_lost(subscription, scope, cancelled)

    async def _work_until_lost(self, subscription: Subscription, scope: anyio.CancelScope, cancelled: Callable[[], int]) -> bool:
        """Whether there may be more to do, in another scope."""
        waiting, suspects, running = self.waiting, self.suspects, self.running
        while True:
            if time.monotonic() > subscription.held_until and (waiting or suspects) and not await subscription.confirm():
                self._take_back()
            if suspects and not self.suspect_running:
                delivery = suspects.popleft()
            elif waiting:
                delivery = waiting.popleft()
            elif self.closed:
                return False
            else:
                call = anyio.Event()
                self.idle.append(call)
                await call.wait()
                continue
            if delivery.suspect and self.suspect_running and not delivery.lost:
                suspects.append(delivery)
                self.room.set()  # one more may be read beside it
                continue
            running[delivery] = scope
            try:
                if delivery.lost:
                    pass
                elif delivery.suspect:
                    await self._handle_suspect(subscription, delivery, cancelled)
                else:
                    await self._handle(subscription, delivery, cancelled)
            except anyio.get_cancelled_exc_class():
                if not delivery.lost:
                    self.left.append(delivery)
                raise
            except Exception:
                raise
            except BaseException as exc:  # it takes the process with it: not given back, it is a suspect when its lease is over
                logger.error("%s: %r in its handler ends the subscriber; this is delivered again", _title(delivery), exc)
                subscription.settled(delivery)
                raise
            finally:
                del running[delivery]
                self.in_hand -= 1
                if woken := self.in_hand == self.room_at:
                    self.room.set()
            if delivery.lost and scope.cancel_called:  # lost while its end was shielded
                return True
            if woken:
                await anyio.lowlevel.checkpoint()  # the next read goes out, and is answered while the rest is handled

    async def _handle_suspect(self, subscription: Subscription, delivery: Delivery, cancelled: Callable[[], int]) -> None:
        """One that a dead process held: one at a time, and counted before it starts."""
        self.suspect_running = True
        try:
            if await subscription.begin(delivery):
                await self._handle(subscription, delivery, cancelled)
            elif not delivery.lost:
                self.buried += 1
                logger.error(
                    "%s: buried, crash loop: processes die while they handle it (counted starts: %d)",
                    _title(delivery), self.subscriber.max_crashes,
                )  # fmt: skip
        finally:
            self.suspect_running = False

    async def _handle(self, subscription: Subscription, delivery: Delivery, cancelled: Callable[[], int]) -> None:
        error: Exception | None = None
        duplicate = False
        ending: UnitOfWork | None = None  # once its handlers have all returned
        cancelled_before = cancelled()
        try:
            message = self._decode(delivery)
            if message is None:
                subscription.ack(delivery)
                self.ignored += 1
                return
            if self.make is None:
                uow = UnitOfWork()
                uow.transport = self.transport  # so, since keyword arguments cost as much as all the rest of it
            else:
                made = self.make(self.transport)
                uow = made if isinstance(made, UnitOfWork) else await made
            async with uow:
                if uow.message_store is SINKHOLE or await uow.begin(delivery):
                    await self.handle(message, uow, delivery=delivery)
                    ending = uow
                else:
                    duplicate = True
                    await uow.rollback()
                if uow._ended is None:  # pyright: ignore[reportPrivateUsage] - detached or not
                    await uow.commit()
            if uow.status is _STREAMING:
                await uow.close()
        except ExceptionGroup as group:  # of a task group in the handler: what one of its tasks says, the handler says
            only = only_one(group)
            error = only if isinstance(only, Exception) else group
        except Exception as exc:
            error = exc
        except anyio.get_cancelled_exc_class() as exc:
            if anyio.get_current_task().has_pending_cancellation() or cancelled() > cancelled_before:
                if ending is not None and _is_done(ending) and not delivery.lost:
                    logger.warning("%s: handled and committed; its hooks were cut off and are not run again", _title(delivery))
                    self._say_done(subscription, delivery)
                    self.handled += 1
                raise
            error = RuntimeError("the handler awaited something that somebody else has cancelled")
            error.__cause__ = exc
        if error is not None and ending is not None and _is_done(ending):  # to handle it again would commit it again
            logger.error(
                "%s: handled and committed; a hook failed after that, and is not run again: %s: %s",
                _title(delivery), type(error).__name__, excerpt(text_of(error)), exc_info=error,
            )  # fmt: skip
            error = None
        if error is not None and isinstance(error, LeaseLost) and not delivery.lost:
            delivery.lost = True
            self._say_lost(delivery)
        if delivery.lost:
            subscription.settled(delivery)
            return
        self.last_progress = time.monotonic()
        if error is None:
            self._say_done(subscription, delivery)
            if duplicate:
                self.duplicates += 1
            else:
                self.handled += 1
        else:
            await self._settle(subscription, delivery, error)

    def _say_done(self, subscription: Subscription, delivery: Delivery) -> None:
        if delivery.settled:
            subscription.settled(delivery)
        else:
            subscription.ack(delivery)

    def _decode(self, delivery: Delivery) -> Message | None:
        """The message; None for a type that this bus has nothing to do with. `DecodeError` for what should be one and is not."""
        fields = delivery.fields
        if len(fields) >= 8 and fields[4] == b"type" and fields[6] == b"payload" and fields[0] == b"id":
            type, payload = fields[5], fields[7]
            decoder = self.decoders.get(type)
            if decoder is not None and is_plain(fields) and (
                (len(payload) < 4096 and _SQUARE not in payload and _CURLY not in payload[1:])  # flat and short, as most are
                or is_harmless(payload)
            ):  # fmt: skip
                try:
                    return decoder(payload)
                except Exception:
                    pass
        else:
            type = delivery.envelope.type.encode()
        message_type = self.types.get(type)
        if message_type is None:
            text = type.decode(errors="replace")
            name, version = split_type(text)
            if version and name in self.names:
                known = sorted(known for known in self.subscriber.bus.types() if split_type(known)[0] == name)
                raise DecodeError(
                    f"unknown version of {excerpt(name)}: {version}; this service knows {', '.join(known)}: "
                    "requeue it after the deploy that knows it",
                    type=excerpt(text),
                )
            return None

        envelope = delivery.envelope
        message = decode(message_type, envelope.payload, envelope.content_type)
        newest = self.subscriber.bus.upcasted(message)
        if newest is message and envelope.content_type == JSON.content_type:
            self.decoders[type] = JSON.decoder(message_type)

        return newest

    # ---------------------------------------------------------------------------------------------------------- settle

    async def _settle(self, subscription: Subscription, delivery: Delivery, error: Exception) -> None:
        try:
            decided = verdict(error, delivery.attempt - delivery.granted, self.subscriber.retry)
        except Exception as exc:
            logger.error("%s: the retry policy failed, so it is retried in 60 s: %r", _title(delivery), exc, exc_info=exc)
            decided = Again(60.0, error)
        with anyio.CancelScope(shield=True, deadline=self.settled_by) as scope:
            self.settling.add(scope)
            match decided:
                case Again(after=after):
                    logger.warning(
                        "%s: attempt %d failed, again in %.3g s: %s: %s",
                        _title(delivery), delivery.attempt, after, type(error).__name__, excerpt(text_of(error)),
                    )  # fmt: skip
                    settled = await subscription.retry(delivery, after=after, error=error)
                    self.retried += settled
                case Bury(reason=reason):
                    logger.error(
                        "%s: buried at attempt %d, %s: %s: %s",
                        _title(delivery), delivery.attempt, reason, type(error).__name__, excerpt(text_of(error)),
                    )  # fmt: skip
                    settled = await subscription.bury(delivery, reason=reason, error=error)
                    self.buried += settled
                case Ack():
                    settled = True  # not for an error
            if not settled and not delivery.lost:
                why = "its own commit has settled it" if delivery.settled else "it vanished, or another has settled it"
                logger.warning("%s: nothing came of that: it is pending no longer, %s", _title(delivery), why)
        self.settling.discard(scope)
        if scope.cancelled_caught:
            logger.warning("%s: the server did not answer before the grace was over: this is delivered again", _title(delivery))


def _is_done(uow: UnitOfWork) -> bool:
    """Whether all of it is committed and published; what came after that came from a hook."""
    return uow._ended is TransactionStatus.committed and not uow._unpublished  # pyright: ignore[reportPrivateUsage]


def _title(delivery: Delivery) -> str:
    fields = delivery.fields
    type = fields[5] if len(fields) >= 8 and fields[4] == b"type" else b"entry"

    return f"{delivery.stream}/{delivery.group} {delivery.entry_id} {excerpt(type.decode(errors='replace'), 80)}"
