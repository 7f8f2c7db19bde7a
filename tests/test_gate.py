"""The waits between two tries, on a clock that is moved by them."""

import asyncio
import logging
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from eventbus import gate
from eventbus.errors import Unavailable
from eventbus.gate import Gate

LOGGER = logging.getLogger("eventbus.test")
AWAY = Unavailable("nobody answers")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait was. Time passes by waiting alone."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: 1000.0 + sum(found)))
    monkeypatch.setattr(gate, "asyncio", SimpleNamespace(sleep=sleep))

    return found


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, LOGGER.name)

    return caplog


async def test_a_wait_is_about_as_long_as_the_trouble(waits: list[float]) -> None:
    """Or 0.1 s if that is longer; half as much or half as much again; 10 s at the most."""
    here = Gate("club/g", LOGGER)
    for _ in range(100):
        usual = max(0.1, sum(waits))
        await here.wait(AWAY)
        assert min(10.0, 0.5 * usual) - 1e-6 <= waits[-1] <= min(10.0, 1.5 * usual) + 1e-6

    assert 100 == here.failures
    assert 10.0 == pytest.approx(max(waits))


@pytest.mark.parametrize(("quiet", "new"), [(5.0, False), (11.0, True)])
async def test_trouble_that_does_not_come_again_is_over(waits: list[float], said: Any, quiet: float, new: bool) -> None:
    """Also where nobody says that it went well: who waits for a handler, for hours, does not ask the server for anything."""
    here = Gate("club/g", LOGGER)
    for _ in range(10):
        await here.wait(AWAY)
    lasted = sum(waits)
    waits.append(quiet)
    await here.wait(AWAY)

    assert (waits[-1] <= 0.15) == new
    assert (1 if new else 11, int(new)) == (here.failures, here.reconnects)
    over = [record.message for record in said.records if "going on" in record.message]
    assert ([f"club/g: going on after 10 failures in {lasted:.1f} s"] if new else []) == over


async def test_who_has_leases_waits_no_longer_than_they_allow(waits: list[float]) -> None:
    here = Gate("club/g", LOGGER)
    for _ in range(20):
        await here.wait(AWAY, at_most=2.0)

    assert 2.0 == max(waits)


async def test_trouble_is_told_now_and_then(waits: list[float], said: Any) -> None:
    """At once, then every 10 s, or rather after the wait that was under way by then, which takes up to 10 s too."""
    here = Gate("club/g", LOGGER)
    times: list[float] = []
    while sum(waits) < 200:
        before = sum(waits)
        await here.wait(AWAY)
        if len(said.records) > len(times):
            times.append(before)

    assert "club/g: nobody answers; trying again (1 failures in 0 s)" == said.records[0].getMessage()
    assert 0 == times[0]
    assert all(10 <= later - earlier < 20 for earlier, later in pairwise(times))


async def test_what_is_to_be_quiet_is_not_told_and_neither_is_its_end(waits: list[float], said: Any) -> None:
    here = Gate("club/g", LOGGER)
    await here.wait(AWAY, quiet=True)
    here.passed()

    assert [] == said.records
    assert (0, 1) == (here.failures, here.reconnects)
    assert 1 == len(waits)


async def test_it_is_told_when_it_goes_on(waits: list[float], said: Any) -> None:
    """Once, and then the next trouble is told at once."""
    here = Gate("club/g", LOGGER)
    for _ in range(2):
        await here.wait(AWAY)
        here.passed()
        here.passed()

    assert 2 == here.reconnects
    assert ["trying again", "going on", "trying again", "going on"] == [
        "going on" if "going on after 1 failures" in record.getMessage() else "trying again" for record in said.records
    ]


async def test_what_a_stranger_says_is_one_line(waits: list[float], said: Any) -> None:
    await Gate("relay", LOGGER).wait(ValueError("one\ntwo\x1b[31m" + "x" * 1000))

    [text] = [record.getMessage() for record in said.records]
    assert text.isprintable()
    assert len(text) < 300


async def test_a_stop_ends_the_wait() -> None:
    stopped = asyncio.Event()
    stopped.set()
    here = Gate("club/g", LOGGER)
    here._opens = float("inf")

    with anyio.fail_after(5):
        await here.wait(AWAY, stopped)
