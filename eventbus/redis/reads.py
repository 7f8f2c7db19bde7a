"""The reads of a transaction: they go to the server at once, and see what is committed, not what the transaction is about to write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, cast

from eventbus.errors import ConfigurationError, excerpt
from eventbus.redis.scripts import LOOK
from eventbus.redis.writes import Key, Value, encoded, few

WATCHABLE: Final = frozenset(
    {
        *("EXISTS", "GET", "GETBIT", "GETRANGE", "STRLEN", "BITCOUNT"),
        *("HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HSTRLEN", "HVALS"),
        *("LINDEX", "LLEN", "LPOS", "LRANGE"),
        *("SCARD", "SISMEMBER", "SMEMBERS", "SMISMEMBER"),
        *("ZCARD", "ZCOUNT", "ZLEXCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE"),
        *("ZREVRANGEBYSCORE", "ZREVRANK", "ZSCORE"),
    }
)
READS: Final = WATCHABLE | {"TTL", "PTTL", "TYPE", "HSCAN", "SSCAN", "ZSCAN", "SRANDMEMBER", "HRANDMEMBER", "ZRANDMEMBER"}


class Watched(NamedTuple):
    """What was read, and must still be the answer when the transaction is committed."""

    digest: bytes
    command: str
    key: bytes
    words: Sequence[bytes]


class Reads:
    """Typed reads, named as redis-py names them. What comes back is bytes, as the server has it.

    With ``watch=True`` the transaction relies on the answer: its commit asks again, in the same step in which it writes, and raises
    `ConcurrencyError`, changing nothing, if the answer is another one.
    """

    def __init__(self, ask: Callable[[tuple[Any, ...]], Awaitable[Any]]) -> None:
        self._ask = ask
        self.watched: list[Watched] = []

    async def read(self, command: str, name: Key, *args: Value, watch: bool = False) -> Any:
        """A read that has no method here: `await session.read("LPOS", "queue", "x")`; its answer as the server gave it."""
        command = command.upper()
        if command not in READS:
            raise ConfigurationError(f"{excerpt(command, 40)} is not a read of one key; there are {', '.join(sorted(READS))}")
        key, words = encoded(name), [encoded(arg) for arg in args]
        if not watch:
            return await self._ask((command, key, *words))
        if command not in WATCHABLE:
            raise ConfigurationError(f"{command} cannot be watched: it answers differently though nothing has changed")
        digest, answer = await self._ask(LOOK.call(key, args=[command, *few(command, words)]))
        self.watched.append(Watched(digest, command, key, words))

        return answer

    async def watch(self, name: Key) -> bytes | None:
        """As `get`, and watched."""
        return await self.get(name, watch=True)

    async def exists(self, name: Key, *, watch: bool = False) -> bool:
        return bool(await self.read("EXISTS", name, watch=watch))

    async def ttl(self, name: Key) -> int:
        """Seconds; -1 if it does not expire, -2 if it is not there."""
        return int(await self.read("TTL", name))

    # Strings

    async def get(self, name: Key, *, watch: bool = False) -> bytes | None:
        value: bytes | None = await self.read("GET", name, watch=watch)

        return value

    async def mget(self, *names: Key) -> list[bytes | None]:
        return list(await self._ask(("MGET", *map(encoded, names))))

    # Hashes

    async def hget(self, name: Key, key: Value, *, watch: bool = False) -> bytes | None:
        value: bytes | None = await self.read("HGET", name, key, watch=watch)

        return value

    async def hmget(self, name: Key, *keys: Value, watch: bool = False) -> list[bytes | None]:
        return list(await self.read("HMGET", name, *keys, watch=watch))

    async def hgetall(self, name: Key, *, watch: bool = False) -> dict[bytes, bytes]:
        reply = await self.read("HGETALL", name, watch=watch)
        if isinstance(reply, dict):  # as it is under RESP3
            return cast("dict[bytes, bytes]", reply)

        return dict(zip(reply[::2], reply[1::2], strict=True))

    async def hexists(self, name: Key, key: Value, *, watch: bool = False) -> bool:
        return bool(await self.read("HEXISTS", name, key, watch=watch))

    async def hlen(self, name: Key, *, watch: bool = False) -> int:
        return int(await self.read("HLEN", name, watch=watch))

    # Sets

    async def smembers(self, name: Key, *, watch: bool = False) -> set[bytes]:
        return set(await self.read("SMEMBERS", name, watch=watch))

    async def sismember(self, name: Key, value: Value, *, watch: bool = False) -> bool:
        return bool(await self.read("SISMEMBER", name, value, watch=watch))

    async def scard(self, name: Key, *, watch: bool = False) -> int:
        return int(await self.read("SCARD", name, watch=watch))

    # Sorted sets

    async def zscore(self, name: Key, value: Value, *, watch: bool = False) -> float | None:
        score = await self.read("ZSCORE", name, value, watch=watch)

        return None if score is None else float(score)

    async def zrank(self, name: Key, value: Value, *, watch: bool = False) -> int | None:
        rank: int | None = await self.read("ZRANK", name, value, watch=watch)

        return rank

    async def zcard(self, name: Key, *, watch: bool = False) -> int:
        return int(await self.read("ZCARD", name, watch=watch))

    async def zrange(self, name: Key, start: int, end: int, *, watch: bool = False) -> list[tuple[bytes, float]]:
        """Members and scores, the lowest score first."""
        return _scored(await self.read("ZRANGE", name, start, end, "WITHSCORES", watch=watch))

    async def zrevrange(self, name: Key, start: int, end: int, *, watch: bool = False) -> list[tuple[bytes, float]]:
        """Members and scores, the highest score first."""
        return _scored(await self.read("ZREVRANGE", name, start, end, "WITHSCORES", watch=watch))

    async def zrangebyscore(self, name: Key, min: Value, max: Value, *, watch: bool = False) -> list[tuple[bytes, float]]:
        return _scored(await self.read("ZRANGEBYSCORE", name, min, max, "WITHSCORES", watch=watch))

    # Lists

    async def lrange(self, name: Key, start: int, end: int, *, watch: bool = False) -> list[bytes]:
        return list(await self.read("LRANGE", name, start, end, watch=watch))

    async def lindex(self, name: Key, index: int, *, watch: bool = False) -> bytes | None:
        value: bytes | None = await self.read("LINDEX", name, index, watch=watch)

        return value

    async def llen(self, name: Key, *, watch: bool = False) -> int:
        return int(await self.read("LLEN", name, watch=watch))


def _scored(reply: Any) -> list[tuple[bytes, float]]:
    """Pairs under RESP3, members and scores in turn under RESP2."""
    if reply and not isinstance(reply[0], bytes):
        return [(member, float(score)) for member, score in reply]

    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]
