"""A Redis that fakeredis pretends to be, good enough for `RedisTransport`.

fakeredis 2.40 is faithful in what it stores, and in scripts. Where it waits it is not, and a consumer that waits for entries would spin,
or wait for ever beside them:

* ``XREADGROUP … BLOCK n COUNT m`` on an empty stream answers at once, and nothing wakes it;
* ``XREADGROUP … BLOCK n`` without COUNT delivers what is there to nobody, and waits;
* ``XREADGROUP … BLOCK n STREAMS s 0``, which asks for what is pending and never waits on a server, waits;
* a read whose connection is closed goes on waiting, and takes the next entry.

A connection of the class below does these four right, and changes nothing for anybody else's. What stays wrong: a group or a stream that
disappears under a waiting read is not noticed, and INFO and CONFIG GET are missing. ``FakeAsyncRedis(legacy_responses=False)`` ignores its
argument, so the client is built around a pool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fakeredis import FakeAsyncRedisConnection, FakeServer

from eventbus.redis.clients import AsyncClient, client_over


def fake_client(server: FakeServer | None = None) -> AsyncClient:
    """A client of a server that is in this process: a new and empty one, unless one is given."""
    return client_over(FakeConnection, server=server or FakeServer())


class FakeConnection(FakeAsyncRedisConnection):
    """A connection to a fake server whose blocking reads wait as they should."""

    async def _connect(self) -> None:
        await super()._connect()
        socket: Any = self._sock
        blocking = socket._blocking

        def wait(timeout: float | None, read: Callable[[bool], Any], shape: Callable[[Any], Any] | None = None) -> Any:
            if isinstance(read, functools.partial) and getattr(read.func, "__name__", "") == "_xreadgroup":
                read = functools.partial(_read, read)
            return blocking(timeout, read, shape)

        socket._blocking = wait

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        socket: Any = self._sock
        await super().disconnect(nowait, *args, **kwargs)
        if socket is not None and socket._blocked:
            with socket._server.lock:
                socket._unblock_reason = b"timeout"
                socket._db.wake_all()


def _read(xreadgroup: Callable[[bool], Any], first: bool) -> Any:
    """A read that does not treat its first look otherwise, and that has found nothing when there is nothing."""
    return xreadgroup(False) or None
