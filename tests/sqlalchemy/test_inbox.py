"""The inbox: a second delivery has no second effect, whatever happened to the first."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from sqlalchemy import MetaData, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from eventbus import Delivery, MemoryTransport, MessageBus, Subscriber, Transport, UnitOfWork, exponential
from eventbus.envelope import seal, to_fields
from eventbus.errors import ConfigurationError, Retry
from eventbus.sqlalchemy import TABLES, SqlMessageStore, tables
from eventbus.testing import drain, wait_until
from tests.sqlalchemy.club import EFFECTS, Club, Counted, Registered, reader
from tests.sqlalchemy.conftest import Database

MESSAGES, INBOX = TABLES.messages.c, TABLES.inbox.c


def delivery(title: str = "Dune", group: str = "reader") -> Delivery:
    """One entry with a new envelope, as a consumer gets it."""
    fields = [word if isinstance(word, bytes) else word.encode() for word in to_fields(seal(Registered(title)))]

    return Delivery("events", group, "consumer", "1-0", fields)


async def handle(
    database: Database, taken: Delivery, transport: Any = None, *, store: Any = SqlMessageStore, **options: Any
) -> bool:
    """What a subscriber does with a delivery; whether a handler ran."""
    session = database.sessions()
    async with Club(session, transport=transport, message_store=store(session, **options)) as uow:
        new = await uow.begin(taken)
        if not new:
            await uow.rollback()
            return False
        await reader.handle(Registered("Dune"), uow, delivery=taken)
        await uow.commit()

    return True


async def effects(database: Database) -> Counter[str]:
    return Counter(title for (title,) in await database.rows(select(EFFECTS.c.title)))


def subscriber(database: Database, transport: Transport, bus: MessageBus = reader, **options: Any) -> Subscriber:
    def unit_of_work(transport: Transport) -> Club:
        session = database.sessions()

        return Club(session, transport=transport, message_store=SqlMessageStore(session))

    settings: dict[str, Any] = {"streams": [transport.stream], "group": "reader", "concurrency": 1, **options}

    return Subscriber(bus=bus, transport=transport, unit_of_work=unit_of_work, **settings)


async def test_a_second_delivery_has_no_second_effect(database: Database) -> None:
    """And what the first one published is published once."""
    transport, taken = MemoryTransport(), delivery()

    assert [True, False, False] == [await handle(database, taken, transport) for _ in range(3)]

    assert {"Dune": 1} == await effects(database)
    assert [Counted("Dune")] == transport.messages(Counted)
    assert [("reader", taken.envelope.id)] == await database.rows(select(INBOX.group, INBOX.envelope_id))


async def test_tables_that_are_not_there_are_said_to_be_missing(database: Database) -> None:
    """It is a failed attempt, whose error says what to do."""
    with pytest.raises(ConfigurationError, match="other_messages and the tables beside it are not there: make them with"):
        await handle(database, delivery(), tables=tables("other_", MetaData()))


async def test_concurrent_deliveries_have_one_effect(database: Database) -> None:
    """The same delivery ten times at once: PostgreSQL lets the others wait for the first, SQLite has one writer."""
    taken = delivery()

    handled = await asyncio.gather(*(handle(database, taken) for _ in range(10)))

    assert 1 == sum(handled)
    assert {"Dune": 1} == await effects(database)


async def test_each_group_handles_it_once(database: Database) -> None:
    """Groups that share a database have an inbox each; the event store has the envelope once."""
    taken = delivery()
    deliveries = [taken, Delivery("events", "other", "consumer", "1-0", taken.fields)] * 2

    assert [True, True, False, False] == [await handle(database, each) for each in deliveries]

    assert {"Dune": 2} == await effects(database)
    assert 1 == len(await database.rows(select(MESSAGES.id).where(MESSAGES.id == taken.envelope.id)))


async def test_the_group_may_have_another_name_in_the_inbox(database: Database) -> None:
    taken = delivery()
    await handle(database, taken, group="reader.2")

    assert [("reader.2",)] == await database.rows(select(INBOX.group))


async def test_what_failed_is_handled_again(database: Database) -> None:
    """The row in the inbox is rolled back with the rest."""
    attempts = 0
    bus = MessageBus()

    @bus.listen
    async def fail_twice(event: Registered, uow: Club) -> None:
        nonlocal attempts
        attempts += 1
        await uow.session.execute(insert(EFFECTS).values(title=event.title))
        if attempts < 3:
            raise ValueError("not yet")

    transport = MemoryTransport()
    await transport.publish([seal(Registered("Dune"))])
    done = await drain(subscriber(database, transport, bus))

    assert (1, 2, 0) == (done.handled, done.retried, done.duplicates)
    assert {"Dune": 1} == await effects(database)


async def test_a_subscriber_acks_a_duplicate_and_counts_it(database: Database) -> None:
    """Here everything comes again to a group that begins anew."""
    transport = MemoryTransport()
    await transport.publish([seal(Registered(title)) for title in ("Dune", "Emma")])
    first = await drain(subscriber(database, transport))
    again = MemoryTransport()
    await again.publish([envelope for envelope in transport.envelopes if envelope.type == "registered_v1"])
    second = await drain(subscriber(database, again))

    assert (2, 0) == (first.handled, first.duplicates)
    assert (0, 2) == (second.handled, second.duplicates)
    assert {"Dune": 1, "Emma": 1} == await effects(database)
    assert not await again.backlog("events", "reader")


async def test_a_service_may_listen_to_itself(database: Database) -> None:
    """What it published and what it receives is the same envelope, and is stored once."""
    transport = MemoryTransport()
    session = database.sessions()
    async with Club(session, transport=transport, message_store=SqlMessageStore(session)) as uow:
        uow.emit(Registered("Dune"))
        await uow.commit()

    await drain(subscriber(database, transport))

    rows = await database.rows(select(MESSAGES.type, MESSAGES.sent_at.is_not(None)).order_by(MESSAGES.number))
    assert [("registered_v1", True), ("counted_v1", True)] == rows


# --------------------------------------------------------------------------------------------------- SQLite has one writer


@pytest.mark.only("sqlite")
async def test_a_database_that_stays_locked_costs_no_attempt(database: Database) -> None:
    """Who waits for the writer in vain comes again in a moment; only failures of handlers count."""
    impatient = create_async_engine(database.url, connect_args={"timeout": 0.05})
    hasty = replace(database, engine=impatient, sessions=type(database.sessions)(impatient))
    transport = MemoryTransport()
    await transport.publish([seal(Registered("Dune"))])
    service = subscriber(hasty, transport, retry=exponential(attempts=1))

    async with database.engine.connect() as writer, anyio.create_task_group() as tasks:
        await writer.execute(insert(EFFECTS).values(title="busy"))
        await tasks.start(service.run)
        await wait_until(lambda: service.statistics().retried >= 2, description="it was told to come again")
        await writer.rollback()
        transport.clock.advance(60)
        await wait_until(lambda: service.statistics().handled == 1, description="it was handled")
        tasks.cancel_scope.cancel()

    assert {"Dune": 1} == await effects(database)
    assert [] == await transport.dead_letters("events", "reader")
    await impatient.dispose()


@pytest.mark.only("postgresql")
async def test_a_conflict_of_transactions_costs_no_attempt(database: Database) -> None:
    """Under SERIALIZABLE the second of two that claim the same fails, and is told to come again; then it knows."""
    strict = create_async_engine(database.url, isolation_level="SERIALIZABLE")
    taken = delivery()
    other = database.sessions()
    assert await SqlMessageStore(other).claim(taken)

    async with anyio.create_task_group() as tasks:

        async def claim() -> None:
            async with AsyncSession(strict) as session:
                with pytest.raises(Retry, match="in the way"):
                    await SqlMessageStore(session).claim(taken)

        tasks.start_soon(claim)
        await wait_until(database.has_a_waiter, description="the second waits for the first")
        await other.commit()
    await other.close()
    await strict.dispose()


# ------------------------------------------------------------------------------------- a commit whose answer was an error


class Interrupted(AsyncSession):
    """A session whose commit is answered with an error: before it took place, or after."""

    after = False

    async def commit(self) -> None:
        if self.after:
            await super().commit()
        raise OperationalError("COMMIT", None, ConnectionError("the connection broke off"))


@pytest.fixture
def interrupted(database: Database) -> Callable[..., Database]:
    def make(*, after: bool) -> Database:
        kind = type("Interrupted", (Interrupted,), {"after": after})

        return replace(database, sessions=type(database.sessions)(database.engine, class_=kind))

    return make


async def test_a_commit_that_took_place_is_no_failure(
    database: Database, interrupted: Callable[..., Database], caplog: pytest.LogCaptureFixture
) -> None:
    """It is looked up, and published as after any commit."""
    transport, taken = MemoryTransport(), delivery()

    assert await handle(interrupted(after=True), taken, transport)

    assert "the commit took place, though it was answered with an error" in caplog.text
    assert {"Dune": 1} == await effects(database)
    assert [Counted("Dune")] == transport.messages(Counted)
    assert not await handle(database, taken, transport)


async def test_a_commit_that_did_not_take_place_is_one(database: Database, interrupted: Callable[..., Database]) -> None:
    transport, taken = MemoryTransport(), delivery()

    with pytest.raises(OperationalError, match="broke off"):
        await handle(interrupted(after=False), taken, transport)

    assert [] == transport.envelopes
    assert await handle(database, taken, transport)
    assert {"Dune": 1} == await effects(database)


@pytest.mark.parametrize("after", [True, False])
async def test_a_handler_that_says_nothing_is_looked_up_in_the_inbox(
    database: Database, interrupted: Callable[..., Database], after: bool
) -> None:
    """Nothing in the event store is its own then."""
    taken = delivery()

    async def quiet(database: Database) -> bool:
        session = database.sessions()
        async with Club(session, message_store=SqlMessageStore(session)) as uow:
            new = await uow.begin(taken)
            if new:
                await MessageBus().handle(Registered("Dune"), uow, delivery=taken)
                await uow.commit()
            else:
                await uow.rollback()
        return new

    if after:
        assert await quiet(interrupted(after=True))
    else:
        with pytest.raises(OperationalError):
            await quiet(interrupted(after=False))

    assert after is not await quiet(database)


async def test_what_another_transaction_wrote_is_no_proof(database: Database, interrupted: Callable[..., Database]) -> None:
    """Another consumer has handled the delivery meanwhile; ours did not commit, and publishes nothing."""
    taken, transport = delivery(), MemoryTransport()
    ours = interrupted(after=False)
    session = ours.sessions()
    store = SqlMessageStore(session)
    store._claimed = taken.envelope.id, "reader"  # as if we had been first, and then cut off
    await handle(database, taken)

    with pytest.raises(OperationalError):
        async with Club(session, transport=transport, message_store=store) as uow:
            await reader.handle(Registered("Dune"), uow, delivery=taken)
            await uow.commit()

    assert [] == transport.envelopes


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_commit_under_way_is_waited_for(database: Database, ends: str) -> None:
    """The connection broke off while the server was still at it: what it comes to is what counts."""
    lost, session = database.sessions(), database.sessions()
    uow = UnitOfWork(session, message_store=SqlMessageStore(session))
    async with uow, lost:
        uow.emit(Registered("Dune"))
        records = uow.gather(None)
        await SqlMessageStore(lost).add(records)
        answers: list[bool] = []

        async def confirm() -> None:
            answers.append(await SqlMessageStore(session).confirm(records))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(confirm)
            await wait_until(database.has_a_waiter, description="it waits for what the commit comes to")
            assert [] == answers
            await getattr(lost, ends)()
        await uow.rollback()
    await session.close()

    assert [ends == "commit"] == answers


async def test_what_cannot_be_looked_up_is_a_failure(
    database: Database, interrupted: Callable[..., Database], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is gone: the error of the commit is raised. It is handled again, and the inbox knows then."""

    async def gone(*_: object) -> bool:
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(SqlMessageStore, "_is_there", gone)
    taken = delivery()

    with pytest.raises(OperationalError, match="broke off"), caplog.at_level(logging.WARNING):
        await handle(interrupted(after=True), taken)

    assert "whether it took place could not be looked up" in caplog.text
    assert not await handle(database, taken)
    assert {"Dune": 1} == await effects(database)
