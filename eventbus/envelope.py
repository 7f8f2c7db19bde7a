"""Envelopes: what a message wears when it travels, and how it is written and read.

One stream entry is one envelope, as flat fields whose names and order never change: ``id``, ``created_at``, ``type``, ``payload``, then
the headers. `Envelope` is that as data; a `Codec` turns the data of a message into a payload and back; `to_fields` and `from_fields` are
the way to and from a stream entry.

Encoding is strict, so that nothing enters a stream that cannot be read back: see `Codec.encode`. Decoding trusts nothing: see `decode`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

import msgspec
import uuid_utils

from eventbus.errors import ConfigurationError, DecodeError, EncodeError, excerpt
from eventbus.messages import Message, Metadata

M = TypeVar("M", bound=Message)

MAX_PAYLOAD: Final = 1 << 20
"""Bytes in a payload."""
MAX_DEPTH: Final = 64
"""Levels of nesting in a payload: deeper input can crash a decoder that recurses in C (msgspec pull request 1073)."""
MAX_TYPE: Final = 256
"""Bytes in the name of a type."""
MAX_HEADERS: Final = 64
MAX_HEADER: Final = 4096
"""Bytes in the name or the value of one header."""

CONTENT_TYPE: Final = "content_type"
CORRELATION_ID: Final = "correlation_id"
CAUSATION_ID: Final = "causation_id"
_OURS: Final = frozenset({"id", "created_at", "type", "payload", CONTENT_TYPE, CORRELATION_ID, CAUSATION_ID})
_OURS_BY_PREFIX: Final = ("retry-", "dead-")


class Envelope(msgspec.Struct, frozen=True):
    """One message under way.

    `id` is a uuid7 as text; `created_at` is when the envelope was made, in UTC; `type` is ``<name>_v<schema_version>``; `payload` is the
    encoded data; `headers` are text, and travel as further fields.

    `stream` and `key` say where it goes and what orders it; they are not written on it. Without a `stream` it goes to the transport's.
    """

    id: str
    created_at: datetime
    type: str
    payload: bytes
    headers: Mapping[str, str] = {}
    stream: str | None = None
    key: str | None = None

    @property
    def correlation_id(self) -> str:
        """The id of the envelope that everything began with: shared by all that followed from it."""
        return self.headers.get(CORRELATION_ID) or self.id

    @property
    def causation_id(self) -> str | None:
        """The id of the envelope whose handling raised this one; None for one that nothing caused."""
        return self.headers.get(CAUSATION_ID)

    @property
    def content_type(self) -> str:
        return self.headers.get(CONTENT_TYPE, JSON.content_type)

    @property
    def name(self) -> str:
        """The type without its version."""
        return split_type(self.type)[0]


def new_id() -> str:
    """A uuid7 as text; ids made by one process sort in the order in which they were made."""
    return str(uuid_utils.uuid7())


def now() -> datetime:
    """The time that goes on an envelope."""
    return datetime.now(UTC)


def split_type(type: str) -> tuple[str, str]:
    """``book_registered_v1`` → ``("book_registered", "1")``; a type without a version has the version ``""``."""
    name, mark, version = type.rpartition("_v")

    return (name, version) if mark and version.isdigit() else (type, "")


def check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers, if a user may add them; else `EncodeError`."""
    if len(headers) > MAX_HEADERS:
        raise EncodeError(f"{len(headers)} headers, but at most {MAX_HEADERS} may travel", path="$.headers")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise EncodeError(f"header {name!r:.80} = {value!r:.80}: names and values are text", path="$.headers")
        if not name or name in _OURS or name.startswith(_OURS_BY_PREFIX):
            raise EncodeError(f"header {name!r:.80} is the project's own; choose another name", path="$.headers")
        try:
            longest = max(len(name.encode()), len(value.encode()))
        except UnicodeEncodeError as exc:
            raise EncodeError(f"header {name!r:.80} cannot be written as UTF-8: {excerpt(str(exc))}", path="$.headers") from exc
        if longest > MAX_HEADER:
            raise EncodeError(f"header {name!r:.80} is over {MAX_HEADER} bytes; put data in the message", path="$.headers")

    return headers


# --------------------------------------------------------------------------------------------------------------- codecs


class Codec:
    """How the data of messages is written: `JSON` (the default) or `MSGPACK`."""

    def __init__(self, content_type: str, encode: Callable[[Any], bytes], decoder: Callable[[type], Any]) -> None:
        self.content_type = content_type
        self._encode = encode
        self.decoder: Callable[[type[Message]], Callable[[bytes], Any]] = functools.cache(functools.partial(_decoder, decoder))
        """``decoder(message_class)`` → a function from a payload to a message, made once per class."""

    def __repr__(self) -> str:
        return f"<codec {self.content_type}>"

    def encode(self, message: Message) -> bytes:
        """The payload of a message, which is known to decode to an equal message.

        `EncodeError` names the type and the field where it does not: a value of the wrong type, one that would come back different (NaN
        is null in JSON), a payload over `MAX_PAYLOAD` or deeper than `MAX_DEPTH`.
        """
        cls = type(message)
        decode = self.decoder(cls)
        try:
            payload = self._encode(message)
            if too_long(payload):
                raise EncodeError(_too_long(cls.metadata.type, payload), type=cls.metadata.type)
            if not (self is JSON and is_harmless(payload)) and too_deep(payload, self.content_type):
                raise EncodeError(_too_deep(cls.metadata.type), type=cls.metadata.type)
            back = decode(payload)
            if self is MSGPACK and _NOT_FINITE.search(payload) and (path := _not_finite(message, "$")):
                raise _encode_error(cls, path, "a number that is not finite is not decoded")
        except EncodeError:
            raise
        except Exception as exc:
            if self is JSON and (path := _not_finite(message, "$")):
                raise _encode_error(cls, path, "a number that is not finite is null in JSON") from exc
            path = _unencodable(message, self._encode) or _path_in(str(exc))
            why = f"it nests deeper than {MAX_DEPTH} levels" if isinstance(exc, RecursionError) else excerpt(str(exc))
            raise _encode_error(cls, path, why) from exc
        if back != message and not _same(message, back):
            path, why = _difference(message, back, "$") or ("$", "it would come back different")
            raise _encode_error(cls, path, why)

        return payload


def _decoder(make: Callable[[type], Any], cls: type[Message]) -> Callable[[bytes], Any]:
    try:
        decode: Callable[[bytes], Any] = make(cls).decode
    except (TypeError, NameError) as exc:
        raise ConfigurationError(f"{cls.__module__}.{cls.__qualname__} has a field whose type cannot be decoded: {exc}") from exc

    return decode


JSON: Final = Codec("application/json", msgspec.json.Encoder().encode, msgspec.json.Decoder)
MSGPACK: Final = Codec("application/msgpack", msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder)
CODECS: Final = {codec.content_type: codec for codec in (JSON, MSGPACK)}


def decode(cls: type[M], payload: bytes, content_type: str = JSON.content_type) -> M:
    """The message in a payload. Unknown fields are ignored.

    Every failure is one `DecodeError` that names the type and the path: bad UTF-8, malformed text, a missing field or a wrong type, a
    payload over `MAX_PAYLOAD` or deeper than `MAX_DEPTH` (looked at before decoding starts), a number that is not finite, whatever a
    field's own validation raises. A class that no decoder can be made for is a `ConfigurationError`.
    """
    codec = CODECS.get(content_type)
    if codec is None:
        known = ", ".join(CODECS)
        raise DecodeError(
            f"cannot decode {cls.metadata.type}: unknown content type {excerpt(content_type)!r}; known are {known}",
            type=cls.metadata.type,
        )
    decoder = codec.decoder(cls)
    if too_long(payload):
        raise DecodeError(_too_long(cls.metadata.type, payload), type=cls.metadata.type)
    try:
        if too_deep(payload, content_type):
            raise DecodeError(_too_deep(cls.metadata.type), type=cls.metadata.type)
        message: M = decoder(payload)
        if codec is MSGPACK and _NOT_FINITE.search(payload) and (path := _not_finite(message, "$")):
            raise DecodeError(
                f"cannot decode {cls.metadata.type}: the number at {path} is not finite", type=cls.metadata.type, path=path
            )
    except DecodeError:
        raise
    except Exception as exc:  # msgspec's own errors, RecursionError, and what a __post_init__ raises
        words = _BAD_UTF8 if isinstance(exc, UnicodeDecodeError) else str(exc) or type(exc).__name__
        text = excerpt(words)
        raise DecodeError(f"cannot decode {cls.metadata.type}: {text}", type=cls.metadata.type, path=_path_in(str(exc))) from exc

    return message


# What msgspec says since 0.23. Before, it lets Python's error through, whose offset is one within a string, not within the payload.
_BAD_UTF8 = "Invalid UTF-8 encoded string"


def too_long(payload: bytes) -> bool:
    return len(payload) > MAX_PAYLOAD


def is_harmless(payload: bytes) -> bool:
    """Whether a JSON payload is within the limits at first sight: many brackets beside one another are not, and want a closer look."""
    return len(payload) <= MAX_PAYLOAD and payload.count(_SQUARE) + payload.count(_CURLY) <= MAX_DEPTH


def too_deep(payload: bytes, content_type: str) -> bool:
    """Whether a payload nests deeper than `MAX_DEPTH`. Few brackets are the usual case and cost two counts; only many are matched up."""
    if content_type == MSGPACK.content_type:
        return len(payload.translate(None, _MSGPACK_SCALARS)) > MAX_DEPTH and _msgpack_depth(payload) > MAX_DEPTH
    if payload.count(_SQUARE) + payload.count(_CURLY) <= MAX_DEPTH:
        return False
    brackets = _JSON_STRING.sub(b"", payload).translate(None, _NOT_BRACKETS)

    return max(itertools.accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH


# An unterminated string is matched to the end: a pattern that fails there would start again at each quote, in quadratic time.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[{]}")
_SQUARE, _CURLY = ord("["), ord("{")
_STEP = {_SQUARE: 1, _CURLY: 1, ord("]"): -1, ord("}"): -1}

_MSGPACK_SCALARS = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]|\xca[\x7f\xff][\x80-\xff]")


def _msgpack_depth(payload: bytes) -> int:
    """How deep a MessagePack payload nests; counting stops beyond `MAX_DEPTH` or where it is malformed, which the decoder will say."""
    open_items: list[int] = []  # how many items each open container still expects
    at, size = 0, len(payload)
    while at < size:
        byte = payload[at]
        at += 1
        items = 0
        if byte <= 0x7F or byte >= 0xE0 or 0xC0 <= byte <= 0xC3:
            pass
        elif byte <= 0x8F:
            items = 2 * (byte & 0x0F)
        elif byte <= 0x9F:
            items = byte & 0x0F
        elif byte <= 0xBF:
            at += byte & 0x1F
        elif (length := _MSGPACK_LENGTHS.get(byte)) is not None:
            format, extra = length
            try:
                (n,) = struct.unpack_from(format, payload, at)
            except struct.error:
                break
            at += struct.calcsize(format) + (n + extra if byte < 0xDC else 0)
            items = 0 if byte < 0xDC else n * (2 if byte >= 0xDE else 1)
        else:
            at += _MSGPACK_FIXED[byte]
        if items:
            open_items.append(items)
            if len(open_items) > MAX_DEPTH:
                break
            continue
        while open_items:
            open_items[-1] -= 1
            if open_items[-1]:
                break
            open_items.pop()

    return len(open_items)


_MSGPACK_LENGTHS = {
    0xC4: (">B", 0), 0xC5: (">H", 0), 0xC6: (">I", 0),  # bin
    0xC7: (">B", 1), 0xC8: (">H", 1), 0xC9: (">I", 1),  # ext
    0xD9: (">B", 0), 0xDA: (">H", 0), 0xDB: (">I", 0),  # str
    0xDC: (">H", 0), 0xDD: (">I", 0),  # array
    0xDE: (">H", 0), 0xDF: (">I", 0),  # map
}  # fmt: skip
_MSGPACK_FIXED = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- envelopes and entries


class Seals(Protocol):
    """What `seal` needs of a message's origin: the envelope of the message whose handling raised it."""

    @property
    def id(self) -> str: ...
    @property
    def correlation_id(self) -> str: ...


def seal(
    message: Message,
    *,
    codec: Codec = JSON,
    cause: Seals | None = None,
    headers: Mapping[str, str] | None = None,
    id: str | None = None,
    created_at: datetime | None = None,
) -> Envelope:
    """Put a message in an envelope: encode it, and write on it where it comes from. `EncodeError` as in `Codec.encode`."""
    cls = type(message)
    label = _labels.get(cls)
    if label is None or label.metadata is not cls.metadata:
        label = _label(cls)
    written: dict[str, str] = {}
    if codec is not JSON:
        written[CONTENT_TYPE] = codec.content_type
    if cause is not None:
        written[CORRELATION_ID] = cause.correlation_id
        written[CAUSATION_ID] = cause.id
    if headers:
        written.update(check_headers(headers))

    return Envelope(
        id or new_id(),
        created_at or now(),
        label.type,
        codec.encode(message),
        written,
        label.metadata.stream,
        None if label.key is None else _key(message, label.key),
    )


class _Label(NamedTuple):
    """What is the same on every envelope of a class."""

    metadata: Metadata
    type: str
    key: str | None


_labels: dict[type[Message], _Label] = {}


def _label(cls: type[Message]) -> _Label:
    """Made once for each class."""
    label = _Label(cls.metadata, cls.metadata.type, cls.metadata.key)
    if len(label.type.encode()) > MAX_TYPE:
        raise EncodeError(f"type {label.type[:40]!r}… is over {MAX_TYPE} bytes; choose a shorter name", type=label.type)
    _labels[cls] = label

    return label


def _key(message: Message, field: str) -> str | None:
    """What orders the message: None for a field that is empty."""
    value = getattr(message, field)

    return None if value is None else str(value)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: ``2026-01-31T12:00:00.000000Z``."""
    text = _in_quotes(moment if moment.tzinfo is UTC else moment.astimezone(UTC))[1:-1].decode()

    return text if moment.microsecond else f"{text[:-1]}.000000Z"


_in_quotes = msgspec.json.Encoder().encode
"""Five times as fast as `datetime.isoformat`; without a fraction where there is none."""


def to_fields(envelope: Envelope) -> list[bytes | str]:
    """The fields of the stream entry, names and values in turn. `EncodeError` for an envelope without an id."""
    if not envelope.id:
        raise EncodeError("the envelope has an empty id: nothing would tell it from another", type=envelope.type, path="$.id")
    fields: list[bytes | str] = [
        "id", envelope.id,
        "created_at", timestamp(envelope.created_at),
        "type", envelope.type,
        "payload", envelope.payload,
    ]  # fmt: skip
    for name, value in envelope.headers.items():
        fields += (name, value)

    return fields


def is_plain(fields: Sequence[bytes]) -> bool:
    """Whether fields that begin with the four, in their order, are an envelope of JSON at first sight; of others `from_fields` tells."""
    created_at = fields[3]
    if fields[2] != b"created_at" or created_at[-1:] != b"Z" or not fields[1] or not fields[1].isascii():
        return False
    if len(fields) > 8 and not (all(map(bytes.isascii, fields[8:])) and _TELLING.isdisjoint(fields[8::2])):
        return False
    try:
        datetime.fromisoformat(created_at.decode())
    except ValueError:  # also of the decoding
        return False

    return True


_TELLING: Final = frozenset((b"id", b"created_at", b"type", b"payload", CONTENT_TYPE.encode()))
"""Fields that are no headers like others."""


def from_fields(fields: Sequence[bytes], stream: str | None = None) -> Envelope:
    """The envelope in the fields of a stream entry; the order is free, and what is not one of the four is a header.

    `DecodeError` when one of the four is missing or cannot be read. What the payload holds is not looked at.
    """
    try:
        written = dict(zip(fields[::2], fields[1::2], strict=True))
    except ValueError as exc:
        raise DecodeError(f"the entry is no envelope: it has {len(fields)} names and values, an odd number") from exc
    try:
        id, created_at = written.pop(b"id").decode(), written.pop(b"created_at").decode()
        type, payload = written.pop(b"type").decode(), written.pop(b"payload")
        headers = {name.decode(): value.decode() for name, value in written.items()}
    except KeyError as exc:
        raise DecodeError(f"the entry has no field {exc.args[0].decode()!r}: it is no envelope") from None
    except UnicodeDecodeError as exc:
        raise DecodeError(f"the entry is no envelope: {excerpt(str(exc))}") from exc
    if not id:
        raise DecodeError("the entry has an empty id: it is no envelope", type=excerpt(type), path="id")
    try:
        moment = datetime.fromisoformat(created_at)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise DecodeError(
            f"created_at is {excerpt(created_at, 40)!r}, not an RFC 3339 time", type=excerpt(type), path="created_at"
        ) from exc

    return Envelope(id, moment, type, payload, headers, stream)


# ------------------------------------------------------------------------------------------------------ what went wrong


def _encode_error(cls: type[Message], path: str, why: str) -> EncodeError:
    return EncodeError(f"cannot encode {cls.metadata.type}: {why} (at {path})", type=cls.metadata.type, path=path)


def _too_long(type: str, payload: bytes) -> str:
    return (
        f"{type}: the payload has {len(payload)} bytes, the limit is {MAX_PAYLOAD}; store the data elsewhere and send where it is"
    )


def _too_deep(type: str) -> str:
    return f"{type}: the payload nests deeper than {MAX_DEPTH} levels"


def _path_in(text: str) -> str:
    """The path that msgspec wrote at the end of its error (``… - at `$.isbn` ``)."""
    found = re.search(r" - at `(.*)`\Z", text, re.DOTALL)

    return excerpt(found[1]) if found else "$"


def _unencodable(value: Any, encode: Callable[[Any], bytes]) -> str | None:
    """Where in a message that does not encode the value lies that does not: the innermost one."""
    found: str | None = None
    children, depth = iter(_children(value, "$")), 1
    while (item := next(children, None)) is not None:
        child, path = item
        try:
            encode(child)
        except Exception:
            found = excerpt(path)
            children, depth = iter(_children(child, path)), depth + 1
            if depth > MAX_DEPTH:  # what contains itself has no end
                break

    return found


def _children(value: Any, path: str) -> list[tuple[Any, str]]:
    """What a value consists of, each with its path."""
    kind = cast("Any", type(value))
    if issubclass(kind, msgspec.Struct):
        return [(getattr(value, name), f"{path}.{name}") for name in kind.__struct_fields__]
    if issubclass(kind, dict):
        return [(item, f"{path}[{excerpt(repr(key), 40)}]") for key, item in value.items()]
    if issubclass(kind, list | tuple | set | frozenset):
        return [(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return [(getattr(value, field.name, None), f"{path}.{field.name}") for field in dataclasses.fields(kind)]

    return []


def _same(sent: Any, back: Any) -> bool:
    """Whether they are equal, or are but for times that are never equal to those of another zone: the hours around a clock change, by PEP
    495. Such a time comes back with an offset in the place of its zone, and is the same.
    """
    if sent == back:
        return True
    if isinstance(sent, datetime) and isinstance(back, datetime):
        return bool(_told(sent) == _told(back))
    if type(sent) is not type(back):
        return False
    if isinstance(sent, set | frozenset):
        return set(map(_told, cast("set[Any]", sent))) == set(map(_told, back))
    ours, theirs = ({where: item for item, where in _children(value, "$")} for value in (sent, back))

    return bool(ours) and ours.keys() == theirs.keys() and all(_same(item, theirs[where]) for where, item in ours.items())


def _told(item: Any) -> Any:
    return item.astimezone(UTC) if isinstance(item, datetime) and item.tzinfo is not None else item


def _difference(sent: Any, back: Any, path: str) -> tuple[str, str] | None:
    """Where a message and what it decodes to differ, and how."""
    if type(sent) is type(back) and type(sent) not in (set, frozenset):  # which have no order to compare by
        theirs = {where: value for value, where in _children(back, path)}
        for value, where in _children(sent, path):
            if where in theirs and not _same(value, theirs[where]):
                return _difference(value, theirs[where], where)
    if isinstance(sent, float) and not math.isfinite(sent):
        return path, f"{sent} is not a finite number, and would come back as {excerpt(repr(back), 40)}"
    if sent != back:
        return path, f"{excerpt(repr(sent), 40)} would come back as {excerpt(repr(back), 40)}"

    return None


def _not_finite(value: Any, path: str) -> str | None:
    """Where in a message a number that is not finite lies."""
    waiting = [(value, path, 0)]
    while waiting:
        value, path, depth = waiting.pop()
        if isinstance(value, float):
            if not math.isfinite(value):
                return excerpt(path)
        elif depth <= MAX_DEPTH:
            waiting += ((child, where, depth + 1) for child, where in _children(value, path))

    return None
