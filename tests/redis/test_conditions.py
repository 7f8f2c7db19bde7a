"""Whatever is written in a transaction: it does what the same commands do one by one, or, if one of them would fail, nothing.

The few of the suite are always the same, or chance would decide how many of them are possible; ``EVENTBUS_CONDITIONS_EXAMPLES=500`` makes it
500 others for each kind of key on each server.
"""

import asyncio
import os
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus.errors import ConfigurationError, Refused
from eventbus.redis import RedisSession, RedisTransport
from eventbus.redis.conditions import COMMANDS
from eventbus.testing.servers import LiveServer

KEYS = ("a", "b")
EXAMPLES = int(os.environ.get("EVENTBUS_CONDITIONS_EXAMPLES", "60"))
INTEGERS = st.sampled_from([0, 1, -1, 7, 2**53 + 1, 2**62, -(2**62), 2**63 - 1, -(2**63)])
DECIMALS = st.sampled_from([0.5, -1.25, 3.0, 1e17, 1e299])
VALUES = st.sampled_from(
    [b"0", b"1", b"-5", b"x", b"", b"1.5", b" 1", b"-0", b"1e3", b"%d" % (2**63 - 1), b"%d" % -(2**63), b"\x00"]
)
WORDS = st.sampled_from([b"f", b"g"])
SCORES = st.sampled_from(["1", "-2.5", "inf", "1e10"])


def one(words: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A command whose words are given, or drawn."""
    return st.tuples(*(word if isinstance(word, st.SearchStrategy) else st.just(word) for word in words))


WRITES: list[tuple[Any, ...]] = [
    ("DEL",),
    ("UNLINK",),
    ("EXPIRE", st.sampled_from([-1, 0, 100])),
    ("PEXPIRE", st.sampled_from([-1, 100_000])),
    ("EXPIREAT", st.sampled_from([1, 4_000_000_000])),
    ("PEXPIREAT", st.sampled_from([1, 4_000_000_000_000])),
    ("PERSIST",),
    ("SET", VALUES),
    ("SET", VALUES, st.sampled_from(["NX", "XX", "KEEPTTL"])),
    ("SET", VALUES, "EX", 100),
    ("INCRBY", INTEGERS),
    ("INCRBY", INTEGERS),
    ("INCRBYFLOAT", DECIMALS),
    ("SETBIT", st.sampled_from([0, 7, 100]), st.sampled_from([0, 1])),
    ("HSET", WORDS, VALUES),
    ("HSET", b"f", VALUES, b"g", VALUES),
    ("HSETNX", WORDS, VALUES),
    ("HDEL", WORDS),
    ("HINCRBY", WORDS, INTEGERS),
    ("HINCRBY", WORDS, INTEGERS),
    ("HINCRBYFLOAT", WORDS, DECIMALS),
    ("SADD", WORDS, VALUES),
    ("SREM", WORDS),
    ("ZADD", SCORES, WORDS),
    ("ZADD", st.sampled_from(["NX", "XX", "GT", "LT", "CH"]), SCORES, WORDS),
    ("ZINCRBY", DECIMALS, WORDS),
    ("ZREM", WORDS),
    ("ZREMRANGEBYRANK", 0, st.sampled_from([0, -1])),
    ("ZREMRANGEBYSCORE", "-inf", st.sampled_from(["(1", "+inf"])),
    ("LPUSH", WORDS),
    ("RPUSH", WORDS, VALUES),
    ("LPUSHX", WORDS),
    ("RPUSHX", WORDS),
    ("LINSERT", st.sampled_from(["BEFORE", "after"]), WORDS, VALUES),
    ("LREM", st.sampled_from([0, 1, -1]), WORDS),
    ("LTRIM", st.sampled_from([0, 1]), st.sampled_from([-1, 0])),
    ("LPOP",),
    ("RPOP", st.sampled_from([0, 1, 5])),
]
SEEDS = st.one_of(
    st.none(),
    one(("SET", VALUES)),
    one(("SET", VALUES, "EX", 1000)),
    one(("HSET", b"f", VALUES, b"g", VALUES)),
    one(("SADD", b"f", b"x")),
    one(("ZADD", SCORES, b"f")),
    one(("RPUSH", b"f", b"g")),
)


def writes_of(*types: str | None) -> st.SearchStrategy[list[Any]]:
    """Some writes to keys of these types, or of any."""
    fitting = [one(write) for write in WRITES if not types or COMMANDS[write[0]].type in types]

    return st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(fitting)), min_size=1, max_size=8)


@pytest.mark.parametrize("types", [(), (None, "string"), (None, "hash"), (None, "set", "zset"), (None, "list")], ids=str)
def test_a_transaction_does_what_its_commands_do_or_nothing(redis_server: LiveServer, server: Any, types: Any) -> None:
    """Both are run on the same data: one by one on a copy, and in a transaction."""
    outcomes: Counter[tuple[str, bool]] = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=EXAMPLES < 500, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.lists(SEEDS, min_size=2, max_size=2), writes_of(*types))
    def check(seeds: list[Any], writes: list[Any]) -> None:
        server.client.flushdb()
        for key, seed in zip(KEYS, seeds, strict=True):
            if seed is not None:
                server(seed[0], key, *seed[1:])
                server(seed[0], f"copy {key}", *seed[1:])
        before = [state(server, key) for key in KEYS]
        possible = one_by_one(server, writes)

        outcome = runner.run(together(transport, writes))

        outcomes[outcome, possible] += 1
        after = [state(server, key) for key in KEYS]
        if outcome == "done":
            assert possible
            assert [state(server, f"copy {key}") for key in KEYS] == after
        else:
            assert before == after

    with asyncio.Runner() as runner:
        transport = RedisTransport(redis_server.url)
        runner.run(transport.__aenter__())
        check()
        runner.run(transport.__aexit__(None, None, None))

    assert outcomes["refused", False] > 0
    assert outcomes["done", True] > outcomes["refused", True] + outcomes["foreseen", True], "more is refused than need be"


def test_every_command_that_is_known_is_tried_above() -> None:
    """A command that is added is to be added there, too."""
    assert set(COMMANDS) == {name for name, *_ in WRITES}


def one_by_one(server: Any, writes: list[Any]) -> bool:
    """Whether each of them could be done, on the copy."""
    for key, (name, *words) in writes:
        try:
            server(name, f"copy {key}", *words)
        except redis.ResponseError:
            return False

    return True


async def together(transport: RedisTransport, writes: list[Any]) -> str:
    session = RedisSession(transport)
    try:
        for key, (name, *words) in writes:
            session.write(name, key, *words)
    except ConfigurationError:
        return "foreseen"
    try:
        await session.commit()
    except Refused:
        return "refused"

    return "done"


def state(server: Any, key: str) -> Any:
    """What a key holds, and whether it expires."""
    client = server.client
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"none": lambda key: None,
    }[kind := client.type(key)]

    return kind, read(key), client.ttl(key) > 0
