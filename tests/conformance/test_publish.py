"""Publish"""

from __future__ import annotations

import math
from typing import Any

import anyio
import msgspec
import pytest

from eventbus import Event, MessageBus, Metadata, UnitOfWork
from eventbus.errors import EncodeError, Full, PublishError, Refused, TransactionError
from tests.conformance.club import STREAM, Reader, Registered, counts, envelopes, once, only, publish
from tests.conformance.places import Place

in_memory = pytest.mark.not_on("memory", because="nothing is sent anywhere, so no reply is lost and no key is of another type")


async def test_001_a_group_that_starts_at_0_gets_what_was_published_before_it(place: Place) -> None:
    """Envelopes published before a group exists are all delivered to it when it starts at 0."""
    transport = await place.connect()
    await publish(transport, *range(100))
    reader = Reader(transport)
    await reader.drain()

    assert once(range(100)) == once(reader.handled)


async def test_002_what_was_sent_arrives(place: Place) -> None:
    """Payload bytes, headers, unicode and empty values arrive as they were sent."""
    transport = await place.connect()
    [plain] = envelopes([1])
    sent = [
        msgspec.structs.replace(plain, id=f"{plain.id}-{number}", payload=payload, headers=headers)
        for number, (payload, headers) in enumerate(
            [
                (b"", {"empty": "", "": "unnamed"}),
                (bytes(range(256)) * 10, {"content_type": "application/octet-stream"}),
                ('{"title":"Дюна 砂の惑星 🏜"}'.encode(), {"herkunft": "Bücherei № 5", "многое": "\r\n\t \x00"}),
                (b"\r\n$-1\r\n*0\r\n", {f"header-{n}": "v" * n for n in range(64)}),
            ]
        )
    ]
    await transport.publish(sent)
    async with transport.subscribe(place.request()) as subscription:
        arrived = [delivery.envelope for delivery in await place.take(subscription, len(sent))]

    assert sent == arrived
    assert [list(envelope.headers.items()) for envelope in sent] == [list(envelope.headers.items()) for envelope in arrived]


async def test_003_streams_never_mix(place: Place) -> None:
    """Streams never mix."""
    transport = await place.connect()
    here, there = envelopes(range(50), stream="here"), envelopes(range(50, 100), stream="there")
    await transport.publish([envelope for pair in zip(here, there, strict=True) for envelope in pair])
    for stream, numbers in (("here", range(50)), ("there", range(50, 100))):
        reader = Reader(transport, streams=[stream])
        await reader.drain()

        assert once(numbers) == once(reader.handled)


@pytest.mark.in_full_once
@pytest.mark.not_on("fakeredis", because="so many would take it minutes")
async def test_004_many_publishers_lose_nothing(place: Place) -> None:
    """20 publishers of 10,000 envelopes each: none is lost."""
    transport = await place.connect()
    each = place.so_many(10_000)
    [plain] = envelopes([1])
    published: dict[bytes, str] = {}

    async def publish_many(publisher: int) -> None:
        for start in range(0, each, 500):
            batch = [msgspec.structs.replace(plain, id=f"{publisher}-{number}") for number in range(start, start + 500)]
            ids = await transport.publish(batch)
            published.update(zip((envelope.id.encode() for envelope in batch), ids, strict=True))

    async with only() as tasks:
        for publisher in range(20):
            tasks.start_soon(publish_many, publisher)
    arrived: dict[bytes, str] = {}
    async with transport.subscribe(place.request()) as subscription:
        while len(arrived) < 20 * each:
            for delivery in await subscription.receive(1000):
                arrived[delivery.fields[1]] = delivery.entry_id
                subscription.ack(delivery)
        await subscription.flush()

    assert published == arrived
    assert (0, 0, 0) == await counts(transport)


async def test_005_each_of_many_subscribers_gets_its_own(place: Place) -> None:
    """20 streams in parallel: each subscriber gets exactly its own."""
    transport = await place.connect()
    streams = [f"club-{number}" for number in range(20)]
    batches = [envelopes(range(number, 1000, 20), stream=stream) for number, stream in enumerate(streams)]
    await transport.publish([envelope for batch in zip(*batches, strict=True) for envelope in batch])
    readers = [Reader(transport, streams=[stream]) for stream in streams]
    async with only() as tasks:
        for reader in readers:
            tasks.start_soon(reader.drain)

    assert [once(range(number, 1000, 20)) for number in range(20)] == [once(reader.handled) for reader in readers]


class Session:
    """A database that says how often it was committed."""

    def __init__(self) -> None:
        self.commits = 0

    async def commit(self) -> None:
        self.commits += 1

    async def rollback(self) -> None:
        pass


class Priced(Event):
    metadata = Metadata(name="priced", published=True, stream=STREAM)
    price: Any


@pytest.mark.parametrize("price", [math.nan, {1j}, "x" * (1 << 20)], ids=["not a number", "not JSON", "too long"])
async def test_006_what_cannot_be_encoded_stops_the_whole_transaction(place: Place, price: object) -> None:
    """If one message of a unit of work fails validation or encoding, nothing is committed and nothing published."""
    transport = await place.connect()
    session = Session()
    with pytest.raises(EncodeError):
        async with UnitOfWork(session, transport=transport) as uow:
            uow.emit(Registered(1))
            uow.emit(Priced(price))
            uow.emit(Registered(2))
            await uow.commit()

    assert 0 == session.commits
    assert (0, 0, 0) == await counts(transport)


async def test_007_a_rollback_publishes_nothing_ever(place: Place) -> None:
    """A rolled-back unit of work publishes nothing, now or when the object is used again."""
    transport = await place.connect()
    uow = UnitOfWork(transport=transport)
    async with uow:
        uow.emit(Registered(1))
        await uow.rollback()
    with pytest.raises(TransactionError):
        async with uow:
            uow.emit(Registered(2))
    with pytest.raises(KeyError):
        async with uow:
            uow.emit(Registered(3))
            raise KeyError
    async with uow:
        uow.emit(Registered(4))
        await uow.commit()
    reader = Reader(transport)
    await reader.drain()

    assert [4] == reader.handled


class Opened(Event):
    metadata = Metadata(name="opened", published=True, stream=STREAM)
    number: int


async def test_008_what_a_unit_of_work_raised_lies_in_the_stream_in_that_order(place: Place) -> None:
    """What one unit of work publishes to a stream lies there in the order raised."""
    transport = await place.connect()
    bus = MessageBus()

    @bus.listen
    async def open_box(event: Opened, uow: UnitOfWork) -> None:
        for number in range(event.number, event.number + 10):
            uow.emit(Registered(number))

    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Registered(0))
        await bus.handle(Opened(10), uow)
        await bus.handle(Opened(20), uow)
        for number in range(30, 300):
            uow.emit(Registered(number))
        await uow.commit()
    reader = Reader(transport, concurrency=1)
    await reader.drain()

    assert [0, *range(10, 300)] == reader.handled


async def test_009_an_envelope_id_is_added_once(place: Place) -> None:
    """The same envelope id published twice within the window is one entry, and both calls return its id."""
    transport, other = await place.connect(), await place.connect()
    [first, second] = envelopes([1, 2])
    ids = await transport.publish([first, second])

    assert ids == await transport.publish([first, second])
    assert [ids[1]] == await other.publish([second])
    assert 2 == len(set(ids))

    reader = Reader(transport)
    await reader.drain()

    assert [1, 2] == sorted(reader.handled)


@in_memory
async def test_010_a_publish_whose_reply_was_lost_leaves_one_entry(place: Place) -> None:
    """A publish whose reply was lost, asked again, leaves one entry."""
    async with place.line() as (transport, line):
        line.cut("publish", after=True, times=2)
        ids = await transport.publish(envelopes([1, 2]))

        assert (2, 2) == (line.faults, len(set(ids)))

        reader = Reader(transport)
        await reader.drain()

    assert [1, 2] == sorted(reader.handled)


@pytest.mark.not_on("memory", "fakeredis", because="its memory has no bound")
async def test_011_a_full_server_adds_nothing(place: Place) -> None:
    """With the server's memory full a publish raises `Full` and adds nothing, and the unit of work keeps everything."""
    transport = await place.connect()
    await publish(transport, 0)
    place.client.config_set("maxmemory", 1)
    async with UnitOfWork(transport=transport) as uow:
        for number in (1, 2, 3):
            uow.emit(Registered(number))
        with pytest.raises(Full) as caught:
            await uow.commit()

    assert isinstance(caught.value, PublishError)
    assert (3, "not sent") == (len(caught.value.envelopes), caught.value.outcome)
    assert 1 == place.client.xlen(STREAM)

    place.client.config_set("maxmemory", 0)
    await uow.publish_pending()
    reader = Reader(transport)
    await reader.drain()

    assert once(range(4)) == once(reader.handled)


@in_memory
async def test_012_a_key_of_another_type_fails_its_own_stream_alone(place: Place) -> None:
    """A stream key of the wrong type adds nothing of that stream's batch; the error carries the envelopes that were not sent, and no others."""
    transport = await place.connect()
    place.client.set("spoiled", "a string")
    good, bad = envelopes([1, 2]), envelopes([3, 4], stream="spoiled")
    with pytest.raises(Refused, match="WRONGTYPE") as caught:
        await transport.publish([good[0], bad[0], bad[1], good[1]])

    assert isinstance(caught.value, PublishError)
    assert (tuple(bad), "not sent") == (caught.value.envelopes, caught.value.outcome)
    assert b"a string" == place.client.get("spoiled")

    reader = Reader(transport, concurrency=1)
    await reader.drain()

    assert [1, 2] == reader.handled


async def test_013_a_closed_transport_publishes_nothing(place: Place) -> None:
    """Publishing through a closed transport raises."""
    [lost] = envelopes([1])
    async with place.new() as transport:
        pass
    with pytest.raises(PublishError) as caught:
        await transport.publish([lost])

    assert ((lost,), "not sent") == (caught.value.envelopes, caught.value.outcome)
    with anyio.fail_after(5):
        assert (0, 0, 0) == await counts(await place.connect())
