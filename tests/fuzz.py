"""Throws broken input at the decoder: whatever arrives from a stream, nothing but `DecodeError` may come out.

    python -m tests.fuzz [--inputs 1000000] [--seed N]

Valid JSON and MessagePack payloads, and the fields of valid stream entries, are mutated and decoded. It ends with exit code 1, and shows the
input, when another exception escapes, when an error is not fit for a log, or when what was decoded holds a number that is not finite. A
crash of the interpreter or an input that takes seconds shows by itself.
"""

from __future__ import annotations

import argparse
import enum
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec

from eventbus import Event, Message, Metadata
from eventbus.envelope import CODECS, JSON, MAX_PAYLOAD, MSGPACK, decode, from_fields, seal, to_fields
from eventbus.errors import DecodeError, excerpt

SLOW = 1.0
"""Seconds that no input may take; the largest ones take a tenth of that."""


# ------------------------------------------------------------------------------------------------------------- what is valid


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


class Author(msgspec.Struct):
    name: str
    born: date | None = None


@dataclass
class Shelf:
    number: int
    height: float


class Price(msgspec.Struct, tag=True):
    amount: Decimal


class Gift(msgspec.Struct, tag=True):
    giver: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True)
    id: UUID
    isbn: Annotated[str, msgspec.Meta(pattern=r"^[0-9-]+$", max_length=17)]
    title: str
    authors: list[Author]
    registered_at: datetime
    came_by: Price | Gift
    shelf: Shelf
    rating: float = 0.0
    pages: Annotated[int, msgspec.Meta(ge=1)] = 1
    colours: frozenset[Colour] = frozenset()
    tags: dict[str, str | int | None] = msgspec.field(default_factory=dict)
    size: tuple[float, float] = (0.0, 0.0)
    cover: bytes = b""
    lent_for: timedelta = timedelta()
    weights: dict[int, list[float]] = msgspec.field(default_factory=dict)


class Anything(Event):
    metadata = Metadata(name="anything", published=True)
    data: Any
    rating: float | None = None


class Picky(Event):
    """Its own validation raises whatever it likes, in whatever words."""

    metadata = Metadata(name="picky", published=True)
    number: int
    word: str = ""

    def __post_init__(self) -> None:
        if self.number % 7 == 3:
            raise ValueError(f"not {self.number}: \x1b[31m{self.word}\x1b[0m\n")
        if self.number % 7 == 4:
            raise RuntimeError
        if self.number % 7 == 5:
            raise KeyError(self.word)


DUNE = BookRegistered(
    id=UUID("0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f"),
    isbn="978-0-441-17271-9",
    title='Dune – «Der Wüstenplanet» \N{SNOWMAN} \U0001f4d6 "quoted" \\ / \n',
    authors=[Author("Frank Herbert", date(1920, 10, 8)), Author("")],
    registered_at=datetime(2026, 1, 31, 12, 0, 0, 123456, UTC),
    came_by=Price(Decimal("9.99")),
    shelf=Shelf(7, 1.8),
    rating=4.5,
    pages=412,
    colours=frozenset([Colour.red]),
    tags={"genre": "sf", "year": 1965, "loan": None},
    size=(17.5, -1e-300),
    cover=bytes(range(256)),
    lent_for=timedelta(days=14, microseconds=1),
    weights={1: [0.5, 1e300], -2: []},
)
MESSAGES: list[Message] = [
    DUNE,
    msgspec.structs.replace(DUNE, came_by=Gift("Leto"), authors=[]),
    Anything({"a": [1, 2.5, None, True, "x", {"b": []}], "": {}}, 0.5),
    Anything([[[[[[[[]]]]]]]]),
    Anything("x" * 300),
    Anything(list(range(100))),
    Picky(0, "word"),
]
PAYLOADS: list[tuple[type[Message], str, bytes]] = [
    (type(message), codec.content_type, codec.encode(message)) for codec in (JSON, MSGPACK) for message in MESSAGES
]
ENTRIES: list[list[bytes]] = [
    [item if isinstance(item, bytes) else item.encode() for item in to_fields(seal(message, codec=codec, headers=headers))]
    for codec in (JSON, MSGPACK)
    for message in MESSAGES
    for headers in (None, {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tenant": "arrakis"})
]
TYPES = {message.metadata.type: type(message) for message in MESSAGES}


# ----------------------------------------------------------------------------------------------------------- what breaks it

TOKENS = [
    *(b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"9" * 400, b"0x1", b"01", b".5", b"5."),
    *(b"null", b"true", b"nul", b"{}", b"[]", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b'""', b'":"', b"\x00", b"\n", b"\t"),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u12"', b'"\\x41"', b"\xff", b"\xc0\x80", b"\xef\xbb\xbf"),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(b'"data"', b'"rating"', b'"type"', b'"Price"', b'"type":"Gift"', b'"0000-00-00T00:00:00Z"', b'"9999-12-31T23:59:59-23:59"'),
    *(b"\xc1", b"\xc0", b"\xc2", b"\xc3", b"\xca\x7f\xc0\x00\x00", b"\xca\xff\x80\x00\x00"),
    *(b"\xcb\x7f\xf8" + bytes(6), b"\xcb\xff\xf0" + bytes(6)),
    *(b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"),
    *(b"\xd6\xff\xff\xff\xff\xff", b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd4\x01\x00", b"\xc9\xff\xff\xff\xff\x00"),
    *(b"\xd3" + b"\xff" * 8, b"\xcf" + b"\xff" * 8, b"\xa1\xff", b"\xa4data", b"\xa6rating", b"\x80", b"\x90", b"\xd9\xff", b"\x91", b"\x81"),
]  # fmt: skip
TEXTS = [
    *(b"", b"0", b"id", b"created_at", b"type", b"payload", b"content_type", b"correlation_id", b"causation_id", b"\xff\xfe", b"\x00"),
    *(b"2026-01-31T12:00:00Z", b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b"2026-02-30T00:00:00Z", b"2026-W05-6", b"20260131"),
    *(b"2026-01-31T12:00:00", b"2026-01-31T25:00:00Z", b"2026-01-31 12:00:00.1234567+00:00"),
    *("\N{FULLWIDTH DIGIT TWO}026-01-31".encode(), b"now", b"1e999"),
    *(b"application/json", b"application/msgpack", b"text/plain", b"application/json\x1b[31m", b"anything_v1", b"anything_v2", b"picky_v1"),
    *(b"x" * 5000, "\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}".encode(), b"{}", b"[]", b"null", b"\x80"),
]  # fmt: skip


def mutated(payload: bytes, rng: random.Random) -> bytes:
    """The payload with one to four things wrong with it."""
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(MUTATIONS)(data, rng)

    return bytes(data)


def flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def insert_token(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(TOKENS)


def replace_by_token(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.randrange(12)] = rng.choice(TOKENS)


def replace_value(data: bytearray, rng: random.Random) -> None:
    """Between two commas or colons of JSON: the text stays well-formed more often."""
    marks = [at for at, byte in enumerate(data[:2000]) if byte in b",:[]{}"]
    if len(marks) > 1:
        mark = rng.randrange(len(marks) - 1)
        data[marks[mark] + 1 : marks[mark + 1]] = rng.choice(TOKENS)


def cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randrange(1, 20)]


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.randrange(1, 30)]
    data[at:at] = piece * rng.randrange(1, 5)


def splice(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(PAYLOADS)[2]
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


def swap(data: bytearray, rng: random.Random) -> None:
    if data:
        one, other = rng.randrange(len(data)), rng.randrange(len(data))
        data[one], data[other] = data[other], data[one]


def nest(data: bytearray, rng: random.Random) -> None:
    """Deeper than allowed, or just not; closed or left open."""
    levels = rng.choice((1, 60, 62, 63, 64, 65, 66, 100)) if rng.random() < 0.97 else rng.choice((1000, 10_000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"\x91", b""), (b"\x81\xa1a", b""), (b"\xdc\x00\x01", b"")))
    at = rng.randrange(len(data) + 1)
    until = rng.randrange(at, len(data) + 1)
    data[until:until] = closing * levels if rng.random() < 0.7 else b""
    data[at:at] = opening * levels


def grow(data: bytearray, rng: random.Random) -> None:
    """Seldom over the limit: that is quickly said."""
    if rng.random() < 0.01:
        data += rng.choice((b" ", b"\x00", b"a", b'"', b"[", b"\\")) * (MAX_PAYLOAD - len(data) + rng.choice((-1, 0, 1)))


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip, overwrite, insert_token, replace_by_token, replace_value, replace_value, cut, truncate, repeat, splice, swap, nest, grow,
]  # fmt: skip


def mutated_entry(fields: list[bytes], rng: random.Random) -> list[bytes]:
    """The fields of a stream entry with one to three things wrong with them."""
    fields = list(fields)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(fields)) if fields else 0
        match rng.randrange(8):
            case 0 if fields:
                fields[at] = mutated(fields[at], rng)
            case 1 if fields:
                fields[at] = rng.choice(TEXTS)
            case 2:
                fields[at:at] = [rng.choice(TEXTS)]
            case 3:
                fields += [rng.choice(TEXTS), rng.choice(TEXTS)]
            case 4:
                del fields[at : at + rng.randrange(1, 3)]
            case 5:
                pairs = list(zip(fields[::2], fields[1::2], strict=False))
                rng.shuffle(pairs)
                fields = [item for pair in pairs for item in pair]
            case 6 if len(fields) > 7:
                fields[rng.choice((1, 3, 5))] = rng.choice(TEXTS)
            case _:
                fields += fields[at : at + 2]

    return fields


# ------------------------------------------------------------------------------------------------------------ what is expected


def check_payload(cls: type[Message], content_type: str, payload: bytes) -> str:
    """Decode it: ``decoded`` or ``refused``, and anything else is raised."""
    try:
        message = decode(cls, payload, content_type)
    except DecodeError as exc:
        check_error(exc)
        return "refused"
    assert type(message) is cls, f"a {type(message)!r} came out"
    assert all_finite(message), f"a number that is not finite came out: {message!r:.200}"

    return "decoded"


def check_entry(fields: list[bytes]) -> str:
    """Read it as an envelope, and decode what is in it."""
    try:
        envelope = from_fields(fields)
        cls = TYPES.get(envelope.type, Anything)
        outcome = check_payload(cls, envelope.content_type, envelope.payload)
    except DecodeError as exc:
        check_error(exc)
        return "refused"
    written = [item if isinstance(item, bytes) else item.encode() for item in to_fields(envelope)]
    assert from_fields(written) == envelope, "written and read again, it is another envelope"
    for text in (envelope.correlation_id, envelope.causation_id or "", envelope.name):
        text.encode()

    return outcome


def check_error(error: DecodeError) -> None:
    """Fit for a log line and a terminal."""
    for text in (str(error), error.type, error.path):
        assert text == excerpt(text, 2000), f"an error that is not fit for a log: {text!r}"


def all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, msgspec.Struct):
        return all(all_finite(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Shelf):
        return all_finite(value.height)
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))

    return all(map(all_finite, value)) if isinstance(value, list | tuple | set | frozenset) else True


Input = tuple[type[Message], str, bytes] | list[bytes]


def make(rng: random.Random) -> Input:
    """One broken input: a payload and what it is decoded as, or the fields of an entry."""
    if rng.random() < 0.25:
        return mutated_entry(rng.choice(ENTRIES), rng)
    cls, content_type, payload = rng.choice(PAYLOADS)
    if rng.random() < 0.02:
        content_type = rng.choice(list(CODECS))

    return cls, content_type, mutated(payload, rng)


def check(item: Input) -> str:
    return check_entry(item) if isinstance(item, list) else check_payload(*item)


# --------------------------------------------------------------------------------------------------------------- the command


def run(inputs: int, seed: int, tell: Callable[[int, Counter[str]], None]) -> Counter[str]:
    """Check so many inputs; the outcomes. The first failure is shown and ends the program."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for number in range(1, inputs + 1):
        item = make(rng)
        began = time.perf_counter()
        try:
            outcomes[check(item)] += 1
            took = time.perf_counter() - began
            assert took < SLOW, f"it took {took:.1f} s"
        except Exception:
            print(f"\ninput {number} of seed {seed}:\n{item!r:.5000}\n", file=sys.stderr)
            traceback.print_exc()
            sys.exit(1)
        if number % 10_000 == 0 or number == inputs:
            tell(number, outcomes)

    return outcomes


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Decode broken input; only DecodeError may come out."
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N", help="how many (1000000)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="to see the same again (random)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    seed = random.randrange(2**32) if options.seed is None else options.seed
    began = time.perf_counter()
    terminal = sys.stdout.isatty()

    def tell(number: int, outcomes: Counter[str]) -> None:
        if terminal or number == options.inputs or number % 100_000 == 0:
            line = f"{number:>9} of {options.inputs}: {outcomes['refused']} refused, {outcomes['decoded']} decoded"
            print(line, end="\r" if terminal and number < options.inputs else "\n", flush=True)

    print(f"seed {seed}")
    outcomes = run(options.inputs, seed, tell)
    print(f"{outcomes.total()} inputs in {time.perf_counter() - began:.0f} s: nothing but DecodeError came out")


if __name__ == "__main__":
    main()
