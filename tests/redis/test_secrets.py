"""A password in the address of a server is seen nowhere: in no log down to debug, no error with all that caused it, and no repr."""

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork
from eventbus.errors import ConfigurationError, EventBusError
from eventbus.redis import RedisSession, RedisTransport
from eventbus.sqlalchemy import Relay
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer

CANARY = "c4n4ry!pass"
URLS = {
    "nobody listens": "redis://club:{}@127.0.0.1:1/0",
    "no such host": "redis://club:{}@host.invalid:6379/0",
    "no such socket": "unix://club:{}@/nowhere/redis.sock",
    "TLS, and nobody listens": "rediss://club:{}@127.0.0.1:1/0",
    "an option that is none": "redis://club:{}@127.0.0.1:1/0?nonsense=1",
    "an option out of range": "redis://club:{}@127.0.0.1:1/0?protocol=99",
    "a database that is none": "redis://club:{}@127.0.0.1:1/0?db=nonsense",
    "a port that is none": "redis://club:{}@127.0.0.1:nonsense/0",
    "a scheme that is none": "http://club:{}@127.0.0.1:1/0",
    "a password in the query": "redis://127.0.0.1:1/0?username=club&password={}",
}


class Tick(Event):
    metadata = Metadata(name="tick", published=True, stream="club")
    number: int


bus = MessageBus()


@bus.listen
async def tick(event: Tick) -> None:
    raise ValueError("never")


async def publish(transport: RedisTransport) -> None:
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Tick(number=1))
        await uow.commit()


async def subscribe(transport: RedisTransport) -> None:
    subscriber = Subscriber(bus=bus, transport=transport, streams=["club"], group="g", lease=0.5)
    with anyio.move_on_after(0.4):
        await subscriber.run()
    repr(subscriber)


async def look(transport: RedisTransport) -> None:
    for call in (transport.backlog, transport.dead_letters, transport.audit):
        with suppress(EventBusError):
            await call("club", "g")
    for one in (transport.groups, transport.trim):
        with suppress(EventBusError):
            await one("club")
    await transport.run_id()


async def use_a_session(transport: RedisTransport) -> None:
    session = RedisSession(transport)
    assert CANARY not in repr(session)
    session.set("{club}:title", "Dune")
    async with UnitOfWork(session, transport=transport) as uow:
        uow.emit(Tick(number=1))
        await uow.commit()


async def seen(caplog: pytest.LogCaptureFixture, url: str, use: Callable[[RedisTransport], Awaitable[None]]) -> str:
    """Everything that was said on the way."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    try:
        async with RedisTransport(url, stream="club", patience=0.1) as transport:
            told += [repr(transport), repr(transport.endpoint), str(transport.endpoint)]
            await use(transport)
    except Exception as exc:
        told += traceback.format_exception(exc)
        error: BaseException | None = exc
        while error is not None:
            told += [repr(error), str(error)]
            error = error.__cause__ or error.__context__

    return "\n".join([*told, caplog.text, *(repr(record.__dict__) for record in caplog.records)])


@pytest.mark.parametrize("use", [publish, subscribe, look, use_a_session])
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
async def test_nothing_tells_it_when_the_server_cannot_be_reached(
    caplog: pytest.LogCaptureFixture, url: str, use: Callable[[RedisTransport], Awaitable[None]]
) -> None:
    text = await seen(caplog, url.format(CANARY), use)

    assert text
    assert CANARY not in text


@pytest.fixture
async def line(redis_server: LiveServer, server: Any) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.url.replace("unix://", f"unix://club:{CANARY}@")) as proxy:
        yield proxy
    server("ACL", "DELUSER", "club")


@pytest.mark.parametrize("use", [publish, subscribe, look, use_a_session])
@pytest.mark.parametrize("trouble", ["wrong password", "no right", "another type", "no memory", "cut", "TLS to a plain server"])
async def test_nothing_tells_it_when_the_server_refuses(
    caplog: pytest.LogCaptureFixture,
    server: Any,
    line: FaultProxy,
    trouble: str,
    use: Callable[[RedisTransport], Awaitable[None]],
) -> None:
    url = line.url
    server("ACL", "SETUSER", "club", "on", f">{CANARY}", "~*", "+@all")
    if trouble == "wrong password":
        server("ACL", "SETUSER", "club", "resetpass", ">another")
    elif trouble == "no right":
        server("ACL", "SETUSER", "club", "-@all", "+hello", "+auth", "+client", "+select")
    elif trouble == "another type":
        server("SET", "club", "a string")
    elif trouble == "no memory":
        server.fill()
    elif trouble == "cut":
        for command in ("publish", "join", "xreadgroup", "backlog", "audit", "settle"):
            line.cut(command, times=3)
    else:
        url = url.replace("redis://", "rediss://")
    text = await seen(caplog, url, use)

    assert text
    assert CANARY not in text


@pytest.mark.parametrize(
    "make",
    [
        lambda url: UnitOfWork(transport=url),
        lambda url: Subscriber(bus=bus, transport=url, streams=["club"], group="g"),
        lambda url: Relay(create_async_engine("sqlite+aiosqlite://"), url),
        RedisSession,
        lambda url: MessageBus(cache=url),
        lambda url: Subscriber(bus=bus, transport=MemoryTransport(), streams=[url], group="g"),
    ],
)
def test_an_address_where_an_object_belongs_is_not_repeated(make: Callable[[str], Any]) -> None:
    """Not even its beginning: that has room for most passwords."""
    with pytest.raises(ConfigurationError) as caught:
        make(f"redis://:{CANARY}@h")

    assert CANARY[:4] not in str(caught.value)
