"""Every async test runs under asyncio and under trio, but where redis-py is used, which knows only asyncio.

A file says so with ``pytestmark = pytest.mark.asyncio_only``, a folder with a conftest.py of its own that has an `anyio_backend` fixture
returning ``"asyncio"``.
"""

import sys
from collections import Counter

import pytest

sys.dont_write_bytecode = False  # or each run, and each of its workers, rewrites the asserts of all files again

FIRST = [
    "tests/faults/test_faults.py",
    "tests/test_transport.py",
    "tests/redis/test_subscription.py",
    "tests/conformance/test_trouble.py",
    "tests/conformance/test_crash_and_claim.py",
    "tests/sqlalchemy/test_crash_points.py",
    "tests/cli/test_relay.py",
    "tests/cli/test_demo.py",
    "tests/test_examples.py",
    "tests/sqlalchemy/test_runs.py",
]
"""Files of few tests that take long go first, or at the end the others would wait for one of them. Two of the faults' workloads take all
that two cores have: so what goes beside them is what mostly waits, for leases to run out."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asyncio_only: not to be run under trio, since it uses redis-py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Counter(_file(item) for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        file = _file(item)

        return FIRST.index(file) if file in FIRST else len(FIRST), -tests[file]

    items.sort(key=place)


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker("asyncio_only"):
        metafunc.parametrize("anyio_backend", ["asyncio"], scope="session")


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param

    return backend
