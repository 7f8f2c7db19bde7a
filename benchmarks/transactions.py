"""What the message store adds to a transaction in SQL, and how fast a relay is. The database is a new one that does not wait for a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, event, insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.message import CUSTOMER
from benchmarks.meter import Meter, repeated
from benchmarks.ours import placed
from benchmarks.server import Server, url
from eventbus import UnitOfWork, connect
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore
from tests.sqlalchemy.postgres import postgres

METADATA = MetaData()
ORDERS = Table("orders", METADATA, Column("id", Integer, primary_key=True), Column("customer", String))
AT_ONCE = 100
"""Messages of a transaction that leaves them to the relay."""

Sessions = async_sessionmaker[AsyncSession]


async def bare(n: int, database: str) -> dict[str, Any]:
    """An insert and the session's own commit, one after another."""

    async def once(sessions: Sessions) -> None:
        async with sessions() as session:
            await session.execute(insert(ORDERS).values(customer=CUSTOMER))
            await session.commit()

    return await _transactions(once, n, database)


async def stored(n: int, database: str) -> dict[str, Any]:
    """The same in a unit of work with a store, and an event that is left to the relay."""

    async def once(sessions: Sessions) -> None:
        async with sessions() as session, UnitOfWork(session, message_store=SqlMessageStore(session, relay_after=0)) as uow:
            await session.execute(insert(ORDERS).values(customer=CUSTOMER))
            uow.emit(placed(0))
            await uow.commit()

    return await _transactions(once, n, database)


async def published(n: int, database: str) -> dict[str, Any]:
    """The same, and the event is published after the commit, and marked as sent in a transaction of its own."""
    async with connect(url()) as transport:

        async def once(sessions: Sessions) -> None:
            async with (
                sessions() as session,
                UnitOfWork(session, transport=transport, message_store=SqlMessageStore(session)) as uow,
            ):
                await session.execute(insert(ORDERS).values(customer=CUSTOMER))
                uow.emit(placed(0))
                await uow.commit()

        return await _transactions(once, n, database)


async def relay(n: int, database: str) -> dict[str, Any]:
    """A relay sends n rows of one stream that nobody has sent."""
    async with _database(database) as engine, connect(url()) as transport:
        sessions = async_sessionmaker(engine)
        for _ in range(n // AT_ONCE):
            async with sessions() as session, UnitOfWork(session, message_store=SqlMessageStore(session, relay_after=0)) as uow:
                for number in range(AT_ONCE):
                    uow.emit(placed(number))
                await uow.commit()
        with Meter() as meter:
            sent = await Relay(engine, transport).drain()
        assert n == sent == Server()("XLEN", placed(0).metadata.stream)

    return meter.result(n)


async def _transactions(once: Callable[[Sessions], Awaitable[None]], n: int, database: str) -> dict[str, Any]:
    async with _database(database) as engine:
        sessions = async_sessionmaker(engine)

        return await repeated(lambda: once(sessions), n)


@asynccontextmanager
async def _database(name: str) -> AsyncIterator[AsyncEngine]:
    """A new one, ``sqlite`` or ``postgresql``, with our tables."""
    with TemporaryDirectory() as directory:
        driver = "postgresql+asyncpg" if name == "postgresql" else "sqlite+aiosqlite"
        with postgres() if name == "postgresql" else nullcontext(f":///{Path(directory) / 'orders.db'}") as place:
            engine = create_async_engine(driver + place)
            if name == "sqlite":
                event.listen(engine.sync_engine, "connect", _as_in_production)
            await TABLES.create_all(engine)
            async with engine.begin() as connection:
                await connection.run_sync(METADATA.create_all)
            try:
                yield engine
            finally:
                await engine.dispose()


def _as_in_production(connection: Any, _: Any) -> None:
    """With a write-ahead log, which spares a commit its syncs."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
