"""``python -m tests.sqlalchemy RUN``: crashes by the hundred, and what the databases, the server and the streams have afterwards."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eventbus.embedded import EmbeddedServer
from tests.sqlalchemy import sums
from tests.sqlalchemy.conftest import DATABASES, engine_on, make_tables
from tests.sqlalchemy.postgres import postgres

RUNS = ("sums",)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    databases = DATABASES if options.database == "both" else (options.database,)
    wrong = 0
    for database in databases:
        with a_database(database) as url:
            wrong += _tell(f"{options.run}, {database}", _run(options, url))
    if options.run == "sums":
        wrong += _tell("sums, Redis", _sums_in_redis(options))

    return 1 if wrong else 0


def _run(options: argparse.Namespace, database: str) -> Iterator[str]:
    size = sums.SHORT if options.short else sums.FULL
    with EmbeddedServer(executable=options.server) as server:
        yield f"{size}, {server.version_text}"
        yield from asyncio.run(sums.in_sql(database, server.url, size))


def _sums_in_redis(options: argparse.Namespace) -> Iterator[str]:
    size = sums.SHORT if options.short else sums.FULL
    with EmbeddedServer(executable=options.server) as server:
        yield f"{size}, {server.version_text}"
        yield from asyncio.run(sums.in_redis(server.url, size))


def _tell(title: str, lines: Iterator[str]) -> int:
    """Say how a run went: its figures come first, then what was wrong, which is counted."""
    began = time.monotonic()
    figures, *wrong = lines
    print(f"{title}: {figures}, {time.monotonic() - began:.0f} s: {'VIOLATED' if wrong else 'held'}", flush=True)
    for line in wrong:
        print(f"  {line}", flush=True)

    return len(wrong)


@contextmanager
def a_database(name: str) -> Iterator[str]:
    """The URL of a new one, with the tables."""
    with ExitStack() as stack:
        if name == "postgresql":
            url = stack.enter_context(postgres())
        else:
            url = f"sqlite+aiosqlite:///{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'club.db'}"
        asyncio.run(_prepare(url))
        yield url


async def _prepare(url: str) -> None:
    engine = engine_on(url)
    await make_tables(engine)
    await engine.dispose()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sqlalchemy", description=__doc__)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--database", choices=[*DATABASES, "both"], default="both")
    parser.add_argument("--short", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--server", metavar="PATH", help="the server to start")

    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
