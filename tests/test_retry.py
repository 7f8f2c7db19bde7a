"""Retry policies: pure functions of the attempt that failed and its error, so their promises are properties."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import exponential
from eventbus.errors import ConfigurationError
from eventbus.retry import Policy

ERROR = ValueError("no")

seconds = st.floats(min_value=0, max_value=1e12) | st.integers(min_value=0, max_value=10**12)
factors = st.floats(min_value=1, max_value=1e6) | st.integers(min_value=1, max_value=10**6)
shares = st.floats(min_value=0, max_value=1)
attempts = st.integers(min_value=1, max_value=10**9)


def delays(policy: Policy, number: int) -> list[float | None]:
    return [policy(attempt, ERROR) for attempt in range(1, number + 1)]


def test_the_defaults_wait_longer_each_time_and_bury_after_six() -> None:
    """About 1, 4, 16, 64 and 256 seconds, each up to a quarter longer."""
    *waits, last = delays(exponential(), 6)

    assert None is last
    for expected, delay in zip([1, 4, 16, 64, 256], waits, strict=True):
        assert delay is not None
        assert expected <= delay <= min(300, expected * 1.25)


def test_without_jitter_the_delays_are_exact() -> None:
    assert [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, None] == delays(exponential(attempts=7, base=0.5, factor=2, maximum=5, jitter=0), 7)


@given(attempts, seconds, factors, seconds, shares, st.integers(min_value=1, max_value=10**9))
def test_a_delay_is_never_negative_and_never_above_the_maximum(
    attempts: int, base: float, factor: float, maximum: float, jitter: float, attempt: int
) -> None:
    """Whatever the numbers: no overflow, no NaN, no infinity."""
    delay = exponential(attempts=attempts, base=base, factor=factor, maximum=maximum, jitter=jitter)(attempt, ERROR)

    if attempt < attempts:
        assert delay is not None
        assert 0 <= delay <= maximum
    else:
        assert None is delay


@given(st.integers(min_value=1, max_value=60), seconds, factors, seconds, shares)
def test_it_gives_up_after_as_many_attempts_as_it_said(
    attempts: int, base: float, factor: float, maximum: float, jitter: float
) -> None:
    """Not one sooner, and for good."""
    policy = exponential(attempts=attempts, base=base, factor=factor, maximum=maximum, jitter=jitter)

    assert [attempt >= attempts for attempt in range(1, attempts + 3)] == [
        delay is None for delay in delays(policy, attempts + 2)
    ]


@given(seconds, factors, seconds)
def test_without_jitter_a_delay_is_never_shorter_than_the_one_before(base: float, factor: float, maximum: float) -> None:
    waits = [delay or 0.0 for delay in delays(exponential(attempts=60, base=base, factor=factor, maximum=maximum, jitter=0), 59)]

    assert sorted(waits) == waits


@given(seconds, factors, shares, st.integers(min_value=1, max_value=20))
def test_jitter_adds_at_most_its_share(base: float, factor: float, jitter: float, attempt: int) -> None:
    """It never shortens a delay."""
    exact = exponential(attempts=50, base=base, factor=factor, maximum=1e300, jitter=0)(attempt, ERROR)
    delay = exponential(attempts=50, base=base, factor=factor, maximum=1e300, jitter=jitter)(attempt, ERROR)

    assert exact is not None
    assert delay is not None
    assert exact <= delay <= exact * (1 + jitter) * (1 + 1e-12)


def test_jitter_spreads_what_failed_together() -> None:
    """A thousand deliveries do not come back at one moment."""
    policy = exponential(base=100, jitter=0.25)
    spread = {policy(1, ERROR) for _ in range(100)}

    assert 50 < len(spread)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"base": -1},
        {"base": math.nan},
        {"base": math.inf},
        {"factor": 0.5},
        {"factor": math.nan},
        {"factor": math.inf},
        {"maximum": -1},
        {"maximum": math.inf},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": math.nan},
    ],
)
def test_numbers_that_make_no_sense_are_a_mistake(wrong: dict[str, Any]) -> None:
    """Found where the policy is made, and not when the first delivery fails at night."""
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=rf"exponential\(.*{name}={wrong[name]}"):
        exponential(**wrong)


def test_any_function_of_that_shape_is_a_policy() -> None:
    def patient(attempt: int, error: Exception) -> float | None:
        return None if isinstance(error, KeyError) else 60.0 * attempt

    policy: Policy = patient

    assert [60.0, 120.0, None] == [policy(1, ERROR), policy(2, ERROR), policy(3, KeyError())]
