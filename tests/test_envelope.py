"""Envelopes: the wire format to the byte, what is not let out, and that what comes in broken is one kind of error."""

import json
import math
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.fuzz as fuzz
from eventbus import Envelope, Event, Metadata
from eventbus.envelope import (
    CODECS,
    JSON,
    MAX_DEPTH,
    MAX_HEADER,
    MAX_HEADERS,
    MAX_PAYLOAD,
    MSGPACK,
    Codec,
    decode,
    from_fields,
    new_id,
    now,
    seal,
    split_type,
    timestamp,
    to_fields,
)
from eventbus.errors import ConfigurationError, DecodeError, EncodeError
from eventbus.message_store import Record

ID = UUID("0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f")
NOON = datetime(2026, 1, 31, 12, 0, 0, 5, UTC)


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID
    isbn: str
    title: str = ""


class Anything(Event):
    metadata = Metadata(name="anything", published=True)
    data: Any
    rating: float | None = None


class Book(msgspec.Struct):
    price: float
    title: str = ""


class Shelf(Event):
    metadata = Metadata(name="shelf", published=True)
    books: list[Book]
    by_isbn: Mapping[str, Book] = {}
    tags: tuple[str, ...] = ()
    height: float = 1.0
    ratings: frozenset[float] = frozenset()


DUNE = BookRegistered(id=ID, isbn="978-0-441-17271-9", title="Dune")


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]

    return value


def encoded(codec: Codec, value: Any) -> bytes:
    """What somebody else sends, who does not look first."""
    return msgspec.json.encode(value) if codec is JSON else msgspec.msgpack.encode(value)


both = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


# --------------------------------------------------------------------------------------------------------------- golden bytes


def test_an_envelope_on_the_wire() -> None:
    """To the byte: names and order never change, so that Redis' listpack shares them, and messagebus' services can read it."""
    envelope = Envelope(
        id="0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f",
        created_at=NOON,
        type="book_registered_v1",
        payload=b'{"id":"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f","isbn":"978-0-441-17271-9","title":"Dune"}',
        headers={"correlation_id": "c", "causation_id": "d", "tenant": "arrakis"},
    )

    assert [
        *("id", "0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f"),
        *("created_at", "2026-01-31T12:00:00.000005Z"),
        *("type", "book_registered_v1"),
        *("payload", b'{"id":"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f","isbn":"978-0-441-17271-9","title":"Dune"}'),
        *("correlation_id", "c"),
        *("causation_id", "d"),
        *("tenant", "arrakis"),
    ] == to_fields(envelope)


def test_a_message_on_the_wire() -> None:
    """The payload is the data and nothing else, compact, in the order of the fields."""
    assert b'{"id":"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f","isbn":"978-0-441-17271-9","title":"Dune"}' == JSON.encode(DUNE)
    assert (
        b"\x83\xa2id\xd9$0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f\xa4isbn\xb1978-0-441-17271-9\xa5title\xa4Dune"
    ) == MSGPACK.encode(DUNE)


def test_every_kind_of_value_on_the_wire() -> None:
    """What a decoder in another language must know."""
    value = {
        "text": "ä\n\U0001f4d6",
        "int": 2**63,
        "float": 0.1,
        "yes": True,
        "none": None,
        "when": NOON,
        "day": NOON.date(),
        "after": timedelta(minutes=1.5),
        "id": ID,
        "price": Decimal("9.90"),
        "bytes": b"\x00\xff",
        "list": [1, []],
    }
    expected = (
        r'{"data":{"text":"ä\n📖","int":9223372036854775808,"float":0.1,"yes":true,"none":null,"when":"2026-01-31T12:00:00.000005Z",'
        r'"day":"2026-01-31","after":"PT90S","id":"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f","price":"9.90","bytes":"AP8=","list":[1,[]]},'
        r'"rating":null}'
    )

    assert expected.encode() == encoded(JSON, Anything(value))


def test_the_four_fields_of_messagebus_are_an_envelope() -> None:
    """Its services and ours share a stream: order is free, headers may be missing, an offset is understood."""
    fields = [
        *(b"type", b"book_registered_v1", b"created_at", b"2026-01-31T13:00:00.000005+01:00"),
        *(b"payload", b'{"title":"Dune","isbn":"1","id":"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f","new":{"field":[1]}}'),
        *(b"id", b"0190f3c5-6f6a-7cc3-98c4-dc0c0c07398f"),
    ]
    envelope = from_fields(fields, "reading-club")

    assert Envelope(str(ID), NOON, "book_registered_v1", fields[5], {}, stream="reading-club") == envelope
    assert UTC is envelope.created_at.tzinfo
    assert BookRegistered(ID, "1", "Dune") == decode(BookRegistered, envelope.payload, envelope.content_type)


# ------------------------------------------------------------------------------------------------------------------ envelopes


def test_any_further_field_is_a_header() -> None:
    fields = [*as_bytes(to_fields(seal(DUNE, headers={"tenant": "arrakis"}))), b"traceparent", "ü".encode()]

    assert {"tenant": "arrakis", "traceparent": "ü"} == from_fields(fields).headers


@both
def test_what_is_written_can_be_read(codec: Codec) -> None:
    """An envelope comes back as it was, but for where it goes and what orders it, which are not written on it."""
    envelope = seal(DUNE, codec=codec, cause=Record(Anything(1)), headers={"tenant": "arrakis"})

    assert envelope == from_fields(as_bytes(to_fields(envelope)))
    assert DUNE == decode(BookRegistered, envelope.payload, envelope.content_type)


def test_json_is_not_announced_and_messagepack_is() -> None:
    assert ({}, "application/json") == (seal(DUNE).headers, seal(DUNE).content_type)
    assert ({"content_type": "application/msgpack"}, "application/msgpack") == (
        seal(DUNE, codec=MSGPACK).headers,
        seal(DUNE, codec=MSGPACK).content_type,
    )


def test_an_envelope_that_nothing_caused_is_its_own_beginning() -> None:
    envelope = seal(DUNE)

    assert (envelope.id, None) == (envelope.correlation_id, envelope.causation_id)


def test_an_envelope_says_what_caused_it() -> None:
    first = Record(Anything(1))
    second = Record(Anything(2), first)
    envelope = seal(DUNE, cause=second)

    assert (first.id, second.id) == (envelope.correlation_id, envelope.causation_id)
    assert ["correlation_id", "causation_id"] == list(envelope.headers)


def test_where_it_goes_and_what_orders_it_come_from_the_metadata() -> None:
    """The key is the text of the field's value; a field that is empty orders nothing."""

    class Lent(Event):
        metadata = Metadata(name="lent", published=True, stream="lending", key="copy")
        copy: int | None

    assert [("lending", "7"), ("lending", None)] == [
        (envelope.stream, envelope.key) for envelope in (seal(Lent(7)), seal(Lent(None)))
    ]
    assert (None, None) == (seal(DUNE).stream, seal(DUNE).key)


def test_ids_are_uuid7_and_sort_in_the_order_in_which_they_were_made() -> None:
    """By one process, from several threads too."""
    ids = [new_id() for _ in range(10_000)]
    others: list[list[str]] = []
    threads = [threading.Thread(target=lambda: others.append([new_id() for _ in range(2_000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(set(ids)) == ids
    assert [sorted(some) for some in others] == others
    assert {7} == {UUID(id).version for id in ids[:100]}
    assert 8_000 == len({id for some in others for id in some})


def test_an_id_tells_its_time() -> None:
    """The first 48 bits of a uuid7 are milliseconds."""
    before = now()
    made = UUID(new_id()).int >> 80

    assert int(before.timestamp() * 1000) <= made <= int(now().timestamp() * 1000)


@pytest.mark.parametrize(
    ("expected", "moment"),
    [
        ("2026-01-31T12:00:00.000005Z", NOON),
        ("2026-01-31T12:00:00.000000Z", NOON.replace(microsecond=0)),
        ("2026-01-31T10:30:00.000005Z", NOON.replace(tzinfo=timezone(timedelta(hours=1, minutes=30)))),
        ("2026-01-31T12:00:00.000005Z", NOON.replace(tzinfo=timezone(timedelta(0), "Zulu"))),
    ],
)
def test_a_time_on_the_wire_is_utc_with_microseconds(expected: str, moment: datetime) -> None:
    assert expected == timestamp(moment)


@pytest.mark.parametrize(
    ("expected", "type"),
    [
        (("book_registered", "1"), "book_registered_v1"),
        (("book_v2", "12"), "book_v2_v12"),
        (("book_registered", ""), "book_registered"),
        (("book_vx", ""), "book_vx"),
        (("", "1"), "_v1"),
        (("", ""), ""),
    ],
)
def test_a_type_is_a_name_and_a_version(expected: tuple[str, str], type: str) -> None:
    assert expected == split_type(type)


def test_versions_live_side_by_side() -> None:
    """Two classes with one name: each payload is decoded as what it says it is."""

    class BookRegisteredV2(Event):
        metadata = Metadata(name="book_registered", schema_version=2, published=True)
        isbn: int

    old, new = seal(DUNE), seal(BookRegisteredV2(5))

    assert ["book_registered_v1", "book_registered_v2"] == [old.type, new.type]
    assert ["book_registered", "book_registered"] == [old.name, new.name]
    assert [DUNE, BookRegisteredV2(5)] == [decode(BookRegistered, old.payload), decode(BookRegisteredV2, new.payload)]


def test_an_entry_without_a_time_zone_is_utc() -> None:
    fields = as_bytes(to_fields(seal(DUNE)))
    fields[3] = b"2026-01-31T12:00:00.000005"

    assert NOON == from_fields(fields).created_at


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (0, b"ID", "the entry has no field 'id': it is no envelope"),
        (2, b"made_at", "the entry has no field 'created_at': it is no envelope"),
        (4, b"kind", "the entry has no field 'type': it is no envelope"),
        (6, b"data", "the entry has no field 'payload': it is no envelope"),
        (1, b"\xff", "the entry is no envelope: 'utf-8' codec can't decode byte 0xff"),
        (5, b"\xed\xa0\x80", "the entry is no envelope: 'utf-8' codec can't decode byte 0xed"),
        (8, b"\xff", "the entry is no envelope: 'utf-8' codec"),
        (9, b"\xff", "the entry is no envelope: 'utf-8' codec"),
        (1, b"", "the entry has an empty id: it is no envelope"),
        (3, b"yesterday", "created_at is 'yesterday', not an RFC 3339 time"),
        (3, b"\x1b[31m", "created_at is '\N{REPLACEMENT CHARACTER}[31m', not an RFC 3339 time"),
        (3, b"0001-01-01T00:00:00+01:00", "created_at is '0001-01-01T00:00:00+01:00', not an RFC 3339 time"),
        (3, b"9999-12-31T23:59:59-01:00", "created_at is '9999-12-31T23:59:59-01:00', not an RFC 3339 time"),
        (slice(7, 8), [], "the entry is no envelope: it has 9 names and values, an odd number"),
        (slice(0, 10), [], "the entry has no field 'id': it is no envelope"),
    ],
)
def test_an_entry_that_is_no_envelope(position: Any, value: Any, text: str) -> None:
    """Somebody else wrote to the stream: it is said what is missing."""
    fields = as_bytes(to_fields(seal(DUNE, headers={"tenant": "arrakis"})))
    fields[position] = value
    with pytest.raises(DecodeError) as caught:
        from_fields(fields)

    assert str(caught.value).startswith(text)


# -------------------------------------------------------------------------------------------------------------------- headers


def test_headers_have_limits() -> None:
    """As many and as long as may be, and not one more."""
    many = {f"h{number}": "x" for number in range(MAX_HEADERS)}
    long = {"n" * MAX_HEADER: "ä" * (MAX_HEADER // 2)}

    assert [many, long] == [seal(DUNE, headers=headers).headers for headers in (many, long)]
    with pytest.raises(EncodeError, match="65 headers, but at most 64 may travel"):
        seal(DUNE, headers=many | {"one": "more"})
    with pytest.raises(EncodeError, match=r"header 'n+ is over 4096 bytes; put data in the message"):
        seal(DUNE, headers={"n" * (MAX_HEADER + 1): ""})
    with pytest.raises(EncodeError, match="header 'n' is over 4096 bytes"):
        seal(DUNE, headers={"n": "ä" * (MAX_HEADER // 2) + "x"})


@pytest.mark.parametrize(
    "name",
    ["", "id", "created_at", "type", "payload", "content_type", "correlation_id", "causation_id", "retry-attempt", "dead-reason"],
)
def test_the_projects_own_headers_are_not_the_users(name: str) -> None:
    with pytest.raises(EncodeError, match=f"header '{name}' is the project's own; choose another name") as caught:
        seal(DUNE, headers={name: "x"})

    assert "$.headers" == caught.value.path


@pytest.mark.parametrize("header", [{"tenant": 5}, {5: "tenant"}, {"tenant": None}, {"tenant": b"x"}])
def test_headers_are_text(header: Any) -> None:
    with pytest.raises(EncodeError, match="names and values are text"):
        seal(DUNE, headers=header)


@pytest.mark.parametrize("header", [{"tenant": "\ud800"}, {"\ud800": "x"}])
def test_headers_are_text_that_can_be_written(header: dict[str, str]) -> None:
    """A lone surrogate is no text on the wire."""
    with pytest.raises(EncodeError, match="cannot be written as UTF-8"):
        seal(DUNE, headers=header)


@pytest.mark.parametrize("name", ["n" * 253, "ä" * 126 + "x"])
def test_a_type_has_a_limit(name: str) -> None:
    """256 bytes. What is over it fails where it is encoded, inside the transaction."""

    class Long(Event):
        metadata = Metadata(name=name, published=True)

    class TooLong(Event):
        metadata = Metadata(name=name + "x", published=True)

    assert 256 == len(seal(Long()).type.encode())
    with pytest.raises(EncodeError, match="is over 256 bytes; choose a shorter name"):
        seal(TooLong())


# ------------------------------------------------------------------------------------------------------------ strict encoding


class Colour(Enum):
    red = "red"


@dataclass
class Rating:
    stars: float


class Wide(Event):
    """A field for each kind of value that can go wrong."""

    metadata = Metadata(name="wide", published=True)
    text: str = ""
    number: int = 0
    price: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    maybe: float | None = None
    book: Book | None = None
    books: list[Book] = msgspec.field(default_factory=list)
    prices: dict[str, float] = msgspec.field(default_factory=dict)
    pair: tuple[int, int] = (0, 0)
    rating: Rating | None = None
    anything: Any = None
    decimal: Decimal = Decimal(0)


looped: list[Any] = []
looped.append({"again": looped})


@both
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$.text", Wide(text=5)),  # type: ignore[arg-type]
        ("$.text", Wide(text="\ud800")),
        ("$.number", Wide(number="5")),  # type: ignore[arg-type]
        ("$.number", Wide(number=True)),
        ("$.number", Wide(number=1.5)),  # type: ignore[arg-type]
        ("$.price", Wide(price=-1.0)),
        ("$.price", Wide(price=math.nan)),
        ("$.price", Wide(price=math.inf)),
        ("$.maybe", Wide(maybe=math.nan)),
        ("$.maybe", Wide(maybe=-math.inf)),
        ("$.book.price", Wide(book=Book(math.inf))),
        ("$.book.title", Wide(book=Book(1.0, title=None))),  # type: ignore[arg-type]
        ("$.books[1].price", Wide(books=[Book(1.0), Book(math.nan)])),
        ("$.prices['b']", Wide(prices={"a": 1.0, "b": math.inf})),
        ("$.pair", Wide(pair=[1, 2])),  # type: ignore[arg-type]
        ("$.rating.stars", Wide(rating=Rating(math.inf))),
        ("$.anything[1]['x']", Wide(anything=[1, {"x": object()}])),
        ("$.anything['x'][0]", Wide(anything={"x": [math.nan]})),
        ("$.anything", Wide(anything=(1, 2))),
        ("$.anything", Wide(anything={1, 2})),
        ("$.anything", Wide(anything=Colour.red)),
        ("$.anything[0]", Wide(anything=[ID])),
        ("$.decimal", Wide(decimal=Decimal("NaN"))),
    ],
)
def test_what_would_not_come_back_is_not_let_out(codec: Codec, path: str, message: Wide) -> None:
    """An error inside the transaction, with the path of the field; not a dead letter downstream."""
    with pytest.raises(EncodeError) as caught:
        codec.encode(message)

    assert (path, "wide_v1") == (caught.value.path, caught.value.type)
    assert str(caught.value).startswith("cannot encode wide_v1: ")
    assert str(caught.value).endswith(f"(at {path})")


class Appointment(Event):
    metadata = Metadata(name="appointment", published=True)
    at: datetime
    others: dict[str, list[datetime]]
    some: set[datetime]


@both
@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize(("month", "day"), [(3, 29), (7, 1), (10, 25)], ids=["skipped", "plain", "repeated"])
def test_a_time_of_a_zone_is_let_out_also_while_its_clocks_change(month: int, day: int, fold: int, codec: Codec) -> None:
    """By PEP 495 such a time equals none of another zone, and is the same moment all the same."""
    at = datetime(2026, month, day, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
    later = at.replace(tzinfo=ZoneInfo("Europe/Paris"))
    message = Appointment(at=at, others={"a": [later, NOON]}, some={at})

    back = decode(Appointment, codec.encode(message), codec.content_type)

    moments = (back.at, back.others["a"][0], *back.some)
    assert [at.astimezone(UTC)] * 3 == [moment.astimezone(UTC) for moment in moments]
    assert back.at.utcoffset() in (at.utcoffset(), timedelta(0))


def test_a_time_without_a_type_is_text_in_json() -> None:
    """It would come back as that; MessagePack has a type for times."""
    with pytest.raises(EncodeError, match=r"datetime.datetime\(2026, .* would come back as '2026-01-31T12"):
        JSON.encode(Anything(NOON))

    assert Anything(NOON) == decode(Anything, MSGPACK.encode(Anything(NOON)), "application/msgpack")


@both
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Expected `str`, got `int`", Wide(text=5)),  # type: ignore[arg-type]
        ("Expected `float` >= 0.0", Wide(price=-1.0)),
        ("a number that is not finite", Wide(maybe=math.inf)),
        ("(1, 2) would come back as [1, 2]", Wide(anything=(1, 2))),
        ("Encoding objects of type object is unsupported", Wide(anything=object())),
        ("it nests deeper than 64 levels", Wide(anything=looped)),
    ],
)
def test_it_says_why(codec: Codec, text: str, message: Wide) -> None:
    if codec is JSON and message.maybe is not None:
        text = "inf is not a finite number, and would come back as None"
    with pytest.raises(EncodeError) as caught:
        codec.encode(message)

    assert text in str(caught.value)


@both
def test_what_contains_itself_is_refused(codec: Codec) -> None:
    """Soon, and with the beginning of a path that has no end."""
    with pytest.raises(EncodeError) as caught:
        codec.encode(Anything(looped))

    assert caught.value.path.startswith("$.data[0]['again'][0]['again']")
    assert len(caught.value.path) <= 200


@both
def test_a_payload_may_be_a_mebibyte(codec: Codec) -> None:
    """And not a byte more."""
    room = MAX_PAYLOAD - len(codec.encode(Anything("x" * 70_000))) + 70_000
    message = Anything("x" * room)

    assert MAX_PAYLOAD == len(codec.encode(message))
    assert message == decode(Anything, codec.encode(message), codec.content_type)
    with pytest.raises(
        EncodeError, match=r"anything_v1: the payload has 1048577 bytes, the limit is 1048576; store the data elsewhere"
    ):
        codec.encode(Anything("x" * (room + 1)))


@both
def test_a_payload_may_be_64_levels_deep(codec: Codec) -> None:
    """The message itself is the first of them."""
    message = Anything(nested(MAX_DEPTH - 1))

    assert message == decode(Anything, codec.encode(message), codec.content_type)
    with pytest.raises(EncodeError, match="anything_v1: the payload nests deeper than 64 levels"):
        codec.encode(Anything(nested(MAX_DEPTH)))


@both
def test_many_brackets_are_not_deep(codec: Codec) -> None:
    """A long list of lists; text and bytes full of brackets."""
    for data in ([[]] * 1000, [{"a": [1]}] * 500, "[" * 1000, '"[{\\' * 500, "ä\x91\x92" * 500):
        message = Anything(data)

        assert message == decode(Anything, codec.encode(message), codec.content_type)


def test_a_class_that_cannot_be_decoded_is_a_mistake_of_the_program() -> None:
    """Not of the payload: it is no `DecodeError`, which would bury every message."""

    class Odd(Event):
        thing: str | int | Decimal

    class Unknown(Event):
        thing: "Nowhere"  # type: ignore[name-defined] # noqa: F821

    for cls in (Odd, Unknown):
        with pytest.raises(ConfigurationError, match=rf"{cls.__name__} has a field whose type cannot be decoded"):
            decode(cls, b"{}")
        with pytest.raises(ConfigurationError, match=rf"{cls.__name__} has a field whose type cannot be decoded"):
            JSON.encode(cls("x"))  # type: ignore[arg-type]


def test_a_decoder_is_made_once_for_each_type() -> None:
    assert JSON.decoder(BookRegistered) is JSON.decoder(BookRegistered)
    assert JSON.decoder(BookRegistered) is not MSGPACK.decoder(BookRegistered)


def test_a_codec_shows_what_it_is() -> None:
    assert ["<codec application/json>", "<codec application/msgpack>"] == [repr(codec) for codec in CODECS.values()]


# ------------------------------------------------------------------------------------------------------------------- decoding


@both
def test_unknown_fields_are_ignored(codec: Codec) -> None:
    """A newer service upstream has added one."""
    payload = encoded(codec, {"id": ID, "isbn": "1", "title": "Dune", "shelf": {"row": [1, 2]}})

    assert BookRegistered(ID, "1", "Dune") == decode(BookRegistered, payload, codec.content_type)


@both
def test_a_new_field_has_a_default(codec: Codec) -> None:
    """An older service upstream does not send it."""
    assert BookRegistered(ID, "1", "") == decode(BookRegistered, encoded(codec, {"id": ID, "isbn": "1"}), codec.content_type)


class Picky(Event):
    number: int

    def __post_init__(self) -> None:
        raise (ValueError("odd"), KeyError("key"), RuntimeError(), RecursionError("deep"), TypeError("\x1b[31m\n"))[self.number]


BROKEN: list[tuple[str, type[Event], Codec, bytes, str, str]] = [
    ("bad UTF-8 in a text", BookRegistered, JSON, b'{"id":"%s","isbn":"\xff"}' % str(ID).encode(), "$", "Invalid UTF-8 encoded string"),
    ("bad UTF-8 in a name", Anything, JSON, b'{"\xff":1}', "$", "missing required field `data`"),
    ("no JSON", Anything, JSON, b"no JSON", "$", "JSON is malformed: invalid character"),
    ("nothing", Anything, JSON, b"", "$", "Input data was truncated"),
    ("half a payload", Anything, JSON, b'{"data":', "$", "Input data was truncated"),
    ("more than a payload", Anything, JSON, b'{"data":1}}', "$", "JSON is malformed: trailing characters"),
    ("a byte order mark", Anything, JSON, b'\xef\xbb\xbf{"data":1}', "$", "JSON is malformed: invalid character (byte 0)"),
    ("another shape", Anything, JSON, b"[1,2]", "$", "Expected `object`, got `array`"),
    ("a missing field", BookRegistered, JSON, b'{"isbn":"1"}', "$", "Object missing required field `id`"),
    ("a missing field inside", Shelf, JSON, b'{"books":[{"price":1},{}]}', "$.books[1]", "Object missing required field `price`"),
    ("a wrong type", BookRegistered, JSON, b'{"id":5,"isbn":"1"}', "$.id", "Expected `uuid`, got `int`"),
    ("a wrong type inside", Shelf, JSON, b'{"books":[{"price":"1"}]}', "$.books[0].price", "Expected `float`, got `str`"),
    ("a wrong type in a mapping", Shelf, JSON, b'{"books":[],"by_isbn":{"1":5}}', "$.by_isbn[...]", "Expected `object`, got `int`"),
    ("a bad uuid", BookRegistered, JSON, b'{"id":"5","isbn":"1"}', "$.id", "Invalid UUID"),
    ("null", Shelf, JSON, b'{"books":[{"price":null}]}', "$.books[0].price", "Expected `float`, got `null`"),
    ("NaN", Shelf, JSON, b'{"books":[{"price":NaN}]}', "$", "JSON is malformed: invalid character"),
    ("Infinity", Anything, JSON, b'{"data":-Infinity}', "$", "JSON is malformed: invalid character"),
    ("a number out of range", Shelf, JSON, b'{"books":[{"price":1e999}]}', "$.books[0].price", "Number out of range"),
    ("10 MB", Anything, JSON, b'{"data":"%s"}' % (b"x" * 10_000_000), "$", "the payload has 10000011 bytes, the limit is 1048576"),
    ("10,000 levels", Anything, JSON, b'{"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "$", "nests deeper than 64 levels"),
    ("10,000 levels of objects", Anything, JSON, b'{"data":' * 10_000 + b"1" + b"}" * 10_000, "$", "nests deeper than 64 levels"),
    ("10,000 levels, left open", Anything, JSON, b'{"data":' + b"[" * 10_000, "$", "nests deeper than 64 levels"),
    ("10,000 levels in an unknown field", Shelf, JSON, b'{"x":' + b"[" * 10_000, "$", "nests deeper than 64 levels"),
    ("65 levels behind text", Anything, JSON, b'{"data":["\\"]]]]",' + b"[" * 63 + b"]" * 64 + b"}", "$", "nests deeper than 64 levels"),
    ("a text left open before them", Anything, JSON, b'{"data":"' + b"[" * 10_000, "$", "Input data was truncated"),
    ("a lone surrogate", Anything, JSON, b'{"data":"\\ud800"}', "$", "Input data was truncated"),
    ("its own validation", Picky, JSON, b'{"number":0}', "$", "odd"),
    ("its own KeyError", Picky, JSON, b'{"number":1}', "$", "key"),
    ("its own error without words", Picky, JSON, b'{"number":2}', "$", "RuntimeError"),
    ("its own RecursionError", Picky, JSON, b'{"number":3}', "$", "deep"),
    ("its own words, unfit for a log", Picky, JSON, b'{"number":4}', "$", "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}"),
    ("bad UTF-8 in a text", Anything, MSGPACK, b"\x81\xa4data\xa1\xff", "$", "Invalid UTF-8 encoded string"),
    ("no MessagePack", Anything, MSGPACK, b"\xc1", "$", "MessagePack data is malformed: invalid opcode '\\xc1'"),
    ("nothing", Anything, MSGPACK, b"", "$", "Input data was truncated"),
    ("half a payload", Anything, MSGPACK, b"\x81\xa4data", "$", "Input data was truncated"),
    ("more than a payload", Anything, MSGPACK, b"\x81\xa4data\x01\x01", "$", "MessagePack data is malformed: trailing characters"),
    ("another shape", Anything, MSGPACK, b"\x92\x01\x02", "$", "Expected `object`, got `array`"),
    ("a missing field", BookRegistered, MSGPACK, b"\x81\xa4isbn\xa11", "$", "Object missing required field `id`"),
    ("a wrong type", Shelf, MSGPACK, b"\x81\xa5books\x91\x81\xa5price\xa11", "$.books[0].price", "Expected `float`, got `str`"),
    ("NaN", Shelf, MSGPACK, encoded(MSGPACK, {"books": [{"price": math.nan}]}), "$.books[0].price", "is not finite"),
    ("infinity", Anything, MSGPACK, encoded(MSGPACK, {"data": {"a": [-math.inf]}}), "$.data['a'][0]", "is not finite"),
    ("NaN of 32 bits", Anything, MSGPACK, b"\x81\xa4data\xca\x7f\xc0\x00\x00", "$.data", "is not finite"),
    ("infinity in a set", Shelf, MSGPACK, encoded(MSGPACK, {"books": [], "ratings": [math.inf]}), "$.ratings[0]", "is not finite"),
    ("10 MB", Anything, MSGPACK, encoded(MSGPACK, {"data": b"x" * 10_000_000}), "$", "bytes, the limit is 1048576"),
    ("10,000 levels", Anything, MSGPACK, b"\x81\xa4data" + b"\x91" * 10_000 + b"\x01", "$", "nests deeper than 64 levels"),
    ("10,000 levels of maps", Anything, MSGPACK, b"\x81\xa4data" * 10_000 + b"\x01", "$", "nests deeper than 64 levels"),
    ("10,000 wide levels", Anything, MSGPACK, b"\x81\xa4data" + b"\xdd\x00\x00\x00\x02\x01" * 10_000, "$", "nests deeper than 64 levels"),
    ("65 levels behind text", Anything, MSGPACK, b"\x81\xa4data\x92\xa3\x91\x91\x91" + b"\x91" * 63 + b"\x01", "$", "nests deeper than"),
    ("four billion items", Anything, MSGPACK, b"\x81\xa4data\xdd\xff\xff\xff\xff", "$", "Input data was truncated"),
    ("four billion bytes", Anything, MSGPACK, b"\x81\xa4data\xc6\xff\xff\xff\xff", "$", "Input data was truncated"),
    ("a time out of range", Anything, MSGPACK, b"\x81\xa4data\xc7\x0c\xff" + b"\xff" * 12, "$.data", "timestamp"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "codec", "payload", "path", "text"),
    [broken[1:] for broken in BROKEN],
    ids=[f"{codec.content_type.partition('/')[2]}, {name}" for name, _, codec, *_ in BROKEN],
)
def test_what_cannot_be_read_is_one_kind_of_error(cls: type[Event], codec: Codec, payload: bytes, path: str, text: str) -> None:
    """It names the type and the path, and is fit for a log line."""
    with pytest.raises(DecodeError) as caught:
        decode(cls, payload, codec.content_type)

    assert (cls.metadata.type, path) == (caught.value.type, caught.value.path)
    assert text in str(caught.value)
    assert cls.metadata.type in str(caught.value)
    fuzz.check_error(caught.value)


def test_an_unknown_content_type_cannot_be_read() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(Anything, b"{}", "text/\x07html")

    assert (
        "cannot decode anything_v1: unknown content type 'text/\N{REPLACEMENT CHARACTER}html'; "
        "known are application/json, application/msgpack"
    ) == str(caught.value)


def test_the_largest_inputs_are_refused_quickly() -> None:
    """A mebibyte of quotes, brackets or containers takes no time that an attacker could use."""
    sizes = [
        (JSON, b'"' * MAX_PAYLOAD),
        (JSON, b'"\\' * (MAX_PAYLOAD // 2)),
        (JSON, b"[" * 65 + b'"' + b"\\" * (MAX_PAYLOAD - 66)),
        (JSON, b'["' * (MAX_PAYLOAD // 2)),
        (JSON, b"[" * MAX_PAYLOAD),
        (JSON, b"[]" * (MAX_PAYLOAD // 2)),
        (MSGPACK, b"\x90" * MAX_PAYLOAD),
        (MSGPACK, b"\x91" * MAX_PAYLOAD),
        (MSGPACK, b"\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000),
    ]
    for codec, payload in sizes:
        with pytest.raises(DecodeError):
            within(2.0, Anything, payload, codec.content_type)


def within(seconds: float, cls: type[Event], payload: bytes, content_type: str) -> None:
    import time

    began = time.thread_time()
    try:
        decode(cls, payload, content_type)
    finally:
        assert time.thread_time() - began < seconds


# ------------------------------------------------------------------------------------------------------- in a thread, in bulk

SMALL_STACK = """
import sys, threading
from tests.test_envelope import BROKEN, MAX_DEPTH, Anything, decode, encoded, JSON, MSGPACK, nested
from tests.fuzz import check, make
from eventbus.errors import DecodeError
import random

outcomes = []

def work():
    for _, cls, codec, payload, *_ in BROKEN:
        try:
            decode(cls, payload, codec.content_type)
        except DecodeError:
            outcomes.append("refused")
    for codec in (JSON, MSGPACK):
        decode(Anything, codec.encode(Anything(nested(MAX_DEPTH - 1))), codec.content_type)
        outcomes.append("decoded")
    rng = random.Random(1)
    for _ in range(2000):
        check(make(rng))
        outcomes.append("checked")

threading.stack_size(64 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(*(outcomes.count(outcome) for outcome in ("refused", "decoded", "checked")))
"""


def test_a_thread_with_a_small_stack_does_not_crash() -> None:
    """64 KiB: a decoder that recursed in C as deep as it was told would take the process with it."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True, cwd=root, check=False)

    assert (0, f"{len(BROKEN)} 2 2000\n", "") == (done.returncode, done.stdout, done.stderr)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.decimals()

    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=20)


@settings(max_examples=250, deadline=None)
@given(st.integers(min_value=0, max_value=2**64))
def test_only_decode_errors_come_out_of_broken_input(seed: int) -> None:
    """A hundred mutated payloads and entries each time, 25,000 in all; `python -m tests.fuzz` takes a million."""
    rng = random.Random(seed)

    assert {"refused", "decoded"} >= {fuzz.check(fuzz.make(rng)) for _ in range(100)}


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(fuzz.MESSAGES), st.sampled_from(list(CODECS)))
def test_only_decode_errors_come_out_of_any_bytes(payload: bytes, message: Event, content_type: str) -> None:
    assert fuzz.check_payload(type(message), content_type, payload) in ("refused", "decoded")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=20) | st.sampled_from(fuzz.TEXTS), max_size=16))
def test_only_decode_errors_come_out_of_any_fields(fields: list[bytes]) -> None:
    assert fuzz.check_entry(fields) in ("refused", "decoded")


@settings(max_examples=300, deadline=None)
@given(json_values(), st.sampled_from([JSON, MSGPACK]))
def test_what_is_let_out_comes_back_as_it_was(value: Any, codec: Codec) -> None:
    """Or it is refused, with a path; there is no third way."""
    message = Anything(value)
    back, path = None, ""
    try:
        back = decode(Anything, codec.encode(message), codec.content_type)
    except EncodeError as exc:
        path = exc.path

    assert path.startswith("$.data") if back is None else message == back


def test_the_fuzzer_finds_what_escapes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, with the input to look at; so a green run means something."""
    monkeypatch.setattr(fuzz, "decode", lambda *_: json.loads("{"))
    with pytest.raises(SystemExit) as caught:
        fuzz.main(["--inputs", "50", "--seed", "1"])

    assert 1 == caught.value.code
    assert "of seed 1:" in capsys.readouterr().err


def test_the_fuzzer_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz.main(["--inputs", "500", "--seed", "1"])
    lines: Iterator[str] = iter(capsys.readouterr().out.splitlines())

    assert "seed 1" == next(lines)
    assert next(lines).lstrip().startswith("500 of 500: ")
    assert next(lines).endswith(": nothing but DecodeError came out")


def as_bytes(fields: list[bytes | str]) -> list[bytes]:
    return [field if isinstance(field, bytes) else field.encode() for field in fields]
