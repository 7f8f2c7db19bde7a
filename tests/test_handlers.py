"""What may be a handler, how it is found, and that every mistake is found when it is registered, with function, file and line."""

import functools
import gc
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import pytest

from eventbus import Command, Event, Message, MessageBus, Metadata, UnitOfWork, listen
from eventbus.errors import ConfigurationError, MissingDependency

if TYPE_CHECKING:
    from collections import OrderedDict as NobodyHere

HERE = __file__


class Register(Command):
    id: int = 0


class Registered(Event):
    id: int = 0


class Lost(Event):
    id: int = 0


class Library(UnitOfWork):
    pass


@pytest.fixture
def bus() -> MessageBus:
    return MessageBus()


async def handle(bus: MessageBus, message: Message, **transient: Any) -> Any:
    async with UnitOfWork() as uow:
        result = await bus.handle(message, uow, **transient)
        await uow.rollback()

    return result


def line_of(text: str) -> int:
    """The line of this file in which a text stands."""
    lines = Path(HERE).read_text(encoding="utf-8").splitlines()

    return next(number for number, line in enumerate(lines, 1) if text in line and "line_of" not in line)


# ---------------------------------------------------------------------------------------------------------- what it handles


async def test_a_handler_is_registered_by_the_type_of_its_first_parameter(bus: MessageBus) -> None:
    """The annotation is the registration: nothing is written twice."""
    seen: list[Message] = []

    @bus.listen
    async def on_registered(event: Registered) -> None:
        seen.append(event)

    await handle(bus, Registered(1))
    await handle(bus, Lost(2))

    assert [Registered(1)] == seen


@pytest.mark.parametrize(
    "annotation",
    [
        Registered | Lost,
        Union[Registered, Lost],  # noqa: UP007
        Annotated[Registered | Lost, "both"],
        Annotated[Registered, "one"] | Lost,
        Union["Registered", "Lost"],
        "Registered | Lost",
        "Union[Registered, 'Lost']",
        "Annotated[Registered | Lost, 'both']",
    ],
)
async def test_a_union_registers_for_each_of_its_members(bus: MessageBus, annotation: Any) -> None:
    """However it is written."""
    seen: list[Message] = []

    async def on_either(event: Any) -> None:
        seen.append(event)

    on_either.__annotations__["event"] = annotation
    bus.listen(on_either)
    await handle(bus, Lost(1))
    await handle(bus, Registered(2))

    assert [Lost(1), Registered(2)] == seen


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type X = …` is Python 3.12")
def test_a_type_alias_is_what_it_stands_for(bus: MessageBus) -> None:
    names: dict[str, Any] = {"bus": bus, "Registered": Registered, "Lost": Lost}
    exec("type Either = Registered | Lost\n@bus.listen\nasync def on_either(event: Either): ...", names)

    assert {Registered, Lost} == set(bus.types().values())


async def test_the_handler_is_returned_unchanged(bus: MessageBus) -> None:
    """It can be called in a test like any function."""

    async def on_registered(event: Registered) -> int:
        return event.id

    assert on_registered is bus.listen(on_registered)
    assert on_registered is listen(on_registered)
    assert 7 == await on_registered(Registered(7))


async def test_annotations_that_are_text_are_understood(bus: MessageBus) -> None:
    """With `from __future__ import annotations` all of them are."""
    seen: list[Message] = []

    @bus.listen
    async def on_registered(event: "Registered", uow: "Library | UnitOfWork") -> None:
        seen.append(event)

    await handle(bus, Registered(1))

    assert [Registered(1)] == seen


async def test_annotations_that_are_text_may_name_what_is_local(bus: MessageBus) -> None:
    """Such as a message class that a test has made for itself."""

    class Local(Event):
        pass

    @bus.listen
    async def on_local(event: "Local") -> str:
        return "heard"

    assert "heard" == await handle(bus, Local())


async def test_annotations_that_are_text_may_name_what_a_closure_holds(bus: MessageBus) -> None:
    class Local(Event):
        pass

    def make() -> Callable[[Any], Any]:
        async def on_local(event: "Local") -> str:
            return type(Local()).__name__

        return on_local

    bus.listen(make())

    assert "Local" == await handle(bus, Local())


async def test_other_parameters_may_have_types_that_only_checkers_know(bus: MessageBus) -> None:
    """An import under TYPE_CHECKING is no reason to fail: dependencies are found by name."""

    @bus.listen
    async def on_registered(event: Registered, clock: "NobodyHere[str, int]") -> Any:
        return clock

    @bus.listen
    async def on_lost(event: Lost, clock: "pathlib.Nothing", other: "not a type" = 5) -> Any:  # type: ignore[name-defined, valid-type] # noqa: F722, F821
        return (clock, other)

    assert 12 == await handle(bus, Registered(), clock=12)
    assert (12, 5) == await handle(bus, Lost(), clock=12)


# ---------------------------------------------------------------------------------------------------------- what it may be


class Greeter:
    async def method(self, event: Registered) -> str:
        return "method"

    @classmethod
    async def class_method(cls, event: Registered) -> str:
        return cls.__name__

    @staticmethod
    async def static_method(event: Registered) -> str:
        return "static"

    def plain(self, event: Registered) -> str:
        return "plain"

    async def __call__(self, event: Registered) -> str:
        return "called"


class PlainGreeter:
    def __call__(self, event: Registered) -> str:
        return "called in a thread"


class TextGreeter:
    async def __call__(self, event: "Registered") -> str:
        return "called by its text"


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def with_word(event: Registered, word: str, uow: UnitOfWork) -> str:
    return f"{word} {type(uow).__name__}"


@wrapped
async def decorated(event: Registered) -> str:
    return "decorated"


@pytest.mark.parametrize(
    ("expected", "handler"),
    [
        ("method", Greeter().method),
        ("Greeter", Greeter.class_method),
        ("static", Greeter.static_method),
        ("plain", Greeter().plain),
        ("called", Greeter()),
        ("called in a thread", PlainGreeter()),
        ("called by its text", TextGreeter()),
        ("hello UnitOfWork", functools.partial(with_word, word="hello")),
        ("hello UnitOfWork", functools.partial(functools.partial(with_word), word="hello")),
        ("decorated", decorated),
    ],
)
async def test_anything_callable_may_be_a_handler(bus: MessageBus, expected: str, handler: Callable[..., Any]) -> None:
    """Methods, objects, partials and what decorators make; its kind is found out once."""
    bus.listen(handler)

    assert expected == await handle(bus, Registered())


async def test_a_lambda_may_be_a_handler(bus: MessageBus) -> None:
    """It has no annotation, so it is added for a type."""
    bus.add_listener(Registered, lambda event: event.id)

    assert 7 == await handle(bus, Registered(7))


async def test_the_unit_of_work_is_found_by_its_annotation_too(bus: MessageBus) -> None:
    """Whatever the parameter is called."""

    @bus.listen
    async def on_registered(event: Registered, transaction: UnitOfWork) -> str:
        return type(transaction).__name__

    @bus.listen
    async def on_lost(event: Lost, transaction: "Library") -> str:
        return type(transaction).__name__

    assert "UnitOfWork" == await handle(bus, Registered())
    assert "UnitOfWork" == await handle(bus, Lost())


async def test_the_unit_of_work_may_be_keyword_only(bus: MessageBus) -> None:
    @bus.listen
    async def on_registered(event: Registered, *args: Any, uow: UnitOfWork, **kwargs: Any) -> tuple[Any, ...]:
        return (args, type(uow), kwargs)

    assert ((), UnitOfWork, {}) == await handle(bus, Registered())


async def test_a_positional_only_parameter_with_a_default_is_left_alone(bus: MessageBus) -> None:
    def on_registered(event: Registered, limit: int = 3, /, uow: Any = None) -> tuple[int, type]:
        return (limit, type(uow))

    bus.listen(on_registered)

    assert (3, UnitOfWork) == await handle(bus, Registered())


# ------------------------------------------------------------------------------------------------- mistakes, where they are


async def no_annotation(event) -> None:  # type: ignore[no-untyped-def]
    pass


async def no_message(event: int) -> None:
    pass


async def too_wide(event: Event) -> None:
    pass


async def message_or_none(event: Optional[Registered]) -> None:  # noqa: UP045
    pass


async def unresolvable(event: "NobodyHere[str, int]") -> None:
    pass


async def misspelled(event: "pathlib.Registered") -> None:  # type: ignore[name-defined] # noqa: F821
    pass


async def not_a_type(event: "not a type") -> None:  # type: ignore[valid-type] # noqa: F722
    pass


async def no_parameters() -> None:
    pass


async def keyword_only(*, event: Registered) -> None:
    pass


async def keywords(**event: Registered) -> None:
    pass


async def positional_only(event: Registered, clock: int, /) -> None:
    pass


async def async_generator(event: Registered) -> Any:
    yield


def generator(event: Registered) -> Any:
    yield


MISTAKES: list[tuple[Callable[..., Any], str]] = [
    (no_annotation, "the first parameter 'event' has no annotation; say which message it takes, `event: SomeEvent`"),
    (no_message, "the first parameter 'event' is annotated with <class 'int'>; name a message class, or a union of them, A | B"),
    (too_wide, "is annotated with <class 'eventbus.messages.Event'>; name a message class"),
    (message_or_none, "is annotated with <class 'NoneType'>; name a message class"),
    (unresolvable, "the annotation 'NobodyHere[str, int]' of 'event' cannot be resolved: name 'NobodyHere' is not defined"),
    (misspelled, "the annotation 'pathlib.Registered' of 'event' cannot be resolved: name 'pathlib' is not defined"),
    (not_a_type, "the annotation 'not a type' of 'event' cannot be resolved"),
    (no_parameters, "takes no message: its first parameter is the message, and has its type"),
    (keyword_only, "takes no message: its first parameter is the message"),
    (keywords, "takes no message: its first parameter is the message"),
    (positional_only, "the parameter 'clock' is positional only, but dependencies are given by name"),
    (async_generator, "is a generator: a handler is called once and returns"),
    (generator, "is a generator: a handler is called once and returns"),
]


@pytest.mark.parametrize(("handler", "text"), MISTAKES)
def test_a_mistake_is_found_when_the_handler_is_registered(bus: MessageBus, handler: Callable[..., Any], text: str) -> None:
    """There and then, and it says which function, in which file and line, and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        bus.listen(handler)

    line = line_of(f"def {handler.__name__}(")
    assert str(caught.value).startswith(f"{__name__}.{handler.__name__} ({HERE}:{line})")
    assert text in str(caught.value)
    assert {} == bus.types()


@pytest.mark.parametrize("handler", [handler for handler, text in MISTAKES if "cannot be resolved" not in text])
def test_a_mistake_is_found_when_the_handler_is_marked(handler: Callable[..., Any]) -> None:
    """`@listen` looks as well; only names that are not there yet may wait for the scan."""
    with pytest.raises(ConfigurationError, match=rf"{handler.__name__} \(.*test_handlers.py:\d+\)"):
        listen(handler)


@pytest.mark.parametrize("handler", [handler for handler, text in MISTAKES if "cannot be resolved" in text])
def test_a_name_that_is_not_there_yet_may_wait_for_the_scan(handler: Callable[..., Any]) -> None:
    """Modules import each other in circles; when all are imported, every name must be there."""
    assert handler is listen(handler)


@pytest.mark.parametrize("handler", [generator, async_generator, positional_only, no_parameters, keyword_only])
def test_a_handler_added_for_a_type_is_looked_at_too(bus: MessageBus, handler: Callable[..., Any]) -> None:
    """What its annotation would say is said by the type; everything else must be right."""
    with pytest.raises(ConfigurationError, match=rf"{handler.__name__} \(.*test_handlers.py:\d+\)"):
        bus.add_listener(Registered, handler)

    assert {} == bus.types()


@pytest.mark.parametrize("thing", [5, "on_registered", None, object()])
def test_what_cannot_be_called_is_no_handler(bus: MessageBus, thing: Any) -> None:
    for register in (listen, bus.listen, functools.partial(bus.add_listener, Registered)):
        with pytest.raises(ConfigurationError, match="is not callable, so it cannot be a listener"):
            register(thing)  # type: ignore[operator]


@pytest.mark.parametrize("message_type", [int, "Registered", Registered(), None, Registered | Lost])
def test_a_listener_listens_to_a_message_class(bus: MessageBus, message_type: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"with_word \(.*test_handlers.py:\d+\) is to listen to .*, which is not a message"
    ):
        bus.add_listener(message_type, with_word)


@pytest.mark.parametrize("message_type", [Message, Command, Event])
def test_nobody_listens_to_everything(bus: MessageBus, message_type: type[Message]) -> None:
    """Handlers are found by exact type: one for `Event` would never be called."""
    with pytest.raises(ConfigurationError, match=rf"is to listen to {message_type.__name__}: handlers are found by exact type"):
        bus.add_listener(message_type, lambda message: None)


def test_a_handler_is_added_for_what_it_takes(bus: MessageBus) -> None:
    """The type and the annotation contradict each other: one of them is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        bus.add_listener(Lost, with_word)  # type: ignore[arg-type]

    line = line_of("async def with_word(")
    assert f"{__name__}.with_word ({HERE}:{line}) is to listen to Lost, but its first parameter 'event' takes Registered" == str(
        caught.value
    )
    assert {} == bus.types()


async def test_a_handler_may_take_more_than_it_is_added_for(bus: MessageBus) -> None:
    """One for any event writes a log, say; it is added for each type by name."""
    seen: list[Message] = []

    async def log(event: Event) -> None:
        seen.append(event)

    async def log_either(event: Registered | Lost) -> None:
        seen.append(event)

    bus.add_listener(Registered, log)
    bus.add_listener(Lost, log_either)
    await handle(bus, Registered(1))
    await handle(bus, Lost(2))

    assert [Registered(1), Lost(2)] == seen


def test_a_command_has_one_handler(bus: MessageBus) -> None:
    """The second is refused, and both are named."""

    @bus.listen
    async def one(command: Register) -> None: ...

    async def two(command: Register) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        bus.listen(two)

    assert (
        f"{__name__}.{two.__qualname__} ({HERE}:{line_of('async def two(command: Register)')}) is a second handler of the command "
        f"Register; the first is {__name__}.{one.__qualname__} ({HERE}:{line_of('async def one(command: Register)') - 1}): "
        "a command has one handler, an event any number"
    ) == str(caught.value)


async def test_registering_again_is_harmless(bus: MessageBus) -> None:
    """A module that is imported twice, or scanned twice, handles once."""
    calls: list[Message] = []

    async def on_registered(event: Registered) -> None:
        calls.append(event)

    async def register(command: Register) -> None:
        calls.append(command)

    for _ in range(2):
        bus.listen(on_registered)
        bus.add_listener(Registered, on_registered)
        bus.listen(register)
    await handle(bus, Registered(1))
    await handle(bus, Register(2))

    assert [Registered(1), Register(2)] == calls


def test_two_classes_cannot_have_one_name_on_the_wire(bus: MessageBus) -> None:
    """What arrives under it could be either."""

    class Twin(Event):
        metadata = Metadata(name="registered")

    bus.add_listener(Registered, lambda event: None)
    with pytest.raises(ConfigurationError) as caught:
        bus.add_listener(Twin, lambda event: None)

    assert "Twin" in str(caught.value)
    assert (
        f"and {__name__}.Registered ({HERE}:{line_of('class Registered(Event)')}) are both called 'registered_v1' on the wire; "
        "give one of them another name or schema_version"
    ) in str(caught.value)


def test_what_cannot_be_marked_can_be_added(bus: MessageBus) -> None:
    """A bound method has no room for a mark."""
    with pytest.raises(ConfigurationError, match=r"method \(.*\) cannot be marked; register it with bus.add_listener"):
        listen(Greeter().method)


def test_a_builtin_without_a_signature_is_refused(bus: MessageBus) -> None:
    with pytest.raises(ConfigurationError, match="has no signature to read its message and dependencies from"):
        bus.add_listener(Registered, dict)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("named", "handler"),
    [
        ("Greeter.method", Greeter().method),
        ("Greeter", Greeter()),
        ("with_word", functools.partial(with_word)),
        ("decorated", decorated),
    ],
)
async def test_an_error_says_where_a_handler_of_any_kind_is_written(
    bus: MessageBus, named: str, handler: Callable[..., Any]
) -> None:
    """For an object it is its class, for a partial the function inside, for a wrapper what it wraps."""
    with pytest.raises(ConfigurationError, match=rf"{named} \(.*test_handlers.py:\d+\) is to listen to Lost"):
        bus.add_listener(Lost, handler)


@pytest.mark.parametrize("collecting", [True, False])
def test_no_garbage_is_collected_while_a_file_is_parsed(
    bus: MessageBus, monkeypatch: pytest.MonkeyPatch, collecting: bool
) -> None:
    """CPython before 3.12 fails then (python/cpython#106905). Afterwards it is as it was; and an error is no reason for another one."""
    enabled: list[bool] = []

    def stumble(_: Any) -> Any:
        enabled.append(gc.isenabled())
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(inspect, "getsourcelines", stumble)
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(ConfigurationError, match=r"test_handlers.Greeter is to listen to Lost"):
            bus.add_listener(Lost, Greeter())
        assert collecting == gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()

    assert enabled
    assert not any(enabled)


# ------------------------------------------------------------------------------------------------------------------ removal


async def test_a_removed_handler_is_not_called(bus: MessageBus) -> None:
    calls: list[str] = []

    async def one(event: Registered) -> None:
        calls.append("one")

    async def two(event: Registered) -> None:
        calls.append("two")

    bus.listen(one)
    bus.listen(two)
    bus.remove_listener(Registered, one)
    await handle(bus, Registered())

    assert ["two"] == calls


def test_the_last_handler_removed_frees_the_name(bus: MessageBus) -> None:
    """The bus then knows nothing of the type, and another class may take its name."""

    class Twin(Event):
        metadata = Metadata(name="registered")

    async def one(event: Registered) -> None: ...

    bus.listen(one)
    bus.remove_listener(Registered, one)
    bus.add_listener(Twin, lambda event: None)

    assert {"registered_v1": Twin} == bus.types()


async def test_a_method_of_an_equal_object_is_the_same_handler(bus: MessageBus) -> None:
    """A bound method is made anew each time it is asked for; it is compared, not identified."""
    greeter = Greeter()
    bus.add_listener(Registered, greeter.method)
    bus.remove_listener(Registered, greeter.method)

    assert {} == bus.types()


async def test_removing_what_is_not_registered_changes_nothing(bus: MessageBus) -> None:
    """It says what is."""

    async def one(command: Register) -> str:
        return "one"

    async def two(command: Register) -> str:
        return "two"

    bus.listen(one)
    with pytest.raises(ConfigurationError, match=r"two \(.*:\d+\) is not a listener of Register; registered is .*one \(.*:\d+\)"):
        bus.remove_listener(Register, two)
    with pytest.raises(ConfigurationError, match=r"two \(.*:\d+\) is not a listener of Lost; registered is nothing"):
        bus.remove_listener(Lost, two)  # type: ignore[arg-type]

    assert "one" == await handle(bus, Register())


# --------------------------------------------------------------------------------------------------------------------- scan

numbers = itertools.count()


class Project:
    """A package on disk, which the test writes and scans."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"shop{next(numbers)}"
        self.write("__init__", "")

    def write(self, module: str, text: str) -> str:
        """A module of the package; its absolute name."""
        file = self.path.joinpath(self.name, *module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))

        return self.name if module == "__init__" else f"{self.name}.{module.removesuffix('.__init__')}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(tmp_path)
    project = Project(tmp_path)
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == project.name]:
        del sys.modules[name]


HANDLER = """
    from eventbus import Event, listen

    class {name}(Event):
        pass

    @listen
    async def handle(event: {name}) -> str:
        return __name__
"""


def test_scan_finds_handlers_in_every_module_of_a_package(bus: MessageBus, project: Project) -> None:
    """Recursively, the package's own `__init__` included."""
    project.write("__init__", HANDLER.format(name="A"))
    project.write("books", HANDLER.format(name="B"))
    project.write("lending.__init__", "")
    project.write("lending.cards.__init__", HANDLER.format(name="C"))
    project.write("lending.cards.fees", HANDLER.format(name="D"))
    bus.scan(project.name)

    assert ["a_v1", "b_v1", "c_v1", "d_v1"] == sorted(bus.types())


def test_scan_takes_several_modules(bus: MessageBus, project: Project) -> None:
    """A single module is scanned like a package, and nothing beside it."""
    one, two = project.write("books", HANDLER.format(name="A")), project.write("cards", HANDLER.format(name="B"))
    project.write("other", HANDLER.format(name="C"))
    bus.scan(one, two)

    assert ["a_v1", "b_v1"] == sorted(bus.types())


def test_scan_twice_is_scan_once(bus: MessageBus, project: Project) -> None:
    project.write("books", HANDLER.format(name="A").replace("Event", "Command"))
    bus.scan(project.name)
    bus.scan(project.name, f"{project.name}.books")

    assert ["a_v1"] == sorted(bus.types())


async def test_scanned_handlers_are_called_in_the_order_of_the_source(bus: MessageBus, project: Project) -> None:
    project.write(
        "books",
        """
        from eventbus import Event, listen

        called = []

        class A(Event):
            pass

        @listen
        async def zebra(event: A): called.append("zebra")

        @listen
        async def ant(event: A): called.append("ant")
        """,
    )
    bus.scan(project.name)
    module = sys.modules[f"{project.name}.books"]
    await handle(bus, module.A())

    assert ["zebra", "ant"] == module.called


def test_what_is_not_marked_is_not_found(bus: MessageBus, project: Project) -> None:
    """A function that takes a message is not a handler yet."""
    project.write("books", HANDLER.format(name="A").replace("@listen", ""))
    bus.scan(project.name)

    assert {} == bus.types()


def test_an_imported_handler_belongs_to_its_own_module(bus: MessageBus, project: Project) -> None:
    """Scanning a module does not register what it borrowed elsewhere."""
    books = project.write("books", HANDLER.format(name="A"))
    cards = project.write("cards", f"from {books} import A, handle\n")
    bus.scan(cards)

    assert {} == bus.types()


async def test_scan_understands_annotations_that_are_text(bus: MessageBus, project: Project) -> None:
    """`from __future__ import annotations`, and names that come later in the module."""
    project.write(
        "books",
        """
        from __future__ import annotations
        from eventbus import Event, UnitOfWork, listen

        @listen
        async def handle(event: Later | Sooner, uow: Library) -> None: ...

        class Later(Event): ...
        class Sooner(Event): ...
        class Library(UnitOfWork): ...
        """,
    )
    bus.scan(project.name)

    assert ["later_v1", "sooner_v1"] == sorted(bus.types())


def test_modules_that_import_each_other_can_be_scanned(bus: MessageBus, project: Project) -> None:
    """The names are resolved when everything is imported."""
    text = """
        from __future__ import annotations
        from eventbus import Event, listen
        import {package}.{other} as other

        class Happened(Event):
            from eventbus import Metadata
            metadata = Metadata(name="{own}")

        @listen
        async def handle(event: other.Happened) -> None: ...
    """
    for own, other in (("books", "cards"), ("cards", "books")):
        project.write(own, text.format(package=project.name, own=own, other=other))
    bus.scan(project.name)

    assert ["books_v1", "cards_v1"] == sorted(bus.types())


async def test_scan_finds_marked_objects_and_partials(bus: MessageBus, project: Project) -> None:
    """They carry another module's name; what counts is where they were marked."""
    project.write(
        "kit",
        """
        class Greeter:
            async def __call__(self, event): return "object"

        async def greet(event, word): return word
        """,
    )
    project.write(
        "books",
        f"""
        import functools
        from eventbus import Event, listen
        from {project.name}.kit import Greeter, greet

        class A(Event): ...
        class B(Event): ...

        class Typed(Greeter):
            async def __call__(self, event: A): return await super().__call__(event)

        async def typed(event: B, word): return await greet(event, word)

        typed_object = listen(Typed())
        typed_partial = listen(functools.partial(typed, word="partial"))
        """,
    )
    bus.scan(project.name)
    module = sys.modules[f"{project.name}.books"]

    assert ["object", "partial"] == [await handle(bus, module.A()), await handle(bus, module.B())]


def test_scan_is_not_misled_by_objects_that_have_every_attribute(bus: MessageBus, project: Project) -> None:
    """Such as `unittest.mock.call`."""
    project.write(
        "books",
        HANDLER.format(name="A")
        + """
    from unittest.mock import MagicMock, call
    mock = MagicMock()
    class Everything:
        def __getattr__(self, name): return self
        def __call__(self): return self
    everything = Everything()
    """,
    )
    bus.scan(project.name)

    assert ["a_v1"] == sorted(bus.types())


def test_a_main_module_is_not_run(bus: MessageBus, project: Project) -> None:
    """Importing `__main__` would start the program."""
    project.write("__main__", "raise SystemExit('started')")
    project.write("books", HANDLER.format(name="A"))
    bus.scan(project.name)

    assert ["a_v1"] == sorted(bus.types())


@pytest.mark.parametrize("name", ["", ".handlers", "..", None, 5, ModuleType("handlers")])
def test_scan_takes_absolute_names(bus: MessageBus, name: Any) -> None:
    """A relative one would depend on who asks."""
    with pytest.raises(ConfigurationError, match=r"give the absolute name of a module, like 'shop.service.handlers'"):
        bus.scan(name)


def test_scan_says_that_there_is_no_such_module(bus: MessageBus, project: Project) -> None:
    """Also when it is the parent that is not there."""
    with pytest.raises(
        ConfigurationError, match=r"bus.scan\('nowhere.handlers'\): there is no module 'nowhere'; is it spelled right"
    ):
        bus.scan("nowhere.handlers")
    with pytest.raises(ConfigurationError, match=rf"there is no module '{project.name}.nowhere'"):
        bus.scan(f"{project.name}.nowhere")


@pytest.mark.parametrize(
    ("module", "text", "error"),
    [
        ("books", "1 / 0", r"importing shop\d+.books failed: ZeroDivisionError"),
        (
            "books",
            "import nowhere_at_all",
            r"importing shop\d+.books failed: ModuleNotFoundError\(\"No module named 'nowhere_at_all'",
        ),
        ("books", "def broken(:", r"importing shop\d+.books failed: SyntaxError"),
        ("books.__init__", "1 / 0", r"importing shop\d+.books failed: ZeroDivisionError"),
        ("books.__init__", "import nowhere_at_all", r"importing shop\d+.books failed: ModuleNotFoundError"),
        ("books.deep", "raise RuntimeError('no')", r"importing shop\d+.books.deep failed: RuntimeError\('no'\)"),
        ("__init__", "1 / 0", r"importing shop\d+ failed: ZeroDivisionError"),
    ],
)
def test_scan_says_which_module_fails_to_import(bus: MessageBus, project: Project, module: str, text: str, error: str) -> None:
    """However deep it lies; the cause is chained."""
    if module == "books.deep":
        project.write("books.__init__", "")
    project.write(module, text)
    with pytest.raises(ConfigurationError, match=error) as caught:
        bus.scan(project.name)

    assert caught.value.__cause__ is not None


def test_scan_says_which_annotation_cannot_be_resolved(bus: MessageBus, project: Project) -> None:
    """A class that is imported for type checkers only is not there when the program runs."""
    module = project.write(
        "books",
        """
        from __future__ import annotations
        from eventbus import listen

        @listen
        async def handle(event: Nowhere) -> None: ...
        """,
    )
    with pytest.raises(ConfigurationError) as caught:
        bus.scan(project.name)

    file = project.path / project.name / "books.py"
    assert (
        f"{module}.handle ({file}:5): the annotation 'Nowhere' of 'event' cannot be resolved: name 'Nowhere' is not defined"
    ) == str(caught.value)


def test_scan_finds_the_second_handler_of_a_command(bus: MessageBus, project: Project) -> None:
    """In another module, named with the first."""
    project.write("books", HANDLER.format(name="A").replace("Event", "Command"))
    project.write(
        "cards", f"from eventbus import listen\nfrom {project.name}.books import A\n@listen\ndef again(command: A): ...\n"
    )
    with pytest.raises(
        ConfigurationError, match=r"cards.again \(.*cards.py:3\) is a second handler .* the first is .*books.py:7\)"
    ):
        bus.scan(project.name)


async def test_a_missing_dependency_names_the_handler(bus: MessageBus) -> None:
    """And the three ways to provide it."""

    @bus.listen
    async def on_registered(event: Registered, clock: Any) -> None: ...

    with pytest.raises(MissingDependency) as caught:
        await handle(bus, Registered())

    assert f"({HERE}:{line_of('async def on_registered(event: Registered, clock: Any)') - 1}) asks for 'clock'" in str(
        caught.value
    )
    assert "give MessageBus(clock=…) a factory, pass handle(…, clock=…), or give the parameter a default" in str(caught.value)
