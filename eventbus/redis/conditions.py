"""What must hold on the server for the writes of a transaction to succeed, all of them: a script does not roll back what it has begun.

Most of what can go wrong is known here already: a command's form, two types for one key, a sum of what was set before. What depends on the
server (the types of keys that are there, the numbers that are counted up) becomes a condition, and is looked at before the first write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from eventbus.errors import ConfigurationError, excerpt

LEAST: Final = -(2**63)
MOST: Final = 2**63 - 1
LARGEST: Final = 1e300
"""Sums of decimal numbers stay below, far enough from where they would become infinite."""

Words = Sequence[bytes]
Value = int | bytes | None
"""What a number starts from: a whole number, a text that is none, or (None) what the server has."""


class Conditions:
    """Follows the writes of one transaction, in their order."""

    def __init__(self) -> None:
        self.adds: bool = False
        """Whether some write needs memory, so that a full server refuses it."""
        self._keys: dict[bytes, _Key] = {}

    def follow(self, name: str, key: bytes, words: Words) -> None:
        """Take one more write into account. `ConfigurationError` for one that cannot succeed, or cannot be foreseen."""
        command = COMMANDS.get(name)
        if command is None:
            raise ConfigurationError(
                f"{excerpt(name, 40)} cannot be foreseen, and so not be part of a transaction; there are {', '.join(sorted(COMMANDS))}"
            )
        try:
            command.check(words)
        except IndexError:
            raise ConfigurationError(f"{name} {shown(key)}: too few words") from None
        except ValueError as exc:
            raise ConfigurationError(f"{name} {shown(key)}: {exc}") from None
        state = self._keys.setdefault(key, _Key())
        try:
            if command.type is not None and not (name == "SET" and not _is_conditional(words)):
                state.use(command.type)
            if command.effect is not None:
                command.effect(state, words)
        except ValueError as exc:
            raise ConfigurationError(f"{name} {shown(key)}: {exc}") from None
        self.adds = self.adds or command.adds

    def __iter__(self) -> Iterator[tuple[str, bytes, str, bytes | str, int | str, int | str]]:
        """Each condition: its kind, the key, and four more words as `settle` takes them. Types come first."""
        for key, state in self._keys.items():
            if state.needed is not None:
                yield "type", key, state.needed, "", "", ""
        for key, state in self._keys.items():
            for field, (low, high) in state.whole.items():
                yield "integer", key, *_read(field), LEAST - low, MOST - high
            for field, room in state.decimal.items():
                yield "decimal", key, *_read(field), "", repr(LARGEST - room)


class _Key:
    """What is known of a key in the course of a transaction."""

    def __init__(self) -> None:
        self.type: str | None = None
        self.needed: str | None = None
        """The type that it must have on the server, if it is there."""
        self.ours = False
        """What it holds was made here: set, or deleted and made anew."""
        self.whole: dict[bytes | None, tuple[int, int]] = {}
        """By field, or None for the value itself: how far the sum goes down and up from the server's number."""
        self.decimal: dict[bytes | None, float] = {}
        self._origins: list[Value] = [None]
        self._numbers: dict[bytes | None, list[_Number]] = {}

    def use(self, type: str) -> None:
        if self.type is None:
            self.type = type
            if not self.ours:
                self.needed = type
        elif self.type != type:
            raise ValueError(f"in this transaction it is a {self.type}, and no {type}; delete it first, or take another key")

    def delete(self) -> None:
        self._become(None, 0)

    def set(self, value: bytes) -> None:
        self._become("string", _value(value))

    def perhaps_delete(self) -> None:
        self._origins = _with(self._origins, 0)
        for field in self._numbers:
            self.perhaps_put(field, 0)

    def put(self, field: bytes | None, value: Value) -> None:
        self._numbers[field] = [_Number(value)]

    def perhaps_put(self, field: bytes | None, value: Value) -> None:
        numbers = self._number(field)
        if all((number.start, number.total) != (value, 0) for number in numbers):
            numbers.append(_Number(value))

    def add(self, field: bytes | None, amount: int) -> None:
        for number in self._number(field):
            number.add(amount)
            if number.start is None:
                self.whole[field] = number.low, number.high

    def add_decimal(self, field: bytes | None, amount: float) -> None:
        for number in self._number(field):
            number.add_decimal(amount)
            if number.start is None:
                self.decimal[field] = number.room

    def _number(self, field: bytes | None) -> list[_Number]:
        return self._numbers.setdefault(field, [_Number(origin) for origin in self._origins])

    def _become(self, type: str | None, value: Value) -> None:
        self.ours, self.type = True, type
        self._origins = [value]
        self._numbers.clear()


class _Number:
    """One way in which a number can have come about, and what was added to it."""

    def __init__(self, start: Value) -> None:
        self.start = start
        self.total = self.low = self.high = 0
        self.room = 0.0
        self.decimal = False

    def add(self, amount: int) -> None:
        if self.decimal:
            raise ValueError("a decimal number was added before, and what it is then may be no whole number")
        if isinstance(self.start, bytes):
            raise ValueError(f"in this transaction it is {shown(self.start)}, and no whole number")
        self.total += amount
        self.low, self.high = min(self.low, self.total), max(self.high, self.total)
        if self.start is None:
            possible = self.high - self.low <= MOST - LEAST
        else:
            possible = LEAST <= self.start + self.total <= MOST
        if not possible:
            raise ValueError("the sum needs more than 64 bits")
        self.room += abs(amount)

    def add_decimal(self, amount: float) -> None:
        if isinstance(self.start, bytes) and not _DECIMAL.fullmatch(self.start):
            raise ValueError(f"in this transaction it is {shown(self.start)}, and no number")
        self.decimal = True
        self.room += abs(amount)
        if not abs(float(self.start or 0)) + self.room <= LARGEST:
            raise ValueError(f"the sum may be over {LARGEST:g}")


# ------------------------------------------------------------------------------------------------------------- commands


class Foreseen(msgspec.Struct, frozen=True):
    """A command that can be foreseen."""

    type: str | None
    """Of the key that it writes; None for any."""
    adds: bool
    check: Callable[[Words], object]
    """Raises `ValueError`, or `IndexError` for too few words, when the server would not take what follows the key."""
    effect: Callable[[_Key, Words], object] | None = None


def integer(word: bytes) -> int:
    if not _INTEGER.fullmatch(word) or not LEAST <= int(word) <= MOST:
        raise ValueError(f"{shown(word)} is no whole number of 64 bits")

    return int(word)


def decimal(word: bytes) -> float:
    """A number that is finite, for the server too."""
    number = float(word) if _DECIMAL.fullmatch(word) else math.nan
    if not math.isfinite(number) or (number == 0 and re.search(rb"[1-9]", word.lower().partition(b"e")[0])):
        raise ValueError(f"{shown(word)} is no finite number")

    return number


def shown(word: bytes) -> str:
    """A word for an error."""
    return excerpt(repr(word)[1:], 80)


def _exactly(count: int, words: Words) -> None:
    if len(words) != count:
        raise ValueError(f"takes {count} words after the key, not {len(words)}")


def _some(words: Words) -> None:
    if not words:
        raise IndexError


def _nothing(words: Words) -> None:
    _exactly(0, words)


def _pairs(words: Words) -> None:
    _some(words)
    if len(words) % 2:
        raise ValueError(f"takes pairs, not {len(words)} words")


def _value_and(check: Callable[[bytes], object], at: int, count: int) -> Callable[[Words], None]:
    def checked(words: Words) -> None:
        _exactly(count, words)
        check(words[at])

    return checked


def _two_integers(words: Words) -> None:
    _exactly(2, words)
    integer(words[0])
    integer(words[1])


def _score(word: bytes) -> None:
    if not _INFINITE.fullmatch(word):
        decimal(word)


def _two_bounds(words: Words) -> None:
    _exactly(2, words)
    for word in words:
        _score(word.removeprefix(b"("))


def _at_most_a_count(words: Words) -> None:
    if words:
        _exactly(1, words)
        if not 0 <= integer(words[0]) <= 2**31 - 1:
            raise ValueError(f"{shown(words[0])} is no count")


def _set(words: Words) -> None:
    _some(words)
    options, ends = _options(words), 0
    at = 0
    while at < len(options):
        if options[at] in (b"EX", b"PX"):
            if not 0 < integer(options[at + 1]) <= _LATEST[options[at]]:
                raise ValueError(f"{shown(options[at + 1])} is no time to expire")
            ends, at = ends + 1, at + 2
        elif options[at] in (b"KEEPTTL", b"NX", b"XX"):
            ends, at = ends + (options[at] == b"KEEPTTL"), at + 1
        else:
            raise ValueError(f"the option {shown(options[at])} is not among EX, PX, KEEPTTL, NX, XX")
    if ends > 1 or (b"NX" in options and b"XX" in options):
        raise ValueError("its options exclude each other")


def _is_conditional(words: Words) -> bool:
    return any(option in (b"NX", b"XX") for option in _options(words))


def _options(words: Words) -> list[bytes]:
    return [word.upper() for word in words[1:]]


def _zadd(words: Words) -> None:
    at = 0
    while words[at].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH"):
        at += 1
    options = {word.upper() for word in words[:at]} - {b"CH"}
    if len(options) > 1 and options not in ({b"XX", b"GT"}, {b"XX", b"LT"}):
        raise ValueError("its options exclude each other")
    _pairs(words[at:])
    for word in words[at::2]:
        _score(word)


def _expire(unit: bytes) -> Callable[[Words], None]:
    def check(words: Words) -> None:
        _exactly(1, words)
        if abs(integer(words[0])) > _LATEST[unit]:
            raise ValueError(f"{shown(words[0])} is no time to expire")

    return check


def _linsert(words: Words) -> None:
    _exactly(3, words)
    if words[0].upper() not in (b"BEFORE", b"AFTER"):
        raise ValueError(f"inserts BEFORE or AFTER, not {shown(words[0])}")


def _setbit(words: Words) -> None:
    _exactly(2, words)
    if not 0 <= integer(words[0]) < 2**32 or words[1] not in (b"0", b"1"):
        raise ValueError("takes a place below 2^32, and 0 or 1")


# What they do to what is known of the key.


def _effect_of_set(key: _Key, words: Words) -> None:
    if _is_conditional(words):
        key.perhaps_put(None, _value(words[0]))
    else:
        key.set(words[0])


def _effect_of_hset(key: _Key, words: Words) -> None:
    for field, value in zip(words[::2], words[1::2], strict=True):
        key.put(field, _value(value))


def _effect_of_hdel(key: _Key, words: Words) -> None:
    for field in words:
        key.put(field, 0)


def _effect_of_expire(key: _Key, words: Words) -> None:
    if int(words[0]) <= 0:
        key.perhaps_delete()


COMMANDS: Final[dict[str, Foreseen]] = {
    "DEL": Foreseen(None, False, _nothing, lambda key, _: key.delete()),
    "UNLINK": Foreseen(None, False, _nothing, lambda key, _: key.delete()),
    "EXPIRE": Foreseen(None, False, _expire(b"EX"), _effect_of_expire),
    "PEXPIRE": Foreseen(None, False, _expire(b"PX"), _effect_of_expire),
    "EXPIREAT": Foreseen(None, False, _expire(b"EXAT"), lambda key, _: key.perhaps_delete()),
    "PEXPIREAT": Foreseen(None, False, _expire(b"PXAT"), lambda key, _: key.perhaps_delete()),
    "PERSIST": Foreseen(None, False, _nothing),
    "SET": Foreseen("string", True, _set, _effect_of_set),
    "INCRBY": Foreseen("string", True, _value_and(integer, 0, 1), lambda key, words: key.add(None, int(words[0]))),
    "INCRBYFLOAT": Foreseen("string", True, _value_and(decimal, 0, 1), lambda key, words: key.add_decimal(None, float(words[0]))),
    "SETBIT": Foreseen("string", True, _setbit, lambda key, _: key.put(None, b"a text of bits")),
    "HSET": Foreseen("hash", True, _pairs, _effect_of_hset),
    "HSETNX": Foreseen("hash", True, lambda words: _exactly(2, words), lambda key, w: key.perhaps_put(w[0], _value(w[1]))),
    "HDEL": Foreseen("hash", False, _some, _effect_of_hdel),
    "HINCRBY": Foreseen("hash", True, _value_and(integer, 1, 2), lambda key, words: key.add(words[0], int(words[1]))),
    "HINCRBYFLOAT": Foreseen("hash", True, _value_and(decimal, 1, 2), lambda key, w: key.add_decimal(w[0], float(w[1]))),
    "SADD": Foreseen("set", True, _some),
    "SREM": Foreseen("set", False, _some),
    "ZADD": Foreseen("zset", True, _zadd),
    "ZINCRBY": Foreseen("zset", True, _value_and(decimal, 0, 2)),
    "ZREM": Foreseen("zset", False, _some),
    "ZREMRANGEBYRANK": Foreseen("zset", False, _two_integers),
    "ZREMRANGEBYSCORE": Foreseen("zset", False, _two_bounds),
    "LPUSH": Foreseen("list", True, _some),
    "RPUSH": Foreseen("list", True, _some),
    "LPUSHX": Foreseen("list", True, _some),
    "RPUSHX": Foreseen("list", True, _some),
    "LINSERT": Foreseen("list", True, _linsert),
    "LREM": Foreseen("list", False, _value_and(integer, 0, 2)),
    "LTRIM": Foreseen("list", False, _two_integers),
    "LPOP": Foreseen("list", False, _at_most_a_count),
    "RPOP": Foreseen("list", False, _at_most_a_count),
}
"""What can be written in a transaction. All of them have one key."""

_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(rb"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INFINITE = re.compile(rb"[+-]?inf(inity)?", re.IGNORECASE)
_LATEST = {b"EX": 10**12, b"PX": 10**15, b"EXAT": 10**12, b"PXAT": 10**15}


def _value(word: bytes) -> Value:
    return int(word) if _INTEGER.fullmatch(word) and LEAST <= int(word) <= MOST else word


def _with(values: Iterable[Value], value: Value) -> list[Value]:
    return [*(other for other in values if other != value), value]


def _read(field: bytes | None) -> tuple[str, bytes | str]:
    return ("GET", "") if field is None else ("HGET", field)
