"""What the demo shows: a line per step, over a progress bar on a terminal; plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from eventbus.cli.demo.ledger import Ledger


class Screen:
    """Where the steps are printed. Rich leaves out colours and bars where there is no terminal, and colours where NO_COLOR is set."""

    def __init__(self) -> None:
        self.console: Console = Console(highlight=False, soft_wrap=True)
        self._since = time.monotonic()
        self._progress: Progress | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def say(self, who: str, text: str, style: str = "") -> None:
        """A step: when, who, what."""
        line = Text.assemble((f"{self.seconds:5.2f} s  ", "dim"), (f"{who:<14}  ", "bold"), (text, style))
        self.console.print(line)

    @contextmanager
    def progress(self, groups: list[str], total: int) -> Generator[None]:
        """Show how far each group is, if there is a terminal to show it on."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            self._bars = {group: self._progress.add_task(group, total=total) for group in groups}
            try:
                yield
            finally:
                self._progress = None

    def advance(self, ledger: Ledger) -> None:
        if self._progress is not None:
            for group, fate in ledger.groups.items():
                self._progress.update(self._bars[group], completed=fate.settled)

    def table(self, ledger: Ledger) -> None:
        table = Table("group", box=SIMPLE)
        for name in ("published", "acked", "buried", "retried", "taken over"):
            table.add_column(name, justify="right")
        for group, fate in ledger.groups.items():
            counts = (len(ledger.published), len(fate.acked), len(fate.buried), fate.retried, fate.taken_over)
            table.add_row(group, *map(str, counts))
        self.console.print(table)
