"""The course of the demo: books are registered, two groups handle what was published, things go wrong, and in the end it adds up."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.abc

from eventbus.cli.demo import club
from eventbus.cli.demo.ledger import Ledger
from eventbus.cli.demo.screen import Screen
from eventbus.cli.demo.workers import Worker, workers
from eventbus.cli.endings import Code, Failure
from eventbus.cli.logs import Json
from eventbus.cli.servers import reach
from eventbus.cli.signals import two_signals
from eventbus.connect import connect, hide_password
from eventbus.embedded import EmbeddedServer
from eventbus.envelope import Envelope, new_id
from eventbus.errors import ConfigurationError, TransportError
from eventbus.memory import Clock, MemoryTransport
from eventbus.transport import Subscribe, Transport

GIVES_UP_AFTER = 60.0
"""Seconds; it takes about three."""
LOOK_AGAIN = 0.1
"""Seconds between two looks at what is left."""
"""What a message looks like that no consumer can read."""


def show(url: str | None, books: int) -> int:
    """Run the demo, on the server named or on one of its own; the exit code."""
    screen = Screen()
    scheme = "embedded" if url is None else urlsplit(url).scheme
    if scheme == "memory":
        return anyio.run(_until_signal, screen, _Demo(screen, books).in_memory)
    if scheme != "embedded":
        assert url is not None
        screen.say("server", f"{hide_password(url)}, under a stream name of our own")
        return anyio.run(_until_signal, screen, _Demo(screen, books, f"demo-{secrets.token_hex(4)}", url).in_processes)
    try:
        server = EmbeddedServer(_path(url)).start()
    except ConfigurationError as exc:
        if url is not None:
            raise
        screen.say("server", f"none: {exc}")
        screen.say("server", "so this runs on memory://, in one process")
        return anyio.run(_until_signal, screen, _Demo(screen, books).in_memory)
    with server:
        screen.say("server", f"{server.version_text}, our own, on a unix socket")
        return anyio.run(_until_signal, screen, _Demo(screen, books, "reading-club", server.url).in_processes)


async def _until_signal(screen: Screen, run: Any) -> int:
    """Run it; the first SIGINT or SIGTERM ends it with everything cleaned up, a second one at once."""
    interrupted = ""

    def stop(signal: str) -> None:
        nonlocal interrupted
        interrupted = signal
        scope.cancel()

    with anyio.CancelScope() as scope, two_signals(stop, lambda signal: f"{signal}: ended at once"):
        code: int = await run()
        return code
    screen.say("demo", f"{interrupted}: ended, and everything was cleaned up")

    return Code.FORCED
