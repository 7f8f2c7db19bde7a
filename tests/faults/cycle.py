"""One publish-consume-retry-bury cycle, again and again, with the line cut at another of its commands each time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import anyio

from eventbus import Delivery, Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork, exponential
from eventbus.errors import PublishError
from eventbus.redis import RedisTransport
from eventbus.testing.faults import FaultProxy
from tests.faults.checker import Account
from tests.faults.rig import Rig

ACTS = ("left", "", "again", "reject", "fail", "")
"""What the messages of a cycle are to do. ``left`` is read by a consumer that dies with it, before the one under test begins."""
BURIED = {index for index, act in enumerate(ACTS) if act in ("reject", "fail")}
AT_ONCE = 16
LEASE = 5.0
"""So long that nothing is found again only because a lease has run out."""
PATIENCE = 4.2


class Turn(Event):
    metadata = Metadata(name="turn", published=True)
    number: int


class Cycle:
    """One cycle on a stream of its own."""

    def __init__(self, rig: Rig, stream: str) -> None:
        self.rig = rig
        self.stream = stream
        self.handled: Counter[int] = Counter()
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.problems: list[tuple[str, str]] = []

    async def run(self, line: FaultProxy) -> None:
        """Publish, consume, and compare. What is wrong is in `problems`."""
        async with AsyncExitStack() as stack:
            through = await stack.enter_async_context(RedisTransport(line.url, stream=self.stream, patience=0.3))
            directly = await stack.enter_async_context(RedisTransport(self.rig.server.url, stream=self.stream))
            async with UnitOfWork(transport=through) as uow:
                for number in range(len(ACTS)):
                    uow.emit(Turn(number))
                await self._publish(uow)
            await self._leave_one_behind()
            try:
                async with asyncio.timeout(PATIENCE), anyio.create_task_group() as tasks:
                    await tasks.start(self._subscriber(through).run)
                    while await directly.backlog(self.stream, "g"):
                        await asyncio.sleep(0.02)
                    tasks.cancel_scope.cancel()
            except TimeoutError:
                left = await directly.backlog(self.stream, "g")
                self.problems.append(("unaccounted", f"left after {PATIENCE:g} s: {left}"))
            await self._compare(directly)

    def _subscriber(self, transport: RedisTransport) -> Subscriber:
        bus = MessageBus()

        @bus.listen
        async def turn(event: Turn, delivery: Delivery) -> None:
            self.attempts[event.number, delivery.attempt] += 1
            act = ACTS[event.number]
            if act == "again" and delivery.attempt == 1:
                raise Retry(after=0.02)
            if act == "reject":
                raise Reject("told to")
            if act == "fail":
                raise RuntimeError("told to fail")
            self.handled[event.number] += 1

        return Subscriber(
            bus=bus, transport=transport, streams=[self.stream], group="g", concurrency=2, lease=LEASE, grace=1.0,
            retry=exponential(attempts=2, base=0.02),
        )  # fmt: skip

    async def _publish(self, uow: UnitOfWork) -> None:
        publish = uow.commit
        while True:
            try:
                await publish()
                return
            except PublishError:
                publish = uow.publish_pending

    async def _leave_one_behind(self) -> None:
        """As if a process had died with one of them, long ago."""
        client = self.rig.client
        await client.xgroup_create(self.stream, "g", "0")
        [[_, [[first, _]]]] = await client.xreadgroup("g", "dead", {self.stream: ">"}, count=1)
        await client.xclaim(self.stream, "g", "dead", 0, [first], idle=3_600_000, justid=True)

    async def _compare(self, transport: RedisTransport) -> None:
        entries = await self.rig.client.xlen(self.stream)
        if entries != len(ACTS):
            self.problems.append(("published twice", f"{entries} entries where {len(ACTS)} were published"))
        letters = await transport.dead_letters(self.stream, "g")
        buried = sorted(letter.envelope.payload for letter in letters)
        if buried != sorted(b'{"number":%d}' % number for number in BURIED):
            self.problems.append(("buried wrongly", f"{buried}"))
        wanted = set(range(len(ACTS))) - BURIED
        if wanted - set(self.handled):
            self.problems.append(("lost", f"{sorted(wanted - set(self.handled))}"))
        if set(self.handled) - wanted:
            self.problems.append(("unexpected", f"{sorted(set(self.handled) - wanted)}"))
        if self.handled and max(self.handled.values()) > 2:
            self.problems.append(("repeated", f"{self.handled}"))
        found = await transport.audit(self.stream, "g")
        if found is None or not found:
            self.problems.append(("unaccounted", str(found)))


async def every_cut(rig: Rig) -> Account:
    """First a cycle without a fault, to see which commands there are; then one for each of them and each kind of cut."""
    async with FaultProxy(rig.server.url) as line:
        first = Cycle(rig, "cycle")
        await first.run(line)
        commands = dict(line.commands)
    places = [
        (command, skip, after)
        for command, times in sorted(commands.items())
        for skip in range(min(times, 3))
        for after in (False, True)
    ]
    account, slots, cycles = Account(), asyncio.Semaphore(AT_ONCE), [first]

    async def cut_at(number: int, command: str, skip: int, after: bool) -> None:
        async with slots, FaultProxy(rig.server.url) as line:
            cycle = Cycle(rig, f"cycle-{number}")
            cycles.append(cycle)
            line.cut(command, skip=skip, after=after)
            await cycle.run(line)
            where = f"{command} cut {'after' if after else 'before'} {'its reply' if not after else 'it was carried out'}"
            rig.faults["cut"] += line.faults
            for check, text in cycle.problems:
                rig.violate(check, f"{where}, occurrence {skip + 1}: {text}")

    async with asyncio.TaskGroup() as tasks:
        for number, place in enumerate(places):
            tasks.create_task(cut_at(number, *place))
    for check, text in first.problems:
        rig.violate(check, f"without any cut: {text}")
    rig.notes.append(f"{len(places)} places in {len(commands)} commands: {', '.join(sorted(commands))}")
    account.attempted = account.acknowledged = account.in_stream = len(ACTS) * len(cycles)
    account.groups["g"] = {
        "handled": sum(len(cycle.handled) for cycle in cycles),
        "repeated": sum(cycle.handled.total() - len(cycle.handled) for cycle in cycles),
        "buried": len(BURIED) * len(cycles),
    }

    return account
