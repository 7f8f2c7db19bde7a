"""Registers books in a database: `python -m examples.reading_club.desk 9780441172719 "Dune" "Frank Herbert"`.

`eventbus relay examples.reading_club.desk:relay` sends what was left unsent, when the server was away or the desk died.
"""

import sys

import anyio
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from eventbus import connect
from eventbus.sqlalchemy import Relay
from examples.reading_club.adapters.sql import METADATA, OUTBOX, SqlLibrary
from examples.reading_club.domain.messages import RegisterBook
from examples.reading_club.domain.model import AlreadyRegistered
from examples.reading_club.publisher import read_command, register
from examples.reading_club.settings import DATABASE, STREAM, URL

engine = create_async_engine(DATABASE)
sessions = async_sessionmaker(engine)
relay = Relay(engine, connect(URL, stream=STREAM), tables=OUTBOX)


async def main(command: RegisterBook) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    try:
        async with connect(URL, stream=STREAM) as transport:
            book = await register(command, SqlLibrary(sessions(), transport=transport))
        print(f"registered {book.title!r}")
    finally:
        await engine.dispose()


if __name__ == "__main__":
    try:
        anyio.run(main, read_command())
    except AlreadyRegistered as exc:
        sys.exit(str(exc))
