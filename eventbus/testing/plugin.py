"""The pytest plugin: transports as fixtures. It is loaded by every pytest run where eventbus is installed, so it imports nothing early.

* `transport`: a `MemoryTransport`, under asyncio and trio.
* `redis_transport`: the real `RedisTransport`, on a server that fakeredis pretends to be.
* `redis_server`: a real server, one for the whole run: the one named by ``--eventbus-redis-url``, else the embedded Valkey, else
  valkey-server or redis-server on PATH; else the test is skipped, with the reason.
* `live_transport`: a `RedisTransport` on that server, which leaves nothing behind.
* `faults`: a line to that server that cuts, delays or goes silent at a chosen command (`eventbus.testing.faults.FaultProxy`).

Those on Redis are async fixtures of anyio's pytest plugin, and run under asyncio: what pytest would run under trio is skipped. When a
test that was given a transport fails, its report shows what was in the streams.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from eventbus.memory import MemoryTransport

if TYPE_CHECKING:
    from eventbus.redis import RedisTransport
    from eventbus.testing.faults import FaultProxy
    from eventbus.testing.servers import LiveServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("eventbus").addoption(
        "--eventbus-redis-url",
        metavar="URL",
        help="the server for the fixtures redis_server and live_transport (default: one of their own, which they start)",
    )


@pytest.fixture
def transport() -> MemoryTransport:
    """Streams in this process, on a clock that can be moved: `eventbus.MemoryTransport`."""
    return MemoryTransport()


@pytest.fixture
async def redis_transport(eventbus_asyncio_only: None) -> AsyncIterator[RedisTransport]:
    """`eventbus.redis.RedisTransport` without a server, on fakeredis."""
    try:
        from eventbus.testing.fake_redis import fake_client
    except ImportError as exc:
        pytest.fail(f"the fixture redis_transport needs fakeredis ({exc}): pip install 'eventbus[testing]'")
    from eventbus.redis import RedisTransport

    async with RedisTransport(fake_client()) as transport:
        yield transport


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[LiveServer]:
    """A real server; its `url` says where. One of our own keeps nothing and ends with the test run."""
    from eventbus.errors import ConfigurationError, Unavailable
    from eventbus.testing.servers import live_server

    with ExitStack() as running:
        try:
            server = running.enter_context(live_server(pytestconfig.getoption("eventbus_redis_url")))
        except ConfigurationError as exc:
            pytest.skip(str(exc))
        except Unavailable as exc:  # without its traceback, which would show the password in the URL
            pytest.fail(str(exc), pytrace=False)
        yield server


@pytest.fixture
async def live_transport(redis_server: LiveServer, eventbus_asyncio_only: None) -> AsyncIterator[RedisTransport]:
    """`eventbus.redis.RedisTransport` on a real server, with a default stream that nobody else uses.

    Afterwards the streams that the test made are deleted; those that were there before are left alone. A server of our own is emptied.
    """
    from eventbus.testing.servers import Guest

    async with Guest(redis_server, stream=f"test-{secrets.token_hex(4)}") as transport:
        yield transport
        await transport.clean_up()


@pytest.fixture
async def faults(redis_server: LiveServer, eventbus_asyncio_only: None) -> AsyncIterator[FaultProxy]:
    """A line to `redis_server` that can be cut: connect to its `url`, and say at which command something is to happen."""
    from eventbus.testing.faults import FaultProxy

    async with FaultProxy(redis_server.url) as line:
        yield line


@pytest.fixture
def eventbus_asyncio_only(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip(f"redis-py runs under asyncio only, not under {anyio_backend_name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        from eventbus.testing.state import describe

        for name, value in getattr(item, "funcargs", {}).items():
            if text := describe(value):
                report.sections.append((f"eventbus: {name}", text))

    return report
