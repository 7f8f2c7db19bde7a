"""Meaning"""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import msgspec
import pytest

from eventbus import Delivery, Envelope, Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork, exponential
from eventbus.envelope import seal
from eventbus.testing import drain
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, envelopes, once, publish
from tests.conformance.inbox import Database, InboxUnitOfWork
from tests.conformance.places import Place


async def test_094_a_second_delivery_has_no_second_effect(place: Place) -> None:
    """With an inbox a second delivery runs no effect, two at once neither."""
    transport = await place.connect()
    database = Database()
    bus = MessageBus()
    failing = {7}

    @bus.listen
    async def write(event: Registered, uow: InboxUnitOfWork) -> None:
        uow.writes.append(event.number)
        await anyio.lowlevel.checkpoint()
        if event.number in failing:
            failing.clear()
            raise ValueError("this once")

    here = envelopes(range(20))
    there = [msgspec.structs.replace(envelope, stream="copies") for envelope in here]
    await transport.publish([envelope for pair in zip(here, there, strict=True) for envelope in pair])
    subscriber = Subscriber(
        bus=bus,
        transport=transport,
        streams=[STREAM, "copies"],
        group=GROUP,
        unit_of_work=database.unit_of_work,
        retry=exponential(base=0.01),
    )
    done = await drain(subscriber)

    assert once(range(20)) == once(database.effects)
    assert (20, 20, 1) == (done.handled, done.duplicates, done.retried)


class TitledV1(Event):
    metadata = Metadata(name="titled", schema_version=1, published=True, stream=STREAM)
    name: str


class Titled(Event):
    metadata = Metadata(name="titled", schema_version=2, published=True, stream=STREAM)
    title: str


class TitledV3(Event):
    metadata = Metadata(name="titled", schema_version=3, published=True, stream=STREAM)
    title: str
    language: str


async def test_095_old_versions_are_upcast_and_new_ones_wait(place: Place) -> None:
    """An older schema version is upcast before dispatch; one newer than any known is buried with its bytes, and can be requeued after \
the deploy."""
    transport = await place.connect()
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(TitledV1("Dune"))
        uow.emit(Titled("Solaris"))
        uow.emit(TitledV3("Пикник", "ru"))
        await uow.commit()
    seen: list[Event] = []
    bus = MessageBus()
    bus.upcast(TitledV1, lambda old: Titled(old.name))

    @bus.listen
    async def shelve(event: Titled) -> None:
        seen.append(event)

    before = Subscriber(bus=bus, transport=transport, streams=[STREAM], group=GROUP, concurrency=1)
    await drain(before)
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert [Titled("Dune"), Titled("Solaris")] == seen
    assert ("titled_v3", '{"title":"Пикник","language":"ru"}'.encode()) == (letter.envelope.type, letter.envelope.payload)

    after = MessageBus()

    @after.listen
    async def shelve_by_language(event: TitledV3) -> None:
        seen.append(event)

    await transport.requeue(letter)
    await drain(Subscriber(bus=after, transport=transport, streams=[STREAM], group=GROUP))

    assert [TitledV3("Пикник", "ru")] == seen[2:]


class Shelved(Event):
    metadata = Metadata(name="shelved", published=True, stream="shelves")
    number: int


async def test_096_the_cause_is_kept(place: Place) -> None:
    """The correlation id is kept and the causation id is the parent's, over retry, dead letter and requeue."""
    transport = await place.connect()
    [plain] = envelopes([1])
    first = msgspec.structs.replace(plain, headers={"correlation_id": "the-first-of-all", "causation_id": "its-parent"})
    await transport.publish([first])
    seen: list[Envelope] = []
    bus = MessageBus()
    broken = True

    @bus.listen
    async def shelve(event: Registered, envelope: Envelope, delivery: Delivery, uow: UnitOfWork) -> None:
        seen.append(envelope)
        if delivery.attempt == 1:
            raise Retry(after=0.0)
        if broken:
            raise Reject
        uow.emit(Shelved(event.number))

    subscriber = Subscriber(bus=bus, transport=transport, streams=[STREAM], group=GROUP)
    await drain(subscriber)
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert first == letter.envelope

    broken = False
    await transport.requeue(letter)
    await drain(subscriber)

    assert [first] * 4 == seen

    async with transport.subscribe(place.request(streams=["shelves"])) as subscription:
        [delivery] = await place.take(subscription, 1)

    assert ("the-first-of-all", first.id) == (
        delivery.envelope.headers["correlation_id"], delivery.envelope.headers["causation_id"]
    )  # fmt: skip


@pytest.mark.not_on("memory", because="it has no audit")
async def test_098_the_numbers_add_up(place: Place) -> None:
    """The numbers add up, per group: added = settled + pending + unread, delayed = moved + waiting, and a difference is an error."""
    transport = await place.connect()
    await publish(transport, *range(100))

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number % 10 == 1 and delivery.attempt == 1:
            raise Retry(after=0.0 if event.number < 50 else 3600.0)
        if event.number % 10 == 2:
            raise Reject

    async with transport.subscribe(place.request(group="late")) as subscription:
        for delivery in await place.take(subscription, 20):
            subscription.ack(delivery)
    reader = Reader(transport, does)
    async with reader.running():
        await place.wait_until(lambda: _stands(transport, (0, 0, 5)), description="all but what waits is settled")
        retried = reader.statistics.retried
    moved = sum(attempt == 2 for _, attempt in reader.starts)

    assert (10, 5) == (retried, moved)
    assert retried == moved + (await transport.backlog(STREAM, GROUP)).delayed

    await publish(transport, *range(100, 130))
    async with transport.subscribe(place.request()) as subscription:
        await place.take(subscription, 10)
        found, late = await transport.audit(STREAM, GROUP), await transport.audit(STREAM, "late")

        assert (130, 100, 10, 20, 0, True) == (
            found.added, found.settled, found.pending, found.unread, found.lost, bool(found)
        )  # fmt: skip
        assert (130, 20, 0, 110, 0, True) == (late.added, late.settled, late.pending, late.unread, late.lost, bool(late))

        [(newest, _)] = place.client.xrevrange(STREAM, count=1)
        place.client.xdel(STREAM, newest)
        found = await transport.audit(STREAM, GROUP)

        assert (1, False) == (found.lost, bool(found))
        assert (10, 5, 5, 0) == (found.delayed, found.moved, found.waiting, found.lost_retries)

        place.client.zpopmin(f"{{{STREAM}}}:delayed:{GROUP}", 2)
        found = await transport.audit(STREAM, GROUP)

        assert (10, 5, 3, 2, False) == (found.delayed, found.moved, found.waiting, found.lost_retries, bool(found))


async def _stands(transport: Any, expected: tuple[int, int, int]) -> bool:
    return expected == await counts(transport)


class Unheard(Event):
    metadata = Metadata(name="unheard", published=True, stream=STREAM)


async def test_100_the_results_are_the_same_everywhere(place: Place) -> None:
    """The same results on every supported server, under RESP2 and RESP3, and in memory."""
    for protocol in (2, 3):
        stream = f"club-{protocol}"
        transport = await place.connect(protocol=protocol)
        sent = envelopes(range(12), stream=stream)
        sent[3] = msgspec.structs.replace(sent[3], payload=b"{")
        sent[4] = msgspec.structs.replace(sent[4], type="registered_v2")
        sent[5] = msgspec.structs.replace(seal(Unheard()), stream=stream)

        async def does(event: Registered, delivery: Delivery) -> None:
            match event.number, delivery.attempt:
                case 6, 1 | 2:
                    raise Retry(after=0.01)
                case 7, _:
                    raise Reject("not for us")
                case 8, _:
                    raise ValueError("no ink")
                case _:
                    pass

        assert 12 == len(set(await transport.publish(sent)))

        ids = await transport.publish(sent)

        assert sorted(ids, key=lambda id: [int(part) for part in id.split("-")]) == ids

        reader = Reader(transport, does, streams=[stream], retry=exponential(attempts=2, base=0.01), concurrency=1)
        done = await reader.drain()
        letters = await transport.dead_letters(stream, GROUP)

        assert [0, 1, 2, 9, 10, 11, 6] == reader.handled
        assert [(n, 1) for n in (0, 1, 2, 6, 7, 8, 9, 10, 11)] + [(6, 2), (6, 3), (8, 2)] == sorted(
            reader.starts, key=lambda start: (start[1] > 1, start)
        )
        assert (7, 1, 3, 4, 0) == (done.handled, done.ignored, done.retried, done.buried, done.held)
        assert [
            (3, "undecodable", "DecodeError", 1),
            (4, "undecodable", "DecodeError", 1),
            (7, "rejected", "Reject", 1),
            (8, "attempts exhausted", "ValueError", 2),
        ] == [(ids.index(letter.entry_id), letter.reason, letter.error_type, letter.attempts) for letter in letters]
        assert [sent[index] for index in (3, 4, 7, 8)] == [letter.envelope for letter in letters]
        assert (0, 0, 0) == await counts(transport, stream=stream)
        assert [True, False] == [await transport.requeue(letters[2]), await transport.requeue(letters[2])]
        assert (1, 0, 0) == await counts(transport, stream=stream)
