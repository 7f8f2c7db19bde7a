"""How long things are kept: entries until they are old and settled, dead letters until an alarm was raised for them."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from eventbus.errors import ConfigurationError, excerpt
from eventbus.redis.audit import count
from eventbus.redis.keys import Keys
from eventbus.redis.link import Channel
from eventbus.redis.scripts import PRUNE, TRIM

logger: Final = logging.getLogger("eventbus.redis")

PAUSE: Final = 0.005
"""Seconds between two steps of a trim. A step takes the server as long at the most, so others have half of its time at the least."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What the janitor keeps. It runs in every subscriber, about once a minute.

    * `entries`: an entry is kept this long, and longer while a group has not settled it: trimming never passes the unsettled.
    * `max_pin`: a group that has left entries unsettled for longer than this is reported, again and again.
    * `abandoned`: what happens to its entries then: ``"report"`` keeps them; ``"trim"`` removes them, and the group's audit shows the loss.
    * `dead_letters`: a dead letter is kept this long. At least a day before it goes, an alarm is logged (`alarm`).
    """

    entries: timedelta = timedelta(days=7)
    max_pin: timedelta = timedelta(days=28)
    abandoned: Literal["report", "trim"] = "report"
    dead_letters: timedelta = timedelta(days=30)
    alarm: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        if min(self.entries, self.max_pin, self.dead_letters, self.alarm) < timedelta(0) or self.max_pin < self.entries:
            raise ConfigurationError(f"{self}: times are positive, and max_pin is not shorter than entries")
        if self.abandoned not in ("report", "trim"):
            raise ConfigurationError(f'Retention(abandoned={self.abandoned!r}): "report" or "trim"')


async def trim(channel: Channel, stream: str, retention: Retention) -> int:
    """Remove what is old and settled by every group; how many entries went.

    In steps of about 10,000 entries, with a pause between them, so that nobody else waits for long.
    """
    times = _ms(retention.entries), _ms(retention.max_pin)
    removed, bound, *pins = await channel.run(TRIM.call(stream, args=(*times, retention.abandoned, "")))
    for group, id in zip(pins[::2], pins[1::2], strict=True):
        name = excerpt(group.decode(errors="replace"))  # it may be of any program
        logger.error(
            "%s: the group %s has not settled %s for longer than %s, and %s; run its subscribers, or destroy it with "
            "XGROUP DESTROY %s %s",
            stream, name, id.decode(), retention.max_pin,
            "keeps everything after it" if retention.abandoned == "report" else "loses it", stream, name,
        )  # fmt: skip
    total = await _remove_rest(channel, int(removed), TRIM.call(stream, args=(*times, retention.abandoned, bound)))
    if total:
        logger.debug("%s: %d entries before %s were removed", stream, total, bound.decode())

    return total


async def prune(channel: Channel, keys: Keys, retention: Retention) -> int:
    """Remove dead letters that are older than they are kept, the alarm before; how many went. In steps, as `trim`."""
    times = _ms(retention.dead_letters), _ms(retention.alarm)
    removed, bound, announced = await channel.run(PRUNE.call(keys.dead, keys.state, args=(*times, "")))
    if announced:
        logger.error(
            "%s/%s: %d dead letters will be older than %s within %s and are dropped then; look at them, and requeue what is worth it",
            keys.stream, keys.group, await count(channel, keys.dead, "0-0", announced.decode()), retention.dead_letters, retention.alarm,
        )  # fmt: skip
    total = await _remove_rest(channel, int(removed), PRUNE.call(keys.dead, keys.state, args=(*times, bound)))
    if total:
        logger.error("%s/%s: %d dead letters were dropped, older than %s", keys.stream, keys.group, total, retention.dead_letters)

    return total


async def _remove_rest(channel: Channel, removed: int, command: tuple[Any, ...]) -> int:
    """Take further steps, after a first one that removed so many, until there is nothing to remove; how many went in all."""
    total = removed
    while removed:
        await asyncio.sleep(PAUSE)
        removed, *_ = await channel.run(command)
        total += removed

    return total


def _ms(time: timedelta) -> int:
    return int(time.total_seconds() * 1000)
