"""Processes of a run. They are forked from one that has everything imported: a start takes milliseconds, so lives are cheap."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.context
import signal
from collections.abc import Callable, Coroutine
from typing import Any

_PRELOADED = ["tests.sqlalchemy.sums", "tests.sqlalchemy.relays", "tests.sqlalchemy.disasters"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


class Life:
    """One process, and what it does until it is killed."""

    def __init__(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        self._process = _context.Process(target=_live, args=(work, arguments), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None

        return self._process.pid

    def kill(self) -> None:
        """kill -9; returns when it is gone. One that has ended by itself is an error: nobody told it to."""
        self._process.kill()
        self.die()

    def die(self, seconds: float = 30.0) -> None:
        """Wait for its death, and see that it was one."""
        self._process.join(seconds)
        if self._process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a process was to be killed, and its exit code is {self._process.exitcode}")


def _live(work: Callable[..., Coroutine[Any, Any, None]], arguments: tuple[Any, ...]) -> None:
    logging.disable()  # troubles are what it is there for
    asyncio.run(work(*arguments))
