"""Worker processes that cannot outlive the demo: each runs `eventbus run`, and tells what it does in the log on its stderr."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import click
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

import eventbus
from eventbus.cli.commands.run import command as run
from eventbus.subscriber import Subscriber

ENDS_WITHIN = 5.0
"""Seconds that workers have to end when they are told to; then they are killed."""
LONGEST_LINE = 1 << 20


class Worker:
    """One process of a group."""

    def __init__(self, group: str, process: anyio.abc.Process) -> None:
        self.group = group
        self.pid: int = process.pid
        self.killed: bool = False
        self.last_words: str = ""
        """What it said that was no log line: an error that ended it."""
        self._process = process

    @property
    def name(self) -> str:
        return f"{self.group} {self.pid}"

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL: it does not notice, and settles nothing."""
        self.killed = True
        self._process.kill()

    async def log(self) -> AsyncIterator[Mapping[str, Any]]:
        """Its log records, as they come; it ends with the process."""
        assert self._process.stderr is not None
        lines = BufferedByteReceiveStream(self._process.stderr)
        while True:
            try:
                line = await lines.receive_until(b"\n", LONGEST_LINE)
            except (anyio.IncompleteRead, anyio.EndOfStream):
                await self._process.wait()
                return
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                self.last_words = line.decode(errors="replace").strip()


@asynccontextmanager
async def workers(groups: list[str], url: str, environment: Mapping[str, str]) -> AsyncGenerator[list[Worker]]:
    """A process for each of the groups, in order; all of them are gone at the end, whatever happens.

    They are told to end (SIGTERM) and have some seconds for it. If this process is killed they notice that the pipe to their stdin is
    closed, and end too. The URL goes through the environment, where other users do not see its password.
    """
    options = {option.envvar for option in run.params if isinstance(option, click.Option)}  # not meant for these
    inherited = {name: value for name, value in os.environ.items() if name not in options}
    started: list[Worker] = []
    processes: list[anyio.abc.Process] = []
    try:
        for group in groups:
            process = await anyio.open_process(
                [sys.executable, "-m", "eventbus", "run", f"{__name__}:{group}", "--log-format", "json"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=Path(eventbus.__path__[0]).parent,
                env={**inherited, **environment, "EVENTBUS_URL": url},
                start_new_session=True,  # Ctrl-C in our terminal is for us
            )
            processes.append(process)
            started.append(Worker(group, process))
        yield started
    finally:
        with anyio.CancelScope(shield=True):
            await _end(processes)


def mailer() -> Subscriber:
    """What a worker of the group runs."""
    _end_with_parent()
    from eventbus.cli.demo import club

    return club.mailer()


def catalog() -> Subscriber:
    _end_with_parent()
    from eventbus.cli.demo import club

    return club.catalog()


async def _end(processes: list[anyio.abc.Process]) -> None:
    alive = [process for process in processes if process.returncode is None]
    for process in alive:
        process.terminate()
    with anyio.move_on_after(ENDS_WITHIN):
        for process in alive:
            await process.wait()
    for process in alive:
        if process.returncode is None:
            process.kill()
    for process in processes:
        await process.wait()
        await process.aclose()


def _end_with_parent() -> None:
    """Watch the pipe that the parent holds: it closes when the parent is gone, however it ended."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
