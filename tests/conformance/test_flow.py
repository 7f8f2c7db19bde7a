"""Flow"""

from __future__ import annotations

import anyio

from eventbus import Delivery
from eventbus.subscriber import READ_AHEAD
from tests.conformance.club import Reader, Registered, envelopes, nothing_left
from tests.conformance.places import Place


async def test_062_what_is_in_hand_is_bounded(place: Place) -> None:
    """What is in hand (running and waiting) never exceeds its bound, over all streams together."""
    transport = await place.connect()
    streams = [f"club-{number}" for number in range(5)]
    await transport.publish([envelope for stream in streams for envelope in envelopes(range(200), stream=stream)])
    slow, go_on, most = anyio.Event(), anyio.Event(), [0]

    async def does(event: Registered, delivery: Delivery) -> None:
        most[0] = max(most[0], reader.statistics.held)
        if not slow.is_set():
            await go_on.wait()

    reader = Reader(transport, does, streams=streams, concurrency=10)
    async with reader.running():
        await place.wait_until(lambda: reader.statistics.running == 10, description="all hands are busy")
        await place.pass_time(0.2)

        assert 10 <= reader.statistics.held <= 10 + 2  # nothing was handled yet, so next to nothing is read ahead

        slow.set()
        go_on.set()
        for stream in streams:
            await place.wait_until(lambda stream=stream: nothing_left(transport, stream=stream), description=f"{stream} is read")

    assert 5 * 200 == len(reader.handled)
    assert most[0] <= 10 + READ_AHEAD
