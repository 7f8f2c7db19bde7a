"""A service that publishes at a steady pace, a unit of work for each batch, and asks again until it is told that the batch is in the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from eventbus import UnitOfWork
from eventbus.errors import PublishError
from eventbus.redis import RedisTransport
from tests.faults.ledger import Journal
from tests.faults.messages import STREAM, Step, act_of, mark_of


class PublisherJob(msgspec.Struct, frozen=True, kw_only=True, tag="publisher"):
    """What a publisher is to do."""

    name: str
    url: str
    directory: str
    publisher: int
    messages: int
    rate: float
    """Messages a second …"""
    since: float
    """… since this moment of the monotonic clock: who was held up makes up for it."""
    broken: str = ""
    batch: int = 20
    plan: Sequence[tuple[str, int, int]] = ()
    patience: float = 1.0


async def publish(job: PublisherJob) -> None:
    """Go on behind what an earlier life of this publisher has attempted."""
    directory = Path(job.directory)
    next = _attempted(directory, job.publisher)
    journal = Journal(directory, f"publisher.{job.name}")
    async with RedisTransport(job.url, stream=STREAM, patience=job.patience) as transport:
        while next < job.messages:
            count = min(job.batch, job.messages - next)
            ahead = next / job.rate - (time.monotonic() - job.since)
            if ahead > 0:
                await asyncio.sleep(ahead)
            async with UnitOfWork(transport=transport) as uow:
                for number in range(next, next + count):
                    uow.emit(Step(mark=mark_of(job.publisher, number), act=act_of(job.plan, number)))
                journal.write("attempted", job.publisher, next, count)
                await _commit(uow, journal)
                journal.write("acknowledged", job.publisher, next, count)
            next += count


async def _commit(uow: UnitOfWork, journal: Journal) -> None:
    commit = uow.commit
    while True:
        try:
            await commit()
            return
        except PublishError as exc:
            kind = next((base.__name__ for base in type(exc).__mro__ if base.__name__ != "PublishError"), "")
            journal.write("refused", kind, exc.outcome.replace(" ", "-"))
            commit = uow.publish_pending
            await asyncio.sleep(0.05)


def _attempted(directory: Path, publisher: int) -> int:
    """The number behind the last that this publisher has attempted, in whatever life."""
    last = 0
    for path in directory.glob("publisher.*.journal"):
        for line in path.read_text().splitlines():
            verb, *words = line.split()
            if verb == "attempted" and int(words[0]) == publisher:
                last = max(last, int(words[1]) + int(words[2]))

    return last
