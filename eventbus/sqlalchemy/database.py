"""The border to SQLAlchemy: where the tables are, what the two databases say differently, and which of their errors pass by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from sqlalchemy import Insert, Table, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker

from eventbus.errors import ConfigurationError
from eventbus.sqlalchemy.schema import Tables

Sessions = async_sessionmaker[Any]
AnySession = AsyncSession | async_scoped_session[Any]

PATIENCE = 30.0
"""Seconds that a transaction of our own may take."""

_DIALECTS: dict[str, Any] = {"postgresql": postgresql, "sqlite": sqlite}


class Database:
    """Where the tables of a service are, for transactions of our own beside those of its sessions."""

    def __init__(self, bind: AsyncEngine | AsyncConnection) -> None:
        self.bind = bind
        self.dialect: str = bind.dialect.name
        if self.dialect not in _DIALECTS:
            raise ConfigurationError(f"{self.dialect} is no database for messages: use PostgreSQL or SQLite")

    def __repr__(self) -> str:
        return f"<database {self.bind!r}>"

    @classmethod
    def of_session(cls, session: AnySession, tables: Tables) -> Database:
        return cls(_bind_of(session, tables))

    @classmethod
    def of(cls, source: AsyncEngine | Sessions, tables: Tables) -> Database:
        """That of an engine, or of the sessions that a sessionmaker makes."""
        if isinstance(source, AsyncEngine):
            return cls(source)
        if isinstance(source, async_sessionmaker):
            session: AsyncSession = source()
            return cls(_bind_of(session, tables))

        raise ConfigurationError(
            f"{type(source).__name__} … is where the messages are said to be: give an AsyncEngine or an async_sessionmaker"
        )

    @property
    def engine(self) -> AsyncEngine:
        return self.bind if isinstance(self.bind, AsyncEngine) else self.bind.engine

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        """A short transaction of our own. On a connection that is in somebody's transaction already, as in a test, a part of that.

        Cancellation waits for its end, up to `PATIENCE` seconds: a statement of aiosqlite that is cancelled by a scope leaves a task behind
        that never ends, and keeps the process from ending (seen with SQLAlchemy 2.1.9 and aiosqlite 0.22.1).

        A connection that only reads is not used again: the next one may lead to the server that has taken the place.
        """
        with anyio.CancelScope(deadline=anyio.current_time() + PATIENCE, shield=True) as scope:
            if isinstance(self.bind, AsyncEngine):
                async with self.bind.begin() as connection:
                    try:
                        yield connection
                    except DBAPIError as exc:
                        if _code(exc) == _READ_ONLY:
                            await connection.invalidate(exc)
                        raise
            else:
                async with self.bind.begin_nested() if self.bind.in_transaction() else self.bind.begin():
                    yield self.bind
        if scope.cancelled_caught:
            raise TimeoutError(f"no answer from the database within {PATIENCE:g} s")

    async def ask(self) -> None:
        """Return when the database answers; its error if it does not."""
        async with self.transaction() as connection:
            await connection.execute(select(literal(1)))


def insert_new(table: Table, dialect: str) -> Insert:
    """An INSERT that passes over what is there already."""
    insert: Insert = _DIALECTS[dialect].insert(table).on_conflict_do_nothing()

    return insert


def _bind_of(session: AnySession, tables: Tables) -> AsyncEngine | AsyncConnection:
    bind = session.bind
    if isinstance(bind, AsyncEngine | AsyncConnection):
        return bind
    try:
        found = session.get_bind(clause=tables.messages)
    except SQLAlchemyError as exc:
        raise ConfigurationError(f"the session knows no database for {tables.messages.fullname}: give it a bind") from exc

    return AsyncEngine(found.engine)


# ---------------------------------------------------------------------------------------------------------------- errors

_PASSING = ("40001", "40003", "40P01", "55P03")
"""Of PostgreSQL: serialization failure, statement completion unknown, deadlock, lock not available."""
_READ_ONLY = "25006"
"""Of PostgreSQL: a read-only transaction, which is all that a replica has, and a primary whose place was taken."""
_AWAY = ("08", "53", "57", "58", _READ_ONLY)
"""Of PostgreSQL, how the codes begin: connection, resources, operator intervention, system; and that one."""
_LOCKED = (5, 6)
"""Of SQLite: the database, or a table, is locked."""


def is_busy(error: BaseException) -> bool:
    """Whether somebody else's transaction was in the way: the same may go well in a moment."""
    return _code(error) in _PASSING or _sqlite_code(error) in _LOCKED


def is_away(error: BaseException) -> bool:
    """Whether the database could not be reached, broke off, or takes no writes: the same may go well when it is back.

    psycopg gives no code to what goes wrong while it connects, be it a password: that is waited for, too, and said in the log.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, OperationalError) and not _code(error) and not _sqlite_code(error):
        return True

    return isinstance(error, OSError | TimeoutError | PoolTimeout) or _code(error).startswith(_AWAY)


@contextmanager
def expecting(tables: Tables) -> Generator[None]:
    """Around what is asked of the tables: `ConfigurationError` if they are not there. Another table that is missing is none of ours."""
    try:
        yield
    except DBAPIError as exc:
        missing = _code(exc) == "42P01" or (_sqlite_code(exc) == 1 and "no such table" in str(exc.orig))
        if missing and any(table.name in str(exc.orig) for table in tables.all):
            raise ConfigurationError(
                f"{tables.messages.fullname} and the tables beside it are not there: make them with "
                "`await tables.create_all(engine)`, or in a migration as docs/transactions.md shows"
            ) from exc
        raise


def _code(error: BaseException) -> str:
    """What PostgreSQL calls an error. While connecting the driver's own errors come out as they are."""
    own: Any = error.orig if isinstance(error, DBAPIError) else error

    return str(getattr(own, "sqlstate", None) or "")


def _sqlite_code(error: BaseException) -> int:
    code: int = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlite_errorcode", 0)

    return code & 0xFF
