"""Errors: one tree, drawn in the module's docstring; what each carries; and that text from outside is fit to be shown."""

import inspect
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import Envelope, EventBusError, Reject, Retry, errors
from eventbus.envelope import now
from eventbus.errors import Full, PublishError, Refused, TransportError, Unavailable, excerpt, excerpt_of_traceback

ENVELOPES = [Envelope(str(number), now(), "x_v1", b"{}") for number in range(3)]


def test_the_docstring_draws_the_whole_tree() -> None:
    """Each public error is in it, at its depth, and nothing else is."""
    assert errors.__doc__ is not None
    drawn = {
        name: len(branch) // 4
        for branch, name in re.findall(r"^([│├└─ ]*)(\w+)(?=  |$)", errors.__doc__.partition("```")[2], re.MULTILINE)
    }
    tree = {
        name: len(inspect.getmro(error)) - len(inspect.getmro(EventBusError))
        for name, error in vars(errors).items()
        if not name.startswith("_") and isinstance(error, type) and issubclass(error, EventBusError)
    }

    assert tree == drawn


def test_verdicts_are_no_errors() -> None:
    """`except EventBusError` in a handler does not swallow what it says to the subscriber."""
    assert [] == [kind for kind in (Retry, Reject) if issubclass(kind, EventBusError)]


@pytest.mark.parametrize("kind", [Unavailable, Full, Refused, TransportError])
def test_a_publish_error_is_also_what_stopped_it(kind: type[TransportError]) -> None:
    failure = PublishError.because(kind("no"), ENVELOPES, "not sent")

    assert isinstance(failure, kind)
    assert isinstance(failure, PublishError)
    assert (tuple(ENVELOPES), "not sent", "PublishError") == (failure.envelopes, failure.outcome, type(failure).__name__)


def test_a_publish_error_says_what_happened_to_how_many() -> None:
    assert "3 envelopes not sent: no; publish the same envelopes again, which adds none twice" == str(
        PublishError.because(Full("no"), ENVELOPES, "not sent")
    )
    assert "1 envelope perhaps sent: the reply was lost: no; publish the same envelopes again, which adds none twice" == str(
        PublishError.because(Full("no"), ENVELOPES[:1], "unknown")
    )


def test_a_retry_may_say_when() -> None:
    assert [None, 0, 1.5] == [Retry().after, Retry(after=0).after, Retry("busy", after=1.5).after]
    assert ["the handler asked for another attempt", "busy"] == [str(Retry()), str(Retry("busy"))]


@pytest.mark.parametrize("after", [-1, -0.001, float("inf"), float("nan")])
def test_a_retry_comes_in_finite_time(after: float) -> None:
    with pytest.raises(ValueError, match=r"Retry\(after=.*\): seconds, zero or more"):
        Retry(after=after)


def test_a_reject_says_why() -> None:
    assert ["the handler rejected it", "no such book"] == [Reject().reason, Reject("no such book").reason]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("plain – ä📖", "plain – ä📖"),
        ("�[31mred�[0m", "\x1b[31mred\x1b[0m"),
        ("two�lines��", "two\nlines\r\n"),
        ("�����", "\x00\x7f\x85\u2028\ud800"),
        ("�gpj.exe", "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe"),
        ("abcdefghijk…", "abcdefghijklm"),
        ("abcdefghijkl", "abcdefghijkl"),
        ("", ""),
    ],
)
def test_text_from_outside_is_made_fit_to_be_shown(expected: str, text: str) -> None:
    """One line, no control characters, not too long: it goes to logs, dead letters and terminals."""
    assert expected == excerpt(text, 12)


def test_a_traceback_is_made_fit_to_be_shown() -> None:
    """Its own lines stay, and what the error says cannot draw on a terminal."""
    try:
        raise LookupError("\x1b[31mno\rshelf\nfor it") from KeyError("dune")
    except LookupError as exc:
        lines = excerpt_of_traceback(exc).split("\n")

    assert "KeyError: 'dune'" == lines[0]
    assert ["LookupError: �[31mno�shelf", "for it", ""] == lines[-3:]


@pytest.mark.parametrize("text", ["x" * 100_000, "x\n" * 50_000])
def test_the_traceback_of_an_error_with_much_to_say_has_where_it_was_raised(text: str) -> None:
    """And what kind of error it was: that is what it is read for."""
    try:
        raise LookupError(f"no shelf: {text}the end")
    except LookupError as exc:
        shown = excerpt_of_traceback(exc)

    assert len(shown) <= 8000
    assert f"{__file__}" in shown
    assert "LookupError: no shelf: x" in shown


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_an_excerpt_is_short_and_can_be_written(text: Any, limit: int) -> None:
    """Whatever the text, and twice is once."""
    shown = excerpt(text, limit)

    assert len(shown) <= limit
    assert shown == excerpt(shown, limit)
    assert shown.encode().decode() == shown
    assert 1 == len(shown.splitlines() or [""])
