"""Whatever reply of a publish is lost, the stream holds each envelope once.

20 lost replies here; ``EVENTBUS_LOST_REPLIES=1000`` in the environment makes it so many.
"""

import os
from collections import Counter
from typing import Any

import anyio
import pytest

from eventbus import Event, Metadata, UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer

LOST = int(os.environ.get("EVENTBUS_LOST_REPLIES", "20"))
STREAM = "lost-replies"


class Counted(Event):
    metadata = Metadata(name="counted", published=True, stream=STREAM)
    number: int


async def publish(transport: RedisTransport, number: int) -> None:
    async with UnitOfWork(transport=transport) as uow:
        uow.emit(Counted(number))
        await uow.commit()


@pytest.mark.timeout(60 + LOST)
@pytest.mark.parametrize("together", [1, 20], ids=["single", "coalesced"])
async def test_a_lost_reply_adds_nothing_twice(redis_server: LiveServer, server: Any, together: int) -> None:
    """Publishers one after another, and many whose events go in one call."""
    published = 0
    async with FaultProxy(redis_server.url) as line, RedisTransport(line.url, patience=30.0) as transport:
        while line.faults < LOST:
            line.cut("publish", after=True)
            async with anyio.create_task_group() as tasks:
                for number in range(published, published + together):
                    tasks.start_soon(publish, transport, number)
            published += together

    numbers = Counter(
        int(fields[b"payload"].removeprefix(b'{"number":').removesuffix(b"}")) for _, fields in server.client.xrange(STREAM)
    )
    assert dict.fromkeys(range(published), 1) == numbers
    assert LOST == line.faults
