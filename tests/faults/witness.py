"""The stream as it is on the server: read as it grows, since what is old and settled may be trimmed."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from tests.faults.ledger import Tally
from tests.faults.messages import MARK, STREAM, mark_of, parts_of

REMEMBERED = 10_000
"""Milliseconds for which an entry can be taken back."""

IDS = """
local ids = {}
for place, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+')) do
  ids[place] = entry[1]
end
return ids
"""
"""Of the entries from one on, the ids alone: there are tens of thousands."""


class Witness:
    """What was in the stream, and in which order."""

    def __init__(self) -> None:
        self.seen = Tally()
        self.twice: list[str] = []
        """Messages that lie in one stream more than once."""
        self.entries = 0
        self.others = 0
        """Entries that are no messages of ours."""
        self.taken_back = 0
        """Entries that were there, and that the server has forgotten since."""
        self.disorder: list[str] = []
        """Messages that lie behind a later one of the same publisher."""
        self.there = Tally()
        """What has been in this stream, since it was last deleted."""
        self._reading = asyncio.Lock()
        self._last = b"0-0"
        self._recent: deque[tuple[bytes, int, int]] = deque()
        self._newest: dict[int, int] = {}

    async def read(self, client: Any) -> None:
        """Take in what was added since the last time."""
        async with self._reading:
            while True:
                page: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(STREAM, b"(" + self._last, count=2000)
                for id, fields in page:
                    self._take(id, fields)
                if len(page) < 2000:
                    return

    async def look_again(self, client: Any, retention: float) -> None:
        """The server may have forgotten what came last: take back what is not there any more, and was not trimmed: it is too young for that,
        or something older is there. A server that was away for long has forgotten what looks old by then.
        """
        async with self._reading:
            if not self._recent:
                return
            there: set[bytes] = set(await client.eval(IDS, 1, STREAM, self._recent[0][0]))
            oldest = [_place(id) for id, _ in await client.xrange(STREAM, count=1)]
            seconds, _ = await client.time()
            old = (seconds + 1 - retention) * 1000
            kept: deque[tuple[bytes, int, int]] = deque()
            for id, publisher, number in self._recent:
                if id in there or (_place(id)[0] < old and (not oldest or _place(id) < oldest[0])):  # there, or trimmed
                    kept.append((id, publisher, number))
                else:
                    self.seen.add(publisher, number, -1)
                    self.there.add(publisher, number, -1)
                    self.taken_back += 1
            self._recent = kept
            self._newest.clear()
            for _, publisher, number in kept:
                self._newest[publisher] = max(number, self._newest.get(publisher, -1))

    def begin_anew(self) -> None:
        """The stream was deleted. Ids go on rising in the next one, for they tell the time."""
        self.there = Tally()
        self._recent.clear()

    def _take(self, id: bytes, fields: dict[bytes, bytes]) -> None:
        self._last = id
        found = MARK.search(fields.get(b"payload", b"")) if fields.get(b"type") == b"step_v1" else None
        if found is None:
            self.others += 1
            return
        publisher, number = parts_of(found[1].decode())
        self.entries += 1
        self.seen.add(publisher, number)
        if self.there.add(publisher, number) > 1:
            self.twice.append(mark_of(publisher, number))
        else:
            newest = self._newest.get(publisher, -1)
            if number < newest:
                self.disorder.append(f"p{publisher}-{number} ({id.decode()}) behind p{publisher}-{newest}")
            self._newest[publisher] = max(number, newest)
        self._recent.append((id, publisher, number))
        limit = _place(id)[0] - REMEMBERED
        while _place(self._recent[0][0])[0] < limit:
            self._recent.popleft()


def _place(id: bytes) -> tuple[int, int]:
    ms, _, sequence = id.partition(b"-")

    return int(ms), int(sequence)
