"""A service for tests of processes: it adds up the numbers that come, in Redis, and says so downstream; all of it by `RedisSession`.

Every tenth delivery is forced to be handled twice: its first handler finds, when it commits, that somebody else has it.
"""

import os
from functools import cache
from typing import Any

import redis.asyncio

from eventbus import Delivery, Event, MessageBus, Metadata, Subscriber, Transport, UnitOfWork, connect
from eventbus.redis import RedisSession

STREAM, GROUP = "numbers", "summer"
TOTAL, BY_DIGIT, FORCED = "total:{numbers}", "by-digit:{numbers}", "forced:{numbers}"


class Numbered(Event):
    metadata = Metadata(name="numbered", published=True, stream=STREAM)
    number: int


class Summed(Event):
    metadata = Metadata(name="summed", published=True, stream="sums")
    number: int


class Sums(UnitOfWork):
    def __init__(self, transport: Transport) -> None:
        self.redis = RedisSession(transport)
        super().__init__(self.redis, transport=transport)


bus = MessageBus()


@bus.listen
async def add(event: Numbered, uow: Sums, delivery: Delivery) -> None:
    uow.redis.incrby(TOTAL, event.number)
    uow.redis.hincrby(BY_DIGIT, event.number % 10)
    uow.emit(Summed(event.number))
    if event.number % 10 == 0 and await client().sadd(FORCED, event.number):
        await client().xclaim(delivery.source, GROUP, "somebody else", 0, [delivery.source_id], idle=70_000, justid=True)


@cache
def client() -> Any:
    return redis.asyncio.Redis.from_url(os.environ["EVENTBUS_URL"])


def summer() -> Subscriber:
    return Subscriber(
        bus=bus,
        transport=connect(os.environ["EVENTBUS_URL"]),
        streams=[STREAM],
        group=GROUP,
        unit_of_work=Sums,
        lease=1.5,
        max_crashes=1000,  # none of them is to blame
    )
