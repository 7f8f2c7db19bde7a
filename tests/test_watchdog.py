"""An event loop that stands still is reported, with the name of the handler that holds it."""

import logging
import threading
import time
from functools import partial

import anyio
import pytest

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork
from eventbus.watchdog import Watchdog


class Blocking(Event):
    metadata = Metadata(name="blocking", published=True)


async def test_a_handler_that_blocks_the_loop_is_named(transport: MemoryTransport, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to guess which: function, file and line are in the one line that is logged while it lasts."""
    bus = MessageBus()
    done = anyio.Event()

    @bus.listen
    async def computes_too_long(event: Blocking) -> None:
        wait_for_the_report(caplog)
        done.set()

    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Blocking())
        await uow.commit()
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with anyio.create_task_group() as tasks:
            await tasks.start(Subscriber(bus=bus, transport=transport, streams=["events"], group="g", lease=0.2).run)
            with anyio.fail_after(20):
                await done.wait()
            tasks.cancel_scope.cancel()

    [line] = reports(caplog, "computes_too_long")
    assert line.startswith("events/g: the event loop has stood still for ")
    assert "test_watchdog.py:" in line


def reports(caplog: pytest.LogCaptureFixture, name: str = "") -> list[str]:
    return [record.message for record in caplog.records if "stood still" in record.message and name in record.message]


def wait_for_the_report(caplog: pytest.LogCaptureFixture) -> None:
    """Blocks the event loop, as a handler must not, until somebody says so."""
    until = time.monotonic() + 10
    while not reports(caplog, "computes_too_long") and time.monotonic() < until:
        time.sleep(0.01)


class Looked(threading.Event):
    """What a watchdog waits for between two looks: each time the loop was last alive at another moment."""

    def __init__(self, watchdog: Watchdog, *alive: float) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._alive = list(alive)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._alive:
            return True
        self._watchdog._alive = self._alive.pop(0)
        return False


@pytest.mark.parametrize(
    ("alive", "times"),
    [((-10, 0), 0), ((-10, -9, -8, 0), 0), ((-10, -10, 0), 1), ((-10, -10, -10, -10), 1), ((-10, -10, -9, -9), 2)],
)
def test_a_loop_that_goes_on_after_the_first_look_is_not_reported(
    alive: tuple[float, ...], times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It was the process that stood still, for want of a processor. A loop that stands still is reported once."""
    watchdog = Watchdog("events/g", 1.0)
    now = time.monotonic()
    watchdog._ended = Looked(watchdog, *(now + moment for moment in alive))
    watchdog._watch()

    assert times == len(reports(caplog))


class Looks(threading.Event):
    """What a watchdog waits for between two looks. It looks four times within its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_long = threading.Event()
        self._left = 8

    def wait(self, timeout: float | None = None) -> bool:
        ended = super().wait(timeout)
        self._left -= 1
        if self._left == 0:
            self.looked_long.set()

        return ended


async def test_a_handler_that_waits_is_not_reported(
    transport: MemoryTransport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: it lets the loop run."""
    bus = MessageBus()
    done = anyio.Event()
    looks = Looks()

    class Watched(Watchdog):
        def __init__(self, title: str, limit: float) -> None:
            super().__init__(title, limit)
            self._ended = looks

    monkeypatch.setattr("eventbus.subscriber.Watchdog", Watched)

    @bus.listen
    async def waits(event: Blocking) -> None:
        assert await anyio.to_thread.run_sync(partial(looks.looked_long.wait, 20))
        done.set()

    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Blocking())
        await uow.commit()
    async with anyio.create_task_group() as tasks:
        await tasks.start(Subscriber(bus=bus, transport=transport, streams=["events"], group="g", lease=0.8).run)
        with anyio.fail_after(20):
            await done.wait()
        tasks.cancel_scope.cancel()

    assert [] == reports(caplog)
