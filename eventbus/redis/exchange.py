"""One connection for the questions of many tasks: reads, and commits."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from eventbus.errors import ConfigurationError, TransportError, Unavailable
from eventbus.redis.link import Channel, Endpoint, checked

TOGETHER: Final = 100
"""Commands of different tasks that go in one write."""


class Unanswered(Unavailable):
    """No answer, though it was asked again and again. `sent`: what was asked may have been carried out."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Exchange:
    """Asks for many tasks over one connection: while an answer is under way, what other tasks ask waits and goes together in the next write.

    A command whose answer was lost is asked again, for up to `patience` seconds after it was lost first: so it must be one for which that
    makes no difference. The asking is done by a task of its own, so that a cancelled asker does not take the connection with it.
    """

    def __init__(self, endpoint: Endpoint, patience: float) -> None:
        self._endpoint = endpoint
        self._channel = Channel(endpoint)
        self._patience = patience
        self._waiting: deque[_Asked] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, command: Sequence[Any], *, writes: bool = False, until: float = math.inf) -> Any:
        """The answer; the server's error translated. `Unanswered` when there is none.

        `writes`: it changes something, and an error that comes when an earlier answer was lost says nothing of that; `Unanswered` then too.
        `until`: the time, by the monotonic clock, after which it is not sent any more, however long the patience.
        """
        delay, sent = 0.02, False
        while True:
            reply, lost = await self._ask_once(command, until)
            sent = sent or lost
            if isinstance(reply, ConfigurationError):
                raise reply
            try:
                return checked(reply, self._endpoint)
            except Unavailable as exc:
                now = time.monotonic()
                until = min(until, now + self._patience)
                if now + delay > until:
                    raise Unanswered(str(exc), sent=sent) from exc
            except TransportError as exc:
                if sent and writes:
                    raise Unanswered(str(exc), sent=True) from exc
                raise
            await asyncio.sleep(delay * (0.5 + random.random() / 2))
            delay = min(delay * 2, 1.0)

    async def close(self) -> None:
        await self._channel.close()

    async def _ask_once(self, command: Sequence[Any], until: float) -> tuple[Any, bool]:
        """The answer, or the error in its place, and whether it was lost on its way."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._sending = loop, None
            self._waiting.clear()
        answer: asyncio.Future[tuple[Any, bool]] = loop.create_future()
        self._waiting.append(_Asked(command, until, answer))
        if self._sending is None:
            self._sending = loop.create_task(self._send())

        return await answer

    async def _send(self) -> None:
        """Send what waits, until nothing does."""
        batch: list[_Asked] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                if not batch:
                    continue
                try:
                    replies, lost = await self._channel.call(*[asked.command for asked in batch]), False
                except Exception as exc:  # also a mistake in the URL, found when it is first used: for those who asked
                    replies, lost = [exc] * len(batch), self._channel.sent
                for asked, reply in zip(batch, replies, strict=True):
                    asked.reply(reply, lost)
        finally:
            self._sending = None
            stopped = Unavailable(f"the connection to {self._endpoint} was given up")
            for asked in [*batch, *self._waiting]:  # nobody is left to answer them, if this was cancelled
                asked.reply(stopped, True)
            self._waiting.clear()

    def _next_batch(self) -> list[_Asked]:
        """What goes in the next write. What has waited for too long is told so, and not sent."""
        batch: list[_Asked] = []
        now = time.monotonic()
        while self._waiting and len(batch) < TOGETHER:
            asked = self._waiting.popleft()
            if now <= asked.until:
                batch.append(asked)
            else:
                asked.reply(Unavailable(f"no answer from {self._endpoint} in time"), False)

        return batch


class _Asked:
    """A command that waits for its answer."""

    __slots__ = ("_answer", "command", "until")

    def __init__(self, command: Sequence[Any], until: float, answer: asyncio.Future[tuple[Any, bool]]) -> None:
        self.command = command
        self.until = until
        self._answer = answer

    def reply(self, reply: Any, lost: bool) -> None:
        """To whoever still waits for it."""
        if not self._answer.done():
            self._answer.set_result((reply, lost))
