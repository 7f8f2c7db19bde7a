"""Every async test runs under asyncio and under trio, but where redis-py is used, which knows only asyncio.

A file says so with ``pytestmark = pytest.mark.asyncio_only``, a folder with a conftest.py of its own that has an `anyio_backend` fixture
returning ``"asyncio"``.
"""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asyncio_only: not to be run under trio, since it uses redis-py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker("asyncio_only"):
        metafunc.parametrize("anyio_backend", ["asyncio"], scope="session")


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param

    return backend
