"""The mailer and the catalog: what each makes of what was published, in memory and on a real server."""

from dataclasses import replace
from uuid import uuid4

import pytest

from eventbus import MemoryTransport, MessageBus, Subscriber, Transport
from eventbus.redis import RedisTransport
from eventbus.testing import drain
from examples.reading_club import catalog as catalog_service
from examples.reading_club.adapters.memory import InMemoryLibrary
from examples.reading_club.adapters.smtp import FakeSmtp
from examples.reading_club.catalog import Catalog, put_in_catalog
from examples.reading_club.domain.messages import BookRegistered, RegisterBook
from examples.reading_club.mailer import announce, mailer
from examples.reading_club.publisher import register

TITLES = ["Children of Dune", "Dune", "Dune Messiah"]


@pytest.fixture
def smtp() -> FakeSmtp:
    return FakeSmtp()


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


async def publish(transport: Transport) -> None:
    for title in TITLES:
        command = RegisterBook(id=uuid4(), isbn=str(uuid4()), title=title, author="Frank Herbert")
        await register(command, InMemoryLibrary(transport=transport))


def mailer_on(transport: Transport, smtp: FakeSmtp) -> Subscriber:
    """The service as it is, with a mail server and a transport of the test; one at a time, so that the order is that of the stream."""
    bus = MessageBus(smtp=lambda: smtp)
    bus.add_listener(BookRegistered, announce)

    return replace(mailer, bus=bus, transport=transport, streams=[transport.stream], concurrency=1)


def catalog_on(transport: Transport, catalog: Catalog) -> Subscriber:
    bus = MessageBus(catalog=lambda: catalog)
    bus.add_listener(catalog_service.BookRegistered, put_in_catalog)

    return replace(catalog_service.catalog, bus=bus, transport=transport, streams=[transport.stream])


async def test_members_get_a_letter_about_each_book(transport: MemoryTransport, smtp: FakeSmtp) -> None:
    await publish(transport)

    await drain(mailer_on(transport, smtp))

    assert [f"new on the shelf: {title} by Frank Herbert" for title in TITLES] == smtp.sent


async def test_a_busy_mail_server_is_asked_again_when_it_said(transport: MemoryTransport) -> None:
    """Nothing is lost meanwhile, and the minutes of waiting take no time here."""
    smtp = FakeSmtp(busy=2)
    await publish(transport)
    before = transport.clock.time()

    statistics = await drain(mailer_on(transport, smtp))

    assert 3 == len(smtp.sent)
    assert (3, 2, 0) == (statistics.handled, statistics.retried, statistics.buried)
    assert transport.clock.time() - before >= 60


async def test_a_catalog_entry_is_made_once(transport: MemoryTransport, catalog: Catalog) -> None:
    """A delivery may come twice; here everything comes to a second group with the same catalog."""
    await publish(transport)

    await drain(catalog_on(transport, catalog))
    await drain(replace(catalog_on(transport, catalog), group="catalog-again"))

    assert TITLES == catalog.titles_of("Frank Herbert")


async def test_on_a_real_server_both_groups_receive_everything(
    live_transport: RedisTransport, smtp: FakeSmtp, catalog: Catalog
) -> None:
    """The same flow over Redis or Valkey: each group has the whole stream for itself."""
    await publish(live_transport)

    await drain(mailer_on(live_transport, smtp))
    await drain(catalog_on(live_transport, catalog))

    assert [f"new on the shelf: {title} by Frank Herbert" for title in TITLES] == smtp.sent
    assert TITLES == catalog.titles_of("Frank Herbert")
    for group in ("mailer", "catalog"):
        assert not await live_transport.backlog(live_transport.stream, group)
        assert [] == await live_transport.dead_letters(live_transport.stream, group)
