"""Notices that the event loop stands still, and says which handler does it.

A handler that blocks (``time.sleep``, a synchronous client, a long computation) stops everything in its process: leases are not renewed, and
what is in hand is taken over by others. Nothing on the loop can say so while it lasts; a thread beside it can.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import anyio

logger: Final = logging.getLogger("eventbus")

_frames = vars(sys)["_current_frames"]
"""What each thread executes (documented, for debuggers, under its underscore: `sys._current_frames`)."""

AGAIN_AFTER: Final = 0.5
"""Seconds at the most until a loop that seems to stand still is looked at again."""

_PACKAGE = str(Path(__file__).parent)


class Watchdog:
    """Watches the event loop of the task that makes it. `beat` is to run on that loop, `watching` around it."""

    def __init__(self, title: str, limit: float) -> None:
        self._title = title
        self._limit = limit
        self._thread = threading.get_ident()
        self._alive = time.monotonic()
        self._ended = threading.Event()

    async def beat(self) -> None:
        """Show that the loop runs, until cancelled."""
        while True:
            self._alive = time.monotonic()
            await anyio.sleep(self._limit / 4)

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Look from a thread, for as long as the block lasts."""
        watcher = threading.Thread(target=self._watch, name="eventbus-watchdog", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self) -> None:
        """Reports what two looks have seen: a process that was stopped, or had no processor, has a loop that goes on after the first."""
        suspected = reported = 0.0
        while not self._ended.wait(min(AGAIN_AFTER, self._limit / 4) if suspected else self._limit / 4):
            alive = self._alive
            still = time.monotonic() - alive
            if still > self._limit and alive == suspected:
                reported, suspected = alive, 0.0
                logger.error(
                    "%s: the event loop has stood still for %.1f s, longer than the lease, in %s: run what blocks in a thread "
                    "(a `def` handler is), or leases are lost",
                    self._title, still, culprit(_frames().get(self._thread)),
                )  # fmt: skip
            else:
                suspected = alive if still > self._limit and alive != reported else 0.0


def culprit(frame: FrameType | None) -> str:
    """The outermost function that the bus called, as a stack shows it: ``shop.handlers.welcome (shop/handlers.py:12)``."""
    inside: FrameType | None = None
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            if inside is not None:
                break
        else:
            inside = frame
        frame = frame.f_back
    if inside is None:
        return "code that cannot be seen"
    module = inside.f_globals.get("__name__", "?")

    return f"{module}.{inside.f_code.co_qualname} ({inside.f_code.co_filename}:{inside.f_lineno})"
