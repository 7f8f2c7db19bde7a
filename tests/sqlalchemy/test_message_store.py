"""The message store: what is written in the transaction of a unit of work, and what becomes of it after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, event, func, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, reconstructor
from sqlalchemy.orm import Session as SyncSession

from eventbus import Envelope, Event, MemoryTransport, Metadata, Repository, UnitOfWork
from eventbus.envelope import MSGPACK
from eventbus.errors import ConfigurationError, EncodeError, PublishError, TransactionError, Unavailable
from eventbus.sqlalchemy import TABLES, SqlMessageStore, tables
from eventbus.sqlalchemy import history as history_module
from tests.sqlalchemy.club import BOOKS, Club, Register, Registered, desk
from tests.sqlalchemy.conftest import Database, engine_on

MESSAGES = TABLES.messages.c


class Away(MemoryTransport):
    """A transport that does not answer."""

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        raise PublishError.because(Unavailable("nobody there"), envelopes, "not sent")


async def commit(database: Database, *titles: str, transport: Any = None, **options: Any) -> None:
    """Register books in one transaction."""
    session = database.sessions()
    async with Club(session, transport=transport, message_store=SqlMessageStore(session, **options)) as uow:
        for title in titles:
            await desk.handle(Register(title), uow)
        await uow.commit()


async def state(database: Database) -> list[tuple[str, str]]:
    """Each message, and whether it is at home, due or sent."""
    columns = (MESSAGES.type, MESSAGES.due_at, MESSAGES.sent_at, MESSAGES.entry_id)
    rows = await database.rows(select(*columns).order_by(MESSAGES.number))

    return [
        (type, "sent" if sent and entry and not due else "due" if due and not sent else "home") for type, due, sent, entry in rows
    ]


async def test_tables_that_are_not_there_are_said_to_be_missing(database: Database) -> None:
    """Whoever begins has not made them yet, and hears what to do."""
    others = tables("other_", MetaData())
    missing = "other_messages and the tables beside it are not there: make them with"
    with pytest.raises(ConfigurationError, match=missing):
        await commit(database, "Dune", tables=others)
    async with database.sessions() as session:
        with pytest.raises(ConfigurationError, match=missing):
            await anext(aiter(SqlMessageStore(session, tables=others).history()))


async def test_a_table_of_the_service_that_is_missing_is_its_own_affair(database: Database) -> None:
    """It is missed in our statement, since that is when the session writes what it was given."""
    session = database.sessions()
    with pytest.raises(DBAPIError, match="nowhere"):
        async with UnitOfWork(session, message_store=SqlMessageStore(session)) as uow:
            session.add(Nowhere(1))
            uow.emit(Registered("Dune"))
            await uow.commit()


async def test_what_was_handled_and_raised_is_stored_with_the_state(database: Database) -> None:
    """In order, in the same transaction; what is published is due, the rest stays at home."""
    await commit(database, "Dune")

    assert [("register_v1", "home"), ("registered_v1", "due"), ("noted_v1", "home")] == await state(database)
    assert [("Dune",)] == await database.rows(select(BOOKS))


async def test_nothing_is_stored_without_a_commit(database: Database) -> None:
    session = database.sessions()
    with pytest.raises(TransactionError):
        async with Club(session, message_store=SqlMessageStore(session)) as uow:
            await desk.handle(Register("Dune"), uow)

    assert [] == await state(database)
    assert [] == await database.rows(select(BOOKS))


async def test_what_cannot_be_encoded_stops_the_commit(database: Database) -> None:
    class Measured(Event):
        metres: float

    session = database.sessions()
    with pytest.raises(EncodeError, match="metres"):
        async with Club(session, message_store=SqlMessageStore(session)) as uow:
            await desk.handle(Register("Dune"), uow)
            uow.emit(Measured(float("nan")))
            await uow.commit()

    assert [] == await database.rows(select(BOOKS))


async def test_the_messages_of_a_transaction_are_one_statement(database: Database) -> None:
    said: list[str] = []
    event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *call: said.append(call[2].split(" (")[0]))

    await commit(database, "Dune", "Emma")

    assert ["INSERT INTO books", "INSERT INTO books", "INSERT INTO eventbus_messages"] == said


async def test_what_is_published_at_once_is_marked(database: Database) -> None:
    transport = MemoryTransport()

    await commit(database, "Dune", transport=transport)

    assert [("register_v1", "home"), ("registered_v1", "sent"), ("noted_v1", "home")] == await state(database)
    assert [Registered("Dune")] == transport.messages(Registered)


async def test_what_could_not_be_published_is_left_to_the_relay(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The commit has taken place, and is no error; the message is due in a moment."""
    await commit(database, "Dune", transport=Away(), relay_after=7)

    assert "not published at once, the relay will" in caplog.text
    [(due, now)] = await database.rows(select(MESSAGES.due_at, MESSAGES.created_at).where(MESSAGES.type == "registered_v1"))
    assert timedelta(seconds=6.9) < due - now < timedelta(seconds=9)


async def test_marking_leaves_the_session_alone(database: Database) -> None:
    """It has no transaction afterwards, and what it knows is still loaded."""
    session = AsyncSession(database.engine, expire_on_commit=False)
    async with UnitOfWork(session, transport=MemoryTransport(), message_store=SqlMessageStore(session)) as uow:
        shelf = Shelf("A")
        session.add(shelf)
        uow.emit(Registered("Dune"))
        await uow.commit()

    assert not session.in_transaction()
    assert shelf in session
    assert "A" == shelf.name
    await session.close()


async def test_a_mark_that_fails_is_logged_and_no_error(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(SqlMessageStore):
        async def published(self, records: Any) -> None:
            raise OSError("the database is gone")

    session = database.sessions()
    async with Club(session, transport=MemoryTransport(), message_store=Forgetful(session)) as uow:
        uow.emit(Registered("Dune"))
        await uow.commit()

    assert "could not note it; it will be published again" in caplog.text
    assert [("registered_v1", "due")] == await state(database)


async def test_one_store_serves_one_transaction_after_another(database: Database) -> None:
    session = database.sessions()
    uow = UnitOfWork(session, transport=MemoryTransport(), message_store=SqlMessageStore(session))
    for title in ("Dune", "Emma"):
        async with uow:
            uow.emit(Registered(title))
            await uow.commit()
    async with uow:
        await uow.commit()
    await session.close()

    assert [("registered_v1", "sent")] * 2 == await state(database)


# ----------------------------------------------------------------------------------------------------------- reading back


async def history(database: Database, **range: Any) -> list[Envelope]:
    async with database.sessions() as session:
        return [envelope async for envelope in SqlMessageStore(session).history(**range)]


async def test_an_envelope_comes_back_as_it_was(database: Database) -> None:
    """Payload byte for byte, headers in order, times to the microsecond, where it goes and what orders it."""

    class Odd(Event):
        metadata = Metadata(name="odd", published=True, stream="oddities", key="text")
        text: str

    transport = MemoryTransport(codec=MSGPACK)
    session = database.sessions()
    async with Club(session, transport=transport, message_store=SqlMessageStore(session)) as uow:
        uow.emit(Odd("ß\N{SNOWMAN}\U0001f600\n"), headers={"zebra": "1", "ant": 'a "quoted" \N{SNOWMAN}', "empty": ""})
        await uow.commit()

    [envelope] = await history(database)

    assert transport.envelopes == [envelope]
    assert list(transport.envelopes[0].headers) == list(envelope.headers)


async def test_history_is_in_order_and_by_type_and_time(database: Database) -> None:
    class Registered2(Event):
        metadata = Metadata(name="registered", schema_version=2, published=True)
        title: str

    class RegisteredLate(Event):
        metadata = Metadata(name="registered_vault", published=True)

    await commit(database, "Dune")
    await commit(database, "Emma")
    session = database.sessions()
    async with Club(session, message_store=SqlMessageStore(session)) as uow:
        uow.emit(Registered2("Solaris"))
        uow.emit(RegisteredLate())
        await uow.commit()
    everything = await history(database)
    dune, emma = everything[1], everything[4]

    assert 8 == len(everything)
    assert [dune, emma] == await history(database, type=Registered)
    assert [dune, emma] == await history(database, type="registered_v1")
    assert [dune, emma, everything[6]] == await history(database, type="registered")
    assert [emma] == await history(database, type=Registered, since=emma.created_at)
    assert [dune] == await history(database, type=Registered, until=emma.created_at)
    assert [] == await history(database, since=datetime.now(UTC))
    with pytest.raises(ConfigurationError, match="no time zone"):
        await history(database, since=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_history_is_read_in_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction is open while the caller is at work."""
    monkeypatch.setattr(history_module, "PAGE", 2)
    await commit(database, "Dune", "Emma", "Solaris")

    async with database.sessions() as session:
        titles = []
        async for envelope in SqlMessageStore(session).history(type=Registered):
            await database.do(insert(BOOKS).values(title=f"while reading {len(titles)}"))
            titles.append(envelope.payload)

    assert [b'{"title":"Dune"}', b'{"title":"Emma"}', b'{"title":"Solaris"}'] == titles


# ------------------------------------------------------------------------------------------------- sessions of all kinds


class Base(DeclarativeBase): ...


class Nowhere(Base):
    """A mapped class whose table is not there."""

    __tablename__ = "nowhere"
    id: Mapped[int] = mapped_column(primary_key=True)

    def __init__(self, id: int) -> None:
        self.id = id


class Shelf(Base):
    """A mapped class as an aggregate: its messages are no column, and are there also when it comes from the database."""

    __tablename__ = "books"
    name: Mapped[str] = mapped_column("title", primary_key=True)

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.messages: list[Event] = []

    @reconstructor
    def _load(self) -> None:
        self.messages = []

    def look_at(self) -> None:
        self.messages.append(Registered(self.name))


class Shelves(Repository[Shelf]):
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, shelf: Shelf) -> None:
        self._session.add(shelf)
        self.seen.append(shelf)

    async def get(self, name: str) -> Shelf:
        shelf = await self._session.get_one(Shelf, name)
        self.seen.append(shelf)

        return shelf


async def test_mapped_objects_are_aggregates(database: Database) -> None:
    """New ones, and those that were loaded."""

    class Library(UnitOfWork):
        def __init__(self, session: AsyncSession) -> None:
            super().__init__(session, message_store=SqlMessageStore(session))
            self.shelves = Shelves(session)

    for known in (False, True):
        async with database.sessions() as session, Library(session) as uow:
            shelf = await uow.shelves.get("A") if known else Shelf("A")
            if not known:
                await uow.shelves.add(shelf)
            shelf.look_at()
            await uow.commit()

    assert [("registered_v1", "due")] * 2 == await state(database)


@pytest.mark.only("postgresql")  # savepoints need more than Python's sqlite3 does by itself
async def test_a_session_in_the_transaction_of_a_test(database: Database) -> None:
    """Bound to a connection, everything takes place there, and is gone when the test rolls it back."""
    async with database.engine.connect() as connection:
        outer = await connection.begin()
        session = AsyncSession(connection, join_transaction_mode="create_savepoint")
        transport = MemoryTransport()
        async with Club(session, transport=transport, message_store=SqlMessageStore(session)) as uow:
            await desk.handle(Register("Dune"), uow)
            await uow.commit()
        counted = select(func.count()).select_from(TABLES.messages).where(MESSAGES.sent_at.is_not(None))

        assert 1 == await connection.scalar(counted)

        await outer.rollback()

    assert [] == await state(database)


async def test_a_session_with_several_databases(database: Database, tmp_path: Path) -> None:
    """The tables are where the session says that they are."""
    elsewhere = engine_on(f"sqlite+aiosqlite:///{tmp_path / 'elsewhere.db'}")
    await TABLES.create_all(elsewhere)
    session = AsyncSession(binds={BOOKS: database.engine, **dict.fromkeys(TABLES.all, elsewhere)})
    async with Club(session, transport=MemoryTransport(), message_store=SqlMessageStore(session)) as uow:
        await desk.handle(Register("Dune"), uow)
        await uow.commit()

    assert [] == await state(database)
    assert 3 == len(await state(replace(database, engine=elsewhere)))
    await elsewhere.dispose()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SqlMessageStore(SyncSession()), "AsyncSession"),  # type: ignore[arg-type]
        (lambda: SqlMessageStore("sqlite://"), "AsyncSession"),  # type: ignore[arg-type]
        (lambda: SqlMessageStore(AsyncSession(), group="a group"), "group name"),
        (lambda: SqlMessageStore(AsyncSession(), relay_after=-1), "relay_after"),
    ],
)
def test_a_mistake_is_found_where_it_is_made(make: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


async def test_a_session_without_a_database_says_so() -> None:
    session = AsyncSession()
    with pytest.raises(ConfigurationError, match="knows no database for eventbus_messages"):
        await SqlMessageStore(session).published([])
        [_ async for _ in SqlMessageStore(session).history()]


# ------------------------------------------------------------------------------------------------------------- the tables


async def test_tables_have_the_names_and_the_metadata_that_one_chooses(database: Database) -> None:
    """Two services may share a database; and migrations find them among the application's own tables."""
    metadata = MetaData()
    ours = tables("loans_", metadata)
    await ours.create_all(database.engine)
    session = database.sessions()
    async with Club(session, transport=MemoryTransport(), message_store=SqlMessageStore(session, tables=ours)) as uow:
        uow.emit(Registered("Dune"))
        await uow.commit()

    assert {"loans_messages", "loans_inbox", "loans_streams", "loans_servers"} == set(metadata.tables)
    assert [("registered_v1",)] == await database.rows(select(ours.messages.c.type).where(ours.messages.c.sent_at.is_not(None)))
    assert [] == await state(database)


@pytest.mark.only("postgresql")
async def test_tables_may_be_in_a_schema(database: Database) -> None:
    ours = tables(schema="service")
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS service")
        await connection.run_sync(ours.metadata.drop_all)
        await ours.create_all(connection)
    session = database.sessions()
    async with Club(session, message_store=SqlMessageStore(session, tables=ours, relay_after=0)) as uow:
        uow.emit(Registered("Dune"))
        await uow.commit()

    assert [("registered_v1",)] == await database.rows(select(ours.messages.c.type))


async def test_making_the_tables_twice_is_harmless(database: Database) -> None:
    await TABLES.create_all(database.engine)
    await commit(database, "Dune")
    await TABLES.create_all(database.engine)

    assert 3 == len(await state(database))


def test_other_databases_are_refused() -> None:
    class Other(AsyncEngine):
        def __init__(self) -> None:
            super().__init__(create_async_engine("sqlite+aiosqlite://").sync_engine)

        @property
        def dialect(self) -> Any:
            return type("dialect", (), {"name": "mysql"})

    from eventbus.sqlalchemy import Relay

    with pytest.raises(ConfigurationError, match="mysql is no database for messages"):
        Relay(Other(), MemoryTransport())
