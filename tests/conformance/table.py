"""The table of docs/guarantees.md, made from the tests: ``python -m tests.conformance.table`` writes it anew.

A statement is the docstring of its tests, its number stands in their names, and their markers `not_on` say where it is not shown and why.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PLACES = ("memory", "fakeredis", "servers")
PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- table: python -m tests.conformance.table -->", "<!-- end of table -->"
_NAME = re.compile(r"test_(\d{3})_")


SMALLER = "with the counts of the statement on the first server, and a tenth of them elsewhere"


class Statement:
    """One numbered statement: its words, and for each place the reasons of those of its tests that do not run there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.words: list[str] = []
        self.reasons: dict[str, list[str | None]] = {place: [] for place in PLACES}
        self.smaller = False

    def add(self, test: Any) -> None:
        self.words.append(" ".join(inspect.cleandoc(test.__doc__).split("\n\n")[0].split()))
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "not_on"]
        self.smaller |= any(mark.name == "in_full_once" for mark in getattr(test, "pytestmark", ()))
        for place in PLACES:
            self.reasons[place].append(next((mark.kwargs["because"] for mark in marks if place in mark.args), None))


def modules() -> list[ModuleType]:
    """The chapters, in the order of their numbers."""
    names = [path.stem for path in Path(__file__).parent.glob("test_*.py") if path.stem != "test_table"]
    found = [importlib.import_module(f"tests.conformance.{name}") for name in names]

    return sorted(found, key=lambda module: min(number for number, _ in numbered(module)))


def numbered(module: ModuleType) -> Iterator[tuple[int, Any]]:
    """The tests of a chapter, each with its number."""
    for name, value in vars(module).items():
        if match := _NAME.match(name):
            yield int(match[1]), value


def statements(module: ModuleType) -> list[Statement]:
    """What a chapter shows, in order."""
    found: dict[int, Statement] = {}
    for number, test in numbered(module):
        found.setdefault(number, Statement(number)).add(test)

    return [found[number] for number in sorted(found)]


def table() -> str:
    """The table as it stands in the page."""
    notes: dict[str, str] = {}
    lines: list[str] = []
    for module in modules():
        assert module.__doc__ is not None
        lines += [
            "",
            f"### {module.__doc__.strip()}",
            "",
            f"| # | statement | {' | '.join(PLACES)} |",
            f"|---|---|{'---|' * len(PLACES)}",
        ]
        for statement in statements(module):
            cells = [_cell(statement, place, notes) for place in PLACES]
            lines.append(f"| {statement.number} | {statement.words[0]} | {' | '.join(cells)} |")
    lines += ["", *(f"* ({letter}) {reason}" for reason, letter in notes.items()), ""]

    return "\n".join(lines)


def _cell(statement: Statement, place: str, notes: dict[str, str]) -> str:
    """Whether every test, some, or none of a statement runs at a place, with the letters of what is to be said about it."""
    reasons = statement.reasons[place]
    shown = "no" if None not in reasons else "in part" if any(reasons) else "yes"
    said = [reason for reason in reasons if reason is not None]
    if statement.smaller and shown != "no":
        said.append(SMALLER)

    return shown + "".join(f" ({notes.setdefault(words, chr(ord('a') + len(notes)))})" for words in dict.fromkeys(said))


def written(page: str) -> str:
    """The page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)

    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
