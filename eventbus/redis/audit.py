"""Whether the numbers of a group add up: what was added since it began is settled, pending or unread, or it is lost. So of its retries."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import msgspec

from eventbus.errors import Full
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel
from eventbus.redis.scripts import ADOPT, AUDIT, COUNT

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
    """Entries of which it is known that they were removed while they were pending; they are part of `lost`, or of `lost_retries`."""
    lost: int
    """added - settled - pending - unread: removed before this group had settled them."""
    after: str
    """What was lost lies after this entry id …"""
    before: str
    """… and not after this one."""
    delayed: int = 0
    """Retries that were put off, all that ever were."""
    moved: int = 0
    """Of these, how many came to be due, and went to the retry stream."""
    waiting: int = 0
    """Of these, how many still wait for their time."""
    lost_retries: int = 0
    """Put off or requeued, and neither settled nor waiting nor in the retry stream: removed by something else."""
    counted: bool = True
    """Whether the counts have begun. They have not while another program's group has no consumer of ours: then nothing is known of losses."""

    def __bool__(self) -> bool:
        """Whether it adds up."""
        return self.lost == 0 and self.lost_retries == 0

    def __str__(self) -> str:
        if not self.counted:
            return f"{self.stream}/{self.group}: pending {self.pending}, unread {self.unread}: not counted, for no subscriber has joined it"
        verdict = (
            "adds up"
            if self.lost == 0
            else f"{self.lost} LOST between {self.after} and {self.before}, {self.vanished} seen to vanish"
            if self.lost > 0
            else f"{-self.lost} more than were added: was the stream written to in another way?"
        )

        return (
            f"{self.stream}/{self.group}: added {self.added} = settled {self.settled} + pending {self.pending} "
            f"+ unread {self.unread}: {verdict}{self._of_retries()}"
        )

    def _of_retries(self) -> str:
        if not (self.delayed or self.lost_retries):
            return ""
        numbers = f"; retries: delayed {self.delayed}, moved {self.moved}, waiting {self.waiting}"
        if self.lost_retries > 0:
            return f"{numbers}: {self.lost_retries} LOST, removed by something else"
        if self.lost_retries < 0:
            return f"{numbers}: {-self.lost_retries} more than were delayed: was the retry stream written to in another way?"

        return numbers


async def audit(channel: Channel, keys: Keys, *, interval: float = 0.0, adopt: bool = False) -> Audit | None:
    """Take the numbers. None if there is no such group, or if somebody took them within the interval (in seconds).

    Where the counts have not begun, since another program made the group or its hash was deleted, they begin now if `adopt` says so.

    Unread entries are counted from the entries themselves, a thousand at a time, up to the last one at the moment when the other numbers
    were taken: the result is exact unless entries are deleted while they are counted.

    Where something was lost is told by what earlier audits of the janitor's, those with an interval, have noted: up to which id all was
    settled when it last added up, and which was the last id when so much was first found lost.
    """
    numbers = await channel.run(
        AUDIT.call(keys.stream, keys.state, keys.added, keys.delayed, keys.retry, args=(keys.group, int(interval * 1000)))
    )
    if not numbers:
        return None
    added, base, settled, vanished, pending, delivered, last, checkpoint, sound, noted, retries = numbers
    delayed, moved, requeued, aside, settled_again, waiting, again = retries
    unread = await count(channel, keys.stream, delivered.decode(), last)
    counted = base != b""
    lost_retries = delayed + requeued - waiting - aside - again - settled_again if counted else 0
    if not counted:
        base = added - settled - pending - unread
        if adopt:
            with suppress(Full):  # they begin later
                await channel.run(ADOPT.call(keys.state, keys.delayed, keys.retry, args=(base,)))
                counted = True
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
        delayed=delayed,
        moved=moved,
        waiting=waiting,
        lost_retries=lost_retries,
        counted=counted,
    )


async def count(channel: Channel, stream: str, after: str, upto: str) -> int:
    """How many entries lie behind that id, up to this one; in pages, so that the server does other things meanwhile."""
    total = 0
    while after:
        counted, stopped = await channel.run(COUNT.call(stream, args=(after, upto, _PAGE)))
        total += counted
        after = stopped.decode()

    return total
