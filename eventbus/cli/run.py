"""`eventbus run`: subscribers as a process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback as tracebacks
from dataclasses import replace

import anyio
import anyio.abc

from eventbus.cli import EXIT_FAILED, EXIT_FORCED, EXIT_UNREACHABLE, EXIT_USAGE
from eventbus.cli.targets import load, place_of
from eventbus.connect import connect
from eventbus.errors import ConfigurationError, EventBusError, Unavailable, excerpt
from eventbus.subscriber import Subscriber

logger = logging.getLogger("eventbus.cli")


def run_targets(
    targets: tuple[str, ...], *, url: str | None, concurrency: int | None, wait: float, log_level: str, traceback: bool
) -> int:
    """Run what the targets name until a signal; the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        subscribers = [subscriber for target in targets for subscriber in load(target)]
        if url is not None:
            subscribers = [replace(subscriber, transport=connect(url)) for subscriber in subscribers]
        if concurrency is not None:
            subscribers = [replace(subscriber, concurrency=concurrency) for subscriber in subscribers]
        anyio.run(_run, subscribers, wait)
    except ConfigurationError as exc:
        return _say(exc, EXIT_USAGE, traceback)
    except Unavailable as exc:
        return _say(exc, EXIT_UNREACHABLE, traceback, "; start a server there, name another with --url, or wait for it with --wait 30")
    except EventBusError as exc:
        return _say(exc, EXIT_FAILED, traceback)
    except Exception as exc:
        return _say(exc, EXIT_FAILED, traceback, f" ({place_of(exc)}; --traceback shows more)")

    return 0


async def _run(subscribers: list[Subscriber], wait: float) -> None:
    for subscriber in subscribers:
        await _reach(subscriber, time.monotonic() + wait)
    scope = anyio.CancelScope()
    try:
        async with anyio.create_task_group() as watching:
            await watching.start(_watch_signals, scope)
            with scope:
                async with anyio.create_task_group() as running:
                    for subscriber in subscribers:
                        await running.start(subscriber.run)
                        logger.info(
                            "%s/%s: listening with concurrency %d on %r",
                            "+".join(subscriber.streams), subscriber.group, subscriber.concurrency, subscriber.transport,
                        )  # fmt: skip
            watching.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _reach(subscriber: Subscriber, until: float) -> None:
    """Whether the server answers: a subscriber that runs waits for a lost server, but one that was never there is a mistake."""
    while True:
        try:
            async with subscriber.transport as transport:
                await transport.backlog(subscriber.streams[0], subscriber.group)
        except Unavailable:
            if time.monotonic() >= until:
                raise
            await anyio.sleep(0.2)
        else:
            return


async def _watch_signals(scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """The first signal lets handlers finish; the second ends at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if scope.cancel_called:
                logger.warning("ended by a second signal; what was in hand will be delivered again")
                logging.shutdown()
                os._exit(EXIT_FORCED)
            logger.info("%s: finishing what is running; a second signal ends at once", signal.Signals(number).name)
            scope.cancel()


def _say(error: Exception, code: int, traceback: bool, advice: str = "") -> int:
    if traceback:
        tracebacks.print_exception(error)
    what = str(error) if isinstance(error, EventBusError) else f"{type(error).__name__}: {excerpt(str(error), 500)}"
    print(f"eventbus: {what}{advice}", file=sys.stderr)

    return code
