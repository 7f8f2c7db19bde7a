"""Log lines: whatever a record holds, one line comes out, and no traceback."""

import json
import logging
from typing import Any

import pytest

from eventbus.cli.logs import Json, Text


class Untold(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def record(message: str = "hello", *args: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("shop", logging.INFO, "shop.py", 1, message, args, (type(error), error, None) if error else None)
    vars(made).update(extra)
    return made


def test_a_line_of_json_is_an_object() -> None:
    found = json.loads(Json().format(record("sent %s", "a letter", tenant="arrakis", number=7)))

    assert ("info", "shop", "sent a letter", "arrakis", 7) == tuple(
        found[name] for name in ("level", "logger", "message", "tenant", "number")
    )


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (2**70, 2**70),
        ("{1, 2}", {1, 2}),
        ("{(1, 2): 3}", {(1, 2): 3}),
        ("(cannot be told: repr() of it raises RuntimeError)", [Untold()]),
    ],
    ids=["a large number", "a set", "keys that are no text", "what cannot be told"],
)
def test_what_is_no_json_is_told_as_text(expected: object, value: object) -> None:
    found = json.loads(Json().format(record(value=value)))

    assert ("hello", expected) == (found["message"], found["value"])


def test_a_character_that_is_none_is_escaped() -> None:
    """As in the name of a file that is no UTF-8."""
    line = Json().format(record("file %s", "a\udcff"))

    assert line.isascii()
    assert "file a\udcff" == json.loads(line)["message"]


@pytest.mark.parametrize("formatter", [Json(), Text()])
def test_an_error_that_cannot_say_what_it_is(formatter: logging.Formatter) -> None:
    line = formatter.format(record("failed", error=Untold()))

    assert "failed" in line
    assert "Untold: (its text cannot be told: str() of it raises RuntimeError)" in line
