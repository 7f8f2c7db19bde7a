"""What a running service says, on stderr: a line per record, as text for people or as JSON for machines."""

from __future__ import annotations

import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from eventbus.cli.endings import debugging, described

F = TypeVar("F", bound="Callable[..., Any] | click.Command")

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

_COMPACT = functools.partial(json.dumps, separators=(",", ":"))
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def options(command: F) -> F:
    """What every command that runs a service lets its user say of its log."""
    for option in (
        click.option("--log-format", type=click.Choice(FORMATS), default="text", envvar="EVENTBUS_LOG_FORMAT", show_envvar=True),
        click.option(
            "--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", envvar="EVENTBUS_LOG_LEVEL",
            show_envvar=True,
        ),
    ):  # fmt: skip
        command = option(command)

    return command


def configure(level: str, form: str) -> logging.Formatter:
    """Send all logging of this process to stderr; what is configured later by the program itself goes beside it."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = Json() if form == "json" else Text()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())

    return formatter


class Text(logging.Formatter):
    """``12:00:01.250 warning  what happened: KeyError: 'isbn' (shop/handlers.py:12)``; the traceback only if it was asked for."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname.lower():<8} {record.getMessage()}"
        if (error := _error_of(record)) is not None:
            line += f": {described(error)}"
            if debugging():
                line += "\n" + "".join(traceback.format_exception(error)).rstrip()

        return line


class Json(logging.Formatter):
    """One object per line: ``time``, ``level``, ``logger``, ``message``, what was given as ``extra``, and ``error`` if there is one.

    Whatever they hold, a line comes out: what is not JSON is there as text, a character that is none as its escape.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        try:
            return _COMPACT(fields, default=str)
        except Exception:
            return _COMPACT({name: value if isinstance(value, str) else _told(value) for name, value in fields.items()})


def _told(value: object) -> str:
    try:
        return repr(value)
    except Exception as exc:
        return f"(cannot be told: repr() of it raises {type(exc).__name__})"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, as `Json` writes it."""
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    fields |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
    if (error := _error_of(record)) is not None:
        fields["error"] = described(error)
        if debugging():
            fields["traceback"] = "".join(traceback.format_exception(error))

    return fields


def _error_of(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None
