"""A small application: a desk that registers books, and a reader that counts what it hears of. Each has a table, an effect and an event."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus import Command, Event, MessageBus, Metadata, UnitOfWork

METADATA = MetaData()
BOOKS = Table("books", METADATA, Column("title", String, primary_key=True))
EFFECTS = Table("effects", METADATA, Column("number", Integer, primary_key=True), Column("title", String))


class Register(Command):
    title: str


class Registered(Event):
    metadata = Metadata(name="registered", published=True, key="title")
    title: str


class Noted(Event):
    """Stays at home."""

    title: str


class Counted(Event):
    """What a reader tells others in its turn."""

    metadata = Metadata(name="counted", published=True, stream="counts")
    title: str


class Club(UnitOfWork):
    """One transaction of either."""

    session: AsyncSession

    async def __aexit__(self, *failure: Any) -> None:
        try:
            await super().__aexit__(*failure)
        finally:
            await self.session.close()


desk = MessageBus()
reader = MessageBus()


@desk.listen
async def register(command: Register, uow: Club) -> None:
    await uow.session.execute(insert(BOOKS).values(title=command.title))
    uow.emit(Registered(command.title))
    uow.emit(Noted(command.title))


@reader.listen
async def count(event: Registered, uow: Club) -> None:
    await uow.session.execute(insert(EFFECTS).values(title=event.title))
    uow.emit(Counted(event.title))
