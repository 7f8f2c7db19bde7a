"""Models and repositories: where messages are raised, and how a unit of work finds them.

A model is an aggregate that gathers messages while it changes; a repository remembers the models that it handed out (`seen`). After each
handler the unit of work collects what was raised, in the order in which it was raised, over all models of all repositories.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any, Final, Generic, Protocol, SupportsIndex, TypeVar, overload

import msgspec

from eventbus.messages import Message

moment: Final = count(1).__next__
"""The order of raising in this process: larger is later."""


class Raises(Protocol):
    """Anything with a list of messages: a `Model`, a dataclass, an ORM-mapped class."""

    @property
    def messages(self) -> list[Any]: ...


M = TypeVar("M", bound=Raises)


class Messages(list[Message]):
    """A list of messages that remembers when each was added, so that they can be put in order with those of other models.

    It is equal to a plain list with the same messages. A repository that has seen its model is told of the first addition after each
    collection, so that collecting costs as much as was raised and not as much as was seen. Several may have seen it, in transactions that
    overlap: whichever collects first has what was raised.
    """

    __slots__ = ("moments", "observers")

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[int] = []
        self.observers: tuple[list[Messages], ...] = ()

    def append(self, message: Message, /) -> None:
        if not self:
            self._tell()
        super().append(message)
        self.moments.append(moment())

    def observe(self, changed: list[Messages]) -> None:
        """Add this to that list at the first addition after each collection, and now if there is something."""
        if not any(other is changed for other in self.observers):
            self.observers += (changed,)
            if self:
                changed.append(self)

    def _tell(self) -> None:
        for changed in self.observers:
            changed.append(self)

    def ignore(self, changed: list[Messages]) -> None:
        """Tell that list no more."""
        self.observers = tuple(other for other in self.observers if other is not changed)

    def extend(self, messages: Iterable[Message], /) -> None:
        for message in list(messages):
            self.append(message)

    def insert(self, index: SupportsIndex, message: Message, /) -> None:
        """Add the message before the index; it counts as raised when its neighbour was."""
        index = max(index.__index__(), -len(self))
        when = self.moments[index] if index < len(self) and self else moment()
        if not self:
            self._tell()
        super().insert(index, message)
        self.moments.insert(index, when)

    def pop(self, index: SupportsIndex = -1, /) -> Message:
        message = super().pop(index)
        self.moments.pop(index)

        return message

    def remove(self, message: Message, /) -> None:
        del self[self.index(message)]

    def clear(self) -> None:
        super().clear()
        self.moments.clear()

    def __iadd__(self, messages: Iterable[Message], /) -> Messages:  # type: ignore[override, misc]
        self.extend(messages)

        return self

    @overload
    def __setitem__(self, index: SupportsIndex, value: Message, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Message], /) -> None: ...
    def __setitem__(self, index: Any, value: Any, /) -> None:
        if type(index) is slice:
            value = list(value)
            if value and not self:
                self._tell()
            start, stop, step = index.indices(len(self))
            if step == 1:  # like insert: what comes in counts as raised when its neighbour was
                after = self.moments[max(start, stop) : max(start, stop) + 1]
                self.moments[index] = after * len(value) or [moment() for _ in value]
        super().__setitem__(index, value)

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        super().__delitem__(index)
        del self.moments[index]

    def take(self) -> list[tuple[int, Message, None]]:
        """Empty the list; what was in it, each message with its moment (and no headers)."""
        taken = [(when, message, None) for when, message in zip(self.moments, self, strict=True)]
        self.clear()

        return taken


class Model(msgspec.Struct, dict=True):
    """An aggregate: a mutable struct that gathers messages.

    `messages` is not a field: it is neither encoded nor compared, printed or copied by `msgspec.structs.replace`.
    """

    @property
    def messages(self) -> list[Message]:
        """What this model has raised and no unit of work has collected yet, oldest first."""
        held: Messages | None = self.__dict__.get("messages")
        if held is None:
            held = vars(self)["messages"] = Messages()

        return held

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        held = self.messages
        if messages is not held:
            held[:] = messages


class Repository(Generic[M]):
    """Where models of one kind live. Subclass it, and append each model that you hand out or take in to `seen`.

    ```python
    class SqlBookRepository(Repository[Book]):
        def __init__(self, session: AsyncSession) -> None:
            self.session = session

        async def add(self, book: Book) -> None:
            self.session.add(book)
            self.seen.append(book)
    ```

    A unit of work finds the repositories that are its own attributes.
    """

    @property
    def seen(self) -> list[M]:
        """The models whose messages the unit of work collects; emptied when it ends."""
        held: Seen[M] | None = self.__dict__.get("seen")
        if held is None:
            held = Seen()
            self.__dict__["seen"] = held

        return held

    @seen.setter
    def seen(self, models: Iterable[M]) -> None:
        if models is not self.__dict__.get("seen"):  # as it is after `seen += […]`
            self.__dict__["seen"] = Seen(models)


class Seen(list[M]):
    """The models that a repository has seen, and which of them have something to tell."""

    __slots__ = ("_changed", "_plain")

    def __init__(self, models: Iterable[M] = ()) -> None:
        super().__init__()
        self._changed: list[Messages] = []
        self._plain: list[tuple[int, M]] = []
        self.extend(models)

    def append(self, model: M, /) -> None:
        messages = model.messages
        super().append(model)
        if not isinstance(messages, Messages):
            self._plain.append((moment(), model))
        else:
            messages.observe(self._changed)

    def extend(self, models: Iterable[M], /) -> None:
        for model in models:
            self.append(model)

    def insert(self, index: SupportsIndex, model: M, /) -> None:
        self.append(model)
        super().insert(index, super().pop())

    def __iadd__(self, models: Iterable[M], /) -> Seen[M]:  # type: ignore[override, misc]
        self.extend(models)

        return self

    def clear(self) -> None:
        """Look at none of the models any more. What they have raised stays theirs."""
        for model in self:
            if isinstance(messages := model.messages, Messages):
                messages.ignore(self._changed)
        self._changed.clear()
        self._plain.clear()
        super().clear()

    def take(self) -> list[tuple[int, Message, None]]:
        """Collect what the models have raised since the last time, each message with its moment, in no order."""
        taken: list[tuple[int, Message, None]] = []
        if self._changed:
            for messages in self._changed:
                taken += messages.take()
            self._changed.clear()
        for when, model in self._plain:
            if plain := model.messages:
                taken += [(when, message, None) for message in plain]
                plain.clear()

        return taken

    def forget(self, *, shared: bool = True) -> int:
        """Drop what the models still hold, and the models; how many messages that was.

        If not `shared`, what another transaction collects as well is left to that one.
        """
        if not shared:
            self._changed[:] = [messages for messages in self._changed if len(messages.observers) == 1]
        dropped = len(self.take())
        self.clear()

        return dropped
