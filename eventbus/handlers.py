"""What may be a handler, what it handles, and what it asks for: every mistake is found when the handler is registered.

A handler is a callable whose first parameter is the message, annotated with a message class or a union of them. Each further parameter is
a dependency, found by its name; the unit of work also by its annotation. A ``def`` handler runs in a worker thread.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Concatenate,
    Final,
    ForwardRef,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from anyio import to_thread

from eventbus.errors import ConfigurationError
from eventbus.messages import Command, Event, Message

M = TypeVar("M", bound=Message)
P = ParamSpec("P")
R = TypeVar("R")

UOW: Final = "uow"
ENVELOPE: Final = "envelope"
DELIVERY: Final = "delivery"

_MARK = "__eventbus_listens__"


class _Mark(NamedTuple):
    """What `listen` leaves on a handler: the module where it was marked, and the names in sight there."""

    module: str
    names: Mapping[str, Any]


def listen(handler: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Mark a function as a handler, to be found by `MessageBus.scan`. Returns it unchanged."""
    frame = caller()
    handled_types(handler, frame.f_locals, defer=True)
    try:
        setattr(handler, _MARK, _Mark(frame.f_globals.get("__name__", ""), frame.f_locals))
    except AttributeError as exc:
        raise ConfigurationError(f"{where(handler)} cannot be marked; register it with bus.add_listener(…)") from exc

    return handler


def caller() -> types.FrameType:
    """The frame that called the function that asks."""
    return sys._getframe(2)  # pyright: ignore[reportPrivateUsage]


def where(thing: Any) -> str:
    """What something is called and where it is written: ``shop.handlers.welcome (shop/handlers.py:12)``."""
    inner = thing
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner) if callable(inner) else inner
    if not (inspect.isroutine(inner) or inspect.isclass(inner)):
        inner = type(inner)
    name = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', repr(inner))}"
    code = getattr(inner, "__code__", None)
    if code is not None:
        return f"{name} ({code.co_filename}:{code.co_firstlineno})"

    return name + _place_of(inner)


def _place_of(thing: Any) -> str:
    """The file and line of what has no code of its own, like a class; nothing if they cannot be found."""
    collecting = gc.isenabled()
    gc.disable()  # CPython before 3.12 fails to parse a file while garbage is collected (python/cpython#106905)
    try:
        return f" ({inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]})"
    except (OSError, TypeError, SystemError):
        return ""
    finally:
        if collecting:
            gc.enable()


class Handler:
    """A callable, and how it is to be called for one type of message."""

    __slots__ = ("function", "in_thread", "message_type", "parameters", "shape")

    def __init__(self, message_type: type[Message], function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ConfigurationError(f"{function!r:.80} is not callable, so it cannot be a listener")
        if not (isinstance(message_type, type) and issubclass(message_type, Message)):
            raise ConfigurationError(f"{where(function)} is to listen to {message_type!r:.80}, which is not a message class")
        if message_type in (Message, Command, Event):
            raise ConfigurationError(
                f"{where(function)} is to listen to {message_type.__name__}: handlers are found by exact type; name the classes, A | B"
            )
        self.message_type: type[Message] = message_type
        self.function: Callable[..., Any] = function
        self.in_thread: bool = not _is_async(function)
        self.parameters: tuple[tuple[str, str, bool], ...] = tuple(_parameters(function))
        self.shape: int = self._shape()
        """0: called with the message alone; 1: with the unit of work behind it; -1: with keyword arguments."""

    def __str__(self) -> str:
        return where(self.function)

    async def __call__(self, message: Message, arguments: dict[str, Any]) -> Any:
        if not self.in_thread:
            return await self.function(message, **arguments)
        # In a tuple, since trio lets no awaitable out of a thread; what a decorator made of an async function returns one.
        (result,) = await to_thread.run_sync(lambda: (self.function(message, **arguments),))

        return await result if inspect.isawaitable(result) else result

    def _shape(self) -> int:
        if self.in_thread:
            return -1
        if not self.parameters:
            return 0
        first = next(iter(list(_signature(self.function).parameters.values())[1:]))
        positional = first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD

        return 1 if len(self.parameters) == 1 and self.parameters[0][1] == UOW and positional else -1


def handled_types(handler: Callable[..., Any], names: Mapping[str, Any], *, defer: bool) -> tuple[type[Message], ...] | None:
    """The types in the annotation of a handler's first parameter.

    `names` are those in sight where it was registered, for annotations that are text. One that cannot be resolved yet is None with
    `defer` and a `ConfigurationError` without.
    """
    if not callable(handler):
        raise ConfigurationError(f"{handler!r:.80} is not callable, so it cannot be a listener")
    _is_async(handler)
    parameters = _signature(handler).parameters.values()
    first = next(iter(parameters), None)
    if first is None or first.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ConfigurationError(f"{where(handler)} takes no message: its first parameter is the message, and has its type")
    list(_parameters(handler))
    if first.annotation is inspect.Parameter.empty:
        raise ConfigurationError(
            f"{where(handler)}: the first parameter {first.name!r} has no annotation; say which message it takes, "
            f"`{first.name}: SomeEvent`"
        )
    try:
        annotation = _resolve(handler, first.annotation, names)
    except Exception as exc:  # a name that is not there, not there yet, or no type: whatever is written in the text
        if defer:
            return None
        raise ConfigurationError(
            f"{where(handler)}: the annotation {first.annotation!r} of {first.name!r} cannot be resolved: {exc}"
        ) from exc
    found = tuple(_members(annotation))
    for member in found:
        if not (isinstance(member, type) and issubclass(member, Message)) or member in (Message, Command, Event):
            raise ConfigurationError(
                f"{where(handler)}: the first parameter {first.name!r} is annotated with {member!r:.80}; "
                "name a message class, or a union of them, A | B"
            )

    return found


def check_annotation(handler: Callable[..., Any], message_type: type[Message]) -> None:
    """`ConfigurationError` if the handler says that it takes other messages than this type."""
    first = next(iter(_signature(handler).parameters.values()))
    try:
        members = list(_members(_resolve(handler, first.annotation, {})))
    except Exception:  # the names of its annotation are not in sight from here
        return
    classes = [member for member in members if isinstance(member, type) and issubclass(member, Message)]
    if len(classes) == len(members) and not issubclass(message_type, tuple(classes)):
        raise ConfigurationError(
            f"{where(handler)} is to listen to {message_type.__name__}, but its first parameter {first.name!r} takes "
            f"{' | '.join(cls.__name__ for cls in classes)}"
        )


def listeners_in(name: str) -> Iterator[tuple[type[Message], Callable[..., Any]]]:
    """Every marked handler in a module or package, each with the types it handles, in the order of the source."""
    for module in _modules(name):
        for thing in list(vars(module).values()):
            mark = getattr(thing, _MARK, None) if callable(thing) else None
            if not isinstance(mark, _Mark) or module.__name__ not in (getattr(thing, "__module__", None), mark.module):
                continue
            for message_type in handled_types(thing, mark.names, defer=False) or ():
                yield message_type, thing


# --------------------------------------------------------------------------------------------------------------- modules


def _modules(name: str) -> Iterator[types.ModuleType]:
    if not isinstance(name, str) or not name or name.startswith("."):
        raise ConfigurationError(f"bus.scan({name!r}): give the absolute name of a module, like 'shop.service.handlers'")
    root = _import(name, name)
    yield root
    for found in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{name}.", onerror=_raise):
        if not found.name.endswith(".__main__"):
            yield _import(found.name, name)


def _import(name: str, asked: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigurationError(
                f"bus.scan({asked!r}): there is no module {exc.name!r}; is it spelled right, and on sys.path?"
            ) from exc
        raise ConfigurationError(f"bus.scan({asked!r}): importing {name} failed: {exc!r}") from exc
    except Exception as exc:
        raise ConfigurationError(f"bus.scan({asked!r}): importing {name} failed: {exc!r}") from exc


def _raise(name: str) -> None:
    """`pkgutil` swallows an ImportError of a package unless somebody raises it again."""
    error = sys.exception()
    raise ConfigurationError(f"bus.scan: importing {name} failed: {error!r}") from error


# ------------------------------------------------------------------------------------------------------------ signatures


def _signature(handler: Callable[..., Any]) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            return inspect.signature(handler, annotation_format=annotationlib.Format.FORWARDREF)

        return inspect.signature(handler)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{where(handler)} has no signature to read its message and dependencies from: {exc}") from exc


def _parameters(handler: Callable[..., Any]) -> Iterator[tuple[str, str, bool]]:
    """The dependencies: name, where it comes from, whether it must be there."""
    parameters = list(_signature(handler).parameters.values())
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ConfigurationError(f"{where(handler)} takes no message: its first parameter is the message")
    for parameter in parameters[1:]:
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            if required:
                raise ConfigurationError(
                    f"{where(handler)}: the parameter {parameter.name!r} is positional only, but dependencies are given by name"
                )
            continue
        yield parameter.name, _source(handler, parameter), required


def _source(handler: Callable[..., Any], parameter: inspect.Parameter) -> str:
    """`uow`, `envelope`, `delivery`, or the name of a dependency."""
    if parameter.name in (UOW, ENVELOPE, DELIVERY):
        return parameter.name
    try:
        annotation = _resolve(handler, parameter.annotation, {})
    except Exception:  # a type that is only there for type checkers
        return parameter.name

    return UOW if isinstance(annotation, type) and _is_unit_of_work(annotation) else parameter.name


def _is_unit_of_work(cls: type) -> bool:
    """By its ancestor's name: the bus does not import what imports transports."""
    return any(base.__qualname__ == "UnitOfWork" and base.__module__ == "eventbus.unit_of_work" for base in cls.__mro__)


def _is_async(handler: Callable[..., Any]) -> bool:
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 - its code is looked at, not whether it is there
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise ConfigurationError(f"{where(handler)} is a generator: a handler is called once and returns")
        if inspect.iscoroutinefunction(candidate):
            return True

    return False


def _resolve(handler: Callable[..., Any], annotation: Any, names: Mapping[str, Any]) -> Any:
    """What an annotation that is text means where the handler was written."""
    if not isinstance(annotation, str | ForwardRef) and get_origin(annotation) is None:
        return annotation
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    function = getattr(function, "__func__", function)
    closure: Mapping[str, Any] = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    holder = types.SimpleNamespace(__annotations__={"it": annotation})

    return get_type_hints(holder, getattr(function, "__globals__", {}), {**names, **closure}, include_extras=True)["it"]


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif type(annotation).__name__ == "TypeAliasType":  # `type Registered = A | B`, from Python 3.12 on
        yield from _members(annotation.__value__)
    else:
        yield annotation
