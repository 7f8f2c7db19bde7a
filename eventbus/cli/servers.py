"""Where a transport's server is, and whether it answers: asked once, before anything depends on it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from eventbus.cli.endings import Code, Failure
from eventbus.errors import TransportError, Unavailable
from eventbus.memory import MemoryTransport
from eventbus.transport import Transport

logger: Final = logging.getLogger("eventbus.cli")

ANSWER_WITHIN = 2.5
"""Seconds after which a server that says nothing counts as unreachable."""
ASK_AGAIN = 0.25
"""Seconds between two tries while waiting for it."""


def address(transport: Transport) -> str:
    """Where it is, without secrets."""
    if isinstance(transport, MemoryTransport):
        return "memory:// (seen by this process alone)"

    return str(getattr(transport, "endpoint", None) or repr(transport))


ADVICE = "start a server there, name another with --url or EVENTBUS_URL, or wait for it with --wait SECONDS"


async def reach(transport: Transport, stream: str, group: str, *, wait: float = 0.0, advice: str = ADVICE) -> None:
    """Return when the server answers.

    `Failure` with `Code.UNREACHABLE`, and the advice, if it does not, tried for `wait` seconds; also if it does not let us in. With
    `Code.FAILED` if it does, and the stream is none.
    """

    async def ask() -> None:
        try:
            with anyio.fail_after(ANSWER_WITHIN):
                await transport.backlog(stream, group)
        except (Unavailable, TimeoutError) as exc:
            raise Away(str(exc).rstrip(".") or f"no answer from {address(transport)} within {ANSWER_WITHIN:g} s") from exc
        except TransportError as exc:
            raise Failure(str(exc), Code.FAILED if "WRONGTYPE" in str(exc) else Code.UNREACHABLE) from exc

    await answered(ask, wait, f"; {advice}")


class Away(Exception):
    """What was asked does not answer, and may yet."""


async def answered(ask: Callable[[], Awaitable[None]], wait: float, advice: str = "") -> None:
    """Ask until it is not `Away`. After `wait` seconds `Failure` with `Code.UNREACHABLE`: what was away, and the advice."""
    deadline = anyio.current_time() + wait
    said = False
    while True:
        try:
            return await ask()
        except Away as exc:
            if anyio.current_time() >= deadline:
                waited = f" (waited {wait:g} s)" if wait else ""
                raise Failure(f"{exc}{waited}{advice}", Code.UNREACHABLE) from exc.__cause__
            if not said:
                logger.warning("waiting up to %g s: %s", wait, exc)
                said = True
        await anyio.sleep(ASK_AGAIN)
