"""The messagebus package in process. Run by the Python of an environment that has it."""

from __future__ import annotations

from typing import Any

import messagebus
import pydantic

from benchmarks.meter import repeated


class PlaceOrder(messagebus.Command):
    order: str
    metadata: messagebus.Metadata = messagebus.Metadata(name="place_order", schema_version=1, published=False)


class Placed(messagebus.Event):
    order: str
    metadata: messagebus.Metadata = messagebus.Metadata(name="placed", schema_version=1, published=False)


class PurchaseOrder(messagebus.Model):
    id: str = pydantic.Field(...)


class Orders(messagebus.AsyncAbstractRepository[PurchaseOrder]):
    def __init__(self) -> None:
        self.orders: dict[str, PurchaseOrder] = {}
        self.seen: list[PurchaseOrder] = []

    async def add(self, order: PurchaseOrder) -> None:
        self.orders[order.id] = order
        self.seen.append(order)


class Shop(messagebus.AsyncAbstractUnitOfWork):
    def __init__(self) -> None:
        self.orders = Orders()

    async def commit(self) -> None:
        pass

    async def rollback(self) -> None:
        pass


async def dispatch(n: int) -> dict[str, Any]:
    first: list[str] = []
    second: list[str] = []

    async def place(command: PlaceOrder, uow: Shop) -> str:
        order = PurchaseOrder(id=command.order)
        order.messages.append(Placed(order=command.order))
        await uow.orders.add(order)

        return order.id

    async def one(event: Placed, uow: Shop) -> None:
        first.append(event.order)

    async def two(event: Placed, uow: Shop) -> None:
        second.append(event.order)

    # It reads annotations when it registers, where ours are still text.
    place.__annotations__["command"] = PlaceOrder
    one.__annotations__["event"] = two.__annotations__["event"] = Placed
    bus: Any = messagebus.AsyncMessageBus()
    bus.add_listener(PlaceOrder, place)
    bus.add_listener(Placed, one)
    bus.add_listener(Placed, two)

    async def once() -> None:
        async with Shop() as uow:
            await bus.handle(PlaceOrder(order="o1"), uow)
            await uow.commit()

    result = await repeated(once, n)
    assert len(first) == len(second) == n + n // 20

    return result
