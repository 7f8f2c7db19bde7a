"""The relay: what was committed and not sent is sent, in order and once, however many relays there are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import func, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from eventbus import Envelope, Event, MemoryTransport, Metadata
from eventbus.envelope import decode, new_id, now
from eventbus.errors import ConfigurationError, PublishError, Refused, Unavailable
from eventbus.sqlalchemy import TABLES, Relay, SqlMessageStore, relay, retention, tables
from eventbus.sqlalchemy.database import is_away, is_busy
from eventbus.sqlalchemy.schema import from_now
from eventbus.testing import wait_until
from tests.sqlalchemy.club import Club, Counted, Noted, Registered
from tests.sqlalchemy.conftest import Database

MESSAGES, STREAMS, INBOX = TABLES.messages.c, TABLES.streams.c, TABLES.inbox.c

IN_A_WEEK = 7 * 86400.0


class Numbered(Event):
    metadata = Metadata(name="numbered", published=True)
    number: int


class Recorder(MemoryTransport):
    """Remembers every batch that it was given, and can be away, slow, or refuse a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Envelope]] = []
        self.away = False
        self.refused: set[str] = set()
        self.hold = 0.0

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        if self.away:
            raise PublishError.because(Unavailable("nobody there"), envelopes, "not sent")
        if self.hold:
            await anyio.sleep(self.hold)
        refused = [envelope for envelope in envelopes if (envelope.stream or self.stream) in self.refused]
        self.batches.append([envelope for envelope in envelopes if envelope not in refused])
        ids = await super().publish(self.batches[-1])
        if refused:
            raise PublishError.because(Refused("WRONGTYPE"), refused, "not sent")

        return ids

    @property
    def numbers(self) -> list[int]:
        """Those that were given to it, also if it had them already."""
        return [decode(Numbered, envelope.payload).number for batch in self.batches for envelope in batch]


@pytest.fixture
def transport() -> Recorder:
    return Recorder()


async def leave(database: Database, *messages: Event, relay_after: float = 0.0) -> None:
    """Commit messages as a process does that dies before it publishes them."""
    session = database.sessions()
    async with Club(session, message_store=SqlMessageStore(session, relay_after=relay_after)) as uow:
        for message in messages:
            uow.emit(message)
        await uow.commit()


async def put(database: Database, numbers: Sequence[int], streams: Sequence[str | None] = (None,)) -> None:
    """The same for many at once: each number to the next of the streams."""
    rows = [
        {
            "id": new_id(), "created_at": now(), "type": "numbered_v1", "payload": b'{"number":%d}' % number, "headers": {},
            "stream": streams[number % len(streams)],
        }
        for number in numbers
    ]  # fmt: skip
    async with database.engine.begin() as connection:
        await connection.execute(insert(TABLES.messages).values(due_at=from_now()), rows)


async def left(database: Database) -> int:
    return (await database.rows(select(func.count()).where(MESSAGES.due_at.is_not(None))))[0][0]


async def leases(database: Database) -> list[tuple[str, str]]:
    """The streams that relays are at."""
    return await database.rows(select(STREAMS.stream, STREAMS.relay).where(STREAMS.until > from_now()))


async def test_what_was_left_is_sent_and_marked(database: Database, transport: Recorder) -> None:
    """In its own envelopes, to its own streams, in order; what stays at home stays there."""
    await leave(database, Registered("Dune"), Noted("Dune"), Counted("Dune"), Registered("Emma"))

    assert 3 == await Relay(database.engine, transport).drain()

    assert ["registered_v1", "counted_v1", "registered_v1"] == [envelope.type for envelope in transport.envelopes]
    assert 0 == await left(database)
    assert [(True,)] * 3 == await database.rows(select(MESSAGES.entry_id.is_not(None)).where(MESSAGES.sent_at.is_not(None)))
    assert [] == await leases(database)


async def test_what_was_sent_is_not_sent_again(database: Database, transport: Recorder) -> None:
    await put(database, range(5))
    sending = Relay(database.sessions, transport)

    assert [5, 0] == [await sending.drain(), await sending.drain()]

    assert [0, 1, 2, 3, 4] == transport.numbers


@pytest.mark.one_driver
async def test_what_its_process_may_still_send_is_left_alone(database: Database, transport: Recorder) -> None:
    """Until it is due: then the process has died, or could not."""
    await leave(database, Numbered(1), relay_after=IN_A_WEEK)
    await leave(database, Numbered(2), relay_after=60)
    await leave(database, Numbered(3))
    second = MESSAGES.payload == b'{"number":2}'

    assert [(True,)] == await database.rows(select(MESSAGES.due_at.between(from_now(0), from_now(60))).where(second))

    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=0.05).run)
        await wait_until(lambda: [3] == transport.numbers, description="what is due was sent")
        await database.do(update(TABLES.messages).values(due_at=from_now(0.1)).where(second))
        await wait_until(lambda: [3, 2] == transport.numbers, description="and what has become due")
        tasks.cancel_scope.cancel()

    assert 1 == await left(database)
    assert 1 == await Relay(database.engine, transport).drain()  # which does not wait


async def test_batches_are_bounded(database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, and by bytes: the message that exceeds them is the last of its batch."""
    monkeypatch.setattr(relay, "AT_ONCE_BYTES", 25)
    await put(database, range(10, 17))  # of 13 bytes each

    await Relay(database.engine, transport).drain()
    assert [2, 2, 2, 1] == [len(batch) for batch in transport.batches]

    monkeypatch.undo()
    await put(database, range(10, 17))
    await Relay(database.engine, transport, batch=3).drain()
    assert [2, 2, 2, 1, 3, 3, 1] == [len(batch) for batch in transport.batches]


@pytest.mark.only("postgresql")  # SQLite has one writer, who commits before the next one takes a number
async def test_who_took_a_number_early_and_commits_late_is_not_passed_over(database: Database, transport: Recorder) -> None:
    late, session = database.sessions(), database.sessions()
    sending = Relay(database.engine, transport)
    async with Club(late, message_store=SqlMessageStore(late, relay_after=0)) as uow:
        uow.emit(Numbered(1))
        await SqlMessageStore(late, relay_after=0).add(uow.gather(None))
        async with Club(session, message_store=SqlMessageStore(session, relay_after=0)) as other:
            other.emit(Numbered(2))
            await other.commit()
        await sending.drain()
        assert [2] == transport.numbers
        await uow.commit()

    await sending.drain()

    assert [2, 1] == transport.numbers
    assert [(2,), (1,)] == [(row[0],) for row in await database.rows(select(MESSAGES.number).order_by(MESSAGES.sent_at))]


# ---------------------------------------------------------------------------------------------------------- many of them


@pytest.mark.one_driver
async def test_three_relays_send_each_message_once_and_in_order(database: Database, transport: Recorder) -> None:
    """3,000 messages on four streams, one of them the transport's own under two names."""
    await put(database, range(3000), (None, "a", "b", "events"))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            await tasks.start(Relay(database.engine, transport, batch=50, poll=0.01).run)
        await wait_until(lambda: sum(map(len, transport.batches)) >= 3000, description="everything was sent", timeout=30)
        tasks.cancel_scope.cancel()

    assert 0 == await left(database)
    assert 1 == max(Counter(transport.numbers).values())
    for stream in ("a", "b", "events"):
        numbers = [
            decode(Numbered, envelope.payload).number
            for envelope in transport.envelopes
            if (envelope.stream or "events") == stream
        ]
        assert sorted(numbers) == numbers
        assert (1500 if stream == "events" else 750) == len(numbers)


@pytest.mark.one_driver
async def test_a_stream_that_another_relay_is_at_is_left_to_it(database: Database, transport: Recorder) -> None:
    """Until its lease runs out, for it may have died; other streams are not held up."""
    await put(database, range(4), ("a", "b"))
    await database.do(insert(TABLES.streams).values(stream="a", relay="another", until=from_now(60)))

    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=0.05).run)
        await wait_until(lambda: [1, 3] == transport.numbers, description="the free stream was sent")
        await database.do(update(TABLES.streams).values(until=from_now(0.1)).where(STREAMS.stream == "a"))
        await wait_until(lambda: [1, 3, 0, 2] == transport.numbers, description="and then the other")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("before", [False, True], ids=["new", "known"])
async def test_a_stream_that_another_relay_takes_meanwhile_is_left_to_it(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """It was free when we looked, and is not when we lease it."""
    sending = Relay(database.engine, transport)
    if before:
        await put(database, range(2), ("a", "b"))
        await sending.drain()
        transport.batches.clear()
    await put(database, range(4), ("a", "b"))
    look = relay._Run._streams

    async def look_and_be_overtaken(run: relay._Run) -> list[str]:
        streams = await look(run)
        monkeypatch.undo()
        theirs = {"relay": "another", "until": from_now(60)}
        await database.do(update(TABLES.streams).where(STREAMS.stream == "a").values(**theirs))
        if not before:
            await database.do(insert(TABLES.streams).values(stream="a", **theirs))
        return streams

    monkeypatch.setattr(relay._Run, "_streams", look_and_be_overtaken)

    assert 2 == await relay._Run(sending).send()

    assert [1, 3] == transport.numbers
    assert [("a", "another")] == await leases(database)


async def test_a_stream_that_has_become_another_relays_is_not_given_back(database: Database, transport: Recorder) -> None:
    """Whoever is late, by a clock that jumped, leaves the lease alone that is not its own any more."""
    await put(database, range(2), ("a", "b"))
    transport.hold = 0.3

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Relay(database.engine, transport).drain)
        await wait_until(lambda: leases(database), description="it has leased them")
        theirs = update(TABLES.streams).where(STREAMS.stream == "a")
        await database.do(theirs.values(relay="another", until=from_now(60)))
        assert [] == transport.batches

    assert [0, 1] == transport.numbers
    assert [("a", "another")] == await leases(database)


@pytest.mark.only("postgresql")  # SQLite has one writer, whom all wait for
async def test_a_relay_does_not_wait_for_another_that_is_taking_a_stream(database: Database, transport: Recorder) -> None:
    """Nor for one that gives it back: it sends to the others."""
    sending = Relay(database.engine, transport)
    await put(database, range(2), ("a", "b"))
    await sending.drain()
    await put(database, range(4), ("a", "b"))

    async with database.engine.connect() as other:
        await other.execute(update(TABLES.streams).where(STREAMS.stream == "a").values(until=from_now(60)))
        with anyio.fail_after(5):
            assert 2 == await relay._Run(sending).send()
        assert [0, 1, 1, 3] == transport.numbers
        await other.rollback()

    assert 2 == await sending.drain()
    assert [0, 1, 1, 3, 0, 2] == transport.numbers


async def test_a_relay_that_comes_back_too_late_sends_nothing(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has as long as the lease; after that the stream may be another's."""
    monkeypatch.setattr(relay, "LEASE", 0.2)
    await put(database, range(3))
    transport.hold = 5

    with pytest.raises(Unavailable, match=r"was not sent within 0\.2 s"):
        await Relay(database.engine, transport).drain()

    assert [] == transport.numbers
    assert 3 == await left(database)


@pytest.mark.one_driver
async def test_a_relay_that_is_told_to_stop_finishes_its_batch(database: Database, transport: Recorder) -> None:
    """So that nobody has to send it again; and it gives the stream back."""
    await put(database, range(3))
    transport.hold = 0.2

    with anyio.move_on_after(0.1):
        await Relay(database.engine, transport).run()

    assert [0, 1, 2] == transport.numbers
    assert 0 == await left(database)
    assert [] == await leases(database)


@pytest.mark.one_driver
@pytest.mark.parametrize("verb", ["run", "drain"])
async def test_a_relay_that_is_told_to_stop_leaves_the_rest(database: Database, transport: Recorder, verb: str) -> None:
    """However much waits: it ends after the batch under way."""
    await put(database, range(100))
    transport.hold = 0.02

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(getattr(Relay(database.engine, transport, batch=1), verb))
        await wait_until(lambda: len(transport.numbers) >= 3, description="it is at work")
        tasks.cancel_scope.cancel()

    assert 0 < len(transport.numbers) < 100
    assert 100 - len(transport.numbers) == await left(database)
    assert [] == await leases(database)


@pytest.mark.one_driver
@pytest.mark.parametrize("released", [False, True], ids=["run out", "released"])
async def test_a_drain_waits_for_what_another_relay_is_at(database: Database, transport: Recorder, released: bool) -> None:
    """For a lease to run out, if that relay has died, or to be given back with something left."""
    await put(database, range(4), ("a", "b"))
    await database.do(insert(TABLES.streams).values(stream="a", relay="another", until=from_now(9 if released else 0.6)))
    counts: list[int] = []

    async def drain() -> None:
        counts.append(await Relay(database.engine, transport).drain())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        await wait_until(lambda: [1, 3] == transport.numbers, description="the free stream was sent")
        if released:
            await database.do(update(TABLES.streams).values(until=from_now()))
        with anyio.fail_after(5):
            while not counts:
                await anyio.sleep(0.01)

    assert [4] == counts
    assert [1, 3, 0, 2] == transport.numbers


async def test_a_drain_leaves_a_stream_to_a_relay_that_goes_on(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has it for longer than a lease lives, and sends it."""
    monkeypatch.setattr(relay, "LEASE", 0.5)
    await put(database, range(2), ("a",))
    await database.do(insert(TABLES.streams).values(stream="a", relay="another", until=from_now(60)))

    with anyio.fail_after(5):
        assert 0 == await Relay(database.engine, transport).drain()

    assert 2 == await left(database)


# ----------------------------------------------------------------------------------------------------------- being woken


@pytest.mark.only("postgresql")
async def test_postgresql_wakes_it(database: Database, transport: Recorder) -> None:
    """It does not wait for its next look."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=30).run)
        await wait_until(lambda: listening(database), description="it listens")
        for number in range(3):
            await leave(database, Numbered(number))
            await wait_until(lambda number=number: number in transport.numbers, description="it was woken", timeout=2)
        tasks.cancel_scope.cancel()


async def listening(database: Database) -> bool:
    return bool(await database.rows(text("SELECT 1 FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'")))


@pytest.mark.only("postgresql")
async def test_a_connection_that_breaks_off_is_no_end(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks from time to time, and listens again."""
    monkeypatch.setattr("eventbus.sqlalchemy.notices.AGAIN_AFTER", 0.2)
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=0.05).run)
        for number in range(3):
            await wait_until(lambda: listening(database), description="it listens")
            async with database.engine.connect() as connection:
                await connection.execute(kill)
            await wait_until(lambda number=number: reachable(database, number), description="it was left", timeout=5)
            await wait_until(lambda number=number: number in transport.numbers, description="it was sent", timeout=5)
        tasks.cancel_scope.cancel()


async def reachable(database: Database, number: int) -> bool:
    """Whether something could be left there: the pool may have connections that are dead."""
    try:
        await leave(database, Numbered(number))
    except Exception:
        return False

    return True


# --------------------------------------------------------------------------------------------------------- when it fails


async def test_a_server_that_is_away_is_waited_for(
    database: Database, transport: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, and when it is back; nothing is lost meanwhile."""
    caplog.set_level(logging.INFO, "eventbus.sqlalchemy")
    await put(database, range(3))
    transport.away = True

    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=0.01).run)
        await wait_until(lambda: "trying again" in caplog.text, description="it says so")
        assert 3 == await left(database)
        transport.away = False
        await wait_until(lambda: [0, 1, 2] == transport.numbers, description="it was sent")
        await wait_until(lambda: "going on after" in caplog.text, description="it says so")
        tasks.cancel_scope.cancel()

    assert 1 == caplog.text.count("trying again")


@pytest.mark.only("postgresql")
async def test_a_database_that_is_away_is_waited_for(
    database: Database, transport: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the beginning on, here."""
    await put(database, range(3))
    place = tmp_path / "socket"
    engine = create_async_engine(make_url(database.url).set(query={"host": str(place)}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Relay(engine, transport, poll=0.01).run)
        await wait_until(lambda: "trying again" in caplog.text, description="it says so")
        place.symlink_to(str(make_url(database.url).query["host"]))
        await wait_until(lambda: [0, 1, 2] == transport.numbers, description="it was sent")
        tasks.cancel_scope.cancel()
    await engine.dispose()


@pytest.mark.only("postgresql")
async def test_a_database_that_only_reads_is_waited_for(
    database: Database, transport: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """So is a primary for as long as its place is taken by a replica; what was connected to it meanwhile connects again."""
    await put(database, range(3))
    async with database.engine.connect() as administrator:
        await administrator.execution_options(isolation_level="AUTOCOMMIT")
        await administrator.execute(text("ALTER DATABASE postgres SET default_transaction_read_only = on"))
        try:
            engine = create_async_engine(database.url)
            async with anyio.create_task_group() as tasks:
                await tasks.start(Relay(engine, transport, poll=0.01).run)
                await wait_until(lambda: "trying again" in caplog.text, description="it says so")
                await administrator.execute(text("ALTER DATABASE postgres RESET default_transaction_read_only"))
                await wait_until(lambda: [0, 1, 2] == transport.numbers, description="it was sent")
                tasks.cancel_scope.cancel()
            await engine.dispose()
        finally:
            await administrator.execute(text("ALTER DATABASE postgres RESET default_transaction_read_only"))

    assert "read-only transaction" in caplog.text


@pytest.mark.only("postgresql")
@pytest.mark.parametrize(
    ("code", "busy", "away"),
    [
        ("25006", False, True), ("57P01", False, True), ("40001", True, False), ("40003", True, False),
        ("25P03", False, False), ("42501", False, False),
    ],
)  # fmt: skip
async def test_what_passes_by_itself_is_known_by_its_code(database: Database, code: str, busy: bool, away: bool) -> None:
    """As both drivers give it."""
    with pytest.raises(DBAPIError) as caught:
        await database.do(text(f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{code}'; END $$"))

    assert (busy, away) == (is_busy(caught.value), is_away(caught.value))


@pytest.mark.one_driver
async def test_a_stream_that_is_refused_does_not_stop_the_others(
    database: Database, transport: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of the wrong type, a right that is missing: it is left alone for a while."""
    monkeypatch.setattr(relay, "REST", 0.3)
    await put(database, range(6), ("a", "b"))
    transport.refused = {"a"}

    async with anyio.create_task_group() as tasks:
        await tasks.start(Relay(database.engine, transport, poll=0.01, batch=2).run)
        await wait_until(lambda: [1, 3, 5] == transport.numbers, description="the others were sent")
        transport.refused = set()
        await wait_until(lambda: [1, 3, 5, 0, 2, 4] == transport.numbers, description="and then those")
        tasks.cancel_scope.cancel()

    assert "nothing can be sent to a, trying again in 0.3 s" in caplog.text
    assert 0 == await left(database)


async def test_a_drain_raises_what_fails(database: Database, transport: Recorder) -> None:
    await put(database, range(6), ("a", "b"))
    transport.refused = {"a"}
    with pytest.raises(Refused):
        await Relay(database.engine, transport).drain()
    assert 3 == await left(database)

    transport.away = True
    with pytest.raises(Unavailable):
        await Relay(database.engine, transport).drain()
    assert [] == await leases(database)


async def test_tables_that_are_not_there_are_an_error(database: Database, transport: Recorder) -> None:
    with pytest.raises(ConfigurationError, match="other_messages and the tables beside it are not there"):
        await Relay(database.engine, transport, tables=tables("other_")).run()


async def test_what_a_transport_raises_by_mistake_is_raised(database: Database) -> None:
    """It would not go better the next time."""

    class Broken(MemoryTransport):
        async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
            raise ZeroDivisionError

    await put(database, range(3))
    with pytest.raises(ZeroDivisionError):
        await Relay(database.engine, Broken()).run()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "sqlite://"}, "AsyncEngine or an async_sessionmaker"),
        ({"transport": "redis://localhost"}, r"write transport=connect\(url\)"),
        ({"batch": 0}, "batch one message or more"),
        ({"poll": 0}, "poll"),
        ({"horizon": -1}, "horizon"),
        ({"keep": 3600}, r"Relay\(keep=3600\): a timedelta"),
        ({"remember": timedelta(days=-1)}, "remember"),
    ],
)
async def test_a_mistake_is_found_where_it_is_made(database: Database, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Relay(**{"source": database.engine, "transport": MemoryTransport(), **options})


async def test_a_relay_can_be_moved_to_another_transport(database: Database, transport: Recorder) -> None:
    """As a subscriber can: that is how a service is tested."""
    ours = Relay(database.engine, MemoryTransport(), batch=7)
    await put(database, range(8))

    await replace(ours, transport=transport).drain()

    assert [7, 1] == [len(batch) for batch in transport.batches]


# ------------------------------------------------------------------------------------------------- keeping, and once more


async def test_rows_are_kept_for_a_while(database: Database, transport: Recorder) -> None:
    """What was sent since it was sent, what stays at home since it was made, what the inbox knows; what is due stays in any case."""
    day = 86400.0
    old = {"id": "old", "created_at": now() - timedelta(days=3), "type": "t_v1", "payload": b"", "headers": {}}
    await database.do(
        insert(TABLES.messages).values(**old | {"id": "sent long ago"}, sent_at=from_now(-1.1 * day)),
        insert(TABLES.messages).values(**old | {"id": "sent lately"}, sent_at=from_now(-0.9 * day)),
        insert(TABLES.messages).values(**old | {"id": "due", "stream": "a"}, due_at=from_now(day)),
        insert(TABLES.messages).values(old | {"id": "at home"}),
        insert(TABLES.messages).values(old | {"id": "at home, new", "created_at": now()}),
        insert(TABLES.inbox).values(group="g", envelope_id="old", handled_at=from_now(-7.1 * day)),
        insert(TABLES.inbox).values(group="g", envelope_id="new", handled_at=from_now(-6.9 * day)),
    )
    keeping = Relay(database.engine, transport)

    async with anyio.create_task_group() as tasks:
        await tasks.start(keeping.run)
        await wait_until(lambda: keeping.statistics().removed == 3, description="old rows were removed")
        tasks.cancel_scope.cancel()

    kept = {id for (id,) in await database.rows(select(MESSAGES.id))}
    assert {"sent lately", "due", "at home, new"} == kept
    assert [("new",)] == await database.rows(select(INBOX.envelope_id))


async def test_many_old_rows_are_removed_in_steps(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two relays at once; and nothing is removed where it is kept for ever."""
    monkeypatch.setattr("eventbus.sqlalchemy.retention.AT_ONCE", 10)
    await put(database, range(55))
    await Relay(database.engine, transport).drain()
    forever = Relay(database.engine, transport, keep=None, remember=None)
    looked: list[int] = []

    async def prune(*args: Any, **kwargs: Any) -> int:
        looked.append(await retention.prune(*args, **kwargs))

        return looked[-1]

    monkeypatch.setattr("eventbus.sqlalchemy.relay.prune", prune)
    briefly = [Relay(database.engine, transport, keep=timedelta(0)) for _ in range(2)]

    async with anyio.create_task_group() as tasks:
        await tasks.start(forever.run)
        await wait_until(lambda: bool(looked), description="it has looked for what is old")
        assert [0] == looked
        assert 55 == len(await database.rows(select(MESSAGES.id)))
        for each in briefly:
            await tasks.start(each.run)
        await wait_until(lambda: 55 == sum(each.statistics().removed for each in briefly), description="all were removed")
        tasks.cancel_scope.cancel()

    assert [] == await database.rows(select(MESSAGES.id))


@pytest.mark.one_driver
async def test_the_removal_of_old_rows_holds_nothing_up(
    database: Database, transport: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: what becomes due is sent between two steps, and a relay that is told to stop leaves the rest."""
    monkeypatch.setattr("eventbus.sqlalchemy.retention.AT_ONCE", 1)
    old = [{"group": "g", "envelope_id": f"{number}"} for number in range(1000)]
    async with database.engine.begin() as connection:
        await connection.execute(insert(TABLES.inbox).values(handled_at=from_now(-8 * 86400.0)), old)
    await leave(database, Numbered(1), relay_after=0.3)
    removing = Relay(database.engine, transport)

    async with anyio.create_task_group() as tasks:
        await tasks.start(removing.run)
        await wait_until(lambda: [1] == transport.numbers, description="it was sent")
        assert 0 < removing.statistics().removed < 1000
        tasks.cancel_scope.cancel()

    assert [] != await database.rows(select(INBOX.envelope_id))


async def test_a_range_is_published_once_more(database: Database, transport: Recorder) -> None:
    """Into its own stream, where nothing is added twice, or into another: what a new service wants to read."""
    await leave(database, *(Registered(title) for title in "abc"), Noted("d"), Counted("e"))
    sending = Relay(database.engine, transport, batch=2)
    await sending.drain()
    second = transport.envelopes[1]

    assert 4 == await sending.republish()
    assert 4 == len(transport.envelopes)

    assert 2 == await sending.republish(type=Registered, since=second.created_at, into="replay")
    assert [("replay", envelope.id) for envelope in transport.envelopes[1:3]] == [
        (envelope.stream, envelope.id) for envelope in transport.envelopes[4:]
    ]
    with pytest.raises(ConfigurationError, match="stream name"):
        await sending.republish(into="a stream")
