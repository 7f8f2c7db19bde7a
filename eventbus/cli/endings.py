"""How a command ends: an exit code, and one line that says why. A traceback is shown to those who ask for it."""

from __future__ import annotations

import difflib
import enum
import os
import sysconfig
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import click

import eventbus
from eventbus.errors import ConfigurationError, TransportError, Unavailable, excerpt, text_of

DEBUG = "EVENTBUS_DEBUG"
"""Set to anything, this environment variable shows tracebacks."""


class Code(enum.IntEnum):
    """What the exit code of `eventbus` says."""

    OK = 0
    FAILED = 1
    """Something went wrong while it ran."""
    USAGE = 2
    """The command cannot be carried out as it was given: a wrong option, a module that is not there, an extra that is missing."""
    UNREACHABLE = 3
    """The server does not answer, or does not let us in."""
    LOST = 4
    """An audit found that something was lost."""
    FORCED = 130
    """Ended at once, by a second signal or an interrupt."""


class Failure(click.ClickException):
    """The end of a command that did not succeed: a line of text, and the code."""

    def __init__(self, text: str, code: Code = Code.FAILED) -> None:
        super().__init__(text)
        self.code = code

    def show(self, file: IO[Any] | None = None) -> None:
        if self.__cause__ is not None and debugging():
            click.echo("".join(traceback.format_exception(self.__cause__)), file=file, err=True, nl=False)
        click.echo(f"eventbus: {self.message}", file=file, err=True)


def failure(error: BaseException, what: str = "") -> Failure:
    """The end that an exception means: what was being done, its type, text and place in the user's program."""
    error = _first(error)
    if isinstance(error, Failure):
        return error
    if isinstance(error, ConfigurationError):
        ending = Failure(f"{what}{error}", Code.USAGE)
    elif isinstance(error, TransportError):
        ending = Failure(f"{what}{error}", Code.UNREACHABLE if isinstance(error, Unavailable) else Code.FAILED)
    else:
        ending = Failure(f"{what}{described(error)}; {DEBUG}=1 shows it whole")
    ending.__cause__ = error

    return ending


def described(error: BaseException) -> str:
    """An exception in one line: ``KeyError: 'isbn' (shop/handlers.py:12, in welcome)``; of a group, the first."""
    error = _first(error)
    text = error.msg if isinstance(error, SyntaxError) else text_of(error)
    text, place = excerpt(text.strip(), 500), place_of(error)

    return type(error).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")


def place_of(error: BaseException) -> str:
    """Where in the user's program it happened: the innermost line that is not of a library; else the innermost of all but ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    theirs = [frame for frame in frames if not _of_a_library(frame.filename)]
    if not frames:
        return ""
    frame = (theirs or frames)[-1]
    inside = "" if frame.name == "<module>" else f", in {frame.name}"

    return f"{_short(frame.filename)}:{frame.lineno}{inside}"


def needs(extra: str) -> None:
    """`Failure` with `Code.USAGE` where the package that an extra brings is not installed."""
    if find_spec(extra) is None:
        raise Failure(f"this needs the \"{extra}\" extra: pip install 'eventbus[{extra}]'", Code.USAGE)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean tail?"``, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(known), n=3)

    return f"; did you mean {' or '.join(near)}?" if near else ""


def debugging() -> bool:
    return bool(os.environ.get(DEBUG))


def show_tracebacks() -> None:
    """From now on, as if EVENTBUS_DEBUG were set; child processes included."""
    os.environ[DEBUG] = "1"


_OURS = str(Path(__file__).parent) + os.sep
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
    str(Path(place).resolve()) + os.sep
    for place in (*(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), *eventbus.__path__)
)


def _first(error: BaseException) -> BaseException:
    """The first error in a group, however deep."""
    group: Any = error
    while isinstance(group, BaseExceptionGroup):
        group = cast("Any", group).exceptions[0]

    return cast("BaseException", group)


def _of_a_library(filename: str) -> bool:
    return filename.startswith("<") or str(Path(filename).resolve()).startswith(_LIBRARIES)


def _short(filename: str) -> str:
    """The path as seen from the current directory, where that is shorter."""
    try:
        relative = os.path.relpath(filename)
    except ValueError:  # another drive, on Windows
        return filename

    return relative if not relative.startswith("..") else filename
