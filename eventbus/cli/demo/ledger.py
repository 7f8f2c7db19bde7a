"""What was published, and what became of it in each group: the sum that the demo ends with."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.envelope import Envelope
from eventbus.transport import Backlog, DeadLetter, Publisher


class Ledger:
    """The envelopes by id, and their fate by group. It stands before a transport and notes what goes through."""

    def __init__(self, transport: Publisher, groups: Sequence[str]) -> None:
        self._transport = transport
        self.published: dict[str, str] = {}
        """Types by envelope id."""
        self.groups: dict[str, Fate] = {group: Fate() for group in groups}

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        ids = await self._transport.publish(envelopes)
        self.published.update({envelope.id: envelope.type for envelope in envelopes})

        return ids

    def missing(self) -> list[str]:
        """What does not add up, in words; nothing when each group has acked or buried each envelope, and neither twice."""
        found: list[str] = []
        for group, fate in self.groups.items():
            acked, buried = fate.acked.keys(), fate.buried.keys()
            for what, ids in (
                ("neither acked nor buried", self.published.keys() - acked - buried),
                ("acked and buried", acked & buried),
                ("never published", (acked | buried) - self.published.keys()),
            ):
                if ids:
                    found.append(f"{group}: {len(ids)} {what}, the first is {min(ids)}")
            if fate.left:
                left = fate.left
                found.append(f"{group}: {left.unread} unread, {left.pending} pending, {left.delayed} waiting for a retry")

        return found


class Fate:
    """What one group did with what was published."""

    def __init__(self) -> None:
        self.acked: dict[str, int] = {}
        """Attempts by envelope id, of what a handler finished."""
        self.buried: dict[str, int] = {}
        """Attempts by envelope id, of the dead letters."""
        self.taken_over = 0
        self.left: Backlog = Backlog(unread=0, pending=0, delayed=0)

    @property
    def settled(self) -> int:
        return len(self.acked) + len(self.buried)

    @property
    def retried(self) -> int:
        return sum(attempts - 1 for attempts in [*self.acked.values(), *self.buried.values()])

    def bury(self, dead_letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Note the dead letters of the group; those that are new."""
        new = [letter for letter in dead_letters if letter.envelope.id not in self.buried]
        self.buried.update({letter.envelope.id: letter.attempts for letter in new})

        return new
