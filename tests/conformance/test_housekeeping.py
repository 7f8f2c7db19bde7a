"""Housekeeping"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from eventbus import Delivery, Reject, Retry
from eventbus.redis.retention import Retention
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, envelopes, nothing_left, once, only, publish
from tests.conformance.places import Place

kept_by_redis = pytest.mark.not_on("memory", because="it keeps everything, as long as it lives")


@kept_by_redis
async def test_084_removing_dead_consumers_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing dead consumers while others read loses nothing."""
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.01)
    monkeypatch.setattr("eventbus.redis.subscription.DEAD_AFTER", 0.0)  # whoever holds nothing at that moment is removed
    transport = await place.connect()
    readers = [Reader(await place.connect(), lease=2.0, concurrency=3) for _ in range(5)]
    passing = Reader(transport, lease=2.0)
    async with AsyncExitStack() as stack:
        for reader in readers:
            await stack.enter_async_context(reader.running())
        for start in range(0, 1000, 50):
            async with passing.running():
                await publish(transport, *range(start, start + 50))
        await place.wait_until(lambda: nothing_left(transport), description="everything is settled")

    assert once(range(1000)) == once(number for reader in [*readers, passing] for number in reader.handled)


@kept_by_redis
async def test_085_sweeping_and_removing_count_no_delivery(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeping and reaping count no delivery; a consumer that holds anything is not removed."""
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.01)
    monkeypatch.setattr("eventbus.redis.subscription.DEAD_AFTER", 0.0)
    transport = await place.connect()
    await publish(transport, 1)
    async with place.worker(hang=[1]) as worker:
        await place.wait_until(lambda: bool(place.ledger.began), description="the worker has begun")
        await worker.crash()
    times: list[int] = []

    async def does(event: Registered, delivery: Delivery) -> None:
        [row] = place.client.xpending_range(STREAM, GROUP, "-", "+", 10)
        times.append(row["times_delivered"])

    async with transport.subscribe(place.request()) as tidy:
        await tidy._tidy()

        assert not _gone(place, worker.consumer)

    heir = Reader(transport, does, lease=place.lease)
    async with heir.running():
        await place.wait_until(lambda: nothing_left(transport), description="it is settled")
        await place.wait_until(lambda: _gone(place, worker.consumer), description="the dead consumer is removed")

    assert [1] == times
    assert [(1, 1)] == heir.starts


def _gone(place: Place, consumer: str) -> bool:
    return consumer.encode() not in [row["name"] for row in place.client.xinfo_consumers(STREAM, GROUP)]


@kept_by_redis
async def test_086_a_trim_never_passes_the_unsettled(place: Place) -> None:
    """A trim removes nothing that is unread or pending in a living group."""
    transport = await place.connect(retention=timedelta(0))
    await publish(transport, *range(20))
    await Reader(transport, group="quick").drain()
    async with transport.subscribe(place.request()) as slow:
        taken = await place.take(slow, 10)
        for delivery in taken[:4] + taken[5:]:
            slow.ack(delivery)
        await slow.flush()
        await place.pass_time(0.01)

        assert 4 == await transport.trim(STREAM)

        slow.ack(taken[4])
        await slow.flush()

        assert 6 == await transport.trim(STREAM)

    reader = Reader(transport)
    await reader.drain()

    assert once(range(10, 20)) == once(reader.handled)
    assert [0, 0] == [(await transport.audit(STREAM, group)).lost for group in ("quick", GROUP)]
    assert 10 == await transport.trim(STREAM)


@kept_by_redis
async def test_087_what_vanished_is_counted_and_reported(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that vanished unsettled are reported with count and ids, and the audit is exact."""
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.01)
    transport = await place.connect()
    ids = await transport.publish(envelopes(range(20)))
    async with transport.subscribe(place.request()) as subscription:
        taken = await place.take(subscription, 10)
        for delivery in taken[:3]:
            subscription.ack(delivery)
    place.client.xdel(STREAM, ids[4], ids[6])  # these two were given back, and are pending
    place.client.xdel(STREAM, ids[12], ids[13], ids[15])  # and these three unread
    reader = Reader(transport, lease=place.lease)
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with reader.running():
            await place.wait_until(lambda: nothing_left(transport), description="the rest is settled")
            await place.wait_until(lambda: "5 LOST between" in caplog.text, description="the loss is reported")
    found = await transport.audit(STREAM, GROUP)

    assert (20, 15, 0, 0, 2, 5) == (found.added, found.settled, found.pending, found.unread, found.vanished, found.lost)
    assert not found
    assert once([*range(3, 20)]) - once([4, 6, 12, 13, 15]) == once(reader.handled)
    assert f"2 entries of {STREAM} vanished before they were settled, {ids[4]} to {ids[6]}" in caplog.text


@kept_by_redis
async def test_088_a_group_that_nobody_runs_raises_the_alarm(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An abandoned group raises the alarm and obeys the policy."""
    pinned = Retention(entries=timedelta(0), max_pin=timedelta(seconds=0.05), abandoned="report")
    keeping = await place.connect(retention=pinned)
    dropping = await place.connect(retention=Retention(entries=timedelta(0), max_pin=timedelta(seconds=0.05), abandoned="trim"))
    async with Reader(keeping, group="abandoned").running():
        pass
    await publish(keeping, *range(10))
    await Reader(keeping).drain()
    await place.pass_time(0.1)
    with caplog.at_level(logging.ERROR, "eventbus"):
        assert 0 == await keeping.trim(STREAM)
        assert 1 == sum("the group abandoned has not settled" in message for message in caplog.messages)
        assert "keeps everything after it" in caplog.text
        assert 10 == await dropping.trim(STREAM)
        assert "loses it" in caplog.text

    assert 10 == (await keeping.audit(STREAM, "abandoned")).lost
    assert 0 == (await keeping.audit(STREAM, GROUP)).lost


@pytest.mark.not_on("memory", "fakeredis", because="what a thousand restarts leave behind is a matter of servers")
@pytest.mark.in_full_once
async def test_089_restarts_leave_nothing_behind(place: Place) -> None:
    """Keys and names left behind by 1000 restarts are bounded."""
    transport = await place.connect()

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number % 10 == 1 and delivery.attempt == 1:
            raise Retry(after=0.0)
        if event.number % 10 == 2:
            raise Reject

    keys: list[int] = []
    for restart in range(10):
        await publish(transport, *range(restart * 10, restart * 10 + 10))
        reader = Reader(transport, does)
        await reader.drain()

        async def come_and_go() -> None:
            for _ in range(place.so_many(1000) // 100):
                async with transport.subscribe(place.request()):
                    pass

        async with only() as tasks:
            for _ in range(10):
                tasks.start_soon(come_and_go)
        keys.append(place.client.dbsize())
        names = [
            row["name"]
            for stream in (STREAM, f"{{{STREAM}}}:retry:{GROUP}")
            for row in place.client.xinfo_consumers(stream, GROUP)
        ]

        assert names in ([], [b"released"])

    assert keys[0] == keys[-1] <= 8
    assert (0, 0, 0) == await counts(transport)
