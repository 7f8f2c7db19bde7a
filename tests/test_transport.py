"""The contract of `eventbus.transport`, over every transport that there is: memory, fakeredis, and each server on this machine."""

from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
import redis

from eventbus import MemoryTransport
from eventbus.embedded import EmbeddedServer
from eventbus.redis import RedisTransport
from eventbus.testing import TransportContract
from eventbus.testing.fake_redis import fake_client
from eventbus.testing.servers import LiveServer, find_servers, live_server
from tests.redis.rights import CONSUMER, PUBLISHER, rights_of


class TestMemory(TransportContract):
    """`MemoryTransport`, under asyncio and trio. Its time is moved, so nothing here waits."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[MemoryTransport]:
        async with MemoryTransport() as transport:
            yield transport

    async def pass_time(self, transport: MemoryTransport, seconds: float) -> None:
        transport.clock.advance(seconds)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    def time(self, transport: MemoryTransport) -> float:
        return transport.clock.time()


class OverRedis(TransportContract):
    """What the runs over Redis have in common: asyncio, real time, and a consumer that can be made to stand still."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def freeze(self, subscription: Any) -> None:
        async def nothing() -> None:
            pass

        subscription._renew = nothing

    async def thaw(self, subscription: Any) -> None:
        del subscription._renew
        subscription._renew_soon()


class TestFakeRedis(OverRedis):
    """The real adapter on fakeredis: no server, and no time saved either. Its scripts run in this process, and are slow on a busy machine."""

    lease = 1.0

    @pytest.fixture
    async def transport(self) -> AsyncIterator[RedisTransport]:
        async with RedisTransport(fake_client()) as transport:
            yield transport


SERVERS = find_servers()


@cache
def version_of(executable: Path) -> str:
    return EmbeddedServer(executable=str(executable)).version_text.replace(" ", "-")


@pytest.fixture(scope="module", params=SERVERS, ids=version_of)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    executable: Path = request.param
    with live_server(executable=executable) as server:
        yield server


class TestServers(OverRedis):
    """The real adapter on real servers."""

    @pytest.fixture
    async def transport(self, server: LiveServer) -> AsyncIterator[RedisTransport]:
        async with RedisTransport(server.url) as transport:
            yield transport
        with redis.Redis.from_url(server.url) as client:
            client.flushall()


@pytest.fixture(scope="module")
def login() -> Iterator[str]:
    """The address for a user with the documented rights, on keys of any name."""
    words = [word for user in (PUBLISHER, CONSUMER) for word in rights_of(user) if not word.startswith("~")]
    with live_server() as server, redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "club", *words, "~*")
        yield server.url.replace("unix://", "unix://club:password@") + "&protocol=2"
        refused = {entry["object"] for entry in client.acl_log()}
    assert refused <= {"client|setinfo", "client"}, "redis-py tells its name, and goes on when it may not"


@pytest.mark.skipif(not SERVERS, reason="no Valkey or Redis server found")
class TestRights(OverRedis):
    """The real adapter for a user that may do what docs/operations.md says, and under RESP2."""

    @pytest.fixture
    async def transport(self, login: str) -> AsyncIterator[RedisTransport]:
        async with RedisTransport(login) as transport:
            yield transport
