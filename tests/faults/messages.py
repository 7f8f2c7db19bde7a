"""The messages of the harness, and what their handlers are told to do with them.

A message carries its mark, ``p<publisher>-<number>``, by which everybody writes about it, and an act:

| act | its handler | ends as |
|---|---|---|
| (none) | handles it | handled |
| ``slow <seconds>`` | takes so long, in small steps, and handles it | handled |
| ``doze <seconds>`` | takes so long, in one step, and handles it | handled |
| ``again`` | asks for another attempt at the first one | handled |
| ``fail`` | fails at every attempt | buried |
| ``reject`` | rejects it | buried |
| ``exit`` | kills its process | buried |
"""

import re
from collections.abc import Sequence

from eventbus import Event, Metadata

STREAM = "steps"

MARK = re.compile(rb'"mark":"(p\d+-\d+)"')
"""A mark as it is in a payload."""

Plan = Sequence[tuple[str, int, int]]
"""Of every publisher's messages: an act, every how many of them have it, and which is the first. The first that fits counts."""


class Step(Event):
    metadata = Metadata(name="step", published=True, stream=STREAM)
    mark: str
    act: str = ""


def act_of(plan: Plan, number: int) -> str:
    """What a publisher's message of this number is to do."""
    return next((act for act, every, first in plan if number % every == first), "")


def ends_buried(act: str) -> bool:
    return act in ("fail", "reject", "exit")


def mark_of(publisher: int, number: int) -> str:
    return f"p{publisher}-{number}"


def parts_of(mark: str) -> tuple[int, int]:
    """The publisher, and the number."""
    publisher, _, number = mark.partition("-")

    return int(publisher[1:]), int(number)
