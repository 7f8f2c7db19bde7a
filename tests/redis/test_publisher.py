"""Publishing to a real server: in order, all or none, once, together, and what is said when it fails."""

import asyncio
import functools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from eventbus import Event, Metadata, UnitOfWork
from eventbus.envelope import Envelope, new_id
from eventbus.errors import EncodeError, Full, PublishError, Refused, TransactionError, Unavailable
from eventbus.redis import RedisTransport
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer

S = "club"


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True, stream=S)
    title: str


def envelope(payload: bytes = b"{}", stream: str | None = S) -> Envelope:
    return Envelope(new_id(), datetime.now(UTC), "book_registered_v1", payload, {"trace": "1"}, stream)


@pytest.fixture
async def transport(proxy: FaultProxy) -> AsyncIterator[RedisTransport]:
    async with RedisTransport(proxy.url, stream=S) as transport:
        yield transport


async def test_a_batch_is_one_command(transport: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """A commit of a hundred events is one round trip by one script."""
    await transport.publish([envelope()])
    before = proxy.commands.total()

    ids = await transport.publish([envelope() for _ in range(100)])

    assert 1 == proxy.commands.total() - before
    assert ids == [id.decode() for id, _ in server.client.xrange(S)][1:]


async def test_the_fields_are_those_of_the_wire_format(transport: RedisTransport, server: Any) -> None:
    """id, created_at, type, payload, in this order, then the headers."""
    sent = envelope(b'{"title":"Dune"}')
    await transport.publish([sent])

    [[_, fields]] = server.client.xrange(S)
    assert [b"id", b"created_at", b"type", b"payload", b"trace"] == list(fields)
    assert [sent.id.encode(), b"book_registered_v1", b'{"title":"Dune"}'] == [fields[f] for f in (b"id", b"type", b"payload")]
    assert fields[b"created_at"].endswith(b"Z")


async def test_several_streams_go_in_one_write(transport: RedisTransport, server: Any) -> None:
    """Each envelope to its stream, the ids in the order of the envelopes."""
    sent = [envelope(stream="a"), envelope(stream=None), envelope(stream="a")]
    first, own, second = await transport.publish(sent)

    assert [first, second] == [id.decode() for id, _ in server.client.xrange("a")]
    assert [own] == [id.decode() for id, _ in server.client.xrange(S)]


async def test_the_publishes_of_many_tasks_go_together(transport: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """Fifty tasks that publish at once need far fewer than fifty round trips, and each gets its own ids."""
    await transport.publish([envelope()])
    before = proxy.commands.total()
    sent = [envelope() for _ in range(50)]

    replies = await asyncio.gather(*[transport.publish([one]) for one in sent])

    assert proxy.commands.total() - before <= 3
    stored = {fields[b"id"].decode(): id.decode() for id, fields in server.client.xrange(S)}
    assert [[stored[one.id]] for one in sent] == replies


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "reply lost"])
async def test_a_lost_connection_adds_nothing_twice(
    transport: RedisTransport, proxy: FaultProxy, server: Any, after: bool
) -> None:
    """The call is asked again and the script knows what it has added."""
    for _ in range(20):
        proxy.cut("publish", after=after)
        await transport.publish([envelope(), envelope()])

    assert 20 == proxy.faults
    assert 40 == server.client.xlen(S)


async def test_coalesced_publishes_survive_lost_replies(transport: RedisTransport, proxy: FaultProxy, server: Any) -> None:
    """Many tasks, one line that is cut again and again: each envelope is there once, and everybody gets ids."""
    for _ in range(15):
        proxy.cut("publish", after=True, skip=1)

    async def publisher() -> list[str]:
        return [id for _ in range(20) for id in await transport.publish([envelope()])]

    ids = [id for ids in await asyncio.gather(*[publisher() for _ in range(10)]) for id in ids]

    assert 200 == len(set(ids)) == server.client.xlen(S)
    assert proxy.faults > 10


async def test_a_server_that_is_not_there_leaves_the_envelopes_not_sent(proxy: FaultProxy) -> None:
    """They are in the error, and the error is also an Unavailable."""
    proxy.refusing = True
    sent = [envelope(), envelope()]
    async with RedisTransport(proxy.url, stream=S, patience=0.2) as transport:
        with pytest.raises(PublishError) as caught:
            await transport.publish(sent)

    assert ("not sent", sent) == (caught.value.outcome, list(caught.value.envelopes))
    assert isinstance(caught.value, Unavailable)


async def test_when_the_reply_is_lost_for_good_the_outcome_is_unknown(proxy: FaultProxy, server: Any) -> None:
    """And publishing the same envelopes again is safe."""
    sent = [envelope()]
    async with RedisTransport(proxy.url, stream=S, patience=0.2) as transport:
        proxy.cut("publish", after=True, times=100)
        with pytest.raises(PublishError) as caught:
            await transport.publish(sent)
        assert "unknown" == caught.value.outcome
        proxy.heal()
        await transport.publish(caught.value.envelopes)

    assert 1 == server.client.xlen(S)


async def test_a_line_that_went_silent_is_given_up_and_the_call_made_again(
    proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it took to notice: patience counts from then."""
    async with RedisTransport(proxy.url, stream=S, patience=0.01) as transport:
        channel = transport._publisher._channel
        monkeypatch.setattr(channel, "call", functools.partial(channel.call, timeout=0.3))
        await transport.publish([envelope()])
        proxy.silence("publish", after=True)

        await transport.publish([envelope()])

    assert (1, 2, 2) == (proxy.faults, proxy.connections, server.client.xlen(S))


async def test_only_the_streams_that_gave_no_answer_are_asked_again(proxy: FaultProxy, server: Any) -> None:
    """And what has come is known: when the line is lost after that, the error is about the others."""
    known, other = envelope(stream="a"), envelope(stream="b")
    async with RedisTransport(proxy.url, stream=S, patience=0.2) as transport:
        await transport.publish([known])
        before = proxy.commands["publish"]
        server("REPLICAOF", "127.0.0.1", "1")  # what it knows it can tell, and it adds nothing
        try:
            proxy.cut("publish", after=True, skip=2, times=100)
            with pytest.raises(PublishError) as caught:
                await transport.publish([known, other])
        finally:
            server("REPLICAOF", "NO", "ONE")

    assert ("unknown", [other]) == (caught.value.outcome, list(caught.value.envelopes))
    assert 2 + proxy.faults == proxy.commands["publish"] - before


async def test_a_full_server_refuses_all_of_a_batch(transport: RedisTransport, server: Any) -> None:
    """`Full`, with the envelopes; nothing was added."""
    await transport.publish([envelope()])
    server.fill()

    with pytest.raises(Full) as caught:
        await transport.publish([envelope(), envelope()])
    assert isinstance(caught.value, PublishError)
    assert ("not sent", 2, 1) == (caught.value.outcome, len(caught.value.envelopes), server.client.xlen(S))


async def test_an_envelope_that_no_script_can_add_stops_no_other(transport: RedisTransport, server: Any) -> None:
    """It would fail in the midst of a batch, with what goes before it added and not remembered."""
    good = envelope()
    strange = replace(envelope(), headers={f"h{n}": "" for n in range(4000)})
    publishing = asyncio.ensure_future(transport.publish([good]))
    with pytest.raises(EncodeError, match="4000 headers"):
        await transport.publish([good, strange])
    [id] = await publishing

    assert [id.encode()] == [id for id, _ in server.client.xrange(S)]


async def test_one_wrong_stream_does_not_stop_the_others(transport: RedisTransport, server: Any) -> None:
    """The error carries what was not sent, and no others; it says which key is the trouble."""
    server.client.set("wrong", "a string")
    good, bad = envelope(stream="good"), envelope(stream="wrong")

    with pytest.raises(PublishError, match="wrong") as caught:
        await transport.publish([good, bad])

    assert isinstance(caught.value, Refused)
    assert [bad] == list(caught.value.envelopes)
    assert 1 == server.client.xlen("good")


async def test_a_script_that_the_server_forgot_is_sent_again(transport: RedisTransport, server: Any) -> None:
    """A restarted server knows no scripts."""
    await transport.publish([envelope()])
    server.client.script_flush()

    await transport.publish([envelope()])
    assert 2 == server.client.xlen(S)


async def test_what_a_server_forgot_is_asked_for_once_it_can_tell(
    transport: RedisTransport, proxy: FaultProxy, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is back and has not loaded its data yet, or is a replica without a master, answers no to everything."""
    _, newest = await transport.publish([envelope(), envelope()])
    server.client.xdel(S, newest)
    server("CONFIG", "SET", "replica-serve-stale-data", "no")
    server("REPLICAOF", "127.0.0.1", "1")
    try:
        proxy.reset()
        publishing = asyncio.ensure_future(transport.publish([envelope()]))
        await wait_until(lambda: proxy.commands["xinfo"] > 0, description="the publisher asks")
    finally:
        server("REPLICAOF", "NO", "ONE")
        server("CONFIG", "SET", "replica-serve-stale-data", "yes")
    await publishing

    [said] = [message for message in caplog.messages if "the server has forgotten what was published last" in message]
    assert f"{newest} is not there any more" in said


async def test_a_server_that_came_back_empty_is_asked_once_and_it_is_said_once(
    transport: RedisTransport, proxy: FaultProxy, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stream to which nothing was published since: the log tells what to publish again, and no publish after that is slower for it."""
    await transport.publish([envelope(stream="a"), envelope(stream="b")])
    server.client.flushall()
    proxy.reset()
    for _ in range(3):
        await transport.publish([envelope(stream="b")])

    said = [message for message in caplog.messages if "the server has forgotten what was published last" in message]
    assert ["a"] == [message.partition(":")[0] for message in said]
    assert 2 == proxy.commands["xinfo"]  # once for each stream


async def test_what_a_replica_has_not_got_is_said_once_however_long_it_is_not_promoted(
    transport: RedisTransport, proxy: FaultProxy, server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that waits for the end of a failover connects anew from time to time, and one line for each would fill the log."""
    monkeypatch.setattr("eventbus.redis.link.RECONNECT_EVERY", 0.0)
    _, newest = await transport.publish([envelope(), envelope()])
    server.client.xdel(S, newest)
    server("REPLICAOF", "127.0.0.1", "1")
    try:
        proxy.reset()
        publishing = asyncio.ensure_future(transport.publish([envelope()]))
        await wait_until(lambda: proxy.connections >= 5, description="the publisher connects anew, again and again")
    finally:
        server("REPLICAOF", "NO", "ONE")
    await publishing

    assert 1 == sum("the server has forgotten what was published last" in message for message in caplog.messages)


async def test_a_cancelled_publisher_does_not_take_others_with_it(
    transport: RedisTransport, proxy: FaultProxy, server: Any
) -> None:
    """Whoever waits behind the one that is cancelled is still published, and once."""
    await transport.publish([envelope()])
    proxy.stall()
    first = asyncio.ensure_future(transport.publish([envelope()]))
    others = [asyncio.ensure_future(transport.publish([envelope()])) for _ in range(3)]
    while proxy.commands["publish"] < 2:
        await asyncio.sleep(0.001)
    others[0].cancel()
    first.cancel()
    proxy.resume()

    [ids_1], [ids_2] = await asyncio.gather(*others[1:])
    assert {ids_1, ids_2} <= {id.decode() for id, _ in server.client.xrange(S)}
    assert first.cancelled() or first.done()


async def test_what_a_cancelled_task_had_sent_for_another_is_not_called_not_sent(proxy: FaultProxy, server: Any) -> None:
    """Its reply was under way when the one that sent it was cancelled, and then the server could not be asked again."""
    async with RedisTransport(proxy.url, stream=S, patience=0.2) as transport:
        await transport.publish([envelope()])
        transport._publisher._crowded = True  # so that both go in one write
        proxy.silence("publish", after=True)
        leading, other = [asyncio.ensure_future(transport.publish([envelope()])) for _ in range(2)]
        await wait_until(lambda: server.client.xlen(S) == 3, description="both are in the stream")
        proxy.refusing = True
        leading.cancel()
        with pytest.raises(PublishError) as caught:
            await other

    assert leading.cancelled()
    assert "unknown" == caught.value.outcome


async def test_publishing_through_a_closed_transport_raises(redis_server: LiveServer) -> None:
    """Entered again, it works again."""
    transport = RedisTransport(redis_server.url, stream=S)
    async with transport:
        await transport.publish([envelope()])
    with pytest.raises(PublishError, match="closed"):
        await transport.publish([envelope()])
    async with transport:
        await transport.publish([envelope()])


async def test_a_commit_whose_publish_fails_can_be_published_later(proxy: FaultProxy, server: Any) -> None:
    """The transaction is committed, the error says so, and `publish_pending` tries again."""
    async with RedisTransport(proxy.url, stream=S, patience=0.1) as transport:
        uow = UnitOfWork(transport=transport)
        async with uow:
            uow.emit(BookRegistered(title="Dune"))
            proxy.refusing = True
            with pytest.raises(PublishError):
                await uow.commit()
            assert "committed" == uow.status.value
            with pytest.raises(TransactionError):
                await uow.commit()
            proxy.refusing = False
            await uow.publish_pending()

    assert [b'{"title":"Dune"}'] == [fields[b"payload"] for _, fields in server.client.xrange(S)]


async def test_the_password_is_nowhere_to_be_seen() -> None:
    """Not in a repr, and in no error."""
    transport = RedisTransport("redis://user:canary@127.0.0.1:1/0", patience=0.01)
    with pytest.raises(PublishError) as caught:
        await transport.publish([envelope()])

    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in f"{transport!r} {error!r} {error}"
        error = error.__cause__ or error.__context__
