"""Publishing: one script per stream, all streams in one write, and the publishes of concurrent tasks together."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from eventbus.envelope import Envelope, to_fields
from eventbus.errors import EncodeError, Full, PublishError, TransportError, Unavailable, excerpt
from eventbus.messages import check_name
from eventbus.redis.entries import MOST_WORDS, place_of
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel, Endpoint, field_of, group_is_gone, translate
from eventbus.redis.scripts import PUBLISH

logger: Final = logging.getLogger("eventbus.redis")

WINDOW: Final = 600.0
"""Seconds for which an envelope id is remembered at least; twice that at the most."""
TOGETHER: Final = 500
"""Envelopes of different tasks that go in one script."""


class Publisher:
    """Adds envelopes to their streams.

    While a batch is under way, what other tasks publish waits and goes together in the next. There is no task of its own: the first of
    those that wait sends for all. A call whose reply was lost is asked again, for up to `patience` seconds after that: the script adds nothing
    twice.

    A server that was killed, or replaced by a replica that lagged, may have lost what it was given last. So each new connection is asked
    for the last entry of ours, and if that is not there an error is logged.
    """

    def __init__(self, endpoint: Endpoint, default: str, patience: float) -> None:
        self._channel = Channel(endpoint)
        self._default = default
        self._patience = patience
        self._waiting: deque[_Job] = deque()
        self._sending = False
        self._crowded = False
        """Whether several went together the last time."""
        self._newest: dict[str, str] = {}
        self._looked_back = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def publish(self, envelopes: Sequence[Envelope]) -> list[str]:
        """Their entry ids. `PublishError` with those that are not known to be in their stream."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._sending = loop, False
            self._waiting.clear()
        job = _Job(envelopes, self._default)
        self._waiting.append(job)
        while not job.done:
            if self._sending:
                await self._wait(job, loop)
            else:
                await self._lead(job)
        if job.failures:
            raise job.error()

        return job.ids

    async def close(self) -> None:
        await self._channel.close()

    async def _wait(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        """Until the job is done, or it is ours to send."""
        job.turn = loop.create_future()
        try:
            await job.turn
        except asyncio.CancelledError:
            job.done = True  # nobody asks for it any more
            self._pass_on()
            raise

    async def _lead(self, own: _Job) -> None:
        """Send what waits, for everybody."""
        batch: list[_Job] = []
        self._sending = True
        try:
            if self._crowded:
                await asyncio.sleep(0)  # those who were woken with us are about to publish, too
            batch = self._next_batch()
            self._crowded = len(batch) > 1
            await self._send(batch)
        except BaseException:
            # Only a cancellation comes here. It is ours alone: the others' envelopes are asked for again, which adds none twice.
            own.done = True
            others = [job for job in batch if not job.done]
            for job in others:
                job.doubtful = True
            self._waiting.extendleft(reversed(others))
            raise
        finally:
            self._sending = False
            for job in batch:
                if job.done and job.turn is not None and not job.turn.done():
                    job.turn.set_result(None)
            self._pass_on()

    def _next_batch(self) -> list[_Job]:
        batch: list[_Job] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].envelopes) <= TOGETHER):
            job = self._waiting.popleft()
            if not job.done:
                batch.append(job)
                size += len(job.envelopes)

        return batch

    def _pass_on(self) -> None:
        """Wake the first that waits, to send next."""
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()
        if not self._sending and self._waiting:
            turn = self._waiting[0].turn
            if turn is not None and not turn.done():
                turn.set_result(None)

    async def _send(self, jobs: list[_Job]) -> None:
        streams: dict[str, list[tuple[_Job, int]]] = {}
        for job in jobs:
            for index, stream in enumerate(job.streams):
                streams.setdefault(stream, []).append((job, index))
        answers = await self._ask([_command(stream, parts) for stream, parts in streams.items()])
        for (stream, parts), (reply, lost) in zip(streams.items(), answers, strict=True):
            if isinstance(reply, Exception):
                error = translate(reply, f"publishing to {stream!r}")
                if error is not reply:
                    error.__cause__ = reply
                for job, index in parts:
                    # A full server looks first whether they are there; but when others are asked for beside them it says that it is full.
                    unknown = job.doubtful or (lost and not isinstance(error, Full))
                    job.failures.append((index, error, unknown))
            else:
                for (job, index), id in zip(parts, reply, strict=True):
                    job.ids[index] = id.decode()
                self._newest[stream] = reply[-1].decode()
        for job in jobs:
            job.done = True

    async def _ask(self, commands: list[tuple[Any, ...]]) -> list[tuple[Any, bool]]:
        """For each command the reply, or the error in its place, and whether a reply was lost: then it may have been carried out.

        Those that the server could not answer are asked again, once at the least.
        """
        answers: list[tuple[Any, bool]] = [(None, False)] * len(commands)
        left: Sequence[int] = range(len(commands))
        until: float | None = None
        delay = 0.05
        while True:
            try:
                replies, lost = await self._channel.call(*[commands[index] for index in left]), False
                await self._look_back()
            except TransportError as exc:
                replies, lost = [exc] * len(left), self._channel.sent
            for index, reply in zip(left, replies, strict=True):
                answers[index] = reply, lost or answers[index][1]
            left = [index for index in left if _is_unavailable(answers[index][0])]
            now = time.monotonic()
            if not left or (until is not None and now + delay > until):
                return answers
            until = until or now + self._patience
            await asyncio.sleep(delay * (0.5 + random.random() / 2))
            delay = min(delay * 2, 1.0)

    async def _look_back(self) -> None:
        """On another connection than the last time: whether what we published last is still there."""
        opened = self._channel.opened
        if opened == self._looked_back:
            return
        for stream, newest in list(self._newest.items()):
            try:
                replies = await self._channel.call(
                    ("XINFO", "STREAM", stream),
                    ("XRANGE", stream, newest, newest),
                    ("XRANGE", stream, "-", "+", "COUNT", 1),
                    ("XREVRANGE", stream, newest, "-", "COUNT", 1),
                )
            except TransportError:
                return
            if any(_is_unavailable(reply) and not group_is_gone(reply) for reply in replies):
                return  # it is loading its data, or waits for its master: it is asked again
            info, entry, oldest, before = replies
            if _is_forgotten(newest, info, entry, oldest):
                self._newest.pop(stream, None)  # it is said once, however often we connect anew
                logger.error(
                    "%s: the server has forgotten what was published last: %s is not there any more, the last before it is %s; it was "
                    "restarted or replaced without its newest data. Publish again what came after that, it adds nothing twice",
                    stream, newest, "none" if isinstance(before, Exception) or not before else before[0][0].decode(),
                )  # fmt: skip
        self._looked_back = opened


class _Job:
    """The envelopes of one `publish`, and what became of them."""

    __slots__ = ("done", "doubtful", "envelopes", "failures", "fields", "ids", "streams", "turn")

    def __init__(self, envelopes: Sequence[Envelope], default: str) -> None:
        self.envelopes = envelopes
        self.streams = [_checked(envelope.stream or default) for envelope in envelopes]
        self.fields = [_fields(envelope) for envelope in envelopes]
        self.ids = [""] * len(envelopes)
        self.failures: list[tuple[int, TransportError, bool]] = []
        self.done = not envelopes
        self.doubtful = False
        """Whether it may have been sent by another task, which was cancelled before it knew."""
        self.turn: asyncio.Future[None] | None = None

    def error(self) -> PublishError:
        cause = self.failures[0][1]
        unknown = any(unknown for _, _, unknown in self.failures)
        left = [self.envelopes[index] for index in sorted(index for index, _, _ in self.failures)]
        error = PublishError.because(cause, left, "unknown" if unknown else "not sent")
        error.__cause__ = cause

        return error


def _is_unavailable(reply: Any) -> bool:
    return isinstance(reply, Exception) and isinstance(translate(reply, ""), Unavailable)


def _is_forgotten(newest: str, info: Any, entry: Any, oldest: Any) -> bool:
    """Whether an entry that we were told of is missing, and was neither trimmed nor can it not be seen."""
    if isinstance(info, Exception):
        return "no such key" in str(info)
    if entry or isinstance(entry, Exception) or isinstance(oldest, Exception):
        return False
    last: bytes = field_of(info, b"last-generated-id")

    return place_of(last) < place_of(newest.encode()) or bool(oldest and place_of(oldest[0][0]) < place_of(newest.encode()))


def _command(stream: str, parts: list[tuple[_Job, int]]) -> tuple[Any, ...]:
    words: list[Any] = [int(WINDOW * 1000)]
    for job, index in parts:
        fields = job.fields[index]
        words.append(job.envelopes[index].id)
        words.append(len(fields))
        words += fields

    return PUBLISH.call(*_keys(stream), args=words)


def _fields(envelope: Envelope) -> list[bytes | str]:
    fields = to_fields(envelope)
    if len(fields) > MOST_WORDS:  # the script would fail in the midst of it
        raise EncodeError(
            f"{len(envelope.headers)} headers on {excerpt(envelope.type)} {excerpt(envelope.id)}: no entry of so many fields can be added",
            type=envelope.type, path="$.headers",
        )  # fmt: skip

    return fields


@functools.lru_cache(1000)
def _checked(stream: str) -> str:
    return check_name("stream", stream)


@functools.lru_cache(1000)
def _keys(stream: str) -> tuple[str, ...]:
    keys = Keys(stream)

    return stream, *keys.published, keys.added
