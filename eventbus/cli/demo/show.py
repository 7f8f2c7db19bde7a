"""The course of the demo: books are registered, two groups handle what was published, things go wrong, and in the end it adds up."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio

from eventbus.cli.demo import club
from eventbus.cli.demo.ledger import Ledger
from eventbus.cli.demo.screen import Screen
from eventbus.cli.demo.workers import Worker, workers
from eventbus.cli.endings import Code, Failure
from eventbus.cli.logs import fields_of
from eventbus.cli.servers import reach
from eventbus.cli.signals import two_signals
from eventbus.connect import connect, hide_password, scheme_of
from eventbus.embedded import EmbeddedServer
from eventbus.envelope import Envelope, new_id
from eventbus.errors import ConfigurationError, TransportError
from eventbus.memory import MemoryTransport
from eventbus.transport import Subscribe

GIVES_UP_AFTER = 30.0
"""Seconds in which nothing was settled."""
LOOK_AGAIN = 0.1
"""Seconds between two looks at what is left."""


def show(url: str | None, books: int) -> int:
    """Run the demo, on the server named or on one of its own; the exit code."""
    screen = Screen()
    scheme = scheme_of(url or "embedded://")
    if scheme == "memory":
        return _in_memory(screen, books, "as asked")
    if scheme != "embedded":
        assert url is not None
        screen.say("server", f"{hide_password(url)}, under a stream name of our own")
        return anyio.run(_until_signal, screen, _Demo(screen, books, url, _unused()).in_processes)
    try:
        server = EmbeddedServer(_path(url)).start()
    except ConfigurationError as exc:
        if url is not None:
            raise
        return _in_memory(screen, books, str(exc))
    with server:
        screen.say("server", f"{server.version_text}, our own, on a unix socket")
        stream = "reading-club" if server.path is None else _unused()
        return anyio.run(_until_signal, screen, _Demo(screen, books, server.url, stream).in_processes)


def _in_memory(screen: Screen, books: int, why: str) -> int:
    screen.say("server", f"none, this runs on memory://, in one process: {why}")

    return anyio.run(_until_signal, screen, _Demo(screen, books, "memory://", "reading-club").in_memory)


def _unused() -> str:
    """The name of a stream that nobody else has on the server."""
    return f"demo-{secrets.token_hex(4)}"


def _path(url: str | None) -> Path | None:
    parts = urlsplit(url or "")
    path = parts.netloc + parts.path

    return Path(path) if path.strip("/") else None


async def _until_signal(screen: Screen, run: Callable[[], Awaitable[int]]) -> int:
    """Run it; the first SIGINT or SIGTERM ends it with everything cleaned up, a second one at once."""
    interrupted = ""

    def stop(signal: str) -> None:
        nonlocal interrupted
        interrupted = signal
        scope.cancel()

    with anyio.CancelScope() as scope, two_signals(stop, lambda signal: f"{signal}: ended at once"):
        return await run()
    screen.say("demo", f"ended by {interrupted}")

    return Code.FORCED


class _Demo:
    """One run: the books, where they go, and what has become of them."""

    def __init__(self, screen: Screen, books: int, url: str, stream: str) -> None:
        self.screen = screen
        self.books = books
        self.stream = stream
        self.url = url
        self.transport = connect(url, stream=stream)
        self.ledger = Ledger(self.transport, list(club.GROUPS))
        self.held: dict[tuple[str, str], str] = {}
        """Who held what when it was killed, by group and envelope id."""
        self.changed = anyio.Event()

    async def in_processes(self) -> int:
        """Two mailers and a catalog, each in a process of its own."""
        async with AsyncExitStack() as cleaning:
            await reach(
                self.transport, self.stream, "mailer", advice="start a server there, or leave out --url for one of its own"
            )
            await cleaning.enter_async_context(self.transport)
            cleaning.push_async_callback(self._delete)
            started = await cleaning.enter_async_context(
                workers(["mailer", "mailer", "catalog"], self.url, {club.STREAM: self.stream})
            )
            cleaning.enter_context(self.screen.progress(list(club.GROUPS), self.books + 1))
            for worker in started:
                self.screen.say(worker.name, "started, a process of its own")
            async with anyio.create_task_group() as following:
                for worker in started:
                    following.start_soon(self._follow, worker)
                await self._publish()
                await self._wait_until_settled()
                following.cancel_scope.cancel()
        unclean = [worker for worker in started if not worker.killed and worker.exit_code != Code.OK]

        return self._sum([f"{worker.name} did not end well: exit code {worker.exit_code}" for worker in unclean])

    async def in_memory(self) -> int:
        """The same in one process. There is nothing to kill: a consumer vanishes instead, and its lease runs out."""
        transport = self.transport
        assert isinstance(transport, MemoryTransport)
        async with transport:
            await self._publish()
            async with transport.subscribe(Subscribe(streams=[self.stream], group="mailer", lease=1.0)) as doomed:
                deliveries = await doomed.receive(1 + club.TITLES.index(club.HEAVY))
                await doomed.release(deliveries[:-1])
                doomed.abandon()
            self.held["mailer", deliveries[-1].envelope.id] = "a consumer"
            self.screen.say("mailer", f"a consumer vanished with {club.HEAVY!r} in hand")
            with self.screen.progress(list(club.GROUPS), self.books + 1), _Records(self._record, self.stream):
                async with anyio.create_task_group() as running:
                    for group in club.GROUPS.values():
                        await running.start(replace(group(), transport=transport).run)
                    await self._wait_until_settled()
                    running.cancel_scope.cancel()

        return self._sum()

    async def _publish(self) -> None:
        """Register the books, each in a transaction of its own; and put one entry into the stream that nobody can read."""
        for number in range(self.books):
            title = club.title_of(number)
            await club.register(title, self.ledger)
            self.screen.say("desk", f"registered {title!r}")
        await self.ledger.publish([Envelope(new_id(), datetime.now(UTC), "book_registered_v1", b'{"title": 1984}')])
        self.screen.say("desk", "published something that is no BookRegistered")

    async def _follow(self, worker: Worker) -> None:
        """Show what a worker says, and kill it when it holds the book that takes so long."""
        async for record in worker.log():
            self._record(worker.name, record)
            if record.get("step") == "holds":
                worker.kill()
                self.held[record["group"], record["id"]] = worker.name
        if worker.killed:
            self.screen.say(worker.name, "was killed, with that in hand (SIGKILL)", "red")
        else:
            raise Failure(
                f"{worker.name} ended by itself, exit code {worker.exit_code}: {worker.last_words or 'it said nothing'}"
            )

    def _record(self, who: str, record: Mapping[str, Any]) -> None:
        """Show a log record, and note what it says."""
        text: str = record["message"]
        if "step" in record:
            group, id, attempt = record["group"], record["id"], record["attempt"]
            fate = self.ledger.groups[group]
            if record["step"] == "handled":
                if (former := self.held.pop((group, id), None)) is not None:
                    fate.taken_over += 1
                    text += f", which {former} had in hand"
                elif id in fate.acked:
                    text += " again: the first was not acked (at least once)"
                elif attempt > 1:
                    text += f", at attempt {attempt}"
                fate.acked[id] = max(attempt, fate.acked.get(id, 0))
                self.changed.set()
            self.screen.say(who, text)
            self.screen.advance(self.ledger)
        elif record.get("event") == "ready":
            self.screen.say(who, f"reads {self.stream}")
        elif record["level"] in ("warning", "error"):
            self.changed.set()
            for group in club.GROUPS:  # which who says it shows already
                text = text.removeprefix(f"{self.stream}/{group} ")
            text = text.replace(f" {club.BookRegistered.metadata.type}: ", ": ", 1)
            self.screen.say(who, text, "yellow" if record["level"] == "warning" else "red")

    async def _wait_until_settled(self) -> None:
        """Look at the dead letters and at what is left until there is nothing more to come, or nothing comes any more."""
        settled, since = 0, anyio.current_time()
        while anyio.current_time() - since < GIVES_UP_AFTER:
            self.changed = anyio.Event()
            for group, fate in self.ledger.groups.items():
                fate.bury(await self.transport.dead_letters(self.stream, group))
                fate.left = await self.transport.backlog(self.stream, group)
            self.screen.advance(self.ledger)
            if not self.ledger.missing():
                return
            now_settled = sum(fate.settled for fate in self.ledger.groups.values())
            if now_settled > settled:
                settled, since = now_settled, anyio.current_time()
            with anyio.move_on_after(LOOK_AGAIN):
                await self.changed.wait()

    async def _delete(self) -> None:
        """Leave nothing on the server."""
        with anyio.move_on_after(5, shield=True):
            try:
                transport: Any = self.transport  # a RedisTransport, which can do this besides
                await transport.delete(self.stream)
            except TransportError as exc:
                self.screen.say("server", f"could not delete {self.stream} and its keys: {exc}", "red")
            else:
                self.screen.say("server", f"deleted {self.stream}, and every key that belonged to it")

    def _sum(self, complaints: Sequence[str] = ()) -> int:
        """The table, and whether it adds up; the exit code."""
        self.screen.table(self.ledger)
        missing = [*self.ledger.missing(), *complaints]
        if not any(fate.retried for fate in self.ledger.groups.values()):
            missing.append("nothing was retried")
        if not any(fate.taken_over for fate in self.ledger.groups.values()):
            missing.append("nothing was taken over from the worker that was killed")
        for what in missing:
            self.screen.say("demo", what, "red")
        if not missing:
            self.screen.say("demo", "published = acked + buried in each group, and nothing is left")

        return Code.FAILED if missing else Code.OK


class _Records(logging.Handler):
    """The log of this process, shown as that of a worker is."""

    def __init__(self, show: Callable[[str, Mapping[str, Any]], None], stream: str) -> None:
        super().__init__(logging.INFO)
        self._show = show
        self._stream = stream

    def __enter__(self) -> None:
        self._logger = logging.getLogger("eventbus")
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before

    def emit(self, record: logging.LogRecord) -> None:
        told = fields_of(record)
        groups = [group for group in club.GROUPS if told["message"].startswith(f"{self._stream}/{group} ")]
        self._show(told.get("group") or "".join(groups), told)
