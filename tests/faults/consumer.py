"""A service under test: a subscriber that does what its messages say and writes down what it does. Run by ``eventbus run``.

What it is to be like is JSON in the environment variable `FAULTS_CONSUMER`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import msgspec

from eventbus import Delivery, MessageBus, Reject, Retry, Subscriber, exponential
from eventbus.redis import RedisTransport, subscription
from eventbus.redis.retention import Retention
from tests.faults.ledger import Journal
from tests.faults.messages import STREAM, Step

VARIABLE = "FAULTS_CONSUMER"


class ConsumerJob(msgspec.Struct, frozen=True, kw_only=True, tag="consumer"):
    """What a consumer is to be like."""

    name: str
    url: str
    directory: str
    group: str
    broken: str = ""
    """Which variant of the library it runs, see `tests.faults.broken`."""
    concurrency: int = 10
    lease: float = 1.0
    grace: float = 5.0
    max_crashes: int = 3
    work: float = 0.002
    """Seconds that a handler takes …"""
    work_every: int = 1
    """… for one of so many messages: the others are handled at once."""
    rest_every: int = 0
    """After so many messages it takes a rest …"""
    rest: float = 0.0
    """… of so many seconds."""
    retention: float = 3600.0
    tidy: float = 1.0
    """Seconds between two rounds of the janitor."""
    dead_after: float = 3.0
    """Seconds of silence after which a consumer that holds nothing is removed."""


def subscriber() -> Subscriber:
    job = msgspec.json.decode(os.environ[VARIABLE], type=ConsumerJob)
    subscription.TIDY_EVERY, subscription.DEAD_AFTER = job.tidy, job.dead_after  # type: ignore[misc]
    journal = Journal(Path(job.directory), f"{job.group}.{job.name}")
    journal.write("life", job.group, job.concurrency, int(time.time() * 1000))
    bus = MessageBus()
    taken = 0

    @bus.listen
    async def take(step: Step, delivery: Delivery) -> None:
        nonlocal taken
        what = f"{step.mark} {delivery.attempt}"
        journal.write("began", what, delivery.entry_id, int(delivery.suspect))
        try:
            taken += 1
            await _work(step.act, 0.0 if taken % job.work_every else job.work)
            if job.rest_every and taken % job.rest_every == 0:
                await asyncio.sleep(job.rest)
        except asyncio.CancelledError:
            journal.write("cancelled", what)
            raise
        if step.act == "fail" or (step.act == "again" and delivery.attempt == 1) or step.act == "reject":
            journal.write("failed", what)
            _raise_as(step.act)
        journal.write("handled", what)

    return Subscriber(
        bus=bus,
        transport=RedisTransport(
            job.url, stream=STREAM, retention=Retention(entries=timedelta(seconds=job.retention), max_pin=timedelta(hours=1))
        ),
        streams=[STREAM],
        group=job.group,
        concurrency=job.concurrency,
        retry=exponential(attempts=3, base=0.05, factor=2.0, maximum=0.2),
        lease=job.lease,
        grace=job.grace,
        max_crashes=job.max_crashes,
    )


async def _work(act: str, seconds: float) -> None:
    if act == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
    if act.startswith("slow "):  # in steps, so that it is not over at once after the process was stopped for a while
        for _ in range(round(float(act.removeprefix("slow ")) / 0.05)):
            await asyncio.sleep(0.05)
    elif act.startswith("doze "):
        await asyncio.sleep(float(act.removeprefix("doze ")))
    elif seconds:
        await asyncio.sleep(seconds)


def _raise_as(act: str) -> None:
    if act == "reject":
        raise Reject("told to")
    if act == "again":
        raise Retry(after=0.1)

    raise RuntimeError("told to fail")
