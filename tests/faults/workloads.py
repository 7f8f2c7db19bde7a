"""The workloads: each is one kind of trouble, and what must hold in it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from tests.faults.checker import Account, Allowances, check
from tests.faults.cycle import every_cut
from tests.faults.messages import STREAM, Plan, mark_of
from tests.faults.publisher import PublisherJob
from tests.faults.rig import LEASE, SWEEP, Member, Rig, Size

Run = Callable[[Rig], Awaitable[Allowances | Account]]

PLAN: Plan = (("again", 200, 7), ("reject", 1000, 11), ("fail", 1000, 13))


class Workload(msgspec.Struct, frozen=True):
    name: str
    run: Run
    full: Size
    short: Size

    @property
    def shows(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]


WORKLOADS: dict[str, Workload] = {}

SUSPECT = 0.05
"""Seconds that one takes, at the most, with its 10 ms of work, its counted start and its ack, on a machine that does other things too."""
# Seconds of a failure that are left out of the rate of its commands, and those that are counted: a rate has no event to wait for.
ONSET, COUNTED_FOR = 0.5, 1.5


def workload(*, full: Size, short: Size) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        name = run.__name__.replace("_", "-")  # type: ignore[attr-defined]
        WORKLOADS[name] = Workload(name, run, full, short)

        return run

    return register


async def carry_out(rig: Rig, chosen: Workload) -> Account:
    """Run a workload and check what came of it. The violations are in the rig."""
    try:
        outcome = await chosen.run(rig)
    except TimeoutError as exc:
        rig.violate("stuck", str(exc) or "a wait of the workload took too long")
        outcome = Allowances(repeats=10**9, repeats_each=255, reburied=True)
        if rig.client is None:
            return Account()

    return outcome if isinstance(outcome, Account) else await check(rig, outcome)


# ----------------------------------------------------------------------------------------------------- processes that die


@workload(full=Size(100_000, 200, seconds=60), short=Size(8_000, 16, seconds=5))
async def kills(rig: Rig) -> Allowances:
    """SIGKILLs of consumers in 4 processes: 0 lost; all settled within lease and sweep of the last kill."""
    await rig.start_server()
    # A janitor in a hurry: entries go as soon as they are settled, and consumers before their lease has run out.
    members = await rig.join("g", 4, retention=1.0, tidy=0.3, dead_after=0.5, work=0.01)
    await rig.publish(2, plan=PLAN)
    pid = 0
    async for number in _moments(rig):
        victim = rig.rng.choice(members)
        pid = (await victim.running()).pid
        if number == rig.size.faults - 1:
            await _busy(rig, victim)
            pid = (await victim.running()).pid
        await rig.kill(victim)
    left = await _held_by(rig, "g", pid)
    taken = await rig.until(lambda: _is_gone(rig, "g", pid), "what the last one held is taken over")
    took = taken + await rig.until(lambda: _settled(rig, "g", left), "what the last one held is settled")
    await rig.published()
    await rig.drained()
    rig.notes.append(
        f"the {len(left)} entries that the last one held were taken over within {taken:.2f} s, settled within {took:.2f} s"
    )
    rig.require(taken < LEASE + SWEEP + 1.0, "late", f"what a killed process held was taken over only after {taken:.2f} s")
    # One consumer may have them all to handle, and suspects run one after another.
    at_most = LEASE + SWEEP + 1.0 + len(left) * SUSPECT
    rig.require(took < at_most, "late", f"what a killed process held was settled after {took:.2f} s, not {at_most:.2f}")

    return Allowances(repeats=rig.size.faults * 30, repeats_each=2)


@workload(full=Size(10_000, 1, seconds=5), short=Size(2_000, 1, seconds=1))
async def poison(rig: Rig) -> Allowances:
    """1 message that kills its process: buried after `max_crashes`, every other message handled."""
    await rig.start_server()
    members = await rig.join("g", 2, may_die=True, lease=0.5)
    await rig.publish(1, plan=(("exit", 10**9, rig.size.messages // 2), *PLAN))
    await rig.published()
    await rig.drained(20)
    deaths = sum(status == -signal.SIGKILL for member in members for status in member.statuses)
    loops = [one for one in await rig.transport.dead_letters(STREAM, "g", limit=10**6) if one.reason == "crash loop"]
    killer = [one for one in loops if b'"act":"exit"' in one.fields[b"payload"]]
    rig.require(len(killer) == 1, "not buried", f"the message that kills is a dead letter {len(killer)} times")
    rig.notes.append(f"{deaths} processes died of it")
    rig.faults["process died of a message"] = deaths
    rig.require(deaths in (3, 4), "crashes", f"{deaths} processes died of one message with max_crashes=3")

    return Allowances(repeats=200)


@workload(full=Size(50_000, 50, seconds=40), short=Size(4_000, 8, seconds=3))
async def drains(rig: Rig) -> Allowances:
    """SIGTERM during load: exit 0 within `grace`, nothing pending of the leaver, no attempt counted for what never started."""
    await rig.start_server()
    members = await rig.join("g", 3, work=0.01, concurrency=4)  # slower than the publishers: something waits for its turn
    await rig.publish(2, plan=PLAN[:1])
    longest = 0.0
    async for _ in _moments(rig):
        member = rig.rng.choice(members)
        worker = await member.running()
        await rig.until(lambda pid=worker.pid: _is_at_work(rig, "g", pid), "the consumer is at work")
        rig.note_fault("SIGTERM")
        since = time.monotonic()
        worker.terminate()
        await asyncio.wait_for(worker.ended.wait(), 10)
        longest = max(longest, time.monotonic() - since)
        rig.require(worker.status == 0, "exit", f"{member.job.name} ended with {worker.status} on SIGTERM")
        left = await _held_by(rig, "g", worker.pid)
        rig.require(not left, "not released", f"{len(left)} entries are pending of a process that has drained")
    await rig.published()
    await rig.drained()
    rig.notes.append(f"the slowest drain took {longest:.2f} s")
    rig.require(longest < 5.0, "late", f"a drain took {longest:.2f} s with grace=5")
    suspects = rig.ledger.group("g").suspects
    rig.require(suspects == 0, "attempts", f"{suspects} deliveries were treated as if a process had died with them")

    return Allowances()


# ------------------------------------------------------------------------------------------------------ servers that die


@workload(full=Size(40_000, 20, seconds=40), short=Size(4_000, 4, seconds=5))
async def restarts(rig: Rig) -> Allowances:
    """Server killed -9 and restarted, `appendfsync always`: 0 acknowledged lost, nothing twice, subscribers resume within 5 s."""
    await rig.start_server(fsync="always")
    await rig.join("g", 3)
    await rig.join("one", 1, concurrency=1, work=0.0)
    await rig.publish(2, plan=PLAN)
    slowest = 0.0
    async for _ in _moments(rig):
        ready = await rig.restart_server()
        slowest = max(slowest, await rig.resumed("g", ready), await rig.resumed("one", ready))
    await rig.published()
    await rig.drained()
    rig.notes.append(f"the slowest resumed after {slowest:.2f} s")
    rig.require(slowest < 5.0, "late", f"a subscriber resumed {slowest:.2f} s after the server was back")

    return Allowances(repeats=rig.size.faults * 100, repeats_each=3)


@workload(full=Size(40_000, 20, seconds=50), short=Size(4_000, 3, seconds=6))
async def tails(rig: Rig) -> Allowances:
    """The same with `everysec` and the file's last half second cut off: only what was published last is forgotten, and it is reported."""
    await rig.start_server()
    await rig.join("g", 3)
    await rig.join("slow", 1, concurrency=1, work=0.0, rest_every=100, rest=0.2)
    await rig.publish(2, plan=PLAN)
    slowest = 0.0
    async for _ in _moments(rig):
        ready = await rig.cut_tail()
        slowest = max(slowest, await rig.resumed("g", ready))
    await rig.published()
    await rig.drained()
    rig.notes.append(f"the slowest resumed after {slowest:.2f} s")
    rig.require(slowest < 5.0, "late", f"a subscriber resumed {slowest:.2f} s after the server was back")
    reports = rig.said("the server has forgotten what was published last")
    rig.notes.append(f"the publishers reported it {reports} times")
    rig.require(reports >= rig.size.faults, "not reported", f"{reports} reports of {rig.size.faults} tails that were cut off")

    return Allowances(repeats=rig.size.messages, repeats_each=rig.size.faults)


@workload(full=Size(1_200, 2, seconds=6), short=Size(800, 2, seconds=4))
async def clocks(rig: Rig) -> Allowances:
    """Server clock +60 s, and -1 h: recovery goes on; no more than one repeat per entry."""
    await rig.start_server(clock=True)
    members = await rig.join("g", 3, work=0.1)
    await rig.publish(2, plan=(("again", 20, 7),))
    jumps = ((60.0, "clock +60 s"), (-3600.0, "clock -1 h"))
    async for number in _moments(rig):
        offset, name = jumps[number]
        rig.note_fault(name)
        rig.server.set_clock(offset)
        await rig.resumed("g", time.monotonic())
        victim = members[number]
        await _busy(rig, victim)
        held = await _held_by(rig, "g", (await victim.running()).pid)
        await rig.kill(victim)
        took = await rig.until(lambda held=held: _settled(rig, "g", held), f"what a killed process held is settled, {name}")
        rig.notes.append(f"{name}: what a killed process held was settled after {took:.2f} s")
    await rig.published()
    await rig.drained(10)

    return Allowances(repeats=rig.size.messages, repeats_each=1)


# -------------------------------------------------------------------------------------------------- what stops for a while


@workload(full=Size(32, 20), short=Size(16, 2))
async def freezes(rig: Rig) -> Allowances:
    """SIGSTOP of a consumer and of the server for 3 leases: no outcome counted twice; late verdicts change nothing."""
    lease = 0.6
    rig.ledger.patience = 2 * lease
    await rig.start_server()
    members = await rig.join("g", 2, lease=lease, work=0.3, concurrency=rig.size.messages // 2)
    # Number 2 is slow and comes early, so that the other consumer begins it while its owner is still stopped: suspects run one after another.
    plan: Plan = (("again", 4, 0), ("reject", 4, 1), ("slow 3", 8, 2))
    for number in range(rig.size.faults // 2):
        [publisher] = await rig.publish(1, first=2 * number, seconds=0.1, plan=plan, messages=rig.size.messages)
        await publisher.finished.wait()
        await rig.until(lambda: _is_at_work_all(rig, members), "both hold some of them")
        await rig.freeze(await _at_work_on(rig, members, mark_of(2 * number, 2)), 3 * lease)
        await rig.drained(15)
        [publisher] = await rig.publish(1, first=2 * number + 1, seconds=0.1, messages=rig.size.messages)
        await publisher.finished.wait()
        await rig.until(lambda: _is_at_work_all(rig, members), "both hold some of them")
        thawed = await rig.freeze_server(3 * lease)
        rig.notes.append(f"resumed {await rig.resumed('g', thawed):.2f} s after the server went on")
        await rig.drained(15)
    await rig.look()
    again = [
        f"p{publisher}-{number}" for publisher, number, count in rig.ledger.group("g").handled if number % 4 == 0 and count > 1
    ]
    rig.require(not again, "late verdict", f"tried again twice: {', '.join(again[:5])}")

    return Allowances(repeats=rig.size.messages // 2 * (rig.size.faults // 2))


@workload(full=Size(4_000, 20), short=Size(600, 3))
async def pauses(rig: Rig) -> Allowances:
    """SIGSTOP of a consumer until others are at what it held, or have settled it: they handle what waits in its buffer, it does not."""
    lease, each = 0.6, rig.size.messages // rig.size.faults
    slow = each // 2
    await rig.start_server()
    line = await rig.line()
    line.delay = 0.01  # or what is asked first is answered before anything else has begun
    members = await rig.join("g", 2, url=line.url, lease=lease, work=0.0, concurrency=1)
    waited = 0
    for number in range(rig.size.faults):
        await rig.publish(1, first=number, seconds=0.1, plan=(("doze 0.5", each, slow),), messages=each)
        mark = mark_of(number, slow)
        victim = await _at_work_on(rig, members, mark)
        pid = (await victim.running()).pid
        await rig.until(lambda pid=pid, mark=mark: _holds_first(rig, pid, mark), "what came before is settled")
        async with rig.frozen(victim) as worker:
            waited += len(await _held_by(rig, "g", worker.pid)) - 1
            if number % 2:
                await rig.until(lambda mark=mark: _is_begun_again(rig, mark), "another is at what it was at", 30)
            else:
                await rig.drained(30)  # others have settled it
        await rig.drained(30)
    rig.notes.append(f"{waited} entries waited in the buffers of stopped consumers")
    rig.require(waited >= rig.size.faults, "unexpected", f"only {waited} entries waited: nothing is shown")

    return Allowances(repeats=rig.size.faults)


@workload(full=Size(1_000, 0), short=Size(1_000, 0))
async def patience(rig: Rig) -> Allowances:
    """Handlers of 5 leases' length, and what waits in the buffer behind one: handled once each."""
    await rig.start_server()
    plan: Plan = (("slow 2.5", 1000, 300),)
    await rig.join("many", 4, lease=0.5)
    await rig.join("one", 1, lease=0.5, concurrency=1, work=0.0)
    await rig.publish(1, seconds=0.4, plan=plan)
    await rig.published()
    await rig.drained()
    for name, group in rig.ledger.groups.items():
        rig.require(group.suspects == 0, "repeated", f"{name}: {group.suspects} deliveries were taken over from a living process")

    return Allowances()


# ------------------------------------------------------------------------------------------------- what is lost on the way


@workload(full=Size(6, 0), short=Size(6, 0))
async def cuts(rig: Rig) -> Account:
    """Every command of a publish-consume-retry-bury cycle cut before and after its reply: 0 lost, 0 published twice."""
    await rig.start_server()

    return await every_cut(rig)


@workload(full=Size(40_000, 60, seconds=40), short=Size(4_000, 12, seconds=5))
async def storms(rig: Rig) -> Allowances:
    """CLIENT KILL storms, XGROUP DESTROY, a role change, DEL, FLUSHALL: subscribers resume, losses are reported, few commands meanwhile."""
    await rig.start_server()
    line = await rig.line()
    await rig.join("g", 2, work=0.01, concurrency=4)
    [watched] = await rig.join("seen", 1, url=line.url, lease=6.0, tidy=60.0)
    await rig.publish(2, plan=PLAN)
    async for _ in _moments(rig, rig.size.faults - 4, share=0.3):
        rig.note_fault("CLIENT KILL of everybody")
        await rig.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await _resumed(rig)

    rig.note_fault("XGROUP DESTROY")
    for group in ("g", "seen"):
        await rig.client.xgroup_destroy(STREAM, group)
    await _resumed(rig)

    rig.note_fault("role change")
    await rig.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    await asyncio.sleep(ONSET)
    commands, since = line.commands.total() + line.connections, time.monotonic()
    await asyncio.sleep(COUNTED_FOR)
    rate = (line.commands.total() + line.connections - commands) / (time.monotonic() - since)
    await rig.client.execute_command("REPLICAOF", "NO", "ONE")
    await _resumed(rig)
    rig.notes.append(f"{rate:.1f} commands a second of a consumer while the server was a replica")
    rig.require(rate < 20, "loud", f"{rate:.1f} commands a second while failing")
    await rig.published()
    await rig.drained()
    await rig.look()
    await check_so_far(rig)

    for number, kind in enumerate(("DEL of the stream", "FLUSHALL")):
        # From here on something is lost with the data: what is in the stream, and not handled yet.
        messages = rig.size.messages // 10
        await rig.publish(1, first=2 + number, messages=messages, seconds=0.5)
        await rig.until(lambda number=2 + number, half=messages // 2: _is_in_the_stream(rig, number, half), "half of it is there")
        before = rig.said("the group was gone from", watched)
        await rig.look()
        rig.note_fault(kind)
        if kind == "FLUSHALL":
            await rig.client.flushall()
        else:
            await rig.client.delete(STREAM)
        rig.wiped_at = time.monotonic()
        rig.witness.begin_anew()
        await _resumed(rig)
        await rig.published()
        await rig.drained()
        reports = rig.said("the group was gone from", watched) - before
        rig.require(reports > 0, "not reported", f"{kind}: the consumer said nothing of what was lost")

    return Allowances(repeats=rig.size.messages * 2, repeats_each=rig.size.faults, reburied=True, reordered=True)


async def _is_in_the_stream(rig: Rig, publisher: int, number: int) -> bool:
    await rig.look()

    return rig.witness.seen(publisher, number) > 0


async def check_so_far(rig: Rig) -> None:
    """Nothing was lost before the data was."""
    await check(rig, Allowances(repeats=rig.size.messages * 2, repeats_each=rig.size.faults, reburied=True))


@workload(full=Size(10_000, 1, seconds=4), short=Size(2_000, 1, seconds=1.5))
async def full_memory(rig: Rig) -> Allowances:
    """maxmemory reached: publishers get a typed error, consumers drain, burying waits and nothing is dropped."""
    await rig.start_server()
    await rig.join("g", 2, work=0.01, concurrency=4)  # slower than the publishers: something is left to be drained
    plan: Plan = (("reject", 50, 11), ("fail", 100, 13), ("again", 50, 7))
    await rig.publish(2, plan=plan)
    await rig.until(lambda: len(rig.ledger.acknowledged.tally) > rig.size.messages // 4, "a part is published")
    rig.note_fault("memory full")
    await rig.client.config_set("maxmemory", 1)
    buried = await rig.client.xlen("{steps}:dead:g")
    await rig.until(lambda: sum(rig.ledger.refusals.values()) > 4, "the publishers are refused")
    await rig.until(lambda: _only_verdicts_wait(rig), "what can be handled without memory is")
    rig.require(set(rig.ledger.refusals) == {"Full, not-sent"}, "errors", f"publishers were told {dict(rig.ledger.refusals)}")
    waiting = (await rig.backlog("g")).pending
    rig.notes.append(f"{sum(rig.ledger.refusals.values())} refusals; {waiting} verdicts waited for memory")
    rig.require(buried == await rig.client.xlen("{steps}:dead:g"), "errors", "something was buried without memory")
    await rig.client.config_set("maxmemory", 0)
    await rig.published()
    await rig.drained()

    return Allowances(repeats=50)


@workload(full=Size(20_000, 20_000, seconds=10), short=Size(1_500, 1_500, seconds=1.5))
async def garbage(rig: Rig) -> Allowances:
    """Random entries between good ones: all good ones handled, every bad one buried with its raw bytes, memory flat."""
    await rig.start_server()
    [member] = await rig.join("g", 1)
    await rig.publish(2, plan=PLAN)
    worker = await member.running()
    bad: dict[str, dict[bytes, bytes]] = {}
    small = 0
    for number in range(0, rig.size.faults, 100):
        entries = [_garbage(rig) for _ in range(min(100, rig.size.faults - number))]
        async with rig.client.pipeline(transaction=False) as pipe:
            for fields in entries:
                pipe.xadd(STREAM, fields)
            pipe.incrby(
                f"{{{STREAM}}}:added", len(entries)
            )  # as Redis 6.2 has it done by who publishes; the others count themselves
            *ids, _ = await pipe.execute()
        bad |= {id.decode(): fields for id, fields in zip(ids, entries, strict=True)}
        if number == rig.size.faults // 5 // 100 * 100:
            small = _resident(worker.pid)
    rig.faults["entry of garbage"] = len(bad)
    await rig.published()
    await rig.drained()
    grown = _resident(worker.pid) - small
    rig.notes.append(f"the consumer's memory grew by {grown / 1024:.1f} MiB after the first fifth")
    rig.require(grown < 32 * 1024, "memory", f"the consumer grew by {grown / 1024:.1f} MiB")
    letters = await rig.transport.dead_letters(STREAM, "g", limit=10**6)
    buried = {letter.entry_id: letter.fields for letter in letters if letter.entry_id in bad}
    rig.require(len(buried) == len(bad), "lost", f"{len(bad) - len(buried)} entries of garbage are not buried")
    changed = [id for id, fields in buried.items() if bad[id] != fields]
    rig.require(not changed, "bytes", f"{len(changed)} dead letters have other bytes than their entries: {changed[:3]}")

    return Allowances()


# --------------------------------------------------------------------------------------------------------- all at once


@workload(full=Size(200_000, 75, seconds=40), short=Size(200_000, 75, seconds=40))
async def mix(rig: Rig) -> Allowances:
    """All at once, publishers paced over the fault window and one group slow."""
    from tests.faults.mix import everything

    return await everything(rig)


# ---------------------------------------------------------------------------------------------------------------- helpers


async def _moments(rig: Rig, faults: int | None = None, *, share: float = 0.85) -> AsyncIterator[int]:
    """The moments of the faults: spread over that share of the time in which the publishers publish, each a little off its place."""
    job = rig.publishers()[0].job
    assert isinstance(job, PublisherJob)
    faults = rig.size.faults if faults is None else faults
    for number in range(faults):
        at = job.since + (number + rig.rng.uniform(0.3, 0.7)) * rig.size.seconds * share / faults
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        yield number


async def _resumed(rig: Rig) -> None:
    """Both groups handle something again, or have nothing left to handle."""
    since = time.monotonic()
    await rig.until(lambda: _goes_on(rig, since), "both groups go on", 5)


async def _goes_on(rig: Rig, since: float) -> bool:
    return all([
        rig.ledger.group(group).last_handled > since or not await rig.backlog(group) for group in ("g", "seen")
    ])  # fmt: skip


async def _consumers_of(rig: Rig, group: str, pid: int) -> list[bytes]:
    rows = await rig.client.xinfo_consumers(STREAM, group)

    return [row["name"] for row in rows if f"-{pid}-".encode() in row["name"]]


async def _held_by(rig: Rig, group: str, pid: int) -> set[bytes]:
    """The entries that are pending for a process."""
    held: set[bytes] = set()
    for name in await _consumers_of(rig, group, pid):
        held |= {row["message_id"] for row in await rig.client.xpending_range(STREAM, group, "-", "+", 5000, consumername=name)}

    return held


async def _is_at_work(rig: Rig, group: str, pid: int) -> bool:
    return bool(await _held_by(rig, group, pid))


async def _holds_first(rig: Rig, pid: int, mark: str) -> bool:
    """Whether this is the first of what is pending for a process in the group ``g``."""
    first = min(await _held_by(rig, "g", pid), key=_place)
    [(_, fields)] = await rig.client.xrange(STREAM, first, first)

    return f'"{mark}"'.encode() in fields[b"payload"]


async def _is_gone(rig: Rig, group: str, pid: int) -> bool:
    return not await _is_at_work(rig, group, pid)


async def _busy(rig: Rig, member: Member, messages: int = 200) -> None:
    """Wait until a consumer of the group ``g`` holds some; so many more are published for it, since the others may be at their end."""
    await rig.publish(1, first=len(rig.publishers()), messages=messages, seconds=0.1)
    pid = (await member.running()).pid
    await rig.until(lambda: _is_at_work(rig, "g", pid), "the consumer is at work")


async def _is_at_work_all(rig: Rig, members: list[Member]) -> bool:
    return all([await _is_at_work(rig, "g", (await member.running()).pid) for member in members])


async def _at_work_on(rig: Rig, members: list[Member], mark: str) -> Member:
    """Whose handler of the group ``g`` has begun with it."""
    pids = [(await member.running()).pid for member in members]
    under_way = rig.ledger.group("g").under_way

    def has_begun() -> bool:
        rig.ledger.read()
        return (mark, "1") in under_way

    await rig.until(has_begun, f"a handler has begun with {mark}")

    return members[pids.index(under_way[mark, "1"][0].pid)]


async def _is_begun_again(rig: Rig, mark: str) -> bool:
    """Whether a second process has begun what another of the group ``g`` is still at."""
    rig.ledger.read()

    return len(rig.ledger.group("g").under_way.get((mark, "1"), [])) > 1


async def _settled(rig: Rig, group: str, ids: set[bytes]) -> bool:
    if not ids:
        return True
    low, high = min(ids, key=_place), max(ids, key=_place)
    rows = await rig.client.xpending_range(STREAM, group, low, high, 100_000)

    return not ids & {row["message_id"] for row in rows}


async def _only_verdicts_wait(rig: Rig) -> bool:
    """Nothing is unread, and what is pending has been begun and waits for its settlement."""
    backlog = await rig.backlog("g")
    group = rig.ledger.group("g")

    return backlog.unread == 0 and not group.under_way and backlog.pending < group.failed + 1 and backlog.pending > 0


def _place(id: bytes) -> tuple[int, int]:
    ms, _, sequence = id.partition(b"-")

    return int(ms), int(sequence)


def _resident(pid: int) -> int:
    """Kilobytes of memory that a process uses."""
    text = Path(f"/proc/{pid}/status").read_text() if os.path.exists(f"/proc/{pid}/status") else "VmRSS: 0 kB"

    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def _garbage(rig: Rig) -> dict[bytes, bytes]:
    """An entry that is no message, though some look much like one."""
    rng = rig.rng
    noise = rng.randbytes(rng.randint(0, 200))
    head: dict[bytes, bytes] = {b"id": b"0190-" + noise[:8], b"created_at": b"2026-01-31T12:00:00.000000Z"}
    kinds: list[dict[bytes, bytes]] = [
        {b"d": noise},
        {rng.randbytes(4): noise for _ in range(rng.randint(1, 20))},
        {**head, b"type": b"step_v1", b"payload": noise},
        {**head, b"type": b"step_v1", b"payload": b'{"mark":' + b"[" * rng.randint(1, 5000)},
        {**head, b"type": b"step_v1", b"payload": b'{"mark":7}'},
        {**head, b"type": b"step_v2", b"payload": b'{"mark":"x"}'},
        {**head, b"type": b"step_v1", b"payload": b'{"mark":"\xff\xfe"}'},
        {b"type": b"step_v1", b"payload": b'{"mark":"x"}'},
        {b"id": b"1", b"created_at": b"never", b"type": b"step_v1"},
    ]

    return rng.choice(kinds)
