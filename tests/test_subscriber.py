"""A subscriber, over memory: how deliveries become verdicts, and how it starts, stops and fails. Nothing here waits for a clock."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import pytest
from anyio import wait_all_tasks_blocked

from eventbus import (
    Command,
    Delivery,
    Envelope,
    Event,
    MemoryTransport,
    MessageBus,
    Metadata,
    Reject,
    Retry,
    Subscriber,
    UnitOfWork,
    exponential,
)
from eventbus.errors import ConfigurationError, DecodeError, Refused, TransactionError, TransportError
from eventbus.memory import MemorySubscription
from eventbus.subscriber import Ack, Again, Bury, Statistics, verdict
from eventbus.testing import drain, wait_until
from eventbus.transport import Subscribe

STREAM = "events"
GROUP = "mailer"


class Registered(Event):
    metadata = Metadata(name="registered", schema_version=2, published=True)
    number: int
    title: str = ""


class RegisteredV1(Event):
    metadata = Metadata(name="registered", schema_version=1, published=True)
    n: int


class Welcomed(Event):
    metadata = Metadata(name="welcomed", published=True)
    number: int


class Billed(Event):
    metadata = Metadata(name="billed", published=True)
    number: int


class Observed(MemoryTransport):
    """A memory transport that lets a test have its subscriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions: list[MemorySubscription] = []

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
        async with super().subscribe(request) as subscription:
            self.subscriptions.append(subscription)
            yield subscription


class Session:
    """A session that writes down what was done with it, and may be held up in its commit."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.commits = anyio.Event()
        self.may_commit = anyio.Event()
        self.may_commit.set()

    async def commit(self) -> None:
        self.commits.set()
        await self.may_commit.wait()
        self.log.append("commit")

    async def rollback(self) -> None:
        self.log.append("rollback")


@pytest.fixture
def transport() -> Observed:
    return Observed()


@pytest.fixture
def bus() -> MessageBus:
    return MessageBus()


@pytest.fixture
def subscriber(bus: MessageBus, transport: Observed) -> Subscriber:
    return Subscriber(bus=bus, transport=transport, streams=[STREAM], group=GROUP, retry=exponential(jitter=0.0), grace=2.0)


@asynccontextmanager
async def running(subscriber: Subscriber) -> AsyncIterator[anyio.abc.TaskGroup]:
    """The subscriber at work for as long as the block."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(subscriber.run)
        yield tasks
        tasks.cancel_scope.cancel()


async def publish(transport: MemoryTransport, *messages: Event) -> list[str]:
    async with UnitOfWork(transport=transport) as uow:
        for message in messages:
            uow.emit(message)
        await uow.commit()

    return [envelope.id for envelope in transport.envelopes[-len(messages) :]]


async def publish_raw(transport: MemoryTransport, **changes: Any) -> None:
    """An envelope that nobody would have written."""
    [id] = await publish(transport, Registered(number=0))
    envelope = transport.envelopes[-1]
    await transport.publish([msgspec.structs.replace(envelope, id=f"{id}-raw", **changes)])


async def counts(transport: MemoryTransport) -> tuple[int, int, int]:
    backlog = await transport.backlog(STREAM, GROUP)

    return backlog.unread, backlog.pending, backlog.delayed


def failing(error: Callable[[], Exception], *, times: int = 1) -> tuple[Callable[[Registered], Any], list[int]]:
    """A handler that raises so often, and then handles; and what it has handled."""
    handled: list[int] = []
    left = times

    async def handle(event: Registered) -> None:
        nonlocal left
        if left:
            left -= 1
            raise error()
        handled.append(event.number)

    return handle, handled


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (None, 1, Ack()),
        (Retry(after=7), 1, Again(7)),
        (Retry(after=0.5), 9, Again(0.5)),
        (Retry(), 1, Again(2.0)),
        (Reject("no such address"), 1, Bury("rejected")),
        (DecodeError("not JSON"), 1, Bury("undecodable")),
        (ValueError("odd"), 1, Again(2.0)),
        (ValueError("odd"), 2, Again(4.0)),
        (ValueError("odd"), 3, Bury("attempts exhausted")),
        (Retry(), 3, Bury("attempts exhausted")),
    ],
)
def test_a_verdict_follows_from_error_attempt_and_policy(
    error: Exception | None, attempt: int, expected: Ack | Again | Bury
) -> None:
    """Return, `Retry`, `Reject`, anything else: one of three words comes out."""

    def policy(attempt: int, error: Exception) -> float | None:
        return 2.0 * attempt if attempt < 3 else None

    if not isinstance(expected, Ack):
        expected = msgspec.structs.replace(expected, error=error)

    assert expected == verdict(error, attempt, policy)


async def taken_over(subscriber: Subscriber) -> list[tuple[int, bool]]:
    """What another consumer is given of what was left: its attempts, and whether they are suspects."""
    bus, seen = MessageBus(), list[tuple[int, bool]]()

    @bus.listen
    async def take(event: Registered, delivery: Delivery) -> None:
        seen.append((delivery.attempt, delivery.suspect))

    await drain(replace(subscriber, bus=bus))

    return seen


async def test_a_handler_that_returns_is_committed_and_then_acked(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """Nothing is acked before its unit of work has committed."""
    log: list[str] = []
    session = Session(log)
    session.may_commit = anyio.Event()

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        log.append(f"handle {event.number}")

    await publish(transport, Registered(number=1))
    async with running(replace(subscriber, unit_of_work=lambda transport: UnitOfWork(session, transport=transport))):
        await session.commits.wait()

        assert (["handle 1"], (0, 1, 0)) == (log, await counts(transport))

        session.may_commit.set()
        await wait_until(lambda: log == ["handle 1", "commit"], description="committed")

        assert (0, 0, 0) == await counts(transport)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Retry(after=5), (0, 0, 1)), (Reject("no"), (0, 0, 0)), (ValueError("odd"), (0, 0, 1))],
    ids=["Retry", "Reject", "ValueError"],
)
async def test_a_handler_that_raises_is_rolled_back(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, error: Exception, expected: tuple[int, int, int]
) -> None:
    """Whatever it raises; and what it wanted to publish is not published."""
    log: list[str] = []

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        uow.emit(Welcomed(number=event.number))
        raise error

    await publish(transport, Registered(number=1))
    working = replace(subscriber, unit_of_work=lambda transport: UnitOfWork(Session(log), transport=transport))
    async with running(working):
        await wait_all_tasks_blocked()

        assert ["rollback"] == log
        assert expected == await counts(transport)
        assert [] == transport.messages(Welcomed)


async def test_a_server_that_does_not_answer_holds_up_nobody_who_leaves(
    bus: MessageBus,
    subscriber: Subscriber,
    transport: Observed,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for each verdict, and not for what is given back: their leases run out instead, and one line for each says so."""
    failing, never = anyio.Event(), anyio.Event()

    async def silent(*_: Any, **__: Any) -> bool:
        failing.set()
        await never.wait()
        return True

    @bus.listen
    async def handle(event: Registered) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("eventbus.subscriber.SETTLE_WITHIN", 0.05)
    monkeypatch.setattr("eventbus.subscriber.RELEASE_WITHIN", 0.05)
    await publish(transport, *(Registered(number=number) for number in range(20)))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            monkeypatch.setattr(MemorySubscription, "retry", silent)
            monkeypatch.setattr(MemorySubscription, "release", silent)
            tasks.start_soon(replace(subscriber, concurrency=4, grace=0.05).run)
            await failing.wait()
            tasks.cancel_scope.cancel()

    lines = [record.message for record in caplog.records]
    assert 4 == sum("did not answer before the grace was over" in line for line in lines)
    assert 1 == sum("could not be given back" in line for line in lines)


async def test_a_read_that_is_never_answered_holds_up_nobody_who_leaves(
    subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has as long as the verdicts that are under way, and no longer."""
    reading, cut_off = anyio.Event(), anyio.Event()

    async def silent(*_: Any) -> None:
        reading.set()
        try:
            with anyio.fail_after(10):
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cut_off.set()
            raise

    monkeypatch.setattr("eventbus.subscriber.SETTLE_WITHIN", 0.05)
    monkeypatch.setattr(MemorySubscription, "receive", silent)
    async with anyio.create_task_group() as tasks:
        await tasks.start(replace(subscriber, grace=0.05).run)
        await reading.wait()
        tasks.cancel_scope.cancel()

    assert cut_off.is_set()


async def test_a_handler_may_choose_to_roll_back(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """Then it has decided, and the delivery is done."""
    log: list[str] = []

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        await uow.rollback()

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=lambda _: UnitOfWork(Session(log))))

    assert (["rollback"], 1) == (log, done.handled)


async def test_a_handler_may_commit_itself(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """It is not committed twice."""
    log: list[str] = []

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        await uow.commit()

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=lambda _: UnitOfWork(Session(log))))

    assert (["commit"], 1) == (log, done.handled)


class Post:
    """A dependency that is slow to post what was committed."""

    def __init__(self) -> None:
        self.posting = anyio.Event()

    async def on_after_commit(self) -> None:
        self.posting.set()
        await anyio.sleep_forever()


@pytest.mark.parametrize("committed_by", ["the subscriber", "the handler"])
async def test_what_was_committed_when_the_grace_ended_is_not_handled_again(
    subscriber: Subscriber, transport: Observed, committed_by: str
) -> None:
    """A hook was cut off, and not the work. But a handler that commits itself has not come to its end."""
    post, log = Post(), list[str]()
    bus = MessageBus(post=lambda: post)

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork, post: Post) -> None:
        if committed_by == "the handler":
            await uow.commit()

    await publish(transport, Registered(number=1))
    stopped = replace(subscriber, bus=bus, unit_of_work=lambda _: UnitOfWork(Session(log)), grace=0.01)
    async with running(stopped):
        await post.posting.wait()

    assert ["commit"] == log
    assert (0, int(committed_by == "the handler"), 0) == await counts(transport)


async def test_a_hook_that_fails_after_the_commit_does_not_have_it_committed_again(
    subscriber: Subscriber, transport: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """What was committed is handled. The error is logged."""

    class Broken:
        def on_after_commit(self) -> None:
            raise ConnectionError("no printer")

    log = list[str]()
    bus = MessageBus(printer=Broken)

    @bus.listen
    async def handle(event: Registered, printer: Broken) -> None:
        pass

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, bus=bus, unit_of_work=lambda _: UnitOfWork(Session(log))))

    assert (["commit"], 1, 0) == (log, done.handled, done.retried)
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "a hook failed after that, and is not run again: ConnectionError: no printer" in error.message
    assert error.exc_info is not None


async def test_a_detached_unit_of_work_is_committed_all_the_same(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """There is nobody downstream to stream a response to: what returns is committed."""
    log: list[str] = []

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        uow.detach()

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=lambda _: UnitOfWork(Session(log))))

    assert (["commit"], 1) == (log, done.handled)


async def test_a_commit_that_fails_is_a_failed_attempt(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """The session says no the first time; the second is another unit of work."""
    log: list[str] = []

    class Moody(Session):
        async def commit(self) -> None:
            if not log:
                log.append("refused")
                raise ConnectionError("serialization failure")
            log.append("commit")

    bus.add_listener(Registered, failing(ValueError, times=0)[0])
    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=lambda _: UnitOfWork(Moody(log))))

    assert (["refused", "rollback", "commit"], 1, 1) == (log, done.handled, done.retried)


async def test_retry_asks_for_another_attempt_in_so_many_seconds(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """Not before, and as the next attempt of the same envelope."""
    seen: list[tuple[int, str]] = []

    @bus.listen
    async def handle(event: Registered, envelope: Envelope, delivery: Delivery) -> None:
        seen.append((delivery.attempt, envelope.id))
        if delivery.attempt < 3:
            raise Retry("the printer is busy", after=3600)

    [id] = await publish(transport, Registered(number=1))
    async with running(subscriber):
        await wait_all_tasks_blocked()
        backlog = await transport.backlog(STREAM, GROUP)

        assert backlog.next_in == pytest.approx(3600, abs=5)

        transport.clock.advance(3590)
        await wait_all_tasks_blocked()

        assert [(1, id)] == seen

        transport.clock.advance(10)
        await wait_all_tasks_blocked()
        transport.clock.advance(3600)
        await wait_all_tasks_blocked()

        assert [(1, id), (2, id), (3, id)] == seen
        assert (0, 0, 0) == await counts(transport)


async def test_a_retry_with_a_delay_of_its_own_costs_no_attempt(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """However often it was put off: what fails afterwards has all the attempts of the policy."""
    seen: list[int] = []

    @bus.listen
    async def handle(event: Registered, delivery: Delivery) -> None:
        seen.append(delivery.attempt)
        if delivery.attempt <= 6:
            raise Retry(after=0)
        raise ConnectionError("a hiccup")

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, retry=exponential(attempts=3, base=0.0)))

    assert [*range(1, 10)] == seen
    assert (8, 1) == (done.retried, done.buried)


async def test_an_exception_is_retried_as_the_policy_says_and_then_buried(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """With the whole story; the policy is asked with attempt and error."""
    asked: list[tuple[int, str]] = []

    def policy(attempt: int, error: Exception) -> float | None:
        asked.append((attempt, str(error)))

        return 60.0 if attempt < 3 else None

    handle, handled = failing(lambda: LookupError("no such book"), times=99)
    bus.add_listener(Registered, handle)
    [id] = await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, retry=policy))
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert [(n, "no such book") for n in (1, 2, 3)] == asked
    assert (0, 2, 1, []) == (done.handled, done.retried, done.buried, handled)
    assert (id, 3, "attempts exhausted") == (letter.envelope.id, letter.attempts, letter.reason)
    assert ("LookupError", "no such book") == (letter.error_type, letter.error)
    assert "in handle" in letter.traceback


async def test_an_error_that_cannot_say_what_it_is_is_a_failed_attempt_like_any(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither ends the subscriber nor escapes its attempts."""

    class Speechless(Exception):
        def __str__(self) -> str:
            return str(1 / 0)

    handle, handled = failing(Speechless, times=2)
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1), Registered(number=2))
    done = await drain(replace(subscriber, concurrency=1, retry=exponential(attempts=2, base=0.0)))

    assert ([2], 1, 1) == (handled, done.retried, done.buried)
    assert "Speechless: (its text cannot be told" in caplog.text


async def test_what_a_task_of_the_handler_says_the_handler_says(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """Where it is the only error of a task group."""

    @bus.listen
    async def handle(event: Registered) -> None:
        async def look() -> None:
            raise Reject("never")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)

    await publish(transport, Registered(number=1))
    done = await drain(subscriber)
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert (0, 1) == (done.retried, done.buried)
    assert ("rejected", "Reject", "never") == (letter.reason, letter.error_type, letter.error)


async def test_reject_buries_at_once(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """Nobody asks the policy, and nothing is tried again."""
    handle, handled = failing(lambda: Reject("no such address"))
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1), Registered(number=2))
    done = await drain(subscriber)
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert ("rejected", "Reject", "no such address", 1) == (
        letter.reason, letter.error_type, letter.error, letter.attempts
    )  # fmt: skip
    assert ([2], 1, 1, 0) == (handled, done.handled, done.buried, done.retried)


@pytest.mark.parametrize("policy", [lambda *_: 1 / 0, lambda *_: "soon", lambda *_: float("nan"), lambda *_: -1.0])
async def test_a_policy_that_fails_keeps_the_delivery(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in the error path must not lose what it is about: it is tried again in a minute, and the mistake is logged."""
    handle, handled = failing(lambda: ValueError("odd"))
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    async with running(replace(subscriber, retry=policy)):
        await wait_all_tasks_blocked()
        backlog = await transport.backlog(STREAM, GROUP)

        assert (0, 0, 1) == (backlog.unread, backlog.pending, backlog.delayed)
        assert backlog.next_in == pytest.approx(60, abs=5)

        transport.clock.advance(60)
        await wait_all_tasks_blocked()

        assert [1] == handled
    assert "the retry policy failed" in caplog.text


@pytest.mark.parametrize("delay", [1e306, 10**400, Decimal(10) ** 30])
async def test_a_delay_is_a_hundred_years_at_most(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, delay: Any
) -> None:
    """A policy that grows without bound, or a handler that means never, ends nothing by it."""
    century = 100 * 365 * 86_400

    @bus.listen
    async def handle(event: Registered) -> None:
        raise Retry(after=delay) if event.number else ValueError("odd")

    for number in (0, 1):
        await publish(transport, Registered(number=number))
        async with running(replace(subscriber, retry=lambda *_: delay)):
            await wait_all_tasks_blocked()
            backlog = await transport.backlog(STREAM, GROUP)

            assert (0, 0, number + 1) == (backlog.unread, backlog.pending, backlog.delayed)
            assert backlog.next_in == pytest.approx(century, abs=60)


async def test_a_delay_may_be_any_kind_of_number(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """Who computes with `Decimal` or `Fraction` need not know what the server takes."""
    delays: list[Any] = [Decimal("0.5"), Fraction(1, 2)]
    handle, handled = failing(lambda: ValueError("odd"), times=2)
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    async with running(replace(subscriber, retry=lambda attempt, _: delays[attempt - 1])):
        for _ in delays:
            await wait_all_tasks_blocked()
            transport.clock.advance(0.5)
        await wait_all_tasks_blocked()

    assert [1] == handled


async def test_a_unit_of_work_that_cannot_be_made_is_a_failed_attempt(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """A database that is away for a moment is waited for; the factory may be async."""
    handle, handled = failing(ValueError, times=0)
    made: list[int] = []

    async def make(transport: Any) -> UnitOfWork:
        made.append(1)
        if len(made) == 1:
            raise ConnectionError("no database")

        return UnitOfWork(transport=transport)

    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=make))

    assert ([1], 1, 1) == (handled, done.handled, done.retried)


async def test_a_handler_in_a_thread_is_a_handler(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """A `def` is one as well."""
    handled: list[int] = []

    def handle(event: Registered) -> None:
        if not handled:
            handled.append(-1)
            raise Retry(after=1)
        handled.append(event.number)

    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    done = await drain(subscriber)

    assert ([-1, 1], 1, 1) == (handled, done.handled, done.retried)


# ------------------------------------------------------------------------------------------------- what can be decoded


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": b"\xff\xfe"},
        {"payload": b'{"number":'},
        {"payload": b'{"number":"one"}'},
        {"payload": b"{}"},
        {"payload": b"[" * 10_000},
        {"payload": b'{"number":1,"title":"%s"}' % (b"x" * (1 << 20))},
        {"headers": {"content_type": "application/cbor"}},
        {"type": "registered_v99"},
    ],
    ids=["utf-8", "json", "type", "field", "depth", "size", "content type", "version"],
)
async def test_what_cannot_be_decoded_is_buried_at_once_and_the_next_proceeds(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, changes: dict[str, Any]
) -> None:
    """Another attempt would not help; the bytes are kept for who can tell what they are."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    await publish_raw(transport, **changes)
    await publish(transport, Registered(number=7))
    done = await drain(replace(subscriber, concurrency=1))
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert ([0, 7], 2, 1, 0) == (handled, done.handled, done.buried, done.retried)
    assert ("undecodable", "DecodeError", 1) == (letter.reason, letter.error_type, letter.attempts)
    assert changes.get("payload", transport.envelopes[0].payload) == letter.fields[b"payload"]


async def test_an_unknown_version_can_be_requeued_when_it_is_known(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """The dead letter says what to do, and the deploy that knows the version handles it."""
    old = MessageBus()
    old.add_listener(RegisteredV1, lambda event: None)
    await publish(transport, Registered(number=1))
    await drain(replace(subscriber, bus=old))
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert "unknown version of registered: 2; this service knows registered_v1" in letter.error

    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)

    assert await transport.requeue(letter)

    done = await drain(subscriber)

    assert ([1], 1) == (handled, done.handled)


async def test_a_type_that_nobody_handles_is_acked_and_counted(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """Also when it is no envelope of ours in anything but its type, and without a unit of work."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    await publish(transport, Billed(number=1), Registered(number=2))
    await publish_raw(transport, type="weather_v1", payload=b"\xff rain")
    done = await drain(replace(subscriber, streams=[STREAM]))

    assert ([2, 0], 2, 2, 0) == (handled, done.handled, done.ignored, done.buried)


async def test_old_messages_are_handled_as_new_ones(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """What is upcast is new before a handler sees it; what fails to be is as good as undecodable."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    bus.upcast(RegisteredV1, lambda old: Registered(number=100 // old.n))
    await publish(transport, RegisteredV1(n=4), RegisteredV1(n=0), Registered(number=5))
    done = await drain(subscriber)

    assert ([25, 5], 2, 1) == (handled, done.handled, done.buried)
    assert "upcast of registered_v1" in (await transport.dead_letters(STREAM, GROUP))[0].error


# ---------------------------------------------------------------------------------------------------------- concurrency


async def test_at_concurrency_one_there_is_order_and_no_overlap(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """No handler starts before the unit of work of the one before has ended."""
    log: list[str] = []

    class Slow(Session):
        async def commit(self) -> None:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            log.append("commit")

    @bus.listen
    async def handle(event: Registered) -> None:
        log.append(f"begin {event.number}")
        await anyio.lowlevel.checkpoint()
        log.append(f"end {event.number}")

    await publish(transport, *(Registered(number=number) for number in range(50)))
    await drain(replace(subscriber, concurrency=1, unit_of_work=lambda _: UnitOfWork(Slow(log))))

    assert [line for n in range(50) for line in (f"begin {n}", f"end {n}", "commit")] == log


async def test_as_many_handlers_run_at_once_as_were_asked_for(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """As many, and never more."""
    running_now = most = 0
    release = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await release.wait()
        running_now -= 1

    await publish(transport, *(Registered(number=number) for number in range(40)))
    async with running(replace(subscriber, concurrency=7)):
        await wait_all_tasks_blocked()
        seen = most
        release.set()
        await wait_until(lambda: not running_now, description="all done")
        await wait_all_tasks_blocked()

        assert (7, 7) == (seen, most)
        assert (0, 0, 0) == await counts(transport)


async def test_slow_handlers_leave_the_rest_to_others(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """What is in hand is what can be started, plus one: a peer that comes finds work."""
    release = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        await release.wait()

    await publish(transport, *(Registered(number=number) for number in range(100)))
    async with running(replace(subscriber, concurrency=4)):
        await wait_all_tasks_blocked()
        unread, pending, _ = await counts(transport)

        assert pending <= 4 + 2
        assert 100 == unread + pending

        release.set()


# ---------------------------------------------------------------------------------------------------------- start, stop


async def test_start_returns_once_the_groups_exist(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """What is published after `tg.start(subscriber.run)` is seen, also by a group that begins at the end."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    async with running(replace(subscriber, start="$", streams=[STREAM, "others"])):
        await publish(transport, Registered(number=2))
        await wait_all_tasks_blocked()

        assert [2] == handled


async def test_cancellation_lets_running_handlers_finish_and_gives_back_the_rest(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """A cancelled subscriber drains: it is no failure of anybody."""
    handled: list[int] = []
    release = anyio.Event()
    ended = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        await release.wait()
        handled.append(event.number)

    await publish(transport, *(Registered(number=number) for number in range(10)))

    async def work(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            await replace(subscriber, concurrency=2).run(task_status=task_status)
        finally:
            ended.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(work)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await wait_all_tasks_blocked()

            assert not ended.is_set()
            assert [] == handled

            release.set()
            await ended.wait()

    unread, pending, delayed = await counts(transport)

    assert [0, 1] == sorted(handled)
    assert (8, 0) == (unread + pending, delayed)

    handle_all, all_handled = failing(ValueError, times=0)
    heir = MessageBus()
    heir.add_listener(Registered, handle_all)
    await drain(replace(subscriber, bus=heir))

    assert list(range(2, 10)) == sorted(all_handled)


async def test_past_the_grace_handlers_are_cancelled_and_what_they_had_is_given_back(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """As the same attempt, and under no suspicion: it was not their fault."""
    log: list[str] = []

    @bus.listen
    async def handle(event: Registered) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    await publish(transport, Registered(number=1))
    working = replace(subscriber, grace=0.01, unit_of_work=lambda _: UnitOfWork(Session(log)))
    async with running(working):
        await wait_all_tasks_blocked()

    assert ["cancelled", "rollback"] == log
    assert [(1, False)] == await taken_over(subscriber)


async def test_a_settlement_that_has_begun_is_not_torn(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """Past the grace, too: a failed attempt is one, and is not given back as if it had not been."""
    settling, settle = anyio.Event(), anyio.Event()
    handle, _ = failing(lambda: Retry(after=60))
    bus.add_listener(Registered, handle)
    async with anyio.create_task_group() as tasks:
        await tasks.start(replace(subscriber, grace=0.0).run)
        [subscription] = transport.subscriptions
        retry = subscription.retry

        async def slowly(*args: Any, **kwargs: Any) -> bool:
            settling.set()
            await settle.wait()

            return await retry(*args, **kwargs)

        subscription.retry = slowly  # type: ignore[method-assign]
        await publish(transport, Registered(number=1))
        await settling.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            settle.set()

    assert (0, 0, 1) == await counts(transport)


async def test_a_subscriber_can_be_run_again(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """Start, stop, start: one after another, and twice at once."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    for number in range(3):
        await publish(transport, Registered(number=number))
        async with running(subscriber), running(subscriber):
            await wait_all_tasks_blocked()

    assert [0, 1, 2] == handled
    assert 6 == len({subscription.consumer for subscription in transport.subscriptions})


async def test_it_ends_with_the_task_group_that_it_is_part_of(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """A sibling's error is the group's error; the subscriber just ends."""
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            await tasks.start(subscriber.run)
            raise LookupError("the web server fell over")

    assert [LookupError] == [type(error) for error in caught.value.exceptions]


async def test_a_timeout_around_it_ends_it(subscriber: Subscriber) -> None:
    """As around anything else."""
    with anyio.move_on_after(0.01) as scope:
        await subscriber.run()

    assert scope.cancelled_caught


async def test_a_cancellation_before_it_has_joined_ends_it(subscriber: Subscriber) -> None:
    """There is nothing to drain yet."""

    class Unreachable(MemoryTransport):
        @asynccontextmanager
        async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
            await anyio.sleep_forever()
            yield  # type: ignore[misc]

    with anyio.move_on_after(0.01) as scope:
        await replace(subscriber, transport=Unreachable()).run()

    assert scope.cancelled_caught


async def test_a_cancellation_at_the_moment_of_joining_ends_it(subscriber: Subscriber) -> None:
    """What has just joined is told to stop like any other, and does not run on for ever."""
    late: list[str] = []

    class Joined(Observed):
        @asynccontextmanager
        async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
            async with super().subscribe(request) as subscription:
                working.cancel()
                yield subscription

    async def give_up() -> None:
        await wait_all_tasks_blocked()
        late.append("it runs on")
        transport.subscriptions[0].stop()

    transport = Joined()
    async with anyio.create_task_group() as watching:
        watching.start_soon(give_up)
        with anyio.CancelScope() as working:
            await replace(subscriber, transport=transport).run()
        watching.cancel_scope.cancel()

    assert working.cancelled_caught
    assert [] == late


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_drains_as_well(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """`task.cancel()`, which is also what Ctrl-C does under `asyncio.run`, gives handlers their grace."""
    begun, release = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @bus.listen
    async def handle(event: Registered) -> None:
        begun.set()
        await release.wait()
        handled.append(event.number)

    await publish(transport, Registered(number=1), Registered(number=2))
    task = asyncio.create_task(replace(subscriber, concurrency=1).run())
    await begun.wait()
    task.cancel()
    await wait_all_tasks_blocked()

    assert not task.done()

    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [1] == handled
    assert 1 == sum(await counts(transport))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stray_cancelled_error_is_a_failed_attempt(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """A handler that awaits a cancelled future was not cancelled itself: it failed, and the subscriber goes on."""
    handled: list[int] = []

    @bus.listen
    async def handle(event: Registered, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        handled.append(event.number)

    await publish(transport, Registered(number=1), Registered(number=2))
    done = await drain(replace(subscriber, concurrency=1))

    assert ([1, 2], 2, 2) == (handled, done.handled, done.retried)


# --------------------------------------------------------------------------------------------------- leases and crashes


async def test_a_lost_lease_cancels_the_handler_and_discards_its_outcome(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """Another has taken it over: what is done here counts no more, and the worker goes on with the next."""
    log: list[str] = []
    seen: list[tuple[int, int]] = []

    @bus.listen
    async def handle(event: Registered) -> None:
        if event.number == 1:
            try:
                await anyio.sleep_forever()
            finally:
                log.append("cancelled")
        seen.append((event.number, 1))

    await publish(transport, Registered(number=1), Registered(number=2))
    working = replace(subscriber, concurrency=1, unit_of_work=lambda _: UnitOfWork(Session(log)))
    async with running(working):
        await wait_all_tasks_blocked()
        [loser] = transport.subscriptions
        loser.freeze()
        transport.clock.advance(31)
        async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as winner:
            [taken] = await winner.receive(1)
            loser.thaw()
            await wait_all_tasks_blocked()

            assert ["cancelled", "rollback", "commit"] == log
            assert [(2, 1)] == seen
            assert (1, 1, 0, 0) == (
                working.statistics().lost_leases,
                working.statistics().handled,
                working.statistics().retried,
                working.statistics().held,
            )

            winner.ack(taken)

            assert (0, 0, 0) == await counts(transport)
    assert "another consumer has taken it over" in caplog.text


async def test_a_lease_lost_during_the_commit_harms_nobody_else(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is not torn, its outcome is discarded, and the delivery that waits behind it is handled as if nothing had been."""
    monkeypatch.setattr("eventbus.subscriber.READ_AHEAD_SECONDS", 1e-9)  # read ahead at once, not after a look at the rate
    log: list[str] = []
    session = Session(log)
    session.may_commit = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(f"handle {event.number}")
        await anyio.lowlevel.checkpoint()

    await publish(transport, Registered(number=1), Registered(number=2))
    working = replace(subscriber, concurrency=1, unit_of_work=lambda _: UnitOfWork(session))
    async with running(working):
        await session.commits.wait()
        await wait_all_tasks_blocked()

        assert 1 == working.statistics().waiting

        [loser] = transport.subscriptions
        loser.freeze()
        transport.clock.advance(31)
        async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as winner:
            [taken] = await winner.receive(1)
            loser.thaw()
            session.may_commit.set()
            await wait_until(lambda: working.statistics().held == 0, description="both are over")

            assert ["handle 1", "commit", "handle 2", "commit"] == log
            assert 1 == working.statistics().handled

            winner.ack(taken)

    assert (0, 0, 0) == await counts(transport)


class Queue:
    """What waits behind the number 0, which is handled until it is released."""

    def __init__(self, bus: MessageBus) -> None:
        self.handled: list[int] = []
        self.release = anyio.Event()
        bus.listen(self._handle)

    async def _handle(self, event: Registered) -> None:
        if event.number == 0:
            await self.release.wait()
        self.handled.append(event.number)


@pytest.fixture
async def queue(bus: MessageBus, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr("eventbus.subscriber.READ_AHEAD_SECONDS", 1e-9)  # read ahead at once, not after a look at the rate

    return Queue(bus)


async def test_a_lease_lost_while_waiting_is_not_handled(subscriber: Subscriber, transport: Observed, queue: Queue) -> None:
    """What no handler has begun yet is dropped: its new owner handles it."""
    await publish(transport, *(Registered(number=number) for number in range(3)))
    async with running(replace(subscriber, concurrency=1)):
        await wait_all_tasks_blocked()
        [loser] = transport.subscriptions
        held = list(loser._held.values())

        assert len(held) > 1  # one runs, and something waits behind it

        loser.freeze()
        transport.clock.advance(31)
        async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as winner:
            taken = await winner.receive(10)
            loser.thaw()
            queue.release.set()
            await wait_all_tasks_blocked()

            assert 3 == len(taken)
            assert [] == queue.handled

            for delivery in taken:
                winner.ack(delivery)

    assert (0, 0, 0) == await counts(transport)


async def test_what_was_settled_during_a_pause_is_not_started_after_it(
    subscriber: Subscriber, transport: Observed, queue: Queue
) -> None:
    """A process that stood still for longer than its lease first asks what is its own still; what waits in it others have handled."""
    await publish(transport, *(Registered(number=number) for number in range(3)))
    working = replace(subscriber, concurrency=1)
    async with running(working):
        await wait_all_tasks_blocked()
        [loser] = transport.subscriptions
        held = len(loser._held)

        assert held > 1  # one runs, and something waits behind it

        loser.freeze()
        transport.clock.advance(31)
        async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as winner:
            for delivery in await winner.receive(10):
                winner.ack(delivery)
        queue.release.set()  # the worker is free before anybody has renewed
        await wait_all_tasks_blocked()

        assert [0] == queue.handled

        loser.thaw()
        await wait_until(lambda: working.statistics().held == 0, description="what waited is dropped")

        assert [0] == queue.handled
        assert held - 1 == working.statistics().lost_leases

        await publish(transport, Registered(number=3))
        await wait_until(lambda: queue.handled == [0, 3], description="it goes on")


async def test_what_is_ours_after_a_pause_is_handled(subscriber: Subscriber, transport: Observed, queue: Queue) -> None:
    """Nobody else was there to take it over."""
    await publish(transport, *(Registered(number=number) for number in range(3)))
    async with running(replace(subscriber, concurrency=1)):
        await wait_all_tasks_blocked()
        [paused] = transport.subscriptions
        paused.freeze()
        transport.clock.advance(31)
        queue.release.set()
        await wait_all_tasks_blocked()

        assert [0] == queue.handled

        paused.thaw()
        await wait_until(lambda: queue.handled == [0, 1, 2], description="the rest is handled")


async def test_what_is_not_known_to_be_ours_when_we_stop_is_given_back(
    subscriber: Subscriber, transport: Observed, queue: Queue
) -> None:
    """It has not been started: another takes it at once, as the same attempt, and not as a suspect."""
    await publish(transport, *(Registered(number=number) for number in range(2)))
    async with running(replace(subscriber, concurrency=1)):
        await wait_all_tasks_blocked()
        [paused] = transport.subscriptions
        paused.freeze()
        queue.release.set()
        await wait_all_tasks_blocked()

    async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as heir:
        with anyio.fail_after(5):
            [delivery] = await heir.receive(2)

    assert [0] == queue.handled
    assert (1, False) == (delivery.attempt, delivery.suspect)


async def test_suspects_run_one_at_a_time_after_a_pause_too(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """However many workers wait until it is known what is ours still."""
    at_once: list[int] = []
    begun: list[int] = []
    go_on = {number: anyio.Event() for number in range(4)}
    others = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        if event.number >= 4:
            await others.wait()
            return
        begun.append(event.number)
        at_once.append(sum(1 for number in begun if not go_on[number].is_set()))
        await go_on[event.number].wait()

    await publish(transport, *(Registered(number=number) for number in range(4)))
    await crash_with(transport, 4)
    await publish(transport, *(Registered(number=number) for number in range(4, 7)))
    async with running(replace(subscriber, concurrency=4)):
        await wait_all_tasks_blocked()

        assert [0] == begun

        paused = transport.subscriptions[-1]
        paused.freeze()
        go_on[0].set()  # the suspect ends, and its worker asks
        await wait_all_tasks_blocked()
        others.set()  # the others end, and theirs ask too
        await wait_all_tasks_blocked()
        paused.thaw()
        for number in range(1, 4):
            await wait_until(lambda number=number: number in begun, description=f"{number} begins")
            await wait_all_tasks_blocked()
            go_on[number].set()

    assert ([0, 1, 2, 3], [1, 1, 1, 1]) == (begun, at_once)


async def crash_with(transport: Observed, count: int) -> None:
    """Leave so many deliveries behind as a killed process would, with their leases run out."""
    async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as dying:
        await dying.receive(count)
        dying.abandon()
    transport.clock.advance(31)


async def test_suspects_run_one_at_a_time_and_beside_the_others(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """One of them may be what killed the process: it takes no other suspect with it."""
    suspects_now = most = 0
    handled: list[int] = []

    @bus.listen
    async def handle(event: Registered, delivery: Delivery) -> None:
        nonlocal suspects_now, most
        suspects_now += delivery.suspect
        most = max(most, suspects_now)
        await anyio.lowlevel.checkpoint()
        handled.append(event.number)
        suspects_now -= delivery.suspect

    await publish(transport, *(Registered(number=number) for number in range(10)))
    await crash_with(transport, 5)
    done = await drain(subscriber)

    assert (list(range(10)), 1, 10) == (sorted(handled), most, done.handled)


async def test_suspects_that_take_long_hold_up_none_of_the_others(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """What waits for its turn among them takes no room: what is new is read and handled meanwhile."""
    handled: list[int] = []
    first = anyio.Event()

    @bus.listen
    async def handle(event: Registered, delivery: Delivery) -> None:
        if delivery.suspect:
            await first.wait()
        handled.append(event.number)

    await publish(transport, *(Registered(number=number) for number in range(20)))
    await crash_with(transport, 20)
    await publish(transport, *(Registered(number=number) for number in range(20, 25)))
    async with running(replace(subscriber, concurrency=2)):
        await wait_all_tasks_blocked()
        assert [20, 21, 22, 23, 24] == handled
        first.set()
        await wait_all_tasks_blocked()

    assert set(range(25)) == set(handled)


async def test_what_kills_its_process_again_and_again_is_buried(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """After `max_crashes` counted starts; its neighbours are handled."""
    begun: list[int] = []
    handled: list[int] = []

    @bus.listen
    async def handle(event: Registered, delivery: Delivery) -> None:
        begun.append(event.number)
        if event.number == 0:
            transport.subscriptions[-1].abandon()
            await anyio.sleep_forever()
        handled.append(event.number)

    await publish(transport, *(Registered(number=number) for number in range(4)))
    working = replace(subscriber, concurrency=1, grace=0.0, max_crashes=2)
    for _ in range(5):
        async with running(working):
            await wait_all_tasks_blocked()
        transport.clock.advance(31)
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert 1 + 2 == begun.count(0)
    assert [1, 2, 3] == handled
    assert ("crash loop", 1) == (letter.reason, letter.attempts)
    assert (0, 0, 0) == await counts(transport)


async def test_a_crash_loop_is_counted_as_buried_and_said(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """Though no handler ran."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    for _ in range(2):
        await crash_with(transport, 1)
        async with transport.subscribe(Subscribe(streams=[STREAM], group=GROUP)) as dying:
            [suspect] = await dying.receive(1)
            await dying.begin(suspect)
            dying.abandon()
        transport.clock.advance(31)
    done = await drain(replace(subscriber, max_crashes=1))
    [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]

    assert ([], 1, 0) == (handled, done.buried, done.handled)
    assert f"{suspect.entry_id} registered_v2: buried, crash loop: processes die while they handle it (counted starts: 1)" in said


# ----------------------------------------------------------------------------------------------------------- what fails


class Broken(MemoryTransport):
    """A server that says no to one thing."""

    def __init__(self, verb: str, error: Exception) -> None:
        super().__init__()
        self.verb, self.error = verb, error

    @asynccontextmanager
    async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
        if self.verb == "subscribe":
            raise self.error
        async with super().subscribe(request) as subscription:

            async def refuse(*args: Any, **kwargs: Any) -> Any:
                await anyio.lowlevel.checkpoint()
                raise self.error

            setattr(subscription, self.verb, refuse)
            yield subscription


@pytest.mark.parametrize("verb", ["subscribe", "receive", "retry", "release"])
async def test_what_the_server_refuses_for_good_is_raised_as_it_is(bus: MessageBus, subscriber: Subscriber, verb: str) -> None:
    """One error, not a group of groups; with its cause, and never in silence."""
    bus.add_listener(Registered, failing(lambda: ValueError("odd"))[0])
    refused = Refused("WRONGTYPE: a key of this stream holds something else")
    refused.__cause__ = OSError("as the driver says it")
    transport = Broken(verb, refused)
    await publish(transport, Registered(number=1))
    working = replace(subscriber, transport=transport)
    with pytest.raises(Refused) as caught, anyio.move_on_after(0.05 if verb == "release" else 5):
        await working.run()

    assert caught.value is refused
    assert isinstance(caught.value.__cause__, OSError)


async def test_what_is_refused_to_several_handlers_at_once_is_raised_once(bus: MessageBus, subscriber: Subscriber) -> None:
    """``except Refused`` catches it, however many were about to bury."""
    transport = Broken("bury", Refused("WRONGTYPE: a key of this stream holds something else"))
    both = anyio.Event()
    waiting: list[int] = []

    @bus.listen
    async def handle(event: Registered) -> None:
        waiting.append(event.number)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        raise Reject("never")

    await publish(transport, Registered(number=1), Registered(number=2))
    with pytest.raises(Refused, match="WRONGTYPE"):
        await replace(subscriber, transport=transport).run()


async def test_the_grace_begins_when_it_is_told_to_stop(bus: MessageBus, subscriber: Subscriber) -> None:
    """Also where the server stands still, and keeps the reader waiting."""

    class Deaf(Observed):
        @asynccontextmanager
        async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
            async with super().subscribe(request) as subscription:
                receive = subscription.receive

                async def receive_and_wait(limit: int) -> Any:
                    found = await receive(limit)
                    if not found:
                        with anyio.move_on_after(5) as patience:
                            await released.wait()
                        if patience.cancelled_caught:
                            log.append("too late")
                    return found

                subscription.receive = receive_and_wait  # type: ignore[method-assign]
                yield subscription

    transport = Deaf()
    log: list[str] = []
    released = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")
            released.set()

    await publish(transport, Registered(number=1))
    async with running(replace(subscriber, transport=transport, grace=0.05)):
        await wait_all_tasks_blocked()

    assert ["cancelled"] == log
    assert 1 == sum(await counts(transport))


async def test_it_does_not_end_in_silence(bus: MessageBus, subscriber: Subscriber) -> None:
    """A transport that delivers nothing though nobody told it to stop has broken its promise."""

    class Silent(Observed):
        @asynccontextmanager
        async def subscribe(self, request: Subscribe, /) -> AsyncIterator[MemorySubscription]:
            async with super().subscribe(request) as subscription:
                subscription.stop()
                yield subscription

    with pytest.raises(TransportError, match="nobody stopped it"):
        await replace(subscriber, transport=Silent()).run()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_exit_of_the_process_is_not_a_failed_attempt(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`SystemExit` in a handler ends the subscriber, which says so. What it had is not lost: that is a suspect, and its neighbours are as if
    nobody had had them.
    """

    @bus.listen
    async def handle(event: Registered) -> None:
        if event.number == 1:
            raise SystemExit(3)
        await anyio.sleep_forever()

    anyio.run(publish, transport, *map(Registered, (0, 1, 2)), backend=backend)
    with pytest.raises(SystemExit):
        anyio.run(replace(subscriber, grace=0.0).run, backend=backend)

    assert (0, 3, 0) == anyio.run(counts, transport, backend=backend)
    assert "registered_v2: SystemExit(3) in its handler ends the subscriber; this is delivered again" in caplog.text

    seen: dict[int, tuple[int, bool]] = {}
    heir = MessageBus()

    @heir.listen
    async def take(event: Registered, delivery: Delivery) -> None:
        seen[event.number] = delivery.attempt, delivery.suspect

    transport.clock.advance(subscriber.lease + 1)
    anyio.run(drain, replace(subscriber, bus=heir), backend=backend)

    assert {0: (1, False), 1: (1, True), 2: (1, False)} == seen


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_loop_that_ends_is_not_a_failed_attempt(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """`asyncio.run` cancels every task that is left, the handlers' own too: what they had is given back, as the same attempt."""
    started = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        started.set()
        await anyio.sleep_forever()

    await publish(transport, Registered(number=1))
    before = asyncio.all_tasks()
    run = asyncio.ensure_future(subscriber.run())
    await started.wait()
    ours = asyncio.all_tasks() - before
    assert run in ours
    for task in ours:  # as `asyncio.run` does in the end
        task.cancel()
    await asyncio.gather(*ours, return_exceptions=True)

    unread, pending, delayed = await counts(transport)

    assert (1, 0) == (unread + pending, delayed)
    assert [(1, False)] == await taken_over(subscriber)


async def test_when_the_publish_after_the_commit_fails_it_is_another_attempt(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """What was committed cannot be taken back, and what was not published must not be forgotten."""

    class Full(MemoryTransport):
        refused = False

        async def publish(self, envelopes: Any, /) -> list[str]:
            if not self.refused:
                self.refused = True
                raise OSError("no memory")

            return await super().publish(envelopes)

    elsewhere = Full()

    @bus.listen
    async def handle(event: Registered, uow: UnitOfWork) -> None:
        uow.emit(Welcomed(number=event.number))

    await publish(transport, Registered(number=1))
    done = await drain(replace(subscriber, unit_of_work=lambda _: UnitOfWork(transport=elsewhere)))

    assert [Welcomed(number=1)] == elsewhere.messages(Welcomed)
    assert (1, 1) == (done.handled, done.retried)


# --------------------------------------------------------------------------------------------------------- look inside


async def test_statistics_tell_what_it_does(bus: MessageBus, subscriber: Subscriber, transport: Observed) -> None:
    """While it runs; without a run there is nothing to tell."""
    release = anyio.Event()

    @bus.listen
    async def handle(event: Registered) -> None:
        match event.number:
            case 1:
                raise Reject
            case 2:
                raise Retry(after=100)
            case 3:
                await release.wait()

    assert Statistics() == subscriber.statistics()

    await publish(transport, Billed(number=0), *(Registered(number=number) for number in range(4)))
    async with running(subscriber):
        await wait_all_tasks_blocked()
        statistics = subscriber.statistics()

        assert Statistics(
            running=1, handled=1, ignored=1, retried=1, buried=1, last_progress=statistics.last_progress
        ) == statistics  # fmt: skip
        assert 1 == statistics.held
        assert statistics.last_progress is not None

        release.set()
        await wait_all_tasks_blocked()

        assert (2, 0) == (subscriber.statistics().handled, subscriber.statistics().held)

    assert Statistics() == subscriber.statistics()


async def test_what_fails_is_logged_once_and_safely(
    bus: MessageBus, subscriber: Subscriber, transport: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each failed attempt, with nothing in it that a message could smuggle into a terminal."""

    @bus.listen
    async def handle(event: Registered) -> None:
        raise ValueError(event.title)

    await publish(transport, Registered(number=1, title="\x1b[2J\nINFO all is well " + "x" * 5000))
    with caplog.at_level(logging.INFO, "eventbus"):
        await drain(replace(subscriber, retry=exponential(attempts=2, jitter=0.0)))
    records = [record for record in caplog.records if record.name == "eventbus" and record.levelno >= logging.WARNING]
    lines = [record.getMessage() for record in records]

    assert ["WARNING", "ERROR"] == [record.levelname for record in records]
    assert all(line.isprintable() and len(line) < 500 for line in lines)
    assert "attempt 1 failed, again in 1 s: ValueError" in lines[0]
    assert "buried at attempt 2, attempts exhausted: ValueError" in lines[1]


async def test_causes_are_kept_across_the_stream(bus: MessageBus, transport: Observed, subscriber: Subscriber) -> None:
    """One correlation id for everything that followed, over services, retries and requeues; each message's cause is its parent."""

    @bus.listen
    async def welcome(event: Registered, uow: UnitOfWork, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise Retry(after=1)
        uow.emit(Welcomed(number=event.number))

    billing = MessageBus()
    rejected = False

    @billing.listen
    async def bill(event: Welcomed, uow: UnitOfWork) -> None:
        nonlocal rejected
        if not rejected:
            rejected = True
            raise Reject
        uow.emit(Billed(number=event.number))

    [first] = await publish(transport, Registered(number=1))
    await drain(subscriber)
    await drain(replace(subscriber, group="billing", bus=billing))
    [letter] = await transport.dead_letters(STREAM, "billing")
    await transport.requeue(letter)
    await drain(replace(subscriber, group="billing", bus=billing))
    registered, welcomed, billed = transport.envelopes

    assert ["registered_v2", "welcomed_v1", "billed_v1"] == [registered.type, welcomed.type, billed.type]
    assert [first] * 3 == [registered.correlation_id, welcomed.correlation_id, billed.correlation_id]
    assert [None, registered.id, welcomed.id] == [registered.causation_id, welcomed.causation_id, billed.causation_id]


async def test_what_came_from_a_stream_is_not_published_again(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """Though its class says that it is published: it is there already."""
    handle, handled = failing(ValueError, times=0)
    bus.add_listener(Registered, handle)
    await publish(transport, Registered(number=1))
    await drain(subscriber)

    assert ([1], 1) == (handled, len(transport.envelopes))


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"streams": "events"}, "give a list of stream names"),
        ({"streams": []}, "give a list of stream names"),
        ({"streams": ["no spaces please"]}, "stream name 'no spaces please'"),
        ({"streams": ["events", "events"]}, "twice"),
        ({"group": ""}, "group name ''"),
        ({"group": "ä"}, "group name 'ä'"),
        ({"start": "yesterday"}, "start='yesterday'"),
        ({"start": "18446744073709551616"}, "start='18446744073709551616'"),
        ({"start": "1-18446744073709551616"}, "start='1-18446744073709551616'"),
        ({"start": "\N{ARABIC-INDIC DIGIT THREE}"}, "start="),
        ({"start": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ({"bus": None}, "give a MessageBus"),
        ({"transport": "redis://localhost"}, "write transport=connect("),
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": 2.5}, "concurrency=2.5"),
        ({"concurrency": 10_001}, "concurrency=10001): 10000 at the most"),
        ({"lease": 0}, "lease=0"),
        ({"grace": -1}, "grace=-1"),
        ({"max_crashes": 0}, "max_crashes=0"),
        ({"lease": "30"}, "lease='30'"),
        ({"lease": float("inf")}, "lease=inf"),
        ({"retry": 3}, "retry=3): give a policy, like exponential(attempts=6)"),
        ({"unit_of_work": UnitOfWork()}, "unit_of_work=<UnitOfWork closed>): give a function of the transport"),
    ],
)
def test_a_mistake_is_found_where_it_is_made(bus: MessageBus, transport: Observed, changes: dict[str, Any], text: str) -> None:
    """Not when the first message comes."""
    settings: dict[str, Any] = {"bus": bus, "transport": transport, "streams": [STREAM], "group": GROUP}
    with pytest.raises(ConfigurationError) as caught:
        Subscriber(**settings | changes)

    assert text in str(caught.value)


def test_a_declaration_may_begin_anywhere_and_be_copied(subscriber: Subscriber) -> None:
    """`dataclasses.replace` makes another, which shares nothing with it but what it declares."""
    for start in ("0", "$", "1700000000000-0", "18446744073709551615-18446744073709551615", datetime(2026, 1, 1, tzinfo=UTC)):
        other = replace(subscriber, start=start)

        assert start == other.start
        assert subscriber.group == other.group
        assert other._runs is not subscriber._runs


async def test_commands_may_be_delivered_too(subscriber: Subscriber, transport: Observed) -> None:
    """A command that was published is handled like an event."""

    class Bill(Command):
        metadata = Metadata(name="bill", published=True)
        number: int

    handled: list[int] = []
    bus = MessageBus()

    async def handle(command: Bill) -> None:
        handled.append(command.number)

    bus.add_listener(Bill, handle)
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Bill(number=4))  # type: ignore[arg-type]
        await uow.commit()
    await drain(replace(subscriber, bus=bus))

    assert [4] == handled


async def test_a_reused_unit_of_work_is_a_mistake_that_shows(
    bus: MessageBus, subscriber: Subscriber, transport: Observed
) -> None:
    """A factory that hands out the same object to two handlers at once is found by the second."""
    shared = UnitOfWork()
    release = anyio.Event()
    failures: list[Exception] = []

    def policy(attempt: int, error: Exception) -> float | None:
        failures.append(error)

        return None

    @bus.listen
    async def handle(event: Registered) -> None:
        await release.wait()

    await publish(transport, Registered(number=1), Registered(number=2))
    async with running(replace(subscriber, unit_of_work=lambda _: shared, retry=policy)):
        with suppress(TimeoutError):
            await wait_until(lambda: bool(failures), description="the second has failed", timeout=5)
        release.set()

    assert [TransactionError] == [type(error) for error in failures]
