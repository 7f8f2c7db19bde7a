"""The writes of a transaction: gathered in their order until it is committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from eventbus.errors import ConfigurationError, excerpt
from eventbus.redis.conditions import Conditions

Key = bytes | str
Value = bytes | str | int | float

AT_ONCE: Final = 1000
"""Members, fields or values in one command, at most; more are divided."""
AT_MOST: Final = 7000
"""Words that a script can hand to one command: Lua has room for 8000, and an error in the midst of a transaction would leave half of it."""
LARGEST: Final = 100_000
"""Words in all the writes of one transaction, at most: they stop the server for some 50 ms."""


class Writes:
    """What is to be written, with the commands named as redis-py names them. Nothing is sent, and nothing is answered.

    What can be known to fail raises `ConfigurationError` at once: a value that is no number, one key used with two types.
    """

    def __init__(self) -> None:
        self.commands: list[tuple[str, bytes, Sequence[bytes]]] = []
        """Each with its one key, and what follows it."""
        self.conditions: Conditions = Conditions()
        self._size = 0

    def write(self, command: str, name: Key, *args: Value) -> None:
        """A command that has no method here: `session.write("LPOP", "queue")`. It has one key, and can be foreseen to succeed."""
        key, words = encoded(name), few(command, [encoded(arg) for arg in args])
        command = command.upper()
        self._size += len(words) + 3
        if self._size > LARGEST:
            raise ConfigurationError(
                f"a transaction of over {LARGEST} words would stop the server for too long; divide it into several"
            )
        self.conditions.follow(command, key, words)
        self.commands.append((command, key, words))

    # Keys

    def delete(self, *names: Key) -> None:
        for name in names:
            self.write("DEL", name)

    def unlink(self, *names: Key) -> None:
        for name in names:
            self.write("UNLINK", name)

    def expire(self, name: Key, time: int | timedelta) -> None:
        self.write("EXPIRE", name, _seconds(time))

    def pexpire(self, name: Key, time: int | timedelta) -> None:
        self.write("PEXPIRE", name, _milliseconds(time))

    def expireat(self, name: Key, when: int | datetime) -> None:
        self.write("EXPIREAT", name, int(_moment(when)))

    def pexpireat(self, name: Key, when: int | datetime) -> None:
        self.write("PEXPIREAT", name, when if isinstance(when, int) else int(_moment(when) * 1000))

    def persist(self, name: Key) -> None:
        self.write("PERSIST", name)

    # Strings

    def set(
        self,
        name: Key,
        value: Value,
        *,
        ex: int | timedelta | None = None,
        px: int | timedelta | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
    ) -> None:
        options: list[Value] = []
        if ex is not None:
            options += ("EX", _seconds(ex))
        if px is not None:
            options += ("PX", _milliseconds(px))
        options += _flags(keepttl=keepttl, nx=nx, xx=xx)
        self.write("SET", name, value, *options)

    def mset(self, mapping: Mapping[str, Value] | Mapping[bytes, Value]) -> None:
        for name, value in mapping.items():
            self.write("SET", name, value)

    def incrby(self, name: Key, amount: int = 1) -> None:
        self.write("INCRBY", name, amount)

    def incr(self, name: Key, amount: int = 1) -> None:
        self.write("INCRBY", name, amount)

    def decr(self, name: Key, amount: int = 1) -> None:
        self.write("INCRBY", name, -amount)

    def decrby(self, name: Key, amount: int = 1) -> None:
        self.write("INCRBY", name, -amount)

    def incrbyfloat(self, name: Key, amount: float = 1.0) -> None:
        self.write("INCRBYFLOAT", name, amount)

    # Hashes

    def hset(
        self,
        name: Key,
        key: Value | None = None,
        value: Value | None = None,
        mapping: Mapping[str, Value] | Mapping[bytes, Value] | None = None,
    ) -> None:
        pairs: list[Value] = [word for pair in (mapping or {}).items() for word in pair]
        if key is not None and value is not None:
            pairs = [key, value, *pairs]
        self._divided("HSET", name, (), pairs)

    def hsetnx(self, name: Key, key: Value, value: Value) -> None:
        self.write("HSETNX", name, key, value)

    def hdel(self, name: Key, *keys: Value) -> None:
        self._divided("HDEL", name, (), keys)

    def hincrby(self, name: Key, key: Value, amount: int = 1) -> None:
        self.write("HINCRBY", name, key, amount)

    def hincrbyfloat(self, name: Key, key: Value, amount: float = 1.0) -> None:
        self.write("HINCRBYFLOAT", name, key, amount)

    # Sets

    def sadd(self, name: Key, *values: Value) -> None:
        self._divided("SADD", name, (), values)

    def srem(self, name: Key, *values: Value) -> None:
        self._divided("SREM", name, (), values)

    # Sorted sets

    def zadd(
        self,
        name: Key,
        mapping: Mapping[str, float] | Mapping[bytes, float] | Mapping[int, float],
        *,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> None:
        pairs: list[Value] = [word for member, score in mapping.items() for word in (score, member)]
        self._divided("ZADD", name, _flags(nx=nx, xx=xx, gt=gt, lt=lt), pairs)

    def zincrby(self, name: Key, amount: float, value: Value) -> None:
        self.write("ZINCRBY", name, amount, value)

    def zrem(self, name: Key, *values: Value) -> None:
        self._divided("ZREM", name, (), values)

    def zremrangebyrank(self, name: Key, min: int, max: int) -> None:
        self.write("ZREMRANGEBYRANK", name, min, max)

    def zremrangebyscore(self, name: Key, min: Value, max: Value) -> None:
        self.write("ZREMRANGEBYSCORE", name, min, max)

    # Lists

    def lpush(self, name: Key, *values: Value) -> None:
        self._divided("LPUSH", name, (), values)

    def rpush(self, name: Key, *values: Value) -> None:
        self._divided("RPUSH", name, (), values)

    def lrem(self, name: Key, count: int, value: Value) -> None:
        self.write("LREM", name, count, value)

    def ltrim(self, name: Key, start: int, end: int) -> None:
        self.write("LTRIM", name, start, end)

    def _divided(self, command: str, name: Key, options: Sequence[Value], words: Iterable[Value]) -> None:
        """One command, or several if the words are many; an even number in each, so that pairs stay together."""
        rest = iter(words)
        part = list(islice(rest, AT_ONCE))
        while True:
            self.write(command, name, *options, *part)
            part = list(islice(rest, AT_ONCE))
            if not part:
                return


def few(command: str, words: list[bytes]) -> list[bytes]:
    """The words, if a script can hand so many to a command."""
    if len(words) > AT_MOST:
        raise ConfigurationError(
            f"{excerpt(command, 40)} with {len(words)} words: divide it, a script takes {AT_MOST} in one command"
        )

    return words


def encoded(value: Value) -> bytes:
    """As redis-py would send it. A bool, or what is no value at all, is a `ConfigurationError`."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{value!r:.80} is neither bytes, text nor a number: convert it first")

    return repr(value + 0).encode()  # a subclass, such as an IntEnum, has a repr of its own


def _flags(**options: bool) -> list[Value]:
    return [name.upper() for name, given in options.items() if given]


def _seconds(time: int | timedelta) -> int:
    return int(time.total_seconds()) if isinstance(time, timedelta) else time


def _milliseconds(time: int | timedelta) -> int:
    return int(time.total_seconds() * 1000) if isinstance(time, timedelta) else time


def _moment(when: int | datetime) -> float:
    if isinstance(when, int):
        return when

    return when.astimezone(UTC).timestamp()
