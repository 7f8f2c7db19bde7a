"""What a workload works with: a server, publishers and consumers in processes, lines that can be cut, and the checker at the end."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import redis.exceptions

from eventbus.errors import TransportError
from eventbus.redis import RedisTransport
from eventbus.redis.keys import Keys
from eventbus.testing.faults import FaultProxy
from eventbus.testing.state import describe
from eventbus.transport import Backlog
from tests.faults.consumer import ConsumerJob
from tests.faults.crew import Crew, Worker
from tests.faults.ledger import Ledger
from tests.faults.messages import STREAM, Plan
from tests.faults.publisher import PublisherJob
from tests.faults.server import Server
from tests.faults.witness import Witness

LEASE = 1.0
SWEEP = LEASE / 2 * 1.2
"""Seconds between two sweeps, at the most, with this lease."""
LOOK_EVERY = 0.1
SAY_EVERY = 2.0


@dataclass(frozen=True)
class Size:
    """How much of a workload is run."""

    messages: int
    faults: int
    seconds: float = 0.0
    """How long the publishers take, if the workload says nothing else."""


@dataclass(frozen=True)
class Violation:
    """Something that must not happen."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


@dataclass(eq=False)
class Member:
    """A process that is started again when it is killed."""

    job: ConsumerJob | PublisherJob
    worker: Worker | None = None
    lives: int = 0
    wanted: bool = True
    """Whether it is to be started again."""
    may_die: bool = False
    """Whether it may end in another way than by our hands."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    statuses: list[int] = field(default_factory=list[int])

    async def running(self) -> Worker:
        """The process, once it runs."""
        await self.started.wait()
        assert self.worker is not None

        return self.worker


class Rig:
    """Made by `assembled`."""

    def __init__(self, name: str, size: Size, seed: int, directory: Path, *, broken: str, executable: Path | None) -> None:
        self.name = name
        self.size = size
        self.seed = seed
        self.directory = directory
        self.rng = random.Random(f"{name} {seed}")
        self.ledger = Ledger(directory)
        self.witness = Witness()
        self.faults: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.notes: list[str] = []
        """Figures that the workload measured."""
        self.plan: Plan = ()
        self.forgetful: list[tuple[float, float]] = []
        """From when to when the server took what it may not remember."""
        self.acks_forgotten: Counter[str] = Counter()
        """By group: what it had settled before the server was killed, and had not when the server was back."""
        self.wiped_at: float | None = None
        """When the data was deleted: what was acknowledged before may be lost."""
        self.began = time.monotonic()
        self._ready_since = self.began
        self.members: list[Member] = []
        self._over = asyncio.Event()
        self._broken = broken
        self._executable = executable
        self._stack: AsyncExitStack
        self._tasks: asyncio.TaskGroup
        self.crew: Crew
        self.server: Server
        self.transport: RedisTransport
        self.client: Any = None

    @classmethod
    @asynccontextmanager
    async def assembled(
        cls, name: str, size: Size, seed: int, *, broken: str = "", executable: Path | None = None, keep: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Rig]:  # fmt: skip
        directory = Path(tempfile.mkdtemp(prefix="eventbus-faults-", dir="/tmp"))
        rig = cls(name, size, seed, directory, broken=broken, executable=executable)
        try:
            async with AsyncExitStack() as rig._stack:
                rig.crew = await rig._stack.enter_async_context(Crew.assembled())
                try:
                    async with asyncio.TaskGroup() as rig._tasks:
                        rig._tasks.create_task(rig._look(say))
                        yield rig
                        for member in rig.members:
                            member.wanted = False
                            (await member.running()).kill()
                        rig._over.set()
                except BaseExceptionGroup as group:
                    raise group.exceptions[0] from None
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------------- the parts

    async def start_server(self, *, fsync: str = "everysec", clock: bool = False, options: Sequence[str] = ()) -> None:
        self.server = Server(self.directory, executable=self._executable, fsync=fsync, clock=clock, options=options)
        await self.server.start()
        self._stack.push_async_callback(self.server.stop)
        self.transport = await self._stack.enter_async_context(RedisTransport(self.server.url, stream=STREAM))
        client = self.server.client()
        self._stack.push_async_callback(client.aclose)
        self.client = client

    async def line(self) -> FaultProxy:
        """A line to the server that can be cut."""
        return await self._stack.enter_async_context(FaultProxy(self.server.url))

    async def join(
        self, group: str, count: int = 1, *, url: str | None = None, may_die: bool = False, number: int = 0, **settings: Any
    ) -> list[Member]:
        """Consumers of a group; returns when the group exists."""
        members = [
            self._enlist(
                ConsumerJob(
                    name=f"{group}{number}", url=url or self.server.url, directory=str(self.directory), group=group,
                    broken=self._broken, **{"lease": LEASE, **settings},
                ),
                may_die,
            )
            for number in range(number, number + count)
        ]  # fmt: skip
        await self.until(lambda: self._has_group(group), f"the group {group} exists", 20)

        return members

    async def publish(
        self, count: int = 2, *, messages: int | None = None, seconds: float | None = None, urls: Sequence[str] = (), first: int = 0,
        plan: Plan | None = None, **settings: Any,
    ) -> list[Member]:  # fmt: skip
        """Publishers that share the messages, and take so many seconds for it."""
        if plan is not None:
            self.plan = plan
        each = -(-(self.size.messages if messages is None else messages) // count)
        rate = each / max(0.1, self.size.seconds if seconds is None else seconds)

        return [
            self._enlist(
                PublisherJob(
                    name=f"p{number}", url=(urls[number] if number < len(urls) else self.server.url), directory=str(self.directory),
                    publisher=number, messages=each, rate=rate, since=time.monotonic(), broken=self._broken, plan=self.plan, **settings,
                )
            )
            for number in range(first, first + count)
        ]  # fmt: skip

    def _enlist(self, job: ConsumerJob | PublisherJob, may_die: bool = False) -> Member:
        member = Member(job, may_die=may_die)
        self.members.append(member)
        self._tasks.create_task(self._keep(member))

        return member

    async def _keep(self, member: Member) -> None:
        while member.wanted:
            worker = member.worker = await self.crew.start(member.job)
            member.lives += 1
            member.started.set()
            await worker.ended.wait()
            assert worker.status is not None
            member.statuses.append(worker.status)
            if isinstance(member.job, PublisherJob) and worker.status == 0:
                break
            if worker.status not in (0, -9) and not member.may_die:
                self.violate("exit", f"{member.job.name} (process {worker.pid}) ended with {worker.status}: {self._log(member)}")
            member.started.clear()
        member.started.set()
        member.finished.set()

    def _log(self, member: Member) -> str:
        assert member.worker is not None
        path = self.directory / f"{member.job.name}.{member.worker.pid}.log"

        return " / ".join(path.read_text(errors="replace").splitlines()[-3:]) if path.exists() else "no log"

    def consumers(self, group: str | None = None) -> list[Member]:
        return [member for member in self.members if isinstance(member.job, ConsumerJob) and group in (None, member.job.group)]

    def publishers(self) -> list[Member]:
        return [member for member in self.members if isinstance(member.job, PublisherJob)]

    # ------------------------------------------------------------------------------------------------------------- faults

    def note_fault(self, kind: str) -> None:
        """Count it, and write down when it was, on the monotonic clock and in the milliseconds of entry ids."""
        self.faults[kind] += 1
        with (self.directory / "faults.txt").open("a") as file:
            file.write(f"{time.monotonic():.3f} {time.time() * 1000:.0f} {kind}\n")

    async def restart_server(self) -> float:
        """kill -9 and start again; when it was ready."""
        self.note_fault("server killed")

        return await self._kill_and_start(0.0)

    async def cut_tail(self, seconds: float = 0.5) -> float:
        """The same, and the last half second of its file is gone."""
        self.note_fault("server killed, tail cut off")

        return await self._kill_and_start(seconds)

    async def _kill_and_start(self, cut: float) -> float:
        before, settled = self.server.files(), {}
        taken = time.monotonic()
        if cut:
            await asyncio.sleep(cut)
            settled = await self._settled()
        await self.server.kill()
        if cut:
            self.server.cut_to(before)
        killed = time.monotonic()
        await self.server.start()
        ready = time.monotonic()
        with (self.directory / "faults.txt").open("a") as file:
            file.write(f"{ready:.3f} cut off what it wrote in {killed - taken:.3f} s, away for {ready - killed:.3f} s\n")
        for group, count in (await self._settled() if cut else {}).items():
            self.acks_forgotten[group] += max(0, settled.get(group, count) - count)
        if self.server.fsync == "everysec":  # then it does not write while the disk is busy, for up to two seconds
            self.forgetful.append((max(self._ready_since, killed - cut - 2.0), killed))
            kept = min((member.job.retention for member in self.members if isinstance(member.job, ConsumerJob)), default=math.inf)
            await self.witness.look_again(self.client, kept)
        self._ready_since = ready

        return ready

    async def _settled(self) -> dict[str, int]:
        """How many entries of the stream each group has settled, as the server has it; nothing of a server that does not say it."""
        found: dict[str, int] = {}
        for group in self.ledger.groups:
            with suppress(redis.exceptions.RedisError, OSError):
                found[group] = int(await self.client.hget(Keys(STREAM, group).state, "settled") or 0)

        return found

    async def kill(self, member: Member) -> None:
        self.note_fault("consumer killed" if isinstance(member.job, ConsumerJob) else "publisher killed")
        worker = await member.running()
        worker.kill()
        await worker.ended.wait()

    async def freeze(self, member: Member, seconds: float) -> None:
        """SIGSTOP for so long."""
        async with self.frozen(member):
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def frozen(self, member: Member) -> AsyncGenerator[Worker]:
        """SIGSTOP for as long as the block takes."""
        self.note_fault("consumer stopped")
        worker = await member.running()
        worker.freeze()
        since = time.monotonic()
        try:
            yield worker
        finally:
            self.ledger.freeze(worker.pid, since, time.monotonic())
            worker.thaw()

    async def freeze_server(self, seconds: float) -> float:
        """SIGSTOP for so long; when it went on."""
        self.note_fault("server stopped")
        self.server.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.server.thaw()

        return time.monotonic()

    # ------------------------------------------------------------------------------------------------------------ waiting

    async def until(self, predicate: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 10.0) -> float:
        """Wait until it is true, and how long that took. After so many seconds `TimeoutError`."""
        began = time.monotonic()
        while True:
            found = predicate()
            if isinstance(found, bool):
                answer = found
            else:
                answer = False
                with suppress(redis.exceptions.RedisError, TransportError, OSError):
                    answer = await found
            if answer:
                return time.monotonic() - began
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not within {seconds:g} s")
            await asyncio.sleep(0.02)

    async def published(self, seconds: float = 60.0) -> None:
        """Every publisher has done its part."""
        with anyio.fail_after(seconds):
            for member in self.publishers():
                await member.finished.wait()

    async def backlog(self, group: str) -> Backlog:
        return await self.transport.backlog(STREAM, group)

    async def drained(self, seconds: float = 60.0) -> float:
        """Every group has settled everything; how long that took. What is left after so many seconds is a violation."""
        began = time.monotonic()
        groups = {member.job.group for member in self.consumers() if isinstance(member.job, ConsumerJob)}
        for group in sorted(groups):
            rest = max(1.0, began + seconds - time.monotonic())
            try:
                await self.until(lambda group=group: self._is_empty(group), "", rest)
            except TimeoutError:
                self.violate("unaccounted", f"{group} was not done after {seconds:g} s, it has {await self.backlog(group)}")
                self.notes.append(await asyncio.to_thread(describe, self.transport))

        return time.monotonic() - began

    async def resumed(self, group: str, since: float, seconds: float = 10.0) -> float:
        """Seconds after that moment until the group had handled something."""
        await self.until(lambda: self.ledger.group(group).last_handled > since, f"{group} goes on", seconds)

        return self.ledger.group(group).last_handled - since

    async def _is_empty(self, group: str) -> bool:
        """Asked so often that the server is not to count what lies there while there is anything."""
        for row in await self.client.xinfo_groups(STREAM):
            if row["name"] == group.encode():
                unread = await self.client.xrange(STREAM, b"(" + row["last-delivered-id"], count=1)
                if row["pending"] or unread:
                    return False

        return not await self.backlog(group)

    async def _has_group(self, group: str) -> bool:
        return any(row["name"] == group.encode() for row in await self.client.xinfo_groups(STREAM))

    # ---------------------------------------------------------------------------------------------------------- the rest

    def violate(self, check: str, text: str) -> None:
        self.violations.append(Violation(check, text))

    def require(self, true: bool, check: str, text: str) -> None:
        if not true:
            self.violate(check, text)

    def said(self, text: str, member: Member | None = None) -> int:
        """How many lines with this text the logs of the processes have; of one of them, or of all."""
        name = "*" if member is None else member.job.name

        return sum(
            line.count(text)
            for path in self.directory.glob(f"{name}.*.log")
            for line in path.read_text(errors="replace").splitlines()
        )

    async def look(self) -> None:
        """Read the journals, and the stream."""
        self.ledger.read()
        if self.client is not None:
            with suppress(redis.exceptions.RedisError, OSError):
                await self.witness.read(self.client)

    async def _look(self, say: Callable[[str], None] | None) -> None:
        """Until it is over. Not until it is cancelled: that can be lost in a call of redis-py, as seen under Python 3.11.2."""
        said = time.monotonic()
        while not self._over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), LOOK_EVERY)
            await self.look()
            if say is not None and time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                say(self.progress())

    def progress(self) -> str:
        groups = ", ".join(f"{name} {len(group.handled):,}" for name, group in sorted(self.ledger.groups.items()))

        return (
            f"{self.name} {time.monotonic() - self.began:5.1f} s: {len(self.ledger.acknowledged.tally):,} of {self.size.messages:,} "
            f"acknowledged; handled: {groups or 'nothing'}; {self.faults.total():,} faults"
        )


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
