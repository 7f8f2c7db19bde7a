"""Subscribers as the program of a process: found, connected, run, and drained when a signal says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, TypeVar

import anyio
import anyio.abc

from eventbus.cli import logs
from eventbus.cli.endings import Code, Failure, failure
from eventbus.cli.servers import address, reach
from eventbus.cli.signals import two_signals
from eventbus.cli.targets import find, look_here
from eventbus.connect import connect, hide_password, scheme_of
from eventbus.subscriber import Subscriber
from eventbus.transport import Transport

logger: Final = logging.getLogger("eventbus.cli")

D = TypeVar("D", bound=Any)
"""A declaration with a transport: `Subscriber` or `Relay`."""


def run(targets: Sequence[str], *, url: str | None, concurrency: int | None, wait: float, log_level: str, log_format: str) -> int:
    """Run the subscribers that the targets name until a signal stops them. `Failure` if they do not start, or one of them fails."""
    formatter = logs.configure(log_level, log_format)
    look_here()
    subscribers = find(targets, Subscriber)
    if url is not None:
        subscribers = moved(subscribers, url)
    if concurrency is not None:
        subscribers = [replace(subscriber, concurrency=concurrency) for subscriber in subscribers]

    def last_words(signal: str) -> str:
        text = f"ended at once by a second signal, {signal}: what was in hand is delivered again"

        return formatter.format(logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None))

    anyio.run(serve, subscribers, wait, last_words)

    return Code.OK


def moved(services: Sequence[D], url: str) -> list[D]:
    """The same subscribers, or relays, on another server. Those that shared the settings of their transport share one there too."""
    in_process = scheme_of(url) in ("memory", "embedded")
    made: dict[tuple[str, ...], Transport] = {}

    def on_url(old: Transport) -> Transport:
        options: dict[str, Any] = {"stream": old.stream, "codec": old.codec}
        if (retention := getattr(old, "retention", None)) is not None and scheme_of(url) != "memory":
            options["retention"] = retention
        key = tuple(map(repr, options.values()))
        if key not in made:
            if made and in_process:
                raise Failure(
                    f"{hide_password(url)} is a place of its own for each transport, but these publish to different "
                    "streams and need several; name a server that they can share",
                    Code.USAGE,
                )
            try:
                made[key] = connect(url, **options)
            except Exception as exc:
                raise failure(exc) from exc

        return made[key]

    return [replace(service, transport=on_url(service.transport)) for service in services]


async def serve(subscribers: Sequence[Subscriber], wait: float, last_words: Callable[[str], str]) -> None:
    """Run until the first signal, then drain. `Failure` if a server does not answer, or a subscriber's `run()` fails."""
    work = anyio.CancelScope()

    def stop(signal: str) -> None:
        running = sum(subscriber.statistics().running for subscriber in subscribers)
        patience = (
            f"{running} running, up to {max(one.grace for one in subscribers):g} s for them" if running else "none is running"
        )
        text = "stopping on %s, %s; a second signal ends at once"
        logger.info(text, signal, patience, extra={"event": "stopping", "running": running})
        work.cancel()

    try:
        with two_signals(stop, last_words), work:
            async with AsyncExitStack() as opened:
                for transport in {id(one.transport): one.transport for one in subscribers}.values():
                    await opened.enter_async_context(transport)
                async with anyio.create_task_group() as asking:
                    for one in subscribers:
                        asking.start_soon(_reach_all, one, wait)
                async with anyio.create_task_group() as running:
                    for one in subscribers:
                        await running.start(_Service(one).run)
    except Exception as exc:
        raise failure(exc) from exc


async def _reach_all(subscriber: Subscriber, wait: float) -> None:
    """One stream after another: each answer has its time."""
    for stream in subscriber.streams:
        await reach(subscriber.transport, stream, subscriber.group, wait=wait)


class _Service:
    """One subscriber at work: it says when it begins to read, and which one it was that failed."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._task_status = task_status
        try:
            await self._subscriber.run(task_status=self)
        except Exception as exc:
            raise failure(exc, f"{self._subscriber.group}: ") from exc

    def started(self, value: None = None) -> None:
        """The groups exist, and it is about to read."""
        subscriber = self._subscriber
        streams = list(subscriber.streams)
        logger.info(
            "%s reads %s at %s, up to %d at once",
            subscriber.group, ", ".join(streams), address(subscriber.transport), subscriber.concurrency,
            extra={"event": "ready", "group": subscriber.group, "streams": streams},
        )  # fmt: skip
        self._task_status.started()
