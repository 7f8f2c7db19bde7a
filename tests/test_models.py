"""Models and repositories: what gathers messages, and how a unit of work finds them in the order in which they were raised."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from eventbus import Event, Model, Repository, UnitOfWork


class Said(Event):
    word: str


class Book(Model):
    id: int
    title: str = ""

    def say(self, *words: str) -> None:
        for word in words:
            self.messages.append(Said(word))


class Books(Repository[Book]):
    def add(self, *books: Book) -> None:
        for book in books:
            self.seen.append(book)


class Library(UnitOfWork):
    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.lent = Books()

    def said(self) -> list[str]:
        """What was raised since the last time it was asked, in the order in which it is handled."""
        return [record.message.word for record in self.gather(None) if isinstance(record.message, Said)]


@pytest.fixture
def library() -> Library:
    return Library()


# ----------------------------------------------------------------------------------------------------------------- models


def test_a_new_model_has_raised_nothing() -> None:
    assert [] == Book(1).messages


def test_what_a_model_has_raised_is_a_list() -> None:
    """A test of a handler looks into it and compares it with a plain list."""
    book = Book(1)
    book.say("a", "b")

    assert [Said("a"), Said("b")] == book.messages
    assert "[Said(word='a'), Said(word='b')]" == repr(book.messages)


def test_a_model_can_be_changed() -> None:
    """Unlike a message: it is what the messages are about."""
    book = Book(1)
    book.title = "Dune"

    assert Book(1, "Dune") == book


def test_messages_are_no_field() -> None:
    """Two books are the same book whatever they have raised; nothing of it is encoded, printed or copied."""
    book = Book(1, "Dune")
    book.say("a")

    assert Book(1, "Dune") == book
    assert "Book(id=1, title='Dune')" == repr(book)
    assert b'{"id":1,"title":"Dune"}' == msgspec.json.encode(book)
    assert [[], []] == [msgspec.structs.replace(book).messages, deepcopy(book).messages]


def test_two_models_share_no_messages() -> None:
    one, other = Book(1), Book(1)
    one.say("a")

    assert [] == other.messages


def test_messages_may_be_assigned(library: Library) -> None:
    """`book.messages = […]` replaces what was there, and is collected like the rest."""
    book = Book(1)
    library.books.add(book)
    book.say("a", "b")
    book.messages = [Said("c")]

    assert [Said("c")] == book.messages
    assert ["c"] == library.said()


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        (["a", "b", "c", "d"], lambda messages: messages.append(Said("d"))),
        (["a", "b", "c", "d", "e"], lambda messages: messages.extend(Said(word) for word in "de")),
        (["a", "b", "c", "a", "b", "c"], lambda messages: messages.extend(messages)),
        (["d", "a", "b", "c"], lambda messages: messages.insert(0, Said("d"))),
        (["a", "d", "b", "c"], lambda messages: messages.insert(1, Said("d"))),
        (["a", "b", "d", "c"], lambda messages: messages.insert(-1, Said("d"))),
        (["d", "a", "b", "c"], lambda messages: messages.insert(-9, Said("d"))),
        (["a", "b", "c", "d"], lambda messages: messages.insert(3, Said("d"))),
        (["a", "b", "c", "d"], lambda messages: messages.insert(9, Said("d"))),
        (["a", "b"], lambda messages: messages.pop()),
        (["b", "c"], lambda messages: messages.pop(0)),
        (["a", "c"], lambda messages: messages.remove(Said("b"))),
        ([], lambda messages: messages.clear()),
        (["a", "d", "c"], lambda messages: messages.__setitem__(1, Said("d"))),
        (["d", "c"], lambda messages: messages.__setitem__(slice(0, 2), [Said("d")])),
        (["d", "b", "e"], lambda messages: messages.__setitem__(slice(0, 3, 2), iter([Said("d"), Said("e")]))),
        (["a", "d", "e", "b", "c"], lambda messages: messages.__setitem__(slice(1, 0), [Said("d"), Said("e")])),
        (["d"], lambda messages: messages.__setitem__(slice(None), [Said("d")])),
        (["c", "b", "a"], lambda messages: messages.reverse()),
        (["a", "c"], lambda messages: messages.__delitem__(1)),
        (["c"], lambda messages: messages.__delitem__(slice(0, 2))),
    ],
)
def test_the_list_may_be_changed_like_any_other(library: Library, expected: list[str], change: Callable[[Any], None]) -> None:
    """Whatever is done to it, what is collected is what it shows, in that order."""
    book = Book(1)
    library.books.add(book)
    book.say("a", "b", "c")
    change(book.messages)
    shown = [Said(word) for word in expected]

    assert shown == book.messages
    assert expected == library.said()
    assert [] == book.messages


@pytest.mark.parametrize(
    "raise_it",
    [
        lambda book: book.messages.append(Said("x")),
        lambda book: book.messages.extend([Said("x")]),
        lambda book: book.messages.insert(0, Said("x")),
        lambda book: book.messages.__iadd__([Said("x")]),
        lambda book: book.messages.__setitem__(slice(None), [Said("x")]),
        lambda book: setattr(book, "messages", [Said("x")]),
    ],
)
def test_the_first_message_is_noticed_however_it_was_added(library: Library, raise_it: Callable[[Book], Any]) -> None:
    """A repository is told of the first addition after each collection; there is no back door."""
    book = Book(1)
    library.books.add(book)
    collected = []
    for _ in range(2):
        raise_it(book)
        collected.append(library.said())

    assert [["x"], ["x"]] == collected


def test_a_message_may_be_taken_back(library: Library) -> None:
    book = Book(1)
    library.books.add(book)
    book.say("a", "b")

    assert Said("a") == book.messages.pop(0)
    assert ["b"] == library.said()


def test_iadd_keeps_the_list() -> None:
    """`book.messages += […]` is an assignment too."""
    book = Book(1)
    messages = book.messages
    book.messages += [Said("a")]

    assert [Said("a")] == messages
    assert messages is book.messages


# ---------------------------------------------------------------------------------------------------- the order of raising


def test_messages_come_out_in_the_order_raised_across_models_and_repositories(library: Library) -> None:
    """Not model by model and not repository by repository: what happened first is handled first."""
    one, two, lent = Book(1), Book(2), Book(3)
    library.lent.add(lent)
    library.books.add(two, one)
    one.say("a")
    lent.say("b")
    two.say("c")
    one.say("d")
    lent.say("e")

    assert ["a", "b", "c", "d", "e"] == library.said()


async def test_what_the_unit_of_work_emits_has_its_place_among_them(library: Library) -> None:
    book = Book(1)
    async with library:
        library.books.add(book)
        library.emit(Said("a"))
        book.say("b")
        library.emit(Said("c"))

        assert ["a", "b", "c"] == library.said()
        await library.rollback()


def test_it_does_not_matter_when_a_model_was_seen(library: Library) -> None:
    """A new book raises its first message before it is added to the repository."""
    new, old = Book(1), Book(2)
    new.say("a")
    library.books.add(old)
    old.say("b")
    library.books.add(new)
    new.say("c")

    assert ["a", "b", "c"] == library.said()


def test_what_was_inserted_counts_as_raised_with_its_neighbour(library: Library) -> None:
    one, two = Book(1), Book(2)
    library.books.add(one, two)
    one.say("a")
    two.say("b")
    one.say("c")
    one.messages.insert(1, Said("before c"))

    assert ["a", "b", "before c", "c"] == library.said()


def test_what_was_collected_is_collected_once(library: Library) -> None:
    book = Book(1)
    library.books.add(book)
    book.say("a")
    first, second = library.said(), library.said()
    book.say("b")

    assert [["a"], [], ["b"]] == [first, second, library.said()]


def test_a_model_seen_twice_is_collected_once(library: Library) -> None:
    """By the same repository or by two: a message is one message."""
    book = Book(1)
    library.books.add(book, book)
    library.lent.add(book)
    book.say("a")

    assert ["a"] == library.said()


def test_one_repository_under_two_names_is_one(library: Library) -> None:
    library.lent = library.books
    book = Book(1)
    library.books.add(book)
    book.say("a")

    assert ["a"] == library.said()


# ----------------------------------------------------------------------------------------------------- what can be seen


@dataclass
class Card:
    owner: str
    messages: list[Event] = field(default_factory=list)


class Row:
    """Such as an ORM makes: the list is an ordinary attribute."""

    def __init__(self) -> None:
        self.messages: list[Event] = []


@pytest.mark.parametrize("make", [lambda: Card("Leto"), Row])
def test_anything_with_a_list_of_messages_may_be_seen(make: Callable[[], Any]) -> None:
    """A dataclass, an ORM-mapped class: it need not know us."""

    class Cards(Repository[Any]):
        pass

    uow = UnitOfWork()
    uow.cards = Cards()  # type: ignore[attr-defined]
    card = make()
    uow.cards.seen.append(card)  # type: ignore[attr-defined]
    card.messages += [Said("a"), Said("b")]
    collected = [record.message for record in uow.gather(None)]

    assert [Said("a"), Said("b")] == collected
    assert [] == card.messages
    assert [] == list(uow.gather(None))


def test_a_plain_list_counts_from_where_its_object_was_seen(library: Library) -> None:
    """It does not know when it was added to."""
    one, card, two = Book(1), Card("Leto"), Book(2)
    cards: Repository[Card] = Repository()
    library.cards = cards  # type: ignore[attr-defined]
    library.books.add(one, two)
    one.say("a")
    cards.seen.append(card)
    two.say("d")
    card.messages += [Said("b"), Said("c")]

    assert ["a", "b", "c", "d"] == library.said()


def test_what_has_no_messages_cannot_be_seen(library: Library) -> None:
    """Said at once, not when the transaction ends."""
    with pytest.raises(AttributeError, match="messages"):
        library.books.seen.append("Dune")  # type: ignore[arg-type]

    assert [] == library.books.seen


@pytest.mark.parametrize(
    "see",
    [
        lambda seen, books: seen.extend(books),
        lambda seen, books: seen.__iadd__(books),
        lambda seen, books: [seen.insert(0, book) for book in reversed(books)],
    ],
)
def test_models_may_be_seen_in_any_way_a_list_knows(library: Library, see: Callable[[Any, Iterable[Book]], Any]) -> None:
    books = [Book(1), Book(2)]
    see(library.books.seen, books)
    for book in books:
        book.say(str(book.id))

    assert books == library.books.seen
    assert ["1", "2"] == library.said()


def test_seen_may_be_assigned(library: Library) -> None:
    """A repository that begins with `self.seen = []` works like one that does not."""
    forgotten, book = Book(1), Book(2)
    library.books.add(forgotten)
    library.books.seen = [book]
    forgotten.say("a")
    book.say("b")

    assert ["b"] == library.said()


def test_what_is_cleared_is_not_collected(library: Library) -> None:
    """A repository that looks away leaves the messages where they are, and others go on looking."""
    book, shared, card = Book(1), Book(2), Card("Leto", [Said("plain")])
    library.books.add(book, shared)
    library.lent.add(shared)
    cards: Repository[Card] = Repository()
    library.cards = cards  # type: ignore[attr-defined]
    cards.seen.append(card)
    book.say("a")
    library.books.seen.clear()
    cards.seen.clear()
    shared.say("b")

    assert ["b"] == library.said()
    assert ([Said("a")], [Said("plain")]) == (book.messages, card.messages)


def test_seen_may_be_added_to_in_place(library: Library) -> None:
    """`seen += […]` is an assignment too; what was seen before stays seen, in its place."""
    card, book = Card("Leto"), Book(1)
    things: Repository[Any] = Repository()
    library.things = things  # type: ignore[attr-defined]
    things.seen += [card]
    things.seen += [book]
    book.say("b")
    card.messages.append(Said("a"))

    assert [card, book] == things.seen
    assert ["a", "b"] == library.said()


def test_a_repository_needs_no_init() -> None:
    """A subclass that does not call `super().__init__()` is no trap: `seen` is made when it is first asked for."""

    class Shelf(Repository[Book]):
        def __init__(self, name: str) -> None:
            self.name = name

    one, other = Shelf("a"), Shelf("b")
    one.seen.append(Book(1))

    assert ([Book(1)], []) == (one.seen, other.seen)


def test_a_repository_with_a_plain_list_of_its_own_works() -> None:
    """One that overrides `seen` gets no help with the order of its collections, and loses nothing."""

    class Shelf(Repository[Book]):
        seen: Any = None

    uow = UnitOfWork()
    shelf = Shelf()
    shelf.seen = [Book(1), Book(2)]
    uow.shelf = shelf  # type: ignore[attr-defined]
    shelf.seen[1].say("a")
    shelf.seen[0].say("b")
    first = [record.message for record in uow.gather(None)]
    shelf.seen[1].say("c")
    second = [record.message for record in uow.gather(None)]

    assert ([Said("a"), Said("b")], [Said("c")]) == (first, second)


async def test_a_repository_forgets_its_models_when_the_transaction_ends(library: Library) -> None:
    """So that a unit of work which is used again does not hear of the models of last time."""
    book = Book(1)
    for end in (library.commit, library.rollback):
        async with library:
            library.books.add(book)
            book.say("a")
            await end()
        book.say("not ours")

        assert ([], [Said("not ours")]) == (library.books.seen, book.messages)
        assert [] == library.said()
        book.messages.clear()


@pytest.mark.parametrize("first", ["a", "b"])
async def test_what_is_raised_in_transactions_that_overlap_is_collected_once(first: str) -> None:
    """A repository that keeps its models in memory hands the same one to both. The end of one is not the end of the other."""
    units, book = {"a": Library(), "b": Library()}, Book(1)
    other = units["b" if first == "a" else "a"]
    async with other:
        async with units[first]:
            for unit in units.values():
                unit.books.add(book)
            book.say("both see it")
            assert [["both see it"], []] == [unit.said() for unit in units.values()]
            await units[first].commit()
        book.say("one sees it")
        assert ["one sees it"] == other.said()
        await other.rollback()
    assert [] == book.messages


async def test_collecting_costs_what_was_raised_and_not_what_was_seen(library: Library) -> None:
    """Ten thousand silent books are not looked through after each handler."""
    looks: list[int] = []

    class Watched(Model):
        id: int

        @property
        def messages(self) -> list[Any]:
            looks.append(self.id)
            return super().messages

    shelf: Repository[Watched] = Repository()
    library.shelf = shelf  # type: ignore[attr-defined]
    books = [Watched(number) for number in range(100)]
    shelf.seen.extend(books)
    books[7].messages.append(Said("a"))
    looks.clear()

    assert ["a"] == library.said()
    assert [] == looks
