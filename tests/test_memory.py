"""`MemoryTransport` beyond the contract: its clock, what it shows of itself, and consumers that die or stand still."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from anyio import wait_all_tasks_blocked

from eventbus import Event, MemoryTransport, Metadata, Transport, UnitOfWork
from eventbus.envelope import JSON, MSGPACK, Envelope, new_id, now
from eventbus.errors import ConfigurationError, DecodeError, PublishError, Refused
from eventbus.memory import PUBLISH_WINDOW, Clock, MemorySubscription
from eventbus.transport import Delivery, Subscribe


class Lent(Event):
    metadata = Metadata(name="lent", published=True)
    title: str


class Returned(Event):
    metadata = Metadata(name="returned", published=True, stream="desk")
    title: str


REQUEST = Subscribe(streams=["events"], group="mailer", lease=30.0)


@pytest.fixture
def transport() -> MemoryTransport:
    """One whose clock stands still, so that every time is known."""
    return MemoryTransport(clock=Clock(running=False))


def things(count: int, **changes: Any) -> list[Envelope]:
    return [msgspec.structs.replace(Envelope(new_id(), now(), "lent_v1", b'{"title":"Dune"}'), **changes) for _ in range(count)]


async def publish(transport: MemoryTransport, *messages: Event) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for message in messages:
            uow.emit(message)
        await uow.commit()


@asynccontextmanager
async def receiving(subscription: MemorySubscription) -> AsyncGenerator[list[Delivery]]:
    """What the subscription receives during the block."""
    found: list[Delivery] = []

    async def receive() -> None:
        while deliveries := await subscription.receive(100):
            found.extend(deliveries)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await wait_all_tasks_blocked()
        yield found
        tasks.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------------------- clock


def test_a_clock_runs_with_the_wall_and_can_be_moved() -> None:
    """It begins at the time that it is."""
    clock = Clock()
    before = clock.time()

    assert datetime.now(UTC).timestamp() == pytest.approx(before, abs=1)

    clock.advance(3600)

    assert 3600 <= clock.time() - before < 3601


def test_a_clock_may_stand_still() -> None:
    """Then only `advance` moves it, exactly."""
    clock = Clock(running=False)
    before = clock.time()

    assert before == clock.time()

    clock.advance(0)
    clock.advance(1.5)

    assert before + 1.5 == clock.time()


@pytest.mark.parametrize("seconds", [-1, -1e-9, float("nan"), float("inf")])
def test_time_goes_forward(seconds: float) -> None:
    """And not to infinity."""
    clock = Clock(running=False)
    before = clock.time()
    with pytest.raises(ValueError, match="time goes forward"):
        clock.advance(seconds)

    assert before == clock.time()


@pytest.mark.parametrize("running", [True, False])
async def test_whoever_waits_for_a_time_is_woken_when_the_clock_is_moved(running: bool) -> None:
    """And whoever waits for an event, by the event; nobody who has left is kept."""
    clock = Clock(running=running)
    woken: list[str] = []

    async def wait(name: str, event: anyio.Event, until: float | None) -> None:
        await clock.wait(event, until)
        woken.append(name)

    event = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "time", anyio.Event(), clock.time() + 3600)
        tasks.start_soon(wait, "event", event, None)
        await wait_all_tasks_blocked()

        assert [] == woken

        event.set()
        await wait_all_tasks_blocked()

        assert ["event"] == woken

        clock.advance(3600)

    assert ["event", "time"] == woken
    assert not clock._sleepers


async def test_a_running_clock_wakes_by_itself() -> None:
    """When the time has come."""
    clock = Clock()
    until = clock.time() + 0.02
    with anyio.fail_after(5):
        await clock.wait(anyio.Event(), until)

    assert clock.time() >= until - 0.001


# ------------------------------------------------------------------------------------------------- what was published


def test_it_is_a_transport(transport: MemoryTransport) -> None:
    """By its shape; and it says so in few words."""
    assert isinstance(transport, Transport)
    assert "<MemoryTransport 0 published>" == repr(transport)


async def test_events_are_what_was_published_as_it_lies_in_the_streams(transport: MemoryTransport) -> None:
    """In the order published, over all streams."""
    await publish(transport, Lent(title="Dune"), Returned(title="Emma"))
    first, second = transport.envelopes

    assert [
        {
            "id": first.id,
            "created_at": first.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": "lent_v1",
            "payload": '{"title":"Dune"}',
        },
        {
            "id": second.id,
            "created_at": second.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": "returned_v1",
            "payload": '{"title":"Emma"}',
        },
    ] == transport.events
    assert [None, "desk"] == [first.stream, second.stream]


async def test_a_binary_payload_is_shown_as_bytes() -> None:
    """Text is what JSON is."""
    transport = MemoryTransport(codec=MSGPACK)
    await publish(transport, Lent(title="Dune"))

    assert [b"\x81\xa5title\xa4Dune"] == [event["payload"] for event in transport.events]
    assert [Lent(title="Dune")] == transport.messages(Lent)


async def test_messages_are_those_of_a_type(transport: MemoryTransport) -> None:
    """Decoded, in the order published."""
    await publish(transport, Lent(title="Dune"), Returned(title="Dune"), Lent(title="Emma"))

    assert [Lent(title="Dune"), Lent(title="Emma")] == transport.messages(Lent)
    assert [Returned(title="Dune")] == transport.messages(Returned)


async def test_what_cannot_be_decoded_is_no_message(transport: MemoryTransport) -> None:
    """A test that asks for it is told."""
    await transport.publish(things(1, payload=b"{}"))
    with pytest.raises(DecodeError, match="title"):
        transport.messages(Lent)


async def test_what_was_added_before_is_shown_once(transport: MemoryTransport) -> None:
    """Publishing again adds nothing."""
    envelopes = things(2)
    for _ in range(2):
        await transport.publish(envelopes)

    assert envelopes == transport.envelopes


async def test_an_envelope_id_is_forgotten_after_the_window(transport: MemoryTransport) -> None:
    """It is remembered for ten minutes, not for ever."""
    [envelope] = things(1)
    [id] = await transport.publish([envelope])
    transport.clock.advance(PUBLISH_WINDOW - 1)

    assert [id] == await transport.publish([envelope])

    transport.clock.advance(2)

    assert [id] != await transport.publish([envelope])
    assert 2 == len(transport.envelopes)


async def test_entry_ids_are_times(transport: MemoryTransport) -> None:
    """Milliseconds and a number, rising, also within one millisecond."""
    ids = await transport.publish(things(3))
    ms = int(transport.clock.time() * 1000)

    assert [f"{ms}-0", f"{ms}-1", f"{ms}-2"] == ids

    transport.clock.advance(1)

    assert [f"{int(transport.clock.time() * 1000)}-0"] == await transport.publish(things(1))


async def test_a_bad_stream_name_publishes_nothing_of_the_batch(transport: MemoryTransport) -> None:
    """A mistake in the program is found before anything has happened."""
    with pytest.raises(ConfigurationError, match="stream name"):
        await transport.publish([*things(1), *things(1, stream="no spaces")])

    assert [] == transport.envelopes
    with pytest.raises(ConfigurationError, match="stream name"):
        MemoryTransport("no spaces")


async def test_closed_it_refuses(transport: MemoryTransport) -> None:
    """As a server would that says no."""
    async with transport:
        pass
    with pytest.raises(PublishError) as caught:
        await transport.publish(things(1))

    assert isinstance(caught.value, Refused)
    assert "enter it again" in str(caught.value)


@pytest.mark.parametrize("start", ["0", "$"])
async def test_a_group_remembers_its_place_in_each_stream(transport: MemoryTransport, start: str) -> None:
    """Whatever the codec or the stream of its entries."""
    await publish(transport, Lent(title="Dune"), Returned(title="Dune"))
    request = Subscribe(streams=["events", "desk"], group="mailer", start=start)
    async with transport.subscribe(request) as subscription, receiving(subscription) as found:
        assert ([] if start == "$" else ["desk", "events"]) == sorted(delivery.stream for delivery in found)


# --------------------------------------------------------------------------------------- consumers that die or stand still


async def test_what_the_dead_held_comes_when_its_lease_has_run_out_and_not_before(transport: MemoryTransport) -> None:
    """To the second."""
    await transport.publish(things(2))
    async with transport.subscribe(REQUEST) as dying, transport.subscribe(REQUEST) as heir:
        held = await dying.receive(2)
        transport.clock.advance(100)  # the living renew their leases
        dying.abandon()
        async with receiving(heir) as found:
            transport.clock.advance(29.9)
            await wait_all_tasks_blocked()

            assert [] == found
            assert pytest.approx(0.1, abs=0.01) == (await transport.backlog("events", "mailer")).next_in

            transport.clock.advance(0.1)
            await wait_all_tasks_blocked()

            assert [delivery.entry_id for delivery in held] == [delivery.entry_id for delivery in found]
            assert all(delivery.suspect for delivery in found)


async def test_the_dead_do_nothing_more(transport: MemoryTransport) -> None:
    """They settle nothing, receive nothing, and leaving gives nothing back; but they can be told to stop."""
    await transport.publish(things(4))
    async with transport.subscribe(REQUEST) as dying:
        first, second, third = await dying.receive(3)
        dying.abandon()
        dying.ack(first)

        assert not await dying.retry(second, after=0.0)
        assert not await dying.bury(third, reason="dead")
        assert not await dying.begin(third)

        await dying.release([first, second, third])
        async with receiving(dying) as found:
            dying.thaw()
            await wait_all_tasks_blocked()

            assert [] == found

            dying.stop()

        assert [] == await dying.receive(1)

    backlog = await transport.backlog("events", "mailer")

    assert (1, 3, 0, 30.0) == (backlog.unread, backlog.pending, backlog.delayed, backlog.next_in)


async def test_the_frozen_receive_nothing_until_they_thaw(transport: MemoryTransport) -> None:
    """And then go on as if nothing had been, if nobody took anything meanwhile."""
    await transport.publish(things(1))
    async with transport.subscribe(REQUEST) as subscription:
        [held] = await subscription.receive(1)
        subscription.freeze()
        async with receiving(subscription) as found:
            await transport.publish(things(1))
            transport.clock.advance(100)
            subscription.freeze()  # again, which begins no new lease
            await wait_all_tasks_blocked()

            assert [] == found
            assert 0.0 == (await transport.backlog("events", "mailer")).next_in

            subscription.thaw()
            await wait_all_tasks_blocked()

            assert 1 == len(found)
        assert not held.lost
        assert await subscription.retry(held, after=1.0)


async def test_a_frozen_consumer_that_was_robbed_is_told_when_it_thaws(transport: MemoryTransport) -> None:
    """Once for each delivery, also when its new owner has settled it already."""
    lost: list[Delivery] = []
    await transport.publish(things(3))
    async with (
        transport.subscribe(msgspec.structs.replace(REQUEST, on_lost=lost.append)) as frozen,
        transport.subscribe(REQUEST) as thief,
    ):
        held = await frozen.receive(3)
        frozen.freeze()
        transport.clock.advance(30)
        first, _ = await thief.receive(2)
        thief.ack(first)
        frozen.thaw()
        frozen.thaw()

        assert held[:2] == lost
        assert [True, True, False] == [delivery.lost for delivery in held]

    assert (0, 2) == (
        (backlog := await transport.backlog("events", "mailer")).unread, backlog.pending
    )  # fmt: skip


async def test_a_retry_of_an_hour_takes_no_time(transport: MemoryTransport) -> None:
    """The clock is moved, and who waits for it is woken."""
    await transport.publish(things(1))
    async with transport.subscribe(REQUEST) as subscription:
        [delivery] = await subscription.receive(1)
        await subscription.retry(delivery, after=3600.0)
        async with receiving(subscription) as found:
            transport.clock.advance(3599)
            await wait_all_tasks_blocked()

            assert [] == found

            transport.clock.advance(1)
            await wait_all_tasks_blocked()

            assert [2] == [delivery.attempt for delivery in found]


async def test_a_change_can_be_waited_for(transport: MemoryTransport) -> None:
    """A publish, a settlement; and who has stopped waiting leaves nothing behind."""
    change = transport.next_change()

    assert not change.is_set()

    await transport.publish(things(1))

    assert change.is_set()

    change = transport.next_change()
    async with transport.subscribe(REQUEST) as subscription:
        [delivery] = await subscription.receive(1)

        assert not change.is_set()

        subscription.ack(delivery)

        assert change.is_set()

        for _ in range(100):
            with anyio.move_on_after(0):
                await subscription.receive(1)

        assert not transport._changes._waiting


async def test_the_default_codec_is_json(transport: MemoryTransport) -> None:
    """And a unit of work asks its transport."""
    assert JSON is transport.codec

    other = MemoryTransport(codec=MSGPACK)
    await publish(other, Lent(title="Dune"))

    assert "application/msgpack" == other.envelopes[0].content_type


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("end", ["released", "left"])
async def test_a_suspect_that_nobody_started_stays_one(transport: MemoryTransport, end: str, begun: bool) -> None:
    """Whoever stops before its turn has not cleared it, nor of the starts that were counted; whose handler we cancelled is cleared."""
    request = msgspec.structs.replace(REQUEST, max_crashes=1)
    await publish(transport, Lent("Dune"))
    for _ in range(2):  # the second one was counted as it started, and died of it
        async with transport.subscribe(request) as dying:
            [delivery] = await dying.receive(1)
            if delivery.suspect:
                assert await dying.begin(delivery)
            dying.abandon()
        transport.clock.advance(31)
    async with transport.subscribe(msgspec.structs.replace(request, max_crashes=2)) as leaving:
        [delivery] = await leaving.receive(1)
        assert delivery.suspect
        if begun:
            assert await leaving.begin(delivery)
        if end == "released":
            await leaving.release([delivery])

    async with transport.subscribe(request) as heir:
        [delivery] = await heir.receive(1)

        assert begun is not delivery.suspect
        assert begun is await heir.begin(delivery)


@pytest.mark.parametrize("end", ["acked", "settled", "released"])
async def test_what_came_again_stays_held_when_the_end_of_its_lost_delivery_is_told(transport: MemoryTransport, end: str) -> None:
    """As on Redis: or its lease would run out under its handler, and another would handle it as well."""
    await publish(transport, Lent("Dune"))
    async with transport.subscribe(REQUEST) as slow, transport.subscribe(REQUEST) as other:
        [lost] = await slow.receive(1)
        slow.freeze()
        transport.clock.advance(31)
        [taken] = await other.receive(1)
        slow.thaw()
        await other.release([taken])
        [again] = await slow.receive(1)
        assert (lost.entry_id, True, False) == (again.entry_id, lost.lost, again.lost)

        if end == "acked":
            slow.ack(lost)
        elif end == "settled":
            slow.settled(lost)
        else:
            await slow.release([lost])
        transport.clock.advance(31)

        assert [again] == list(slow._held.values())
        assert [] == other._take(1)
        assert 1 == (await transport.backlog("events", "mailer")).pending
