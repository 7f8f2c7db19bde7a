"""A transaction whose state is in Redis: all of it or nothing, once, whatever is cut, claimed, changed, full or of the wrong type."""

import asyncio
import logging
import math
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis

from eventbus import Command, Delivery, Event, MemoryTransport, MessageBus, Metadata, Retry, Subscriber, Transport, UnitOfWork
from eventbus.embedded import EmbeddedServer
from eventbus.errors import (
    ConcurrencyError,
    ConfigurationError,
    Full,
    LeaseLost,
    Refused,
    TransactionError,
    Unavailable,
)
from eventbus.redis import RedisSession, RedisTransport, exchange
from eventbus.redis.keys import Keys
from eventbus.redis.session import REMEMBERED
from eventbus.testing import drain, wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer
from eventbus.transport import Subscribe

S = "club"
KEYS = Keys(S, "g")
TOTAL, COUNTS = "total:{club}", "counts:{club}"


class Added(Event):
    metadata = Metadata(name="added", published=True, stream=S)
    number: int


class Summed(Event):
    metadata = Metadata(name="summed", published=True, stream="sums")
    number: int


class Echoed(Event):
    metadata = Metadata(name="echoed", published=True)
    number: int


class Add(Command):
    number: int


class Sums(UnitOfWork):
    """A unit of work whose state is in Redis, as a user writes one."""

    def __init__(self, session: RedisSession, **settings: Any) -> None:
        super().__init__(session, **settings)
        self.redis = session


def sums(transport: Transport) -> Sums:
    return Sums(RedisSession(transport), transport=transport)


def summing(then: Callable[[Sums, Delivery], Any] = lambda *_: None) -> MessageBus:
    """A bus that adds what comes to the total, says so, and does whatever a test wants besides."""
    bus = MessageBus()

    @bus.listen
    async def add(event: Added, uow: Sums, delivery: Delivery) -> None:
        uow.redis.incrby(TOTAL, event.number)
        uow.redis.hincrby(COUNTS, "events")
        uow.emit(Summed(event.number))
        then(uow, delivery)

    return bus


def subscriber(transport: RedisTransport, bus: MessageBus, **settings: Any) -> Subscriber:
    return Subscriber(
        bus=bus, transport=transport, streams=[S], group="g", unit_of_work=sums, **{"lease": 0.6, "grace": 1.0, **settings}
    )


@pytest.fixture
async def through(proxy: FaultProxy) -> AsyncIterator[RedisTransport]:
    """The same server, through the proxy."""
    async with RedisTransport(proxy.url, stream=S, patience=0.5) as transport:
        yield transport


@pytest.fixture
def session(live: RedisTransport) -> RedisSession:
    return RedisSession(live)


async def publish(transport: RedisTransport, *numbers: int) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for number in numbers:
            uow.emit(Added(number))
        await uow.commit()


@asynccontextmanager
async def delivered(transport: RedisTransport, count: int = 1) -> AsyncIterator[list[Delivery]]:
    """Some deliveries in the hand of a consumer that does nothing with them."""
    await publish(transport, *range(1, count + 1))
    async with transport.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        deliveries = await subscription.receive(count)
        yield deliveries
        for delivery in deliveries:
            subscription.settled(delivery)


def summed(server: Any) -> list[int]:
    """What was published downstream, in order."""
    return [msgspec.json.decode(fields[b"payload"])["number"] for _, fields in server.client.xrange("sums")]


def pending(server: Any) -> int:
    count: int = server.client.xpending(S, "g")["pending"]

    return count


def everything(server: Any) -> dict[bytes, bytes]:
    """All that the server holds, but for what it counts by itself."""
    return {key: server.client.dump(key) for key in server("KEYS", "*")}


async def refused(session: RedisSession, server: Any, kind: type[Exception], match: str) -> None:
    """The commit fails so, and nothing changes."""
    before = everything(server)
    with pytest.raises(kind, match=match):
        await session.commit()
    assert before == everything(server)
    await session.rollback()


# --------------------------------------------------------------------------------------------------- writing and reading


async def test_writes_are_gathered_until_the_commit(session: RedisSession, server: Any) -> None:
    """Nothing reaches the server before; then all of it does."""
    session.set("a", "1")
    session.incr("a", 2)
    session.hset("h", "f", 1)
    session.hset("h", mapping={"g": "x", "h": 2.5})
    session.sadd("s", "x", "y")
    session.zadd("z", {"m": 1.5, "n": 2})
    session.zincrby("z", 2, "m")
    session.rpush("l", 1, 2, 3)
    session.lpush("l", 0)
    session.write("rpop", "l")
    session.mset({"b": b"\x00\xff", "c": "d"})
    session.delete("c")
    session.expire("b", timedelta(minutes=1))
    assert {} == everything(server)

    await session.commit()

    client = server.client
    assert [b"3", b"\x00\xff", None] == client.mget("a", "b", "c")
    assert {b"f": b"1", b"g": b"x", b"h": b"2.5"} == client.hgetall("h")
    assert {b"x", b"y"} == client.smembers("s")
    assert [(b"n", 2.0), (b"m", 3.5)] == client.zrange("z", 0, -1, withscores=True)
    assert [b"0", b"1", b"2"] == client.lrange("l", 0, -1)
    assert 0 < client.ttl("b") <= 60


async def test_reads_go_to_the_server_at_once(session: RedisSession, server: Any) -> None:
    """They see what is there, typed, and not what the transaction is about to write."""
    server.client.mset({"a": "1", "b": b"\xff"})
    server.client.hset("h", mapping={"f": "1", "g": "2"})
    server.client.sadd("s", "x", "y")
    server.client.zadd("z", {"m": 1.5, "n": float("inf")})
    server.client.rpush("l", "p", "q")
    session.set("a", "2")

    for watch in (False, True):
        assert b"1" == await session.get("a", watch=watch)
        assert {b"f": b"1", b"g": b"2"} == await session.hgetall("h", watch=watch)
        assert [b"2", None] == await session.hmget("h", "g", "z", watch=watch)
        assert {b"x", b"y"} == await session.smembers("s", watch=watch)
        assert (True, False) == (await session.sismember("s", "x", watch=watch), await session.exists("no", watch=watch))
        assert (1.5, None) == (await session.zscore("z", "m", watch=watch), await session.zscore("z", "no", watch=watch))
        assert [(b"m", 1.5), (b"n", float("inf"))] == await session.zrange("z", 0, -1, watch=watch)
        assert [(b"m", 1.5)] == await session.zrangebyscore("z", 1, "(2", watch=watch)
        assert [b"p", b"q"] == await session.lrange("l", 0, -1, watch=watch)
        assert (2, 2, 2, 2) == (
            await session.llen("l", watch=watch),
            await session.zcard("z", watch=watch),
            await session.scard("s", watch=watch),
            await session.hlen("h", watch=watch),
        )
        assert 1 == await session.read("lpos", "l", "q", watch=watch)
    assert [b"1", None, b"\xff"] == await session.mget("a", "no", "b")
    assert (-1, -2) == (await session.ttl("a"), await session.ttl("no"))
    await session.commit()
    assert b"2" == await session.get("a")


async def test_a_large_write_is_divided(session: RedisSession, server: Any) -> None:
    """A script takes some thousand words to a command; a transaction takes more."""
    session.sadd("s", *range(12_345))
    session.hset("h", mapping={str(n): n for n in range(5_001)})
    session.rpush("l", *range(3_000))
    await session.commit()

    assert (12_345, 5_001) == (server.client.scard("s"), server.client.hlen("h"))
    assert [b"%d" % n for n in range(3_000)] == server.client.lrange("l", 0, -1)
    with pytest.raises(ConfigurationError, match="divide it"):
        session.sadd("s", *range(100_001))


async def test_more_words_than_a_script_hands_to_a_command_are_refused_at_once(session: RedisSession, server: Any) -> None:
    """Noticed in the midst of a transaction they would leave half of it."""
    session.set(TOTAL, "1")
    with pytest.raises(ConfigurationError, match="SADD with 8000 words: divide it"):
        session.write("SADD", "set:{club}", *range(8000))
    with pytest.raises(ConfigurationError, match="HMGET with 8000 words: divide it"):
        await session.hmget("hash:{club}", *range(8000), watch=True)
    session.write("SADD", "set:{club}", *range(7000))
    assert [None] * 7000 == await session.hmget("hash:{club}", *range(7000), watch=True)
    await session.commit()

    assert (b"1", 7000) == (server.client.get(TOTAL), server.client.scard("set:{club}"))


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda s: s.write("KEYS", "*"), "KEYS cannot be foreseen"),
        (lambda s: s.write("SET", "a"), "SET 'a': too few words"),
        (lambda s: s.set("a", "1", ex=0), "no time to expire"),
        (lambda s: s.set("a", "1", nx=True, xx=True), "exclude each other"),
        (lambda s: s.set("a", None), "None is neither"),
        (lambda s: s.set("a", True), "True is neither"),
        (lambda s: s.incrby("a", 2**63), "no whole number of 64 bits"),
        (lambda s: (s.set("a", "x"), s.incr("a")), "in this transaction it is 'x'"),
        (lambda s: ([s.incrby("a", 2**63 - 1), s.incrby("a", 2**63 - 1)], [s.decr("a", 2**62) for _ in range(5)]), "64 bits"),
        (lambda s: (s.set("a", 2**63 - 1), s.incr("a")), "64 bits"),
        (lambda s: (s.incrbyfloat("a", 0.5), s.incr("a")), "decimal"),
        (lambda s: s.incrbyfloat("a", float("nan")), "no finite number"),
        (lambda s: s.zincrby("z", float("inf"), "m"), "no finite number"),
        (lambda s: s.zadd("z", {"m": float("nan")}), "no finite number"),
        (lambda s: s.zadd("z", {"m": 1}, nx=True, gt=True), "exclude each other"),
        (lambda s: (s.hset("a", "f", 1), s.sadd("a", "x")), "is a hash, and no set"),
        (lambda s: s.hset("a"), "too few words"),
        (lambda s: s.write("HSET", "a", "f"), "pairs"),
        (lambda s: s.write("LINSERT", "l", "NEAR", "a", "b"), "BEFORE or AFTER"),
    ],
)
def test_what_can_be_known_to_fail_fails_at_once(write: Any, match: str) -> None:
    """In the line where the mistake is, and not at the commit; no server is asked."""
    session = RedisSession(RedisTransport("redis://127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match=match):
        write(session)


async def test_what_is_deleted_or_set_may_be_anything_after(session: RedisSession, server: Any) -> None:
    """Its type on the server does not matter any more."""
    server.client.sadd("a", "x")
    server.client.rpush("b", "x")
    session.delete("a")
    session.hincrby("a", "f", 5)
    session.set("b", 7)
    session.incr("b")
    await session.commit()

    assert {b"f": b"5"} == server.client.hgetall("a")
    assert b"8" == server.client.get("b")


async def test_a_read_must_be_one(session: RedisSession) -> None:
    """Neither a write, nor watched when it answers differently each time."""
    with pytest.raises(ConfigurationError, match="GETDEL is not a read"):
        await session.read("GETDEL", "a")
    with pytest.raises(ConfigurationError, match="TTL cannot be watched"):
        await session.read("TTL", "a", watch=True)


async def test_it_needs_a_redis_transport() -> None:
    """Said where it is made."""
    with pytest.raises(ConfigurationError, match="MemoryTransport"):
        RedisSession(MemoryTransport())


# ------------------------------------------------------------------------------------------------------- all or nothing


@pytest.mark.parametrize(
    ("seed", "write", "match"),
    [
        (("HSET", "k", "f", "1"), lambda s: s.incr("k"), "'k' is a hash, and was to be written as a string"),
        (("SET", "k", "1"), lambda s: s.hset("k", "f", 1), "'k' is a string, and was to be written as a hash"),
        (("SET", "k", "1"), lambda s: s.srem("k", "x"), "as a set"),
        (("SET", "k", "x"), lambda s: s.incr("k"), "'k' is 'x'; it, or what it would become"),
        (("SET", "k", "1.5"), lambda s: s.incr("k"), "whole number"),
        (("SET", "k", " 1"), lambda s: s.incr("k"), "whole number"),
        (("SET", "k", "-0"), lambda s: s.incr("k"), "whole number"),
        (("SET", "k", "9223372036854775807"), lambda s: (s.decr("k"), s.incrby("k", 2)), "64 bits"),
        (("SET", "k", "-9223372036854775808"), lambda s: s.decr("k"), "64 bits"),
        (("SET", "k", "9223372036854775808"), lambda s: s.decr("k"), "64 bits"),
        (("SET", "k", "one"), lambda s: s.incrbyfloat("k", 0.5), "finite number"),
        (("HSET", "k", "f", "x"), lambda s: s.hincrby("k", "f"), "'k' 'f' is 'x'"),
        (("HSET", "k", "f", "x"), lambda s: s.hincrbyfloat("k", "f", 1), "'k' 'f' is 'x'"),
    ],
)
async def test_what_cannot_be_written_is_found_before_the_first_write(
    session: RedisSession, server: Any, seed: Any, write: Any, match: str
) -> None:
    """A script does not roll back; so the type and the number are looked at first."""
    server(*seed)
    session.set("before", 1)
    write(session)
    session.set("after", 1)

    await refused(session, server, Refused, match)


async def test_a_stream_of_another_type_is_found_before_the_first_write(live: RedisTransport, server: Any) -> None:
    """Also when it is the one to publish to."""
    server.client.set("sums", "a string")
    with pytest.raises(Refused, match="'sums' is a string"):
        async with sums(live) as uow:
            uow.redis.set("a", 1)
            uow.emit(Summed(1))
            await uow.commit()

    assert [b"sums"] == server("KEYS", "*")


async def test_numbers_at_the_edge_are_counted(session: RedisSession, server: Any) -> None:
    """Sums are exact beyond what a double holds."""
    server.client.mset({"most": 2**63 - 11, "least": -(2**63) + 10, "odd": 2**53 + 1})
    session.incrby("most", 10)
    session.decrby("least", 10)
    session.incr("odd")
    session.incrby("new", -(2**63))
    session.incrbyfloat("decimal", 0.25)
    await session.commit()

    values = server.client.mget("most", "least", "odd", "new", "decimal")
    assert [b"9223372036854775807", b"-9223372036854775808", b"9007199254740994", b"-9223372036854775808", b"0.25"] == values


async def test_a_decimal_sum_after_a_long_command_harms_no_server(session: RedisSession, server: Any) -> None:
    """Redis 6.2 breaks its memory when a script calls INCRBYFLOAT after a command of more words; so we do not let it."""
    server.client.set("decimal", "1.5", ex=60)
    for n in range(100):
        session.sadd(f"s{n}", *range(1000))
        session.incrbyfloat("decimal", 0.25)
        session.sadd(f"t{n}", *range(1000))
        await session.commit()

    assert (b"26.5", 1000) == (server.client.get("decimal"), server.client.scard("t99"))
    assert 0 < server.client.ttl("decimal") <= 60


async def test_full_memory_changes_nothing(live: RedisTransport, server: Any) -> None:
    """The first write is one that a full server refuses, also when what the handler wrote first was a deletion."""
    await publish(live, 1)
    server.client.set("old", "x")
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        [delivery] = await subscription.receive(1)
        for publishes in (True, False):
            server.fill()
            before = everything(server)
            async with sums(live) as uow:
                await uow.begin(delivery)
                uow.redis.delete("old")
                uow.redis.incrby(TOTAL, 1)
                if publishes:
                    uow.emit(Summed(1))
                with pytest.raises(Full):
                    await uow.commit()
                assert before == everything(server)
                server.client.config_set("maxmemory", 0)
                if publishes:
                    await uow.rollback()
                else:
                    await uow.commit()
        subscription.settled(delivery)

    assert (b"1", 0, []) == (server.client.get(TOTAL), pending(server), summed(server))
    assert not server.client.exists("old")


async def test_what_only_takes_away_works_when_memory_is_full(live: RedisTransport, server: Any) -> None:
    """So that a full server can be drained."""
    server.client.mset({"a": "x", "b": "y"})
    server.client.hset("h", mapping={"f": 1, "g": 2})
    async with delivered(live) as [delivery]:
        server.fill()
        async with sums(live) as uow:
            await uow.begin(delivery)
            uow.redis.delete("a")
            uow.redis.hdel("h", "f")
            await uow.commit()
        session = RedisSession(live)
        session.unlink("b")
        await session.commit()
        assert 0 == pending(server)

    assert (0, {b"g": b"2"}) == (server.client.exists("a", "b"), server.client.hgetall("h"))


async def test_what_the_user_may_not_do_is_found_before_the_first_write(
    redis_server: LiveServer, server: Any, session: RedisSession
) -> None:
    """Since Redis 7 a script can ask; before, a forbidden command is left out, and said."""
    server("ACL", "SETUSER", "club", "on", ">secret", "~*", "+@all", "-sadd")
    url = redis_server.url.replace("unix://", "unix://club:secret@")
    try:
        async with RedisTransport(url, stream=S) as transport:
            session = RedisSession(transport)
            session.set("a", 1)
            session.sadd("s", "x")
            if server.client.info()["redis_version"] >= "7":
                await refused(session, server, Refused, "may not do SADD")
            else:
                with pytest.raises(TransactionError, match="SADD s: "):
                    await session.commit()
                assert (b"1", 0) == (server.client.get("a"), server.client.exists("s"))
    finally:
        server("ACL", "DELUSER", "club")


# ------------------------------------------------------------------------------------------------------------- watched


async def test_a_change_of_what_was_watched_stops_the_commit(session: RedisSession, live: RedisTransport, server: Any) -> None:
    """Read, decide, write: if somebody else was faster, nothing is written."""
    server.client.set("stock", 1)
    other = RedisSession(live)
    for buyer in (session, other):
        stock = await buyer.watch("stock")
        assert b"1" == stock
        buyer.decr("stock")
    await other.commit()

    await refused(session, server, ConcurrencyError, "'stock' has changed")
    assert b"0" == await session.watch("stock")
    session.set("stock", "sold out")
    await session.commit()
    assert b"sold out" == server.client.get("stock")


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (lambda s: s.get("no", watch=True), ("SET", "no", "")),
        (lambda s: s.exists("no", watch=True), ("SET", "no", "")),
        (lambda s: s.hget("h", "f", watch=True), ("HSET", "h", "f", "2")),
        (lambda s: s.hget("h", "f", watch=True), ("DEL", "h")),
        (lambda s: s.hget("h", "f", watch=True), ("EVAL", "redis.call('DEL', 'h') redis.call('SET', 'h', '1')", 0)),
        (lambda s: s.hgetall("h", watch=True), ("HSET", "h", "z", "1")),
        (lambda s: s.hmget("h", "f", "z", watch=True), ("HSET", "h", "z", "")),
        (lambda s: s.smembers("s", watch=True), ("SREM", "s", "x")),
        (lambda s: s.zscore("z", "m", watch=True), ("ZINCRBY", "z", "0.25", "m")),
        (lambda s: s.lrange("l", 0, -1, watch=True), ("LPUSH", "l", "q")),
        (lambda s: s.llen("l", watch=True), ("LPUSH", "l", "q")),
    ],
)
async def test_each_read_can_be_watched(session: RedisSession, server: Any, read: Any, change: Any) -> None:
    """What matters is the answer, and not the rest of the key."""
    server.client.hset("h", mapping={"f": "1", **{f"g{n}": n for n in range(20)}})
    server.client.sadd("s", "x", "y", "z")
    server.client.zadd("z", {"m": 1, "n": 2})
    server.client.rpush("l", "p")
    await read(session)
    session.set("written", 1)
    server(*change)

    await refused(session, server, ConcurrencyError, "has changed")


async def test_what_was_watched_and_has_not_changed_stops_nothing(session: RedisSession, server: Any) -> None:
    """Also when the rest of the key has, or the order in which a hash or a set lies in memory."""
    server.client.hset("h", mapping={f"f{n}": n for n in range(20)})
    server.client.sadd("s", *(f"member {n}" for n in range(20)))
    hash, _ = await session.hgetall("h", watch=True), await session.smembers("s", watch=True)
    await session.zscore("z", "m", watch=True)
    server.client.hset("h", mapping={f"g{n}": "x" * 100 for n in range(600)})
    server.client.hdel("h", *(f"g{n}" for n in range(600)))
    server.client.sadd("s", *range(600))
    server.client.srem("s", *range(600))
    server.client.zadd("z", {"other": 1})
    assert list(hash) != server.client.hkeys("h")
    session.set("written", 1)
    await session.commit()

    assert b"1" == server.client.get("written")


async def test_what_is_only_watched_is_compared_too(session: RedisSession, server: Any) -> None:
    """A transaction that writes nothing, and leaves nothing behind."""
    await session.watch("a")
    await session.commit()
    assert {} == everything(server)

    await session.watch("a")
    server.client.set("a", 1)
    await refused(session, server, ConcurrencyError, "'a' has changed")


async def test_nobody_is_lost_when_many_count_by_reading_and_writing(live: RedisTransport, server: Any) -> None:
    """Ten tasks, each again until it has come through."""

    async def count() -> None:
        session, done = RedisSession(live), 0
        while done < 10:
            value = await session.watch("n")
            session.set("n", int(value or 0) + 1)
            try:
                await session.commit()
                done += 1
            except ConcurrencyError:
                await session.rollback()

    await asyncio.gather(*[count() for _ in range(10)])

    assert b"100" == server.client.get("n")


# ------------------------------------------------------------------------------------------------------ a lost answer


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "reply lost"])
async def test_a_lost_connection_applies_nothing_twice(
    through: RedisTransport, proxy: FaultProxy, server: Any, after: bool
) -> None:
    """It is asked again, and knows what it has done; the entry ids are those of the first time."""
    for n in range(20):
        proxy.cut("settle", after=after)
        async with sums(through) as uow:
            uow.redis.incrby(TOTAL, 1)
            uow.emit(Summed(2 * n))
            uow.emit(Summed(2 * n + 1))
            await uow.commit()
            assert uow.redis.published == [id.decode() for id, _ in server.client.xrange("sums")][-2:]

    assert (20, b"20") == (proxy.faults, server.client.get(TOTAL))
    assert list(range(40)) == summed(server)


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "reply lost"])
async def test_a_subscriber_whose_lines_are_cut_sums_exactly(
    live: RedisTransport, through: RedisTransport, proxy: FaultProxy, server: Any, after: bool
) -> None:
    """Every few commits; none is applied twice, none is left out, and nobody thinks that a delivery was lost."""
    await publish(live, *range(60))
    for _ in range(6):
        proxy.cut("settle", after=after, skip=5)
    statistics = await drain(subscriber(through, summing(), concurrency=3))

    assert (6, 60, 0) == (proxy.faults, statistics.handled, statistics.lost_leases)
    assert (b"%d" % sum(range(60)), 0) == (server.client.get(TOTAL), pending(server))
    assert list(range(60)) == sorted(summed(server))
    audit = await live.audit(S, "g")
    assert audit is not None
    assert (60, 0) == (audit.settled, audit.lost)


async def test_an_answer_that_does_not_come_is_asked_for_again_later(
    through: RedisTransport, proxy: FaultProxy, server: Any
) -> None:
    """The error says that nobody knows; committing again finds out, and changes nothing."""
    async with sums(through) as uow:
        uow.redis.incr(TOTAL)
        uow.emit(Summed(1))
        proxy.cut("settle", after=True, times=100)
        with pytest.raises(Unavailable, match="not known; commit again"):
            await uow.commit()
        proxy.heal()
        with pytest.raises(TransactionError, match="not known"):
            uow.redis.incr(TOTAL)
        await uow.commit()

    assert (b"1", [1]) == (server.client.get(TOTAL), summed(server))


async def test_a_commit_of_which_nothing_is_known_is_not_taken_for_another_consumers(
    live: RedisTransport, through: RedisTransport, proxy: FaultProxy, server: Any
) -> None:
    """It may have settled its delivery. A renewal that finds it settled, after a long pause, takes it from nobody."""
    await publish(live, 1)
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        [delivery] = await subscription.receive(1)
        session = RedisSession(through)
        session.incr(TOTAL)
        session.carry([], delivery)
        proxy.cut("settle", after=True, times=100)
        with pytest.raises(Unavailable, match="not known; commit again"):
            await session.commit()
        proxy.heal()
        subscription.held_until = -math.inf
        assert await subscription.confirm()

        assert (False, False) == (delivery.lost, delivery.settled)

        await session.commit()

        assert (False, True) == (delivery.lost, delivery.settled)
    assert (b"1", 0) == (server.client.get(TOTAL), pending(server))


async def test_a_commit_that_was_applied_but_for_something_has_settled_its_delivery(
    live: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server would not do is said; the rest has happened, and the message is not handled again."""
    await publish(live, 1)

    async def answer(*_: object, **__: object) -> list[Any]:
        return [b"done", [], [b"incr total:{club}: ERR no"]]

    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        [delivery] = await subscription.receive(1)
        session = RedisSession(live)
        session.incr(TOTAL)
        session.carry([], delivery)
        with monkeypatch.context() as patch:
            patch.setattr(live, "ask", answer)
            with pytest.raises(TransactionError, match=r"but for what the server would not do: 'incr total:\{club\}: ERR no'"):
                await session.commit()

        assert (True, False) == (delivery.settled, delivery.committing)


@asynccontextmanager
async def patient(proxy: FaultProxy) -> AsyncIterator[tuple[RedisTransport, RedisSession]]:
    """A transport that asks for long, over a line that is open, and a session of it with something to commit."""
    async with RedisTransport(proxy.url, stream=S, patience=10) as transport:
        session = RedisSession(transport)
        await session.get("warm")
        session.incr("a")
        yield transport, session


async def test_what_is_not_remembered_any_more_is_not_asked_for(
    proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However patient the transport is: a server that has forgotten the commit would apply it twice."""
    monkeypatch.setattr("eventbus.redis.session.REMEMBERED", 1.0)
    async with patient(proxy) as (_, session):
        proxy.cut("settle", after=True)
        committing = asyncio.ensure_future(session.commit())
        await wait_until(lambda: proxy.faults == 1, description="the answer was lost")
        proxy.refusing = True
        assert server.client.keys("*:commits:*")
        await wait_until(lambda: not server.client.keys("*:commits:*"), description="the server has forgotten it")
        proxy.heal()

        with pytest.raises(Unavailable, match="not known"):
            await committing
        with pytest.raises(TransactionError, match="not known, and not remembered any more; roll back"):
            await session.commit()

    assert b"1" == server.client.get("a")


async def test_what_waits_too_long_for_its_turn_is_not_sent(
    proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task's answer was late: the commit was not sent, which is known."""
    late = 0.0
    monkeypatch.setattr(exchange, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    async with patient(proxy) as (transport, session):
        proxy.stall()
        line, waiting = transport._exchange, transport._exchange._waiting
        reading = asyncio.ensure_future(RedisSession(transport).get("a"))
        await wait_until(lambda: line._sending is not None and not waiting, description="the read is under way")
        committing = asyncio.ensure_future(session.commit())
        await wait_until(lambda: [one.command[0] for one in waiting] == ["EVALSHA"], description="the commit waits its turn")
        late = REMEMBERED
        proxy.resume()
        with pytest.raises(Unavailable) as caught:
            await committing
        await reading

    assert "not known" not in str(caught.value)
    assert server.client.get("a") is None


@pytest.mark.parametrize("how", ["away", "refused"])
async def test_what_is_not_known_stays_so_until_it_is_answered(
    through: RedisTransport, proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """That a later request was not sent, or was refused, says nothing of the first."""

    async def refuse(*_: object, **__: object) -> None:
        raise Refused("the user may not run scripts any more")

    session = RedisSession(through)
    session.incr("a")
    proxy.cut("settle", after=True, times=100)
    with pytest.raises(Unavailable, match="not known; commit again"):
        await session.commit()
    proxy.heal()
    with monkeypatch.context() as patch:
        if how == "refused":
            patch.setattr(through, "ask", refuse)
        proxy.refusing = True
        proxy.reset()
        with pytest.raises(Unavailable, match="not known; commit again"):
            await session.commit()
    proxy.heal()
    await session.commit()

    assert b"1" == server.client.get("a")


async def test_a_server_that_is_not_there_has_applied_nothing(through: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """That is known; the transaction may be committed later, or rolled back."""
    session = RedisSession(through)
    session.incr("a")
    proxy.refusing = True
    with pytest.raises(Unavailable) as caught:
        await session.commit()
    assert "not known" not in str(caught.value)
    with pytest.raises(Unavailable):
        await session.get("a")
    proxy.heal()
    session.incr("a")
    await session.commit()

    assert b"2" == server.client.get("a")


async def test_a_request_that_arrives_late_changes_nothing(live: RedisTransport, server: Any) -> None:
    """A copy that was held up on its way, behind the one that was asked again: the token is known. A minute later it is not."""
    async with sums(live) as uow:
        uow.redis.incr(TOTAL)
        uow.redis.carry([], None)
        commit = uow.redis._commit()
        assert commit is not None
        first, late = server(*commit.command), server(*commit.command)
        assert first == late
        [key] = [key for key in KEYS.commits if server.client.exists(key)]
        assert 0 < server.client.pttl(key) <= 120_000
        await uow.rollback()

    assert b"1" == server.client.get(TOTAL)


async def test_a_cancelled_commit_is_asked_again(through: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """Whoever was cancelled while it waited does not know either; the others notice nothing."""
    session, other = RedisSession(through), RedisSession(through)
    await session.get("warm")
    session.incr("a")
    other.incr("b")
    proxy.stall()
    first, second = asyncio.ensure_future(session.commit()), asyncio.ensure_future(other.commit())
    while not proxy.commands["settle"]:
        await asyncio.sleep(0.001)
    first.cancel()
    proxy.resume()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    await session.commit()

    assert [b"1", b"1"] == server.client.mget("a", "b")


async def test_a_mistake_in_the_url_is_told_to_who_asks() -> None:
    """At once, as it is, and not as a commit of which nobody knows whether it took place."""
    async with RedisTransport("redis://localhost:1/0?sokcet_timeout=1", stream=S) as transport:
        for _ in range(2):
            session = RedisSession(transport)
            session.incr("a")
            with pytest.raises(ConfigurationError, match="sokcet_timeout"):
                await session.commit()
            with pytest.raises(ConfigurationError, match="sokcet_timeout"):
                await session.get("a")


async def test_what_many_ask_goes_together(through: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """One connection, however many tasks."""
    sessions = [RedisSession(through) for _ in range(50)]
    for session in sessions:
        session.incr("a")
    await asyncio.gather(*[session.commit() for session in sessions])

    assert (b"50", 1) == (server.client.get("a"), proxy.connections)


# --------------------------------------------------------------------------------------------------- under a subscriber


async def test_effect_event_and_ack_are_one(live: RedisTransport, server: Any) -> None:
    """Consume, transform, produce: through a subscriber, with the unit of work that a user writes."""
    await publish(live, *range(100))
    statistics = await drain(subscriber(live, summing()))

    assert (100, 0, 0) == (statistics.handled, statistics.retried, statistics.buried)
    assert (b"%d" % sum(range(100)), {b"events": b"100"}) == (server.client.get(TOTAL), server.client.hgetall(COUNTS))
    assert list(range(100)) == sorted(summed(server))
    audit = await live.audit(S, "g")
    assert audit is not None
    assert (100, 0, 0) == (audit.settled, audit.pending, audit.lost)


async def test_the_events_of_a_commit_keep_their_order(live: RedisTransport, server: Any) -> None:
    """Each in its stream, caused by what was handled; the one that names no stream goes to the transport's."""
    bus = MessageBus()

    @bus.listen
    async def echo(command: Add, uow: Sums) -> None:
        for n in range(3):
            uow.emit(Summed(10 * command.number + n))
            uow.emit(Echoed(n))

    async with sums(live) as uow:
        await bus.handle(Add(1), uow)
        await bus.handle(Add(2), uow)
        await uow.commit()
        published = uow.redis.published

    assert [10, 11, 12, 20, 21, 22] == summed(server)
    assert published[::2] == [id.decode() for id, _ in server.client.xrange("sums")]
    assert published[1::2] == [id.decode() for id, _ in server.client.xrange(S)]
    # A group that joins now finds them, and the audit counts them, though another script than `publish` has added them.
    quiet = MessageBus()
    await drain(Subscriber(bus=quiet, transport=live, streams=["sums"], group="later"))
    audit = await live.audit("sums", "later")
    assert audit is not None
    assert (6, 0) == (audit.added, audit.lost)


async def test_a_delivery_that_was_taken_over_applies_nothing(live: RedisTransport, server: Any) -> None:
    """Claimed by another consumer between the handling and the commit."""
    async with delivered(live) as [delivery]:
        async with sums(live) as uow:
            await uow.begin(delivery)
            await summing().handle(Added(1), uow, delivery=delivery)
            server.client.xclaim(S, "g", "other", 0, [delivery.entry_id])
            before = everything(server)
            with pytest.raises(LeaseLost, match="another consumer has it"):
                await uow.commit()
            assert before == everything(server)
            await uow.rollback()
        assert not delivery.settled
        server("XACK", S, "g", delivery.entry_id)


async def test_of_two_that_handle_a_delivery_one_has_an_effect(live: RedisTransport, server: Any) -> None:
    """The duplicate is forced: the first consumer is so slow that a second takes it over and is done before."""
    await publish(live, 7)
    slow, fast = asyncio.Event(), asyncio.Event()

    async def wait(uow: Sums, delivery: Delivery) -> None:
        started.append(delivery.consumer)
        if len(started) == 1:
            server.client.xclaim(S, "g", delivery.consumer, 0, [delivery.entry_id], idle=70_000, justid=True)
            slow.set()
            await asyncio.shield(fast.wait())

    started: list[str] = []
    bus = MessageBus()

    @bus.listen
    async def add(event: Added, uow: Sums, delivery: Delivery) -> None:
        uow.redis.incrby(TOTAL, event.number)
        uow.emit(Summed(event.number))
        try:
            await wait(uow, delivery)
        except asyncio.CancelledError:
            await fast.wait()  # it will not be told, and commits late

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(subscriber(live, bus, lease=60.0).run())]  # which it does not renew before the other sweeps
        await slow.wait()
        running.append(tasks.create_task(subscriber(live, bus, lease=60.0).run()))
        await wait_until(lambda: len(started) == 2 and bool(summed(server)), description="the second has committed")
        fast.set()
        await wait_until(lambda: pending(server) == 0, description="nothing is left")
        for task in running:
            task.cancel()

    assert 2 == len(set(started))
    assert (b"7", [7]) == (server.client.get(TOTAL), summed(server))


async def test_nothing_of_a_failed_handler_is_applied(live: RedisTransport, server: Any) -> None:
    """An exception, a retry and a rollback that the handler chose: only the attempt that ends well counts."""
    await publish(live, *range(9))

    def fail(uow: Sums, delivery: Delivery) -> None:
        number = msgspec.json.decode(delivery.envelope.payload)["number"]
        if delivery.attempt == 1 and number % 3 == 0:
            raise Retry(after=0.01)
        if delivery.attempt == 1 and number % 3 == 1:
            raise ValueError("not yet")

    statistics = await drain(subscriber(live, summing(fail), retry=lambda attempt, error: 0.01))

    assert (9, 6) == (statistics.handled, statistics.retried)
    assert (b"36", list(range(9))) == (server.client.get(TOTAL), sorted(summed(server)))
    assert 0 == server.client.xlen(KEYS.retry)
    audit = await live.audit(S, "g")
    assert audit is not None
    assert 0 == audit.lost


async def test_a_handler_that_rolls_back_is_acked_and_writes_nothing(live: RedisTransport, server: Any) -> None:
    """As with any session."""
    await publish(live, 1)
    bus = MessageBus()

    @bus.listen
    async def undo(event: Added, uow: Sums) -> None:
        uow.redis.set(TOTAL, 1)
        uow.emit(Summed(1))
        await uow.rollback()

    statistics = await drain(subscriber(live, bus))

    assert (1, 0, 0) == (statistics.handled, pending(server), server.client.exists(TOTAL, "sums"))


async def test_a_crash_that_was_counted_is_forgotten_with_the_delivery(live: RedisTransport, server: Any) -> None:
    """As by any other settlement: the state of the group keeps nothing of what is done."""
    await publish(live, 1)
    async with live.subscribe(Subscribe(streams=[S], group="g", lease=0.2)) as first:
        await first.receive(1)
        first.abandon()
        await drain(subscriber(live, summing(), lease=0.2))

    assert b"1" == server.client.get(TOTAL)
    assert [] == [field for field in server.client.hkeys(KEYS.state) if field.startswith(b"crash")]


async def test_what_its_own_commit_settles_is_not_reported_as_gone(
    live: RedisTransport, through: RedisTransport, proxy: FaultProxy, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease is renewed between the commit and its answer, and the entry is not pending any more."""
    await publish(live, 1)
    late = RedisTransport(proxy.url, stream=S, patience=5.0)

    def lose_the_answer(uow: Sums, delivery: Delivery) -> None:
        proxy.cut("settle", after=True)
        asyncio.get_running_loop().call_later(0.5, setattr, proxy, "refusing", False)
        asyncio.get_running_loop().call_later(0.02, setattr, proxy, "refusing", True)

    async with late:
        consumer = Subscriber(
            bus=summing(lose_the_answer), transport=live, streams=[S], group="g", lease=0.15, unit_of_work=lambda _: sums(late)
        )
        with caplog.at_level(logging.ERROR):
            statistics = await drain(consumer)

    assert (1, 0, 0) == (statistics.handled, statistics.lost_leases, statistics.retried)
    assert ([], [1]) == ([record.getMessage() for record in caplog.records], summed(server))


async def test_a_session_on_another_server_says_so(live: RedisTransport, server: Any) -> None:
    """The delivery is not there: nothing is applied, and the error says what may be wrong."""
    async with delivered(live) as [delivery]:
        server("XGROUP", "DESTROY", S, "g")
        async with sums(live) as uow:
            await uow.begin(delivery)
            uow.redis.incr(TOTAL)
            with pytest.raises(LeaseLost, match="no such group"):
                await uow.commit()
            await uow.rollback()

    assert not server.client.exists(TOTAL)


async def test_without_a_server_it_works_on_a_fake(redis_transport: RedisTransport) -> None:
    """In tests of an application, on fakeredis."""
    await publish(redis_transport, 1, 2, 3)
    await drain(subscriber(redis_transport, summing()))
    session = RedisSession(redis_transport)
    assert b"6" == await session.watch(TOTAL)
    assert {b"events": b"3"} == await session.hgetall(COUNTS, watch=True)
    other = RedisSession(redis_transport)
    other.incr(TOTAL)
    await other.commit()
    session.set(TOTAL, 0)
    with pytest.raises(ConcurrencyError):
        await session.commit()


# ------------------------------------------------------------------------------------------------------ upstream, and ends


async def test_upstream_a_unit_of_work_writes_and_publishes_in_one_step(live: RedisTransport, server: Any) -> None:
    """The same without a delivery; left by an exception, or rolled back, it does neither."""
    async with sums(live) as uow:
        uow.redis.set("a", 1)
        uow.emit(Summed(1))
        await uow.commit()
    with pytest.raises(ZeroDivisionError):
        async with sums(live) as uow:
            uow.redis.set("a", 2)
            uow.emit(Summed(2))
            raise ZeroDivisionError
    async with sums(live) as uow:
        uow.redis.set("a", 3)
        uow.emit(Summed(3))
        await uow.rollback()
        await uow.redis.commit()

    assert (b"1", [1]) == (server.client.get("a"), summed(server))


async def test_an_empty_transaction_asks_nobody(through: RedisTransport, proxy: FaultProxy) -> None:
    """There is nothing to do."""
    async with sums(through) as uow:
        await uow.commit()
    assert 0 == proxy.connections


async def test_an_envelope_that_is_in_the_stream_already_is_not_added_again(live: RedisTransport, server: Any) -> None:
    """The windows are those of `publish`: whoever comes second gets the entry id of the first."""
    async with UnitOfWork(transport=live) as uow:
        uow.emit(Summed(1))
        uow.emit(Summed(2))
        envelopes = [record.envelope for record in uow.gather(None)]
        await uow.rollback()
    [id] = await live.publish(envelopes[:1])
    session = RedisSession(live)
    session.carry([*envelopes, envelopes[1]], None)
    await session.commit()

    assert [1, 2] == summed(server)
    assert id == session.published[0]
    assert session.published[1] == session.published[2]
    assert session.published[:2] == await live.publish(envelopes)


async def test_the_keys_of_the_stream_are_not_for_writing(session: RedisSession) -> None:
    """Neither the stream nor what belongs to it; the error says where else to put the name."""
    for key in (S, KEYS.state, "{club}:mine"):
        session.delete(key)
        with pytest.raises(ConfigurationError, match=r"books:\{club\}"):
            await session.commit()
        await session.rollback()


async def test_a_cluster_wants_one_slot(server: Any, tmp_path: Path) -> None:
    """The braces of the stream's name put all keys there; the error says so. Nothing was applied."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = 20_000 + free.getsockname()[1] % 20_000
    options = ["--port", str(port), "--cluster-enabled", "yes", "--bind", "127.0.0.1"]
    executable = server.client.info()["executable"]
    with EmbeddedServer(executable=executable, options=options) as cluster, redis.Redis.from_url(cluster.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        await wait_until(lambda: b"cluster_state:ok" in _cluster_info(client), description="the cluster is ready")
        async with RedisTransport(cluster.url, stream=S) as transport:
            async with sums(transport) as uow:
                uow.redis.incr(TOTAL)
                uow.redis.incr("elsewhere")
                with pytest.raises(ConfigurationError, match=r"one hash slot.*'elsewhere'; put the name .*\{club\}"):
                    await uow.commit()
                await uow.rollback()
            async with sums(transport) as uow:
                uow.redis.incr(TOTAL)
                await uow.redis.watch(COUNTS)
                uow.emit(Echoed(1))
                await uow.commit()
            assert (b"1", 1, 0) == (client.get(TOTAL), client.xlen(S), client.exists("elsewhere"))


def _cluster_info(client: Any) -> bytes:
    info: bytes = client.execute_command("EVAL", "return redis.call('CLUSTER', 'INFO')", 0)

    return info


async def test_a_server_that_loses_its_tail_loses_whole_transactions(server: Any, tmp_path: Path) -> None:
    """The append-only file is cut at any byte: the effect, the event and the ack of a delivery are there together, or none of them."""
    executable = server.client.info()["executable"]
    with EmbeddedServer(tmp_path / "data", executable=executable) as written:
        async with RedisTransport(written.url, stream=S) as transport:
            await publish(transport, *range(1, 41))
            await drain(subscriber(transport, summing(), concurrency=1))
    found = set()
    for part in range(6):
        copy = tmp_path / str(part)
        shutil.copytree(tmp_path / "data", copy, ignore=shutil.ignore_patterns("*.lock", "*.sock"))
        [file] = [path for path in copy.glob("**/appendonly.aof*") if path.suffix != ".manifest" and ".base." not in path.name]
        content = file.read_bytes()
        start = content.index(TOTAL.encode())
        file.write_bytes(content[: start + (len(content) - start) * (part * 37 + 20) // 240])
        with EmbeddedServer(copy, executable=executable) as cut, redis.Redis.from_url(cut.url) as client:
            events = [msgspec.json.decode(fields[b"payload"])["number"] for _, fields in client.xrange("sums")]
            read = client.xinfo_groups(S)[0]["entries-read"] if client.info()["redis_version"] >= "7" else None
            found.add(len(events))

            assert list(range(1, len(events) + 1)) == events
            assert int(client.get(TOTAL) or 0) == sum(events)
            assert int(client.hget(COUNTS, "events") or 0) == len(events)
            assert int(client.hget(KEYS.state, "settled") or 0) == len(events)
            assert read is None or client.xpending(S, "g")["pending"] >= read - len(events)

    assert len(found) >= 5
