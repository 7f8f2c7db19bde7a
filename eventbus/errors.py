"""Every exception of the project. Each message says what happened, to what, and what to do next.

```
EventBusError
├── ConfigurationError        a mistake in the program: found where it is made, with function, file and line
├── UnhandledCommand          a command that no handler was registered for
├── MissingDependency         a handler asks for a parameter that nobody provides
├── RecursionLimitExceeded    messages that raise messages without end
├── TransactionError          a unit of work used against its life
├── EncodeError               a message that cannot be sent, or would come back different
├── DecodeError               a payload that is not the message it says it is
├── PublishError              committed, but not (or perhaps not) in the stream
├── TransportError            the server, as seen from here
│   ├── Unavailable             it does not answer; try again
│   ├── Full                    it has no memory left; drain it or give it more
│   └── Refused                 it said no; trying again will not help
├── LeaseLost                 another consumer has taken the delivery over
└── ConcurrencyError          a value changed between reading and writing

Retry, Reject                 verdicts that a handler raises; not errors, and not under EventBusError
```
"""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

if TYPE_CHECKING:
    from eventbus.envelope import Envelope

Outcome = Literal["not sent", "unknown"]


class EventBusError(Exception):
    """The root of every error that eventbus raises on its own account."""


class ConfigurationError(EventBusError):
    """A mistake in the program, found where it is made."""


class UnhandledCommand(EventBusError):
    """A command that no handler was registered for."""


class MissingDependency(EventBusError):
    """A handler's parameter that is neither a default, nor a dependency of the bus, nor given to `handle`."""


class RecursionLimitExceeded(EventBusError):
    """A chain of messages, each raised by the handler of the one before, that is longer than the bus allows."""


class TransactionError(EventBusError):
    """A unit of work used against its life: left without an end, ended twice, or entered by two at once."""


class EncodeError(EventBusError):
    """A message that cannot be encoded, would not decode to itself, or exceeds a limit.

    `type` is the name on the wire, `path` where in the message the trouble lies (``$.price``).
    """

    def __init__(self, text: str, *, type: str = "", path: str = "$") -> None:
        super().__init__(text)
        self.type = type
        self.path = path


class DecodeError(EventBusError):
    """A payload that is not the message it says it is: malformed, of the wrong shape, too large or too deep.

    `type` is the name on the wire, `path` where in the payload the trouble lies (``$.price``; ``$`` for the whole).
    """

    def __init__(self, text: str, *, type: str = "", path: str = "$") -> None:
        super().__init__(text)
        self.type = type
        self.path = path


class TransportError(EventBusError):
    """The server, as seen from here. The subclasses tell whether trying again can help."""


class Unavailable(TransportError):
    """The server cannot be reached, does not answer, or is loading: trying again later can help."""


class Full(TransportError):
    """The server has no memory left for a write; what is read and acked still works, and drains it."""


class Refused(TransportError):
    """The server said no (authentication, permission, a key of the wrong type): trying again will not help."""


class PublishError(EventBusError):
    """Envelopes that are not, or perhaps not, in the stream though their transaction is committed.

    `envelopes` are exactly those; `outcome` is ``"not sent"`` when none of them can be in the stream, and ``"unknown"`` when
    the reply was lost. Publishing the same envelopes again is safe in both cases: an envelope id is added once.

    What is raised is also the `TransportError` that stopped it, so ``except Full`` and ``except PublishError`` both work.
    """

    envelopes: Sequence[Envelope] = ()
    outcome: Outcome = "unknown"

    @staticmethod
    def because(error: TransportError, envelopes: Sequence[Envelope], outcome: Outcome) -> PublishError:
        """The publish error for these envelopes that is also an error of the cause's kind."""
        kind = next(kind for base, kind in _PUBLISH_ERRORS.items() if isinstance(error, base))
        what = "1 envelope" if len(envelopes) == 1 else f"{len(envelopes)} envelopes"
        fate = "not sent" if outcome == "not sent" else "perhaps sent: the reply was lost"
        failure = kind(f"{what} {fate}: {error}; publish the same envelopes again, which adds none twice")
        failure.envelopes, failure.outcome = tuple(envelopes), outcome

        return failure


class _PublishUnavailable(PublishError, Unavailable): ...


class _PublishFull(PublishError, Full): ...


class _PublishRefused(PublishError, Refused): ...


class _PublishFailed(PublishError, TransportError): ...


_PUBLISH_ERRORS: dict[type[TransportError], type[PublishError]] = {
    Unavailable: _PublishUnavailable,
    Full: _PublishFull,
    Refused: _PublishRefused,
    TransportError: _PublishFailed,
}
for _kind in _PUBLISH_ERRORS.values():
    _kind.__name__ = _kind.__qualname__ = "PublishError"


class LeaseLost(EventBusError):
    """Another consumer has taken the delivery over: the handler is cancelled and its outcome discarded."""


class ConcurrencyError(EventBusError):
    """A value changed between the reading and the writing of a unit of work; handle the message again."""


LONGEST_DELAY: Final = 100 * 365 * 86_400.0
"""Seconds, at most, until something is tried again: what comes later comes never, and is not to overflow anywhere on its way."""


def seconds_of(delay: float) -> float:
    """A delay as a float, whatever kind of number it is; `LONGEST_DELAY` for a longer one."""
    return float(min(delay, LONGEST_DELAY))


class Retry(Exception):
    """Raised by a handler: deliver this again, after so many seconds.

    Without `after` the subscriber's policy says how long to wait. An explicit delay is always granted, up to a hundred years: it does not count
    against the policy's attempts, though the attempt number rises.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason or "the handler asked for another attempt")
        if after is not None and not 0 <= after < float("inf"):
            raise ValueError(f"Retry(after={after!r:.80}): seconds, zero or more")
        self.after: float | None = None if after is None else seconds_of(after)


class Reject(Exception):
    """Raised by a handler: this will never succeed; bury it now, with the reason."""

    def __init__(self, reason: str = "the handler rejected it") -> None:
        super().__init__(reason)
        self.reason = reason


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def excerpt(text: str, limit: int = 200) -> str:
    """The text fit for a log line, a dead letter or a terminal: one line, no control characters, at most `limit` long."""
    cleaned = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text[: limit + 1])

    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def text_of(error: BaseException) -> str:
    """What an exception says. One of a stranger's class may fail to say it, and whoever reports it must not fail with it."""
    try:
        return str(error)
    except Exception as exc:
        return f"(its text cannot be told: str() of it raises {type(exc).__name__})"


def excerpt_of_traceback(error: BaseException, limit: int = 8000) -> str:
    """The traceback of an error, fit for a dead letter: each line is an `excerpt`, and of one that is too long the middle is missing.

    Its beginning says where the error was raised and its end what it was, however much text the error carries.
    """
    lines = [excerpt(line, 500) for line in "".join(traceback.format_exception(error)).split("\n")]
    if sum(map(len, lines)) + len(lines) > limit:
        head, tail = _as_many(lines, limit // 2 - 2), _as_many(lines[::-1], limit // 2 - 2)
        lines = [*head, "…", *tail[::-1]]

    return "\n".join(lines)


def _as_many(lines: Sequence[str], limit: int) -> list[str]:
    """The first lines, as many as have room."""
    ends = itertools.accumulate(len(line) + 1 for line in lines)

    return [line for line, end in zip(lines, ends, strict=True) if end <= limit]


def only_one(group: BaseExceptionGroup[BaseException], *, beside: type[BaseException] | None = None) -> BaseException:
    """The error in a group of one, however deep; else the group. What is of the type `beside` does not count beside an error.

    Where a server said the same kind of no to several tasks at once, the first of them stands for all.
    """
    errors = None if beside is None else group.split(beside)[1]
    any_group: Any = BaseExceptionGroup
    found: Any = errors or group
    while isinstance(found, any_group) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    if isinstance(found, any_group):
        leaves = list(_leaves(found))
        if isinstance(leaves[0], TransportError) and len(set(map(type, leaves))) == 1:
            return leaves[0]

    return cast("BaseException", found)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    any_group: Any = BaseExceptionGroup
    for error in group.exceptions:
        if isinstance(error, any_group):
            yield from _leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield error
