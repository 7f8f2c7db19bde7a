"""A shield from cancellation that holds for a while: for the few lines that must not be torn.

A scope of anyio shields from the scopes around it. asyncio's own cancellation (`asyncio.timeout`, `wait_for`, a task group whose other task
has failed, `Task.cancel`) goes through it: a `Deferral` holds it back, and whoever made it raises it afterwards.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    import asyncio


T = TypeVar("T")


def cancellations() -> Callable[[], int]:
    """How often this task was cancelled by asyncio itself, which does so to every task when its loop ends; under trio never."""
    import asyncio  # there by now, or trio is; not for those who use the bus alone

    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None

    return int if task is None else task.cancelling


class Deferral:
    """Holds back what asyncio cancels within a shielded scope: `cancelled` is to be raised when all is done."""

    __slots__ = ("cancelled", "scope")

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope: anyio.CancelScope = scope
        self.cancelled: list[BaseException] = []

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises. Only the end of the scope breaks it off."""
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio
            return await work
        task = loop.create_task(work)
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError as exc:
                if task.done():
                    if task.cancelled():
                        raise
                    self.cancelled.append(exc)
                    return task.result()
                if self.scope.cancel_called:
                    task.cancel()
                    with anyio.CancelScope(shield=True):
                        await asyncio.wait([task])
                    raise
                self.cancelled.append(exc)

    async def until_answered(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer, asked for again if we were cancelled meanwhile: to ask twice must be as good as once."""
        seen = 0
        while True:
            try:
                return await ask()
            except anyio.get_cancelled_exc_class() as exc:
                times = cancellations()()
                if self.scope.cancel_called or times <= seen:  # not us: what was awaited
                    raise
                seen = times
                self.cancelled.append(exc)


def shielded(seconds: float) -> AbstractContextManager[anyio.CancelScope]:
    """A scope that no cancellation from outside reaches, and that is itself cancelled after so many seconds.

    Under asyncio one timer serves all of them: a timer for each costs as much as the rest of a commit.
    """
    try:
        loop = sys.modules[
            "asyncio"
        ].get_running_loop()  # whoever runs a loop of it has imported it, and nobody else waits for that
    except (KeyError, RuntimeError):  # trio, where a deadline is cheap
        return anyio.CancelScope(deadline=anyio.current_time() + seconds, shield=True)
    global _watch  # noqa: PLW0603 - the one of the last event loop: there is seldom another
    watch = _watch
    if watch is None or watch.loop is not loop:
        watch = _watch = _Watch(loop)

    return _Shield(watch, seconds)


class _Watch:
    """Looks from time to time which scopes of an event loop have been open for too long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ends: dict[anyio.CancelScope, float] = {}
        self.looks_at = math.inf

    def add(self, scope: anyio.CancelScope, end: float) -> None:
        self.ends[scope] = end
        if end < self.looks_at:
            self.looks_at = end
            self.loop.call_at(end, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        for scope, end in self.ends.items():
            if end <= now:
                scope.cancel()
        self.looks_at = min((end for end in self.ends.values() if end > now), default=math.inf)
        if self.looks_at < math.inf:
            self.loop.call_at(self.looks_at, self._look)


class _Shield:
    """A scope, watched for as long as it is open."""

    __slots__ = ("_scope", "_seconds", "_watch")

    def __init__(self, watch: _Watch, seconds: float) -> None:
        self._watch = watch
        self._seconds = seconds
        self._scope = anyio.CancelScope(shield=True)

    def __enter__(self) -> anyio.CancelScope:
        self._watch.add(self._scope, self._watch.loop.time() + self._seconds)

        return self._scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        del self._watch.ends[self._scope]

        return self._scope.__exit__(kind, error, trace)


_watch: _Watch | None = None
