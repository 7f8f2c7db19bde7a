"""What the keys of a stream are called. All of them share its hash slot, by the tag in braces."""

from __future__ import annotations

import msgspec


class Keys(msgspec.Struct, frozen=True):
    """The keys of a stream, and of one group on it."""

    stream: str
    group: str = ""

    @property
    def published(self) -> tuple[str, str]:
        """Envelope id to entry id, in two rotating windows (hashes)."""
        return f"{{{self.stream}}}:published:0", f"{{{self.stream}}}:published:1"

    @property
    def commits(self) -> tuple[str, str]:
        """The commits of sessions, in two rotating windows (hashes)."""
        return f"{{{self.stream}}}:commits:0", f"{{{self.stream}}}:commits:1"

    @property
    def added(self) -> str:
        """How many entries were added, on servers that do not count them themselves (Redis 6.2)."""
        return f"{{{self.stream}}}:added"

    @property
    def retry(self) -> str:
        """What the group must handle again (a stream of its own)."""
        return f"{{{self.stream}}}:retry:{self.group}"

    @property
    def delayed(self) -> str:
        """What the group will handle again later (sorted set by due time)."""
        return f"{{{self.stream}}}:delayed:{self.group}"

    @property
    def delayed_entries(self) -> str:
        """The entries of the delayed set (hash)."""
        return f"{self.delayed}:entries"

    @property
    def dead(self) -> str:
        """What the group gave up (stream)."""
        return f"{{{self.stream}}}:dead:{self.group}"

    @property
    def state(self) -> str:
        """Counts for the audit, checkpoint, crash counts of suspects (hash)."""
        return f"{{{self.stream}}}:group:{self.group}"
