"""Runs the reading club, kills one of its workers, shows each step, and adds up."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import anyio.abc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from eventbus.cli import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from eventbus.connect import connect, hide_password
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.envelope import Envelope, new_id
from eventbus.errors import ConfigurationError, EventBusError, Unavailable
from eventbus.transport import Transport

GROUPS = ("mailer", "catalog")
WITHIN = 45.0
"""Seconds after which the demo gives up."""


def show(url: str | None, books: int) -> int:
    """The demo; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        if url is None and find_executable() is None:
            console.print("no Valkey for this machine in a wheel, and none on PATH: running in one process on memory://,")
            console.print("so nothing can be killed. With a server: eventbus demo --url redis://localhost:6379/0")
            return anyio.run(_in_one_process, console, books)
        if url is None:
            with EmbeddedServer() as server:
                console.print(f"started {server.version_text} on a unix socket, for as long as the demo runs")
                return anyio.run(_in_processes, console, server.url, books)
        console.print(f"using {hide_password(url)}, under stream names of its own")
        return anyio.run(_in_processes, console, url, books)
    except ConfigurationError as exc:
        print(f"eventbus: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except Unavailable as exc:
        print(f"eventbus: {exc}; start a server there, or leave out --url for an embedded one", file=sys.stderr)
        return EXIT_UNREACHABLE
    except EventBusError as exc:
        print(f"eventbus: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("eventbus: interrupted; everything was cleaned up", file=sys.stderr)
        return 130


@dataclass
class Tally:
    """What was seen to happen in each group."""

    published: int
    handled: dict[str, set[int]] = field(default_factory=lambda: {group: set() for group in GROUPS})
    buried: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    retried: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    taken_over: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    pending: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))

    def adds_up(self) -> bool:
        return all(
            self.published == len(self.handled[group]) + self.buried[group] and self.pending[group] == 0 for group in GROUPS
        )


class Screen:
    """Prints the steps: below a progress bar on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
            )
            self._bars = {group: self._progress.add_task(group, total=total) for group in GROUPS}

    @contextmanager
    def __call__(self):  # type: ignore[no-untyped-def]
        if self._progress is None:
            yield
        else:
            with self._progress:
                yield

    def say(self, text: str) -> None:
        self.console.print(text)

    def advance(self, group: str) -> None:
        if self._progress is not None:
            self._progress.advance(self._bars[group])


async def _in_processes(console: Console, url: str, books: int) -> int:
    stream = f"demo-{secrets.token_hex(4)}"
    os.environ["EVENTBUS_DEMO_STREAM"] = stream
    transport = connect(url, stream=stream)
    tally = Tally(books + 1)
    screen = Screen(console, books + 1)
    async with transport:
        try:
            with screen(), anyio.fail_after(WITHIN):
                await _register(screen, transport, stream, books)
                await _consume(screen, transport, url, stream, tally)
        except TimeoutError:
            console.print(f"[red]gave up after {WITHIN:g} s[/red]")
        finally:
            with anyio.CancelScope(shield=True):
                for group in GROUPS:
                    tally.buried[group] = len(await transport.dead_letters(stream, group))
                    backlog = await transport.backlog(stream, group)
                    tally.pending[group] = backlog.unread + backlog.pending + backlog.delayed
                await transport.delete(stream)  # type: ignore[attr-defined]

    return _table(console, tally)


async def _register(screen: Screen, transport: Transport, stream: str, books: int) -> None:
    """Commands to the bus, one unit of work each; and one message that no consumer can read."""
    from eventbus.cli.demo.club import TITLES, ClubUnitOfWork, RegisterBook, club

    for number in range(1, books + 1):
        title = TITLES[(number - 1) % len(TITLES)]
        title = title if number <= len(TITLES) else f"{title} {(number - 1) // len(TITLES) + 1}"
        async with ClubUnitOfWork(transport=transport) as uow:
            await club.handle(RegisterBook(number=number, title=title), uow)
            await uow.commit()
    screen.say(f"registered {books} books, each in a unit of work of its own: {books} events published to {stream}")
    poison = Envelope(new_id(), datetime.now(UTC), "book_registered_v1", b'{"title": 1984}', stream=stream)
    await transport.publish([poison])
    screen.say("published a poison message: its payload is no BookRegistered")


async def _consume(screen: Screen, transport: Transport, url: str, stream: str, tally: Tally) -> None:
    """Two mailers and a catalog in processes of their own, until nothing is left; the mailer that holds the deadly book is killed."""
    async with anyio.create_task_group() as tasks:
        async with _worker("mailer", url) as one, _worker("mailer", url) as two, _worker("catalog", url) as three:
            screen.say(f"started 3 workers: mailer {one.pid}, mailer {two.pid}, catalog {three.pid}")
            for worker in (one, two, three):
                tasks.start_soon(_follow, screen, worker, tally)
            while True:
                left = [await transport.backlog(stream, group) for group in GROUPS]
                done = all(len(tally.handled[group]) >= tally.published - 1 for group in GROUPS)
                if done and not any(left):
                    break
                await anyio.sleep(0.05)
    screen.say("nothing is left; the workers are told to stop (SIGTERM)")


async def _follow(screen: Screen, worker: anyio.abc.Process, tally: Tally) -> None:
    """Show what a worker prints, and kill it if it holds the book that is deadly."""
    assert worker.stdout is not None
    rest = b""
    async for data in worker.stdout:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            group, what, number, title = line.decode().split("\t")
            if what == "holds":
                screen.say(f"mailer {worker.pid} holds {title!r} (no. {number}): killed with SIGKILL")
                tally.taken_over["mailer"] += 1
                worker.send_signal(signal.SIGKILL)  # what it said before is still read
            elif what == "fails":
                tally.retried[group] += 1
                screen.say(f"{group} {worker.pid} fails on {title!r} (no. {number}): it will be retried")
            elif int(number) not in tally.handled[group]:
                tally.handled[group].add(int(number))
                screen.advance(group)
                screen.say(f"{group} {worker.pid} handled {title!r} (no. {number})")


@asynccontextmanager
async def _worker(group: str, url: str) -> AsyncIterator[anyio.abc.Process]:
    """A process that runs a subscriber; it is gone at the end, whatever happens."""
    command = [sys.executable, "-m", "eventbus", "run", f"eventbus.cli.demo.club:{group}", "--log-level", "error"]
    process = await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"EVENTBUS_URL": url}
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
                with anyio.move_on_after(5):
                    await process.wait()
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _in_one_process(console: Console, books: int) -> int:
    """Without a server: the same in memory, where no process can be killed."""
    from dataclasses import replace

    from eventbus.cli.demo import club

    transport = connect("memory://", stream=club.STREAM)
    tally = Tally(books + 1)
    screen = Screen(console, books + 1)

    def step(group: str, what: str, event: club.BookRegistered) -> None:
        if what == "fails":
            tally.retried[group] += 1
            screen.say(f"{group} fails on {event.title!r} (no. {event.number}): it will be retried")
        else:
            tally.handled[group].add(event.number)
            screen.advance(group)
            screen.say(f"{group} handled {event.title!r} (no. {event.number})")

    club.step = step
    with screen():
        await _register(screen, transport, club.STREAM, books)
        async with anyio.create_task_group() as tasks:
            for subscriber in (club.mailer, club.catalog):
                await tasks.start(replace(subscriber, transport=transport).run)
            with anyio.move_on_after(WITHIN):
                while any([await transport.backlog(club.STREAM, group) for group in GROUPS]):
                    await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
    for group in GROUPS:
        tally.buried[group] = len(await transport.dead_letters(club.STREAM, group))

    return _table(console, tally)


def _table(console: Console, tally: Tally) -> int:
    table = Table()
    for name in ("group", "published", "acked", "buried", "left", "retried", "taken over"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in GROUPS:
        table.add_row(
            group,
            *map(str, (
                tally.published, len(tally.handled[group]), tally.buried[group], tally.pending[group], tally.retried[group],
                tally.taken_over[group],
            )),
        )  # fmt: skip
    console.print(table)
    if tally.adds_up():
        console.print("published = acked + buried in each group: nothing was lost, and nothing is left")
        return 0
    console.print("published is not acked + buried: the demo FAILED")

    return EXIT_FAILED
