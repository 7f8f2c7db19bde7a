"""Users of the server that may do what docs/operations.md says, and nothing else."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventbus import Delivery, Event, MessageBus, Metadata, Reject, Subscriber, UnitOfWork, exponential
from eventbus.errors import PublishError, TransportError
from eventbus.redis import RedisTransport
from eventbus.testing import drain
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer
from eventbus.transport import Subscribe
from tests.processes import ROOT
from tests.redis.rights import CONSUMER, PUBLISHER, STREAM, commands_of, rights_of

CONNECTION = {"hello", "auth", "ping", "select", "client|setname", "eval", "evalsha"}
Login = Callable[..., str]


class Tick(Event):
    metadata = Metadata(name="tick", published=True)
    number: int


bus = MessageBus()


@bus.listen
async def tick(event: Tick, delivery: Delivery) -> None:
    if event.number == 1 and delivery.attempt == 1:
        raise ValueError("again")
    if event.number == 2:
        raise Reject("never")


@pytest.fixture
def login(redis_server: LiveServer, server: Any) -> Iterator[Login]:
    """Makes a user with the rights of these, and is the server's address for it. In the end nothing was refused."""
    server("ACL", "LOG", "RESET")

    def make(*users: str) -> str:
        server("ACL", "SETUSER", "club", *(word for user in users for word in rights_of(user)))

        return redis_server.url.replace("unix://", "unix://club:password@")

    yield make
    server("ACL", "DELUSER", "club")
    refused = {entry["object"] for entry in server.client.acl_log()}
    assert refused <= {"client|setinfo", "client"}, "redis-py tells its name, and goes on when it may not"


def commands_in(scripts: set[str]) -> set[str]:
    folder = ROOT / "eventbus" / "redis" / "scripts"

    return {
        command.lower() for name in scripts for command in re.findall(r"\bp?call\('(\w+)'", (folder / f"{name}.lua").read_text())
    }


def without_subcommand(commands: set[str]) -> set[str]:
    return {command.partition("|")[0] for command in commands}


def test_a_publisher_is_granted_what_its_script_needs() -> None:
    """And what it looks back with when it has lost its connection."""
    assert commands_of(PUBLISHER) == CONNECTION | commands_in({"publish"}) | {"hget", "xinfo|stream", "xrange", "xrevrange"}


def test_a_consumer_is_granted_what_the_other_scripts_need() -> None:
    every = {path.stem for path in (ROOT / "eventbus" / "redis" / "scripts").glob("*.lua")}
    needed = commands_in(every - {"publish", "settle", "look", "digest"}) | {"xreadgroup", "client"}

    assert without_subcommand(commands_of(CONSUMER)) == without_subcommand(CONNECTION) | needed


@pytest.mark.parametrize("right", ["xadd", "hmget", "hset", "del", "pexpire", "incrby"])
async def test_without_a_right_to_publish_nothing_is_added(redis_server: LiveServer, server: Any, right: str) -> None:
    """What was added and is not remembered would be added again by whoever publishes again, and "not sent" would be a lie."""
    server("ACL", "SETUSER", "poor", "reset", "on", ">password", "~*", "+@all", f"-{right}")
    refused = None
    try:
        url = redis_server.url.replace("unix://", "unix://poor:password@")
        async with RedisTransport(url, STREAM) as transport, UnitOfWork(transport=transport) as uow:
            uow.emit(Tick(1))
            uow.emit(Tick(2))
            await uow.commit()
    except PublishError as exc:
        refused = exc
    finally:
        server("ACL", "DELUSER", "poor")

    if refused is None:  # a server that counts by itself needs no INCRBY
        assert ("incrby", 2) == (right, server.client.xlen(STREAM))
    else:
        assert ("not sent", 0) == (refused.outcome, server.client.xlen(STREAM))
        assert "the user may not do this" in str(refused)


async def test_leaving_without_the_right_to_ack_gives_back_the_rest(
    redis_server: LiveServer, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in the rights costs the acks, of which one line tells, and not a whole lease for everything else that was held."""
    server("ACL", "SETUSER", "poor", "reset", "on", ">password", "~*", "+@all")
    try:
        url = redis_server.url.replace("unix://", "unix://poor:password@")
        async with RedisTransport(url, STREAM) as transport:
            async with UnitOfWork(transport=transport) as uow:
                uow.emit(Tick(3))
                uow.emit(Tick(4))
                await uow.commit()
            async with transport.subscribe(Subscribe(streams=[STREAM], group="ticker", lease=30.0)) as subscription:
                handled, held = await subscription.receive(10)
                server("ACL", "SETUSER", "poor", "-xack")
                subscription.ack(handled)
    finally:
        server("ACL", "DELUSER", "poor")

    [said] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"{STREAM}/ticker: leaving with something unsettled, which will be delivered again: ")
    assert "the user may not do this; see docs/operations.md" in said
    assert ("released", 0) == server.owner(STREAM, "ticker", held.entry_id)


async def test_a_publisher_publishes_and_looks_back(login: Login, server: Any) -> None:
    async with FaultProxy(login(PUBLISHER)) as proxy, RedisTransport(proxy.url, stream=STREAM) as transport:
        for number in range(2):
            async with UnitOfWork(transport=transport) as uow:
                uow.emit(Tick(number=number))
                await uow.commit()
            proxy.reset()

    assert 2 == server("XLEN", STREAM)


async def test_a_consumer_cannot_publish(login: Login, server: Any) -> None:
    async with RedisTransport(login(CONSUMER), stream="another-club") as transport, UnitOfWork(transport=transport) as uow:
        uow.emit(Tick(number=0))
        with pytest.raises(PublishError, match="see docs/operations"):
            await uow.commit()
    server("ACL", "LOG", "RESET")


async def test_a_publisher_cannot_read(login: Login, server: Any) -> None:
    async with RedisTransport(login(PUBLISHER), stream=STREAM) as transport:
        with pytest.raises(TransportError, match="see docs/operations"):
            await transport.backlog(STREAM, "ticker")
    server("ACL", "LOG", "RESET")


async def test_both_are_enough_for_everything(login: Login) -> None:
    """Publish, consume, retry, bury, requeue, trim and audit."""
    async with RedisTransport(login(PUBLISHER, CONSUMER), stream=STREAM) as transport:
        async with UnitOfWork(transport=transport) as uow:
            for number in range(3):
                uow.emit(Tick(number=number))
            await uow.commit()
        ticker = Subscriber(
            bus=bus, transport=transport, streams=[STREAM], group="ticker", retry=exponential(base=0.05), lease=1.0
        )
        first = await drain(ticker)
        [letter] = await transport.dead_letters(STREAM, "ticker")
        requeued = await transport.requeue(letter)
        second = await drain(ticker)
        await transport.trim(STREAM)
        audit = await transport.audit(STREAM, "ticker")

    assert (2, 1, 1, True, 1) == (first.handled, first.retried, first.buried, requeued, second.buried)
    assert audit is not None
    assert 0 == audit.lost
