"""The SQL tables on both databases: SQLite in a file, and a PostgreSQL of our own where its programs are, through asyncpg and through
psycopg. These drivers run under asyncio, so the tests do.

What takes long is not tried through psycopg, unless EVENTBUS_TEST_DRIVERS is ``all``.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from eventbus.sqlalchemy import TABLES
from tests.sqlalchemy.club import METADATA
from tests.sqlalchemy.postgres import NoPostgres, postgres

DRIVERS = {"sqlite": ["aiosqlite"], "postgresql": ["asyncpg", "psycopg"]}
"""Of each database, the one that we use first."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every behaviour on both; ``@pytest.mark.only("postgresql")`` where the other has it not. ``one_driver`` is said of what takes long."""
    if "database" in metafunc.fixturenames:
        only, one = (metafunc.definition.get_closest_marker(name) for name in ("only", "one_driver"))
        drivers = None if one is None or os.environ.get("EVENTBUS_TEST_DRIVERS") == "all" else 1
        names = DRIVERS if only is None else only.args
        metafunc.parametrize(
            "database", [f"{name}+{driver}" for name in names for driver in DRIVERS[name][:drivers]], indirect=True
        )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*databases): not to be run on the other databases")
    config.addinivalue_line("markers", "one_driver: takes long, and is run through one driver of each database")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Where a PostgreSQL is that runs as long as the tests do."""
    with ExitStack() as running:
        try:
            place = running.enter_context(postgres())
        except NoPostgres as exc:
            pytest.skip(str(exc))
        yield place


@dataclass(frozen=True)
class Database:
    """One of the two, with the tables of eventbus and those of the club, all of them empty."""

    url: str
    engine: AsyncEngine
    sessions: "async_sessionmaker[AsyncSession]"

    @property
    def name(self) -> str:
        return self.engine.dialect.name

    async def rows(self, statement: Any) -> list[tuple[Any, ...]]:
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(statement)]

    async def has_a_waiter(self) -> bool:
        """Whether somebody waits for a lock. PostgreSQL knows."""
        return await self.rows(text("SELECT count(*) FROM pg_locks WHERE NOT granted")) != [(0,)]

    async def do(self, *statements: Any) -> None:
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.execute(statement)


@pytest.fixture
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    name = request.param.partition("+")[0]
    place = request.getfixturevalue("postgresql") if name == "postgresql" else f":///{tmp_path / 'club.db'}"
    url = f"{request.param}{place}"
    engine = engine_on(url)
    await make_tables(engine)
    yield Database(url, engine, async_sessionmaker(engine))
    await engine.dispose()


async def make_tables(engine: AsyncEngine) -> None:
    """All of them, in a database that has nothing else."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("DROP SCHEMA public CASCADE"))
            await connection.execute(text("CREATE SCHEMA public"))
        await connection.run_sync(METADATA.create_all)
        await TABLES.create_all(connection)


def engine_on(url: str) -> AsyncEngine:
    """As an application would make it: SQLite with a write-ahead log, and no wait for the disk at each commit."""
    engine = create_async_engine(url, pool_size=20)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, record: object) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

    return engine
