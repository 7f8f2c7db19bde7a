# pyright: reportPrivateUsage=false
"""What a failing test shows of a transport: its streams and groups, and what is pending, delayed and dead in them.

It is asked from outside of any event loop, when the test is over. So it looks into a `MemoryTransport`, and asks a server over a connection
of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from eventbus.connect import hide_passwords
from eventbus.errors import excerpt
from eventbus.memory import MemoryTransport
from eventbus.transport import DeadLetter, utc

if TYPE_CHECKING:
    from eventbus.redis import RedisTransport

SHOWN = 10
"""Of each kind, at most; how many more there are is said."""
SCANNED = 1000
"""Keys up to which a server is searched for streams; on one that has more, only the transport's own is shown."""


def describe(thing: object) -> str:
    """The state of a transport as text; empty for anything else."""
    try:
        if isinstance(thing, MemoryTransport):
            return "\n".join([repr(thing), *_of_memory(thing)])
        module = sys.modules.get("eventbus.redis.transport")  # whoever has one has imported it
        if module is not None and isinstance(thing, module.RedisTransport):
            return "\n".join([repr(thing), *_of_redis(cast("RedisTransport", thing))])
    except Exception as exc:  # a report about a failure must not become another
        return f"{thing!r}\n(cannot be shown: {type(exc).__name__}: {excerpt(hide_passwords(str(exc)))})"

    return ""


def _of_memory(transport: MemoryTransport) -> Iterator[str]:
    now = transport.clock.time()
    for stream in transport._streams.values():
        yield _stream(stream.name, len(stream.entries))
        for group in stream.groups.values():
            yield _group(
                group.name,
                len(stream.entries) - group.position + len(group.retry),
                len(group.pending),
                len(group.delayed),
                len(group.dead),
            )
            yield from _first("pending", [
                f"{held.entry.entry_id} {_type(held.entry.fields)}, attempt {held.entry.attempt}, held by {held.owner}"
                for held in group.pending.values()
            ])  # fmt: skip
            yield from _first("delayed", [
                f"{again.entry_id} {_type(again.fields)}, attempt {again.attempt} in {due - now:.3g} s: {again.last_error}"
                for due, _, again in sorted(group.delayed, key=lambda delayed: delayed[:2])
            ])  # fmt: skip
            yield from _first("dead", map(_dead, group.dead.values()))


def _of_redis(transport: RedisTransport) -> Iterator[str]:
    from eventbus.redis.dead_letters import dead_letter_from
    from eventbus.redis.keys import Keys

    with _client(transport) as client:
        for stream in _streams(client, transport.stream):
            yield _stream(stream, client.xlen(stream))
            for name in [row["name"].decode() for row in client.xinfo_groups(stream)]:
                keys = Keys(stream, name)
                unread = pending = 0
                held: list[str] = []
                for key in (stream, keys.retry):
                    for row in client.xinfo_groups(key) if client.exists(key) else ():
                        if row["name"].decode() == name:
                            pending += row["pending"]
                            unread += len(client.xrange(key, f"({row['last-delivered-id'].decode()}", "+", 10_000))
                            held += _held(client, key, name)
                yield _group(name, unread, pending, client.zcard(keys.delayed), client.xlen(keys.dead))
                yield from _first("pending", held)
                yield from _first("delayed", [
                    f"{member.decode()} at {utc(due / 1000):%H:%M:%S.%f}"
                    for member, due in client.zrange(keys.delayed, 0, SHOWN, withscores=True)
                ])  # fmt: skip
                yield from _first("dead", [
                    _dead(dead_letter_from(id.decode(), [word for pair in fields.items() for word in pair], stream, name))
                    for id, fields in client.xrange(keys.dead, "-", "+", SHOWN + 1)
                ])  # fmt: skip


def _client(transport: RedisTransport) -> Any:
    """A connection of our own, without asyncio, to where the transport's go. What does not answer at once is not shown."""
    settings: Mapping[str, Any] = transport.endpoint._settings
    if "server" in settings:
        import fakeredis

        return fakeredis.FakeRedis(server=settings["server"])
    from eventbus.redis.clients import client_beside

    return client_beside(transport.endpoint)


def _streams(client: Any, default: str) -> list[str]:
    names: set[str] = {default} if client.exists(default) else set()
    if client.dbsize() <= SCANNED:
        names |= {name.decode() for name in client.scan_iter(count=SCANNED, _type="stream") if not name.startswith(b"{")}

    return sorted(names)


def _held(client: Any, key: str, group: str) -> list[str]:
    return [
        f"{row['message_id'].decode()} of {key}, held by {row['consumer'].decode()}, "
        f"untouched for {row['time_since_delivered'] / 1000:.3g} s"
        for row in client.xpending_range(key, group, "-", "+", SHOWN + 1)
    ]


def _stream(name: str, entries: Any) -> str:
    return f"{name}: {entries} entries"


def _group(name: str, unread: int, pending: int, delayed: int, dead: int) -> str:
    return f"  {name}: {unread} unread, {pending} pending, {delayed} delayed, {dead} dead"


def _first(kind: str, rows: Any) -> Iterator[str]:
    rows = list(rows)
    for row in rows[:SHOWN]:
        yield f"    {kind}  {row}"
    if len(rows) > SHOWN:
        yield f"    {kind}  … and more"


def _dead(dead_letter: DeadLetter) -> str:
    fields = [word for pair in dead_letter.fields.items() for word in pair]
    error = f": {dead_letter.error_type}: {excerpt(dead_letter.error)}" if dead_letter.error_type else ""

    return f"{dead_letter.entry_id} {_type(fields)}, {dead_letter.reason} at attempt {dead_letter.attempts}{error}"


def _type(fields: Any) -> str:
    """The type on an envelope, as far as there is one."""
    written = dict(zip(fields[::2], fields[1::2], strict=False))

    return excerpt(written.get(b"type", b"(no envelope)").decode(errors="replace"), 80)
