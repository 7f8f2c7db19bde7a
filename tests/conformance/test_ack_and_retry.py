"""Ack and retry"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from eventbus import Delivery, Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork, exponential
from eventbus.errors import Refused
from eventbus.testing import drain
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, nothing_left, once, publish
from tests.conformance.inbox import Database, InboxUnitOfWork
from tests.conformance.places import Place


async def test_020_what_was_acked_does_not_come_again(place: Place) -> None:
    """What was acked is not delivered again in undisturbed running."""
    transport = await place.connect()
    await publish(transport, *range(50))
    first = Reader(transport, lease=place.lease)
    await first.drain()
    second = Reader(transport, lease=place.lease)
    async with first.running(), second.running():
        await place.pass_time(1.5 * place.lease)
        await publish(transport, 50)
        await place.wait_until(lambda: 50 in first.handled + second.handled, description="what is new has come")

    assert once(range(51)) == once(first.handled + second.handled)


class HeldUp:
    """A database whose commit waits until it may."""

    def __init__(self) -> None:
        self.committing, self.may = anyio.Event(), anyio.Event()

    async def commit(self) -> None:
        self.committing.set()
        await self.may.wait()

    async def rollback(self) -> None:
        pass


async def test_021_nothing_is_acked_before_it_is_committed(place: Place) -> None:
    """Nothing is acked before the handler returned and the unit of work committed."""
    transport = await place.connect()
    await publish(transport, 1)
    session, handling, may_return = HeldUp(), anyio.Event(), anyio.Event()

    async def does(event: Registered, delivery: Delivery) -> None:
        handling.set()
        await may_return.wait()

    reader = Reader(transport, does, unit_of_work=lambda transport: UnitOfWork(session, transport=transport))
    async with reader.running():
        with anyio.fail_after(10):
            await handling.wait()

            assert (0, 1, 0) == await counts(transport)

            may_return.set()
            await session.committing.wait()

            assert (0, 1, 0) == await counts(transport)

        session.may.set()
        await place.wait_until(lambda: nothing_left(transport), description="it is settled")


async def test_022_an_exception_brings_it_again_as_the_policy_says(place: Place) -> None:
    """A handler's exception brings the delivery again, as the policy says."""
    transport = await place.connect()
    await publish(transport, *range(100))
    asked: list[tuple[int, str]] = []

    def policy(attempt: int, error: Exception) -> float | None:
        asked.append((attempt, str(error)))
        return 0.02

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number % 50 == 7 and delivery.attempt < 4:
            raise ValueError(f"{event.number} jams")

    reader = Reader(transport, does, retry=policy)
    done = await reader.drain()

    assert once(range(100)) == once(reader.handled)
    assert [(n, f"{number} jams") for n in (1, 2, 3) for number in (7, 57)] == sorted(
        asked, key=lambda row: (row[0], len(row[1]))
    )
    assert (100, 6) == (done.handled, done.retried)


async def test_023_a_retry_comes_when_it_was_asked_for(place: Place) -> None:
    """`Retry(after=d)`: not before d, and before d plus a stated tolerance (1 s)."""
    transport = await place.connect()
    await publish(transport, 1)
    delay = 0.2 if place.client else 3600.0
    times: list[float] = []

    async def does(event: Registered, delivery: Delivery) -> None:
        times.append(place.time())
        if delivery.attempt == 1:
            raise Retry(after=delay)

    reader = Reader(transport, does)
    async with reader.running():
        await place.wait_until(lambda: _delayed(transport), description="the first attempt was made", within=0.2)
        if not place.client:
            await place.pass_time(delay - 1)
            assert 1 == len(times)
        await place.wait_until(lambda: bool(reader.handled), description="the second attempt was made", within=10.0)

    assert delay - 0.01 <= times[1] - times[0] <= delay + place.tolerance


async def test_024_a_retry_is_the_same_envelope_and_concerns_nobody_else(place: Place) -> None:
    """A retry keeps the envelope id and reaches no other group."""
    transport = await place.connect()
    await publish(transport, *range(10))
    ids: dict[int, set[str]] = {}

    async def does(event: Registered, delivery: Delivery) -> None:
        ids.setdefault(event.number, set()).add(delivery.envelope.id)
        if delivery.attempt < 3:
            raise Retry(after=0.01)

    failing, other = Reader(transport, does, group="failing"), Reader(transport, group="other")
    async with other.running():
        await failing.drain()
        await publish(transport, 10)
        await place.wait_until(lambda: 10 in other.handled, description="the other group has read on")

    assert dict.fromkeys(range(10), 1) == {number: len(found) for number, found in ids.items()}
    assert [(number, attempt) for number in range(10) for attempt in (1, 2, 3)] == sorted(failing.starts)
    assert [(number, 1) for number in range(11)] == sorted(other.starts)


async def test_025_subscribers_that_fail_leave_everything_to_a_sound_one(place: Place) -> None:
    """Three subscribers that fail 100 times each, then a sound one: it handles all 50."""
    transport = await place.connect()
    await publish(transport, *range(50))

    async def fails(event: Registered, delivery: Delivery) -> None:
        raise Retry(after=0.0)

    for _ in range(3):
        broken = Reader(transport, fails)
        async with broken.running():
            await place.wait_until(lambda broken=broken: len(broken.starts) >= 100, description="it failed 100 times")
    sound = Reader(transport)
    await sound.drain()

    assert once(range(50)) == once(sound.handled)
    assert max(attempt for _, attempt in sound.starts) > 4


async def test_026_a_failed_attempt_leaves_no_trace(place: Place) -> None:
    """What a failed attempt changed in headers or message is not seen by the next."""
    transport = await place.connect()
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Registered(1, tags=["new"]), headers={"shelf": "A"})
        await uow.commit()
    seen: list[tuple[list[str], dict[str, str]]] = []

    async def does(event: Registered, delivery: Delivery) -> None:
        headers: Any = delivery.envelope.headers
        seen.append((list(event.tags), dict(headers)))
        event.tags.append("torn")
        headers["shelf"] = "B"
        if delivery.attempt < 3:
            raise Retry(after=0.0)

    await Reader(transport, does).drain()

    assert [(["new"], {"shelf": "A"})] * 3 == seen


async def test_027_the_attempt_number_rises_by_one(place: Place) -> None:
    """The attempt number is visible to the handler and rises by one over retries, restarts and other consumers."""
    transport = await place.connect()
    await publish(transport, 1)
    starts: list[tuple[int, int]] = []
    for attempts in (2, 3):  # one consumer fails twice and goes, another fails and goes

        async def does(event: Registered, delivery: Delivery, attempts: int = attempts) -> None:
            raise Retry(after=0.0 if delivery.attempt < attempts else 0.05)

        reader = Reader(transport, does, lease=place.lease)
        async with reader.running():
            await place.wait_until(lambda reader=reader, n=attempts: (1, n) in reader.starts, description="it failed so often")
            await place.wait_until(lambda: _delayed(transport), description="it waits for the next attempt")
        starts += reader.starts
    async with place.worker(hang=[1]) as worker:  # a third dies in its attempt
        await place.wait_until(lambda: bool(place.ledger.began), description="the worker has begun")
        await worker.crash()
    starts += place.ledger.began
    last = Reader(transport, lease=place.lease)  # and the next, which has the same number, succeeds
    await last.drain()

    assert [(1, 1), (1, 2), (1, 3), (1, 4), (1, 4)] == starts + last.starts


async def _delayed(transport: Any) -> bool:
    return (await transport.backlog(STREAM, GROUP)).delayed > 0


async def test_028_a_former_owner_decides_nothing(place: Place) -> None:
    """A former owner's late retry, bury or release is refused and changes nothing."""
    transport = await place.connect()
    await publish(transport, *range(3))
    async with place.line() as (behind, line), behind.subscribe(place.request(lease=place.lease)) as loser:
        lost = await place.take(loser, 3)
        line.stall()
        async with transport.subscribe(place.request(lease=place.lease)) as winner:
            taken = await place.take(winner, 3)
            line.resume()

            assert not await loser.retry(lost[0], after=0.0)
            assert not await loser.bury(lost[1], reason="too late")
            await loser.release(lost)
            assert not await loser.begin(lost[2])

            assert (0, 3, 0) == await counts(transport)
            assert [] == await transport.dead_letters(STREAM, GROUP)

            assert await winner.begin(taken[0])
            for delivery in taken:
                winner.ack(delivery)
            await winner.flush()

    assert (0, 0, 0) == await counts(transport)


async def test_029_settling_twice_is_settling_once(place: Place) -> None:
    """Settling twice is settling once."""
    transport = await place.connect()
    await publish(transport, *range(3))
    async with transport.subscribe(place.request()) as subscription:
        acked, retried, buried = await place.take(subscription, 3)
        subscription.ack(acked)
        await subscription.flush()
        subscription.ack(acked)
        await subscription.flush()

        assert not await subscription.retry(acked, after=0.0)
        assert not await subscription.bury(acked, reason="handled")

        assert await subscription.retry(retried, after=3600.0)
        assert not await subscription.retry(retried, after=0.0)
        assert not await subscription.bury(retried, reason="to come again")

        assert await subscription.bury(buried, reason="first")
        assert not await subscription.bury(buried, reason="second")
        assert not await subscription.retry(buried, after=0.0)

    assert (0, 0, 1) == await counts(transport)
    assert ["first"] == [letter.reason for letter in await transport.dead_letters(STREAM, GROUP)]


@pytest.mark.not_on("memory", because="an ack is done when it is said")
async def test_030_an_ack_whose_reply_was_lost_has_no_second_effect(place: Place) -> None:
    """An ack whose reply was lost re-runs no effect where the inbox is on."""
    await publish(await place.connect(), *range(20))
    database = Database()
    bus = MessageBus()

    @bus.listen
    async def write(event: Registered, uow: InboxUnitOfWork) -> None:
        uow.writes.append(event.number)

    async with place.line() as (transport, line):
        line.cut("ack")
        line.cut("ack", after=True)
        await drain(
            Subscriber(
                bus=bus, transport=transport, streams=[STREAM], group=GROUP, unit_of_work=database.unit_of_work, concurrency=3
            )
        )

        assert 0 == line.pending_cuts

    assert once(range(20)) == once(database.effects)


async def test_031_a_policy_that_fails_keeps_the_delivery(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A failure in the error path itself (policy, dead letter, delayed set) keeps the delivery."""
    transport = await place.connect()
    await publish(transport, 1)

    def policy(attempt: int, error: Exception) -> float | None:
        raise ZeroDivisionError("the policy has a mistake")

    async def does(event: Registered, delivery: Delivery) -> None:
        raise ValueError("no ink")

    async with Reader(transport, does, retry=policy).running():
        with caplog.at_level(logging.ERROR, "eventbus"):
            await place.wait_until(lambda: _delayed(transport), description="it is to come again", within=1.0)

    assert (0, 0, 1) == await counts(transport)
    assert "the retry policy failed" in caplog.text


@pytest.mark.not_on("memory", because="its lists are always there, so nothing of it can be refused")
@pytest.mark.parametrize(("spoiled", "error"), [("{club}:dead:readers", Reject), ("{club}:delayed:readers", Retry)])
async def test_031_a_settlement_that_is_refused_keeps_the_delivery(place: Place, spoiled: str, error: type[Exception]) -> None:
    """A failure in the error path itself (policy, dead letter, delayed set) keeps the delivery."""
    transport = await place.connect()
    await publish(transport, 1)
    mistakes = iter([error("this once")])

    async def does(event: Registered, delivery: Delivery) -> None:
        for mistake in mistakes:
            place.client.set(spoiled, "a string")
            raise mistake

    reader = Reader(transport, does, retry=exponential(base=0.0))
    with pytest.raises(Refused, match="WRONGTYPE"):
        await reader.subscriber.run()

    assert 1 == place.client.xpending(STREAM, GROUP)["pending"]

    place.client.delete(spoiled)
    await reader.drain()

    assert [1] == reader.handled


class Borrowed(Event):
    metadata = Metadata(name="borrowed", published=True, stream=STREAM)


async def test_032_what_is_rejected_or_not_known_is_counted_and_does_not_come_again(place: Place) -> None:
    """`Reject` never delivers again and is counted; a type that nobody handles is acked and counted."""
    transport = await place.connect()
    async with UnitOfWork(transport=transport) as uow:
        for number in range(3):
            uow.emit(Registered(number))
            uow.emit(Borrowed())
        await uow.commit()

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number == 1:
            raise Reject("not for us")

    reader = Reader(transport, does)
    done = await reader.drain()
    again = await reader.drain()

    assert (2, 1, 3, 0) == (done.handled, done.buried, done.ignored, done.retried)
    assert (0, 0, 0) == (again.handled, again.buried, again.ignored)
    assert [(0, 1), (1, 1), (2, 1)] == sorted(reader.starts)
