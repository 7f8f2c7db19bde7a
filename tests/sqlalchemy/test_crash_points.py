"""Every point at which a process can die between its first statement and its last mark: what committed is on the stream once."""

from __future__ import annotations

import pytest

from eventbus.embedded import EmbeddedServer, find_executable
from tests.sqlalchemy.conftest import Database
from tests.sqlalchemy.crash import SCENARIOS, Size, points

EVERY = {"publish": 3, "rollback": 1, "handle": 4, "send": 10, "restore": 13}
"""Of so many points, one; ``python -m tests.sqlalchemy crash-points`` dies at each."""


@pytest.mark.one_driver
@pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to start")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_crash_points(database: Database, scenario: str) -> None:
    """See `tests.sqlalchemy.crash`."""
    await database.engine.dispose()
    with EmbeddedServer() as server:
        count, wrong = await points(scenario, database.url, server.url, Size(EVERY[scenario]))

    assert [] == wrong
    assert count >= 5
