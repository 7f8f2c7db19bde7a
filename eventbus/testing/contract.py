"""`TransportContract`: what `eventbus.transport` promises, as tests to run over any transport."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import pytest

from eventbus.envelope import Envelope, new_id, now
from eventbus.errors import ConfigurationError, EncodeError, PublishError, Retry, TransportError
from eventbus.transport import Backlog, Delivery, Subscribe, Subscription, Transport, utc


class TransportContract:
    """The promises of a transport. Make a subclass in a test module, and give it your transport, opened, as the fixture `transport`:

    ```python
    from eventbus.testing import TransportContract


    class TestOurTransport(TransportContract):
        @pytest.fixture
        async def transport(self):
            async with OurTransport("ours://localhost") as transport:
                yield transport
    ```

    The tests are coroutines, run by anyio's pytest plugin on every backend that is installed; a fixture `anyio_backend` in the subclass
    that returns ``"asyncio"`` leaves it at that. Every test has streams of its own, so the server behind a transport may be a shared one.
    It must write entry ids as ``<milliseconds since 1970>-<number>``, for a group that begins at a datetime.

    What differs between transports is overridden:

    * `lease`: seconds, as short as the transport stands without losing what it holds on a slow machine.
    * `patience`: seconds after which something has not come.
    * `tolerance`: seconds by which what is due may be late.
    * `pass_time`, `time`: for a transport with a clock of its own.
    * `crash`, `freeze` and `thaw`: how a consumer dies, stands still and goes on, as a killed or a stopped process would. A subscription
      that has the methods `abandon`, `freeze` and `thaw` needs nothing here.
    """

    pytestmark: pytest.MarkDecorator | list[pytest.MarkDecorator] = pytest.mark.anyio

    lease: float = 0.3
    patience: float = 10.0
    tolerance: float = 2.0

    @pytest.fixture
    def stream(self) -> str:
        """The name of a stream that nobody else uses."""
        return f"contract-{secrets.token_hex(6)}"

    # ------------------------------------------------------------------------------------------------- what may differ

    async def pass_time(self, transport: Any, seconds: float) -> None:
        await anyio.sleep(seconds)

    def time(self, transport: Any) -> float:
        return time.monotonic()

    async def crash(self, subscription: Any) -> None:
        """Kill the consumer: it says nothing more, and what it holds stays its own until the lease runs out."""
        subscription.abandon()

    async def freeze(self, subscription: Any) -> None:
        """Stop the consumer: it does nothing until `thaw`, and does not know it."""
        subscription.freeze()

    async def thaw(self, subscription: Any) -> None:
        subscription.thaw()

    # --------------------------------------------------------------------------------------------------------- publish

    async def test_what_was_published_before_the_group_is_delivered_to_it_in_order(
        self, transport: Transport, stream: str
    ) -> None:
        """A new group that begins at "0" gets the whole history."""
        envelopes = things(stream, 100)
        ids = [*await transport.publish(envelopes[:60]), *await transport.publish(envelopes[60:])]
        async with transport.subscribe(self.request(stream)) as subscription:
            deliveries = await self.take(subscription, 100)

            assert [] == differences(ids, [delivery.entry_id for delivery in deliveries])
            assert [] == differences(envelopes, [delivery.envelope for delivery in deliveries])

    async def test_what_is_published_later_wakes_a_waiting_consumer(self, transport: Transport, stream: str) -> None:
        """Nobody has to ask again."""
        [envelope] = things(stream, 1)
        found: list[Delivery] = []
        async with transport.subscribe(self.request(stream)) as subscription, anyio.create_task_group() as tasks:

            async def wait() -> None:
                found.extend(await self.take(subscription, 1))

            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await transport.publish([envelope])

        assert [envelope] == [delivery.envelope for delivery in found]

    async def test_a_delivery_says_where_it_is_from(self, transport: Transport, stream: str) -> None:
        """Stream, entry, group, consumer, and that it is the first attempt."""
        [id] = await transport.publish(things(stream, 1))
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)

            assert (stream, id, "readers", subscription.consumer, 1) == (
                delivery.stream, delivery.entry_id, delivery.group, delivery.consumer, delivery.attempt
            )  # fmt: skip
            assert (None, None, False, False) == (
                delivery.first_failure, delivery.last_error, delivery.suspect, delivery.lost
            )  # fmt: skip

    @pytest.mark.parametrize(
        ("payload", "headers"),
        [
            (b'{"title":"Dune"}', {}),
            (b"", {"empty": ""}),
            (bytes(range(256)) * 20, {"content_type": "application/octet-stream"}),
            ('{"title":"Дюна 砂の惑星 🏜"}'.encode(), {"herkunft": "Bücherei № 5", "многое": "\r\n\t \x00"}),
            (b"\r\n$-1\r\n*0\r\n", {f"header-{n}": "v" * n for n in range(64)}),
        ],
        ids=["json", "empty", "bytes", "unicode", "protocol"],
    )
    async def test_payload_and_headers_arrive_as_they_were_sent(
        self, transport: Transport, stream: str, payload: bytes, headers: dict[str, str]
    ) -> None:
        """Byte for byte, with unicode, control characters and empty values."""
        envelope = msgspec.structs.replace(things(stream, 1)[0], payload=payload, headers=headers)
        await transport.publish([envelope])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)

            assert envelope == delivery.envelope
            assert list(headers.items()) == list(delivery.envelope.headers.items())

    async def test_streams_never_mix(self, transport: Transport, stream: str) -> None:
        """A group has its own place in each stream, whatever it is called."""
        here, there = things(f"{stream}.a", 20), things(f"{stream}.b", 20)
        await transport.publish([envelope for pair in zip(here, there, strict=True) for envelope in pair])
        for name, expected in ((f"{stream}.a", here), (f"{stream}.b", there)):
            async with transport.subscribe(self.request(name)) as subscription:
                deliveries = await self.take(subscription, 20)

                assert expected == [delivery.envelope for delivery in deliveries]
                assert {name} == {delivery.stream for delivery in deliveries}

    async def test_an_envelope_that_names_no_stream_goes_to_the_default(self, transport: Transport) -> None:
        """The transport's own."""
        group = f"readers-{secrets.token_hex(4)}"
        async with transport.subscribe(self.request(transport.stream, group=group, start="$")) as subscription:
            [envelope] = things(None, 1)
            await transport.publish([envelope])
            [delivery] = await self.take(subscription, 1)

            assert msgspec.structs.replace(envelope, stream=transport.stream) == delivery.envelope

            subscription.ack(delivery)

    async def test_an_envelope_id_is_added_once(self, transport: Transport, stream: str) -> None:
        """Whoever lost the reply asks again, and gets the ids that there are."""
        first, second, third = things(stream, 3)
        ids = await transport.publish([first, second])

        assert ids == await transport.publish([first, second])
        assert [ids[1], ids[0]] == await transport.publish([second, first])

        again = await transport.publish([first, third, third])

        assert [ids[0], again[1], again[1]] == again

        await self.expect(transport, stream, [first, second, third])

    async def test_an_envelope_id_is_added_once_by_many_at_once(self, transport: Transport, stream: str) -> None:
        """Also when they do not know of each other."""
        envelopes = things(stream, 5)
        answers: list[list[str]] = []

        async def publish() -> None:
            answers.append(await transport.publish(envelopes))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(publish)

        assert [answers[0]] * 10 == answers

        await self.expect(transport, stream, envelopes)

    async def test_the_same_envelope_may_go_to_two_streams(self, transport: Transport, stream: str) -> None:
        """An id is remembered per stream."""
        [envelope] = things(f"{stream}.a", 1)
        copy = msgspec.structs.replace(envelope, stream=f"{stream}.b")
        await transport.publish([envelope, copy])

        await self.expect(transport, f"{stream}.a", [envelope])
        await self.expect(transport, f"{stream}.b", [copy])

    async def test_any_text_is_an_id_but_the_empty_one(self, transport: Transport, stream: str) -> None:
        """An envelope that nothing tells from another goes nowhere, and nothing of its batch."""
        first, second, nameless = things(stream, 3)
        odd = msgspec.structs.replace(first, id="window")
        with pytest.raises(EncodeError, match="empty id"):
            await transport.publish([second, msgspec.structs.replace(nameless, id="")])
        await transport.publish([odd])

        await self.expect(transport, stream, [odd])

    async def test_publishing_nothing_is_fine(self, transport: Transport) -> None:
        """A unit of work that raised nothing has nothing to say."""
        assert [] == await transport.publish([])

    async def test_what_many_publish_at_once_is_all_there_and_each_batch_in_order(
        self, transport: Transport, stream: str
    ) -> None:
        """Publishers wait for nobody, and lose nothing."""
        batches = [things(stream, 10) for _ in range(20)]
        answers: dict[int, list[str]] = {}

        async def publish(number: int) -> None:
            answers[number] = await transport.publish(batches[number])

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(publish, number)
        async with transport.subscribe(self.request(stream)) as subscription:
            deliveries = await self.take(subscription, 200)

        published = {
            id: envelope.id for number, ids in answers.items() for id, envelope in zip(ids, batches[number], strict=True)
        }

        assert [] == differences(
            sorted(published.items()), sorted((delivery.entry_id, delivery.envelope.id) for delivery in deliveries)
        )

        place = {delivery.envelope.id: index for index, delivery in enumerate(deliveries)}
        for batch in batches:
            places = [place[envelope.id] for envelope in batch]

            assert sorted(places) == places

    async def test_a_closed_transport_publishes_nothing_until_it_is_opened_again(self, transport: Transport, stream: str) -> None:
        """And the error has what was not sent."""
        before, refused, after = things(stream, 3)
        await transport.publish([before])
        await transport.__aexit__(None, None, None)
        try:
            with pytest.raises(PublishError) as caught:
                await transport.publish([refused])
        finally:
            await transport.__aenter__()

        assert ((refused,), "not sent") == (caught.value.envelopes, caught.value.outcome)
        assert isinstance(caught.value, TransportError)

        await transport.publish([after])

        await self.expect(transport, stream, [before, after])

    async def test_who_subscribes_opens_it_again(self, transport: Transport, stream: str) -> None:
        """What handles deliveries publishes too; and it is closed again when that has ended."""
        envelopes = things(stream, 3)
        await transport.publish(envelopes[:1])
        await transport.__aexit__(None, None, None)
        try:
            async with transport.subscribe(self.request(stream)) as subscription:
                [delivery] = await self.take(subscription, 1)
                await transport.publish(envelopes[1:2])
                subscription.ack(delivery)
            with pytest.raises(PublishError):
                await transport.publish(envelopes[2:])
        finally:
            await transport.__aenter__()

        await self.expect(transport, stream, envelopes[1:2])

    async def test_a_name_that_no_stream_or_group_can_have_is_a_mistake(self, transport: Transport, stream: str) -> None:
        """Wherever it is given, and not a stream or group with nothing in it."""
        for names in ((f"{stream}/a", "readers"), (stream, "two words")):
            with pytest.raises(ConfigurationError):
                await transport.backlog(*names)
            with pytest.raises(ConfigurationError):
                await transport.dead_letters(*names)
            with pytest.raises(ConfigurationError):
                async with transport.subscribe(self.request(names[0], group=names[1])):
                    pass

    async def test_it_is_open_while_anybody_has_it_open(self, transport: Transport, stream: str) -> None:
        """Who leaves it closes it for himself alone."""
        envelopes = things(stream, 2)
        async with transport:
            async with transport:
                await transport.publish(envelopes[:1])
            await transport.publish(envelopes[1:])

        await self.expect(transport, stream, envelopes)

    # ---------------------------------------------------------------------------------------------------------- groups

    async def test_two_groups_each_get_everything(self, transport: Transport, stream: str) -> None:
        """What one of them does is nothing to the other."""
        envelopes = things(stream, 20)
        await transport.publish(envelopes)
        async with (
            transport.subscribe(self.request(stream, group="mailer")) as mailer,
            transport.subscribe(self.request(stream, group="catalog")) as catalog,
        ):
            for subscription in (mailer, catalog):
                deliveries = await self.take(subscription, 20)

                assert envelopes == [delivery.envelope for delivery in deliveries]

                for delivery in deliveries:
                    subscription.ack(delivery)
                await subscription.flush()

    async def test_many_consumers_of_a_group_get_everything_once(self, transport: Transport, stream: str) -> None:
        """They share the work."""
        envelopes = things(stream, 200)
        handled: Counter[str] = Counter()
        done = anyio.Event()

        async def consume() -> None:
            async with transport.subscribe(self.request(stream)) as subscription, anyio.create_task_group() as tasks:

                async def stop() -> None:
                    await done.wait()
                    subscription.stop()

                tasks.start_soon(stop)
                while deliveries := await subscription.receive(7):
                    for delivery in deliveries:
                        handled[delivery.envelope.id] += 1
                        subscription.ack(delivery)
                    if len(handled) == len(envelopes):
                        done.set()

        with anyio.fail_after(2 * self.patience):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(consume)
                for start in range(0, 200, 25):
                    await transport.publish(envelopes[start : start + 25])

        assert [] == differences(sorted((envelope.id, 1) for envelope in envelopes), sorted(handled.items()))
        assert not await transport.backlog(stream, "readers")

    async def test_what_was_given_back_comes_before_what_is_new_where_order_matters(
        self, transport: Transport, stream: str
    ) -> None:
        """As for a subscriber that handles one at a time, and is started again."""
        envelopes = things(stream, 20)
        await transport.publish(envelopes)
        async with transport.subscribe(self.request(stream, ordered=True)) as subscription:
            deliveries = await self.take(subscription, 12)
            for delivery in deliveries[:2]:
                subscription.ack(delivery)
        async with transport.subscribe(self.request(stream, ordered=True)) as subscription:
            for envelope in envelopes[2:]:
                [delivery] = await self.take(subscription, 1)

                assert envelope == delivery.envelope

                subscription.ack(delivery)

    async def test_a_group_may_begin_at_the_end(self, transport: Transport, stream: str) -> None:
        """`start="$"`: what was there is not its business, what comes is."""
        old, new = things(stream, 2)
        await transport.publish([old])
        async with transport.subscribe(self.request(stream, start="$")) as subscription:
            await transport.publish([new])

            assert [new] == [delivery.envelope for delivery in await self.take(subscription, 1)]

    async def test_a_group_may_begin_after_an_entry(self, transport: Transport, stream: str) -> None:
        """`start` is an id: what comes after it is delivered."""
        envelopes = things(stream, 5)
        ids = await transport.publish(envelopes)

        await self.expect(transport, stream, envelopes[2:], start=ids[1])

    async def test_a_group_may_begin_at_a_time(self, transport: Transport, stream: str) -> None:
        """`start` is a datetime: what was published from then on is delivered."""
        envelopes = things(stream, 3)
        ids: list[str] = []
        for envelope in envelopes:
            ids += await transport.publish([envelope])
            await self.pass_time(transport, 0.02)
        moments = [utc(int(id.partition("-")[0]) / 1000) for id in ids]
        later = moments[0] + timedelta(milliseconds=1)

        await self.expect(transport, stream, envelopes, group="all", start=moments[0])
        await self.expect(transport, stream, envelopes[1:], group="most", start=later)
        await self.expect(transport, stream, envelopes[1:], group="exact", start=moments[1])

    async def test_the_start_is_that_of_a_new_group_alone(self, transport: Transport, stream: str) -> None:
        """One that exists goes on where it was."""
        envelopes = things(stream, 4)
        await transport.publish(envelopes[:2])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            subscription.ack(delivery)
        await transport.publish(envelopes[2:])
        async with transport.subscribe(self.request(stream, start="$")) as subscription:
            deliveries = await self.take(subscription, 3)

            assert sorted(envelope.id for envelope in envelopes[1:]) == ids_of(deliveries)

    async def test_a_group_may_be_made_by_many_at_once(self, transport: Transport, stream: str) -> None:
        """Whoever comes second finds it there; and every consumer has a name of its own."""
        names: list[str] = []
        joined = anyio.Event()

        async def join() -> None:
            async with transport.subscribe(self.request(stream)) as subscription:
                names.append(subscription.consumer)
                if len(names) == 10:
                    joined.set()
                with anyio.fail_after(self.patience):
                    await joined.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(join)

        assert 10 == len(set(names))

        envelopes = things(stream, 3)
        await transport.publish(envelopes)

        await self.expect(transport, stream, envelopes)

    async def test_a_group_may_wait_for_a_stream_that_is_not_there_yet(self, transport: Transport, stream: str) -> None:
        """Which comes first, publisher or subscriber, does not matter."""
        names = [f"{stream}.{letter}" for letter in "abc"]
        async with transport.subscribe(self.request(*names)) as subscription:
            envelopes = [things(name, 1)[0] for name in names]
            await transport.publish(envelopes)

            assert {envelope.id: envelope for envelope in envelopes} == {
                delivery.envelope.id: delivery.envelope for delivery in await self.take(subscription, 3)
            }

    # -------------------------------------------------------------------------------------------------------------- ack

    async def test_what_was_acked_is_not_delivered_again(self, transport: Transport, stream: str) -> None:
        """Neither to its consumer nor to another, also when every lease has run out."""
        await transport.publish(things(stream, 5))
        async with transport.subscribe(self.request(stream)) as subscription:
            for delivery in await self.take(subscription, 5):
                subscription.ack(delivery)
            await subscription.flush()

            assert not await transport.backlog(stream, "readers")

        await self.pass_time(transport, 1.5 * self.lease)

        await self.expect_nothing_but_a_marker(transport, stream)

    async def test_leaving_settles_what_was_acked(self, transport: Transport, stream: str) -> None:
        """Without a flush."""
        await transport.publish(things(stream, 5))
        async with transport.subscribe(self.request(stream)) as subscription:
            for delivery in await self.take(subscription, 5):
                subscription.ack(delivery)

        assert not await transport.backlog(stream, "readers")

    async def test_leaving_gives_back_what_is_held(self, transport: Transport, stream: str) -> None:
        """At once, as the same attempt, and under no suspicion."""
        await transport.publish(things(stream, 5))
        async with transport.subscribe(self.request(stream)) as leaver:
            held = await self.take(leaver, 5)
            leaver.ack(held[0])
        async with transport.subscribe(self.request(stream)) as heir:
            deliveries = await self.take(heir, 4)

            assert ids_of(held[1:]) == ids_of(deliveries)
            assert [(1, False)] * 4 == [(delivery.attempt, delivery.suspect) for delivery in deliveries]

    async def test_settling_twice_is_settling_once(self, transport: Transport, stream: str) -> None:
        """The first word counts."""
        await transport.publish(things(stream, 3))
        async with transport.subscribe(self.request(stream)) as subscription:
            acked, retried, buried = await self.take(subscription, 3)
            for _ in range(2):
                subscription.ack(acked)
            await subscription.flush()

            assert not await subscription.retry(acked, after=0.0)
            assert not await subscription.bury(acked, reason="too late")

            assert await subscription.retry(retried, after=3600.0)
            assert not await subscription.retry(retried, after=0.0)
            assert not await subscription.bury(retried, reason="too late")

            assert await subscription.bury(buried, reason="first")
            assert not await subscription.bury(buried, reason="second")
            assert not await subscription.retry(buried, after=0.0)

            await subscription.release([acked, retried, buried])
            await subscription.flush()

            assert (0, 0, 1) == await self.counts(transport, stream)
            assert ["first"] == [letter.reason for letter in await transport.dead_letters(stream, "readers")]

    async def test_attempts_survive_many_restarts(self, transport: Transport, stream: str) -> None:
        """Consumers that come, handle a few and go lose nothing."""
        envelopes = things(stream, 60)
        handled: Counter[str] = Counter()
        for start in range(0, 60, 10):
            await transport.publish(envelopes[start : start + 10])
            async with transport.subscribe(self.request(stream)) as subscription:
                for delivery in (await self.take(subscription, 7))[:4]:
                    handled[delivery.envelope.id] += 1
                    subscription.ack(delivery)
        async with transport.subscribe(self.request(stream)) as subscription:
            for delivery in await self.take(subscription, 60 - 6 * 4):
                handled[delivery.envelope.id] += 1
                subscription.ack(delivery)

        assert [] == differences(sorted((envelope.id, 1) for envelope in envelopes), sorted(handled.items()))
        assert not await transport.backlog(stream, "readers")

    # ------------------------------------------------------------------------------------------------------------ retry

    async def test_a_retry_comes_when_it_is_due_and_not_before(self, transport: Transport, stream: str) -> None:
        """The same envelope, as the next attempt, with the story so far."""
        [envelope] = things(stream, 1)
        [id] = await transport.publish([envelope])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            begun = self.time(transport)

            assert await subscription.retry(delivery, after=2 * self.lease, error=ValueError("no ink"))

            [again] = await self.take_in_time(transport, subscription, 1)
            waited = self.time(transport) - begun

            assert 2 * self.lease - 0.01 <= waited <= 2 * self.lease + self.tolerance
            assert (envelope, id, 2) == (again.envelope, again.entry_id, again.attempt)
            assert (stream, "readers", subscription.consumer) == (again.stream, again.group, again.consumer)
            assert "ValueError: no ink" == again.last_error
            assert again.first_failure is not None
            assert not again.suspect

            subscription.ack(again)
            await subscription.flush()

            assert (0, 0, 0) == await self.counts(transport, stream)

    async def test_attempts_that_were_put_off_are_told_apart(self, transport: Transport, stream: str) -> None:
        """A `Retry` with a delay of its own costs none of the attempts that a policy allows."""
        await transport.publish(things(stream, 1))
        errors: list[Exception] = [Retry(after=0.0), ValueError("no ink"), Retry("later"), Retry(after=0.0), ValueError("no ink")]
        seen: list[tuple[int, int]] = []
        async with transport.subscribe(self.request(stream)) as subscription:
            for error in errors:
                [delivery] = await self.take_in_time(transport, subscription, 1)
                seen.append((delivery.attempt, delivery.granted))
                await subscription.retry(delivery, after=0.0, error=error)

        assert [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2)] == seen

    async def test_others_do_not_wait_for_a_retry(self, transport: Transport, stream: str) -> None:
        """What comes after it is handled meanwhile, and it is handed to nobody before its time."""
        envelopes = things(stream, 4)
        await transport.publish(envelopes)
        async with transport.subscribe(self.request(stream)) as subscription:
            [first] = await self.take(subscription, 1)
            await subscription.retry(first, after=3600.0)

            assert envelopes[1:] == [delivery.envelope for delivery in await self.take(subscription, 3)]
            assert (0, 3, 1) == await self.counts(transport, stream)

    async def test_a_retry_is_for_its_own_group(self, transport: Transport, stream: str) -> None:
        """The others have handled it."""
        [envelope] = things(stream, 1)
        await transport.publish([envelope])
        async with (
            transport.subscribe(self.request(stream, group="mailer")) as mailer,
            transport.subscribe(self.request(stream, group="catalog")) as catalog,
        ):
            [failed], [handled] = await self.take(mailer, 1), await self.take(catalog, 1)
            catalog.ack(handled)
            await mailer.retry(failed, after=0.0)

            assert [(envelope, 2)] == [(again.envelope, again.attempt) for again in await self.take(mailer, 1)]

            [marker] = things(stream, 1)
            await transport.publish([marker])

            assert [marker] == [delivery.envelope for delivery in await self.take(catalog, 1)]

    async def test_the_attempt_rises_over_restarts_and_crashes(self, transport: Transport, stream: str) -> None:
        """It counts what was tried, whoever tried it; and the first failure is remembered."""
        await transport.publish(things(stream, 1))
        async with transport.subscribe(self.request(stream)) as first:
            [delivery] = await self.take(first, 1)
            await first.retry(delivery, after=0.0, error=ValueError("first"))
        async with transport.subscribe(self.request(stream)) as second:
            [delivery] = await self.take(second, 1)

            assert (2, "ValueError: first") == (delivery.attempt, delivery.last_error)

            began = delivery.first_failure
            await self.pass_time(transport, 0.02)
            await second.retry(delivery, after=0.0)
            [delivery] = await self.take(second, 1)

            assert (3, "ValueError: first", began) == (delivery.attempt, delivery.last_error, delivery.first_failure)

            await self.crash(second)
        async with transport.subscribe(self.request(stream)) as third:
            [delivery] = await self.take_in_time(transport, third, 1)

            assert (3, True, began) == (delivery.attempt, delivery.suspect, delivery.first_failure)
            assert await third.begin(delivery)

            await third.retry(delivery, after=0.0, error=KeyError("last"))
            [delivery] = await self.take(third, 1)

            assert (4, False, began) == (delivery.attempt, delivery.suspect, delivery.first_failure)
            assert "KeyError: 'last'" == delivery.last_error

    async def test_equal_messages_are_retried_each_for_itself(self, transport: Transport, stream: str) -> None:
        """Two envelopes with the same content are two."""
        first, second = things(stream, 2)
        second = msgspec.structs.replace(first, id=second.id)
        await transport.publish([first, second])
        async with transport.subscribe(self.request(stream)) as subscription:
            for delivery in await self.take(subscription, 2):
                await subscription.retry(delivery, after=0.1)
            again = await self.take_in_time(transport, subscription, 2)

            assert sorted([first.id, second.id]) == ids_of(again)

    async def test_retries_come_in_the_order_of_their_times(self, transport: Transport, stream: str) -> None:
        """The shorter delay first, whenever it was asked for."""
        late, early = things(stream, 2)
        await transport.publish([late, early])
        async with transport.subscribe(self.request(stream)) as subscription:
            for delivery, after in zip(await self.take(subscription, 2), (2 * self.lease, self.lease), strict=True):
                await subscription.retry(delivery, after=after)
            again = await self.take_in_time(transport, subscription, 2)

            assert [early.id, late.id] == [delivery.envelope.id for delivery in again]

    async def test_a_failed_attempt_leaves_no_trace_in_the_envelope(self, transport: Transport, stream: str) -> None:
        """What a handler does to what it was given is its own affair."""
        envelope = msgspec.structs.replace(things(stream, 1)[0], headers={"colour": "blue"})
        await transport.publish([envelope])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            headers: Any = delivery.envelope.headers
            headers["colour"] = "red"
            await subscription.retry(delivery, after=0.0)
            [again] = await self.take(subscription, 1)

            assert envelope.payload == again.envelope.payload
            assert {"colour": "blue"} == again.envelope.headers

    # ------------------------------------------------------------------------------------------------------------- bury

    async def test_a_dead_letter_has_the_original_and_the_whole_story(self, transport: Transport, stream: str) -> None:
        """Enough to know what happened, and to do it again."""
        envelope = msgspec.structs.replace(things(stream, 1)[0], payload=bytes(range(256)), headers={"a": "ä", "b": ""})
        [id] = await transport.publish([envelope])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            await subscription.retry(delivery, after=0.0, error=ValueError("first"))
            [again] = await self.take(subscription, 1)
            try:
                raise LookupError("no shelf\n\x1b[31m") from KeyError("dune")
            except LookupError as exc:
                buried = await subscription.bury(again, reason="attempts exhausted", error=exc)

            assert buried
            assert (0, 0, 0) == await self.counts(transport, stream)

            consumer = subscription.consumer
        [letter] = await transport.dead_letters(stream, "readers")

        assert (stream, "readers", consumer, id) == (letter.stream, letter.group, letter.consumer, letter.entry_id)
        assert (2, "attempts exhausted", "LookupError") == (letter.attempts, letter.reason, letter.error_type)
        assert letter.error.startswith("no shelf")
        assert letter.error.isprintable()
        assert "KeyError: 'dune'" in letter.traceback
        assert all(line.isprintable() for line in letter.traceback.split("\n"))
        assert again.first_failure == letter.first_failure
        assert letter.first_failure <= letter.last_failure
        assert envelope == letter.envelope
        assert dict(zip(delivery.fields[::2], delivery.fields[1::2], strict=True)) == dict(letter.fields)

    async def test_what_was_buried_is_not_delivered_again(self, transport: Transport, stream: str) -> None:
        """Neither to its group, nor is it dead for any other."""
        dead, alive = things(stream, 2)
        await transport.publish([dead, alive])
        async with transport.subscribe(self.request(stream)) as subscription:
            first, second = await self.take(subscription, 2)
            await subscription.bury(first, reason="rejected")
            subscription.ack(second)
        await self.pass_time(transport, 1.5 * self.lease)

        await self.expect_nothing_but_a_marker(transport, stream)
        assert [] == await transport.dead_letters(stream, "catalog")

        async with transport.subscribe(self.request(stream, group="catalog")) as subscription:
            deliveries = await self.take(subscription, 2)

            assert [dead, alive] == [delivery.envelope for delivery in deliveries]

    async def test_dead_letters_are_listed_oldest_first(self, transport: Transport, stream: str) -> None:
        """As many as are asked for."""
        envelopes = things(stream, 5)
        await transport.publish(envelopes)
        async with transport.subscribe(self.request(stream)) as subscription:
            for number, delivery in enumerate(await self.take(subscription, 5)):
                await subscription.bury(delivery, reason=f"reason {number}")

        letters = await transport.dead_letters(stream, "readers")

        assert envelopes == [letter.envelope for letter in letters]
        assert [f"reason {number}" for number in range(5)] == [letter.reason for letter in letters]
        assert 5 == len({letter.id for letter in letters})
        assert letters[:2] == await transport.dead_letters(stream, "readers", limit=2)

    async def test_what_is_no_message_is_buried_byte_for_byte(self, transport: Transport, stream: str) -> None:
        """Bytes are bytes, whatever they should have been."""
        envelope = msgspec.structs.replace(things(stream, 1)[0], payload=b"\xff\xfe{\x00")
        await transport.publish([envelope])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            await subscription.bury(delivery, reason="undecodable", error=ValueError("\ud800 \u202e"))
        [letter] = await transport.dead_letters(stream, "readers")

        assert b"\xff\xfe{\x00" == letter.fields[b"payload"]

    async def test_an_error_that_cannot_say_what_it_is_settles_all_the_same(self, transport: Transport, stream: str) -> None:
        """A class of a stranger may fail in its `__str__`; the delivery is retried and buried, with what can be told."""
        await transport.publish(things(stream, 1))
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)
            await subscription.retry(delivery, after=0.0, error=_Speechless())
            [again] = await self.take(subscription, 1)
            await subscription.bury(again, reason="attempts exhausted", error=_Speechless())
        [letter] = await transport.dead_letters(stream, "readers")

        assert again.last_error is not None
        assert again.last_error.startswith("_Speechless: ")
        assert ("_Speechless", 2) == (letter.error_type, letter.attempts)
        assert "ZeroDivisionError" in letter.error

    async def test_a_requeue_reaches_only_the_group_that_failed(self, transport: Transport, stream: str) -> None:
        """As a first attempt, and once."""
        [envelope] = things(stream, 1)
        [id] = await transport.publish([envelope])
        async with (
            transport.subscribe(self.request(stream, group="mailer")) as mailer,
            transport.subscribe(self.request(stream, group="catalog")) as catalog,
        ):
            [handled] = await self.take(catalog, 1)
            catalog.ack(handled)
            [failed] = await self.take(mailer, 1)
            await mailer.retry(failed, after=0.0, error=ValueError("no ink"))
            [failed] = await self.take(mailer, 1)
            await mailer.bury(failed, reason="attempts exhausted")
            [letter] = await transport.dead_letters(stream, "mailer")

            assert await transport.requeue(letter)
            assert not await transport.requeue(letter)
            assert [] == await transport.dead_letters(stream, "mailer")

            [again] = await self.take(mailer, 1)

            assert (envelope, id, 1) == (again.envelope, again.entry_id, again.attempt)
            assert (None, None, False) == (again.first_failure, again.last_error, again.suspect)

            [marker] = things(stream, 1)
            await transport.publish([marker])

            assert [marker] == [delivery.envelope for delivery in await self.take(catalog, 1)]
            assert [marker] == [delivery.envelope for delivery in await self.take(mailer, 1)]

    async def test_a_requeue_needs_no_consumer(self, transport: Transport, stream: str) -> None:
        """It waits for the next that comes; and what fails again is buried again, with a story of its own."""
        await transport.publish(things(stream, 1))
        for reason in ("first", "second"):
            async with transport.subscribe(self.request(stream)) as subscription:
                [delivery] = await self.take(subscription, 1)
                await subscription.bury(delivery, reason=reason)
            [letter] = await transport.dead_letters(stream, "readers")

            assert (reason, 1) == (letter.reason, letter.attempts)

            await transport.requeue(letter)

            assert (1, 0, 0) == await self.counts(transport, stream)

    # ------------------------------------------------------------------------------------------------ leases and crashes

    async def test_what_a_dead_consumer_held_goes_to_another_after_the_lease(self, transport: Transport, stream: str) -> None:
        """As the same attempt, and as a suspect."""
        envelopes = things(stream, 3)
        await transport.publish(envelopes)
        async with transport.subscribe(self.request(stream)) as dying, transport.subscribe(self.request(stream)) as heir:
            held = await self.take(dying, 3)
            dying.ack(held[0])
            await dying.flush()
            begun = self.time(transport)
            await self.crash(dying)
            deliveries = await self.take_in_time(transport, heir, 2)
            waited = self.time(transport) - begun

            assert 0.5 * self.lease <= waited <= self.lease + self.tolerance
            assert ids_of(held[1:]) == ids_of(deliveries)
            assert [(1, True, heir.consumer)] * 2 == [
                (delivery.attempt, delivery.suspect, delivery.consumer) for delivery in deliveries
            ]

            for delivery in deliveries:
                assert await heir.begin(delivery)
                heir.ack(delivery)
            await heir.flush()

            assert (0, 0, 0) == await self.counts(transport, stream)

    async def test_the_leases_of_the_living_do_not_run_out(self, transport: Transport, stream: str) -> None:
        """A handler may take as long as it likes."""
        await transport.publish(things(stream, 3))
        async with transport.subscribe(self.request(stream)) as slow, transport.subscribe(self.request(stream)) as peer:
            held = await self.take(slow, 3)
            for _ in range(10):
                await self.pass_time(transport, self.lease / 3)
            [marker] = things(stream, 1)
            await transport.publish([marker])

            assert [marker.id] == ids_of(await self.take(peer, 1))
            assert not any(delivery.lost for delivery in held)
            assert all([await slow.retry(delivery, after=0.0) for delivery in held])

    async def test_a_consumer_is_not_handed_what_it_holds(self, transport: Transport, stream: str) -> None:
        """Also when it holds it for long."""
        await transport.publish(things(stream, 2))
        async with transport.subscribe(self.request(stream)) as subscription:
            await self.take(subscription, 2)
            for _ in range(10):
                await self.pass_time(transport, self.lease / 3)
            [marker] = things(stream, 1)
            await transport.publish([marker])

            assert [marker.id] == ids_of(await self.take(subscription, 1))

    async def test_a_stale_entry_behind_many_fresh_ones_is_found(self, transport: Transport, stream: str) -> None:
        """What is alive does not hide what is not."""
        await transport.publish(things(stream, 300))
        async with (
            transport.subscribe(self.request(stream)) as busy,
            transport.subscribe(self.request(stream)) as dying,
            transport.subscribe(self.request(stream)) as heir,
        ):
            await self.take(busy, 299)
            held = await self.take(dying, 1)
            await self.crash(dying)

            assert ids_of(held) == ids_of(await self.take_in_time(transport, heir, 1))

    async def test_two_heirs_never_get_the_same(self, transport: Transport, stream: str) -> None:
        """What one takes over the other does not."""
        await transport.publish(things(stream, 50))
        async with transport.subscribe(self.request(stream)) as dying:
            held = await self.take(dying, 50)
            await self.crash(dying)
        found: list[Delivery] = []
        patient = self.request(stream, lease=3 * self.lease)  # or a machine that stands still for one has both lose it
        async with transport.subscribe(patient) as one, transport.subscribe(patient) as two:

            async def consume(subscription: Subscription) -> None:
                while deliveries := await subscription.receive(5):
                    found.extend(deliveries)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(consume, one)
                tasks.start_soon(consume, two)
                with anyio.fail_after(2 * self.patience):
                    while len(found) < 50:
                        await self.pass_time(transport, self.lease / 5)
                one.stop()
                two.stop()

        assert [] == differences(ids_of(held), ids_of(found))

    async def test_a_former_owner_decides_nothing(self, transport: Transport, stream: str) -> None:
        """Its late retry, bury, begin or release is refused, and changes nothing."""
        await transport.publish(things(stream, 1))
        async with transport.subscribe(self.request(stream)) as former, transport.subscribe(self.request(stream)) as owner:
            [late] = await self.take(former, 1)
            await self.freeze(former)
            [taken] = await self.take_in_time(transport, owner, 1)

            assert not await former.retry(late, after=0.0, error=ValueError("late"))
            assert not await former.bury(late, reason="late")
            assert not await former.begin(late)

            await former.release([late])

            assert (0, 1, 0) == await self.counts(transport, stream)
            assert [] == await transport.dead_letters(stream, "readers")
            assert await owner.retry(taken, after=3600.0)

    async def test_what_another_has_settled_during_a_pause_is_lost(self, transport: Transport, stream: str) -> None:
        """Who stood still for longer than its lease is told before it starts what it has still in hand."""
        lost: list[Delivery] = []
        await transport.publish(things(stream, 3))
        request = self.request(stream, on_lost=lost.append)
        async with transport.subscribe(request) as former, transport.subscribe(self.request(stream)) as owner:
            held = await self.take(former, 3)
            await self.freeze(former)
            for delivery in await self.take_in_time(transport, owner, 3):
                owner.ack(delivery)
            await owner.flush()
            await self.thaw(former)

            assert await former.confirm()
            assert [True] * 3 == [delivery.lost for delivery in held]
            assert ids_of(held) == ids_of(lost)

    async def test_what_nobody_has_taken_over_during_a_pause_is_ours(self, transport: Transport, stream: str) -> None:
        """And so is what is held while nobody pauses. Until it is known nothing is said, unless we are stopped."""
        await transport.publish(things(stream, 2))
        async with transport.subscribe(self.request(stream)) as subscription:
            held = await self.take(subscription, 2)

            assert await subscription.confirm()

            await self.freeze(subscription)
            await self.pass_time(transport, 1.5 * self.lease)
            with anyio.move_on_after(self.lease / 5) as scope:
                await subscription.confirm()

            assert scope.cancelled_caught

            await self.thaw(subscription)

            assert await subscription.confirm()

            await self.freeze(subscription)
            await self.pass_time(transport, 1.5 * self.lease)
            subscription.stop()

            assert not await subscription.confirm()
            assert not any(delivery.lost for delivery in held)

            await self.thaw(subscription)

    async def test_a_lost_lease_is_reported(self, transport: Transport, stream: str) -> None:
        """To who lost it, once, when it comes to itself; what it still holds it keeps."""
        lost: list[Delivery] = []
        request = self.request(stream, on_lost=lost.append)
        await transport.publish(things(stream, 3))
        async with transport.subscribe(request) as former, transport.subscribe(self.request(stream)) as owner:
            held = await self.take(former, 3)
            await self.freeze(former)
            taken = await self.take_in_time(transport, owner, 2)
            await self.thaw(former)
            with anyio.fail_after(self.patience):
                while len(lost) < 2:
                    await self.pass_time(transport, self.lease / 5)

            assert ids_of(taken) == ids_of(lost)
            assert ids_of(taken) == ids_of([delivery for delivery in held if delivery.lost])

            [kept] = [delivery for delivery in held if not delivery.lost]

            assert await former.retry(kept, after=3600.0)

            for delivery in taken:
                owner.ack(delivery)
            await owner.flush()

            assert (0, 0, 1) == await self.counts(transport, stream)
            assert 2 == len(lost)

    async def test_what_takes_its_process_with_it_too_often_is_buried(self, transport: Transport, stream: str) -> None:
        """Each start of a suspect is counted before its handler runs; `max_crashes` of them are granted."""
        [id] = await transport.publish(things(stream, 1))
        request = self.request(stream, max_crashes=2)
        async with transport.subscribe(request) as subscription:
            await self.take(subscription, 1)
            await self.crash(subscription)
        for _ in range(2):
            async with transport.subscribe(request) as subscription:
                [suspect] = await self.take_in_time(transport, subscription, 1)

                assert suspect.suspect
                assert await subscription.begin(suspect)

                await self.crash(subscription)
        async with transport.subscribe(request) as subscription:
            [suspect] = await self.take_in_time(transport, subscription, 1)

            assert not await subscription.begin(suspect)
            assert (0, 0, 0) == await self.counts(transport, stream)

        [letter] = await transport.dead_letters(stream, "readers")

        assert (id, "crash loop", 1) == (letter.entry_id, letter.reason, letter.attempts)

    async def test_starts_are_counted_anew_when_it_was_retried(self, transport: Transport, stream: str) -> None:
        """A suspect whose handler failed in an orderly way has cleared itself."""
        await transport.publish(things(stream, 1))
        request = self.request(stream, max_crashes=1)
        for attempt in (1, 2):
            async with transport.subscribe(request) as subscription:
                [delivery] = await self.take(subscription, 1)

                assert (attempt, False) == (delivery.attempt, delivery.suspect)

                await self.crash(subscription)
            async with transport.subscribe(request) as subscription:
                [delivery] = await self.take_in_time(transport, subscription, 1)

                assert await subscription.begin(delivery)
                assert await subscription.retry(delivery, after=0.0)

    async def test_starts_are_counted_anew_when_it_was_released(self, transport: Transport, stream: str) -> None:
        """Who gave it back at its end did not die of it."""
        await transport.publish(things(stream, 1))
        request = self.request(stream, max_crashes=1)
        for _ in range(2):
            async with transport.subscribe(request) as subscription:
                [delivery] = await self.take_in_time(transport, subscription, 1)

                assert not delivery.suspect

                await self.crash(subscription)
            async with transport.subscribe(request) as subscription:
                [delivery] = await self.take_in_time(transport, subscription, 1)

                assert await subscription.begin(delivery)

                await subscription.release([delivery])

    async def test_what_was_released_goes_to_a_peer_as_if_it_had_never_been_taken(
        self, transport: Transport, stream: str
    ) -> None:
        """The same attempt, no suspect, long before the lease of who gave it back has run out."""
        await transport.publish(things(stream, 3))
        request = self.request(stream, lease=30.0)
        async with transport.subscribe(request) as giver:
            held = await self.take(giver, 3)
            async with transport.subscribe(self.request(stream)) as peer:
                await giver.release(held[1:])
                deliveries = await self.take(peer, 2)

                assert ids_of(held[1:]) == ids_of(deliveries)
                assert [(1, False)] * 2 == [(delivery.attempt, delivery.suspect) for delivery in deliveries]
                assert all([await peer.retry(delivery, after=3600.0) for delivery in deliveries])
                assert await giver.retry(held[0], after=3600.0)

    # ----------------------------------------------------------------------------------------------------- read and stop

    async def test_no_more_is_received_than_was_asked_for(self, transport: Transport, stream: str) -> None:
        """Over all streams together."""
        names = [f"{stream}.{letter}" for letter in "abc"]
        await transport.publish([envelope for name in names for envelope in things(name, 10)])
        async with transport.subscribe(self.request(*names)) as subscription:
            found: list[Delivery] = []
            with anyio.fail_after(self.patience):
                while len(found) < 30:
                    deliveries = await subscription.receive(4)

                    assert 1 <= len(deliveries) <= 4

                    found += deliveries

            assert 30 == len(set(ids_of(found)))
            for name in names:
                places = [place_of(delivery) for delivery in found if delivery.stream == name]

                assert sorted(places) == places

    async def test_no_stream_goes_short(self, transport: Transport, stream: str) -> None:
        """One that is always full does not keep the consumer from the others."""
        full, other = f"{stream}.full", f"{stream}.other"
        await transport.publish([*things(full, 100), *things(other, 1)])
        async with transport.subscribe(self.request(full, other)) as subscription:
            with anyio.fail_after(self.patience):
                found: list[Delivery] = []
                while not any(delivery.stream == other for delivery in found):
                    found += await subscription.receive(2)

            assert len(found) < 50

    async def test_a_cancelled_receive_loses_nothing(self, transport: Transport, stream: str) -> None:
        """Whoever stops waiting may come back, and finds everything."""
        envelopes = things(stream, 40)
        found: list[Delivery] = []
        async with transport.subscribe(self.request(stream)) as subscription:
            for number, envelope in enumerate(envelopes):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:

                        async def receive() -> None:
                            found.extend(await subscription.receive(10))

                        tasks.start_soon(receive)
                        if number % 2:
                            await anyio.lowlevel.checkpoint()
                            await transport.publish([envelope])
                            scope.cancel()
                        else:
                            scope.cancel()
                if not number % 2:
                    await transport.publish([envelope])
            found += await self.take(subscription, 40 - len(found))

            assert sorted(envelope.id for envelope in envelopes) == ids_of(found)

    async def test_stop_ends_a_waiting_receive_at_once(self, transport: Transport, stream: str) -> None:
        """It returns nothing, and so does every later one; stopping twice is stopping once."""
        async with transport.subscribe(self.request(stream)) as subscription, anyio.create_task_group() as tasks:
            answers: list[list[Delivery]] = []
            waiting, answered = anyio.Event(), anyio.Event()

            async def wait() -> None:
                waiting.set()
                answers.append(await subscription.receive(10))
                answered.set()

            tasks.start_soon(wait)
            await waiting.wait()
            await anyio.lowlevel.checkpoint()
            with anyio.fail_after(1.0):
                for _ in range(2):
                    subscription.stop()
                await answered.wait()
                await transport.publish(things(stream, 1))
                answers.append(await subscription.receive(10))
                subscription.stop()

            assert [[], []] == answers

        assert (1, 0, 0) == await self.counts(transport, stream)

    async def test_what_is_held_may_be_settled_after_the_stop(self, transport: Transport, stream: str) -> None:
        """Who reads no more has still to finish."""
        await transport.publish(things(stream, 4))
        async with transport.subscribe(self.request(stream)) as subscription:
            acked, retried, buried, _ = await self.take(subscription, 4)
            subscription.stop()
            subscription.ack(acked)

            assert await subscription.retry(retried, after=3600.0)
            assert await subscription.bury(buried, reason="rejected")

        backlog = await transport.backlog(stream, "readers")

        assert (1, 1) == (backlog.unread + backlog.pending, backlog.delayed)
        assert 1 == len(await transport.dead_letters(stream, "readers"))

    async def test_consumers_may_come_and_go_while_others_read(self, transport: Transport, stream: str) -> None:
        """Ten that join and leave at once disturb nobody."""
        envelopes = things(stream, 50)
        async with transport.subscribe(self.request(stream)) as subscription:

            async def visit() -> None:
                async with transport.subscribe(self.request(stream)):
                    pass

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(visit)
                await transport.publish(envelopes)

            found = ids_of(await self.take(subscription, 50))

        assert [] == differences(sorted(envelope.id for envelope in envelopes), found)

    # ---------------------------------------------------------------------------------------------------------- backlog

    async def test_the_backlog_is_what_a_group_has_still_to_handle(self, transport: Transport, stream: str) -> None:
        """Unread, pending and delayed, for each group by itself."""
        assert Backlog(unread=0, pending=0, delayed=0) == await transport.backlog(stream, "readers")

        await transport.publish(things(stream, 5))

        assert (5, 0, 0) == await self.counts(transport, stream)

        async with transport.subscribe(self.request(stream)) as subscription:
            first, second, third = await self.take(subscription, 3)

            assert (2, 3, 0) == await self.counts(transport, stream)

            subscription.ack(first)
            await subscription.flush()
            await subscription.retry(second, after=100.0)
            backlog = await transport.backlog(stream, "readers")

            assert (2, 1, 1) == (backlog.unread, backlog.pending, backlog.delayed)
            assert backlog.next_in is not None
            assert 100.0 - self.patience <= backlog.next_in <= 100.0
            assert backlog

            await subscription.bury(third, reason="rejected")

            assert (2, 0, 1) == await self.counts(transport, stream)

            [letter] = await transport.dead_letters(stream, "readers")
            await transport.requeue(letter)

            assert (3, 0, 1) == await self.counts(transport, stream)

        assert (5, 0, 0) == await self.counts(transport, stream, group="catalog")

    # ------------------------------------------------------------------------------------------------------------- help

    def request(self, *streams: str, group: str = "readers", **more: Any) -> Subscribe:
        more.setdefault("lease", self.lease)

        return Subscribe(streams=streams, group=group, **more)

    async def take(self, subscription: Subscription, count: int) -> list[Delivery]:
        """So many deliveries, however they come."""
        found: list[Delivery] = []
        with anyio.move_on_after(self.patience):
            while len(found) < count:
                deliveries = await subscription.receive(count - len(found))

                assert deliveries, "receive() returned nothing, though nobody stopped it"

                found += deliveries
        if len(found) < count:
            pytest.fail(f"{len(found)} of {count} deliveries came within {self.patience:g} s: {found}")

        return found

    async def take_in_time(self, transport: Transport, subscription: Subscription, count: int) -> list[Delivery]:
        """So many deliveries, while time passes."""
        found: list[Delivery] = []
        done = False

        async def take() -> None:
            nonlocal done
            found.extend(await self.take(subscription, count))
            done = True

        async with _bare_task_group() as tasks:
            tasks.start_soon(take)
            while not done:
                await self.pass_time(transport, self.lease / 20)

        return found

    async def counts(self, transport: Transport, stream: str, *, group: str = "readers") -> tuple[int, int, int]:
        """Unread, pending, delayed."""
        backlog = await transport.backlog(stream, group)

        return backlog.unread, backlog.pending, backlog.delayed

    async def expect(self, transport: Transport, stream: str, envelopes: Sequence[Envelope], **more: Any) -> None:
        """These, in this order, and nothing else, are what a group gets."""
        request = self.request(stream, **more)
        async with transport.subscribe(request) as subscription:
            deliveries = await self.take(subscription, len(envelopes))

            assert list(envelopes) == [delivery.envelope for delivery in deliveries]
            assert (0, len(envelopes), 0) == await self.counts(transport, stream, group=request.group)

    async def expect_nothing_but_a_marker(self, transport: Transport, stream: str) -> None:
        """Nothing is left for the group: what is published now is the first that it gets."""
        [marker] = things(stream, 1)
        await transport.publish([marker])
        async with transport.subscribe(self.request(stream)) as subscription:
            [delivery] = await self.take(subscription, 1)

            assert marker == delivery.envelope

            subscription.ack(delivery)


def things(stream: str | None, count: int) -> list[Envelope]:
    """So many envelopes for a stream."""
    return [Envelope(new_id(), now(), "thing_happened_v1", b'{"number":%d}' % number, {}, stream) for number in range(count)]


def differences(expected: Sequence[Any], found: Sequence[Any]) -> list[tuple[int, Any, Any]]:
    """The first places at which two long lists differ, and what is there.

    pytest compares all of two lists where it finds that it is run by a CI, and needs a minute for a few hundred lines.
    """
    pairs = enumerate(itertools.zip_longest(expected, found))

    return list(itertools.islice(((place, *pair) for place, pair in pairs if pair[0] != pair[1]), 3))


def ids_of(deliveries: Sequence[Delivery]) -> list[str]:
    """Their envelope ids, sorted."""
    return sorted(delivery.envelope.id for delivery in deliveries)


def place_of(delivery: Delivery) -> tuple[int, ...]:
    """Where in its stream an entry lies."""
    return tuple(int(number) for number in delivery.entry_id.split("-"))


class _Speechless(Exception):
    """One of a stranger, whose text cannot be had."""

    def __str__(self) -> str:
        return str(1 / 0)


@asynccontextmanager
async def _bare_task_group() -> AsyncGenerator[anyio.abc.TaskGroup]:
    """A task group whose only error is raised as it is: a failed assert, not a group of one."""
    errors: tuple[BaseException, ...] = ()
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        errors = group.exceptions
        if len(errors) > 1:
            raise
    for error in errors:
        raise error
