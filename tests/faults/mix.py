"""All faults at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from eventbus.testing.faults import FaultProxy
from tests.faults.checker import Allowances
from tests.faults.crew import Worker
from tests.faults.messages import Plan
from tests.faults.rig import LEASE, Member, Rig

PLAN: Plan = (("again", 200, 7), ("reject", 5000, 11), ("fail", 1000, 13))

HANDLING = 0.00015
"""Seconds that a consumer needs for a message, roughly."""

# Seconds for which a fault lasts: what happens meanwhile is for the ledger to say, so there is nothing to wait for.
FULL, SILENT, SLOW = 0.3, 0.7, 0.6

Fault = Callable[[], Awaitable[None]]


async def everything(rig: Rig) -> Allowances:
    """Faults at random moments while publishers publish at an even pace; two groups, of which one lags behind."""
    rate = rig.size.messages / rig.size.seconds
    await rig.start_server(fsync="everysec")
    lines = [await rig.line(), await rig.line()]
    await rig.join("quick", 2, retention=6.0, work=0.005, work_every=5)
    await rig.join("quick", 1, retention=6.0, work=0.005, work_every=5, url=lines[0].url, number=2)
    # It rests so much that it falls behind by about a sixth of what is published, or the loss of a tail would stay invisible.
    rest = max(0.0, 200 / rate * 1.2 - 200 * HANDLING)
    await rig.join("slow", 1, retention=6.0, concurrency=1, work=0.0, url=lines[1].url, rest_every=200, rest=rest)
    await rig.publish(2, plan=PLAN, batch=max(20, int(rate / 100)), urls=[lines[0].url])
    faults = _Faults(rig, lines)
    began = time.monotonic()
    for number in range(rig.size.faults):
        at = (number + rig.rng.uniform(0.1, 0.9)) * rig.size.seconds / rig.size.faults
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        await faults.next()
    await faults.heal()
    await rig.published(4 * rig.size.seconds + 60)  # nothing is promised of how long it takes; but it ends
    rig.notes.append(f"published in {time.monotonic() - began:.1f} s")
    took = await rig.drained(4 * rig.size.seconds + 60)
    rig.notes.append(f"drained {took:.1f} s after the last was published")

    return Allowances(repeats=rig.size.messages // 20, acks_forgotten=True, repeats_each=5)


class _Faults:
    """Which there are, how often each comes, and what is still under way."""

    def __init__(self, rig: Rig, lines: list[FaultProxy]) -> None:
        self._rig = rig
        self._lines = lines
        self._aside: set[asyncio.Task[None]] = set()
        self._leaving: set[Worker] = set()
        self._kinds: list[tuple[int, Fault]] = [
            (3, self.kill_publisher),
            (6, self.kill_consumer),
            (2, self.stop_consumer),
            (2, self.end_consumer),
            (1, self.kill_server),
            (1, self.cut_tail),
            (1, self.stop_server),
            (1, self.fill_memory),
            (1, self.kill_clients),
            (1, self.flush_scripts),
            (3, self.reset_lines),
            (4, self.lose_replies),
            (1, self.go_silent),
            (1, self.slow_down),
        ]

    async def next(self) -> None:
        [fault] = self._rig.rng.choices([kind for _, kind in self._kinds], [weight for weight, _ in self._kinds])
        await fault()

    async def heal(self) -> None:
        if self._aside:
            await asyncio.wait(self._aside)
        for line in self._lines:
            line.heal()

    async def kill_publisher(self) -> None:
        alive = [member for member in self._rig.publishers() if not member.finished.is_set()]
        if alive:
            await self._rig.kill(self._rig.rng.choice(alive))

    async def kill_consumer(self) -> None:
        await self._rig.kill(self._any_consumer())

    async def stop_consumer(self) -> None:
        await self._beside(self._rig.freeze(self._any_consumer(), 1.5 * LEASE))

    async def end_consumer(self) -> None:
        self._rig.note_fault("SIGTERM")
        member = self._any_consumer()
        while (worker := await member.running()) in self._leaving:  # a second signal would end it at once
            await worker.ended.wait()
            await asyncio.sleep(0)
        self._leaving.add(worker)
        await self._rig.until(lambda: worker.handles(signal.SIGTERM), "the consumer has a handler for SIGTERM")
        worker.terminate()

    async def kill_server(self) -> None:
        await self._rig.restart_server()
        await self._rig.server.compact()

    async def cut_tail(self) -> None:
        await self._rig.cut_tail()
        await self._rig.server.compact()

    async def stop_server(self) -> None:
        await self._rig.freeze_server(LEASE)

    async def fill_memory(self) -> None:
        self._rig.note_fault("memory full")
        await self._rig.client.config_set("maxmemory", 1)
        await asyncio.sleep(FULL)
        await self._rig.client.config_set("maxmemory", 0)

    async def kill_clients(self) -> None:
        self._rig.note_fault("CLIENT KILL of everybody")
        await self._rig.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def flush_scripts(self) -> None:
        self._rig.note_fault("scripts flushed")
        await self._rig.client.script_flush()

    async def reset_lines(self) -> None:
        self._rig.note_fault("lines reset")
        for line in self._lines:
            line.reset()

    async def lose_replies(self) -> None:
        self._rig.note_fault("replies lost")
        for command in ("publish", "xreadgroup", "ack"):
            self._rig.rng.choice(self._lines).cut(command, after=True)

    async def go_silent(self) -> None:
        self._rig.note_fault("line silent")
        line = self._rig.rng.choice(self._lines)
        line.stall()

        async def resume() -> None:
            await asyncio.sleep(SILENT)
            line.resume()
            line.reset()

        await self._beside(resume())

    async def slow_down(self) -> None:
        self._rig.note_fault("line slow")
        line = self._rig.rng.choice(self._lines)
        line.delay = 0.03

        async def resume() -> None:
            await asyncio.sleep(SLOW)
            line.delay = 0.0

        await self._beside(resume())

    def _any_consumer(self) -> Member:
        return self._rig.rng.choice(self._rig.consumers())

    async def _beside(self, work: Awaitable[object]) -> None:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
