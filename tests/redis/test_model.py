"""Memory and a real server against a model: whatever is done in whatever order, all three agree, and nothing is lost or doubled.

``EVENTBUS_MODEL_EXAMPLES=400`` makes it 400 runs of 100 steps, 40,000 operations a server.
"""

import asyncio
import os
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from eventbus import Delivery, MemoryTransport
from eventbus.envelope import Envelope, new_id
from eventbus.memory import Clock
from eventbus.redis import RedisTransport
from eventbus.testing.servers import LiveServer
from eventbus.transport import DeadLetter, Subscribe

S, G = "modelled", "g"
LEASE = 30.0
T = TypeVar("T")


class Consumer:
    """A subscription in a task of its own, so that it can be entered here and left there."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._ended = asyncio.Event()

    async def join(self) -> "Consumer":
        joined = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(joined))
        self.subscription = await joined

        return self

    async def _live(self, joined: "asyncio.Future[Any]") -> None:
        async with self._transport.subscribe(Subscribe(streams=[S], group=G, lease=LEASE)) as subscription:
            joined.set_result(subscription)
            await self._ended.wait()

    async def leave(self) -> None:
        self._ended.set()
        await self._task

    async def take(self, count: int) -> list[Delivery]:
        """So many deliveries, which are there to be taken."""
        taken: list[Delivery] = []
        async with asyncio.timeout(5):
            while len(taken) < count:
                if hasattr(self.subscription, "_sweep_at"):  # a real one looks for them when it is time, and this is the time
                    self.subscription._sweep_at = 0.0
                    self.subscription._due_at = {S: 0.0}
                taken += await self.subscription.receive(1000)

        return taken


class Item:
    """What the model knows of one envelope: where it is."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.attempt = 1
        self.where = "ready"  # or the number of a consumer, "delayed", "dead", "done"
        self.suspect = False
        self.due = 0.0


class Agreement(RuleBasedStateMachine):
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.client = redis.Redis.from_url(self.url)
        self.client.flushall()
        self.memory = MemoryTransport(clock=Clock(running=False))
        self.real = RedisTransport(self.url)
        self.items: dict[str, Item] = {}
        self.consumers: dict[int, tuple[Consumer, Consumer]] = {}
        self.dead_since: dict[int, float] = {}
        self.held: dict[str, tuple[Delivery, Delivery]] = {}
        self.now = 0.0
        self.names = 0

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def teardown(self) -> None:
        for number, (one, other) in self.consumers.items():
            if number not in self.dead_since:
                self.run(one.leave())
                self.run(other.leave())
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            self.run(asyncio.wait([task]))
        self.run(self.real._publisher.close())
        self.run(self.real._channel.close())
        self.loop.close()
        self.client.close()

    # ------------------------------------------------------------------------------------------------------------ rules

    @initialize()
    def begin(self) -> None:
        self.open()

    @precondition(lambda self: len(self.consumers) - len(self.dead_since) < 3)
    @rule()
    def open(self) -> None:
        self.names += 1
        self.consumers[self.names] = (self.run(Consumer(self.memory).join()), self.run(Consumer(self.real).join()))

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        envelopes = [Envelope(new_id(), datetime.now(UTC), "t_v1", b"{}", stream=S) for _ in range(count)]
        for transport in (self.memory, self.real):
            self.run(transport.publish(envelopes))
            self.run(transport.publish(envelopes[:1]))  # asked again: nothing is added
        self.items |= {envelope.id: Item(envelope.id) for envelope in envelopes}

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.living()))
        items = self.available()
        if not items:
            return
        both = [self.run(consumer.take(len(items))) for consumer in self.consumers[number]]
        seen = [{(d.envelope.id, d.attempt, d.suspect) for d in deliveries} for deliveries in both]

        assert seen == [{(item.id, item.attempt, item.suspect) for item in items}] * 2
        for memory in both[0]:
            real = next(d for d in both[1] if d.envelope.id == memory.envelope.id)
            assert memory.entry_id.count("-") == real.entry_id.count("-") == 1
            self.held[memory.envelope.id] = (memory, real)
        for item in items:
            item.where = str(number)

    @rule(data=st.data(), what=st.sampled_from(["ack", "retry", "bury", "release"]), after=st.sampled_from([0.0, 5.0, 3600.0]))
    def settle(self, data: st.DataObject, what: str, after: float) -> None:
        """Also by one who has lost it: then nothing changes. (An ack is always taken.)"""
        if not self.held:
            return
        id = data.draw(st.sampled_from(sorted(self.held)))
        item, pair = self.items[id], self.held[id]
        if item.where not in map(str, self.living()):
            return
        for consumer, delivery in zip(self.consumers[int(item.where)], pair, strict=True):
            subscription = consumer.subscription
            match what:
                case "ack":
                    self.run(_ack(subscription, delivery))
                case "retry":
                    assert self.run(subscription.retry(delivery, after=after, error=ValueError("no")))
                    assert not self.run(subscription.retry(delivery, after=after))
                case "bury":
                    assert self.run(subscription.bury(delivery, reason="never"))
                    assert not self.run(subscription.bury(delivery, reason="never"))
                case _:
                    self.run(subscription.release([delivery]))
        del self.held[id]
        if what == "ack":
            item.where = "done"
        elif what == "retry":
            item.where, item.attempt, item.due, item.suspect = "delayed", item.attempt + 1, self.now + after, False
        elif what == "bury":
            item.where = "dead"
        else:
            item.where = "ready"  # a suspect as before, since nobody has begun it

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.living()))
        for consumer in self.consumers[number]:
            self.run(_abandon(consumer.subscription))
        self.dead_since[number] = self.now
        self.held = {id: pair for id, pair in self.held.items() if self.items[id].where != str(number)}

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.living()))
        for consumer in self.consumers.pop(number):
            self.run(consumer.leave())
        for item in self.items.values():
            if item.where == str(number):
                item.where = "ready"
                del self.held[item.id]

    @rule(seconds=st.sampled_from([1.0, 31.0, 4000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.memory.clock.advance(seconds)
        names = {self.consumers[number][1].subscription.consumer for number in self.dead_since}
        for source in (S, f"{{{S}}}:retry:{G}"):
            if not self.client.exists(source):
                continue
            for entry in self.client.xpending_range(source, G, "-", "+", 10_000):
                if entry["consumer"].decode() in names:
                    idle = entry["time_since_delivered"] + int(seconds * 1000)
                    self.client.xclaim(source, G, entry["consumer"], 0, [entry["message_id"]], idle=idle,
                                       retrycount=entry["times_delivered"], justid=True)  # fmt: skip
        for member in self.client.zrange(f"{{{S}}}:delayed:{G}", 0, -1):
            self.client.zincrby(f"{{{S}}}:delayed:{G}", -seconds * 1000, member)

    @rule()
    def requeue(self) -> None:
        for transport in (self.memory, self.real):
            for letter in self.run(transport.dead_letters(S, G)):
                assert self.run(transport.requeue(letter))
                assert not self.run(transport.requeue(letter))
        for item in self.items.values():
            if item.where == "dead":
                item.where, item.attempt, item.suspect = "ready", 1, False

    # ------------------------------------------------------------------------------------------------------- agreement

    def living(self) -> list[int]:
        if all(number in self.dead_since for number in self.consumers):
            self.open()

        return [number for number in self.consumers if number not in self.dead_since]

    def available(self) -> list[Item]:
        """What a consumer would be given now."""
        found = []
        for item in self.items.values():
            if item.where == "delayed" and item.due <= self.now:
                item.where = "ready"
            if (
                item.where.isdigit()
                and int(item.where) in self.dead_since
                and self.now - self.dead_since[int(item.where)] >= LEASE
            ):
                item.where, item.suspect = "ready", True
            if item.where == "ready":
                found.append(item)

        return found

    @invariant()
    def all_agree(self) -> None:
        self.available()
        delayed = sum(item.where == "delayed" for item in self.items.values())
        dead = {item.id for item in self.items.values() if item.where == "dead"}
        left = sum(item.where not in ("dead", "done") for item in self.items.values())
        for transport in (self.memory, self.real):
            backlog = self.run(transport.backlog(S, G))
            assert backlog.unread + backlog.pending + backlog.delayed == left
            assert backlog.delayed >= delayed
            letters: list[DeadLetter] = self.run(transport.dead_letters(S, G, limit=1000))
            assert dead == {letter.envelope.id for letter in letters}
            assert len(dead) == len(letters)
        found = self.run(self.real.audit(S, G))
        assert found is None or found, str(found)


async def _ack(subscription: Any, delivery: Delivery) -> None:
    subscription.ack(delivery)
    await subscription.flush()


async def _abandon(subscription: Any) -> None:
    subscription.abandon()
    await asyncio.sleep(0)


@pytest.mark.timeout(600)
def test_memory_and_server_agree_with_the_model(redis_server: LiveServer) -> None:
    """Publish, take, ack, retry, bury, release, crash, leave, pass time and requeue, in any order."""
    if not redis_server.ours:
        pytest.skip("this test empties its server, and --eventbus-redis-url names somebody's own")
    machine = type("Agreement", (Agreement,), {"url": redis_server.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("EVENTBUS_MODEL_EXAMPLES", "6")),
            stateful_step_count=100,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
