"""Messages: frozen data, and what their classes say about themselves."""

import json
from copy import copy
from typing import ClassVar

import msgspec
import pytest

from eventbus import Command, Event, Message, Metadata
from eventbus.envelope import JSON, decode
from eventbus.errors import ConfigurationError
from eventbus.messages import check_name, snake_case


class RegisterBook(Command):
    id: int
    title: str


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", schema_version=1, published=True, stream="reading-club", key="id")
    id: int
    title: str = "Dune"


# -------------------------------------------------------------------------------------------------------------- the data


def test_messages_with_the_same_content_are_equal() -> None:
    """A message is its data: whoever compares two in a test compares what they say."""
    assert RegisterBook(id=1, title="Dune") == RegisterBook(id=1, title="Dune")
    assert RegisterBook(id=1, title="Dune") != RegisterBook(id=2, title="Dune")


def test_messages_of_different_classes_are_not_equal() -> None:
    """An order to do it is not the news that it was done, whatever the fields."""
    assert BookRegistered(id=1, title="Dune") != RegisterBook(id=1, title="Dune")


def test_a_message_can_be_hashed() -> None:
    """Equal messages are one in a set."""
    messages = {BookRegistered(id=1), BookRegistered(id=1, title="Dune"), BookRegistered(id=2)}

    assert 2 == len(messages)
    assert BookRegistered(id=1) in messages


def test_a_message_cannot_be_changed() -> None:
    """What has happened stays as it happened; `msgspec.structs.replace` makes another."""
    message = BookRegistered(id=1)

    with pytest.raises(AttributeError):
        message.id = 2  # type: ignore[misc]

    assert BookRegistered(id=1, title="Emma") == msgspec.structs.replace(message, title="Emma")
    assert BookRegistered(id=1) == message


def test_the_repr_shows_the_data_and_nothing_else() -> None:
    """It can be read in a failing test, and pasted into the next one."""
    assert "BookRegistered(id=1, title='Dune')" == repr(BookRegistered(id=1))


def test_the_metadata_is_no_field() -> None:
    """It belongs to the class: it is neither encoded nor asked for when a message is made."""
    assert ("id", "title") == BookRegistered.__struct_fields__
    assert {"id": 1, "title": "Dune"} == json.loads(JSON.encode(BookRegistered(id=1)))


def test_a_message_can_be_copied_and_decoded() -> None:
    """It is an ordinary struct."""
    message = BookRegistered(id=1)

    assert message == copy(message)
    assert message == decode(BookRegistered, JSON.encode(message))


def test_a_message_may_inherit_fields() -> None:
    """What several commands have in common may be written once."""

    class ChangeBook(Command):
        id: int

    class RenameBook(ChangeBook):
        title: str

    assert RenameBook(id=1, title="Emma") == RenameBook(1, "Emma")
    assert "rename_book_v1" == RenameBook.metadata.type


# ---------------------------------------------------------------------------------------------------------- the metadata


def test_without_metadata_a_message_is_private_and_named_after_its_class() -> None:
    """Most messages never leave their process, and need no metadata for that."""
    assert Metadata(name="register_book", schema_version=1, published=False, stream=None, key=None) == RegisterBook.metadata


def test_the_type_on_the_wire_is_name_and_version() -> None:
    """The two that a person chose, so that renaming the class renames no history."""
    assert "book_registered_v1" == BookRegistered.metadata.type
    assert "book_registered_v12" == Metadata(name="book_registered", schema_version=12).type


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("register_book", "RegisterBook"),
        ("http_request_sent", "HTTPRequestSent"),
        ("book_v2_added", "BookV2Added"),
        ("book2_added", "Book2Added"),
        ("isbn", "ISBN"),
        ("event", "event"),
    ],
)
def test_names_in_snake_case(expected: str, name: str) -> None:
    """Abbreviations and digits stay together."""
    assert expected == snake_case(name)


def test_metadata_cannot_be_changed() -> None:
    """What a class says about itself, it says for good."""
    with pytest.raises(AttributeError):
        BookRegistered.metadata.name = "x"  # type: ignore[misc]


def test_metadata_may_be_subclassed() -> None:
    """Whoever wants to say more about a message adds a field."""

    class Owned(Metadata):
        owner: str = "nobody"

    class ShelfMoved(Event):
        metadata = Owned(name="shelf_moved", owner="library")

    assert Owned(name="shelf_moved", owner="library") == ShelfMoved.metadata
    assert "shelf_moved_v1" == ShelfMoved.metadata.type


def test_the_bases_are_no_commands_and_no_events() -> None:
    """`Command` and `Event` have one ancestor, and it is a struct."""
    assert [Message, Message] == [Command.__base__, Event.__base__]
    assert issubclass(Message, msgspec.Struct)


def test_a_private_subclass_of_a_private_message_has_a_name_of_its_own() -> None:
    """Metadata is not inherited: two classes under one name would be one message."""

    class RegisterAudioBook(RegisterBook):
        minutes: int = 0

    assert "register_audio_book_v1" == RegisterAudioBook.metadata.type


def test_a_published_message_must_have_metadata_of_its_own() -> None:
    """Inherited, the new class would be published under a name nobody chose."""
    with pytest.raises(ConfigurationError) as caught:

        class AudioBookRegistered(BookRegistered):
            minutes: int = 0

    assert "AudioBookRegistered is published, as it inherits from 'book_registered', but has no metadata of its own" in str(
        caught.value
    )
    assert __name__ in str(caught.value)


def test_metadata_with_a_type_would_be_a_field() -> None:
    """`metadata: Metadata = …` is the habit of dataclasses; here it would put the metadata on the wire."""
    with pytest.raises(ConfigurationError, match=r"BookLost annotates its metadata, which makes it a field"):

        class BookLost(Event):
            metadata: Metadata = Metadata(name="book_lost")  # type: ignore[misc]


def test_metadata_with_the_type_of_a_class_variable_is_fine() -> None:
    """It says the same at greater length."""

    class BookLost(Event):
        metadata: ClassVar[Metadata] = Metadata(name="book_lost", published=True)
        id: int

    assert ("id",) == BookLost.__struct_fields__
    assert "book_lost_v1" == BookLost.metadata.type


def test_metadata_is_metadata() -> None:
    with pytest.raises(ConfigurationError, match=r"BookLost: metadata is 'book_lost', not a Metadata"):

        class BookLost(Event):
            metadata = "book_lost"  # type: ignore[assignment]


def test_the_key_names_a_field() -> None:
    """A key that no message has would order nothing."""
    with pytest.raises(ConfigurationError, match=r"Metadata\(key='isbn'\) names no field; it has id, title"):

        class BookLost(Event):
            metadata = Metadata(name="book_lost", key="isbn")
            id: int
            title: str


def test_the_key_may_be_an_inherited_field() -> None:
    class AboutBook(Event):
        isbn: str

    class BookLost(AboutBook):
        metadata = Metadata(name="book_lost", published=True, key="isbn")
        at: str

    assert "isbn" == BookLost.metadata.key


def test_a_class_variable_is_no_field_to_order_by() -> None:
    with pytest.raises(ConfigurationError, match=r"names no field; it has id$"):

        class BookLost(Event):
            metadata = Metadata(name="book_lost", key="shelf")
            shelf: ClassVar[str] = "A"
            id: int


@pytest.mark.parametrize("name", ["", "two words", "tab\t", "line\n", "bell\x07", "c1\x85", "half\ud800", 5, None])
def test_a_name_is_one_word(name: str) -> None:
    """It becomes part of log lines, metrics and command lines."""
    with pytest.raises(ConfigurationError, match="a message name is one word, without spaces or control characters"):
        Metadata(name=name)


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True])
def test_versions_are_counted_from_one(version: int) -> None:
    with pytest.raises(ConfigurationError, match=r"Metadata\(name='x', schema_version=.*\): versions are 1, 2, 3"):
        Metadata(name="x", schema_version=version)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "{a}", "ä", "x" * 129, "a\n", 7])
def test_a_stream_has_a_name_that_fits_everywhere(name: str) -> None:
    """It becomes part of Redis keys."""
    with pytest.raises(ConfigurationError, match=r"stream name .* use 1 to 128 letters, digits"):
        Metadata(name="x", stream=name)


@pytest.mark.parametrize("name", ["a", "0", "reading-club", "A.b_c:d-e", "x" * 128])
def test_a_good_name_is_returned(name: str) -> None:
    """So that checking it and keeping it is one line."""
    assert name == check_name("stream", name)


def test_a_group_does_not_take_the_key_of_another() -> None:
    """What is delayed for the group `mailer` lies in ``…:delayed:mailer:entries``."""
    with pytest.raises(ConfigurationError, match=r"group name 'mailer:entries': .* choose another name"):
        check_name("group", "mailer:entries")

    assert "mailer:entries" == check_name("stream", "mailer:entries")
