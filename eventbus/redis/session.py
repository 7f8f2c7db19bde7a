"""`RedisSession`: a transaction whose state lives in Redis, beside the streams.

```python
class Authors(UnitOfWork):
    def __init__(self, session: RedisSession, **kwargs: Any) -> None:
        super().__init__(session, **kwargs)
        self.redis = session


@bus.listen
async def count(event: BookRegistered, uow: Authors) -> None:
    uow.redis.zincrby("books-by-author:{reading-club}", 1, event.author)


Subscriber(..., unit_of_work=lambda transport: Authors(RedisSession(transport), transport=transport))
```

What the handlers write, what they publish and the ack of the delivery are one script: all of it happens, once, or nothing does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from redis.crc import key_slot

from eventbus.envelope import Envelope, new_id, to_fields
from eventbus.errors import (
    ConcurrencyError,
    ConfigurationError,
    LeaseLost,
    Refused,
    TransactionError,
    TransportError,
    Unavailable,
)
from eventbus.messages import check_name
from eventbus.redis.conditions import Conditions, shown
from eventbus.redis.exchange import Unanswered
from eventbus.redis.keys import Keys
from eventbus.redis.publisher import WINDOW
from eventbus.redis.reads import Reads, Watched
from eventbus.redis.scripts import SETTLE
from eventbus.redis.transport import RedisTransport
from eventbus.redis.writes import Key, Value, Writes
from eventbus.transport import Delivery, Transport

REMEMBERED: Final = 60.0
"""Seconds for which a commit is remembered at least; twice that at the most."""
ASKED: Final = 0.75
"""The part of that time in which it is asked for. The rest is for what was sent last: a connection is opened for it, and it arrives."""


class RedisSession(Reads, Writes):
    """The session of a unit of work on the server of a `RedisTransport`, over a connection that all of its sessions share.

    Writes (`set`, `incrby`, `hset`, `zincrby`, …) are gathered until the commit. Reads (`await get(…)`, `await hgetall(…)`, …) go to the
    server at once; with ``watch=True`` the commit fails if their answer has changed meanwhile. It is for one task at a time, and for one
    transaction after another.

    * The commit applies everything in one step, or nothing: what is not of the type that its command needs, a number that is none, and
      a delivery that is not ours are found before the first write.
    * It is applied once. If the answer is lost it is asked for again, and if there is none at all, `Unavailable` says so; committing
      again then asks again, within 45 s. After that it is not asked for any more: it would be applied twice.
    * On a cluster all keys need the hash slot of the stream: write it in braces into them, ``books-by-author:{reading-club}``. Keys that
      begin with the braces are the stream's own.
    """

    carries: ClassVar[bool] = True

    def __init__(self, transport: Transport) -> None:
        if not isinstance(transport, RedisTransport):
            raise ConfigurationError(
                f"RedisSession({type(transport).__name__} …): it commits by a script on the server of a RedisTransport; "
                "give another session to a unit of work on another transport"
            )
        Reads.__init__(self, transport.ask)
        Writes.__init__(self)
        self._transport = transport
        self._envelopes: Sequence[Envelope] = ()
        self._delivery: Delivery | None = None
        self._asked: _Commit | None = None
        self.published: list[str] = []
        """The entry ids of the envelopes that the last commit published, in their order."""

    def __repr__(self) -> str:
        return f"<RedisSession on {self._transport.endpoint}, {len(self.commands)} writes>"

    def write(self, command: str, name: Key, *args: Value) -> None:
        if self._asked is not None:
            raise TransactionError(
                f"{self!r}: whether its commit took place is not known; commit again to find out, or roll back, before you write"
            )
        super().write(command, name, *args)

    def carry(self, envelopes: Sequence[Envelope], delivery: Delivery | None) -> None:
        if self._asked is not None and [envelope.id for envelope in envelopes] != self._asked.envelope_ids:
            raise TransactionError(
                f"{self!r}: whether its commit took place is not known, and committing again cannot publish other messages with it"
            )
        self._envelopes, self._delivery = envelopes, delivery

    async def commit(self) -> None:
        """Apply what was gathered, publish what is carried, ack the delivery: all of it once, or nothing.

        `LeaseLost`: another consumer has the delivery. `ConcurrencyError`: a watched answer has changed. `Refused`: a key is of another
        type, or a number none. `Full`: no memory. After these nothing has changed. `Unavailable` says whether that is known.
        """
        again = self._asked is not None
        commit = self._asked or self._commit()
        if commit is None:
            self._forget()
            return
        if time.monotonic() > commit.until:
            raise TransactionError(f"{self!r}: whether its commit took place is {commit.unknown}")
        delivery = self._delivery
        if delivery is not None:
            delivery.committing = True  # who renews its lease may not find it any more
        self._asked, done = commit, False
        try:
            reply = await self._transport.ask(commit.command, writes=True, until=commit.until)
            self._asked, done = None, isinstance(reply, list) and reply[:1] == [b"done"]
            self._understand(reply, commit)
        except TransportError as exc:
            if self._asked is not None and (again or (isinstance(exc, Unanswered) and exc.sent)):
                raise Unavailable(f"{exc}: whether the commit took place is {commit.unknown}") from exc
            self._asked = None
            if "CROSSSLOT" in f"{exc} {exc.__cause__!r}" or "hash to the same slot" in str(exc):
                raise ConfigurationError(_across_slots(commit)) from exc
            raise
        finally:
            if delivery is not None:
                delivery.settled, delivery.committing = done, self._asked is not None
        self._forget()

    async def rollback(self) -> None:
        """Forget what was gathered, watched and carried."""
        self._forget()

    # ---------------------------------------------------------------------------------------------------------- private

    def _commit(self) -> _Commit | None:
        """The command that commits; None if there is nothing to do."""
        delivery = self._delivery
        if not (self.commands or self.watched or self._envelopes or delivery is not None):
            return None
        home = delivery.stream if delivery is not None else self._transport.stream
        streams: dict[str, list[int]] = {}
        for index, envelope in enumerate(self._envelopes):
            streams.setdefault(check_name("stream", envelope.stream or self._transport.stream), []).append(index)
        places = _Places({home, *streams})
        places.own(*Keys(home).commits)
        token = new_id() if self.commands or self._envelopes or delivery is not None else ""
        adds = self.conditions.adds or bool(self._envelopes)
        words: list[Any] = [token, int(REMEMBERED * 1000), int(WINDOW * 1000), int(adds)]
        if delivery is None:
            words += ("", "", "", "")
        else:
            places.own(delivery.source, Keys(home, delivery.group).state)
            counter = "settled" if delivery.source == delivery.stream else "retry-settled"
            words += (delivery.group, delivery.consumer, delivery.source_id, counter)
        words.append(len(streams))
        for stream, indices in streams.items():
            places.own(stream, *Keys(stream).published, Keys(stream).added)
            words.append(len(indices))
            for index in indices:
                fields = to_fields(self._envelopes[index])
                words += (self._envelopes[index].id, len(fields), *fields)
        words.append(len(self.watched))
        for watched in self.watched:
            words += (watched.digest, len(watched.words) + 2, watched.command, places.of(watched.key), *watched.words)
        conditions = list(self.conditions)
        words.append(len(conditions))
        for kind, key, *rest in conditions:
            words += (kind, places.of(key), *rest)
        for command, key, args in self.commands:
            words += (len(args) + 2, command, places.of(key), *args)

        return _Commit(
            SETTLE.call(*places.keys, args=words),
            home,
            places.keys,
            [envelope.id for envelope in self._envelopes],
            [index for indices in streams.values() for index in indices],
        )

    def _understand(self, reply: Any, commit: _Commit) -> None:
        match reply:
            case [b"done", ids, failed]:
                self.published = [""] * len(ids)
                for index, id in zip(commit.order, ids, strict=True):
                    self.published[index] = id.decode()
                if failed:
                    self._forget()
                    raise TransactionError(
                        f"the transaction was committed, but for what the server would not do: {'; '.join(shown(text) for text in failed)}"
                    )
            case [b"lost"]:
                raise LeaseLost(f"{self._delivery!r}: another consumer has it; nothing of the transaction was applied")
            case [b"no group"]:
                raise LeaseLost(
                    f"{self._delivery!r}: there is no such group on {self._transport.endpoint}, so nothing of the transaction was applied; "
                    "either the server lost it, or the session is on another server than the subscriber: give it the same transport"
                )
            case [b"changed", key]:
                raise ConcurrencyError(
                    f"{shown(key)} has changed since it was read, so nothing was applied; handle the message again"
                )
            case [b"type", key, found, wanted]:
                raise Refused(
                    f"{shown(key)} is a {found.decode()}, and was to be written as a {wanted.decode()}; nothing was applied"
                )
            case [b"value", key, field, value, wanted]:
                where = f"{shown(key)} {shown(field)}" if field else shown(key)
                what = "a whole number of 64 bits" if wanted == b"integer" else "a finite number"
                raise Refused(f"{where} is {shown(value)}; it, or what it would become, is not {what}; nothing was applied")
            case [b"denied", command]:
                raise Refused(f"the user may not do {command.decode()}; nothing was applied")
            case _:
                raise TransportError(f"the commit was answered with {reply!r:.200}")

    def _forget(self) -> None:
        self.commands: list[tuple[str, bytes, Sequence[bytes]]] = []
        self.conditions: Conditions = Conditions()
        self.watched: list[Watched] = []
        self._size = 0
        self._envelopes, self._delivery, self._asked = (), None, None


class _Commit:
    """A commit that can be asked for more than once."""

    def __init__(
        self, command: tuple[Any, ...], home: str, keys: Sequence[str | bytes], envelope_ids: list[str], order: list[int]
    ) -> None:
        self.command = command
        self.home = home
        self.keys = keys
        self.envelope_ids = envelope_ids
        self.order = order
        """Which envelope each of the entry ids belongs to."""
        self.until: float = time.monotonic() + ASKED * REMEMBERED
        """The time, by the monotonic clock, after which it is not asked for any more."""

    @property
    def unknown(self) -> str:
        """What is to be said when nobody knows whether it took place."""
        left = self.until - time.monotonic()
        if left > 0:
            return f"not known; commit again within {left:.2g} s to find out, which does nothing twice"

        return "not known, and not remembered any more; roll back"


class _Places:
    """The keys of a commit, each by its place among them, counted from 1."""

    def __init__(self, streams: set[str]) -> None:
        self.keys: list[str | bytes] = []
        self._streams = {stream.encode() for stream in streams}
        self._by_key: dict[bytes, int] = {}

    def own(self, *keys: str) -> None:
        self.keys += keys

    def of(self, key: bytes) -> int:
        place = self._by_key.get(key)
        if place is None:
            for stream in self._streams:
                if key == stream or key.startswith(b"{%b}:" % stream):
                    raise ConfigurationError(
                        f"the key {shown(key)} belongs to the stream {stream.decode()!r}; put its name at another place into yours, "
                        f"as in 'books:{{{stream.decode()}}}'"
                    )
            self.keys.append(key)
            place = self._by_key[key] = len(self.keys)

        return place


def _across_slots(commit: _Commit) -> str:
    def slot(key: str | bytes) -> int:
        return int(key_slot(key if isinstance(key, bytes) else key.encode()))

    home = slot(commit.home)
    strangers = sorted(
        {key if isinstance(key, str) else key.decode(errors="replace") for key in commit.keys if slot(key) != home}
    )

    return (
        f"on a cluster a transaction has one hash slot, that of its stream {commit.home!r}, and these keys have another: "
        f"{', '.join(map(repr, strangers))}; put the name of the stream in braces into them, as in 'books:{{{commit.home}}}'. "
        "Nothing was applied"
    )
