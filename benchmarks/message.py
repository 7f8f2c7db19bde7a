"""The message that everybody carries: an id, a time, three strings and an int; 217 bytes of JSON."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import msgspec

STREAM = "orders"
GROUP = "benchmark"
NOTE = "please leave the parcel with the neighbour at 12b"
CUSTOMER = "customer-000042"
PRODUCT = "sku-1234567890"


class Order(msgspec.Struct):
    """The whole message, for those who carry it in one piece. `n` is its number, or the time when it was sent (monotonic, ns)."""

    message_id: uuid.UUID
    created_at: datetime
    customer: str
    product: str
    note: str
    n: int


class OrderData(msgspec.Struct):
    """What is left of it in the payload when an envelope has the id and the time."""

    customer: str
    product: str
    note: str
    n: int


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(OrderData).decode


def order(n: int) -> Order:
    return Order(uuid.uuid4(), datetime.now(UTC), CUSTOMER, PRODUCT, NOTE, n)


def fields(order: Order) -> tuple[bytes | str, ...]:
    """The stream entry: the four fields of the project's wire."""
    return (
        b"id", str(order.message_id),
        b"created_at", order.created_at.isoformat(),
        b"type", b"order_placed_v1",
        b"payload", encode(OrderData(order.customer, order.product, order.note, order.n)),
    )  # fmt: skip


PAYLOAD = 7
"""Where in the entry the payload is."""
