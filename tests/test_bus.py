"""The bus: which handlers run, in which order, with what in hand, and what follows from what."""

import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from eventbus import (
    Command,
    Delivery,
    Envelope,
    Event,
    InMemoryMessageStore,
    MemoryTransport,
    MessageBus,
    Metadata,
    Model,
    Repository,
    TransactionStatus,
    UnitOfWork,
)
from eventbus.envelope import seal, to_fields
from eventbus.errors import (
    ConfigurationError,
    DecodeError,
    MissingDependency,
    RecursionLimitExceeded,
    TransactionError,
    UnhandledCommand,
)
from eventbus.message_store import Record


class Register(Command):
    title: str = "Dune"


class Announce(Command):
    title: str = "Dune"


class Registered(Event):
    metadata = Metadata(name="registered", schema_version=2, published=True)
    title: str = "Dune"


class RegisteredV1(Event):
    metadata = Metadata(name="registered", schema_version=1, published=True)
    name: str = "Dune"


class Said(Event):
    word: str


class Numbered(Event):
    number: int


class Book(Model):
    title: str


class Library(UnitOfWork):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.books: Repository[Book] = Repository()


class Log(list[str]):
    """What happened, in order; and handlers that write it."""

    def listen(self, bus: MessageBus, *names: str) -> None:
        for name in names:
            bus.add_listener(Said, self.writer(name))

    def writer(self, name: str) -> Callable[[Said], Awaitable[None]]:
        async def write(event: Said) -> None:
            self.append(f"{name} {event.word}")

        return write


@pytest.fixture
def bus() -> MessageBus:
    return MessageBus()


@pytest.fixture
def log() -> Log:
    return Log()


async def handle(bus: MessageBus, message: Any, **transient: Any) -> Any:
    """Handle it in a unit of work of its own, and commit."""
    async with UnitOfWork() as uow:
        result = await bus.handle(message, uow, **transient)
        await uow.commit()

    return result


# ----------------------------------------------------------------------------------------------------------------- dispatch


async def test_a_command_is_handled_and_its_result_returned(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> str:
        return command.title.upper()

    assert "EMMA" == await handle(bus, Register("Emma"))


async def test_a_handler_may_take_the_message_alone(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register) -> str:
        return command.title

    assert "Emma" == await handle(bus, Register("Emma"))


async def test_every_handler_of_an_event_runs_in_the_order_of_registration(bus: MessageBus, log: Log) -> None:
    """One after another: the second begins when the first has ended."""
    log.listen(bus, "one", "two", "three")
    await handle(bus, Said("hello"))

    assert ["one hello", "two hello", "three hello"] == log


async def test_an_event_nobody_handles_is_fine(bus: MessageBus) -> None:
    """Something happened, and nobody here minds."""
    assert None is await handle(bus, Said("hello"))


async def test_a_command_nobody_handles_is_an_error(bus: MessageBus) -> None:
    """Somebody wanted it done; it says what to do."""
    with pytest.raises(UnhandledCommand) as caught:
        await handle(bus, Register())

    assert ("no handler for the command Register; register one with bus.add_listener(Register, …) or bus.scan(…)") == str(
        caught.value
    )


async def test_a_raised_command_nobody_handles_is_an_error_too(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        uow.emit(Announce())

    with pytest.raises(UnhandledCommand, match="Announce"):
        await handle(bus, Register())


async def test_a_published_command_may_be_handled_elsewhere(bus: MessageBus) -> None:
    """It goes to the stream: somebody downstream has the handler."""

    class Order(Command):
        metadata = Metadata(name="order", published=True)

    transport = MemoryTransport()
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Order(), uow)
        await uow.commit()

    assert [Order()] == transport.messages(Order)


async def test_a_handler_of_a_base_does_not_handle_its_subclasses(bus: MessageBus) -> None:
    """Exact type: a new subclass is a new message."""

    class SaidLoudly(Said):
        pass

    calls: list[Event] = []

    @bus.listen
    async def on_said(event: Said) -> None:
        calls.append(event)

    await handle(bus, SaidLoudly("hello"))

    assert [] == calls


@pytest.mark.parametrize("thing", [Register, "register", None, {"title": "Dune"}, object()])
async def test_only_messages_are_handled(bus: MessageBus, thing: Any) -> None:
    """The class instead of an instance, say: it would otherwise be an event nobody handles."""
    bus.add_listener(Register, lambda command: None)
    with pytest.raises(ConfigurationError, match="is no message: only instances of commands and events are handled"):
        await handle(bus, thing)


async def test_an_error_of_a_handler_is_raised_as_it_is(bus: MessageBus, log: Log) -> None:
    """What comes after it does not run, and the unit of work is rolled back by whoever opened it."""
    log.listen(bus, "one")

    async def fail(event: Said) -> None:
        raise KeyError(event.word)

    bus.add_listener(Said, fail)
    log.listen(bus, "two")
    uow = UnitOfWork()
    with pytest.raises(KeyError, match="hello"):
        async with uow:
            await bus.handle(Said("hello"), uow)

    assert (["one hello"], TransactionStatus.closed) == (log, uow.status)


async def test_a_message_is_handled_in_an_open_unit_of_work(bus: MessageBus) -> None:
    calls: list[Event] = []
    bus.add_listener(Said, calls.append)
    with pytest.raises(TransactionError, match=r"cannot handle a message in <UnitOfWork closed>: enter it first"):
        await bus.handle(Said("hello"), UnitOfWork())

    assert [] == calls


async def test_a_message_is_not_handled_after_the_end(bus: MessageBus) -> None:
    calls: list[Event] = []
    bus.add_listener(Said, calls.append)
    async with UnitOfWork() as uow:
        await uow.commit()
        with pytest.raises(
            TransactionError, match=r"cannot handle a message in <UnitOfWork committed>: one transaction ends once"
        ):
            await bus.handle(Said("hello"), uow)

    assert [] == calls


def test_the_repr_says_what_the_bus_is_for(bus: MessageBus) -> None:
    assert "<MessageBus for nothing yet>" == repr(bus)

    bus.add_listener(Said, lambda event: None)
    bus.add_listener(Register, lambda command: None)

    assert "<MessageBus for Register, Said>" == repr(bus)


def test_types_are_those_it_handles_by_their_names_on_the_wire(bus: MessageBus) -> None:
    """What a subscriber decodes; a copy, so that nobody changes the bus by it."""
    bus.add_listener(Said, lambda event: None)
    bus.upcast(RegisteredV1, lambda old: Registered(old.name))
    types = dict(bus.types())

    assert {"said_v1": Said, "registered_v1": RegisteredV1} == types


# -------------------------------------------------------------------------------------------------------------- breadth first


async def test_what_a_handler_raises_is_handled_after_it(bus: MessageBus, log: Log) -> None:
    """In the same unit of work, before `handle` returns."""
    log.listen(bus, "heard")

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> str:
        uow.emit(Said("a"))
        uow.emit(Said("b"))
        log.append("registered")
        return "done"

    assert "done" == await handle(bus, Register())
    assert ["registered", "heard a", "heard b"] == log


async def test_messages_are_handled_breadth_first(bus: MessageBus, log: Log) -> None:
    """First what the command raised, then what that raised: a story told in order."""

    @bus.listen
    async def on_said(event: Said, uow: UnitOfWork) -> None:
        log.append(event.word)
        if len(event.word) < 3:
            uow.emit(Said(event.word + "1"))
            uow.emit(Said(event.word + "2"))

    await handle(bus, Said("a"))

    assert ["a", "a1", "a2", "a11", "a12", "a21", "a22"] == log


async def test_a_handlers_messages_come_before_those_of_the_next_handler(bus: MessageBus, log: Log) -> None:
    """Two handlers of one event: both run, and then what they raised, in that order."""
    for name in "ab":

        async def tell(event: Registered, uow: UnitOfWork, name: str = name) -> None:
            log.append(f"on {name}")
            uow.emit(Said(name))

        bus.add_listener(Registered, tell)
    log.listen(bus, "heard")
    await handle(bus, Registered())

    assert ["on a", "on b", "heard a", "heard b"] == log


async def test_what_models_raise_is_handled_like_what_is_emitted(bus: MessageBus, log: Log) -> None:
    """In the order raised, wherever it was raised."""
    log.listen(bus, "heard")

    @bus.listen
    async def register(command: Register, uow: Library) -> None:
        one, two = Book("one"), Book("two")
        uow.books.seen.extend([two, one])
        one.messages.append(Said("a"))
        uow.emit(Said("b"))
        two.messages.append(Said("c"))
        one.messages.append(Said("d"))

    async with Library() as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert ["heard a", "heard b", "heard c", "heard d"] == log


async def test_what_was_raised_before_is_handled_first(bus: MessageBus, log: Log) -> None:
    """Somebody emitted in the block, and then handles a command."""
    log.listen(bus, "heard")

    @bus.listen
    async def register(command: Register) -> str:
        log.append("registered")
        return "done"

    async with UnitOfWork() as uow:
        uow.emit(Said("a"))
        result = await bus.handle(Register(), uow)
        await uow.commit()

    assert ("done", ["heard a", "registered"]) == (result, log)


async def test_a_handler_registered_meanwhile_is_called_from_the_next_message_on(bus: MessageBus, log: Log) -> None:
    @bus.listen
    async def on_said(event: Said, uow: UnitOfWork) -> None:
        log.append(event.word)
        if event.word == "a":
            log.listen(bus, "late")
            uow.emit(Said("b"))

    await handle(bus, Said("a"))

    assert ["a", "b", "late b"] == log


async def test_a_handler_that_rolls_back_is_the_last_one(bus: MessageBus, log: Log) -> None:
    """Nothing is done for what was undone: neither by the other handlers of its message nor for what was raised before."""

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> str:
        for word in ("a", "b"):
            uow.emit(Said(word))
        return "registered"

    @bus.listen
    async def undo(event: Said, uow: UnitOfWork) -> None:
        log.append(f"undo {event.word}")
        await uow.rollback()

    log.listen(bus, "other")
    async with UnitOfWork() as uow:
        assert "registered" == await bus.handle(Register(), uow)

    assert ["undo a"] == log
    assert TransactionStatus.closed == uow.status


async def test_a_handler_that_commits_too_early_is_told(bus: MessageBus, log: Log) -> None:
    """What was still to be handled would be in no transaction. At the end of it all a handler may commit."""

    @bus.listen
    async def commit(event: Said, uow: UnitOfWork) -> None:
        await uow.commit()

    async with UnitOfWork() as uow:
        await bus.handle(Said("a"), uow)
    log.listen(bus, "other")
    async with UnitOfWork() as uow:
        with pytest.raises(
            TransactionError, match=r"commit \(.*test_bus.py:\d+\) has committed .*, in which Said was still to be handled"
        ):
            await bus.handle(Said("a"), uow)

    assert [] == log


async def test_the_transaction_is_committed_by_whoever_opened_it(bus: MessageBus) -> None:
    """`handle` commits nothing."""
    transport = MemoryTransport()
    bus.add_listener(Register, lambda command, uow: uow.emit(Registered()))
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Register(), uow)

        assert (TransactionStatus.running, []) == (uow.status, transport.envelopes)
        await uow.commit()

    assert [Registered()] == transport.messages(Registered)


# ------------------------------------------------------------------------------------------------------------ recursion limit


def endless(bus: MessageBus) -> list[int]:
    handled: list[int] = []

    @bus.listen
    async def again(event: Numbered, uow: UnitOfWork) -> None:
        handled.append(event.number)
        uow.emit(Numbered(event.number + 1))

    return handled


async def test_a_chain_of_messages_without_end_is_ended(bus: MessageBus) -> None:
    """After a hundred, with the chain's last links."""
    handled = endless(bus)
    with pytest.raises(RecursionLimitExceeded) as caught:
        await handle(bus, Numbered(0))

    assert list(range(101)) == handled
    assert (
        "more than 100 messages, each raised by the handler of the one before; "
        "the last are Numbered ← Numbered ← Numbered ← Numbered ← …"
    ) == str(caught.value)


@pytest.mark.parametrize("limit", [0, 1, 250])
async def test_the_limit_is_a_parameter(limit: int) -> None:
    bus = MessageBus(recursion_limit=limit)
    handled = endless(bus)
    with pytest.raises(RecursionLimitExceeded, match=f"more than {limit} messages"):
        await handle(bus, Numbered(0))

    assert limit + 1 == len(handled)


async def test_the_limit_is_one_of_depth_and_not_of_number(bus: MessageBus) -> None:
    """A command that raises a thousand events is fine."""
    handled: list[int] = []

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        for number in range(1000):
            uow.emit(Numbered(number))

    @bus.listen
    async def on_numbered(event: Numbered) -> None:
        handled.append(event.number)

    await handle(bus, Register())

    assert list(range(1000)) == handled


@pytest.mark.parametrize("limit", [-1, 1.5, "100", None])
def test_a_limit_that_is_no_number_is_a_mistake(limit: Any) -> None:
    """Found where the bus is made, and not when a handler raises the first message."""
    with pytest.raises(ConfigurationError, match=rf"MessageBus\(recursion_limit={limit!r}\): a whole number, 0 or more"):
        MessageBus(recursion_limit=limit)


async def test_a_message_at_the_limit_that_nobody_handles_is_fine() -> None:
    """Nothing can come of it."""
    bus = MessageBus(recursion_limit=0)
    bus.add_listener(Register, lambda command, uow: uow.emit(Said("a")))

    assert None is await handle(bus, Register())


async def test_handlers_that_handle_in_each_other_have_the_same_limit(bus: MessageBus) -> None:
    """Nested or raised: a chain of causes is one chain, and it ends before Python's own recursion limit."""
    handled: list[int] = []

    @bus.listen
    async def again(event: Numbered, uow: UnitOfWork) -> None:
        handled.append(event.number)
        await bus.handle(Numbered(event.number + 1), uow)

    with pytest.raises(RecursionLimitExceeded):
        await handle(bus, Numbered(0))

    assert 101 == len(handled)


# ---------------------------------------------------------------------------------------------------------------- dependencies


async def test_a_dependency_is_made_by_its_factory_and_given_by_name() -> None:
    """The same one to every handler of a `handle`, a new one to the next."""
    given: list[object] = []
    bus = MessageBus(clock=object)

    @bus.listen
    async def register(command: Register, clock: object, uow: UnitOfWork) -> None:
        given.append(clock)
        uow.emit(Said("a"))

    @bus.listen
    async def on_said(event: Said, clock: object) -> None:
        given.append(clock)

    await handle(bus, Register())
    await handle(bus, Register())
    one, same, other, same_as_other = given

    assert one is same
    assert other is same_as_other
    assert one is not other


async def test_a_dependency_nobody_asks_for_is_not_made() -> None:
    made: list[int] = []
    bus = MessageBus(clock=lambda: made.append(1))
    bus.add_listener(Said, lambda event: None)
    await handle(bus, Said("a"))

    assert [] == made


async def test_a_factory_may_be_a_class_or_async() -> None:
    """An awaitable is awaited."""

    async def make() -> str:
        return "awaited"

    bus = MessageBus(one=dict, other=make)

    @bus.listen
    async def register(command: Register, one: dict[str, int], other: str) -> tuple[dict[str, int], str]:
        return one, other

    assert ({}, "awaited") == await handle(bus, Register())


async def test_a_dependency_may_be_none() -> None:
    """None is made once and given, like anything else."""
    made: list[int] = []
    bus = MessageBus(clock=lambda: made.append(1))

    async def on_said(event: Said, clock: None) -> None:
        assert clock is None

    async def on_said_too(event: Said, clock: None) -> None:
        assert clock is None

    bus.listen(on_said)
    bus.listen(on_said_too)
    await handle(bus, Said("a"))

    assert [1] == made


async def test_a_transient_dependency_goes_before_the_bus_own() -> None:
    """What is passed to `handle` holds for that call, for raised messages too, and only for it."""
    given: list[str] = []
    bus = MessageBus(clock=lambda: "the bus'")

    @bus.listen
    async def register(command: Register, uow: UnitOfWork, clock: str) -> None:
        given.append(clock)
        uow.emit(Said("a"))

    @bus.listen
    async def on_said(event: Said, clock: str) -> None:
        given.append(clock)

    await handle(bus, Register(), clock="transient")
    await handle(bus, Said("b"))

    assert ["transient", "transient", "the bus'"] == given


async def test_a_parameter_with_a_default_is_an_optional_dependency(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register, clock: str = "none", *, tracker: str = "none") -> tuple[str, str]:
        return clock, tracker

    assert ("none", "none") == await handle(bus, Register())
    assert ("noon", "none") == await handle(bus, Register(), clock="noon")


async def test_a_dependency_nobody_provides_is_missing(bus: MessageBus) -> None:
    """It says so before the handler runs."""
    ran: list[str] = []

    @bus.listen
    async def register(command: Register, uow: UnitOfWork, clock: str) -> None:
        ran.append(clock)

    with pytest.raises(MissingDependency, match=r"register \(.*test_bus.py:\d+\) asks for 'clock', which nobody provides"):
        await handle(bus, Register())

    assert [] == ran


@pytest.mark.parametrize("name", ["uow", "envelope", "delivery"])
def test_what_the_bus_provides_itself_cannot_be_a_dependency(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"MessageBus\({name}=…\): '{name}' is provided by the bus itself"):
        MessageBus(**{name: object})  # type: ignore[arg-type]


def test_a_dependency_of_the_bus_is_a_factory() -> None:
    """An instance would be shared by all that is handled at once."""
    with pytest.raises(
        ConfigurationError, match=r"MessageBus\(clock=…\) is given a str, which is no factory: give something to call"
    ):
        MessageBus(clock="noon")  # type: ignore[arg-type]


async def test_the_envelope_is_always_available(bus: MessageBus) -> None:
    """Of the message in hand: the one under which it will be published, always the same."""
    transport = MemoryTransport()
    seen: list[Envelope] = []

    @bus.listen
    async def register(command: Register, uow: UnitOfWork, envelope: Envelope) -> None:
        seen.append(envelope)
        uow.emit(Registered("Emma"))

    for _ in range(2):

        async def on_registered(event: Registered, envelope: Envelope) -> None:
            seen.append(envelope)

        bus.add_listener(Registered, on_registered)
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert ["register_v1", "registered_v2", "registered_v2"] == [envelope.type for envelope in seen]
    assert seen[1] is seen[2]
    assert [seen[1]] == transport.envelopes


async def test_the_delivery_is_there_only_under_a_subscriber(bus: MessageBus) -> None:
    """Elsewhere it is missing, or its default."""

    @bus.listen
    async def register(command: Register, delivery: Delivery | None = None) -> Delivery | None:
        return delivery

    @bus.listen
    async def announce(command: Announce, delivery: Delivery) -> None: ...

    delivery = delivered(Register())

    assert None is await handle(bus, Register())
    assert delivery is await handle(bus, Register(), delivery=delivery)
    with pytest.raises(MissingDependency, match="a delivery exists only under a subscriber"):
        await handle(bus, Announce())


# -------------------------------------------------------------------------------------------------------------- in a thread

where: ContextVar[str] = ContextVar("where")


async def test_a_sync_handler_runs_in_a_worker_thread(bus: MessageBus) -> None:
    """It may block: the loop goes on meanwhile, and its result is returned like any other."""
    started, go = threading.Event(), threading.Event()

    @bus.listen
    def register(command: Register) -> tuple[str, bool]:
        started.set()
        return command.title, go.wait(10)

    async def release() -> None:
        """Runs on the loop while the handler waits for it."""
        await anyio.to_thread.run_sync(started.wait)
        go.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        result = await handle(bus, Register("Emma"))

    assert ("Emma", True) == result


async def test_an_async_handler_runs_on_the_loop(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register) -> int:
        return threading.get_ident()

    @bus.listen
    def announce(command: Announce) -> int:
        return threading.get_ident()

    here = threading.get_ident()

    assert here == await handle(bus, Register())
    assert here != await handle(bus, Announce())


async def test_a_sync_handler_may_raise_messages(bus: MessageBus, log: Log) -> None:
    """The unit of work waits for it, so it is one task's at a time."""
    log.listen(bus, "heard")

    @bus.listen
    def register(command: Register, uow: Library) -> None:
        book = Book("Dune")
        uow.books.seen.append(book)
        book.messages.append(Said("a"))
        uow.emit(Said("b"))

    async with Library() as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert ["heard a", "heard b"] == log


async def test_an_error_in_a_thread_is_raised_here(bus: MessageBus) -> None:
    @bus.listen
    def register(command: Register) -> None:
        raise LookupError(command.title)

    with pytest.raises(LookupError, match="Emma"):
        await handle(bus, Register("Emma"))


async def test_a_sync_handler_sees_the_context(bus: MessageBus) -> None:
    """Context variables (a request id, a trace) reach the thread."""

    @bus.listen
    def register(command: Register) -> str:
        return where.get()

    token = where.set("here")
    try:
        assert "here" == await handle(bus, Register())
    finally:
        where.reset(token)


async def test_a_sync_handler_that_returns_an_awaitable_is_awaited_on_the_loop(bus: MessageBus) -> None:
    """What a decorator without `async` makes of an async handler."""

    async def inner() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    @bus.listen
    def register(command: Register) -> Awaitable[int]:
        return inner()

    assert threading.get_ident() == await handle(bus, Register())


# ------------------------------------------------------------------------------------------------------------- nested handling


async def test_a_handler_may_handle_a_command_and_use_its_result(bus: MessageBus, log: Log) -> None:
    """In the same unit of work; what the inner one raised is handled before it returns."""
    log.listen(bus, "heard")

    @bus.listen
    async def announce(command: Announce, uow: UnitOfWork) -> str:
        uow.emit(Said("inner"))
        return f"announced {command.title}"

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> str:
        uow.emit(Said("before"))
        result = await bus.handle(Announce(command.title), uow)
        log.append("back")
        uow.emit(Said("after"))
        assert isinstance(result, str)
        return result

    assert "announced Emma" == await handle(bus, Register("Emma"))
    assert ["heard before", "heard inner", "back", "heard after"] == log


async def test_what_is_handled_inside_is_caused_by_what_is_handled_outside(bus: MessageBus) -> None:
    """And what is raised after coming back is caused by the outer one again."""

    @bus.listen
    async def announce(command: Announce, uow: UnitOfWork) -> None:
        uow.emit(Said("inner"))

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        await bus.handle(Announce(), uow)
        uow.emit(Said("after"))

    causes = await causes_of(bus, Register())

    assert {"Announce": "Register", "Said inner": "Announce", "Said after": "Register", "Register": None} == causes


async def test_a_nested_handle_has_dependencies_of_its_own() -> None:
    """One instance per `handle`."""
    bus = MessageBus(clock=object)

    @bus.listen
    async def announce(command: Announce, clock: object) -> object:
        return clock

    @bus.listen
    async def register(command: Register, clock: object, uow: UnitOfWork) -> tuple[object, object]:
        return clock, await bus.handle(Announce(), uow)

    outer, inner = await handle(bus, Register())

    assert outer is not inner


# --------------------------------------------------------------------------------------------------- correlation and causation


def delivered(message: Any, **headers: str) -> Delivery:
    """The message as it would arrive from a stream."""
    envelope = seal(message)
    fields = [item if isinstance(item, bytes) else item.encode() for item in to_fields(envelope)]
    fields += [item.encode() for pair in headers.items() for item in pair]

    return Delivery("events", "mailer", "me", "1-0", fields)


async def causes_of(bus: MessageBus, message: Any) -> dict[str, str | None]:
    """What each message of a transaction was caused by."""
    store = InMemoryMessageStore()
    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(message, uow)
        await uow.commit()
    names = {
        envelope.id: " ".join([type(message).__name__, *([message.word] if isinstance(message, Said) else [])])
        for message, envelope in zip(store.messages, store.envelopes, strict=True)
    }

    return {names[envelope.id]: names.get(envelope.causation_id or "") for envelope in store.envelopes}


async def test_a_raised_message_carries_where_it_comes_from(bus: MessageBus) -> None:
    """The id of what caused it, and the id of what everything began with."""
    store = InMemoryMessageStore()

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        uow.emit(Registered())

    @bus.listen
    async def on_registered(event: Registered, uow: UnitOfWork) -> None:
        uow.emit(Said("a"))

    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()
    first, second, third = store.envelopes

    assert [None, first.id, second.id] == [envelope.causation_id for envelope in store.envelopes]
    assert [first.id] * 3 == [envelope.correlation_id for envelope in store.envelopes]
    assert {"correlation_id": first.id, "causation_id": second.id} == third.headers


async def test_siblings_have_the_same_cause(bus: MessageBus) -> None:
    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        uow.emit(Said("a"))
        uow.emit(Said("b"))

    @bus.listen
    async def on_said(event: Said, uow: UnitOfWork) -> None:
        if len(event.word) == 1:
            uow.emit(Said(event.word + "1"))

    expected = {"Register": None, "Said a": "Register", "Said b": "Register", "Said a1": "Said a", "Said b1": "Said b"}

    assert expected == await causes_of(bus, Register())


async def test_two_messages_of_one_transaction_begin_two_stories(bus: MessageBus) -> None:
    """What is not caused by anything has no cause, and is its own beginning."""
    store = InMemoryMessageStore()
    async with UnitOfWork(message_store=store) as uow:
        await bus.handle(Said("a"), uow)
        await bus.handle(Said("b"), uow)
        await uow.commit()
    one, other = store.envelopes

    assert [(one.id, None), (other.id, None)] == [(envelope.correlation_id, envelope.causation_id) for envelope in (one, other)]


async def test_a_story_goes_on_across_the_stream(bus: MessageBus) -> None:
    """What a delivery causes carries the delivery's correlation id, and the delivery's id as its cause."""
    transport = MemoryTransport()
    bus.add_listener(Said, lambda event, uow: uow.emit(Registered()))
    delivery = delivered(Said("a"), correlation_id="the-beginning", causation_id="something")
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Said("a"), uow, delivery=delivery)
        await uow.commit()

    assert [("the-beginning", delivery.envelope.id)] == [
        (envelope.correlation_id, envelope.causation_id) for envelope in transport.envelopes
    ]


async def test_a_delivered_message_is_not_published_again(bus: MessageBus) -> None:
    """It is in the stream already; its envelope is the one it came in."""
    transport = MemoryTransport()
    seen: list[Envelope] = []

    @bus.listen
    async def on_registered(event: Registered, envelope: Envelope) -> None:
        seen.append(envelope)

    delivery = delivered(Registered())
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Registered(), uow, delivery=delivery)
        await uow.commit()

    assert ([], [delivery.envelope]) == (transport.envelopes, seen)


async def test_what_a_failed_handler_raised_is_still_its_own(bus: MessageBus) -> None:
    """Should the caller catch the error and commit, the story is told right."""
    store = InMemoryMessageStore()

    @bus.listen
    async def register(command: Register, uow: UnitOfWork) -> None:
        uow.emit(Said("a"))
        raise ValueError("enough")

    async with UnitOfWork(message_store=store) as uow:
        with pytest.raises(ValueError, match="enough"):
            await bus.handle(Register(), uow)
        uow.emit(Said("b"))
        await uow.commit()
    first, raised, later = store.envelopes

    assert [Register(), Said("a"), Said("b")] == store.messages
    assert [None, first.id, None] == [first.causation_id, raised.causation_id, later.causation_id]


# -------------------------------------------------------------------------------------------------------------------- upcast


async def test_an_old_message_is_handled_as_the_new_one(bus: MessageBus) -> None:
    """Handlers know one version; the bus knows how to get there."""
    seen: list[Event] = []
    bus.upcast(RegisteredV1, lambda old: Registered(old.name))
    bus.add_listener(Registered, seen.append)
    await handle(bus, RegisteredV1("Emma"))

    assert [Registered("Emma")] == seen


async def test_an_old_message_raised_here_is_handled_as_the_new_one(bus: MessageBus) -> None:
    """It is published as what it is."""
    seen: list[Event] = []
    transport = MemoryTransport()
    bus.upcast(RegisteredV1, lambda old: Registered(old.name))
    bus.add_listener(Registered, seen.append)
    bus.add_listener(Register, lambda command, uow: uow.emit(RegisteredV1("Emma")))
    async with UnitOfWork(transport=transport) as uow:
        await bus.handle(Register(), uow)
        await uow.commit()

    assert [Registered("Emma")] == seen
    assert ["registered_v1"] == [envelope.type for envelope in transport.envelopes]


async def test_upcasts_may_follow_one_another(bus: MessageBus) -> None:
    """Each knows its successor; nobody rewrites the old ones."""

    class RegisteredV0(Event):
        metadata = Metadata(name="registered", schema_version=3)

    seen: list[Event] = []
    bus.upcast(RegisteredV0, lambda old: RegisteredV1("from nothing"))
    bus.upcast(RegisteredV1, lambda old: Registered(old.name))
    bus.add_listener(Registered, seen.append)
    await handle(bus, RegisteredV0())

    assert [Registered("from nothing")] == seen


@pytest.mark.parametrize(
    ("to_new", "text"),
    [
        (lambda old: Registered(old.missing), r"failed: AttributeError\("),
        (lambda old: None, "returned None, which is no message"),
        (lambda old: old, "the upcasts run in a circle"),
    ],
)
async def test_an_upcast_that_fails_is_a_message_that_cannot_be_read(
    bus: MessageBus, to_new: Callable[[Any], Any], text: str
) -> None:
    """An error that names the upcast; never a message lost in silence, never a loop."""
    bus.upcast(RegisteredV1, to_new)
    with pytest.raises(DecodeError, match=rf"upcast of registered_v1 by .*<lambda> \(.*test_bus.py:\d+\).*{text}") as caught:
        await handle(bus, RegisteredV1())

    assert "registered_v1" == caught.value.type


def test_an_upcast_is_checked_when_it_is_registered(bus: MessageBus) -> None:
    async def later(old: RegisteredV1) -> Registered:
        return Registered(old.name)

    for old, to_new, text in [
        ("registered", lambda old: old, "the first argument is a message class"),
        (Event, lambda old: old, "the first argument is a message class"),
        (RegisteredV1, "x", "the second argument is a function that returns the new message at once"),
        (RegisteredV1, later, "the second argument is a function that returns the new message at once"),
    ]:
        with pytest.raises(ConfigurationError, match=text):
            bus.upcast(old, to_new)  # type: ignore[arg-type, type-var]

    assert {} == bus.types()


def test_what_is_upcast_has_no_handler(bus: MessageBus) -> None:
    """It would never be called; whichever came first, the second is refused."""
    bus.upcast(RegisteredV1, lambda old: Registered(old.name))
    with pytest.raises(ConfigurationError, match="would never be called: RegisteredV1 is upcast before dispatch"):
        bus.add_listener(RegisteredV1, lambda event: None)

    bus.add_listener(Registered, lambda event: None)
    with pytest.raises(ConfigurationError, match=r"Registered has a listener, .*<lambda> \(.*\), and cannot be upcast"):
        bus.upcast(Registered, lambda old: RegisteredV1(old.title))


def test_a_message_has_one_upcast(bus: MessageBus) -> None:
    def to_new(old: RegisteredV1) -> Registered:
        return Registered(old.name)

    bus.upcast(RegisteredV1, to_new)
    bus.upcast(RegisteredV1, to_new)
    with pytest.raises(ConfigurationError, match=r"RegisteredV1 is upcast already, by .*to_new \(.*test_bus.py:\d+\)"):
        bus.upcast(RegisteredV1, lambda old: Registered(old.name))


# ---------------------------------------------------------------------------------------------------------------- concurrency


async def test_one_bus_serves_many_units_of_work_at_once() -> None:
    """Their messages, causes and dependencies do not mix."""
    transport, all_in = MemoryTransport(), anyio.Event()
    inside: list[str] = []
    bus = MessageBus(clock=object)

    @bus.listen
    async def register(command: Register, uow: UnitOfWork, envelope: Envelope, clock: object) -> tuple[str, object]:
        inside.append(command.title)
        if len(inside) == 5:
            all_in.set()
        await all_in.wait()
        uow.emit(Registered(command.title))
        return envelope.id, clock

    roots: dict[str, str] = {}
    clocks: list[object] = []

    async def one(title: str) -> None:
        async with UnitOfWork(transport=transport) as uow:
            roots[title], clock = await bus.handle(Register(title), uow)
            clocks.append(clock)
            await uow.commit()

    async with anyio.create_task_group() as tasks:
        for title in "abcde":
            tasks.start_soon(one, title)
    causes = {
        message.title: envelope.causation_id
        for message, envelope in zip(transport.messages(Registered), transport.envelopes, strict=True)
    }

    assert roots == causes
    assert 5 == len(set(map(id, clocks)))


async def test_a_record_costs_no_envelope_until_somebody_asks(bus: MessageBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private messages stay in their process: nothing is encoded for them, so they may hold anything."""

    class Private(Command):
        thing: Any

    sealed: list[Any] = []
    monkeypatch.setattr("eventbus.message_store.seal", lambda message, **_: sealed.append(message))

    class Store(InMemoryMessageStore):
        async def add(self, records: Sequence[Record]) -> None: ...

    bus.add_listener(Private, lambda command: command.thing)
    thing = object()
    async with UnitOfWork(message_store=Store()) as uow:
        result = await bus.handle(Private(thing), uow)
        await uow.commit()

    assert (thing, []) == (result, sealed)
