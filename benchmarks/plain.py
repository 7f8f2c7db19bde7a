"""Dispatch without a library: coroutines that call one another, lists, structs. The lower bound."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from benchmarks.meter import repeated


class Identified(msgspec.Struct, kw_only=True):
    """With an id and a time of its own, as somebody must make them."""

    message_id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)
    created_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))


class PlaceOrder(Identified):
    order: str


class Placed(Identified):
    order: str


async def dispatch(n: int) -> dict[str, Any]:
    repository: dict[str, PlaceOrder] = {}
    raised: list[Placed] = []
    first: list[str] = []
    second: list[str] = []

    async def place(command: PlaceOrder) -> str:
        repository[command.order] = command
        raised.append(Placed(order=command.order))

        return command.order

    async def one(event: Placed) -> None:
        first.append(event.order)

    async def two(event: Placed) -> None:
        second.append(event.order)

    async def commit() -> None:
        raised.clear()

    async def once() -> None:
        await place(PlaceOrder(order="o1"))
        for event in raised:
            await one(event)
            await two(event)
        await commit()

    return await repeated(once, n)
