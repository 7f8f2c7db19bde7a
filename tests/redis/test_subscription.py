"""Consuming from a real server: what is on the wire, what survives a cut line, and what heals."""

import asyncio
import dataclasses
import logging
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal

import anyio
import pytest
from msgspec.structs import replace

from eventbus import Delivery, Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork
from eventbus.envelope import seal
from eventbus.errors import Full, PublishError, Refused, Unavailable
from eventbus.redis import RedisTransport
from eventbus.redis.audit import Audit, audit
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel, Link
from eventbus.redis.scripts import DUE, GLANCE, JOIN, RETRY, SWEEP
from eventbus.redis.subscription import RedisSubscription
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer
from eventbus.transport import Subscribe

S = "club"


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True, stream=S)
    number: int


class Club:
    """A subscriber whose handler does as the number says, and what it did."""

    def __init__(self, transport: RedisTransport, **settings: Any) -> None:
        self.handled: list[int] = []
        self.attempts: dict[int, int] = {}
        self.transport = transport
        bus = MessageBus()

        @bus.listen
        async def handle(event: BookRegistered, delivery: Delivery) -> None:
            self.attempts[event.number] = delivery.attempt
            if event.number % 10 == 3 and delivery.attempt == 1:
                raise Retry(after=0.05)
            if event.number % 10 == 7:
                raise Reject("never")
            self.handled.append(event.number)

        self.subscriber = Subscriber(
            bus=bus, transport=transport, streams=[S], group="g", **{"lease": 0.6, "grace": 1.0, "concurrency": 3, **settings}
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.subscriber.run)
            yield
            tasks.cancel_scope.cancel()

    async def publish(self, count: int, first: int = 0) -> None:
        async with UnitOfWork(transport=self.transport) as uow:
            for number in range(first, first + count):
                uow.emit(BookRegistered(number))
            await uow.commit()

    async def finished(self) -> None:
        await wait_until(self._nothing_left, description="the group has handled everything")

    async def _nothing_left(self) -> bool:
        return not await self.transport.backlog(S, "g")


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "reply lost"])
@pytest.mark.parametrize("command", ["xreadgroup", "ack", "retry", "due", "bury", "glance", "sweep", "join", "client"])
async def test_every_command_may_be_cut(
    live: RedisTransport, proxy: FaultProxy, redis_server: LiveServer, command: str, after: bool
) -> None:
    """Whatever the line loses, before the server hears it or after: everything is handled, and nothing is buried twice."""
    club = Club(live)
    await club.publish(20)
    async with live.subscribe(Subscribe(streams=[S], group="g")) as leaving:
        await leaving.receive(1)  # and gives it back, for a sweep to find
    async with RedisTransport(proxy.url, stream=S) as through:
        consumer = Club(through)
        proxy.cut(command, after=after, times=2)
        async with consumer.running():
            await club.publish(20, first=20)
            await wait_until(lambda: proxy.pending_cuts == 0, description=f"{command} was cut twice")
            await club.finished()

    assert {n for n in range(40) if n % 10 != 7} == set(consumer.handled)
    dead = await live.dead_letters(S, "g")
    assert 4 == len(dead) == len({letter.entry_id for letter in dead})
    assert {3: 2, 13: 2, 23: 2, 33: 2} == {n: a for n, a in consumer.attempts.items() if n % 10 == 3}


async def test_a_read_that_was_under_way_when_the_line_was_cut_is_not_stranded(live: RedisTransport, proxy: FaultProxy) -> None:
    """The server had given the batch to us: our own pending entries are read again."""
    club = Club(live)
    async with RedisTransport(proxy.url, stream=S) as through:
        consumer = Club(through, lease=30.0)
        async with consumer.running():
            for first in range(0, 100, 20):
                proxy.cut("xreadgroup", after=True)
                await club.publish(20, first=first)
                await wait_until(lambda: proxy.pending_cuts == 0, description="the read was cut")
                await club.finished()

    assert {n for n in range(100) if n % 10 != 7} == set(consumer.handled)


async def test_a_stream_with_little_is_not_kept_waiting_by_one_with_much(live: RedisTransport) -> None:
    """Also where there are more streams than deliveries are wanted: each has its turn."""
    small = [f"{S}-{n}" for n in range(30)]
    await live.publish([seal(BookRegistered(n)) for n in range(2000)])
    await live.publish([replace(seal(BookRegistered(0)), stream=stream) for stream in small])

    seen: Counter[str] = Counter()
    async with live.subscribe(Subscribe(streams=[S, *small], group="g")) as subscription:
        while len(seen) <= len(small):
            for delivery in await subscription.receive(10):
                seen[delivery.stream] += 1
                subscription.ack(delivery)

    assert dict.fromkeys(small, 1).items() <= seen.items()
    assert seen[S] <= 10 * 2 * 31  # in as many reads as there are sources


async def test_stop_ends_a_waiting_read_at_once(live: RedisTransport) -> None:
    """By unblocking it, not by cancelling: what is on its way is not lost."""
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        reading = asyncio.ensure_future(subscription.receive(10))
        await wait_until(lambda: subscription._reading, description="the read waits")
        subscription.stop()
        assert [] == await asyncio.wait_for(reading, 1.0)


async def test_leaving_removes_the_consumer_and_gives_back(live: RedisTransport, server: Any) -> None:
    """Nothing stays behind under our name; what was not handled is for others, at once."""
    await Club(live).publish(5)
    async with live.subscribe(Subscribe(streams=[S], group="g")) as first:
        deliveries = await first.receive(3)
        first.ack(deliveries[0])
    assert [b"released"] == [consumer["name"] for consumer in server.client.xinfo_consumers(S, "g")]

    async with live.subscribe(Subscribe(streams=[S], group="g")) as second:
        again = await second.receive(10)
        assert [(d.entry_id, 1, False) for d in deliveries[1:]] == [(d.entry_id, d.attempt, d.suspect) for d in again[:2]]


async def test_leaving_a_silent_server_ends_and_says_so(
    live: RedisTransport, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever sees messages handled twice after a deployment finds out why: one line tells that nothing could be settled or given back."""
    monkeypatch.setattr("eventbus.redis.subscription.LEAVE_WITHIN", 0.2)
    await Club(live).publish(2)
    async with (
        RedisTransport(proxy.url, stream=S) as transport,
        transport.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription,
    ):
        first, _ = await subscription.receive(10)
        proxy.stall()
        subscription.ack(first)

    [said] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"{S}/g: leaving without an answer for 0.2 s: what was handled last may be delivered again")


async def test_an_ack_is_settled_beside_a_read_that_waits(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first one on a server that does not know its script yet: the script goes along, and not after the read."""
    monkeypatch.setattr("eventbus.redis.subscription.ACK_WITHIN", 60.0)  # nothing but the read sends it
    await Club(live).publish(2)
    server("SCRIPT", "FLUSH")
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        [first], [second] = await subscription.receive(1), await subscription.receive(1)
        subscription.ack(first)
        reading = asyncio.ensure_future(subscription.receive(1))
        await wait_until(lambda: [second.entry_id] == _pending(server), description="the first is settled", timeout=1.0)

        assert not reading.done()

        subscription.stop()

        assert [] == await reading


async def test_a_retry_that_is_asked_for_while_due_ones_are_moved_is_not_late(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has looked before it was there, and says that nothing else is due for long."""
    await Club(live).publish(2)
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        first, second = await subscription.receive(10)
        run, asked = subscription._reader.run, False

        async def run_and_ask(command: Any, **options: Any) -> Any:
            nonlocal asked
            reply = await run(command, **options)
            if command[1] == DUE.sha and not asked:
                asked = await subscription.retry(second, after=0.0)
            return reply

        monkeypatch.setattr(subscription._reader, "run", run_and_ask)
        await subscription.retry(first, after=0.0)
        with anyio.fail_after(1.5):
            again = [*await subscription.receive(1), *await subscription.receive(1)]

        assert [first.entry_id, second.entry_id] == [delivery.entry_id for delivery in again]


async def test_a_suspect_is_settled_before_the_next_begins(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the next one kill the process, then nothing is left of this one that could be counted again."""
    monkeypatch.setattr("eventbus.redis.subscription.ACK_WITHIN", 60.0)  # nothing but what begins sends them
    await Club(live).publish(3)
    request = Subscribe(streams=[S], group="g", lease=0.2)
    async with live.subscribe(request) as dead:
        assert 3 == len(await dead.receive(10))
        dead.abandon()
        async with live.subscribe(request) as heir:
            found: list[Delivery] = []
            while len(found) < 3:
                found += await heir.receive(3 - len(found))
            for nth, suspect in enumerate(found):
                assert suspect.suspect
                assert await heir.begin(suspect)
                assert [delivery.entry_id for delivery in found[nth:]] == _pending(server)
                assert {f"crash {S} {suspect.entry_id}": "1"} == _crashes(server)

                heir.ack(suspect)


async def left_by_a_dead_process(live: RedisTransport, request: Subscribe) -> str:
    """Have something that a process held when it died; the name of its consumer."""
    await Club(live).publish(1)
    async with live.subscribe(request) as dead:
        assert await dead.receive(1)
        dead.abandon()

    return dead.consumer


async def taken_over(heir: RedisSubscription) -> Delivery:
    """What it had, once its lease has run out."""
    while not (found := await heir.receive(1)):
        pass
    [suspect] = found

    return suspect


async def test_a_start_is_counted_once_though_its_replies_are_lost(live: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """A bad line is no reason to bury a message."""
    request = Subscribe(streams=[S], group="g", lease=0.2, max_crashes=1)
    await left_by_a_dead_process(live, request)
    async with RedisTransport(proxy.url, stream=S) as transport, transport.subscribe(request) as heir:
        suspect = await taken_over(heir)
        proxy.cut("begin", after=True, times=3)

        assert await heir.begin(suspect)
        assert 0 == proxy.pending_cuts
        assert {f"crash {S} {suspect.entry_id}": "1"} == _crashes(server)


@pytest.mark.parametrize("verdict", ["retry", "bury"])
async def test_a_start_is_not_counted_whose_handler_ended_though_its_verdict_waits_for_memory(
    live: RedisTransport, server: Any, verdict: str
) -> None:
    """Processes that die while the server is full die of something else."""
    request = Subscribe(streams=[S], group="g", lease=0.2, max_crashes=1)
    await left_by_a_dead_process(live, request)
    server.fill()
    for _ in range(3):
        async with live.subscribe(request) as dying:
            suspect = await taken_over(dying)
            assert await dying.begin(suspect)
            assert await (dying.retry(suspect, after=0.0) if verdict == "retry" else dying.bury(suspect, reason="rejected"))
            await wait_until(lambda: _crashes(server) == {}, description="its start is forgotten")
            dying.abandon()

        assert [suspect.entry_id] == _pending(server)


async def test_a_crash_loop_is_known_as_one_as_long_as_it_cannot_be_buried(live: RedisTransport, server: Any) -> None:
    """No handler has come to an end, so it is not to be started again by who takes it over from there."""
    request = Subscribe(streams=[S], group="g", lease=0.2, max_crashes=1)
    await left_by_a_dead_process(live, request)
    for start in range(1, 4):
        async with live.subscribe(request) as dying:
            suspect = await taken_over(dying)
            assert (start == 1) == await dying.begin(suspect)
            server.fill()
            await dying.flush()
            assert {f"crash {S} {suspect.entry_id}": str(start)} == _crashes(server)
            dying.abandon()


async def test_a_suspect_that_is_not_ours_any_more_is_let_go(live: RedisTransport, server: Any) -> None:
    """A server that was set back has forgotten who claimed it. When it is claimed once more, it is handled, and not only held."""
    request = Subscribe(streams=[S], group="g", lease=0.2)
    dead = await left_by_a_dead_process(live, request)
    async with live.subscribe(request) as heir:
        suspect = await taken_over(heir)
        server.client.xclaim(S, "g", dead, 0, [suspect.entry_id], idle=10_000, justid=True)

        assert not await heir.begin(suspect)
        assert suspect.lost

        with anyio.fail_after(20):
            [again] = await heir.receive(1)
        assert (suspect.entry_id, True) == (again.entry_id, await heir.begin(again))


@pytest.mark.parametrize("loss", ["destroy", "flushall"])
async def test_a_suspect_whose_group_is_gone_is_let_go(live: RedisTransport, server: Any, loss: str) -> None:
    """It went with its group, and waiting for that would keep its slot from all that comes after it."""
    request = Subscribe(streams=[S], group="g", lease=0.2)
    await left_by_a_dead_process(live, request)
    async with live.subscribe(request) as heir:
        suspect = await taken_over(heir)
        if loss == "destroy":
            server.client.xgroup_destroy(S, "g")
        else:
            server.client.flushall()

        with anyio.fail_after(10):
            assert not await heir.begin(suspect)
        assert suspect.lost


async def test_a_subscriber_with_suspects_goes_on_after_its_server_was_emptied(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has room for nothing more as long as they wait, so nobody else would make the group again: a service that stands still for ever."""
    club = Club(live, concurrency=1)
    await club.publish(3)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=0.1)) as dying:
        held: list[Delivery] = []
        while len(held) < 3:
            held += await dying.receive(3)
        dying.abandon()
    begin, emptied = RedisSubscription.begin, asyncio.Event()

    async def empty_and_begin(self: RedisSubscription, delivery: Delivery) -> bool:
        if not emptied.is_set():
            [run] = club.subscriber._runs
            await wait_until(lambda: run.room_at >= 0, description="nothing more is read")
            server.client.flushall()
            emptied.set()

        return await begin(self, delivery)

    monkeypatch.setattr(RedisSubscription, "begin", empty_and_begin)
    async with club.running():
        with anyio.fail_after(10):
            await emptied.wait()
        await club.publish(3, first=10)
        await wait_until(lambda: {10, 11, 12} <= set(club.handled), description="the subscriber resumed")


async def test_what_is_pending_is_read_again_however_little_is_wanted(
    live: RedisTransport, proxy: FaultProxy, server: Any
) -> None:
    """Also what lies before something that is in hand: a server that was set back has forgotten the acks of the first ones."""
    await Club(live).publish(4)
    async with (
        RedisTransport(proxy.url, stream=S) as transport,
        transport.subscribe(Subscribe(streams=[S], group="g")) as subscription,
    ):
        first = await subscription.receive(10)
        while len(first) < 4:
            first += await subscription.receive(10)
        for delivery in first[:3]:
            subscription.ack(delivery)
        await subscription.flush()
        server.client.xclaim(S, "g", first[0].consumer, 0, [one.entry_id for one in first[:3]], force=True, justid=True)
        proxy.reset()

        again: list[Delivery] = []
        with anyio.fail_after(10):
            while len(again) < 3:
                again += await subscription.receive(1)
        assert [one.entry_id for one in first[:3]] == [one.entry_id for one in again]


@pytest.mark.parametrize("verdict", ["acked", "retried", "settled"])
@pytest.mark.parametrize("question", ["read again", "swept"])
async def test_what_is_settled_while_the_server_answers_is_not_handed_out_again(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch, question: str, verdict: str
) -> None:
    """Or a message would be handled twice, which had been settled in time, for no other reason than that a line was cut."""
    club = Club(live)
    await club.publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        [first] = await subscription.receive(1)
        run, settled = subscription._reader.run, False

        async def run_and_settle(command: Any, **options: Any) -> Any:
            nonlocal settled
            reply = await run(command, **options)
            if not settled and (command[0] == "XREADGROUP" or command[1] == SWEEP.sha):
                settled = True
                if verdict == "acked":
                    subscription.ack(first)
                    await subscription.flush()
                elif verdict == "retried":
                    assert await subscription.retry(first, after=100.0)
                else:  # by its own commit
                    server.client.xack(S, "g", first.source_id)
                    subscription.settled(first)
                await club.publish(1, first=1)
            return reply

        monkeypatch.setattr(subscription._reader, "run", run_and_settle)
        if question == "read again":
            subscription._own = dict.fromkeys(subscription._sources, "0")
        else:  # what a process holds that stood still for longer than its lease
            server.client.xclaim(S, "g", first.consumer, 0, [first.source_id], idle=70_000, justid=True)
            subscription._sweep_at = 0.0
        [second] = await subscription.receive(10)

        assert settled
        assert (first.entry_id, [second.entry_id]) == (server.client.xrange(S)[0][0].decode(), _pending(server))


async def test_what_is_read_while_a_subscriber_stops_is_given_back(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without any grace: the server has counted it as ours, and nobody would have it before the lease is over."""
    read, stopped = asyncio.Event(), asyncio.Event()
    call, stop = Link.call, RedisSubscription.stop

    async def call_late(self: Link, *commands: Any, **options: Any) -> list[Any]:
        replies = await call(self, *commands, **options)
        if commands[0][0] == "XREADGROUP" and not stopped.is_set() and _pending(server):
            read.set()
            await stopped.wait()
            for _ in range(10):  # the answer is still on its way
                await asyncio.sleep(0)

        return replies

    def stop_and_answer(self: RedisSubscription) -> None:
        stop(self)
        stopped.set()

    monkeypatch.setattr(Link, "call", call_late)
    monkeypatch.setattr(RedisSubscription, "stop", stop_and_answer)
    club = Club(live)
    await club.publish(3)
    async with anyio.create_task_group() as tasks:
        await tasks.start(dataclasses.replace(club.subscriber, grace=0.0).run)
        await read.wait()
        tasks.cancel_scope.cancel()

    assert [] == club.handled
    assert {("released", 0)} == {server.owner(S, "g", id) for id in _pending(server)}


@pytest.mark.parametrize("end", ["acked", "settled", "released"])
async def test_what_came_again_stays_held_when_the_end_of_its_lost_delivery_is_told(
    live: RedisTransport, server: Any, end: str
) -> None:
    """Or its lease would run out under its handler, and another would handle it as well."""
    await Club(live).publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        [lost] = await subscription.receive(1)
        server.client.xclaim(S, "g", "other", 0, [lost.source_id], justid=True)
        await subscription._renew()
        server.idle(lost.source_id.encode())
        subscription._sweep_at = 0.0
        [again] = await subscription.receive(1)
        assert (lost.entry_id, True, False) == (again.entry_id, lost.lost, again.lost)

        if end == "acked":
            subscription.ack(lost)
            await subscription.flush()
        elif end == "settled":
            subscription.settled(lost)
        else:
            await subscription.release([lost])

        assert [again] == list(subscription._held.values())
        assert (again.consumer, 1) == server.owner(S, "g", again.source_id)

        subscription.ack(again)
        await subscription.flush()

        assert ({}, []) == (subscription._held, _pending(server))


async def test_sweeps_and_reads_take_turns(live: RedisTransport, server: Any) -> None:
    """Or a customer of today would wait until everything is handled that a dead process has left, however much that is."""
    club = Club(live)
    await club.publish(30)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">")
        server.idle(*(id for id, _ in server.client.xrange(S)))
        await club.publish(30, first=30)

        turns = [await subscription.receive(5) for _ in range(4)]

    assert [{True, False}] * 2 == [{delivery.suspect for delivery in turns[n] + turns[n + 1]} for n in (0, 2)]


async def test_a_read_between_two_sweeps_does_not_wait(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what a dead process has left would be handled in leaps of seconds where nothing new comes."""
    blocks: list[int | None] = []
    await Club(live).publish(30)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">")
        server.idle(*(id for id, _ in server.client.xrange(S)))
        xreadgroup = subscription._xreadgroup

        def note(count: int, block: int | None, *sources: str) -> tuple[Any, ...]:
            blocks.append(block)
            return xreadgroup(count, block, *sources)

        monkeypatch.setattr(subscription, "_xreadgroup", note)
        for _ in range(3):
            assert 5 == len(await subscription.receive(5))

    assert {None, 1} == set(blocks)


async def test_what_is_read_again_is_no_suspect_after_a_sweep_that_was_refused(
    live: RedisTransport, proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk refuses sweeps, which have claimed nothing: suspects are started one by one, and that would cost for nothing."""
    await Club(live).publish(1)
    async with (
        RedisTransport(proxy.url, stream=S) as transport,
        transport.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription,
    ):
        run, refused = subscription._reader.run, False

        async def refuse_once(command: Any, **options: Any) -> Any:
            nonlocal refused
            if command[1:2] == (SWEEP.sha,) and not refused:
                refused = True
                proxy.cut("xreadgroup")
                raise Full("MISCONF: the disk is full")
            return await run(command, **options)

        monkeypatch.setattr(subscription._reader, "run", refuse_once)
        server("XREADGROUP", "GROUP", "g", subscription.consumer, "STREAMS", S, ">")  # on its way to us
        [delivery] = await subscription.receive(1)

        assert (True, 1) == (refused, proxy.faults)
        assert (False, False) == (delivery.suspect, subscription._sweeping)


async def test_what_is_lost_while_a_sweep_is_asked_for_is_handed_out_when_it_brings_it_back(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be pending for us and in nobody's hand, for as long as the lease is, which may be a month."""
    await Club(live).publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        [lost] = await subscription.receive(1)
        server.client.xclaim(S, "g", "other", 0, [lost.source_id], justid=True)
        run = subscription._reader.run

        async def lose_and_run(command: Any, **options: Any) -> Any:
            if command[1:2] == (SWEEP.sha,) and not lost.lost:
                await subscription._renew()
                server.idle(lost.source_id.encode())  # and the other one has died, or given it back
            return await run(command, **options)

        monkeypatch.setattr(subscription._reader, "run", lose_and_run)
        subscription._sweep_at = 0.0
        with anyio.fail_after(10):
            [again] = await subscription.receive(1)

        assert (lost.entry_id, True, False) == (again.entry_id, lost.lost, again.lost)


@pytest.mark.parametrize("outage", [False, True])
async def test_who_joins_after_an_outage_lets_the_living_renew_first(
    live: RedisTransport, monkeypatch: pytest.MonkeyPatch, outage: bool
) -> None:
    """They may still wait at their gates, and what they hold is not to be taken from them."""
    answers = [Unavailable("nobody answers"), None] if outage else [None]

    async def make_groups(self: RedisSubscription, *, healing: bool) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(RedisSubscription, "_make_groups", make_groups)
    before = time.monotonic()
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        assert (subscription._sweep_at > before + 15.0) == outage


async def test_leases_are_renewed_while_the_janitor_is_at_work(live: RedisTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long an audit takes, and however long the lease is, both have their turn."""
    tidying, go_on = asyncio.Event(), asyncio.Event()
    renewed: list[int] = []

    async def tidy(self: RedisSubscription) -> None:
        tidying.set()
        await go_on.wait()

    async def renew(self: RedisSubscription) -> None:
        renewed.append(len(renewed))

    monkeypatch.setattr(RedisSubscription, "_tidy", tidy)
    monkeypatch.setattr(RedisSubscription, "_renew", renew)
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=0.3)):
        with anyio.fail_after(10):
            await tidying.wait()
        so_far = len(renewed)
        await wait_until(lambda: len(renewed) > so_far + 2, description="leases were renewed meanwhile")
        go_on.set()
    tidying.clear()
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=3600.0)):
        with anyio.fail_after(10):
            await tidying.wait()


async def test_a_group_that_is_gone_from_one_stream_costs_no_lease_on_another(live: RedisTransport, server: Any) -> None:
    """The reader makes it again when it has room; until then a long handler goes on, and nobody else gets what it has."""
    async with live.subscribe(Subscribe(streams=["other", S], group="g", lease=0.6)) as subscription:
        for stream in ("other", S):
            await live.publish([replace(seal(BookRegistered(0)), stream=stream)])
            [held] = await subscription.receive(1)
            assert stream == held.stream
        server.client.delete("other")
        for _ in range(2):  # by a round that was under way, and by one that was not
            server.client.xclaim(S, "g", held.consumer, 0, [held.source_id], idle=70_000, justid=True)
            await wait_until(
                lambda: server.client.xpending_range(S, "g", "-", "+", 1)[0]["time_since_delivered"] < 70_000,
                description="its lease is renewed",
            )

        assert not held.lost
        assert (held.consumer, 1) == server.owner(S, "g", held.source_id)


async def test_what_was_just_read_needs_no_renewal(live: RedisTransport) -> None:
    """After a pause too, if nothing else is held; but what was read before the pause does, though it was not handed out."""
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        await Club(live).publish(1)
        subscription.held_until = -math.inf
        [delivery] = await subscription.receive(1)

        assert time.monotonic() < subscription.held_until

        subscription._ready.append(delivery)
        subscription.held_until = -math.inf
        [delivery] = await subscription.receive(1)

        assert -math.inf == subscription.held_until


async def test_a_renewal_vouches_for_nothing_that_came_after_it_began(
    live: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease may be as old as the read that brought it, which may have been asked for long before."""
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription, anyio.create_task_group() as tasks:
        await Club(live).publish(1)
        await subscription.receive(1)
        under_way, go_on = anyio.Event(), anyio.Event()
        run = subscription._control.run

        async def run_late(*command: Any, **more: Any) -> Any:
            reply = await run(*command, **more)
            under_way.set()
            await go_on.wait()
            return reply

        monkeypatch.setattr(subscription._control, "run", run_late)
        received = asyncio.ensure_future(subscription.receive(1))
        await wait_until(lambda: subscription._reading, description="a read waits")
        before = time.monotonic()
        tasks.start_soon(subscription._renew)
        await under_way.wait()
        await Club(live).publish(1)
        await received
        renewed = subscription._renewed
        go_on.set()
        await renewed.wait()

        assert subscription.held_until < before + 30.0


async def test_a_renewal_that_did_not_cover_all_is_asked_for_again(live: RedisTransport) -> None:
    """What came while it was under way may be another's already."""
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        subscription.held_until, subscription._renewed_at, subscription._oldest = -math.inf, math.inf, -math.inf
        renewed = subscription._renewed
        assert await subscription.confirm()

        assert renewed.is_set()


async def test_where_renewals_take_longer_than_a_lease_the_work_goes_on(
    live: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know there what is ours still. One that began after it was asked for is the best answer that can be had."""
    renew = RedisSubscription._renew

    async def renew_late(self: RedisSubscription) -> None:
        await renew(self)
        self.held_until = -math.inf

    monkeypatch.setattr(RedisSubscription, "_renew", renew_late)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        subscription.held_until = -math.inf
        with anyio.fail_after(10):
            assert await subscription.confirm()


@pytest.mark.parametrize("done", ["XGROUP DELCONSUMER", "XGROUP DESTROY, and made again at $"])
async def test_what_an_operator_takes_from_the_living_is_handled_all_the_same(
    live: RedisTransport, server: Any, done: str
) -> None:
    """It looks like what others have settled, but nobody can have taken it over so soon: ours is the last copy that anyone handles."""
    lost: list[Delivery] = []
    await Club(live).publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0, on_lost=lost.append)) as subscription:
        [delivery] = await subscription.receive(1)
        if done == "XGROUP DELCONSUMER":
            server.client.xgroup_delconsumer(S, "g", subscription.consumer)
        else:
            server.client.xgroup_destroy(S, "g")
            server.client.xgroup_create(S, "g", "$")
        await subscription._renew()

        assert (False, []) == (delivery.lost, lost)
        assert await subscription.confirm()


async def test_who_cannot_renew_leases_since_the_disk_is_full_does_not_try_all_the_time(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the processor from the handlers that run, and from the server."""
    now = time.monotonic()
    pauses: list[float] = []
    refused: list[Full] = []
    full, enough = asyncio.Event(), asyncio.Event()
    renew = RedisSubscription._renew

    async def pause(self: RedisSubscription, seconds: float) -> None:
        nonlocal now
        await full.wait()
        if len(refused) == 3:
            enough.set()
            await asyncio.Event().wait()
        pauses.append(seconds)
        now += max(0.0, seconds)

    async def count(self: RedisSubscription) -> None:
        try:
            await renew(self)
        except Full as exc:
            refused.append(exc)
            raise

    monkeypatch.setattr(RedisSubscription, "_pause", pause)
    monkeypatch.setattr(RedisSubscription, "_renew", count)
    monkeypatch.setattr("eventbus.redis.subscription.time", SimpleNamespace(monotonic=lambda: now))
    await Club(live).publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        assert await subscription.receive(1)
        async with server.full_disk():
            full.set()
            with anyio.fail_after(10):
                await enough.wait()

    assert 3 == len(pauses)
    assert 0 < min(pauses)


async def test_leases_are_renewed_however_often_a_full_server_refuses_a_verdict(live: RedisTransport, server: Any) -> None:
    """A full memory lets them be renewed, and a handler that is at work meanwhile must not be doubled."""
    await Club(live).publish(2)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=1.5)) as subscription:
        [slow], [failed] = await subscription.receive(1), await subscription.receive(1)
        server.fill()
        server.client.xclaim(S, "g", slow.consumer, 0, [slow.source_id], idle=70_000, justid=True)
        refused = 0

        async def fail_until_renewed() -> bool:
            nonlocal refused
            assert await subscription.retry(failed, after=0.0)
            refused += 1
            return bool(server.client.xpending_range(S, "g", "-", "+", 1)[0]["time_since_delivered"] < 70_000)

        await wait_until(fail_until_renewed, description="the lease is renewed")
        server.client.config_set("maxmemory", 0)

    assert refused > 1


async def test_leases_are_renewed_while_many_verdicts_are_told_at_last(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long outage there are thousands, and who handled them has others at work."""
    told = 0
    call = Channel.call

    async def count(self: Channel, *commands: Any, **options: Any) -> list[Any]:
        nonlocal told, now
        retries = sum(command[:2] == ("EVALSHA", RETRY.sha) for command in commands)
        if retries:
            told += retries
            now += 1.0  # as if a full server took so long for each write
        return await call(self, *commands, **options)

    now = time.monotonic()
    monkeypatch.setattr("eventbus.redis.subscription.SETTLED_TOGETHER", 10)
    await Club(live).publish(41)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=9.0)) as subscription:
        [slow] = await subscription.receive(1)
        failed = [delivery for _ in range(40) for delivery in await subscription.receive(1)]
        server.fill()
        for delivery in failed:
            assert await subscription.retry(delivery, after=3600.0)
        renewed_after: list[int] = []
        renew = subscription._renew

        async def note() -> None:
            renewed_after.append(told)
            await renew()

        monkeypatch.setattr(subscription, "_renew", note)
        monkeypatch.setattr("eventbus.redis.subscription.time", SimpleNamespace(monotonic=lambda: now))
        monkeypatch.setattr(Channel, "call", count)
        server.client.config_set("maxmemory", 0)
        await wait_until(lambda: not subscription._unsettled, description="all are told")

    assert any(0 < number < 40 for number in renewed_after)
    assert not slow.lost


async def test_what_a_sweep_may_have_claimed_is_suspect_though_its_reply_was_lost(
    live: RedisTransport, proxy: FaultProxy, server: Any
) -> None:
    """A message that takes its process with it is started alone and counted, whatever the line loses."""
    await Club(live).publish(1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as dead:
        [held] = await dead.receive(1)
        dead.abandon()
        server.idle(held.source_id.encode())
        async with RedisTransport(proxy.url, stream=S) as transport:
            proxy.cut("sweep", after=True)
            async with transport.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as heir:
                with anyio.fail_after(20):
                    [found] = await heir.receive(1)

                assert 0 == proxy.pending_cuts
                assert (held.entry_id, True) == (found.entry_id, found.suspect)

                heir.ack(found)
                await Club(live).publish(1)
                [fresh] = await heir.receive(1)
                assert not fresh.suspect


class Turns(asyncio.Event):
    """What a subscription that must not read waits for between two looks whether it may."""

    waited = 0

    async def wait(self) -> Literal[True]:
        self.waited += 1

        return await super().wait()


async def test_a_full_server_does_not_fill_the_consumer(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be settled now is kept, up to a bound; then nothing more is read. One line says so, and nothing is renewed for it."""
    renewed: list[int] = []
    monkeypatch.setattr("eventbus.redis.subscription.MOST_UNSETTLED", 5)
    await Club(live).publish(20)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        renew = subscription._renew

        async def count() -> None:
            renewed.append(len(renewed))
            await renew()

        monkeypatch.setattr(subscription, "_renew", count)
        server.fill()
        for _ in range(5):
            [delivery] = await subscription.receive(1)
            assert await subscription.retry(delivery, after=0.0)
        subscription._stopped = turns = Turns()
        reading = asyncio.ensure_future(subscription.receive(1))
        await wait_until(lambda: turns.waited >= 3, description="it might have read, three times")
        assert not reading.done()
        assert 5 == len(_pending(server))

        server.client.config_set("maxmemory", 0)
        with anyio.fail_after(10):
            assert await reading
        await wait_until(lambda: not subscription._unsettled, description="the server has taken them")

    assert [] == renewed
    assert 1 == sum("is not settled yet" in record.message for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize("loss", ["flushall", "delete"])
async def test_a_consumer_that_is_full_of_what_is_gone_goes_on(
    live: RedisTransport, server: Any, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Somebody makes room on a full server by deleting the stream: what waited to be settled is gone, and must not keep out what comes."""
    monkeypatch.setattr("eventbus.redis.subscription.MOST_UNSETTLED", 5)
    club = Club(live)
    await club.publish(5)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=30.0)) as subscription:
        server.fill()
        for _ in range(5):
            [delivery] = await subscription.receive(1)
            assert await subscription.retry(delivery, after=0.0)
        subscription._stopped = turns = Turns()
        reading = asyncio.ensure_future(subscription.receive(1))
        await wait_until(lambda: turns.waited >= 1, description="it would read")
        if loss == "flushall":
            server.client.flushall()
        else:
            server.client.delete(S)
        server.client.config_set("maxmemory", 0)
        await club.publish(1, first=10)

        with anyio.fail_after(20):
            [fresh] = await reading
        assert fresh.entry_id == server.client.xrevrange(S, count=1)[0][0].decode()


async def test_a_group_that_begins_in_the_midst_of_a_long_stream_is_counted_right(live: RedisTransport, server: Any) -> None:
    """In pages, between which the server does other things; what is published meanwhile counts, too."""
    club = Club(live)
    await club.publish(7_000)
    ids = [id.decode() for id, _ in server.client.xrange(S)]
    run, joins = RedisSubscription._make_group, []

    async def make_group(self: RedisSubscription, keys: Any, start: str, *, healing: bool) -> tuple[str, str]:
        call = self._control.run

        async def run_and_publish(command: Any) -> Any:
            if command[1] == JOIN.sha:
                joins.append(command)
                if len(joins) == 2:
                    await club.publish(100, first=7_000)
            return await call(command)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._control, "run", run_and_publish)
            return await run(self, keys, start, healing=healing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisSubscription, "_make_group", make_group)
        async with live.subscribe(Subscribe(streams=[S], group="g", start=ids[999])):
            found = await live.audit(S, "g")

    assert 2 == len(joins)
    assert found is not None
    assert (6_100, 6_100, 0) == (found.added, found.unread + found.pending, found.lost)


async def test_what_is_published_before_the_group_is_healed_is_not_missed(live: RedisTransport, server: Any) -> None:
    """Everything was lost, and the stream is there again: the group begins where it was when we joined, and not at the end."""
    club = Club(live)
    await club.publish(3)
    async with live.subscribe(Subscribe(streams=[S], group="g", start="$")) as subscription:
        await club.publish(1, first=3)
        [first] = await subscription.receive(1)
        server.client.flushall()
        await club.publish(2, first=4)

        found: list[Delivery] = []
        with anyio.fail_after(20):
            while len(found) < 2:
                found += await subscription.receive(2)
        assert first.entry_id < found[0].entry_id < found[1].entry_id
        assert 2 == server.client.xlen(S)


async def test_an_audit_says_where_something_was_lost(live: RedisTransport, server: Any) -> None:
    """The range is as narrow as what was known before, and holds all of it, however the group has gone on since."""

    async def audited() -> Audit:
        found = await audit(live._channel, Keys(S, "g"), interval=0.001)
        while found is None:  # within the same millisecond
            found = await audit(live._channel, Keys(S, "g"), interval=0.001)

        return found

    async def settle(count: int) -> None:
        for _ in range(count):
            [delivery] = await subscription.receive(1)
            subscription.ack(delivery)
        await subscription.flush()
        server.run(GLANCE, S, keys.retry, keys.delayed, keys.state, args=("g",))  # which notes the checkpoint

    keys, club = Keys(S, "g"), Club(live)
    await club.publish(10)
    ids = [id.decode() for id, _ in server.client.xrange(S)]
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        await settle(3)
        assert await audited()
        server.client.xdel(S, ids[4], ids[6])

        found = await audited()
        assert (2, ids[2], ids[9]) == (found.lost, found.after, found.before)
        await settle(5)
        await club.publish(1)
        assert (2, ids[2], ids[9]) == ((found := await audited()).lost, found.after, found.before)
        await settle(1)
        assert (2, ids[2], ids[9]) == ((found := await audited()).lost, found.after, found.before)

        await club.publish(1)
        [last] = [id.decode() for id, _ in server.client.xrevrange(S, count=1)]
        server.client.xdel(S, last)
        assert (3, ids[2], last) == ((found := await audited()).lost, found.after, found.before)


async def test_audits_that_take_long_are_rare(live: RedisTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count what is unread: a backlog is no reason to keep the server busy with that."""
    intervals: list[float] = []

    async def audit(*_: Any, interval: float, adopt: bool) -> Audit:
        intervals.append(interval)
        await asyncio.sleep(0.05)
        return Audit(stream=S, group="g", added=0, settled=0, pending=0, unread=0, vanished=0, lost=0, after="0-0", before="0-0")

    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.1)
    monkeypatch.setattr("eventbus.redis.subscription.audit", audit)
    request = Subscribe(streams=[S], group="g", lease=0.3)
    async with live.subscribe(request) as subscription, anyio.create_task_group() as tasks:
        tasks.start_soon(subscription.receive, 1)
        await wait_until(lambda: len(intervals) >= 3, description="it looked three times")
        tasks.cancel_scope.cancel()

    assert 0.1 > intervals[0]
    assert all(interval >= 100 * 0.05 for interval in intervals[1:])


async def test_an_audit_counts_what_is_unread_over_many_steps(live: RedisTransport) -> None:
    await Club(live).publish(2_345)
    async with live.subscribe(Subscribe(streams=[S], group="g")):
        found = await live.audit(S, "g")

    assert found is not None
    assert (2_345, 2_345, 0) == (found.added, found.unread + found.pending, found.lost)


def _pending(server: Any) -> list[str]:
    return [row["message_id"].decode() for row in server.client.xpending_range(S, "g", "-", "+", 10)]


def _crashes(server: Any) -> dict[str, str]:
    state: dict[bytes, bytes] = server.client.hgetall(f"{{{S}}}:group:g")

    return {name.decode(): count.decode().split()[0] for name, count in state.items() if name.startswith(b"crash ")}


async def test_a_destroyed_group_is_made_again_at_its_checkpoint(
    live: RedisTransport, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What was settled long ago does not come back, what was not does; one line says so."""
    club = Club(live)
    await club.publish(3)
    async with club.running():
        await club.finished()
        await wait_until(
            lambda: server.client.hget("{club}:group:g", "checkpoint") == server.client.xrevrange(S, count=1)[0][0],
            description="a sweep noted the checkpoint",
        )
        with caplog.at_level(logging.ERROR, "eventbus"):
            server.client.xgroup_destroy(S, "g")
            await club.publish(3, first=10)
            await wait_until(lambda: 12 in club.handled, description="the subscriber resumed")

    assert [0, 1, 2, 10, 11, 12] == sorted(club.handled)
    assert 1 == sum("begins again at its checkpoint" in record.message for record in caplog.records)


@pytest.mark.parametrize("loss", ["flushall", "delete"])
async def test_a_lost_stream_is_made_again_at_the_beginning(live: RedisTransport, server: Any, loss: str) -> None:
    """A blocked reader notices, and misses nothing of what comes."""
    club = Club(live)
    async with club.running():
        await club.publish(3)
        await club.finished()
        if loss == "flushall":
            server.client.flushall()
        else:
            server.client.delete(S)
        await club.publish(3, first=10)
        await wait_until(lambda: {10, 11, 12} <= set(club.handled), description="the subscriber resumed")


async def test_a_storm_of_killed_connections_loses_nothing(live: RedisTransport, server: Any) -> None:
    """CLIENT KILL of everybody, again and again, under load."""
    club = Club(live)
    async with club.running():
        for first in range(0, 400, 20):
            await club.publish(20, first=first)
            server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await club.finished()

    assert {n for n in range(400) if n % 10 != 7} == set(club.handled)


async def test_a_full_server_is_drained_of_what_a_dead_consumer_left(live: RedisTransport, server: Any) -> None:
    """Its suspects are counted and handled, and do not stand in the way of the others."""
    club = Club(live, concurrency=1)
    await club.publish(3)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=0.1)) as dying:
        await dying.receive(3)
        dying.abandon()
    await club.publish(2, first=11)
    server.fill()
    async with club.running():
        await club.finished()

    assert [0, 1, 2, 11, 12] == sorted(club.handled)


@pytest.mark.parametrize("fields", [100, 5000])
async def test_an_entry_of_too_many_words_for_a_script_is_retried_and_buried_like_any(
    live: RedisTransport, server: Any, fields: int
) -> None:
    """A stranger may write thousands of fields, and names that are ours: nobody is stopped by it, and the dead letter has each word."""
    club = Club(live)
    strange = {b"id": b"x", b"created_at": b"2026-01-01T00:00:00Z", b"type": b"book_registered_v1", b"payload": b'{"number":3}'}
    strange |= {b"retry-attempt": b"40", b"dead-reason": b"none", **{b"f%d" % n: b"\xc3\xa9" for n in range(fields)}}
    broken = strange | {b"payload": b"{"}

    async def one_dead() -> bool:
        return 1 == len(await live.dead_letters(S, "g"))

    server.client.xadd(S, strange)
    id = server.client.xadd(S, broken)
    await club.publish(1)
    async with club.running():
        await wait_until(one_dead, description="the broken one is buried")
        [first] = await live.dead_letters(S, "g")
        assert await live.requeue(first)
        await wait_until(one_dead, description="it is buried again")
        [again] = await live.dead_letters(S, "g")
        await club.finished()

    assert {0: 1, 3: 2} == club.attempts
    assert [broken, broken] == [first.fields, again.fields]
    assert [(id.decode(), 1, "undecodable")] * 2 == [(dead.entry_id, dead.attempts, dead.reason) for dead in (first, again)]


@pytest.mark.parametrize(
    "changes",
    [
        {b"created_at": b"yesterday"},
        {b"created_at": b"2026-13-01T00:00:00.000000Z"},
        {b"created_at": b"\xff"},
        {b"id": b""},
        {b"id": b"\xff"},
        {b"tenant": b"\xff"},
        {b"\xff": b"acme"},
    ],
    ids=["no time", "no such month", "time not UTF-8", "no id", "id not UTF-8", "header not UTF-8", "name not UTF-8"],
)
async def test_what_is_no_envelope_is_handled_by_nobody(live: RedisTransport, server: Any, changes: dict[bytes, bytes]) -> None:
    """Though its type is known and its payload can be decoded, and others like it were handled before."""
    club = Club(live, concurrency=1)
    good = {b"id": b"x", b"created_at": b"2026-01-01T00:00:00Z", b"type": b"book_registered_v1", b"payload": b'{"number":1}'}
    bad = good | {b"payload": b'{"number":2}'} | changes
    for entry in (good, good, bad, good | {b"tenant": b"acme"}):
        server.client.xadd(S, entry)
    async with club.running():
        await club.finished()
    [letter] = await live.dead_letters(S, "g")

    assert [1, 1, 1] == club.handled
    assert (bad, "undecodable", "DecodeError", 1) == (letter.fields, letter.reason, letter.error_type, letter.attempts)


async def test_a_header_named_like_one_of_the_four_is_taken_for_it(live: RedisTransport, server: Any) -> None:
    """A stranger wrote two: the last one counts, as everywhere."""
    club = Club(live, concurrency=1)
    words = ["id", "x", "created_at", "2026-01-01T00:00:00Z", "type", "book_registered_v1", "payload", '{"number":1}']
    server("XADD", S, "*", *words)
    server("XADD", S, "*", *words, "payload", '{"number":2}')
    async with club.running():
        await club.finished()

    assert [1, 2] == club.handled


async def test_what_was_given_back_comes_first_also_when_the_server_was_away(
    live: RedisTransport, server: Any, proxy: FaultProxy
) -> None:
    """Who is alive has to renew first then, but what was given back is held by nobody."""
    request = Subscribe(streams=[S], group="g", ordered=True)
    await Club(live).publish(12)
    async with live.subscribe(request) as subscription:
        await subscription.receive(6)
    proxy.cut("join")
    found: list[str] = []
    async with RedisTransport(proxy.url, stream=S) as through, through.subscribe(request) as subscription:
        while len(found) < 12:
            for delivery in await subscription.receive(1):
                subscription.ack(delivery)
                found.append(delivery.entry_id)

    assert [id.decode() for id, _ in server.client.xrange(S)] == found
    assert 0 == proxy.pending_cuts


async def test_a_verdict_of_which_nothing_came_is_said(
    live: RedisTransport, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program settled it under the handler's hands: there is nothing to retry, and no statistics count it."""
    started, settled = anyio.Event(), anyio.Event()
    bus = MessageBus()

    @bus.listen
    async def handle(event: BookRegistered) -> None:
        started.set()
        await settled.wait()
        raise Retry(after=0.0)

    subscriber = Subscriber(bus=bus, transport=live, streams=[S], group="g")
    await Club(live).publish(1)
    async with anyio.create_task_group() as tasks:
        await tasks.start(subscriber.run)
        await started.wait()
        server.client.xack(S, "g", server.client.xrange(S)[0][0])
        settled.set()
        await wait_until(lambda: "nothing came of that: it is pending no longer" in caplog.text, description="it is said")
        retried = subscriber.statistics().retried
        tasks.cancel_scope.cancel()

    assert (0, 0) == (retried, server.client.zcard(Keys(S, "g").delayed))


async def test_a_group_of_another_program_may_have_any_name(
    live: RedisTransport, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It pins the stream, and is reported, in one line that can be read."""
    server.client.xadd(S, {"id": "a"}, id="1000-0")
    server.client.xgroup_create(S, b"\xff\n", "0")
    await live.trim(S)

    assert ["\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"] == [
        found[1]
        for record in caplog.records
        if (found := re.match("club: the group (.*) has not settled 1000-0", record.message))
    ]
    assert ["\N{REPLACEMENT CHARACTER}\n"] == await live.groups(S)


async def test_a_full_server_is_drained_and_what_cannot_be_buried_waits(live: RedisTransport, server: Any) -> None:
    """Acks work without memory; retries and dead letters are written when there is some again."""
    club = Club(live)
    async with club.running():
        pass  # the group is there
    await club.publish(20)
    server.fill()
    async with club.running():
        await wait_until(lambda: len(club.handled) == 16, description="what needs no memory is handled")
        assert [] == await live.dead_letters(S, "g")
        server.client.config_set("maxmemory", 0)
        await club.finished()

    assert 2 == len(await live.dead_letters(S, "g"))
    assert {n for n in range(20) if n % 10 != 7} == set(club.handled)


@pytest.mark.parametrize("wrong", ["no password", "no such database"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_server_that_does_not_let_us_in_is_not_waited_for(
    redis_server: LiveServer, server: Any, wrong: str, protocol: int
) -> None:
    """Trying again would not help: it is told what is wrong, at once."""
    url = f"{redis_server.url.replace('db=0', 'db=99' if wrong == 'no such database' else 'db=0')}&protocol={protocol}"
    if wrong == "no password":
        server.client.config_set("requirepass", "pass")
    try:
        async with RedisTransport(url, stream=S) as transport:
            said = (
                "DB index is out of range"
                if wrong == "no such database"
                else "the server does not accept the user name or password"
            )
            with pytest.raises(Refused, match=said):
                await Club(transport).subscriber.run()
            with pytest.raises(PublishError, match=said):
                await Club(transport).publish(1)
    finally:
        server.client.config_set("requirepass", "")


@pytest.mark.parametrize("key", [S, f"{{{S}}}:retry:g", f"{{{S}}}:group:g", f"{{{S}}}:dead:g", f"{{{S}}}:delayed:g"])
async def test_keys_among_which_one_is_of_the_wrong_type_are_named(live: RedisTransport, server: Any, key: str) -> None:
    """Whoever has thirty streams must know where to look."""
    server.client.lpush(key, "something else")
    if key != S:
        await Club(live).publish(10)
    with pytest.raises(Refused, match=f"WRONGTYPE.*keys? .*{re.escape(key)}.* holds something else"):
        await Club(live).subscriber.run()


async def test_a_key_of_the_wrong_type_is_said_and_ends_the_run(live: RedisTransport, server: Any) -> None:
    """Waiting would not help."""
    server.client.set(S, "a string")

    with pytest.raises(Exception, match=r"WRONGTYPE.*choose another stream name"):
        await Club(live).subscriber.run()


async def test_twenty_thousand_messages_reach_two_groups_of_two_consumers_each(live: RedisTransport) -> None:
    """Each group handles each id, nothing is pending, nothing is left."""
    await Club(live).publish(2000)
    clubs = [Club(live) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for club in clubs:
            await stack.enter_async_context(club.running())
        await clubs[0].finished()

    assert sorted(n for n in range(2000) if n % 10 != 7) == sorted(clubs[0].handled + clubs[1].handled)


async def test_how_it_works_with_this_server_is_logged_once(
    redis_server: LiveServer, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level, and not again when the connection is another."""
    caplog.set_level(logging.DEBUG, "eventbus.redis")
    major = int(
        server.client.info("server").get("valkey_version", server.client.info("server")["redis_version"]).partition(".")[0]
    )
    async with FaultProxy(redis_server.url) as proxy, RedisTransport(proxy.url, stream=S) as transport:
        club = Club(transport)
        async with club.running():
            await wait_until(lambda: proxy.commands["xreadgroup"] > 0, description="it reads")
            proxy.reset()
            await wait_until(lambda: club.subscriber.statistics().reconnects > 0, description="it is back")

    [said] = [record.getMessage() for record in caplog.records if "RESP" in record.getMessage()]
    assert "RESP3" in said
    assert ("counted by the server" if major >= 7 else "counted by who publishes") in said


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_are_read_alike(redis_server: LiveServer, server: Any, protocol: int) -> None:
    """RESP2 and RESP3."""
    separator = "&" if "?" in redis_server.url else "?"
    async with RedisTransport(f"{redis_server.url}{separator}protocol={protocol}", stream=S) as transport:
        club = Club(transport)
        await club.publish(20)
        async with club.running():
            await club.finished()

    assert {n for n in range(20) if n % 10 != 7} == set(club.handled)


async def test_an_idle_subscriber_is_quiet(live: RedisTransport, proxy: FaultProxy) -> None:
    """It waits on the server: few commands, none of them in a hurry."""
    async with RedisTransport(proxy.url, stream=S) as through:
        club = Club(through, lease=30.0)
        async with club.running():
            await wait_until(lambda: proxy.commands["xreadgroup"] >= 2, description="the second read began")

    assert proxy.commands.total() < 30
