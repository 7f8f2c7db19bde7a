"""Whether what the ledger says, what the stream says and what the server says is one story.

| check | fails when |
|---|---|
| lost | a message was acknowledged, and a group has neither handled nor buried it |
| unexpected | a group handled or buried what nobody has published |
| published twice | a message is in the stream twice |
| repeated | a message was handled more often than the faults can explain |
| buried wrongly | a message is a dead letter whose handler was not told to fail |
| buried twice | a message is a dead letter twice |
| attempts | an attempt was counted for a message that has not failed |
| reordered | a publisher's messages lie in another order, or a consumer with one handler at a time began them in another |
| overrun | a handler went on though another consumer had taken its delivery over |
| unaccounted | something is left over at the end, or the server's own numbers do not add up |
| forgotten | what a server forgot with the end of its file is not what was published last |
| exit | a process ended in a way that nobody asked for |
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import redis.exceptions

from eventbus.errors import TransportError
from eventbus.transport import DeadLetter
from tests.faults.ledger import Group, Tally
from tests.faults.messages import MARK, STREAM, act_of, ends_buried, mark_of, parts_of
from tests.faults.rig import Rig

MOST = 10**9
LATE: Final = 0.2
"""Seconds after the end of a server until which its last word may be read."""


@dataclass(frozen=True)
class Allowances:
    """What the faults of a workload explain."""

    repeats: int = 0
    """Messages handled again, over all in a group."""
    acks_forgotten: bool = False
    """Whether as many more may be handled again as acks were in the tails that were cut off."""
    repeats_each: int = 1
    """Times that one of them was."""
    reburied: bool = False
    """Whether something may be buried twice, since its group was destroyed and began again before it."""
    reordered: bool = False
    """Whether the stream may begin anew, so that what is asked for again lies behind what came later."""


@dataclass
class Account:
    """The figures at the end."""

    attempted: int = 0
    acknowledged: int = 0
    in_stream: int = 0
    published_twice: int = 0
    forgotten: int = 0
    wiped: int = 0
    groups: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def table(self) -> str:
        names = list(self.groups)
        rows = [
            ("attempted", [f"{self.attempted:,}"]),
            ("acknowledged", [f"{self.acknowledged:,}"]),
            ("in the stream", [f"{self.in_stream:,}"]),
            ("published twice", [f"{self.published_twice:,}"]),
            ("forgotten by the server", [f"{self.forgotten + self.wiped:,}"]),
            ("group", names),
        ]
        measures = next(iter(self.groups.values()), {})
        rows += [(measure, [f"{self.groups[name].get(measure, 0):,}" for name in names]) for measure in measures]

        return "\n".join(f"  {title:24}" + "".join(f"{value:>14}" for value in values) for title, values in rows)


async def check(rig: Rig, allowed: Allowances) -> Account:
    """Look at everything once more, and note what must not be."""
    await rig.look()
    ledger, witness = rig.ledger, rig.witness
    forgiven, account = _forgotten(rig), Account()
    account.attempted = len(ledger.attempted)
    account.acknowledged = len(ledger.acknowledged.tally)
    account.in_stream = len(witness.seen)
    account.published_twice = len(witness.twice)
    account.forgotten = len(forgiven)
    if rig.wiped_at is not None:
        wiped = {
            (publisher, number)
            for attempted_at, at, publisher, first, count in ledger.acknowledged.batches
            if attempted_at <= rig.wiped_at
            for number in range(first, first + count)
            if at <= rig.wiped_at or not witness.there(publisher, number)
        }
        account.wiped = len(wiped)
        forgiven |= wiped
    _report(rig, "published twice", witness.twice)
    if not allowed.reordered:
        _report(rig, "reordered", witness.disorder)
    _report(rig, "unexpected", _beyond(witness.seen, ledger.attempted), "in the stream")
    for name, group in sorted(ledger.groups.items()):
        account.groups[name] = await _check_group(rig, name, group, forgiven, allowed)

    return account


async def _check_group(rig: Rig, name: str, group: Group, forgiven: set[tuple[int, int]], allowed: Allowances) -> dict[str, int]:
    ledger, handled = rig.ledger, group.handled
    dead = [(parts_of(mark), letter) for letter in await _dead_letters(rig, name) if (mark := _mark(letter))]
    buried = Counter(parts for parts, _ in dead)
    lost = [
        (publisher, number)
        for publisher, number, _ in ledger.acknowledged.tally
        if not handled(publisher, number) and (publisher, number) not in buried and (publisher, number) not in forgiven
    ]
    _report(rig, "lost", [mark_of(*one) for one in lost], name)
    _report(rig, "unexpected", _beyond(handled, ledger.attempted), name)
    _report(rig, "unexpected", [mark_of(*one) for one in buried if not ledger.attempted(*one)], name)
    explained = allowed.repeats + (rig.acks_forgotten[name] if allowed.acks_forgotten else 0)
    if handled.repeated() > explained:
        again = [f"{mark_of(publisher, number)} ({count} times)" for publisher, number, count in handled if count > 1]
        _report(rig, "repeated", again, f"{name}, where the faults explain {explained}")
    most = 1 + allowed.repeats_each
    _report(rig, "repeated", [f"{mark_of(p, n)} ({count} times)" for p, n, count in handled if count > most], name)
    wrongly = [
        f"{mark_of(*parts)} ({letter.reason} at attempt {letter.attempts} {letter.error_type} {letter.error})"
        for parts, letter in dead
        if not ends_buried(act_of(rig.plan, parts[1]))
    ]
    _report(rig, "buried wrongly", wrongly, name)
    if not allowed.reburied:
        _report(rig, "buried twice", [mark_of(*one) for one, count in buried.items() if count > 1], name)
    steady = [
        mark_of(publisher, number)
        for publisher, number, _ in group.tried_again
        if act_of(rig.plan, number).partition(" ")[0] in ("", "slow", "doze")
    ]
    _report(rig, "attempts", steady, name)
    _report(rig, "reordered", group.disorder, name)
    _report(rig, "overrun", group.overruns, name)
    figures = {
        "acks forgotten": rig.acks_forgotten[name],
        "begun": group.began,
        "handled": len(handled),
        "repeated": handled.repeated(),
        "failed": group.failed,
        "cancelled": group.cancelled,
        "suspects begun": group.suspects,
        "buried": len(buried),
        "lost": len(lost),
    }

    return figures | await _server_side(rig, name)


async def _server_side(rig: Rig, name: str) -> dict[str, int]:
    """The server's own numbers."""
    try:
        backlog = await rig.backlog(name)
        found = await rig.transport.audit(STREAM, name)
    except (TransportError, redis.exceptions.RedisError) as exc:
        rig.violate("unaccounted", f"{name}: the server does not tell its numbers: {exc}")
        return {}
    if backlog:
        rig.violate("unaccounted", f"{name}: {backlog.unread} unread, {backlog.pending} pending, {backlog.delayed} delayed")
    if found is None:
        rig.violate("unaccounted", f"{name}: the group is not there")
    elif not found:
        rig.violate("unaccounted", str(found))
    settled, lost = (found.settled, found.lost + found.lost_retries) if found is not None else (0, 0)

    return {"settled": settled, "left": backlog.unread + backlog.pending + backlog.delayed, "lost (audit)": lost}


def _forgotten(rig: Rig) -> set[tuple[int, int]]:
    """What the server forgot when it was killed: what each publisher published last before that, and nothing before it."""
    seen = rig.witness.seen
    forgotten: set[tuple[int, int]] = set()
    for since, until in rig.forgetful:
        gone: dict[int, int] = {}
        astray: list[str] = []
        for _, at, publisher, first, count in rig.ledger.acknowledged.batches:
            if not since <= at <= until + LATE:
                continue
            for number in range(first, first + count):
                if not seen(publisher, number):
                    forgotten.add((publisher, number))
                    gone.setdefault(publisher, number)
                elif publisher in gone and at <= until:
                    astray.append(f"{mark_of(publisher, number)} is there and {mark_of(publisher, gone[publisher])} is not")
        _report(rig, "forgotten", astray)

    return forgotten


async def _dead_letters(rig: Rig, group: str) -> list[DeadLetter]:
    return await rig.transport.dead_letters(STREAM, group, limit=MOST)


def _mark(letter: DeadLetter) -> str:
    found = MARK.search(letter.fields.get(b"payload", b"")) if letter.fields.get(b"type") == b"step_v1" else None

    return "" if found is None else found[1].decode()


def _beyond(tally: Tally, known: Tally) -> list[str]:
    return [mark_of(publisher, number) for publisher, number, _ in tally if not known(publisher, number)]


def _report(rig: Rig, check: str, what: list[str], where: str = "") -> None:
    if what:
        some = ", ".join(what[:5]) + (f" and {len(what) - 5:,} more" if len(what) > 5 else "")
        rig.violate(check, f"{where}: {some}" if where else some)
