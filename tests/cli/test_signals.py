"""What two signals do to the process of a command; tests/cli/test_run.py and test_relay.py send them to real ones."""

import os
import signal
from collections.abc import Iterator

import anyio
import pytest

from eventbus.cli.signals import two_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """Those of before, which are there again afterwards."""
    before = [signal.getsignal(number) for number in BOTH]
    yield list(before)
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)


async def test_the_handlers_of_before_come_back_when_nobody_sent_a_signal(handlers: list[object]) -> None:
    with two_signals(lambda name: None, str):
        assert handlers != [signal.getsignal(number) for number in BOTH]

    assert handlers == [signal.getsignal(number) for number in BOTH]


async def test_a_second_signal_is_expected_until_the_process_has_ended(
    handlers: list[object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when the first one has led out of the block, and the process takes its last moments."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    called = anyio.Event()
    names: list[str] = []

    def first(name: str) -> None:
        names.append(name)
        called.set()

    with two_signals(first, lambda name: f"ended by {name}"):
        signal.raise_signal(signal.SIGTERM)
        await called.wait()
    signal.raise_signal(signal.SIGINT)

    assert (["SIGTERM"], [130]) == (names, codes)
    assert "ended by SIGINT" in capfd.readouterr().err
