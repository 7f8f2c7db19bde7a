"""The message bus: runs the handlers of a message in this process, and then the handlers of what they raised.

```python
bus = MessageBus(notifier=Notifier)


@bus.listen
async def register_book(command: RegisterBook, uow: LibraryUnitOfWork, notifier: Notifier) -> Book: ...


book = await bus.handle(RegisterBook(...), uow)
```

`eventbus.handlers` says what may be a handler and finds the ones in a package; this module runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from eventbus.errors import (
    ConfigurationError,
    DecodeError,
    MissingDependency,
    RecursionLimitExceeded,
    UnhandledCommand,
    excerpt,
)
from eventbus.handlers import (
    DELIVERY,
    ENVELOPE,
    UOW,
    Handler,
    caller,
    check_annotation,
    handled_types,
    listen,
    listeners_in,
    where,
)
from eventbus.messages import Command, Event, Message

if TYPE_CHECKING:
    from eventbus.message_store import Record
    from eventbus.transport import Delivery
    from eventbus.unit_of_work import UnitOfWork

__all__ = ["MessageBus", "listen"]

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
P = ParamSpec("P")
R = TypeVar("R")


class MessageBus:
    """Handlers by message type, and the dependencies that they may ask for.

    Keyword arguments are dependency factories by parameter name: called without arguments, at most once per `handle`, when the first
    handler asks. An awaitable result is awaited. `recursion_limit` bounds chains of causes.
    """

    def __init__(self, *, recursion_limit: int = 100, **dependencies: Callable[[], Any]) -> None:
        for name, factory in dependencies.items():
            if name in (UOW, ENVELOPE, DELIVERY):
                raise ConfigurationError(f"MessageBus({name}=…): {name!r} is provided by the bus itself; choose another name")
            if not callable(factory):
                raise ConfigurationError(
                    f"MessageBus({name}=…) is given a {type(factory).__name__}, which is no factory: give something to call, "
                    "or pass the object itself to handle()"
                )
        if type(recursion_limit) is not int or recursion_limit < 0:
            raise ConfigurationError(f"MessageBus(recursion_limit={recursion_limit!r:.80}): a whole number, 0 or more")
        self._limit = recursion_limit
        self._factories = dependencies
        self._handlers: dict[type[Message], tuple[Handler, ...]] = {}
        self._upcasts: dict[type[Message], Callable[[Any], Message]] = {}
        self._types: dict[str, type[Message]] = {}

    def __repr__(self) -> str:
        return f"<MessageBus for {', '.join(sorted(cls.__name__ for cls in self._handlers)) or 'nothing yet'}>"

    # ---------------------------------------------------------------------------------------------------- registration

    def listen(self, handler: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
        """Register a handler for the type of its first parameter, or for each type of a union. Returns it unchanged."""
        for message_type in handled_types(handler, caller().f_locals, defer=False) or ():
            self._add(Handler(message_type, handler))

        return handler

    def add_listener(self, message_type: type[M], handler: Callable[Concatenate[M, P], Any]) -> None:
        """Register a handler for a type; again is harmless. `ConfigurationError` if it is a second handler of a command."""
        listener = Handler(message_type, handler)
        check_annotation(handler, message_type)
        self._add(listener)

    def remove_listener(self, message_type: type[M], handler: Callable[Concatenate[M, P], Any]) -> None:
        """Take a handler back. `ConfigurationError`, and no change, if this one is not registered for the type."""
        handlers = self._handlers.get(message_type, ())
        left = tuple(known for known in handlers if known.function != handler)
        if len(left) == len(handlers):
            registered = ", ".join(str(known) for known in handlers) or "nothing"
            raise ConfigurationError(f"{where(handler)} is not a listener of {message_type.__name__}; registered is {registered}")
        if left:
            self._handlers[message_type] = left
        else:
            del self._handlers[message_type]
            if message_type not in self._upcasts:
                self._types.pop(message_type.metadata.type, None)

    def scan(self, *modules: str) -> None:
        """Import modules or packages, recursively, and register every function in them that is marked with `@listen`.

        Names are absolute. A module that cannot be found, or fails to import, is a `ConfigurationError` that says which.
        """
        for module in modules:
            for message_type, handler in listeners_in(module):
                self._add(Handler(message_type, handler))

    def upcast(self, old: type[M], to_new: Callable[[M], Message]) -> None:
        """Turn messages of an old type into newer ones before they are dispatched. Upcasts may follow one another.

        The function is called with the old message and returns the new; it awaits nothing.
        """
        if not (isinstance(old, type) and issubclass(old, Message)) or old in (Message, Command, Event):
            raise ConfigurationError(f"bus.upcast({old!r:.80}, …): the first argument is a message class")
        if not callable(to_new) or iscoroutinefunction(to_new):
            raise ConfigurationError(
                f"bus.upcast({old.__name__}, {to_new!r:.80}): the second argument is a function that returns the new message at once"
            )
        if old in self._handlers:
            raise ConfigurationError(
                f"{old.__name__} has a listener, {self._handlers[old][0]}, and cannot be upcast: it would never be called"
            )
        if self._upcasts.get(old, to_new) is not to_new:
            raise ConfigurationError(f"{old.__name__} is upcast already, by {where(self._upcasts[old])}")
        self._name(old)
        self._upcasts[old] = to_new

    def types(self) -> Mapping[str, type[Message]]:
        """What the bus handles or upcasts, by name on the wire."""
        return dict(self._types)

    def _add(self, handler: Handler) -> None:
        handlers = self._handlers.get(handler.message_type, ())
        if any(known.function == handler.function for known in handlers):
            return
        if handlers and issubclass(handler.message_type, Command):
            raise ConfigurationError(
                f"{handler} is a second handler of the command {handler.message_type.__name__}; the first is {handlers[0]}: "
                "a command has one handler, an event any number"
            )
        if handler.message_type in self._upcasts:
            raise ConfigurationError(
                f"{handler} would never be called: {handler.message_type.__name__} is upcast before dispatch"
            )
        self._name(handler.message_type)
        self._handlers[handler.message_type] = (*handlers, handler)

    def _name(self, message_type: type[Message]) -> None:
        """Take the type's name on the wire, which no other class may have."""
        name = message_type.metadata.type
        other = self._types.setdefault(name, message_type)
        if other is not message_type:
            raise ConfigurationError(
                f"{where(message_type)} and {where(other)} are both called {name!r} on the wire; "
                "give one of them another name or schema_version"
            )

    # -------------------------------------------------------------------------------------------------------- dispatch

    def upcasted(self, message: Message) -> Message:
        """The message in its newest form. `DecodeError` when an upcast fails: the old data cannot be read any more."""
        steps = 0
        while (to_new := self._upcasts.get(type(message))) is not None:
            type_ = type(message).metadata.type
            steps += 1
            if steps > len(self._upcasts):
                raise DecodeError(f"upcast of {type_} by {where(to_new)}: the upcasts run in a circle", type=type_)
            try:
                message = to_new(message)
            except Exception as exc:
                raise DecodeError(f"upcast of {type_} by {where(to_new)} failed: {excerpt(repr(exc))}", type=type_) from exc
            if not isinstance(message, Message):
                raise DecodeError(
                    f"upcast of {type_} by {where(to_new)} returned {excerpt(repr(message), 80)}, which is no message", type=type_
                )

        return message

    async def handle(
        self,
        message: Message,
        uow: UnitOfWork,
        /,
        *,
        delivery: Delivery | None = None,
        **transient: Any,
    ) -> Any:
        """Run the handlers of a message, then those of the messages that were raised, until none is left; what the first one returned.

        Breadth first, in the order raised, in the same unit of work, one handler after another. A handler's exception ends it and is
        raised as it is. What was raised before the call is handled first. Dependencies given by keyword hold for this call and go before
        the bus' own. `delivery` says where the message comes from; a subscriber gives it. A handler that rolls the unit of work back is
        the last one: what is left is not handled.

        `TransactionError` is raised when a handler commits while something is left to be handled.

        `UnhandledCommand`, `MissingDependency` and `RecursionLimitExceeded` are raised when they are met; nothing is committed here.
        """
        if self._upcasts:
            message = self.upcasted(message)
        cause = uow.handling
        queue = uow.receive(message, delivery)
        root = queue[-1]
        if transient:
            for dependency in transient.values():
                uow.depend(dependency)
        call: _Call | None = None
        handlers = self._handlers
        result: Any = None
        try:
            for record in queue:  # which grows meanwhile
                message = record.message
                if self._upcasts and record is not root:
                    message = self.upcasted(message)
                listeners = handlers.get(type(message))
                if listeners is None:
                    if not isinstance(message, Message):
                        raise ConfigurationError(
                            f"{message!r:.80} is no message: only instances of commands and events are handled"
                        )
                    if isinstance(message, Command) and not record.outgoing:
                        raise UnhandledCommand(
                            f"no handler for the command {type(message).__name__}; register one with "
                            f"bus.add_listener({type(message).__name__}, …) or bus.scan(…)"
                        )
                    continue
                if record.cause is not None and record.depth > self._limit:
                    raise RecursionLimitExceeded(_chain(record, self._limit))
                uow.handling = record
                for handler in listeners:
                    shape = handler.shape
                    if shape == 1:
                        returned = await handler.function(message, uow)
                    elif shape == 0:
                        returned = await handler.function(message)
                    else:
                        if call is None:
                            call = _Call(self._factories, transient, uow, delivery)
                        returned = await handler(message, await call.arguments(handler, record))
                    if record is root:
                        result = returned
                    if uow._ended is not None:  # pyright: ignore[reportPrivateUsage]
                        uow.check_left(self._left(queue, record, handler), where(handler.function))
                        return result
                    if raised := uow.gather(record):
                        queue.extend(raised)
        except BaseException:
            uow.gather(uow.handling)  # what the failed handler raised is its own, should somebody commit all the same
            raise
        finally:
            uow.handling = cause

        return result

    def _left(self, queue: list[Record], record: Record, handler: Handler) -> list[Message]:
        """What is still to be handled after this handler of this record."""
        place = next(place for place, one in enumerate(queue) if one is record)
        rest = [one.message for one in queue[place + 1 :] if type(one.message) in self._handlers]

        return rest if handler is self._handlers[type(record.message)][-1] else [record.message, *rest]


class _Call:
    """The dependencies of one `handle`: each made once, when it is first asked for."""

    __slots__ = ("delivery", "factories", "made", "uow")

    def __init__(
        self,
        factories: Mapping[str, Callable[[], Any]],
        transient: dict[str, Any],
        uow: UnitOfWork,
        delivery: Delivery | None,
    ) -> None:
        self.factories = factories
        self.made = transient
        self.uow = uow
        self.delivery = delivery

    async def arguments(self, handler: Handler, record: Record) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, source, required in handler.parameters:
            if source == UOW:
                arguments[name] = self.uow
            elif source == ENVELOPE:
                arguments[name] = record.envelope
            elif source == DELIVERY and self.delivery is not None:
                arguments[name] = self.delivery
            elif name in self.made:
                arguments[name] = self.made[name]
            elif name in self.factories:
                made = self.factories[name]()
                if isawaitable(made):
                    made = await made
                self.made[name] = arguments[name] = made
                self.uow.depend(made)
            elif required:
                raise MissingDependency(
                    f"{handler} asks for {name!r}, which nobody provides: give MessageBus({name}=…) a factory, "
                    f"pass handle(…, {name}=…), or give the parameter a default"
                    + (" (a delivery exists only under a subscriber)" if source == DELIVERY else "")
                )

        return arguments


def _chain(record: Record, limit: int) -> str:
    names: list[str] = []
    link: Record | None = record
    while link is not None and len(names) < 4:
        names.append(type(link.message).__name__)
        link = link.cause

    return f"more than {limit} messages, each raised by the handler of the one before; the last are {' ← '.join(names)} ← …"
