"""The unit of work: the whole life of a transaction, and that nothing is told of one that did not happen."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import eventbus.unit_of_work as module
from eventbus import (
    Command,
    Envelope,
    Event,
    MemoryTransport,
    MessageBus,
    Metadata,
    Model,
    Repository,
    TransactionStatus,
    UnitOfWork,
)
from eventbus.errors import (
    ConfigurationError,
    EncodeError,
    EventBusError,
    Full,
    PublishError,
    TransactionError,
    TransportError,
    Unavailable,
)
from eventbus.message_store import Record

running, committed, rolledback, streaming, closed = TransactionStatus


class Said(Event):
    metadata = Metadata(name="said", published=True)
    word: Any


class Whispered(Event):
    word: str


class Register(Command):
    pass


class Book(Model):
    id: int = 0


class Session:
    """What an `AsyncSession` looks like from here. Each step may wait for an event, or fail."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.begun = anyio.Event()
        self.go: anyio.Event | None = None
        self.error: Exception | None = None

    async def commit(self) -> None:
        await self.step("commit")

    async def rollback(self) -> None:
        await self.step("rollback")

    async def step(self, verb: str) -> None:
        self.begun.set()
        if self.go is not None:
            await self.go.wait()
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            self.log.append(f"{verb} failed")
            raise self.error
        self.log.append(verb)


class Never:
    """What is waited for and does not come: all the time that a commit has is up as soon as somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scope = anyio.CancelScope(shield=True)
        monkeypatch.setattr(module, "shielded", lambda seconds: self.scope)

    async def wait(self) -> None:
        self.scope.cancel()
        await anyio.sleep_forever()


class Transport:
    """The half of a transport that publishes; it may wait, or fail."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.begun = anyio.Event()
        self.go: anyio.Event | Never | None = None
        self.error: Exception | None = None
        self.published: list[Envelope] = []

    async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
        self.begun.set()
        if self.go is not None:
            await self.go.wait()
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            self.log.append("publish failed")
            raise self.error
        self.log.append("publish")
        self.published += envelopes

        return [str(number) for number in range(len(envelopes))]

    @property
    def words(self) -> list[str]:
        return [envelope.payload.decode() for envelope in self.published]


class Store:
    """A message store that says what it is asked for."""

    def __init__(self, log: list[str], *, durable: bool = False) -> None:
        self.log = log
        self.durable = durable
        self.error: Exception | None = None
        self.noted: list[Record] = []

    async def add(self, records: Sequence[Record]) -> None:
        if self.error is not None:
            raise self.error
        self.log.append(f"store {len(records)}")

    async def published(self, records: Sequence[Record]) -> None:
        if self.error is not None:
            raise self.error
        self.noted += records
        self.log.append(f"note {len(records)}")

    async def forget(self, records: Sequence[Record]) -> None:
        self.log.append(f"forget {len(records)}")


class Library(UnitOfWork):
    def __init__(self, session: Session | None = None, **kwargs: Any) -> None:
        super().__init__(session, **kwargs)
        self.books: Repository[Book] = Repository()

    def raise_by_model(self, message: Event) -> Book:
        book = Book()
        self.books.seen.append(book)
        book.messages.append(message)

        return book


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
async def session(log: list[str]) -> Session:
    return Session(log)


@pytest.fixture
async def transport(log: list[str]) -> Transport:
    return Transport(log)


@pytest.fixture
async def uow(session: Session, transport: Transport) -> Library:
    return Library(session, transport=transport)


# ----------------------------------------------------------------------------------------------------------------------- life


async def test_a_commit_commits(uow: Library, log: list[str]) -> None:
    """The status says where the transaction is in its life."""
    seen = [uow.status]
    async with uow as entered:
        seen.append(uow.status)
        await uow.commit()
        seen.append(uow.status)
    seen.append(uow.status)

    assert [closed, running, committed, closed] == seen
    assert ["commit"] == log
    assert uow is entered


async def test_a_rollback_rolls_back(uow: Library, log: list[str]) -> None:
    """A choice like any other: the block is left without an error."""
    async with uow:
        await uow.rollback()

        assert rolledback is uow.status

    assert (closed, ["rollback"]) == (uow.status, log)


async def test_leaving_without_an_end_rolls_back_and_says_so(uow: Library, transport: Transport, log: list[str]) -> None:
    """Forgetting is the safe case: nothing is stored, nothing is published."""
    with pytest.raises(TransactionError) as caught:
        async with uow:
            uow.emit(Said("a"))

    assert (
        "Library was left without commit() or rollback(): it was rolled back and nothing was published; "
        "end the block with `await uow.commit()`"
    ) == str(caught.value)
    assert (closed, ["rollback"], []) == (uow.status, log, transport.published)


async def test_leaving_by_an_exception_rolls_back_and_lets_it_through(uow: Library, transport: Transport, log: list[str]) -> None:
    with pytest.raises(KeyError, match="isbn"):
        async with uow:
            uow.emit(Said("a"))
            raise KeyError("isbn")

    assert (closed, ["rollback"], []) == (uow.status, log, transport.published)


async def test_an_exception_after_the_commit_changes_nothing(uow: Library, transport: Transport, log: list[str]) -> None:
    """What is committed is committed, and published, whatever happens then."""
    with pytest.raises(KeyError, match="isbn"):
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()
            raise KeyError("isbn")

    assert (closed, ["commit", "publish"], ['{"word":"a"}']) == (uow.status, log, transport.words)


@pytest.mark.parametrize("second", ["commit", "rollback"])
@pytest.mark.parametrize("first", ["commit", "rollback"])
async def test_a_transaction_ends_once(uow: Library, log: list[str], first: str, second: str) -> None:
    """The second end is an error; the first stands."""
    async with uow:
        await getattr(uow, first)()
        status = uow.status
        with pytest.raises(TransactionError, match=rf"cannot .* <Library {status.value}>: one transaction ends once"):
            await getattr(uow, second)()

        assert status is uow.status

    assert [first] == log


@pytest.mark.parametrize("verb", ["commit", "rollback", "detach", "emit"])
async def test_it_is_entered_first(uow: Library, log: list[str], verb: str) -> None:
    """Outside its block there is no transaction."""
    arguments = [Said("a")] if verb == "emit" else []
    with pytest.raises(TransactionError, match=r"<Library closed>.*enter it first"):
        result = getattr(uow, verb)(*arguments)
        if result is not None:
            await result

    assert [] == log


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_nothing_is_emitted_after_the_end(uow: Library, end: str) -> None:
    """It would be lost."""
    async with uow:
        await getattr(uow, end)()
        with pytest.raises(TransactionError, match=r"cannot emit <Library .*>: one transaction ends once"):
            uow.emit(Said("a"))


async def test_what_a_model_raises_after_the_end_is_lost_and_told(
    uow: Library, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is swallowed without a trace, and nothing gets into the next transaction."""
    async with uow:
        await uow.commit()
        uow.raise_by_model(Said("late"))

    assert ["Library: a model raised messages after the end of the transaction, and they are lost"] == caplog.messages

    async with uow:
        await uow.commit()

    assert [] == transport.published


async def test_what_a_shared_model_raises_while_one_transaction_ends_is_published_by_the_other(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Two requests that change one cached book: the announcement of the second is not lost because the first is done in between."""
    transport.go = anyio.Event()
    book = Book()
    first, second = Library(transport=transport), Library(transport=transport)

    async def lend() -> None:
        async with first:
            first.books.seen.append(book)
            book.messages.append(Said("first"))
            await first.commit()

    async with second:
        second.books.seen.append(book)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lend)
            await transport.begun.wait()
            book.messages.append(Said("second"))
            transport.go.set()
        assert closed == first.status
        await second.commit()

    assert ['{"word":"first"}', '{"word":"second"}'] == transport.words
    assert [] == caplog.messages


async def test_it_cannot_be_entered_while_it_is_open(uow: Library) -> None:
    async with uow:
        with pytest.raises(TransactionError, match=r"<Library running> is in use: .* make another, or leave this one first"):
            async with uow:
                pytest.fail("it was entered twice")
        await uow.rollback()


async def test_two_tasks_cannot_enter_it_at_once(uow: Library, log: list[str]) -> None:
    """The second is refused, the first goes on undisturbed."""
    inside, refused = anyio.Event(), anyio.Event()

    async def first() -> None:
        async with uow:
            inside.set()
            await refused.wait()
            await uow.commit()

    async def second() -> None:
        await inside.wait()
        with pytest.raises(TransactionError, match="is in use: a unit of work is one transaction of one task"):
            async with uow:
                pytest.fail("it was entered by two")
        refused.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        tasks.start_soon(second)

    assert (["commit"], closed) == (log, uow.status)


async def test_two_tasks_cannot_commit_it_at_once(uow: Library, session: Session, transport: Transport, log: list[str]) -> None:
    """While one commits, the other may neither commit nor roll back nor emit."""
    session.go = anyio.Event()
    async with uow, anyio.create_task_group() as tasks:
        uow.emit(Said("a"))
        tasks.start_soon(uow.commit)
        await session.begun.wait()
        for attempt in (uow.commit, uow.rollback, uow.close, lambda: uow.emit(Said("b"))):
            with pytest.raises(TransactionError, match="while it is being committed: one task uses a unit of work at a time"):
                await attempt()  # type: ignore[operator, misc]
        session.go.set()

    assert (["commit", "publish"], ['{"word":"a"}'], closed) == (log, transport.words, uow.status)


async def test_it_may_be_used_again(uow: Library, transport: Transport, log: list[str]) -> None:
    """One transaction after another, each with messages of its own."""
    for word in "ab":
        async with uow:
            uow.emit(Said(word))
            await uow.commit()

    assert (["commit", "publish"] * 2, ['{"word":"a"}', '{"word":"b"}']) == (log, transport.words)


async def test_it_needs_nothing(log: list[str]) -> None:
    """Without a session, a transport and a store it is still a transaction: of messages."""
    async with UnitOfWork() as uow:
        uow.emit(Whispered("a"))
        await uow.commit()

        assert committed is uow.status

    with pytest.raises(TransactionError):
        async with uow:
            pass


def test_the_repr_says_which_and_where() -> None:
    assert ["<UnitOfWork closed>", "<Library closed>"] == [repr(UnitOfWork()), repr(Library())]


# ------------------------------------------------------------------------------------------------------------------- a commit


async def test_a_commit_stores_commits_publishes_and_tells_in_that_order(
    session: Session, transport: Transport, log: list[str]
) -> None:
    """Store inside the transaction; then the commit; then the world may know."""

    class Hooked:
        def on_after_commit(self) -> None:
            log.append(f"hook, {uow.status.value}")

    uow = UnitOfWork(session, transport=transport, message_store=Store(log))
    bus = MessageBus()
    bus.add_listener(Register, lambda command, uow: uow.emit(Said("a")))
    async with uow:
        await bus.handle(Register(), uow, hooked=Hooked())
        await uow.commit()

    assert ["store 2", "commit", "publish", "note 1", "hook, committed"] == log


async def test_what_is_flagged_is_published_in_one_batch_in_the_order_raised(log: list[str]) -> None:
    """Whoever raised it; what is private stays here."""
    batches: list[list[str]] = []

    class Batches(MemoryTransport):
        async def publish(self, envelopes: Sequence[Envelope], /) -> list[str]:
            batches.append([envelope.payload.decode() for envelope in envelopes])
            return await super().publish(envelopes)

    async with Library(transport=Batches()) as uow:
        uow.emit(Said("a"))
        uow.emit(Whispered("private"))
        uow.raise_by_model(Said("b"))
        uow.emit(Said("c"))
        await uow.commit()

    assert [['{"word":"a"}', '{"word":"b"}', '{"word":"c"}']] == batches


async def test_nothing_to_publish_asks_nothing_of_the_transport(uow: Library, log: list[str]) -> None:
    async with uow:
        uow.emit(Whispered("a"))
        await uow.commit()

    assert ["commit"] == log


async def test_ids_sort_in_the_order_raised() -> None:
    transport = MemoryTransport()
    async with UnitOfWork(transport=transport) as uow:
        for number in range(100):
            uow.emit(Said(number))
        await uow.commit()
    ids = [envelope.id for envelope in transport.envelopes]

    assert sorted(set(ids)) == ids


async def test_headers_travel_with_what_is_emitted() -> None:
    """Beside the data, such as a trace or a tenant."""
    transport = MemoryTransport()
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Said("a"), headers={"tenant": "arrakis"})
        uow.emit(Said("b"))
        await uow.commit()

    assert [{"tenant": "arrakis"}, {}] == [envelope.headers for envelope in transport.envelopes]


async def test_the_codec_is_the_transports() -> None:
    """Whoever publishes MessagePack says so once, at the transport."""
    from eventbus.envelope import MSGPACK

    transport = MemoryTransport(codec=MSGPACK)
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Said("a"))
        await uow.commit()

    assert [(b"\x81\xa4word\xa1a", "application/msgpack")] == [
        (envelope.payload, envelope.content_type) for envelope in transport.envelopes
    ]


async def test_without_a_transport_it_warns_once(
    session: Session, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a test that is fine; in a service it is a mistake that should show in the log."""
    monkeypatch.setattr(module, "_warned", set())
    uow = UnitOfWork(session)
    for _ in range(2):
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()

    assert ["UnitOfWork has no transport: said_v1 was committed and published nowhere; give it transport=…"] == caplog.messages


async def test_a_durable_store_needs_no_transport(session: Session, log: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Its relay publishes."""
    async with UnitOfWork(session, message_store=Store(log, durable=True)) as uow:
        uow.emit(Said("a"))
        await uow.commit()

    assert (["store 1", "commit"], []) == (log, caplog.messages)


# ------------------------------------------------------------------------------------------------- what fails before the commit


async def test_what_cannot_be_encoded_stops_the_commit(uow: Library, transport: Transport, log: list[str]) -> None:
    """It is found before anything is stored, and the transaction is rolled back."""
    with pytest.raises(EncodeError, match=r"cannot encode said_v1: .*\(at \$\.word\)"):
        async with uow:
            uow.emit(Said("a"))
            uow.emit(Said(object()))
            await uow.commit()

    assert (["rollback"], [], closed) == (log, transport.published, uow.status)


async def test_a_store_that_fails_stops_the_commit(session: Session, transport: Transport, log: list[str]) -> None:
    store = Store(log)
    store.error = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        async with UnitOfWork(session, transport=transport, message_store=store) as uow:
            uow.emit(Said("a"))
            await uow.commit()

    assert ["forget 1", "rollback"] == log


async def test_a_session_that_fails_publishes_nothing(session: Session, transport: Transport, log: list[str]) -> None:
    """The store forgets what it was given, and its error is raised as it is."""
    with pytest.raises(ConnectionError, match="gone"):
        async with UnitOfWork(session, transport=transport, message_store=Store(log)) as uow:
            uow.emit(Said("a"))
            session.error = ConnectionError("gone")
            try:
                await uow.commit()
            finally:
                session.error = None

    assert (["store 1", "commit failed", "forget 1", "rollback"], []) == (log, transport.published)


async def test_a_commit_that_failed_may_be_tried_again(uow: Library, session: Session, transport: Transport) -> None:
    """It left the transaction running, with all its messages."""
    async with uow:
        uow.emit(Said("a"))
        session.error = ConnectionError("once")
        with pytest.raises(ConnectionError):
            await uow.commit()

        assert running is uow.status

        session.error = None
        await uow.commit()

    assert ['{"word":"a"}'] == transport.words


async def test_a_rollback_that_fails_does_not_hide_why(
    uow: Library, session: Session, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The first error comes through, with a note of the second; the unit of work is closed."""
    with pytest.raises(KeyError) as caught:
        async with uow:
            session.error = ConnectionError("gone")
            raise KeyError("isbn")

    assert ["and the rollback failed: ConnectionError('gone')"] == caught.value.__notes__
    assert ["rollback of <Library rolledback> failed: gone"] == caplog.messages
    assert closed is uow.status


async def test_a_rollback_that_fails_on_leaving_without_an_end_is_logged(
    uow: Library, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.error = ConnectionError("gone")
    with pytest.raises(TransactionError, match="was left without"):
        async with uow:
            pass

    assert ["rollback of <Library rolledback> failed: gone"] == caplog.messages
    assert closed is uow.status


async def test_a_rollback_that_was_asked_for_raises_its_error(uow: Library, session: Session) -> None:
    """Nothing is published of it all the same."""
    with pytest.raises(ConnectionError):
        async with uow:
            uow.emit(Said("a"))
            session.error = ConnectionError("gone")
            await uow.rollback()

    assert closed is uow.status


# ------------------------------------------------------------------------------------------------------------------- rollback


@pytest.mark.parametrize("leave", ["rollback", "exception", "nothing"])
async def test_a_rollback_forgets_every_message(uow: Library, transport: Transport, leave: str) -> None:
    """Emitted, raised by a model, collected or not: used again, it publishes nothing of what did not happen."""
    bus = MessageBus()
    bus.add_listener(Register, lambda command, uow: uow.emit(Said("handled")))
    with suppress(TransactionError, KeyError):
        async with uow:
            await bus.handle(Register(), uow)
            uow.emit(Said("emitted"))
            book = uow.raise_by_model(Said("raised"))
            if leave == "exception":
                raise KeyError
            if leave == "rollback":
                await uow.rollback()
    async with uow:
        uow.books.seen.append(book)
        await uow.commit()

    assert ([], []) == (book.messages, transport.published)


async def test_a_rollback_stores_nothing(session: Session, log: list[str]) -> None:
    async with UnitOfWork(session, message_store=Store(log)) as uow:
        uow.emit(Said("a"))
        await uow.rollback()

    assert ["rollback"] == log


# ------------------------------------------------------------------------------------------------ what fails after the commit


async def test_a_failed_publish_never_pretends_to_be_a_rollback(uow: Library, transport: Transport, log: list[str]) -> None:
    """It is committed. The error carries what is not in the stream, and says that this is unknown."""
    transport.error = Unavailable("no answer from redis://localhost")
    with pytest.raises(PublishError) as caught:
        async with uow:
            uow.emit(Said("a"))
            uow.emit(Said("b"))
            try:
                await uow.commit()
            finally:
                assert committed is uow.status

    assert ['{"word":"a"}', '{"word":"b"}'] == [envelope.payload.decode() for envelope in caught.value.envelopes]
    assert "unknown" == caught.value.outcome
    assert (["commit", "publish failed"], closed) == (log, uow.status)
    assert transport.error is caught.value.__cause__


def test_a_url_is_no_transport() -> None:
    """Said before anything is committed."""
    url: Any = "redis://localhost:6379/0"
    with pytest.raises(ConfigurationError, match=r"Library\(transport=…\) is a URL; write transport=connect\(url\)"):
        Library(None, transport=url)


async def test_a_mistake_in_the_transport_has_sent_nothing(uow: Library, transport: Transport) -> None:
    """A configuration that cannot work, like Redis under trio, is found before anything is sent, and is not called a lost reply."""
    transport.error = ConfigurationError("this transport runs under asyncio")
    with pytest.raises(
        PublishError, match="1 envelope not sent: ConfigurationError: this transport runs under asyncio"
    ) as caught:
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()

    assert "not sent" == caught.value.outcome


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable("x"), Unavailable),
        (Full("x"), Full),
        (TransportError("x"), TransportError),
        (OSError("x"), TransportError),
        (PublishError("a stranger's, with nothing in it"), PublishError),
    ],
)
async def test_a_publish_error_is_also_an_error_of_its_causes_kind(
    uow: Library, transport: Transport, error: Exception, kind: type[EventBusError]
) -> None:
    """`except Full` works, and so does `except PublishError`; whatever was raised, nothing is left out."""
    transport.error = error
    with pytest.raises(kind) as caught:
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()

    assert isinstance(caught.value, PublishError)
    assert 1 == len(caught.value.envelopes)


async def test_what_was_not_published_can_be_published_again(uow: Library, transport: Transport) -> None:
    """With the same ids, in the same order; then nothing is left to do."""
    transport.error = Unavailable("no")
    with pytest.raises(PublishError) as caught:
        async with uow:
            uow.emit(Said("a"))
            uow.emit(Said("b"))
            await uow.commit()
    with pytest.raises(PublishError) as again:
        await uow.publish_pending()

    assert caught.value.envelopes == again.value.envelopes

    transport.error = None
    await uow.publish_pending()
    await uow.publish_pending()

    assert list(caught.value.envelopes) == transport.published


async def test_only_what_is_missing_is_published_again(uow: Library, transport: Transport) -> None:
    """Two streams, one of which was written: the error says which envelopes are not known to be there."""

    async def publish_the_first(envelopes: Sequence[Envelope], /) -> list[str]:
        transport.published.append(envelopes[0])
        raise PublishError.because(Unavailable("no"), envelopes[1:], "not sent")

    whole, transport.publish = transport.publish, publish_the_first  # type: ignore[method-assign]
    with pytest.raises(PublishError) as caught:
        async with uow:
            for word in "abc":
                uow.emit(Said(word))
            await uow.commit()
    transport.publish = whole  # type: ignore[method-assign]
    await uow.publish_pending()

    assert "not sent" == caught.value.outcome
    assert ['{"word":"a"}', '{"word":"b"}', '{"word":"c"}'] == transport.words


async def test_what_is_pending_outlives_the_next_transaction(uow: Library, transport: Transport) -> None:
    """Committed or rolled back, the next one loses nothing of the one before."""
    transport.error = Unavailable("no")
    for word in "ab":
        with pytest.raises(PublishError):
            async with uow:
                uow.emit(Said(word))
                await uow.commit()
    transport.error = None
    async with uow:
        uow.emit(Said("rolled back"))
        await uow.rollback()
    async with uow:
        uow.emit(Said("c"))
        await uow.commit()
    await uow.publish_pending()

    assert ['{"word":"c"}', '{"word":"a"}', '{"word":"b"}'] == transport.words


async def test_a_cancelled_publish_pending_loses_nothing(uow: Library, transport: Transport) -> None:
    transport.error = Unavailable("no")
    with pytest.raises(PublishError):
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()
    transport.error, transport.go, transport.begun = None, anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(uow.publish_pending)
        await transport.begun.wait()
        tasks.cancel_scope.cancel()
    transport.go.set()
    await uow.publish_pending()

    assert ['{"word":"a"}'] == transport.words


async def test_nothing_pending_is_fine(uow: Library, transport: Transport) -> None:
    await uow.publish_pending()

    assert [] == transport.published


async def test_with_a_durable_store_a_failed_publish_is_the_relays(
    session: Session, transport: Transport, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and not raised: what was stored is delivered by somebody."""
    transport.error = Unavailable("no answer")
    async with UnitOfWork(session, transport=transport, message_store=Store(log, durable=True)) as uow:
        uow.emit(Said("a"))
        await uow.commit()
    transport.error = None
    await uow.publish_pending()

    assert (["store 1", "commit", "publish failed"], []) == (log, transport.published)
    assert caplog.messages[0].startswith("not published at once, the relay will: 1 envelope perhaps sent")


async def test_the_store_is_told_what_was_published(session: Session, transport: Transport, log: list[str]) -> None:
    """At once or when it was tried again: only what is in the stream."""
    store = Store(log)
    transport.error = Unavailable("no")
    uow = UnitOfWork(session, transport=transport, message_store=store)
    with pytest.raises(PublishError):
        async with uow:
            uow.emit(Said("a"))
            uow.emit(Whispered("b"))
            await uow.commit()
    transport.error = None

    assert [] == store.noted

    await uow.publish_pending()

    assert [Said("a")] == [record.message for record in store.noted]


async def test_a_store_that_cannot_note_what_was_published_is_no_failure(
    session: Session, transport: Transport, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is published, and will perhaps be published again."""
    store = Store(log)

    class Fails:
        def on_after_commit(self) -> None:
            log.append("hook")

    async with UnitOfWork(session, transport=transport, message_store=store) as uow:
        uow.emit(Said("a"))
        uow.depend(Fails())

        async def published(records: Sequence[Record]) -> None:
            raise OSError("disk full")

        store.published = published  # type: ignore[method-assign]
        await uow.commit()

    assert ["store 1", "commit", "publish", "hook"] == log
    assert ["published, but the message store could not note it; it will be published again"] == caplog.messages


# ---------------------------------------------------------------------------------------------------------------------- hooks


class Hooks:
    """A dependency that wants to know how it ended."""

    def __init__(self, log: list[str], name: str, error: Exception | None = None) -> None:
        self.log = log
        self.name = name
        self.error = error

    async def on_after_commit(self) -> None:
        await self.tell("committed")

    async def on_after_rollback(self) -> None:
        await self.tell("rolled back")

    async def tell(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def depending(uow: UnitOfWork, *dependencies: object) -> AsyncIterator[UnitOfWork]:
    async with uow:
        for dependency in dependencies:
            uow.depend(dependency)
        yield uow


async def test_dependencies_hear_of_the_commit(log: list[str]) -> None:
    """After it, in the order in which they came in."""
    async with depending(UnitOfWork(), Hooks(log, "a"), Hooks(log, "b")) as uow:
        await uow.commit()

    assert ["a committed", "b committed"] == log


@pytest.mark.parametrize("leave", ["rollback", "exception", "nothing"])
async def test_dependencies_hear_of_the_rollback(uow: Library, log: list[str], leave: str) -> None:
    """However it came about."""
    with suppress(TransactionError, KeyError):
        async with depending(uow, Hooks(log, "a")):
            if leave == "exception":
                raise KeyError
            if leave == "rollback":
                await uow.rollback()

    assert ["rollback", "a rolled back"] == log


async def test_a_dependency_may_have_either_hook_or_none(log: list[str]) -> None:
    """And what only looks like one is left alone."""

    class Committed:
        def on_after_commit(self) -> None:
            log.append("committed")

    class RolledBack:
        def on_after_rollback(self) -> None:
            log.append("rolled back")

    class Neither:
        on_after_commit = None
        on_after_rollback = "later"

    for end in ("commit", "rollback"):
        async with depending(UnitOfWork(), Committed(), RolledBack(), Neither(), 5, None) as uow:
            await getattr(uow, end)()

    assert ["committed", "rolled back"] == log


async def test_the_dependencies_of_the_handlers_are_told(log: list[str]) -> None:
    """What the bus made, and what was passed to `handle`, whether a handler asked for it or not; each once."""
    hooks = Hooks(log, "transient")
    bus = MessageBus(made=lambda: Hooks(log, "made"), unasked=lambda: Hooks(log, "unasked"))
    bus.add_listener(Register, lambda command, made: None)
    async with UnitOfWork() as uow:
        for _ in range(2):
            await bus.handle(Register(), uow, tracker=hooks)
        await uow.commit()

    assert ["transient committed", "made committed", "made committed"] == log


async def test_a_transaction_tells_only_its_own_dependencies(log: list[str]) -> None:
    """The next one of the same object does not tell those of the last."""
    uow = UnitOfWork()
    for name in "ab":
        async with depending(uow, Hooks(log, name)):
            await uow.commit()

    assert ["a committed", "b committed"] == log


async def test_a_hooks_error_is_raised_after_every_other_hook_ran(uow: Library, transport: Transport, log: list[str]) -> None:
    """And the transaction is committed and published all the same."""
    with pytest.raises(KeyError, match="a"):
        async with depending(uow, Hooks(log, "a", KeyError("a")), Hooks(log, "b")):
            uow.emit(Said("x"))
            await uow.commit()

    assert ["commit", "publish", "a committed", "b committed"] == log
    assert (closed, ['{"word":"x"}']) == (uow.status, transport.words)


async def test_errors_of_several_hooks_are_raised_together(log: list[str]) -> None:
    errors = [KeyError("a"), ValueError("c")]
    with pytest.raises(ExceptionGroup, match="2 hooks on_after_commit failed") as caught:
        async with depending(UnitOfWork(), Hooks(log, "a", errors[0]), Hooks(log, "b"), Hooks(log, "c", errors[1])) as uow:
            await uow.commit()

    assert errors == list(caught.value.exceptions)
    assert ["a committed", "b committed", "c committed"] == log


async def test_a_hook_that_fails_on_rollback_does_not_hide_why(log: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError, match="isbn") as caught:
        async with depending(UnitOfWork(), Hooks(log, "a", ValueError("no")), Hooks(log, "b")):
            raise KeyError("isbn")

    assert ["a rolled back", "b rolled back"] == log
    assert ["and the rollback failed: ValueError('no')"] == caught.value.__notes__
    assert 1 == len(caplog.messages)


async def test_hooks_run_after_a_failed_publish(
    uow: Library, transport: Transport, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is committed, so they hear of it; their own errors are noted on the publish error."""
    transport.error = Unavailable("no")
    with pytest.raises(PublishError) as caught:
        async with depending(uow, Hooks(log, "a", KeyError("a")), Hooks(log, "b")):
            uow.emit(Said("x"))
            await uow.commit()

    assert ["commit", "publish failed", "a committed", "b committed"] == log
    assert ["and on_after_commit failed: KeyError('a')"] == caught.value.__notes__
    assert ["on_after_commit failed after a failed publish: 'a'"] == caplog.messages


async def test_hooks_run_after_a_rollback_that_failed(uow: Library, session: Session, log: list[str]) -> None:
    """Whatever the session says, it did not commit: they may let go of what they hold."""
    session.error = ConnectionError("gone")
    with pytest.raises(KeyError):
        async with depending(uow, Hooks(log, "a")):
            raise KeyError

    assert ["rollback failed", "a rolled back"] == log


# ----------------------------------------------------------------------------------------------------------- detach and close


async def test_a_detached_transaction_outlives_its_block(uow: Library, transport: Transport, log: list[str]) -> None:
    """For a response that is streamed from it: it is committed when the stream ends."""
    async with uow:
        uow.emit(Said("a"))
        uow.detach()

    assert (streaming, []) == (uow.status, log)

    uow.emit(Said("b"))
    await uow.commit()
    await uow.close()

    assert (closed, ["commit", "publish"], ['{"word":"a"}', '{"word":"b"}']) == (uow.status, log, transport.words)


async def test_close_rolls_back_what_was_not_committed(uow: Library, transport: Transport, log: list[str]) -> None:
    """A stream that broke off leaves nothing behind."""
    async with depending(uow, Hooks(log, "a")):
        uow.emit(Said("a"))
        uow.detach()
    await uow.close()

    assert (closed, ["rollback", "a rolled back"], []) == (uow.status, log, transport.published)


async def test_close_keeps_a_commit(uow: Library, transport: Transport, log: list[str]) -> None:
    """Committed first, detached then: what was committed stays, and was published."""
    async with uow:
        uow.emit(Said("a"))
        await uow.commit()
        uow.detach()

    assert streaming is uow.status

    await uow.close()

    assert (closed, ["commit", "publish"], ['{"word":"a"}']) == (uow.status, log, transport.words)


async def test_close_keeps_a_rollback(uow: Library, log: list[str]) -> None:
    async with uow:
        await uow.rollback()
        uow.detach()
    await uow.close()

    assert (closed, ["rollback"]) == (uow.status, log)


async def test_closing_twice_is_harmless(uow: Library, log: list[str]) -> None:
    """Also when it was never opened."""
    await uow.close()
    async with uow:
        uow.detach()
    await uow.close()
    await uow.close()

    assert (closed, ["rollback"]) == (uow.status, log)


async def test_closing_in_the_block_ends_it(uow: Library, log: list[str]) -> None:
    """An end that was asked for: it is not missed afterwards."""
    async with uow:
        await uow.close()

    assert (closed, ["rollback"]) == (uow.status, log)


async def test_a_detached_block_left_by_an_exception_is_rolled_back(uow: Library, log: list[str]) -> None:
    """There will be no stream to wait for."""
    with pytest.raises(KeyError):
        async with uow:
            uow.detach()
            raise KeyError

    assert (closed, ["rollback"]) == (uow.status, log)


async def test_a_detached_unit_of_work_is_in_use(uow: Library) -> None:
    async with uow:
        uow.detach()
    with pytest.raises(TransactionError, match="<Library streaming> is in use"):
        async with uow:
            pytest.fail("it was entered while it was streaming")
    await uow.close()
    async with uow:
        await uow.rollback()

    assert closed is uow.status


async def test_a_close_that_fails_closes(uow: Library, session: Session) -> None:
    """It raises, and the object may be used again."""
    async with uow:
        uow.detach()
    session.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        await uow.close()

    assert closed is uow.status


# --------------------------------------------------------------------------------------------------------------- cancellation


async def cancel_once(begun: anyio.Event, go: anyio.Event, work: Callable[[], Awaitable[None]]) -> bool:
    """Run it, cancel it when it has begun, and let it go on; whether the cancellation came out in the end."""

    async def cancel() -> None:
        with anyio.CancelScope(shield=True):
            await begun.wait()
            scope.cancel()
            go.set()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            await work()
            await anyio.lowlevel.checkpoint()

    return scope.cancelled_caught


@pytest.mark.parametrize("where", ["session", "transport"])
async def test_a_commit_that_has_begun_is_finished(
    uow: Library, session: Session, transport: Transport, log: list[str], where: str
) -> None:
    """Cancellation waits for it: what is committed is also published, and its status is known."""
    slow: Session | Transport = {"session": session, "transport": transport}[where]  # type: ignore[assignment]
    slow.go = anyio.Event()
    seen: list[TransactionStatus] = []

    async def work() -> None:
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()
            seen.append(uow.status)
            await anyio.sleep_forever()

    assert await cancel_once(slow.begun, slow.go, work)
    assert (["commit", "publish"], [committed], closed) == (log, seen, uow.status)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("where", ["session", "transport"])
async def test_a_commit_that_has_begun_is_finished_though_asyncio_cancels(
    uow: Library, session: Session, transport: Transport, log: list[str], where: str, times: int
) -> None:
    """By `asyncio.timeout`, by a task group whose other task failed, by `Task.cancel`: no scope of anyio holds these off."""
    slow: Session | Transport = {"session": session, "transport": transport}[where]  # type: ignore[assignment]
    slow.go = anyio.Event()

    async def work() -> None:
        async with depending(uow, Hooks(log, "a")):
            uow.emit(Said("a"))
            await uow.commit()
            log.append("never")

    task = asyncio.ensure_future(work())
    await slow.begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    slow.go.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert (["commit", "publish", "a committed"], closed) == (log, uow.status)
    assert ['{"word":"a"}'] == transport.words


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("where", ["session", "transport"])
async def test_a_commit_that_fails_while_asyncio_cancels_is_told_in_the_log(
    uow: Library, session: Session, transport: Transport, log: list[str], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The cancellation is raised. A session's failure is rolled back; what a transport did not take is pending."""
    slow: Session | Transport = {"session": session, "transport": transport}[where]  # type: ignore[assignment]
    slow.go, slow.error = anyio.Event(), Unavailable("no answer")

    async def work() -> None:
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()

    task = asyncio.ensure_future(work())
    await slow.begun.wait()
    task.cancel()
    slow.go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert 1 == sum("was cancelled, and so this is not raised: " in message for message in caplog.messages)

    slow.error = None
    await uow.publish_pending()
    assert ([] if where == "session" else ['{"word":"a"}']) == transport.words


def test_a_session_commits_where_there_was_never_an_event_loop_of_asyncio() -> None:
    """In a program of trio alone nothing makes one by the way."""
    program = """
import trio
from eventbus import UnitOfWork

class Session:
    async def commit(self):
        await trio.lowlevel.checkpoint()
        print("committed")

    rollback = commit

async def main():
    async with UnitOfWork(Session()) as uow:
        await uow.commit()

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (0, "committed\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_transport_has_cancelled_itself_is_not_asked_again(uow: Library, transport: Transport) -> None:
    """Nobody has cancelled us: asked again, it would be so again, for ever."""
    asked: list[int] = []

    async def publish(envelopes: Sequence[Envelope], /) -> list[str]:
        asked.append(len(envelopes))
        gone: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        gone.cancel()
        return await gone

    transport.publish = publish  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        async with uow:
            uow.emit(Said("a"))
            await uow.commit()

    assert [1] == asked


async def test_a_rollback_that_has_begun_is_finished(uow: Library, session: Session, log: list[str]) -> None:
    session.go = anyio.Event()

    async def work() -> None:
        async with uow:
            await uow.rollback()

    assert await cancel_once(session.begun, session.go, work)
    assert (["rollback"], closed) == (log, uow.status)


async def test_leaving_by_cancellation_rolls_back(uow: Library, transport: Transport, log: list[str]) -> None:
    """The session is asked to, although everything is cancelled around it."""
    entered = anyio.Event()

    async def work() -> None:
        async with depending(uow, Hooks(log, "a"), Hooks(log, "b")):
            uow.emit(Said("a"))
            entered.set()
            await anyio.sleep_forever()

    assert await cancel_once(entered, anyio.Event(), work)
    assert (["rollback", "a rolled back", "b rolled back"], closed, []) == (log, uow.status, transport.published)


async def test_every_hook_is_called_though_the_task_is_cancelled(uow: Library, session: Session, log: list[str]) -> None:
    """Each gets as far as its first wait."""
    session.go = anyio.Event()

    async def work() -> None:
        async with depending(uow, Hooks(log, "a"), Hooks(log, "b", KeyError("b")), Hooks(log, "c")):
            await uow.commit()
            log.append("never")

    assert await cancel_once(session.begun, session.go, work)
    assert (["commit", "a committed", "b committed", "c committed"], closed) == (log, uow.status)


async def test_what_cannot_be_raised_for_a_cancellation_is_logged(
    uow: Library, transport: Transport, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A failed publish is not lost in it: it is in the log, and pending."""
    transport.go, transport.error = anyio.Event(), Unavailable("no answer")

    class Fails:
        def on_after_commit(self) -> None:
            raise KeyError("sync")

    async def work() -> None:
        async with depending(uow, Fails(), Hooks(log, "a")):
            uow.emit(Said("x"))
            await uow.commit()

    assert await cancel_once(transport.begun, transport.go, work)
    assert ["commit", "publish failed", "a committed"] == log
    assert ["'sync'", "1 envelope perhaps sent"] == [
        message.removeprefix("on_after_commit was cancelled, and so this is not raised: ")[:23] for message in caplog.messages
    ]

    transport.error = None
    await uow.publish_pending()

    assert ['{"word":"x"}'] == transport.words


async def test_a_commit_does_not_wait_for_ever(
    uow: Library, session: Session, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that does not answer within its time: whether it committed is unknown, and it is rolled back as far as we can."""
    monkeypatch.setattr(module, "_ENDING", 0.01)
    session.go = anyio.Event()
    with pytest.raises(TransactionError, match=r"the session's commit did not end within 0.01 s; whether it happened is unknown"):
        async with uow:
            uow.emit(Said("a"))
            try:
                await uow.commit()
            finally:
                session.go.set()
                monkeypatch.undo()  # the rollback has its usual time

    assert (["rollback"], closed) == (log, uow.status)


async def test_a_publish_does_not_wait_for_ever(
    uow: Library, transport: Transport, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed; what is not known to be in the stream is pending, and the hooks run."""
    transport.go = Never(monkeypatch)
    with pytest.raises(PublishError, match=r"1 envelope perhaps sent: the reply was lost: no answer within 30 s") as caught:
        async with depending(uow, Hooks(log, "a")):
            uow.emit(Said("x"))
            await uow.commit()
    transport.go = None
    await uow.publish_pending()

    assert "unknown" == caught.value.outcome
    assert (["commit", "a committed", "publish"], ['{"word":"x"}']) == (log, transport.words)


async def test_with_a_durable_store_a_publish_that_does_not_end_is_the_relays(
    session: Session, transport: Transport, log: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport.go = Never(monkeypatch)
    async with UnitOfWork(session, transport=transport, message_store=Store(log, durable=True)) as uow:
        uow.emit(Said("x"))
        await uow.commit()

    assert ["store 1", "commit"] == log
    assert ["not published at once, the relay will: "] == [message[:39] for message in caplog.messages]


async def test_a_rollback_does_not_wait_for_ever(
    uow: Library, session: Session, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and everything is closed and told."""
    monkeypatch.setattr(module, "_ENDING", 0.01)
    session.go = anyio.Event()
    with pytest.raises(TransactionError, match=r"the session's rollback did not end within 0.01 s"):
        async with depending(uow, Hooks(log, "a")):
            await uow.rollback()

    assert (["a rolled back"], closed) == (log, uow.status)
