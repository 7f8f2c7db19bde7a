"""Each script against a real server: what it promises, for the right owner and the wrong one, once and twice, and when memory is full."""

import asyncio
from typing import Any

import pytest
import redis

from eventbus.redis import RedisTransport, retention
from eventbus.redis.keys import Keys
from eventbus.redis.retention import Retention
from eventbus.redis.scripts import (
    ACK,
    ADOPT,
    AUDIT,
    BACKLOG,
    BEGIN,
    BURY,
    COUNT,
    DUE,
    GLANCE,
    JOIN,
    PRUNE,
    PUBLISH,
    REAP,
    RELEASE,
    RENEW,
    REQUEUE,
    RETRY,
    SWEEP,
    TRIM,
)

S = "club"
KEYS = Keys(S, "g")
RAW = b"\x00\xff\r\n$3 {}"
WORDS = ("id", "one", "payload", RAW)
WINDOW = 600_000
HIGHEST = "18446744073709551615-18446744073709551615"
FULL = "OOM|used memory"  # redis-py takes the word off, and Redis 6.2 wraps it


def published(server: Any, *ids: str) -> list[bytes]:
    words: list[object] = [WINDOW]
    for id in ids:
        words += [id, 4, "id", id, "payload", RAW]
    reply: list[bytes] = server.run(PUBLISH, S, *KEYS.published, KEYS.added, args=tuple(words))
    return reply


def joined(server: Any, start: str = "0", healing: int = 0) -> bytes:
    reply: list[bytes] = server.run(JOIN, S, KEYS.retry, KEYS.state, KEYS.added, KEYS.delayed, args=("g", start, healing))
    return reply[0]


def held(server: Any, *ids: str, consumer: str = "me") -> list[bytes]:
    """Entries that were published and read by a consumer."""
    entries = published(server, *ids)
    joined(server)
    server("XREADGROUP", "GROUP", "g", consumer, "COUNT", 5000, "STREAMS", S, ">")
    return entries


def counted(server: Any, field: str) -> int:
    return int((server.client.hget(KEYS.state, field) or b"0").split()[0])


# -------------------------------------------------------------------------------------------------------------- publish


def test_publish_appends_in_order_and_returns_the_entry_ids(server: Any) -> None:
    """A batch lies in the stream in its order, byte for byte."""
    ids = published(server, "a", "b", "c")

    entries = server.client.xrange(S)
    assert ids == [id for id, _ in entries]
    assert [b"a", b"b", b"c"] == [fields[b"id"] for _, fields in entries]
    assert [RAW] * 3 == [fields[b"payload"] for _, fields in entries]


def test_publish_adds_an_envelope_id_once(server: Any) -> None:
    """Asked again, wholly or in part or within one batch, it answers with the ids of the first time."""
    [a, b] = published(server, "a", "b")

    assert [a, b] == published(server, "a", "b")
    c, again, first = published(server, "c", "c", "a")
    assert (c, a) == (again, first)
    assert 3 == server.client.xlen(S)


def test_publish_takes_any_name_for_an_envelope_id(server: Any) -> None:
    """None of them is one that the windows use for themselves, alone or with others."""
    for name in ("window", "0", "number"):
        assert published(server, name) == published(server, name, "other")[:1]

    assert [b"window", b"other", b"0", b"number"] == [fields[b"id"] for _, fields in server.client.xrange(S)]


def test_publish_remembers_over_the_change_of_a_window(server: Any) -> None:
    """An id of the window before is still known; one of two windows ago is not, and is forgotten by expiry too."""
    published(server, "a")
    this = next(key for key in KEYS.published if server.client.exists(key))
    other = next(key for key in KEYS.published if key != this)
    number = int(server.client.hget(this, ""))

    server.client.hset(this, "", number - 2)
    published(server, "a")
    assert 2 == server.client.xlen(S)

    server.client.delete(*KEYS.published)
    server.client.hset(other, mapping={"": number - 1, "z": "5-0"})
    assert [b"5-0"] == published(server, "z")
    published(server, "y")
    assert 0 < server.client.pttl(this) <= 2 * WINDOW


def test_publish_of_a_large_batch_is_one_step(server: Any) -> None:
    """A unit of work with thousands of events is still all or nothing."""
    ids = published(server, *(str(n) for n in range(5000)))

    assert 5000 == len(set(ids)) == server.client.xlen(S)


def test_publish_changes_nothing_when_memory_is_full(server: Any) -> None:
    """The first write is the one that a full server refuses."""
    published(server, "a")
    server.fill()

    with pytest.raises(redis.ResponseError, match=FULL):
        published(server, "b", "c")
    server.client.config_set("maxmemory", 0)
    assert 1 == server.client.xlen(S)
    assert 2 == len(published(server, "b", "c"))
    assert 3 == server.client.xlen(S)


# ----------------------------------------------------------------------------------------------------------------- join


def test_join_makes_the_group_where_it_is_to_begin(server: Any) -> None:
    """On the stream at the start that was asked for, on the retry stream at the beginning; a second time it does nothing."""
    [_, second, _] = published(server, "a", "b", "c")

    assert b"start" == joined(server, second.decode())
    assert b"" == joined(server, "0")
    [group] = server.client.xinfo_groups(S)
    assert second == group["last-delivered-id"]
    assert [b"0-0"] == [group["last-delivered-id"] for group in server.client.xinfo_groups(KEYS.retry)]
    assert (2, second) == (counted(server, "base"), server.client.hget(KEYS.state, "checkpoint"))


def test_join_at_the_end_sees_only_what_comes(server: Any) -> None:
    """`$` is resolved on the server, at that moment."""
    published(server, "a", "b")
    joined(server, "$")
    [c] = published(server, "c")

    [[_, entries]] = server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">")
    assert [c] == [id for id, _ in entries]
    assert 2 == counted(server, "base")


def test_join_heals_a_destroyed_group_at_its_checkpoint(server: Any) -> None:
    """No gap: what was not settled is delivered again."""
    [a, _, _] = held(server, "a", "b", "c")
    server.run(ACK, S, KEYS.state, args=("g", "settled", a))
    server.run(SWEEP, S, KEYS.state, args=("g", "me", 60_000, "0-0", 10, 1))
    server.client.xgroup_destroy(S, "g")

    assert b"checkpoint" == joined(server, "$", healing=1)
    [[_, entries]] = server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">")
    assert [b"b", b"c"] == [fields[1] if isinstance(fields, list) else fields[b"id"] for _, fields in entries]


def test_join_heals_where_it_was_when_even_the_checkpoint_is_lost(server: Any) -> None:
    """What its consumer knows; and at 0 if that is nothing, or a place that this stream has not come to."""
    [a, _] = published(server, "a", "b")
    for place, where in ((a.decode(), b"start"), ("$", b"beginning"), (HIGHEST, b"beginning")):
        assert where == joined(server, place, healing=1)
        [group] = server.client.xinfo_groups(S)
        assert (a if where == b"start" else b"0-0") == group["last-delivered-id"]
        server.client.xgroup_destroy(S, "g")
        server.client.delete(KEYS.state)


@pytest.mark.parametrize("healing", [0, 1])
def test_join_begins_anew_on_a_stream_that_is_another_one(server: Any, healing: int) -> None:
    """A checkpoint above all that it has is one of a stream before, on a server whose clock went ahead."""
    published(server, "a", "b")
    server.client.hset(KEYS.state, "checkpoint", "99999999999999-0")

    assert b"beginning" == joined(server, "$", healing=healing)
    assert 2 == len(server.client.xreadgroup("g", "me", {S: ">"})[0][1])


def test_join_has_a_long_way_counted_beforehand(server: Any) -> None:
    """5,000 entries are counted here; what was counted before holds as long as its first entry is there."""
    ids = published(server, *map(str, range(7_000)))
    first, start, last = ids[0], "0-1", ids[-1]
    keys = (S, KEYS.retry, KEYS.state, KEYS.added, KEYS.delayed)
    assert [b"count", start.encode(), last, first] == server.run(JOIN, *keys, args=("g", start, 0))
    assert [] == server.client.xinfo_groups(S)
    assert b"count" == server.run(JOIN, *keys, args=("g", start, 0, 7_000, last, ids[1]))[0]
    assert [b"start", start.encode()] == server.run(JOIN, *keys, args=("g", start, 0, 7_000, last, first))
    assert 0 == counted(server, "base")


def test_join_heals_a_lost_stream_at_the_beginning(server: Any) -> None:
    """After FLUSHALL nothing that comes is missed, wherever the group once began."""
    joined(server, "$")
    server.client.flushall()

    assert b"beginning" == joined(server, "$", healing=1)
    published(server, "a")
    assert 1 == len(server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">"))


# ------------------------------------------------------------------------------------------------------ ack, retry, bury


def test_ack_settles_and_counts_once(server: Any) -> None:
    """A second run settles and counts nothing, and a full server does not stop it."""
    ids = held(server, "a", "b")
    server.fill()

    assert 2 == server.run(ACK, S, KEYS.state, args=("g", "settled", *ids))
    assert 0 == server.run(ACK, S, KEYS.state, args=("g", "settled", *ids))
    assert (0, 2) == (server.client.xpending(S, "g")["pending"], counted(server, "settled"))


def retried(server: Any, id: bytes, delay: int = 0, consumer: str = "me") -> object:
    entry = b"".join(b"%d:%b" % (len(word), word) for word in (b"id", b"one", b"payload", RAW, b"retry-attempt", b"2"))
    return server.run(RETRY, S, KEYS.delayed, KEYS.delayed_entries, KEYS.state, args=("g", consumer, id, "settled", delay, entry))


def test_retry_and_due_bring_the_entry_back_byte_for_byte(server: Any) -> None:
    """Through the delayed set to the retry stream of the group; the shared stream is not touched."""
    [a] = held(server, "a")

    assert 1 == retried(server, a)
    assert 0 == retried(server, a)
    assert [1, -1, []] == server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    assert [0, -1, []] == server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    [(_, fields)] = server.client.xrange(KEYS.retry)
    assert {b"id": b"one", b"payload": RAW, b"retry-attempt": b"2"} == fields
    assert (1, 0, 1) == (server.client.xlen(S), server.client.xpending(S, "g")["pending"], counted(server, "settled"))
    assert 0 == server.client.exists(KEYS.delayed, KEYS.delayed_entries)


def test_what_is_not_due_waits(server: Any) -> None:
    """The mover is told how long."""
    [a] = held(server, "a")
    retried(server, a, delay=60_000)

    moved, wait, _ = server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    assert 0 == moved
    assert 50_000 < wait <= 60_000


def test_a_stranger_cannot_retry(server: Any) -> None:
    """Nor can one who lost the lease."""
    [a] = held(server, "a")

    assert 0 == retried(server, a, consumer="stranger")
    assert ("me", 1) == server.owner(S, "g", a)
    assert 0 == server.client.exists(KEYS.delayed, KEYS.delayed_entries)


def test_retry_changes_nothing_when_memory_is_full(server: Any) -> None:
    """The delivery stays pending with its owner."""
    [a] = held(server, "a")
    server.fill()

    with pytest.raises(redis.ResponseError, match=FULL):
        retried(server, a)
    assert ("me", 1) == server.owner(S, "g", a)


def test_a_delayed_entry_that_cannot_be_read_is_set_aside(server: Any) -> None:
    """The others flow, and it can be found."""
    [a] = held(server, "a")
    retried(server, a)
    server.client.zadd(KEYS.delayed, {"broken": 0, "missing": 0})
    server.client.hset(KEYS.delayed_entries, "broken", "3:ab")

    moved, _, unreadable = server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    assert (1, [b"broken", b"missing"]) == (moved, sorted(unreadable))
    assert {b"unreadable broken": b"3:ab"} == server.client.hgetall(KEYS.delayed_entries)


def test_a_clock_set_back_while_nothing_was_delayed_shortens_nothing(server: Any) -> None:
    """What is delayed after that has a time of the new clock, whatever was noted before."""
    [a, b] = held(server, "a", "b")
    seconds, _ = server.client.time()
    server.client.hset(KEYS.state, f"clock {KEYS.delayed}", seconds * 1000 + 600_000)
    retried(server, a, delay=400_000)
    retried(server, b, delay=900_000)

    moved, wait, _ = server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    assert 0 == moved
    assert 390_000 < wait <= 400_000


def buried(server: Any, id: bytes, consumer: str = "me") -> object:
    return server.run(BURY, S, KEYS.dead, KEYS.state, args=("g", consumer, id, "settled", *WORDS, "dead-reason", "never"))


def test_bury_moves_to_the_dead_letters_in_one_step(server: Any) -> None:
    """With the original bytes and the story; a second run does nothing, and a stranger's neither."""
    [a] = held(server, "a")

    assert b"" == buried(server, a, consumer="stranger")
    id = buried(server, a)
    assert b"" == buried(server, a)
    assert [(id, {b"id": b"one", b"payload": RAW, b"dead-reason": b"never"})] == server.client.xrange(KEYS.dead)
    assert (0, 1) == (server.client.xpending(S, "g")["pending"], counted(server, "settled"))


def test_bury_leaves_the_delivery_pending_when_memory_is_full(server: Any) -> None:
    """A dead letter that cannot be written is not lost."""
    [a] = held(server, "a")
    server.fill()

    with pytest.raises(redis.ResponseError, match=FULL):
        buried(server, a)
    assert ("me", 1) == server.owner(S, "g", a)


def test_requeue_goes_to_the_retry_stream_once(server: Any) -> None:
    """Also when the original entry is gone."""
    [a] = held(server, "a")
    id = buried(server, a)
    server.client.xtrim(S, maxlen=0)

    assert b"" != server.run(REQUEUE, KEYS.dead, KEYS.retry, KEYS.state, args=(id, *WORDS))
    assert b"" == server.run(REQUEUE, KEYS.dead, KEYS.retry, KEYS.state, args=(id, *WORDS))
    assert 1 == counted(server, "requeued")
    assert [{b"id": b"one", b"payload": RAW}] == [fields for _, fields in server.client.xrange(KEYS.retry)]
    assert 0 == server.client.xlen(KEYS.dead)


# ------------------------------------------------------------------------------------------------------- begin and leases


def test_begin_counts_the_starts_of_an_owner(server: Any) -> None:
    """The count outlives the process, and is forgotten with the delivery."""
    [a] = held(server, "a")

    assert [1, 2, 3] == [server.run(BEGIN, S, KEYS.state, args=("g", "me", a, mark)) for mark in ("x", "y", "x")]
    assert 0 == server.run(BEGIN, S, KEYS.state, args=("g", "stranger", a, "z"))
    buried(server, a)
    assert 0 == counted(server, f"crash {S} {a.decode()}")


def test_begin_counts_a_start_once_however_often_it_is_asked(server: Any) -> None:
    """Or lost replies would bury what never killed anything."""
    [a] = held(server, "a")

    assert [1, 1, 2, 2] == [server.run(BEGIN, S, KEYS.state, args=("g", "me", a, mark)) for mark in ("x", "x", "y", "y")]


def test_begin_works_when_memory_is_full(server: Any) -> None:
    """Or what a dead consumer left would stand in the way of everything else, and nobody could drain a full server."""
    [a] = held(server, "a")
    server.fill()

    assert [1, 2] == [server.run(BEGIN, S, KEYS.state, args=("g", "me", a, mark)) for mark in ("x", "y")]
    assert (1, 2) == (server.owner(S, "g", a)[1], counted(server, f"crash {S} {a.decode()}"))


def test_renew_tells_what_is_lost_from_what_is_gone(server: Any) -> None:
    """And both from what somebody else has settled. It takes nothing back, and counts no delivery."""
    mine, taken, settled, trimmed, deleted = held(server, "a", "b", "c", "d", "e")
    server.client.xclaim(S, "g", "other", 0, [taken])
    server.client.xack(S, "g", settled, deleted)
    server.client.xdel(S, trimmed, deleted)

    lost, gone, done, unknown = server.run(RENEW, S, KEYS.state, args=("g", "me", mine, taken, settled, trimmed, deleted))
    assert ([taken], [settled], [deleted]) == (lost, done, unknown)
    assert [] == gone or [trimmed] == gone  # Redis 6.2 does not tell
    assert len(gone) == counted(server, "vanished")
    assert ("me", 1) == server.owner(S, "g", mine)
    assert "other" == server.owner(S, "g", taken)[0]


def test_renew_takes_nothing_for_settled_that_its_group_has_not_read(server: Any) -> None:
    """A group that was made again is delivered it once more: it was forgotten, and not settled. Ids are compared as numbers."""
    server.client.xadd(S, {"n": "a"}, id="9-10")
    server.client.xadd(S, {"n": "b"}, id="10-9")
    server.client.xadd(S, {"n": "c"}, id="10-10")
    server.client.xgroup_create(S, "g", id="10-9")

    lost, gone, settled, unknown = server.run(RENEW, S, KEYS.state, args=("g", "me", "9-10", "10-9", "10-10"))
    assert ([], [], [b"9-10", b"10-9"], [b"10-10"]) == (lost, gone, settled, unknown)


def sweep(server: Any, lease: int, cursor: object = "0-0", count: int = 100, consumer: str = "other") -> Any:
    return server.run(SWEEP, S, KEYS.state, args=("g", consumer, lease, cursor, count, 1))


def test_sweep_claims_what_is_stale_and_counts_no_delivery(server: Any) -> None:
    """With the fields, so that no second round trip is needed; and nothing that is fresh."""
    [a] = held(server, "a")

    assert [b"0-0", [], [], 0] == sweep(server, 60_000)
    server.idle(a)
    cursor, found, vanished, _ = sweep(server, 60_000)
    assert (b"0-0", [[a, 1, [b"id", b"a", b"payload", RAW]]], []) == (cursor, found, vanished)
    assert ("other", 1) == server.owner(S, "g", a)


def test_sweep_finds_one_stale_entry_behind_a_thousand_fresh_ones(server: Any) -> None:
    """By going on from the cursor, over empty pages."""
    ids = held(server, *(str(n) for n in range(1001)))
    server.idle(ids[-1])

    cursor: object = "0-0"
    found: list[Any] = []
    for _ in range(102):
        cursor, page, _, _ = sweep(server, 60_000, cursor, count=10)
        found += page
        if cursor == b"0-0":
            break
    assert [ids[-1]] == [id for id, _, _ in found]


def test_few_that_are_wanted_are_soon_looked_for(server: Any) -> None:
    """A sweep for one delivery looks at as many entries in a step as a sweep for a hundred."""
    ids = held(server, *(str(n) for n in range(900)))
    server.idle(ids[-1])

    _, found, _, _ = sweep(server, 60_000, count=1)
    assert [ids[-1]] == [id for id, _, _ in found]


def test_a_glance_says_what_there_is_to_sweep_and_to_move(server: Any) -> None:
    """And notes the checkpoint, as a sweep would."""

    def glance() -> Any:
        return server.run(GLANCE, S, KEYS.retry, KEYS.delayed, KEYS.state, args=("g",))

    a, b = held(server, "a", "b")
    assert [2, 0, 0] == glance()
    assert int(a.split(b"-")[0]) - 1 <= int(server.client.hget(KEYS.state, "checkpoint").split(b"-")[0])

    args = ("g", "me", a, "settled", 60_000, b"2:id1:a")
    server.run(RETRY, S, KEYS.delayed, KEYS.delayed_entries, KEYS.state, args=args)
    server.run(ACK, S, KEYS.state, args=("g", "settled", b))
    assert [0, 0, 1] == glance()
    assert b == server.client.hget(KEYS.state, "checkpoint")


def test_released_entries_are_claimed_at_once_and_are_no_suspects(server: Any) -> None:
    """A delivery count of 0 says so; it is 1 again after the claim. Starts that were counted are forgotten, of what is ours.

    The lease may be a month.
    """
    a, b = held(server, "a", "b")
    for id in (a, b):
        server.run(BEGIN, S, KEYS.state, args=("g", "me", id, "x"))

    assert 1 == server.run(RELEASE, S, KEYS.state, args=("g", "me", 0, a))
    assert 0 == server.run(RELEASE, S, KEYS.state, args=("g", "stranger", 0, b))
    assert (0, 1) == (counted(server, f"crash {S} {a.decode()}"), counted(server, f"crash {S} {b.decode()}"))
    _, found, _, _ = sweep(server, 30 * 86_400_000)
    assert [(a, 0)] == [(id, count) for id, count, _ in found]
    assert [("other", 1), ("me", 1)] == [server.owner(S, "g", id) for id in (a, b)]


def test_released_suspects_that_were_not_started_stay_suspects(server: Any) -> None:
    """They keep the starts that were counted, too."""
    [a] = held(server, "a")
    server.run(BEGIN, S, KEYS.state, args=("g", "me", a, "x"))

    assert 1 == server.run(RELEASE, S, KEYS.state, args=("g", "me", 1, a))
    _, found, _, _ = sweep(server, 30 * 86_400_000)
    assert ([(a, 1)], 1) == ([(id, count) for id, count, _ in found], counted(server, f"crash {S} {a.decode()}"))


def test_sweep_counts_what_vanished_unsettled(server: Any) -> None:
    """An entry that was deleted while it was pending does not stay in the pending list for ever."""
    [a, b] = held(server, "a", "b")
    server.idle(a, b)
    server.client.xdel(S, a)

    _, found, vanished, _ = sweep(server, 60_000)
    assert ([b], [a], 1) == ([id for id, _, _ in found], vanished, counted(server, "vanished"))
    assert 1 == server.client.xpending(S, "g")["pending"]


def test_the_starts_of_a_suspect_that_a_renewal_finds_vanished_are_forgotten(server: Any) -> None:
    """Nobody else forgets them, and a group whose stream is trimmed by others would take more memory from day to day."""
    a, b = held(server, "a", "b")
    for id in (a, b):
        server.run(BEGIN, S, KEYS.state, args=("g", "me", id, "x"))
    server.client.xdel(S, a)

    _, gone, _, _ = server.run(RENEW, S, KEYS.state, args=("g", "me", a, b))
    assert [] == gone or [a] == gone  # Redis 6.2 does not tell: a sweep finds it
    assert (1 - len(gone), 1) == (counted(server, f"crash {S} {a.decode()}"), counted(server, f"crash {S} {b.decode()}"))


def test_the_starts_of_a_suspect_that_vanished_before_it_begins_are_forgotten(server: Any) -> None:
    """It is handled, for its words are there; it cannot come again. Nor can what was found to be gone when it was read again."""
    a, b = held(server, "a", "b")
    for id in (a, b):
        server.run(BEGIN, S, KEYS.state, args=("g", "me", id, "x"))
    server.client.xdel(S, a, b)

    assert server.run(BEGIN, S, KEYS.state, args=("g", "me", a, "y")) in (1, 2)  # Redis 6.2 does not tell: a sweep finds it
    server.run(ACK, S, KEYS.state, args=("g", "vanished", a, b))
    assert [] == [name for name in server.client.hkeys(KEYS.state) if name.startswith(b"crash")]


def test_the_starts_of_a_suspect_that_a_sweep_finds_vanished_are_forgotten(server: Any) -> None:
    """As with a renewal: whose process died with it, and whose entry was deleted, is not counted for ever."""
    a, b = held(server, "a", "b")
    for id in (a, b):
        server.run(BEGIN, S, KEYS.state, args=("g", "me", id, "x"))
    server.idle(a, b)
    server.client.xdel(S, a)

    _, found, vanished, _ = sweep(server, 60_000)
    assert ([b], [a]) == ([id for id, _, _ in found], vanished)
    assert (0, 1) == (counted(server, f"crash {S} {a.decode()}"), counted(server, f"crash {S} {b.decode()}"))


def test_sweep_works_when_memory_is_full(server: Any) -> None:
    """Or nobody could drain a full server."""
    [a] = held(server, "a")
    server.idle(a)
    server.fill()

    _, found, _, _ = sweep(server, 60_000)
    assert [a] == [id for id, _, _ in found]


def test_sweep_notes_the_checkpoint(server: Any) -> None:
    """The id at and below which everything is settled."""
    a, b, c = held(server, "a", "b", "c")
    server.client.xack(S, "g", a, c)
    sweep(server, 60_000)
    checkpoint = server.client.hget(KEYS.state, "checkpoint")

    assert [b, c] == [id for id, _ in server.client.xrange(S, min=b"(" + checkpoint)]
    server.client.xack(S, "g", b)
    sweep(server, 60_000)
    assert c == server.client.hget(KEYS.state, "checkpoint")


def test_sweep_notices_a_clock_that_was_set_back(server: Any) -> None:
    """Then the leases begin anew, each for its owner, so that a dead consumer's still run out."""
    a, b = held(server, "a", "b")
    server.run(RELEASE, S, KEYS.state, args=("g", "me", 0, b))
    server.client.hset(KEYS.state, f"clock {S}", 10**14)
    cursor, [claimed], vanished, back = sweep(server, 60_000)

    assert (b"0-0", b, [], 1) == (cursor, claimed[0], vanished, back)  # what was given back has no lease
    assert ("me", 1) == server.owner(S, "g", a)
    assert [b"0-0", [], [], 0] == sweep(server, 60_000)


def test_reap_removes_the_idle_and_nobody_who_holds_anything(server: Any) -> None:
    """Looking and removing are one step: what a removed consumer holds would be dropped."""
    held(server, "a")
    for name in ("idle", "own"):
        server.client.xgroup_createconsumer(S, "g", name)

    assert [b"idle"] == server.run(REAP, S, args=("g", 0, "own"))
    assert [] == server.run(REAP, S, args=("g", 60_000, ""))
    assert [b"own"] == server.run(REAP, S, args=("g", 0, "", "own"))
    assert [b"me"] == [consumer["name"] for consumer in server.client.xinfo_consumers(S, "g")]


def test_backlog_counts_from_the_entries(server: Any) -> None:
    """Unread, pending and delayed, over the stream and the retry stream; without a group everything is unread."""
    call = (BACKLOG, S, KEYS.retry, KEYS.delayed)
    assert [0, 0, 0, -1] == server.run(*call, args=("g", 1000))
    published(server, "a", "b")
    assert [2, 0, 0, -1] == server.run(*call, args=("g", 1000))
    joined(server)
    [[_, [[a, _], _]]] = server("XREADGROUP", "GROUP", "g", "me", "COUNT", 2, "STREAMS", S, ">")
    published(server, "c")
    retried(server, a, delay=60_000)

    unread, pending, delayed, due = server.run(*call, args=("g", 1000))
    assert (1, 1, 1) == (unread, pending, delayed)
    assert 50_000 < due <= 60_000


# ------------------------------------------------------------------------------------------------------ keeping and counting

DAY = 86_400_000


def trim(server: Any, retention: int = -60_000, max_pin: int = DAY, policy: str = "report") -> list[Any]:
    reply: list[Any] = server.run(TRIM, S, args=(retention, max_pin, policy))
    return reply


def test_trim_never_passes_the_unsettled(server: Any) -> None:
    """The lowest entry that is pending or unread, over all groups, is the bound."""
    a, b, c, d = held(server, "a", "b", "c", "d")
    server.client.xgroup_create(S, "slow", b)
    server.client.xack(S, "g", a, c, d)

    assert [1, b] == trim(server)
    server.client.xack(S, "g", b)
    assert [1, c] == trim(server)
    assert [c, d] == [id for id, _ in server.client.xrange(S)]


def test_trim_keeps_what_is_young(server: Any) -> None:
    """Settled or not."""
    ids = held(server, "a", "b")
    server.client.xack(S, "g", *ids)

    assert 0 == trim(server, retention=60_000)[0]
    assert 2 == trim(server)[0]
    assert [0, b""] == server.run(TRIM, "nowhere", args=(0, DAY, "report"))


def test_trim_reports_a_group_that_pins_the_stream(server: Any) -> None:
    """And passes it over only where the policy says so."""
    server("XADD", S, "1000-0", "id", "old")
    server("XADD", S, "2000-0", "id", "old too")
    server.client.xgroup_create(S, "abandoned", "1000-0")

    assert [1, b"2000-0", b"abandoned", b"2000-0"] == trim(server)
    assert 1 == server.client.xlen(S)
    assert 1 == trim(server, policy="trim")[0]
    assert 0 == server.client.xlen(S)


ADD = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], n .. '-0', 'payload', string.rep('x', ARGV[2])) end"


@pytest.mark.parametrize("size", [10, 300, 1000, 5000])
def test_trim_removes_so_many_in_a_step(server: Any, size: int) -> None:
    """However many lie in a node; what is left is for the next step, which has no other bound."""
    server("EVAL", ADD, 1, S, 21_000, size)
    first, bound = trim(server)
    server("XADD", S, bound, "id", "later")

    second, *_ = server.run(TRIM, S, args=(0, DAY, "report", bound))
    assert 9_900 <= first <= 10_100
    assert 9_900 <= second <= 10_100
    assert 21_000 - first - second == server.run(TRIM, S, args=(-DAY, DAY, "report", bound))[0]
    assert [0, bound] == server.run(TRIM, S, args=(-DAY, DAY, "report", bound))
    assert 1 == server.client.xlen(S)


def test_trim_takes_its_time_with_a_node_that_is_larger_than_a_step(server: Any) -> None:
    """A server may be told to make nodes of any size."""
    limits = {f"stream-node-max-{what}": server.client.config_get(f"stream-node-max-{what}") for what in ("entries", "bytes")}
    try:
        server("CONFIG", "SET", "stream-node-max-entries", 0)
        server("CONFIG", "SET", "stream-node-max-bytes", 0)
        server("EVAL", ADD, 1, S, 10_500, 10)
    finally:
        for found in limits.values():
            [(name, value)] = found.items()
            server("CONFIG", "SET", name, value)

    assert [100, 100] == [trim(server)[0] for _ in range(2)]
    assert 10_300 == server.client.xlen(S)


async def test_a_trim_goes_on_until_all_that_is_old_is_gone(live: RedisTransport, server: Any) -> None:
    """Or a busy stream would grow for ever. Others are served between two steps, and what is added meanwhile is left."""
    server("EVAL", ADD, 1, S, 35_000, 10)
    server("XADD", S, "*", "id", "young")
    served = 0

    async def others() -> None:
        nonlocal served
        while True:
            await live.backlog(S, "g")
            served += 1

    asking = asyncio.ensure_future(others())
    assert 35_000 == await live.trim(S)
    asking.cancel()
    assert served >= 3
    assert [b"young"] == [fields[b"id"] for _, fields in server.client.xrange(S)]


def prune(server: Any, days: int = 30, bound: str | bytes = "") -> Any:
    """How many were removed, up to where, and up to which id they are announced with this call."""
    return server.run(PRUNE, KEYS.dead, KEYS.state, args=(days * DAY, DAY, bound))


def test_prune_raises_the_alarm_a_while_before_it_removes(server: Any) -> None:
    """And removes only what is old by then."""
    assert [0, b"", b""] == prune(server)
    server("XADD", KEYS.dead, "1000-0", "id", "old")
    server("XADD", KEYS.dead, "*", "id", "young")

    assert [[0, b"", b"1000-0"], [0, b"", b""]] == [prune(server), prune(server)]
    server.client.hincrby(KEYS.state, "alarm", -DAY)
    assert [[1, b"1000-1", b""], [0, b"", b""]] == [prune(server), prune(server)]
    assert [b"young"] == [fields[b"id"] for _, fields in server.client.xrange(KEYS.dead)]


def test_prune_removes_none_that_was_not_announced(server: Any) -> None:
    """Also where new ones come all the time: those that came due after the alarm have an alarm of their own."""
    server("XADD", KEYS.dead, "1000-0", "id", "first")
    server("XADD", KEYS.dead, "1000-1", "id", "second")
    assert [0, b"", b"1000-1"] == prune(server)
    server("XADD", KEYS.dead, "1000-2", "id", "third")
    assert [0, b"", b""] == prune(server)
    server.client.hincrby(KEYS.state, "alarm", -DAY)
    assert [2, b"1000-2", b""] == prune(server)

    assert [[0, b"", b"1000-2"], [0, b"", b""]] == [prune(server), prune(server)]
    server.client.hincrby(KEYS.state, "alarm", -DAY)
    assert [[1, b"1000-3", b""], [0, b"", b""]] == [prune(server), prune(server)]
    assert {} == server.client.hgetall(KEYS.state)


def test_prune_announces_the_next_when_what_was_announced_is_gone(server: Any) -> None:
    """Because it was requeued; or the alarm was raised by an earlier version, which did not note for which."""
    server.client.hset(KEYS.state, "alarm", 1)
    server("XADD", KEYS.dead, "1000-0", "id", "first")
    assert b"1000-0" == prune(server)[2]
    server("XADD", KEYS.dead, "1000-1", "id", "second")
    server.client.xdel(KEYS.dead, "1000-0")

    assert b"1000-1" == prune(server)[2]


def test_prune_keeps_what_was_announced_and_is_kept_for_longer_now(server: Any) -> None:
    """The times may be changed at any time."""
    seconds, _ = server.client.time()
    old = seconds * 1000 - 30 * DAY
    for id in (old - DAY, old + DAY // 2):
        server("XADD", KEYS.dead, f"{id}-0", "id", "one")
    assert f"{old + DAY // 2}-0".encode() == prune(server)[2]
    server.client.hincrby(KEYS.state, "alarm", -DAY)

    assert 1 == prune(server)[0]
    assert [0, b"", b""] == prune(server, days=60)
    assert 1 == server.client.xlen(KEYS.dead)


async def test_dead_letters_are_removed_in_steps(live: RedisTransport, server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Or a service that buries much would stop its server for seconds. All that were announced are counted, and go."""
    server("EVAL", ADD, 1, KEYS.dead, 25_000, 10)
    assert 0 == await retention.prune(live._channel, KEYS, Retention())
    assert f"{S}/g: 25000 dead letters will be older than 30 days" in caplog.text

    server.client.hincrby(KEYS.state, "alarm", -DAY)
    first, *_ = prune(server)
    assert 9_900 <= first <= 10_200
    assert 25_000 - first == await retention.prune(live._channel, KEYS, Retention())
    assert f"{25_000 - first} dead letters were dropped" in caplog.text
    assert 0 == server.client.xlen(KEYS.dead)


def audit(server: Any, interval: int = 0) -> Any:
    return server.run(AUDIT, S, KEYS.state, KEYS.added, KEYS.delayed, KEYS.retry, args=("g", interval))


def test_audit_takes_the_numbers_in_one_step(server: Any) -> None:
    """What was added since the group began, settled, pending, and where it stands."""
    assert [] == audit(server)
    published(server, "before")
    joined(server, "$")
    [a, b, c, d] = held(server, "a", "b", "c", "d")
    server.run(ACK, S, KEYS.state, args=("g", "settled", a))
    [e] = published(server, "e")

    added, base, settled, vanished, pending, delivered, last, *_ = audit(server)
    assert (5, 1, 0, 3) == (added - base, settled, vanished, pending)
    assert (d, e) == (delivered, last)
    assert [1, b""] == server.run(COUNT, S, args=(delivered, last, 100))
    server.client.xdel(S, b, c)
    assert [0, b""] == server.run(COUNT, S, args=(a, c, 100))


def test_audit_takes_the_numbers_of_the_retries_too(server: Any) -> None:
    """All that were put off, came to be due, were requeued or set aside, settled, wait, and are in the retry stream."""
    a, b, c, d = held(server, "a", "b", "c", "d")
    for id, delay in ((a, 60_000), (b, 0), (c, 0)):
        retried(server, id, delay)
    server.client.zadd(KEYS.delayed, {"broken": 0, "missing": 0})
    server.client.hset(KEYS.delayed_entries, "broken", "3:ab")
    server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    server.run(REQUEUE, KEYS.dead, KEYS.retry, KEYS.state, args=(buried(server, d), *WORDS))
    server("XREADGROUP", "GROUP", "g", "me", "COUNT", 1, "STREAMS", KEYS.retry, ">")
    first = server.client.xrange(KEYS.retry)[0][0]
    server.run(ACK, KEYS.retry, KEYS.state, args=("g", "retry-settled", first))

    assert [3, 2, 1, 1, 1, 1, 2] == audit(server)[-1]


def test_what_is_settled_in_a_retry_stream_counts_once(server: Any) -> None:
    """Also by who held it before its group was made again, and has not read it: then it is deleted there, and nothing is left to handle."""
    [a] = held(server, "a")
    retried(server, a)
    server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    server("XREADGROUP", "GROUP", "g", "me", "STREAMS", KEYS.retry, ">")
    [(id, _)] = server.client.xrange(KEYS.retry)
    server.client.xgroup_destroy(KEYS.retry, "g")
    joined(server)

    assert [1, 0] == [server.run(ACK, KEYS.retry, KEYS.state, args=("g", "retry-settled", id)) for _ in range(2)]
    assert (1, 0) == (counted(server, "retry-settled"), server.client.xlen(KEYS.retry))


def test_the_counts_of_a_group_begin_once(server: Any) -> None:
    """With one that another program made; what is missing by then is none of ours."""
    published(server, "a", "b")
    server.client.xgroup_create(S, "g", "0")

    assert (b"uncounted", b"") == (joined(server), audit(server)[1])
    server.client.zadd(KEYS.delayed, {"one": 1, "two": 2, "three": 3})
    assert [1, 0] == [server.run(ADOPT, KEYS.state, KEYS.delayed, KEYS.retry, args=(base,)) for base in (2, 7)]
    assert (b"", 2, 3) == (joined(server), audit(server)[1], counted(server, "requeued"))


def test_join_counts_the_retries_that_are_there_already(server: Any) -> None:
    """Of a group whose hash was deleted, and which is made again: none of them is missing, or too many."""
    a, b = held(server, "a", "b")
    retried(server, a)
    retried(server, b, delay=60_000)
    server.run(DUE, KEYS.delayed, KEYS.delayed_entries, KEYS.retry, KEYS.state, args=(100,))
    server.client.delete(KEYS.state)
    server.client.xgroup_destroy(S, "g")

    assert b"start" == joined(server)
    assert [0, 0, 2, 0, 0, 1, 1] == audit(server)[-1]

    server.client.xgroup_destroy(S, "g")

    assert b"checkpoint" == joined(server)
    assert [0, 0, 2, 0, 0, 1, 1] == audit(server)[-1]


def test_audit_answers_one_of_many(server: Any) -> None:
    """Within an interval; asked without one it always answers."""
    held(server, "a")

    assert [] != audit(server, interval=60_000)
    assert [] == audit(server, interval=60_000)
    assert [] != audit(server)


def test_count_stops_at_its_limit_and_goes_on(server: Any) -> None:
    """In pages, so that no call takes long."""
    ids = published(server, *(str(n) for n in range(1200)))

    counted, after = server.run(COUNT, S, args=("0-0", ids[-1], 600))
    rest, end = server.run(COUNT, S, args=(after, ids[-1], 600))
    assert (1200, b"") == (counted + rest, end)


def test_a_stranger_adds_the_highest_id_of_all(server: Any) -> None:
    """Nothing can be added behind it, and the server knows no range there: what was there before is still counted and trimmed."""
    held(server, "a", "b")
    server("XADD", S, HIGHEST, "id", "z")
    assert [3, b""] == server.run(COUNT, S, args=("0-0", HIGHEST, 1000))
    server("XREADGROUP", "GROUP", "g", "me", "STREAMS", S, ">")

    assert [0, 3, 0, -1] == server.run(BACKLOG, S, KEYS.retry, KEYS.delayed, args=("g", 10_000))
    assert [0, b""] == server.run(COUNT, S, args=(HIGHEST, HIGHEST, 1000))
    server.run(ACK, S, KEYS.state, args=("g", "settled", *(id for id, _ in server.client.xrange(S))))
    server.client.xgroup_destroy(S, "g")
    server.client.delete(KEYS.state)
    assert b"start" == joined(server, "$")
    assert 2 == trim(server)[0]
