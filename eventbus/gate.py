"""One backoff for every failure of a connection: waits longer each time, with jitter, and says so at a bounded rate."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from typing import Final

from eventbus.errors import TransportError, excerpt

FIRST: Final = 0.1
LONGEST: Final = 10.0
SAID_EVERY: Final = 10.0
"""Seconds between two log lines about the same trouble."""


class Gate:
    """Stands before every new attempt after a failure, for all that fails: who comes while it is closed waits until it opens, too."""

    def __init__(self, title: str, logger: logging.Logger) -> None:
        self.title = title
        self.failures: int = 0
        """Since the last success."""
        self.reconnects: int = 0
        """Times that it went well again after a failure."""
        self._logger = logger
        self._said = float("-inf")
        self._since = 0.0
        self._opens = 0.0

    async def wait(
        self, error: Exception, stopped: asyncio.Event | None = None, *, quiet: bool = False, at_most: float = LONGEST
    ) -> None:
        """Note a failure, and wait before the next attempt; not when we are to stop. `quiet`: it is nothing to be told.

        The wait is as long as the trouble has lasted, or 0.1 s if that is longer; half as much or half as much again; 10 s at the most, or
        `at_most`. So whatever was away for a moment is found again after a moment. Trouble is new when there was none for 10 s after the
        gate opened: not everybody who fails here has something to try again at once, and says that it went well.
        """
        now = time.monotonic()
        if self.failures and now - self._opens > LONGEST:
            self.passed(at=self._opens)
        self.failures += 1
        if self.failures == 1:
            self._since = now
        if not quiet and now - self._said >= SAID_EVERY:
            self._said = now
            text = str(error) if isinstance(error, TransportError) else excerpt(str(error))  # ours are in order already
            self._logger.warning(
                "%s: %s; trying again (%d failures in %.0f s)", self.title, text, self.failures, now - self._since
            )
        if now >= self._opens:
            self._opens = now + min(LONGEST, max(FIRST, now - self._since) * random.uniform(0.5, 1.5))
        seconds = min(at_most, max(FIRST / 2, self._opens - now))
        if stopped is None:
            await asyncio.sleep(seconds)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), seconds)

    def passed(self, *, at: float | None = None) -> None:
        """It went well; at that moment, if it is noticed only now."""
        if self.failures:
            self.reconnects += 1
            if self._said > float("-inf"):
                took = (time.monotonic() if at is None else at) - self._since
                self._logger.info("%s: going on after %d failures in %.1f s", self.title, self.failures, took)
            self.failures = 0
            self._said = float("-inf")
