"""``python -m tests.sqlalchemy RUN``: crashes by the hundred, and what the databases, the server and the streams have afterwards."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from eventbus.embedded import EmbeddedServer
from tests.sqlalchemy import crash, disasters, relays, sums
from tests.sqlalchemy.conftest import DRIVERS, engine_on, make_tables
from tests.sqlalchemy.postgres import postgres


async def crash_points(scenario: str, database: str, server: str, size: crash.Size) -> list[str]:
    count, wrong = await crash.points(scenario, database, server, size)
    print(f"  {scenario}: killed at {count} points")

    return wrong


SIZES: dict[str, tuple[Any, Any]] = {
    "crash-points": (crash.FULL, crash.SHORT),
    "sums": (sums.FULL, sums.SHORT),
    "relays": (relays.FULL, relays.SHORT),
    "power-cuts": (disasters.Size(30), disasters.Size(1)),
    "failovers": (disasters.Size(5), disasters.Size(1)),
    "restore-kills": (disasters.Size(20), disasters.Size(1)),
}
ON_A_SERVER: dict[str, list[Any]] = {
    "crash-points": [partial(crash_points, scenario) for scenario in crash.SCENARIOS],
    "sums": [sums.in_sql],
    "relays": [relays.order_is_kept],
}
"""Each part on a database and a server of its own."""
WITH_SERVERS: dict[str, Any] = {
    "power-cuts": disasters.power_cuts,
    "failovers": disasters.failovers,
    "restore-kills": disasters.restore_kills,
}


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    logging.disable()  # troubles are what it is about
    run, size = options.run, SIZES[options.run][options.short]
    wrong = 0
    for database in DRIVERS if options.database == "both" else (options.database,):
        if run in WITH_SERVERS:
            with a_database(database, options.driver) as url:
                wrong += _tell(f"{run}, {database}: {size}", WITH_SERVERS[run](url, options.server, size))
        for part in ON_A_SERVER.get(run, []):
            with a_database(database, options.driver) as url, EmbeddedServer(executable=options.server) as server:
                wrong += _tell(f"{run}, {database}, {server.version_text}: {size}", part(url, server.url, size))
    if run == "sums":
        with EmbeddedServer(executable=options.server) as server:
            wrong += _tell(f"sums, RedisSession, {server.version_text}: {size}", sums.in_redis(server.url, size))

    return 1 if wrong else 0


def _tell(title: str, run: Coroutine[Any, Any, list[str]]) -> int:
    """Say how a run went. How many things were wrong."""
    began = time.monotonic()
    wrong = asyncio.run(run)
    print(f"{title}, {time.monotonic() - began:.0f} s: {'VIOLATED' if wrong else 'held'}", *wrong, sep="\n  ", flush=True)

    return len(wrong)


@contextmanager
def a_database(name: str, driver: str | None = None) -> Iterator[str]:
    """The URL of a new one, with the tables."""
    with ExitStack() as stack:
        if name == "postgresql":
            place = stack.enter_context(postgres())
        else:
            place = f":///{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'club.db'}"
        url = f"{name}+{driver if driver in DRIVERS[name] else DRIVERS[name][0]}{place}"
        asyncio.run(_prepare(url))
        yield url


async def _prepare(url: str) -> None:
    engine = engine_on(url)
    await make_tables(engine)
    await engine.dispose()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sqlalchemy", description=__doc__)
    parser.add_argument("run", choices=list(SIZES))
    parser.add_argument("--database", choices=[*DRIVERS, "both"], default="both")
    parser.add_argument("--driver", choices=DRIVERS["postgresql"], help="of PostgreSQL")
    parser.add_argument("--short", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--server", metavar="PATH", help="the server to start")

    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
