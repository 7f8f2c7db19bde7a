"""Waiting for PostgreSQL's NOTIFY, on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine

logger: Final = logging.getLogger("eventbus.sqlalchemy")

AGAIN_AFTER = 5.0
"""Seconds before another connection is tried, when one broke. Meanwhile the caller looks by itself from time to time."""


async def listen(engine: AsyncEngine, channel: str, heard: Callable[[], None]) -> None:
    """Call `heard` for each notice on the channel, and once when we have begun to listen. Ends only by cancellation."""
    while True:
        try:
            async with engine.connect() as connection:
                try:
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    if not await _listen_with(driver, channel, heard):
                        return
                finally:
                    with anyio.CancelScope(shield=True):
                        await connection.invalidate()  # nobody else is to hear what we listen to
        except Exception as exc:  # the driver's own errors, of which we know nothing
            logger.info("listening to %s broke off, looking from time to time instead: %r", channel, exc)
        await anyio.sleep(AGAIN_AFTER)


async def _listen_with(driver: Any, channel: str, heard: Callable[[], None]) -> bool:
    """Until the connection breaks. False, at once, with a driver that we do not know."""

    def notified(*_: object) -> None:
        heard()

    if hasattr(driver, "add_listener"):  # asyncpg
        closed = asyncio.Event()

        def terminated(_: object) -> None:
            closed.set()

        driver.add_termination_listener(terminated)
        await driver.add_listener(channel, notified)
        heard()
        await closed.wait()
    elif hasattr(driver, "notifies"):  # psycopg
        await driver.set_autocommit(True)
        await driver.execute('LISTEN "{}"'.format(channel.replace('"', '""')))
        heard()
        async for _ in driver.notifies():
            heard()
    else:
        return False

    return True
