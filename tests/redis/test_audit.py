"""The audit against a real server: what it counts, what it misses of retries, and whose groups it knows nothing about."""

import logging
from typing import Any

import anyio
import pytest

from eventbus import Event, MessageBus, Metadata, Reject, Retry, Subscriber, UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.redis.audit import Audit
from eventbus.redis.keys import Keys
from eventbus.testing import wait_until
from eventbus.transport import Subscribe

S = "club"
KEYS = Keys(S, "g")


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True, stream=S)
    number: int


async def publish(transport: RedisTransport, count: int) -> None:
    async with UnitOfWork(transport=transport) as uow:
        for number in range(count):
            uow.emit(BookRegistered(number))
        await uow.commit()


async def handle(transport: RedisTransport, error: Exception | None = None) -> None:
    """All that is deliverable, with this outcome."""
    bus = MessageBus()

    @bus.listen
    async def register(event: BookRegistered) -> None:
        if error is not None:
            raise error

    async def settled() -> bool:
        backlog = await transport.backlog(S, "g")
        return not (backlog.unread or backlog.pending or backlog.next_in == 0)

    async with anyio.create_task_group() as tasks:
        await tasks.start(Subscriber(bus=bus, transport=transport, streams=[S], group="g").run)
        await wait_until(settled, description="all is settled but what waits")
        tasks.cancel_scope.cancel()


async def audited(transport: RedisTransport) -> Audit:
    found = await transport.audit(S, "g")
    assert found is not None
    return found


@pytest.mark.parametrize("start", ["0", "$"])
async def test_of_a_group_of_another_program_nothing_is_known(live: RedisTransport, server: Any, start: str) -> None:
    """Its past is no loss; from when we join it everything is counted."""
    await publish(live, 5)
    server.client.xgroup_create(S, "g", start)
    read = server.client.xreadgroup("g", "stranger", {S: ">"}, count=2)
    if read:
        server.client.xack(S, "g", read[0][1][0][0])
    found = await audited(live)

    assert (False, True, 0) == (found.counted, bool(found), found.lost)
    assert f"{S}/g: pending {found.pending}, unread {found.unread}: not counted, for no subscriber has joined it" == str(found)

    async with live.subscribe(Subscribe(streams=[S], group="g")):
        await publish(live, 3)
        joined = await audited(live)

    assert (True, 0, 3 + found.pending + found.unread) == (joined.counted, joined.lost, joined.added)

    newest = server.client.xrevrange(S, count=1)[0][0]
    server.client.xdel(S, newest)

    assert 1 == (await audited(live)).lost


async def test_the_counts_begin_anew_when_they_were_deleted(live: RedisTransport, server: Any) -> None:
    """With what waits and what is in hand: none of it is taken for lost, then or later."""
    await publish(live, 4)
    await handle(live, Retry(after=1000))
    await publish(live, 4)
    server.client.delete(KEYS.state)
    async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
        await subscription.receive(1)
        found = await audited(live)
        due(server)

    assert (True, True, 0, 0) == (found.counted, bool(found), found.lost, found.lost_retries)

    await handle(live)
    found = await audited(live)

    assert (True, 0, 0, 0) == (bool(found), found.lost, found.lost_retries, found.pending + found.unread + found.waiting)


async def test_a_full_server_lets_us_in_before_the_counts_begin(live: RedisTransport, server: Any) -> None:
    """It is drained all the same; they begin when it has room."""
    await publish(live, 4)
    async with live.subscribe(Subscribe(streams=[S], group="g")):
        pass
    server.client.delete(KEYS.state)
    server.fill()
    await handle(live)
    found = await audited(live)

    assert (False, 0, 0) == (found.counted, found.pending, found.unread)


def due(server: Any) -> None:
    """What waits need wait no longer."""
    for member in server.client.zrange(KEYS.delayed, 0, -1):
        server.client.zadd(KEYS.delayed, {member: 1})


@pytest.mark.parametrize("where", ["delayed set", "both keys", "their entries", "retry stream"])
async def test_retries_that_were_removed_are_missed(
    live: RedisTransport, server: Any, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever removed them from where they were. The janitor says it too."""
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.05)
    await publish(live, 5)
    await handle(live, Retry(after=1000))
    found = await audited(live)

    assert (5, 0, 5, 0, True) == (found.delayed, found.moved, found.waiting, found.lost_retries, bool(found))

    match where:
        case "delayed set":
            server.client.zpopmin(KEYS.delayed, 2)
        case "both keys":
            server.client.delete(KEYS.delayed, KEYS.delayed_entries)
        case "their entries":
            server.client.hdel(KEYS.delayed_entries, *server.client.zrange(KEYS.delayed, 0, 1))
            due(server)
        case _:
            due(server)
            async with live.subscribe(Subscribe(streams=[S], group="g")) as subscription:
                await subscription.receive(1)
                server.client.xtrim(KEYS.retry, maxlen=3, approximate=False)
    caplog.set_level(logging.ERROR)
    await handle(live)
    async with live.subscribe(Subscribe(streams=[S], group="g")):
        await wait_until(lambda: "LOST, removed by something else" in caplog.text, description="the janitor has said it")
    gone = 5 if where == "both keys" else 2
    found = await audited(live)

    assert (gone, 0, False) == (found.lost_retries, found.lost, bool(found))
    assert f"{gone} LOST, removed by something else" in str(found)


async def test_every_way_of_a_retry_adds_up(live: RedisTransport, server: Any) -> None:
    """Retried again, buried and requeued from the retry stream, and settled there."""
    await publish(live, 6)
    for outcome in (Retry(after=1000), Retry(after=1000), Reject("no"), None):
        await handle(live, outcome)
        due(server)
        if isinstance(outcome, Reject):
            for letter in (await live.dead_letters(S, "g"))[:4]:
                assert await live.requeue(letter)
        found = await audited(live)

        assert (True, 0, 0) == (bool(found), found.lost, found.lost_retries)
        assert found.delayed == found.moved + found.waiting

    assert (12, 12, 0) == (found.delayed, found.moved, found.waiting)
    assert f"{S}/g: added 6 = settled 6 + pending 0 + unread 0: adds up; retries: delayed 12, moved 12, waiting 0" == str(found)
