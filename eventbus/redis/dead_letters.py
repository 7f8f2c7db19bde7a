"""Dead letters as stream entries: the original fields, byte for byte, and behind them the story in fields named ``dead-…``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from eventbus.envelope import timestamp
from eventbus.errors import excerpt, excerpt_of_traceback, text_of
from eventbus.redis.entries import carried, requeued_entry, unpacked
from eventbus.transport import DeadLetter, Delivery

_PREFIX: Final = b"dead-"
_PACKED: Final = b"dead-packed"
MAX_ERROR: Final = 2000


def dead_letter_words(delivery: Delivery, consumer: str, reason: str, error: BaseException | None, now: datetime) -> list[Any]:
    """The words of the entry: the original ones, then the story."""
    story: dict[str, str] = {
        "group": delivery.group,
        "consumer": consumer,
        "stream": delivery.stream,
        "entry-id": delivery.entry_id,
        "attempts": str(delivery.attempt),
        "reason": reason,
        "error-type": type(error).__name__ if error is not None else "",
        "error": excerpt(text_of(error), MAX_ERROR) if error is not None else delivery.last_error or "",
        "traceback": excerpt_of_traceback(error) if error is not None else "",
        "first-failure": timestamp(delivery.first_failure or now),
        "last-failure": timestamp(now),
    }
    words: list[Any] = [*carried(delivery.fields, _PACKED)]
    for name, value in story.items():
        words += (f"dead-{name}", value.encode(errors="replace"))

    return words


def dead_letter_from(id: str, words: Sequence[bytes], stream: str, group: str) -> DeadLetter:
    """The dead letter in an entry; what its story lacks is left empty."""
    original: dict[bytes, bytes] = {}
    story: dict[str, str] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == _PACKED:
            packed = unpacked(value)
            original |= zip(packed[::2], packed[1::2], strict=True)
        elif name.startswith(_PREFIX):
            story[name.removeprefix(_PREFIX).decode(errors="replace")] = value.decode(errors="replace")
        else:
            original[name] = value

    return DeadLetter(
        id=id,
        stream=stream,
        group=group,
        consumer=story.get("consumer", ""),
        entry_id=story.get("entry-id", ""),
        fields=original,
        attempts=int(story["attempts"]) if story.get("attempts", "").isdigit() else 0,
        reason=story.get("reason", ""),
        error_type=story.get("error-type", ""),
        error=story.get("error", ""),
        traceback=story.get("traceback", ""),
        first_failure=_moment(story.get("first-failure", "")),
        last_failure=_moment(story.get("last-failure", "")),
    )


def requeued_words(dead_letter: DeadLetter) -> list[Any]:
    """The words of the entry in the retry stream: the original ones, and where they come from. Attempts begin again."""
    fields = [word for pair in dead_letter.fields.items() for word in pair]

    return requeued_entry(fields, dead_letter.stream, dead_letter.entry_id)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
