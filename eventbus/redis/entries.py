"""Stream entries as deliveries, and back: what an entry of the retry stream carries beyond the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from eventbus.envelope import timestamp
from eventbus.errors import excerpt, text_of
from eventbus.redis.keys import Keys
from eventbus.transport import Delivery

_PREFIX: Final = b"retry-"


def delivery_of(keys: Keys, consumer: str, source: str, id: bytes, fields: Sequence[bytes], *, suspect: bool = False) -> Delivery:
    """The delivery in an entry of the stream or of the group's retry stream."""
    source_id = id.decode()
    if source == keys.stream:
        return Delivery(keys.stream, keys.group, consumer, source_id, fields, source, source_id, suspect=suspect)
    original: list[bytes] = []
    story: dict[bytes, str] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name.startswith(_PREFIX):
            story[name] = value.decode(errors="replace")
        else:
            original += (name, value)
    attempt = story.get(b"retry-attempt", "")

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
        suspect=suspect,
    )


def retried_entry(delivery: Delivery, error: Exception | None, now: datetime) -> bytes:
    """The entry for the delayed set: the original words and the story so far, each as length:word."""
    if error is not None:
        last = excerpt(f"{type(error).__name__}: {text_of(error)}", 500)
    else:
        last = delivery.last_error or ""
    words: list[Any] = [
        *delivery.fields,
        "retry-stream", delivery.stream,
        "retry-entry-id", delivery.entry_id,
        "retry-attempt", str(delivery.attempt + 1),
        "retry-first-failure", timestamp(delivery.first_failure or now),
        "retry-error", last,
    ]  # fmt: skip

    return b"".join(_counted(words))


def _counted(words: Iterable[str | bytes]) -> Iterable[bytes]:
    for word in words:
        data = word.encode(errors="replace") if isinstance(word, str) else word
        yield b"%d:%b" % (len(data), data)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
