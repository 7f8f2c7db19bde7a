"""What is handled and not settled yet: it waits for the next call that can carry it, or is under way in one.

With it goes what is to be forgotten: the counted starts of suspects whose handlers came to an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from eventbus.redis.keys import Keys
from eventbus.redis.link import group_is_gone, translate
from eventbus.redis.scripts import ACK
from eventbus.transport import Delivery

PER_CALL: Final = 500
"""Ids in one script, at most: more would stop the server for milliseconds."""


class Batch:
    """Acks that go out in one call."""

    __slots__ = ("commands", "crashes", "ids")

    def __init__(self, commands: list[tuple[Any, ...]], ids: dict[str, list[str]], crashes: list[tuple[str, str]]) -> None:
        self.commands: list[tuple[Any, ...]] = commands
        self.ids: dict[str, list[str]] = ids
        self.crashes: list[tuple[str, str]] = crashes


class Acks:
    """The acks of one consumer, by the stream in whose pending list the entries are. Several batches may be under way at once."""

    def __init__(self, group: str, sources: Mapping[str, Keys]) -> None:
        self._group = group
        self._sources = sources
        self._waiting: dict[str, list[str]] = {source: [] for source in sources}
        self._crashes: list[tuple[str, str]] = []
        self.under_way: list[Batch] = []

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._crashes) or any(self._waiting.values())

    def add(self, delivery: Delivery) -> None:
        self._waiting[delivery.source].append(delivery.source_id)
        if delivery.suspect:
            self.forget_starts(delivery)

    def forget_starts(self, delivery: Delivery) -> None:
        """Its handler has come to an end, so no process died with it."""
        source = delivery.source
        self._crashes.append((self._sources[source].state, f"crash {source} {delivery.source_id}"))

    def of(self, source: str) -> set[str]:
        """Everything from that stream that is handled and may still be pending there."""
        return set(self._waiting[source]).union(*(batch.ids.get(source, ()) for batch in self.under_way))

    def take(self) -> Batch | None:
        """Everything that waits, as the commands of a call; None if nothing does. The call ends with `done` or `put_back`."""
        if not self:
            return None
        ids = {source: ids for source, ids in self._waiting.items() if ids}
        self._waiting |= {source: [] for source in ids}
        crashes, self._crashes = self._crashes, []
        commands = [
            ACK.call(source, keys.state, args=(self._group, counter(keys, source), *some[at : at + PER_CALL]))
            for source, some in ids.items()
            for keys in (self._sources[source],)
            for at in range(0, len(some), PER_CALL)
        ]
        commands += [("HDEL", state, name) for state, name in crashes]
        batch = Batch(commands, ids, crashes)
        self.under_way.append(batch)

        return batch

    def done(self, batch: Batch, replies: list[Any]) -> None:
        """The server has answered. An error of its puts the batch back and is raised; a group that is gone has nothing to settle."""
        for reply in replies:
            if isinstance(reply, Exception) and not group_is_gone(error := translate(reply, "acking")):
                self.put_back(batch)
                raise error from reply
        self.under_way.remove(batch)

    def put_back(self, batch: Batch) -> None:
        """It is not known to be settled, and goes out again."""
        self.under_way.remove(batch)
        for source, ids in batch.ids.items():
            self._waiting[source][:0] = ids
        self._crashes[:0] = batch.crashes

    def forget(self) -> None:
        """Send none of them."""
        self._waiting = {source: [] for source in self._sources}
        self._crashes.clear()


def counter(keys: Keys, source: str) -> str:
    """The field that counts what is settled there."""
    return "settled" if source == keys.stream else "retry-settled"
