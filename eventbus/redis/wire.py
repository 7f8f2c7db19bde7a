"""The hot path of a connection that redis-py has opened: packed commands out, replies in, and nothing in between.

redis-py connects, encrypts and logs in. After that its way of a reply (a stream reader, a task that is woken, a timer for each call) costs
about as much as all the rest of a call, so the transport of asyncio's is given another protocol: this one, around hiredis' parser.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import hiredis
import redis.exceptions
from redis.asyncio.connection import AbstractConnection

_MORE: Final = object()
"""What the parser says when there is no whole reply yet."""
_reader: Any = hiredis.Reader  # which takes more than its stub says


class Wire(asyncio.Protocol):
    """Asks one call after another; the owner waits for the replies of one before it makes the next.

    A call that fails leaves the connection useless: close it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, early: bytes = b"") -> None:
        self._transport = transport
        self._loop = loop
        self._parser = _reader(replyError=_error, notEnoughData=_MORE)
        self._parser.feed(early)
        self._replies: list[Any] = []
        self._wanted = 0
        self._answer: asyncio.Future[list[Any]] | None = None
        self._timeout = self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lost: Exception | None = None

    @classmethod
    def over(cls, connection: AbstractConnection) -> Wire | None:
        """Take over a connection that is open and idle; None for one without a transport of asyncio's, as in fakeredis."""
        # redis-py and asyncio do not show these; the one is pinned below its next major version, and what is not there is not used.
        transport = getattr(getattr(connection, "_writer", None), "transport", None)
        reader = getattr(connection, "_reader", None)
        early = getattr(reader, "_buffer", None)
        if (
            not isinstance(reader, asyncio.StreamReader)
            or not isinstance(transport, asyncio.Transport)
            or not isinstance(early, bytearray)
        ):
            return None
        wire = cls(transport, asyncio.get_running_loop(), bytes(early))
        transport.set_protocol(wire)
        transport.resume_reading()
        if transport.is_closing() or reader.at_eof():  # the protocol before was told, and we will not be
            wire.connection_lost(None)

        return wire

    async def ask(self, data: bytes, replies: int, timeout: float) -> list[Any]:
        """Write the data; so many replies, a server's error as an exception in its place.

        `TimeoutError` when they are not there and nothing has come for that time: over a slow line a large one takes longer. `OSError`
        when the connection is lost, or what comes makes no sense.
        """
        if self._lost is not None:
            raise self._lost
        loop = self._loop
        self._replies, self._wanted = [], replies
        answer: asyncio.Future[list[Any]] = loop.create_future()
        self._answer = answer
        self._timeout = timeout
        self._deadline = deadline = loop.time() + timeout
        if self._timer is None or self._timer.when() > deadline:  # else it comes earlier, and is set again then
            self._set_timer()
        self._transport.write(data)
        try:
            return await answer
        finally:
            self._answer = None

    def close(self) -> None:
        """Ask no more: a call that is under way ends with `OSError`, whatever has not been sent yet is not sent."""
        self._stop_timer()
        if self._answer is not None:
            self._fail(ConnectionAbortedError("it was closed"))
            self._transport.abort()

    # ------------------------------------------------------------------------------------------- what the transport calls

    def data_received(self, data: bytes) -> None:
        parser, replies = self._parser, self._replies
        parser.feed(data)
        try:
            while (reply := parser.gets()) is not _MORE:
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except hiredis.HiredisError as exc:
            self._garbled(str(exc))
            return
        if len(replies) < self._wanted:
            self._deadline = self._loop.time() + self._timeout  # the timer comes at the one before, and is set again then
            return
        if len(replies) > self._wanted:
            self._garbled("an answer that nobody asked for")
        elif self._answer is not None and not self._answer.done():
            self._replies, self._wanted = [], 0
            self._answer.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("it was closed by the server"))

    def _garbled(self, why: str) -> None:
        """From here on nobody knows which reply belongs to which command."""
        self._fail(ConnectionAbortedError(why))
        self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # --------------------------------------------------------------------------------------------------------------- time

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._stop_timer()
        self._timer = self._loop.call_at(self._deadline, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        """One timer for many calls: most of them are answered long before it comes."""
        self._timer = None
        if self._answer is None or self._answer.done():
            return
        if self._loop.time() < self._deadline:
            self._set_timer()
        else:
            self._fail(TimeoutError())


def _error(text: str) -> Exception:
    """A server's error, with its whole text."""
    kind = redis.exceptions.NoScriptError if text.startswith("NOSCRIPT") else redis.exceptions.ResponseError

    return kind(text)
