"""Stream entries as deliveries, and back: what an entry of the retry stream carries beyond the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from eventbus.envelope import timestamp
from eventbus.errors import excerpt, text_of
from eventbus.redis.keys import Keys
from eventbus.transport import Delivery, granted_after

_PREFIX: Final = b"retry-"
_PACKED: Final = b"retry-packed"
_OURS: Final = (_PREFIX, b"dead-")
MOST_WORDS: Final = 6000
"""Of an entry that a script adds, without what is told of it: Lua hands 8000 to a command, at the most."""


def place_of(id: bytes) -> tuple[int, int]:
    """An entry id as numbers, which have the order of the stream; of none the first place of all."""
    ms, _, number = id.partition(b"-")

    return int(ms or 0), int(number or 0)


def delivery_of(keys: Keys, consumer: str, source: str, id: bytes, fields: Sequence[bytes], *, suspect: bool = False) -> Delivery:
    """The delivery in an entry of the stream or of the group's retry stream."""
    source_id = id.decode()
    if source == keys.stream:
        return Delivery(keys.stream, keys.group, consumer, source_id, fields, source, source_id, suspect=suspect)
    original: list[bytes] = []
    story: dict[bytes, str] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == _PACKED:
            original = unpacked(value)
        elif name.startswith(_PREFIX):
            story[name] = value.decode(errors="replace")
        else:
            original += (name, value)
    attempt, granted = story.get(b"retry-attempt", ""), story.get(b"retry-granted", "")

    return Delivery(
        keys.stream,
        keys.group,
        consumer,
        story.get(b"retry-entry-id", source_id),
        original,
        source=source,
        source_id=source_id,
        attempt=int(attempt) if attempt.isdigit() else 1,
        first_failure=_moment(story.get(b"retry-first-failure", "")),
        last_error=story.get(b"retry-error") or None,
        granted=int(granted) if granted.isdigit() else 0,
        suspect=suspect,
    )


def requeued_entry(fields: Sequence[bytes], stream: str, entry_id: str) -> list[Any]:
    """The words of the entry in the retry stream: the original ones, and where they come from. Attempts begin again."""
    return [*carried(fields, _PACKED), "retry-stream", stream, "retry-entry-id", entry_id]


def retried_entry(delivery: Delivery, error: Exception | None, now: datetime) -> bytes:
    """The entry for the delayed set: the original words and the story so far, each as length:word."""
    if error is not None:
        last = excerpt(f"{type(error).__name__}: {text_of(error)}", 500)
    else:
        last = delivery.last_error or ""
    words: list[Any] = [
        *carried(delivery.fields, _PACKED),
        "retry-stream", delivery.stream,
        "retry-entry-id", delivery.entry_id,
        "retry-attempt", str(delivery.attempt + 1),
        "retry-first-failure", timestamp(delivery.first_failure or now),
        "retry-error", last,
    ]  # fmt: skip
    if granted := granted_after(delivery, error):
        words += ("retry-granted", str(granted))

    return b"".join(_counted(words))


def carried(fields: Sequence[bytes], name: bytes) -> Sequence[bytes]:
    """What an entry of ours holds of an original one: its words, or all of them in the field of that name.

    Whoever writes to the stream by other means may write more words than a script can, and names that are ours.
    """
    if len(fields) <= MOST_WORDS and not any(word.startswith(_OURS) for word in fields[::2]):
        return fields

    return name, b"".join(_counted(fields))


def unpacked(data: bytes) -> list[bytes]:
    """The words in such a field."""
    words: list[bytes] = []
    at = 0
    while at < len(data):
        colon = data.index(b":", at)
        end = colon + 1 + int(data[at:colon])
        words.append(data[colon + 1 : end])
        at = end

    return words


def _counted(words: Iterable[str | bytes]) -> Iterable[bytes]:
    for word in words:
        data = word.encode(errors="replace") if isinstance(word, str) else word
        yield b"%d:%b" % (len(data), data)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
