"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

from eventbus.cli.endings import Code


@contextmanager
def two_signals(first: Callable[[str], None], last_words: Callable[[str], str]) -> Generator[None]:
    """In this block the first signal calls `first` with its name, in the event loop; a second one ends the process, exit code 130.

    The handlers are those of the operating system and not the event loop's: a handler of the user that blocks the loop, which is
    when a second Ctrl-C is wanted most, does not keep them from being called. `last_words` makes the line to leave with.

    After a first signal they stay, for the process is about to end: a second one in its last moments would meet Python's own handlers,
    and end it with a traceback or as if nobody had expected it.
    """
    loop = asyncio.get_running_loop()
    seen = 0

    def received(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        name = signal.Signals(number).name
        if seen == 1:
            loop.call_soon_threadsafe(first, name)
            return
        if seen == 2:
            # Not by way of a stream: we may have interrupted the very write that holds its lock.
            with suppress(OSError):
                os.write(2, f"{last_words(name)}\n".encode())
            with suppress(Exception):
                sys.stdout.flush()
        os._exit(Code.FORCED)

    before = {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if seen == 0:
            for number, handler in before.items():
                signal.signal(number, handler)
