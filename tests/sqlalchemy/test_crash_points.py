"""Every point at which a process can die between its first statement and its last mark: what committed is on the stream once."""

from __future__ import annotations

import json
import sys

import anyio
import pytest

from eventbus.embedded import EmbeddedServer, find_executable
from tests.processes import ROOT, environment
from tests.sqlalchemy.conftest import Database
from tests.sqlalchemy.crash import SCENARIOS

EVERY = {"publish": 3, "rollback": 1, "handle": 4, "send": 10, "restore": 13}
"""So many points are passed over; ``python -m tests.sqlalchemy.crash`` dies at each."""


@pytest.mark.one_driver
@pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to start")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_crash_points(database: Database, scenario: str) -> None:
    """See `tests.sqlalchemy.crash`."""
    await database.engine.dispose()
    with EmbeddedServer() as server:
        command = [sys.executable, "-m", "tests.sqlalchemy.crash", scenario, database.url, server.url, str(EVERY[scenario])]
        ran = await anyio.run_process(command, cwd=ROOT, env=environment(), check=False)

    assert b"" == ran.stderr
    found = json.loads(ran.stdout)
    assert [] == found["wrong"]
    assert found["points"] >= 5
