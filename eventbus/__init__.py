"""Commands and events in process, published to Redis Streams when their unit of work commits, handled elsewhere in the same way.

The order in which a message flows is the order in which to read the package: `messages`, `models`, `bus`, `unit_of_work`, `envelope`,
`transport`, `memory`, `subscriber`, `redis`.
"""

from eventbus.bus import MessageBus, listen
from eventbus.connect import connect
from eventbus.envelope import Envelope
from eventbus.errors import EventBusError, Reject, Retry
from eventbus.memory import MemoryTransport
from eventbus.message_store import InMemoryMessageStore, MessageStore, SinkholeMessageStore
from eventbus.messages import Command, Event, Message, Metadata
from eventbus.models import Model, Repository
from eventbus.retry import exponential
from eventbus.subscriber import Subscriber
from eventbus.transport import Delivery, Transport
from eventbus.unit_of_work import TransactionStatus, UnitOfWork

__all__ = [
    "Command",
    "Delivery",
    "Envelope",
    "Event",
    "EventBusError",
    "InMemoryMessageStore",
    "MemoryTransport",
    "Message",
    "MessageBus",
    "MessageStore",
    "Metadata",
    "Model",
    "Reject",
    "Repository",
    "Retry",
    "SinkholeMessageStore",
    "Subscriber",
    "Transport",
    "TransactionStatus",
    "UnitOfWork",
    "connect",
    "exponential",
    "listen",
]

__version__ = "0.1.0"
