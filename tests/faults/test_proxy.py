"""The line that can be cut: what users of `eventbus.testing.faults` are promised."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventbus.errors import ConfigurationError
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer


@pytest.fixture
async def line(redis_server: LiveServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.url) as line:
        yield line


@pytest.fixture
async def client(line: FaultProxy) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(line.url, socket_timeout=0.3, retry=Retry(NoBackoff(), 0))
    async with client:
        await client.ping()
        yield client


@pytest.fixture
async def direct(redis_server: LiveServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        yield client
        await client.delete("n")


def test_a_server_that_it_cannot_stand_before_is_a_mistake() -> None:
    """At once, and without the password."""
    with pytest.raises(ConfigurationError, match=r"FaultProxy\('rediss://club:\*+@host'\): it reads what passes"):
        FaultProxy("rediss://club:secret@host")


LOST = (redis.ConnectionError, redis.TimeoutError)


@pytest.mark.parametrize("after", [False, True])
async def test_a_cut_before_or_after_a_command(
    line: FaultProxy, client: redis.asyncio.Redis, direct: redis.asyncio.Redis, after: bool
) -> None:
    """The client sees the same either way; the server has carried it out or not."""
    line.cut("incr", after=after, skip=1)
    await client.execute_command("INCR", "n")
    with pytest.raises(LOST):
        await client.execute_command("INCR", "n")

    assert (1, 0) == (line.faults, line.pending_cuts)
    assert await client.execute_command("INCR", "n") == 2 + after
    assert int(await direct.get("n")) == 2 + after


@pytest.mark.parametrize("keep", [0, 1, 20])
async def test_a_cut_in_the_middle_of_a_command(line: FaultProxy, client: redis.asyncio.Redis, keep: int) -> None:
    """Half a command is none."""
    line.cut("incr", keep=keep)
    with pytest.raises(LOST):
        await client.execute_command("INCR", "n")

    assert 1 == await client.execute_command("INCR", "n")
    await client.delete("n")


async def test_a_cut_in_the_middle_of_a_reply(line: FaultProxy, direct: redis.asyncio.Redis) -> None:
    """What was cut off does not come."""
    await direct.set("n", "0123456789")
    line.cut("get", after=True, keep=7)
    host, port = line.url.removeprefix("redis://").partition("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"*2\r\n$3\r\nGET\r\n$1\r\nn\r\n")

    assert b"$10\r\n01" == await reader.read(100)
    with pytest.raises(ConnectionResetError):
        await reader.read(100)
    writer.close()


@pytest.mark.parametrize("after", [False, True])
async def test_silence_is_no_reset(
    line: FaultProxy, client: redis.asyncio.Redis, direct: redis.asyncio.Redis, after: bool
) -> None:
    """The connection stays open and says nothing more: only a deadline notices."""
    line.silence("incr", after=after)
    with pytest.raises(redis.TimeoutError):
        await client.execute_command("INCR", "n")

    assert int(await direct.get("n") or 0) == after
    assert await client.execute_command("INCR", "n") == 1 + after


async def test_a_command_is_held_back(line: FaultProxy, client: redis.asyncio.Redis) -> None:
    """Nothing is lost by it."""
    loop = asyncio.get_running_loop()
    line.hold("incr", 0.1)
    began = loop.time()

    assert 1 == await client.execute_command("INCR", "n")
    assert loop.time() - began >= 0.1
    await client.delete("n")


async def test_a_line_is_healed(line: FaultProxy, client: redis.asyncio.Redis) -> None:
    """Whatever was asked for."""
    line.cut("ping", times=100)
    line.refusing, line.delay = True, 100.0
    line.stall()
    line.heal()

    assert await client.ping()
    assert (0, 0) == (line.pending_cuts, line.faults)


async def test_pipelined_commands_are_seen_one_by_one(line: FaultProxy, client: redis.asyncio.Redis) -> None:
    """What lies before the cut is carried out."""
    line.cut("incrby")
    pipe = client.pipeline(transaction=False)
    for _ in range(5):
        pipe.execute_command("INCR", "n")
    pipe.incrby("n", 100)
    with pytest.raises(LOST):
        await pipe.execute()

    assert (5, 1, b"5") == (line.commands["incr"], line.commands["incrby"], await client.get("n"))
    await client.delete("n")
