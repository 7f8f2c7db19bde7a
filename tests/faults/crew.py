"""The processes of the harness, as seen from the harness."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec

from tests.faults.forker import Job
from tests.processes import ROOT, environment


class Worker:
    """One process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        """Its exit code, or minus the signal that ended it."""
        self.ended = asyncio.Event()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.status is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def handles(self, number: int) -> bool:
        """Whether it has a handler for this signal by now. Known on Linux; true elsewhere, and of a process that has ended."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return True
        caught = next((line for line in lines if line.startswith("SigCgt:")), "SigCgt: 0")

        return self.status is not None or bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class Crew:
    """Starts processes. Made by `assembled`; whatever runs at its end is killed."""

    def __init__(self, forker: asyncio.subprocess.Process) -> None:
        self._forker = forker
        self._asked: deque[asyncio.Future[Worker]] = deque()
        self._workers: dict[int, Worker] = {}

    @classmethod
    @asynccontextmanager
    async def assembled(cls) -> AsyncGenerator[Crew]:
        forker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.forker",
            cwd=ROOT, env=environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        crew = cls(forker)
        listening = asyncio.ensure_future(crew._listen())
        try:
            yield crew
        finally:
            with anyio.CancelScope(shield=True):
                assert forker.stdin is not None
                forker.stdin.close()
                await forker.wait()
                await listening

    async def start(self, job: Job) -> Worker:
        worker: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._asked.append(worker)
        assert self._forker.stdin is not None
        self._forker.stdin.write(msgspec.json.encode(job) + b"\n")

        return await worker

    async def _listen(self) -> None:
        assert self._forker.stdout is not None
        async for line in self._forker.stdout:
            match line.decode().split():
                case ["started", pid]:
                    worker = self._workers[int(pid)] = Worker(int(pid))
                    if not (asked := self._asked.popleft()).done():
                        asked.set_result(worker)
                case ["ended", pid, status]:
                    worker = self._workers.pop(int(pid))
                    worker.status = int(status)
                    worker.ended.set()
                case _:
                    raise RuntimeError(f"the forker said {line!r}")
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(RuntimeError("the forker has ended; its last words are above"))
        for worker in self._workers.values():
            worker.status = -signal.SIGKILL
            worker.ended.set()
