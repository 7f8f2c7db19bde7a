"""What takes longer than a second here is marked, so that ``pytest -m "not slow"`` leaves it out."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds, since leases have to run out and processes have to die")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
