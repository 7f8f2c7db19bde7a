"""The twelve defects of the messagebus package, whose model, words and wire form we keep: one test each that we did not inherit it."""

from __future__ import annotations  # the seventh of them: every annotation in this file is text

from typing import Any

import anyio
import pytest

from eventbus import (
    Command,
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
    PublishError,
    RecursionLimitExceeded,
    TransactionError,
    Unavailable,
    UnhandledCommand,
)


class Register(Command):
    id: int = 0


class Registered(Event):
    metadata = Metadata(name="registered", published=True)
    id: int = 0


class Book(Model):
    id: int = 0


class Session:
    def __init__(self) -> None:
        self.log: list[str] = []

    async def commit(self) -> None:
        self.log.append("commit")

    async def rollback(self) -> None:
        self.log.append("rollback")


class Moody(MemoryTransport):
    """Publishes, when it is not down."""

    down = False

    async def publish(self, envelopes: Any, /) -> list[str]:
        if self.down:
            raise Unavailable("down")

        return await super().publish(envelopes)


class Library(UnitOfWork):
    def __init__(self, session: Session | None = None, **kwargs: Any) -> None:
        super().__init__(session, **kwargs)
        self.books: Repository[Book] = Repository()
        self.lent: Repository[Book] = Repository()


@pytest.fixture
def transport() -> Moody:
    return Moody()


async def test_1_a_rolled_back_event_is_not_published_by_the_next_commit(transport: Moody) -> None:
    """messagebus: rollback does not empty the buffer; used again, the unit of work publishes it."""
    uow = UnitOfWork(transport=transport)
    async with uow:
        uow.emit(Registered(1))
        await uow.rollback()
    async with uow:
        uow.emit(Registered(2))
        await uow.commit()

    assert [Registered(2)] == transport.messages(Registered)


async def test_2_a_transport_error_loses_no_event(transport: Moody) -> None:
    """messagebus: publishing happens on leaving the block, with the buffer already swapped; an error loses the rest."""
    uow = UnitOfWork(transport=transport)
    transport.down = True
    with pytest.raises(PublishError) as caught:
        async with uow:
            uow.emit(Registered(1))
            uow.emit(Registered(2))
            await uow.commit()
    transport.down = False
    await uow.publish_pending()

    assert 2 == len(caught.value.envelopes)
    assert [Registered(1), Registered(2)] == transport.messages(Registered)


async def test_3_an_exception_after_the_commit_is_no_rollback(transport: Moody) -> None:
    """messagebus: it is rolled back in name, and its events are dropped; by a hook's exception, too."""

    class Hook:
        def on_after_commit(self) -> None:
            raise KeyError("the hook's")

    session = Session()
    statuses: list[TransactionStatus] = []
    for number, hook in enumerate([None, Hook()]):
        uow = UnitOfWork(session, transport=transport)
        with pytest.raises(KeyError):
            async with uow:
                uow.emit(Registered(number))
                uow.depend(hook)
                try:
                    await uow.commit()
                finally:
                    statuses.append(uow.status)
                raise KeyError("the block's")

    assert [TransactionStatus.committed] * 2 == statuses
    assert ["commit", "commit"] == session.log
    assert [Registered(0), Registered(1)] == transport.messages(Registered)


async def test_4_close_keeps_what_was_committed(transport: Moody) -> None:
    """messagebus: `commit()`, `detach()`, `close()` rolls back and publishes nothing."""
    session = Session()
    async with UnitOfWork(session, transport=transport) as uow:
        uow.emit(Registered(1))
        await uow.commit()
        uow.detach()
    await uow.close()

    assert (["commit"], [Registered(1)]) == (session.log, transport.messages(Registered))


async def test_5_messages_of_concurrent_units_of_work_do_not_mix(transport: Moody) -> None:
    """messagebus: the default store is one instance on the class, with one buffer."""
    emitted, ended = anyio.Event(), anyio.Event()

    async def rolled_back() -> None:
        async with UnitOfWork(transport=transport) as uow:
            uow.emit(Registered(1))
            emitted.set()
            await ended.wait()
            await uow.rollback()

    async def committed() -> None:
        await emitted.wait()
        async with UnitOfWork(transport=transport) as uow:
            uow.emit(Registered(2))
            await uow.commit()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rolled_back)
        tasks.start_soon(committed)

    assert [Registered(2)] == transport.messages(Registered)


async def test_6_forgetting_the_end_rolls_the_session_back() -> None:
    """messagebus: `TransactionError`, but the session's rollback is not called and the transaction counts as running."""
    session = Session()
    uow = UnitOfWork(session)
    with pytest.raises(TransactionError):
        async with uow:
            pass

    assert (["rollback"], TransactionStatus.closed) == (session.log, uow.status)


async def test_7_annotations_that_are_text_register_handlers() -> None:
    """messagebus: `from __future__ import annotations`, as in this file, breaks its listeners."""
    bus = MessageBus(clock=lambda: "noon")

    @bus.listen
    async def register(command: Register, uow: Library, clock: str) -> tuple[int, str, str]:
        return command.id, type(uow).__name__, clock

    assert "Register" == register.__annotations__["command"]
    async with Library() as uow:
        assert (7, "Library", "noon") == await bus.handle(Register(7), uow)
        await uow.commit()


async def test_8_a_command_nobody_handles_is_an_error_and_only_the_right_handler_is_removed() -> None:
    """messagebus: it returns None silently, and `remove_listener` with a wrong callback removes the handler all the same."""
    bus = MessageBus()

    async def register(command: Register) -> str:
        return "registered"

    async def other(command: Register) -> str:
        return "other"

    async with UnitOfWork() as uow:
        with pytest.raises(UnhandledCommand):
            await bus.handle(Register(), uow)
        bus.add_listener(Register, register)
        with pytest.raises(ConfigurationError):
            bus.remove_listener(Register, other)

        assert "registered" == await bus.handle(Register(), uow)
        await uow.commit()


def test_9_messages_can_be_hashed() -> None:
    """messagebus: `__eq__` without `__hash__`."""
    assert {Registered(1): "one"} == {Registered(1): "zero", Registered(1): "one"}


async def test_10_events_come_out_in_the_order_raised(transport: Moody) -> None:
    """messagebus: repository by repository; and what has no repository has no way to raise one. Here there is `emit`."""
    async with Library(transport=transport) as uow:
        one, other = Book(1), Book(2)
        uow.lent.seen.append(other)
        uow.books.seen.append(one)
        one.messages.append(Registered(1))
        other.messages.append(Registered(2))
        uow.emit(Registered(3))
        one.messages.append(Registered(4))
        await uow.commit()

    assert [Registered(number) for number in (1, 2, 3, 4)] == transport.messages(Registered)


async def test_11_events_that_raise_events_have_a_bound() -> None:
    """messagebus: none; a circle of two handlers runs until the process is killed."""
    bus = MessageBus()
    handled: list[int] = []

    @bus.listen
    async def again(event: Registered, uow: UnitOfWork) -> None:
        handled.append(event.id)
        uow.emit(Registered(event.id + 1))

    with pytest.raises(RecursionLimitExceeded):
        async with UnitOfWork() as uow:
            await bus.handle(Registered(0), uow)

    assert list(range(101)) == handled


@pytest.mark.parametrize("names", [(), ("on_after_commit",), ("on_after_rollback",), ("on_after_commit", "on_after_rollback")])
async def test_12_a_transient_dependency_may_have_either_hook_or_none(names: tuple[str, ...]) -> None:
    """messagebus: it must have both, or commit raises AttributeError."""
    called: list[str] = []

    class Tracker:
        def __init__(self) -> None:
            for name in names:
                setattr(self, name, lambda name=name: called.append(name))

    bus = MessageBus()
    bus.add_listener(Register, lambda command, tracker: None)
    for end in ("commit", "rollback"):
        async with UnitOfWork() as uow:
            await bus.handle(Register(), uow, tracker=Tracker())
            await getattr(uow, end)()

    assert list(names) == called
