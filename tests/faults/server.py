"""A server that is killed, stopped, robbed of its last half second, filled, and told another time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventbus.embedded import EmbeddedServer, find_executable

CLOCK_SOURCE = Path(__file__).with_name("clock.c")
TAIL = 8 * 1024 * 1024
"""Bytes at the end of a file in which the last transaction begins."""


class Server:
    """A server of our own with an append-only file. Its data is in a directory that outlives it."""

    def __init__(
        self,
        directory: Path,
        *,
        executable: Path | None = None,
        fsync: str = "everysec",
        clock: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        found = executable or _on_path() or find_executable()
        if found is None:
            raise FileNotFoundError("no redis-server or valkey-server on PATH")
        self.fsync = fsync
        self._directory = directory
        self._clock = directory / "clock"
        self._server = EmbeddedServer(
            directory / "data",
            executable=os.fspath(self._with_clock(found) if clock else found),
            options=["--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0", *options],
        )
        self._frozen = False

    async def start(self) -> None:
        """Begin, or begin again with what the file holds, mended as a server is to be started after its machine went down."""
        for path in self.files():
            mend(path)
        await asyncio.to_thread(self._server.start)

    async def stop(self) -> None:
        self.thaw()
        await asyncio.to_thread(self._server.stop)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def version(self) -> str:
        return self._server.version_text

    def client(self) -> Any:
        """A client that asks once."""
        return redis.asyncio.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0))

    async def kill(self) -> None:
        """kill -9; returns when it is gone."""
        os.kill(self._server.pid, signal.SIGKILL)
        while self._server.running:
            await asyncio.sleep(0.002)

    async def compact(self) -> None:
        """Write its file anew, as servers do by themselves when it has doubled; returns when the old one is gone."""
        async with self.client() as client:
            await client.bgrewriteaof()
            while (found := await client.info("persistence"))["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"]:
                await asyncio.sleep(0.01)
        while sum(1 for _ in self._paths()) > 2:
            await asyncio.sleep(0.01)

    def cut_to(self, sizes: Mapping[Path, int]) -> None:
        """Let its files be as they were."""
        for path, size in sizes.items():
            os.truncate(path, size)

    async def follow(self, url: str) -> None:
        """Be a replica of the server there; returns when it has what that had."""
        at = urlsplit(url)
        async with self.client() as client:
            await client.execute_command("REPLICAOF", at.hostname, str(at.port))
            while (await client.info("replication"))["master_link_status"] != "up":
                await asyncio.sleep(0.01)

    async def promote(self) -> None:
        """Be a replica no more."""
        async with self.client() as client:
            await client.execute_command("REPLICAOF", "NO", "ONE")

    def freeze(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            os.kill(self._server.pid, signal.SIGCONT)
            self._frozen = False

    def set_clock(self, offset: float) -> None:
        """Move its wall clock to so many seconds from ours."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", offset))

    def files(self) -> dict[Path, int]:
        """The append-only files and their sizes. There is a folder of them since Redis 7, before that a single one."""
        return {path: path.stat().st_size for path in self._paths()}

    def _paths(self) -> Iterator[Path]:
        for path in (self._directory / "data").glob("**/appendonly.aof*"):
            if path.is_file() and path.suffix != ".manifest":
                yield path

    def _with_clock(self, executable: Path) -> Path:
        library = self._directory / "clock.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError("no C compiler on PATH: the server's clock cannot be moved")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK_SOURCE, "-ldl"], check=True)
        self._clock.write_bytes(struct.pack("d", 0.0))
        script = self._directory / "server"
        script.write_text(f'#!/bin/sh\nFAULTS_CLOCK={self._clock} LD_PRELOAD={library} exec {executable} "$@"\n')
        script.chmod(0o700)

        return script


def mend(path: Path) -> None:
    """Cut off a transaction that is not whole, as ``redis-check-aof --fix`` does.

    A server does not do that by itself where the file ends in the middle of a command: it takes nothing of the transaction, but leaves what
    was whole of it in the file, and makes that one transaction with what comes next when it loads the file again
    (https://github.com/valkey-io/valkey/pull/4342).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        tail = file.read()
    begun = tail.rfind(b"*1\r\n$5\r\nMULTI\r\n")
    if begun > tail.rfind(b"*1\r\n$4\r\nEXEC\r\n"):
        os.truncate(path, size - len(tail) + begun)


def _on_path() -> Path | None:
    found = shutil.which("redis-server") or shutil.which("valkey-server")

    return None if found is None else Path(found)
