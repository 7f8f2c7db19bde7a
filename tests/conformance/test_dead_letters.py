"""Dead letters"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from eventbus import Delivery, Reject, Retry, exponential
from eventbus.envelope import to_fields
from eventbus.errors import Refused
from eventbus.redis.retention import Retention
from eventbus.transport import utc
from tests.conformance.club import GROUP, STREAM, Reader, Registered, counts, envelopes, nothing_left, once, publish
from tests.conformance.places import Place

QUICKLY = exponential(attempts=3, base=0.01, factor=1.0)


async def jams(event: Registered, delivery: Delivery) -> None:
    """A handler that fails at every odd number."""
    if event.number % 2:
        raise ValueError(f"{event.number} jams")


async def test_043_after_the_last_attempt_it_is_a_dead_letter_once(place: Place) -> None:
    """After the last attempt the delivery is in this group's dead letters once, and acked at its source, in one step."""
    transport = await place.connect()
    await publish(transport, *range(10))
    reader, other = Reader(transport, jams, retry=QUICKLY), Reader(transport, group="others")
    done = await reader.drain()
    await other.drain()
    letters = await transport.dead_letters(STREAM, GROUP)

    assert [1, 3, 5, 7, 9] == sorted(_numbers(letters))
    assert [("attempts exhausted", 3)] * 5 == [(letter.reason, letter.attempts) for letter in letters]
    assert (5, 10, 5) == (done.handled, done.retried, done.buried)
    assert [] == await transport.dead_letters(STREAM, "others")
    assert once(range(10)) == once(other.handled)


@pytest.mark.not_on("memory", because="a step there is a step: nothing can be lost in between")
async def test_043_burying_is_one_step_whatever_is_lost(place: Place) -> None:
    """After the last attempt the delivery is in this group's dead letters once, and acked at its source, in one step."""
    await publish(await place.connect(), *range(6))
    async with place.line() as (transport, line):
        line.cut("bury")
        line.cut("bury", after=True)
        reader = Reader(transport, jams, retry=lambda attempt, error: None, lease=place.lease)
        await reader.drain()

        assert 0 == line.pending_cuts
        assert [1, 3, 5] == sorted(_numbers(await transport.dead_letters(STREAM, GROUP)))

    assert [0, 2, 4] == sorted(reader.handled)


def _numbers(letters: list[Any]) -> list[int]:
    return [msgspec.json.decode(letter.envelope.payload)["number"] for letter in letters]


async def test_044_a_dead_letter_tells_its_whole_story(place: Place) -> None:
    """A dead letter carries the original fields byte for byte and the story: group, consumer, stream, entry id, attempts, reason, error, \
traceback, first and last failure."""
    transport = await place.connect()
    [plain] = envelopes([1])
    envelope = msgspec.structs.replace(plain, headers={"herkunft": "Bücherei № 5", "empty": ""})
    [entry_id] = await transport.publish([envelope])
    consumers: list[str] = []

    async def does(event: Registered, delivery: Delivery) -> None:
        consumers.append(delivery.consumer)
        raise ValueError("no ink")

    began = utc(place.time() - 1)
    await Reader(transport, does, retry=exponential(attempts=2, base=0.05, jitter=0.0)).drain()
    ended = utc(place.time() + 1)
    [letter] = await transport.dead_letters(STREAM, GROUP)
    words = [word.encode() if isinstance(word, str) else word for word in to_fields(envelope)]

    assert dict(zip(words[::2], words[1::2], strict=True)) == dict(letter.fields)
    assert envelope == letter.envelope
    assert (GROUP, consumers[-1], STREAM, entry_id, 2, "attempts exhausted") == (
        letter.group, letter.consumer, letter.stream, letter.entry_id, letter.attempts, letter.reason
    )  # fmt: skip
    assert ("ValueError", "no ink") == (letter.error_type, letter.error)
    assert 'raise ValueError("no ink")' in letter.traceback
    assert began <= letter.first_failure < letter.last_failure <= ended
    assert timedelta(seconds=0.04) <= letter.last_failure - letter.first_failure


@pytest.mark.not_on("memory", because="there is always room for a dead letter")
async def test_045_a_dead_letter_that_is_refused_leaves_the_delivery_pending(place: Place) -> None:
    """A dead letter that cannot be written leaves the delivery pending."""
    transport = await place.connect()
    await publish(transport, 1)
    place.client.set("{club}:dead:readers", "a string")
    reader = Reader(transport, jams, retry=lambda attempt, error: None)
    with pytest.raises(Refused, match="WRONGTYPE"):
        await reader.subscriber.run()

    assert 1 == place.client.xpending(STREAM, GROUP)["pending"]

    place.client.delete("{club}:dead:readers")
    await reader.drain()

    assert [1] == _numbers(await transport.dead_letters(STREAM, GROUP))


@pytest.mark.not_on("memory", "fakeredis", because="its memory has no bound")
async def test_045_a_dead_letter_without_room_leaves_the_delivery_pending(place: Place) -> None:
    """A dead letter that cannot be written leaves the delivery pending."""
    transport = await place.connect()
    reader = Reader(transport, jams, retry=lambda attempt, error: None, lease=place.lease)
    async with reader.running():
        await publish(transport, *range(10))
        await place.wait_until(lambda: nothing_left(transport), description="there is room")
    await publish(transport, *range(10, 20))
    place.client.config_set("maxmemory", 1)
    async with reader.running():
        await place.wait_until(lambda: 10 == len(reader.handled), description="what needs no room is handled")
        await place.wait_until(lambda: place.client.xpending(STREAM, GROUP)["pending"] == 5, description="the rest is pending")

        assert 5 == len(await transport.dead_letters(STREAM, GROUP))

        place.client.config_set("maxmemory", 0)
        await place.wait_until(lambda: nothing_left(transport), description="there is room again")

    assert [*range(1, 20, 2)] == sorted(_numbers(await transport.dead_letters(STREAM, GROUP)))


async def test_046_what_is_no_message_is_buried_at_once(place: Place) -> None:
    """An undecodable payload or an unknown version of a known name is buried at once, and the next delivery proceeds."""
    transport = await place.connect()
    sent = envelopes(range(4))
    sent[0] = msgspec.structs.replace(sent[0], payload=b'{"number": \xff')
    sent[2] = msgspec.structs.replace(sent[2], type="registered_v7")
    await transport.publish(sent)
    reader = Reader(transport, concurrency=1)
    done = await reader.drain()
    letters = await transport.dead_letters(STREAM, GROUP)

    assert [1, 3] == reader.handled
    assert [("undecodable", 1)] * 2 == [(letter.reason, letter.attempts) for letter in letters]
    assert [sent[0], sent[2]] == [letter.envelope for letter in letters]
    assert (2, 2, 0) == (done.handled, done.buried, done.retried)


async def test_047_a_requeue_is_for_the_group_that_failed(place: Place) -> None:
    """A requeue reaches only the group that failed, and its attempts begin again."""
    transport = await place.connect()
    await publish(transport, 1)
    failing, other = Reader(transport, jams, retry=QUICKLY), Reader(transport, group="others")
    await failing.drain()
    await other.drain()
    [letter] = await transport.dead_letters(STREAM, GROUP)

    assert await transport.requeue(letter)
    assert not await transport.requeue(letter)

    sound = Reader(transport)
    await sound.drain()
    await other.drain()

    assert [(1, 1), (1, 2), (1, 3)] == failing.starts
    assert [(1, 1)] == sound.starts
    assert [(1, 1)] == other.starts
    assert [] == await transport.dead_letters(STREAM, GROUP)


@pytest.mark.not_on("memory", because="it keeps every entry")
async def test_048_a_requeue_does_not_need_the_original(place: Place) -> None:
    """A requeue works when the original entry was trimmed."""
    transport = await place.connect(retention=timedelta(0))
    await publish(transport, 1)
    await Reader(transport, jams, retry=lambda attempt, error: None).drain()
    [letter] = await transport.dead_letters(STREAM, GROUP)
    await place.pass_time(0.01)
    await transport.trim(STREAM)

    assert 0 == place.client.xlen(STREAM)
    assert await transport.requeue(letter)

    sound = Reader(transport)
    await sound.drain()

    assert [(1, 1)] == sound.starts


async def test_049_a_handler_and_a_policy_may_cut_it_short(place: Place) -> None:
    """`Reject`, or a policy that says None, skips the remaining attempts; `Retry` sets its own delay."""
    transport = await place.connect()
    await publish(transport, 1, 2, 3)

    def policy(attempt: int, error: Exception) -> float | None:
        return None if isinstance(error, KeyError) else 3600.0

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number == 1:
            raise Reject("not for us")
        if event.number == 2:
            raise KeyError("no such shelf")
        if delivery.attempt < 6:  # more than the policy would grant
            raise Retry(after=0.01)

    reader = Reader(transport, does, retry=policy)
    await reader.drain()
    letters = await transport.dead_letters(STREAM, GROUP)

    assert {1: ("rejected", 1), 2: ("attempts exhausted", 1)} == {
        number: (letter.reason, letter.attempts) for number, letter in zip(_numbers(letters), letters, strict=True)
    }
    assert [(3, attempt) for attempt in range(1, 7)] == [start for start in reader.starts if start[0] == 3]
    assert (0, 0, 0) == await counts(transport)


@pytest.mark.not_on("memory", because="it keeps every dead letter")
async def test_050_the_oldest_go_only_after_an_alarm(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on dead letters drops the oldest only after an alarm."""
    monkeypatch.setattr("eventbus.redis.subscription.TIDY_EVERY", 0.05)
    kept = Retention(dead_letters=timedelta(seconds=0.2), alarm=timedelta(seconds=0.5))
    transport = await place.connect(retention=kept)
    await publish(transport, 1)
    reader = Reader(transport, jams, retry=lambda attempt, error: None, lease=place.lease)
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with reader.running():
            await place.wait_until(lambda: "are dropped then" in caplog.text, description="the alarm is raised")

            assert 1 == len(await transport.dead_letters(STREAM, GROUP))

            await place.wait_until(lambda: "were dropped" in caplog.text, description="the dead letter is dropped")

    assert [] == await transport.dead_letters(STREAM, GROUP)
