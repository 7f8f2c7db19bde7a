"""The scripts: what must be one step on the server. Each file's header says what it promises, its keys, arguments and replies."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any, Final


class Script:
    """A script by its digest; its text goes over a connection once."""

    def __init__(self, name: str, *before: str) -> None:
        """`before`: files with what it shares with others, which go before it."""
        self.name = name
        self.text: str = "".join((files(__name__) / f"{part}.lua").read_text() for part in (*before, name))
        self.sha: str = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"<script {self.name}>"

    def call(self, *keys: str | bytes, args: tuple[Any, ...] | list[Any] = ()) -> tuple[Any, ...]:
        """The command that runs it. `Link.call` sends the text with it where the server may not know it yet."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


ACK: Final = Script("ack")
ADOPT: Final = Script("adopt", "retries")
AUDIT: Final = Script("audit", "retries")
BACKLOG: Final = Script("backlog", "ids")
BEGIN: Final = Script("begin")
BURY: Final = Script("bury")
COUNT: Final = Script("count", "ids")
DUE: Final = Script("due")
GLANCE: Final = Script("glance", "position", "checkpoint")
JOIN: Final = Script("join", "ids", "retries")
LOOK: Final = Script("look", "digest")
PRUNE: Final = Script("prune", "ids", "cut")
PUBLISH: Final = Script("publish")
REAP: Final = Script("reap")
RELEASE: Final = Script("release")
RENEW: Final = Script("renew", "ids", "position")
REQUEUE: Final = Script("requeue")
RETRY: Final = Script("retry")
SETTLE: Final = Script("settle", "digest")
SWEEP: Final = Script("sweep", "position", "checkpoint")
TRIM: Final = Script("trim", "ids", "cut")

BY_SHA: Final = {script.sha: script for script in list(vars().values()) if isinstance(script, Script)}
