"""Wait for what you mean, never for a while: `drain` for the end of the work, `wait_until` for anything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import isawaitable
from typing import Protocol, runtime_checkable

import anyio

from eventbus.subscriber import Statistics, Subscriber
from eventbus.transport import Backlog, Transport

LOOK_AGAIN = 0.02
"""Seconds, at most, between two looks at what is left."""


async def drain(subscriber: Subscriber, *, timeout: float = 30.0) -> Statistics:
    """Run the subscriber until its group has nothing left on any of its streams, unread, pending or delayed; what it did on the way.

    On a transport whose clock can be moved (`MemoryTransport`) time does not pass while everything waits for it: the clock is moved to
    the next retry, or to the end of the lease of a consumer that died, so retries of hours take no time. On a server they take as long
    as they take.

    An error that ends the subscriber's `run()` is raised as it is. After `timeout` seconds of real time it is a `TimeoutError` that says
    what is left; handlers that still run are then cancelled, and what they had is given back.
    """
    work = replace(subscriber, grace=0.0)  # nothing runs when all is done; and what hangs is not waited for
    left: dict[str, Backlog] = {}
    statistics = Statistics()
    error: BaseException | None = None
    late = False
    try:
        async with anyio.create_task_group() as running:
            with anyio.move_on_after(timeout) as patience:
                await running.start(work.run)
                await _wait_for_the_end(work, left)
            late, statistics = patience.cancelled_caught, work.statistics()
            running.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = group.exceptions[0] if len(group.exceptions) == 1 else group
    if error is not None:
        raise error
    if late:
        raise TimeoutError(_what_is_left(subscriber, timeout, left, statistics))

    return statistics


async def wait_until(predicate: Callable[[], bool | Awaitable[bool]], *, description: str, timeout: float = 10.0) -> None:
    """Wait until the predicate, which may be async, is true. `TimeoutError` with the description if it is not after so many seconds.

    For what has no event to wait for: the predicate is asked every few milliseconds.
    """
    with anyio.move_on_after(timeout):
        while True:
            answer = predicate()
            if await answer if isawaitable(answer) else answer:
                return
            await anyio.sleep(0.005)

    raise TimeoutError(f"{description}: not within {timeout:g} s")


@runtime_checkable
class _Clock(Protocol):
    def advance(self, seconds: float) -> None: ...


async def _wait_for_the_end(subscriber: Subscriber, left: dict[str, Backlog]) -> None:
    transport, pause = subscriber.transport, 0.002
    clock = getattr(transport, "clock", None)
    while True:
        changed = _next_change(transport)
        for stream in subscriber.streams:
            left[stream] = await transport.backlog(stream, subscriber.group)
        held = subscriber.statistics().held
        if not held and not any(left.values()):
            return
        due = [backlog.next_in for backlog in left.values() if backlog.next_in is not None]
        idle = not held and not any(backlog.unread for backlog in left.values())
        if idle and due and min(due) > 0 and isinstance(clock, _Clock):
            clock.advance(min(due))
        with anyio.move_on_after(pause):
            await changed.wait()
        pause = LOOK_AGAIN if changed.is_set() else min(pause * 2, LOOK_AGAIN)


def _next_change(transport: Transport) -> anyio.Event:
    """Set at the transport's next change, if it tells; else never."""
    next_change: Callable[[], anyio.Event] = getattr(transport, "next_change", anyio.Event)

    return next_change()


def _what_is_left(subscriber: Subscriber, timeout: float, left: dict[str, Backlog], done: Statistics) -> str:
    if not left:
        return f"{subscriber.group!r} did not join its streams within {timeout:g} s; does {subscriber.transport!r} answer?"
    rows = [
        f"  {stream}: {backlog.unread} unread, {backlog.pending} pending, {backlog.delayed} delayed"
        + (f", the next in {backlog.next_in:.3g} s" if backlog.next_in is not None else "")
        for stream, backlog in left.items()
    ]

    return "\n".join(
        [
            f"{subscriber.group!r} was not done after {timeout:g} s; it has still to handle",
            *rows,
            f"it has {done.running} handlers running, handled {done.handled}, retried {done.retried}, buried {done.buried}",
        ]
    )
