"""Messages: frozen data that says what should happen (a command) or what happened (an event).

```python
class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True)
    id: UUID
    title: str
```

The metadata belongs to the class: equality, hash, repr and encoding see only the data. Identity and time are not part of a message
either; they are its envelope's (`eventbus.envelope`).
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, ClassVar, dataclass_transform

import msgspec

from eventbus.errors import ConfigurationError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What streams, groups and consumers may be called (`re.fullmatch`)."""

_MESSAGE_NAME = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Metadata(msgspec.Struct, frozen=True):
    """What a message class says about itself. Subclass it to say more.

    * `name` and `schema_version`: the type on the wire, ``<name>_v<schema_version>``. A person chooses them: renaming the class
      renames no history.
    * `published`: whether the message goes to a stream when its unit of work commits.
    * `stream`: where it goes, if not to the transport's default stream.
    * `key`: the field whose value orders deliveries.
    """

    name: str
    schema_version: int = 1
    published: bool = False
    stream: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _MESSAGE_NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"Metadata(name={self.name!r}): a message name is one word, without spaces or control characters"
            )
        if type(self.schema_version) is not int or self.schema_version < 1:
            raise ConfigurationError(
                f"Metadata(name={self.name!r}, schema_version={self.schema_version!r}): versions are 1, 2, 3, …"
            )
        if self.stream is not None:
            check_name("stream", self.stream)

    @property
    def type(self) -> str:
        """The name on the wire."""
        return f"{self.name}_v{self.schema_version}"


def snake_case(name: str) -> str:
    """``RegisterBook`` → ``register_book``, ``HTTPRequestSent`` → ``http_request_sent``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _annotations(cls: type) -> dict[str, Any]:
    """The annotations of this class and not of its bases. Python 3.14 makes them when asked; as text, which resolves no names."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)

    return inspect.get_annotations(cls)


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True):
    """The base of `Command` and `Event`: an immutable struct with metadata at its class.

    A class without metadata is private and named after itself in snake case, version 1. A published one must have metadata of its own,
    also when it inherits from one that has, else `ConfigurationError`.
    """

    metadata: ClassVar[Metadata]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "ClassVar" not in str(_annotations(cls).get("metadata", "ClassVar")):
            raise ConfigurationError(
                f"{_where(cls)} annotates its metadata, which makes it a field; write `metadata = Metadata(…)` without a type"
            )
        metadata = cls.__dict__.get("metadata")
        if metadata is None:
            inherited = getattr(cls, "metadata", None)
            if inherited is not None and inherited.published:
                raise ConfigurationError(
                    f"{_where(cls)} is published, as it inherits from {inherited.name!r}, but has no metadata of its own: "
                    "give it `metadata = Metadata(name=…, published=True)`, so that renaming the class renames no history"
                )
            cls.metadata = Metadata(name=snake_case(cls.__name__))
        elif not isinstance(metadata, Metadata):
            raise ConfigurationError(f"{_where(cls)}: metadata is {metadata!r}, not a Metadata")
        elif metadata.key is not None and metadata.key not in _annotated(cls):
            raise ConfigurationError(
                f"{_where(cls)}: Metadata(key={metadata.key!r}) names no field; it has {', '.join(_annotated(cls)) or 'none'}"
            )


class Command(Message, frozen=True):
    """What somebody wants done. One handler; its result is what `MessageBus.handle` returns."""


class Event(Message, frozen=True):
    """What has happened. Any number of handlers, none included."""


def check_name(what: str, name: str) -> str:
    """The name, if it may be part of a Redis key, a log line and a metric; else `ConfigurationError`."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        if isinstance(name, str) and "://" in name:  # with a password in it, perhaps
            raise ConfigurationError(f"a URL is no {what} name: use 1 to 128 letters, digits, '.', '_', ':' and '-'")
        raise ConfigurationError(
            f"{what} name {name!r:.200}: use 1 to 128 letters, digits, '.', '_', ':' and '-', beginning with a letter or digit"
        )
    if what == "group" and name.endswith(":entries"):  # or two groups would share a key: see `eventbus.redis.keys`
        raise ConfigurationError(
            f"group name {name!r}: what ends with ':entries' is used for something else; choose another name"
        )

    return name


def _annotated(cls: type[Message]) -> list[str]:
    """The names of the fields, which msgspec has not made yet when a subclass is announced."""
    return [
        name
        for base in reversed(cls.__mro__)
        for name, annotation in _annotations(base).items()
        if "ClassVar" not in str(annotation)
    ]


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
