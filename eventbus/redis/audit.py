"""Whether the numbers of a group add up: what was added since it began is settled, pending or unread, or it is lost."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import msgspec

from eventbus.errors import Full
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel
from eventbus.redis.scripts import AUDIT, COUNT

logger: Final = logging.getLogger("eventbus.redis")

_PAGE = 1_000
"""Entries that are counted in one step. The server does nothing else meanwhile: some 4 ms."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one group on one stream."""

    stream: str
    group: str
    added: int
    """Entries added since the group began, those it was to read from the start included."""
    settled: int
    """Acked, moved to the retries, or buried."""
    pending: int
    unread: int
    vanished: int
    """Entries of which it is known that they were removed while they were pending; they are part of `lost`."""
    lost: int
    """added - settled - pending - unread: removed before this group had settled them."""
    after: str
    """What was lost lies after this entry id …"""
    before: str
    """… and not after this one."""

    def __bool__(self) -> bool:
        """Whether it adds up."""
        return self.lost == 0

    def __str__(self) -> str:
        verdict = (
            "adds up"
            if self.lost == 0
            else f"{self.lost} LOST between {self.after} and {self.before}, {self.vanished} of them seen to vanish"
            if self.lost > 0
            else f"{-self.lost} more than were added: was the stream written to in another way?"
        )

        return (
            f"{self.stream}/{self.group}: added {self.added} = settled {self.settled} + pending {self.pending} "
            f"+ unread {self.unread}: {verdict}"
        )


async def audit(channel: Channel, keys: Keys, *, interval: float = 0.0) -> Audit | None:
    """Take the numbers. None if there is no such group, or if somebody took them within the interval (in seconds).

    Unread entries are counted from the entries themselves, a thousand at a time, up to the last one at the moment when the other numbers
    were taken: the result is exact unless entries are deleted while they are counted.

    Where something was lost is told by what earlier audits of the janitor's, those with an interval, have noted: up to which id all was
    settled when it last added up, and which was the last id when so much was first found lost.
    """
    numbers = await channel.run(AUDIT.call(keys.stream, keys.state, keys.added, args=(keys.group, int(interval * 1000))))
    if not numbers:
        return None
    added, base, settled, vanished, pending, delivered, last, checkpoint, sound, noted = numbers
    unread = await count(channel, keys.stream, delivered.decode(), last)
    lost = added - base - settled - pending - unread
    known, _, last_then = noted.partition(b" ")
    note: tuple[bytes, ...] = ()
    before = last
    if not lost:
        note = (b"sound", checkpoint, b"lost", b"") if (sound, noted) != (checkpoint, b"") else ()
    elif known == b"%d" % lost:
        before = last_then
    else:
        note = (b"lost", b"%d %b" % (lost, last))
    if note and interval:
        with suppress(Full):  # it is noted later
            await channel.run(("HSET", keys.state, *note))

    return Audit(
        stream=keys.stream,
        group=keys.group,
        added=added - base,
        settled=settled,
        pending=pending,
        unread=unread,
        vanished=vanished,
        lost=lost,
        after=sound.decode() or "0-0",
        before=before.decode(),
    )


async def count(channel: Channel, stream: str, after: str, upto: str) -> int:
    """How many entries lie behind that id, up to this one; in pages, so that the server does other things meanwhile."""
    total = 0
    while after:
        counted, stopped = await channel.run(COUNT.call(stream, args=(after, upto, _PAGE)))
        total += counted
        after = stopped.decode()

    return total
