"""The runs of ``python -m tests.sqlalchemy``, in their short form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventbus.embedded import EmbeddedServer, find_executable
from tests.sqlalchemy import disasters, relays, sums
from tests.sqlalchemy.conftest import Database

pytestmark = [
    pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to start"),
    pytest.mark.one_driver,
]


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


async def test_sums_in_sql_are_exact(database: Database, server: EmbeddedServer) -> None:
    """Consumers are killed, and every tenth delivery comes twice."""
    assert [] == await sums.in_sql(database.url, server.url, sums.SHORT)


async def test_sums_in_redis_are_exact(server: EmbeddedServer) -> None:
    assert [] == await sums.in_redis(server.url, sums.SHORT)


async def test_relays_keep_the_order_and_repeat_nothing(database: Database, server: EmbeddedServer) -> None:
    """Three of them, killed at their work."""
    assert [] == await relays.order_is_kept(database.url, server.url, relays.SHORT)


@pytest.mark.only("postgresql")
async def test_power_cuts_lose_nothing(database: Database) -> None:
    """Nor is anything there twice."""
    assert [] == await disasters.power_cuts(database.url, None, disasters.Size(1))


@pytest.mark.only("sqlite")
async def test_a_stale_replica_in_its_place_loses_nothing(database: Database) -> None:
    assert [] == await disasters.failovers(database.url, None, disasters.Size(1))


@pytest.mark.only("sqlite")
async def test_a_relay_killed_while_it_restores_loses_nothing(database: Database) -> None:
    assert [] == await disasters.restore_kills(database.url, None, disasters.Size(1))
