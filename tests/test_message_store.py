"""Message stores: what is kept of a transaction, in order, inside it, and forgotten with it."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from eventbus import Command, Event, InMemoryMessageStore, MessageBus, MessageStore, Metadata, SinkholeMessageStore, UnitOfWork
from eventbus.errors import EncodeError, TransactionError
from eventbus.message_store import Record


class Register(Command):
    title: str = "Dune"


class Registered(Event):
    metadata = Metadata(name="registered", published=True)
    title: str = "Dune"


class Said(Event):
    word: Any


class Session:
    """Commits when it is told to, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def commit(self) -> None:
        if self.error is not None:
            raise self.error

    async def rollback(self) -> None: ...


@pytest.fixture
def store() -> InMemoryMessageStore:
    return InMemoryMessageStore()


@pytest.fixture
def bus() -> MessageBus:
    bus = MessageBus()
    bus.add_listener(Register, lambda command, uow: (uow.emit(Registered(command.title)), uow.emit(Said(command.title))))
    bus.add_listener(Registered, lambda event, uow: uow.emit(Said("registered")))

    return bus


async def test_what_was_handled_and_raised_is_kept_in_order(bus: MessageBus, store: InMemoryMessageStore) -> None:
    """Published or private, with a handler or without."""
    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert [Register("Dune"), Registered("Dune"), Said("Dune"), Said("registered")] == store.messages


async def test_each_is_kept_in_its_envelope(bus: MessageBus, store: InMemoryMessageStore) -> None:
    """With identity and time, and where it came from: this is the local event store."""
    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(Register("Emma"), uow)
        await uow.commit()
    first, *others = store.envelopes

    assert ["register_v1", "registered_v1", "said_v1", "said_v1"] == [envelope.type for envelope in store.envelopes]
    assert b'{"title":"Emma"}' == first.payload
    assert {first.id} == {envelope.correlation_id for envelope in others}
    assert store.envelopes[0] is first


async def test_nothing_is_kept_before_the_commit(bus: MessageBus, store: InMemoryMessageStore) -> None:
    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(Register(), uow)

        assert [] == store.messages
        await uow.rollback()


@pytest.mark.parametrize("leave", ["rollback", "exception", "nothing"])
async def test_a_rollback_is_forgotten(bus: MessageBus, store: InMemoryMessageStore, leave: str) -> None:
    """However it came about."""
    with pytest.raises((TransactionError, KeyError)):
        async with UnitOfWork(message_store=store) as uow:
            await bus.handle(Register(), uow)
            if leave == "rollback":
                await uow.rollback()
            if leave != "nothing":
                raise KeyError

    assert [] == store.messages


async def test_a_commit_that_fails_is_forgotten(bus: MessageBus, store: InMemoryMessageStore) -> None:
    """The store was written before the session failed: only its own messages go."""
    async with UnitOfWork(message_store=store) as uow:
        uow.emit(Said("before"))
        await uow.commit()
    with pytest.raises(ConnectionError):
        async with UnitOfWork(Session(ConnectionError("gone")), message_store=store) as uow:
            await bus.handle(Register(), uow)
            await uow.commit()

    assert [Said("before")] == store.messages


async def test_messages_of_concurrent_transactions_do_not_mix(bus: MessageBus, store: InMemoryMessageStore) -> None:
    """One store serves them all: each transaction is kept as a whole, or not at all."""
    all_in = anyio.Event()
    waiting: list[str] = []

    async def one(title: str) -> None:
        async with UnitOfWork(Session(), message_store=store) as uow:
            await bus.handle(Register(title), uow)
            waiting.append(title)
            if len(waiting) == 3:
                all_in.set()
            await all_in.wait()
            if title == "b":
                await uow.rollback()
            else:
                await uow.commit()

    async with anyio.create_task_group() as tasks:
        for title in "abc":
            tasks.start_soon(one, title)
    titles = [message.title for message in store.messages if isinstance(message, Register)]
    kept = [message for title in titles for message in (Register(title), Registered(title), Said(title), Said("registered"))]

    assert ["a", "c"] == sorted(titles)
    assert kept == store.messages


async def test_the_default_keeps_nothing_and_is_no_place_to_meet(bus: MessageBus) -> None:
    """It is shared by all, so there must be nothing in it."""
    uow = UnitOfWork()
    async with uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert isinstance(uow.message_store, SinkholeMessageStore)
    assert {} == vars(uow.message_store)


async def test_a_sinkhole_takes_everything(bus: MessageBus) -> None:
    async with UnitOfWork(Session(), message_store=SinkholeMessageStore()) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

        assert not uow.message_store.durable


async def test_a_store_is_asked_in_order(bus: MessageBus) -> None:
    """Once before the commit, with everything; once after the publish, with what was published."""
    calls: list[tuple[str, list[str]]] = []

    class Recording:
        durable = False

        async def add(self, records: Sequence[Record]) -> None:
            calls.append(("add", [record.envelope.type for record in records]))

        async def published(self, records: Sequence[Record]) -> None:
            calls.append(("published", [record.envelope.type for record in records]))

        async def forget(self, records: Sequence[Record]) -> None:
            calls.append(("forget", [record.envelope.type for record in records]))

    from eventbus import MemoryTransport

    async with UnitOfWork(transport=MemoryTransport(), message_store=Recording()) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert [("add", ["register_v1", "registered_v1", "said_v1", "said_v1"]), ("published", ["registered_v1"])] == calls


@pytest.mark.parametrize("store", [SinkholeMessageStore(), InMemoryMessageStore()])
def test_our_stores_are_message_stores(store: object) -> None:
    assert isinstance(store, MessageStore)


async def test_the_repr_shows_what_is_kept(store: InMemoryMessageStore) -> None:
    """For a failing test."""
    await store.add([Record(Said("a"))])

    assert "<InMemoryMessageStore of [Said(word='a')]>" == repr(store)
    assert "<record of Said(word='a')>" == repr(Record(Said("a")))


# ------------------------------------------------------------------------------------------------------------------- records


def test_a_record_has_one_envelope_and_one_id() -> None:
    """Whichever is asked for first."""
    one, other = Record(Said("a")), Record(Said("a"))
    id, envelope = one.id, other.envelope

    assert (id, envelope.id) == (one.envelope.id, other.id)
    assert one.envelope is one.envelope
    assert one.id != other.id


def test_a_record_knows_its_depth() -> None:
    first = Record(Said("a"))
    second = Record(Said("b"), first)

    assert [0, 1, 2] == [record.depth for record in (first, second, Record(Said("c"), second))]


def test_what_is_published_is_outgoing() -> None:
    assert [True, False] == [Record(Registered()).outgoing, Record(Said("a")).outgoing]


def test_a_record_that_cannot_be_encoded_has_an_id_but_no_envelope() -> None:
    """A private message may hold anything, and cause others; asked for its envelope, it says what is wrong."""
    record = Record(Said(object()))
    caused = Record(Said("b"), record)

    assert record.id == caused.envelope.causation_id
    with pytest.raises(EncodeError, match=r"cannot encode said_v1: .* \(at \$\.word\)"):
        _ = record.envelope
