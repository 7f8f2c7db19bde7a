"""A service for tests of processes: it writes down the number of each message that it handles, one file a process.

`RECORD_TO` is the folder, `RECORD_GROUP` the group, `EVENTBUS_URL` the server.
"""

import os
from pathlib import Path

from eventbus import Event, MessageBus, Metadata, Subscriber, connect

STREAM = "numbers"


class Counted(Event):
    metadata = Metadata(name="counted", published=True, stream=STREAM)
    number: int


def recorder() -> Subscriber:
    group = os.environ["RECORD_GROUP"]
    record = (Path(os.environ["RECORD_TO"]) / f"{group}-{os.getpid()}").open("w", buffering=1)
    bus = MessageBus()

    @bus.listen
    async def write_down(event: Counted) -> None:
        record.write(f"{event.number}\n")

    return Subscriber(bus=bus, transport=connect(os.environ["EVENTBUS_URL"]), streams=[STREAM], group=group, lease=2.0)
