"""Variants of the library that are broken on purpose, to prove that the harness can see.

`apply` changes the library in this process: it is called in the processes of the harness only, for the variant that the environment variable
`FAULTS_BROKEN` names.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

from eventbus.redis import scripts
from eventbus.redis.scripts import Script
from eventbus.redis.subscription import RedisSubscription
from eventbus.subscriber import _Run  # pyright: ignore[reportPrivateUsage]

VARIABLE = "FAULTS_BROKEN"

VARIANTS: dict[str, Callable[[], None]] = {}


def apply(name: str) -> None:
    """Break it, or not if there is no name."""
    if name:
        VARIANTS[name]()


def variant(breaks: Callable[[], None]) -> Callable[[], None]:
    VARIANTS[breaks.__name__.replace("_", "-")] = breaks

    return breaks


def _replace(script: Script, *changes: tuple[str, str]) -> None:
    """Another text for a script; what is to be replaced must be there."""
    text = script.text
    for old, new in changes:
        if old not in text:
            raise AssertionError(f"{script.name}.lua has no {old!r} any more: the broken variant breaks nothing")
        text = text.replace(old, new)
    script.text = text
    script.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    scripts.BY_SHA[script.sha] = script


@variant
def ack_before_handling() -> None:
    """Settled on arrival: what a process dies with is gone."""
    handle = _Run._handle

    async def handle_acked(self: _Run, subscription: Any, delivery: Any) -> None:
        subscription.ack(delivery)
        await subscription.flush()
        await handle(self, subscription, delivery)

    _Run._handle = handle_acked  # type: ignore[method-assign]


@variant
def renewal_without_owner_check() -> None:
    """Whoever was frozen takes back what others have begun, and goes on with what they have settled.

    Without the second, who takes it back is still told when the other has settled it, and stops in time.
    """
    settled_by_others_not_told()
    _replace(scripts.RENEW, ("elseif p[2] ~= ARGV[2] then", "elseif false then"))


@variant
def own_pending_not_read_again() -> None:
    """What was on its way when the line was cut waits for its lease to run out."""

    async def read_nothing(self: RedisSubscription, limit: int) -> list[Any]:
        self._own.clear()
        return []

    RedisSubscription._read_own = read_nothing  # type: ignore[method-assign]


@variant
def crashes_counted_at_fetch() -> None:
    """Everything in the hands of a process that died is blamed for it, and not what had begun."""
    _replace(
        scripts.SWEEP,
        (
            "found[#found + 1] = {id, count, entry[2]}",
            "redis.call('HINCRBY', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. id, 1) found[#found + 1] = {id, count, entry[2]}",
        ),
    )
    _replace(
        scripts.BEGIN,
        ("if mark ~= ARGV[4] then", "if count == '0' then"),
    )  # fmt: skip


@variant
def crashes_not_counted() -> None:
    """A message that kills its process is tried for ever."""
    _replace(
        scripts.BEGIN,
        ("return tonumber(count)", "return 1"),
    )


@variant
def consumers_removed_without_check() -> None:
    """XGROUP DELCONSUMER drops what the consumer held."""
    _replace(scripts.REAP, ("c.pending == 0 and", ""))


@variant
def trimmed_by_length() -> None:
    """MAXLEN knows nothing of who has read what."""
    _replace(scripts.TRIM, ("local n = redis.call(", "redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', 100)\nlocal n = redis.call("))


@variant
def plain_xadd() -> None:
    """A publish whose reply was lost is asked again, and adds again."""
    _replace(scripts.PUBLISH, ("if not id then", "if true then"))


@variant
def group_recreated_at_its_end() -> None:
    """What was published and not read when the group was lost is skipped."""
    at_the_end = "if ARGV[3] == '1' then where, start = 'checkpoint', '$'"
    _replace(scripts.JOIN, ("if checkpoint and last and", f"{at_the_end} elseif checkpoint and last and"))


@variant
def buried_without_owner_check() -> None:
    """Who lost the lease buries all the same."""
    _replace(scripts.BURY, ("if not owner or owner[2] ~= ARGV[2] then return '' end", ""))


@variant
def retried_without_owner_check() -> None:
    """Who lost the lease has it tried again all the same."""
    _replace(scripts.RETRY, ("if not owner or owner[2] ~= ARGV[2] then return 0 end", ""))


@variant
def acks_counted_as_asked() -> None:
    """An ack of what another has settled counts again."""
    count = "redis.call('HINCRBY', KEYS[2], ARGV[2], {})"
    _replace(scripts.ACK, (f"if n > 0 then {count.format('n')} end", count.format("#ARGV - 2")))


@variant
def not_released_on_drain() -> None:
    """What never started is left behind for its lease to run out, as if its process had died with it."""

    async def release_nothing(self: RedisSubscription, deliveries: Any) -> None:
        for delivery in deliveries:
            self._held.pop((delivery.source, delivery.source_id), None)

    RedisSubscription.release = release_nothing  # type: ignore[method-assign]


@variant
def leases_not_renewed() -> None:
    """A handler that takes longer than a lease is run twice."""

    async def renew_nothing(self: RedisSubscription) -> None:
        self._oldest = math.inf
        self._have_renewed(time.monotonic())

    RedisSubscription._renew = renew_nothing  # type: ignore[method-assign]


@variant
def settled_by_others_not_told() -> None:
    """What is not pending any more is taken for forgotten, whoever has settled it."""
    _replace(scripts.RENEW, ("and is_past(ARGV[i]) then", "and false then"))


@variant
def started_unasked_after_a_pause() -> None:
    """What waited in a process that stood still is handled there too, when others have long settled it."""

    async def confirm(self: RedisSubscription) -> bool:
        return True

    RedisSubscription.confirm = confirm  # type: ignore[method-assign]
