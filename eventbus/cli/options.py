"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """Seconds, zero or more: not what is no number at all, with which nothing can be compared."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)

        return seconds


def wait(what: str) -> Callable[[Command], Command]:
    """``--wait``, for a command that depends on that."""
    return click.option(
        "--wait", type=Seconds(), default=0.0, metavar="SECONDS", envvar="EVENTBUS_WAIT", show_envvar=True,
        help=f"How long to wait for {what} that does not answer yet.",
    )  # fmt: skip
