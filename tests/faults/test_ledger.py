"""The ledger and the witness see what they are there to see."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledger import Journal, Ledger, Tally
from tests.faults.witness import IDS, Witness


class Written:
    """Journals of processes that never ran."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._now = time.monotonic()
        self.ledger = Ledger(directory)

    def __call__(self, pid: int, *lines: str, after: float = 0.1) -> None:
        name = "publisher.p0" if lines[0].startswith(("attempted", "acknowledged")) else "g.g0"
        with (self._directory / f"{name}.{pid}.journal").open("a") as file:
            for line in lines:
                self._now += after
                file.write(f"{line} {self._now:.6f}\n")
        self.ledger.read()


def test_a_journal_is_read_as_it_grows(tmp_path: Path) -> None:
    """Line by line, each with its time."""
    ledger = Ledger(tmp_path)
    journal = Journal(tmp_path, "publisher.p0")
    journal.write("attempted", 0, 0, 20)
    ledger.read()
    journal.write("refused", "Full", "not-sent")
    journal.write("acknowledged", 0, 0, 20)
    ledger.read()

    assert (20, 20, {"Full, not-sent": 1}) == (len(ledger.attempted), len(ledger.acknowledged.tally), dict(ledger.refusals))
    [(attempted, acknowledged, *batch)] = ledger.acknowledged.batches
    assert [0, 0, 20] == batch
    assert attempted < acknowledged <= time.monotonic()


def test_half_a_line_waits_for_the_other_half(tmp_path: Path) -> None:
    """Whoever writes may be stopped in the middle of it."""
    ledger = Ledger(tmp_path)
    path = tmp_path / f"publisher.p0.{os.getpid()}.journal"
    path.write_text("attempted 0 0 5 1.0\nacknow")
    ledger.read()
    with path.open("a") as file:
        file.write("ledged 0 0 5 2.0\n")
    ledger.read()

    assert [(1.0, 2.0, 0, 0, 5)] == ledger.acknowledged.batches


def test_a_tally_counts_each_mark() -> None:
    """How often, how many different ones, and how many too often."""
    tally = Tally()
    for publisher, number in ((0, 1), (0, 1), (1, 70_000)):
        tally.add(publisher, number)

    assert [(0, 1, 2), (1, 70_000, 1)] == list(tally)
    assert (2, 3, 1) == (len(tally), tally.total(), tally.repeated())
    assert (0, 0) == (tally(0, 99_999_999), tally(7, 0))


def test_handled_twice_is_seen(tmp_path: Path) -> None:
    """By whichever processes."""
    written = Written(tmp_path)
    written(1, "life g 10 0", "began p0-1 1 5-0 0", "handled p0-1 1")
    written(2, "life g 10 0", "began p0-1 1 5-0 1", "handled p0-1 1")

    group = written.ledger.group("g")
    assert (2, 1, 1) == (group.began, group.suspects, group.handled.repeated())


def test_another_order_is_seen_at_concurrency_1(tmp_path: Path) -> None:
    """A delivery that comes again is none, nor is one that was there before the process."""
    written = Written(tmp_path)
    written(1, "life g 1 100", "began p0-9 1 99-0 0", "began p0-1 1 101-0 0", "began p0-3 1 103-0 0")
    written(1, "began p0-1 1 101-0 0", "began p0-8 1 98-0 0", "began p0-4 1 102-7 1", "began p0-5 2 102-8 0")
    assert [] == written.ledger.group("g").disorder

    written(1, "began p0-2 1 102-0 0")
    assert ["p0-2 (102-0) after 103-0"] == written.ledger.group("g").disorder


def test_who_goes_on_with_what_another_has_begun_is_seen(tmp_path: Path) -> None:
    """Unless it stops soon, was stopped itself meanwhile, or began after the other."""
    written = Written(tmp_path)
    written.ledger.patience = 0.45
    began = ("life g 10 0", "began p0-1 1 5-0 0", "began p0-2 1 6-0 0", "began p0-3 1 7-0 0")
    written(1, *began)
    written(2, *began)
    written(2, "cancelled p0-2 1", "handled p0-3 1")
    written(1, "handled p0-1 1")  # 0.5 s after the other had begun it

    [overrun] = written.ledger.group("g").overruns
    assert overrun.startswith("p0-1: process 1 went on with it for 0.5")
    now = written._now
    written.ledger.freeze(1, now - 1, now)
    written(1, "handled p0-2 1", "cancelled p0-3 1")
    written(2, "handled p0-1 1", after=5.0)
    assert 1 == len(written.ledger.group("g").overruns)


class Stream:
    """A client that knows one stream."""

    def __init__(self) -> None:
        self.now = 9
        self.entries: list[tuple[bytes, dict[bytes, bytes]]] = []

    def add(self, id: str, mark: str) -> None:
        self.entries.append((id.encode(), {b"type": b"step_v1", b"payload": b'{"mark":"%b","act":""}' % mark.encode()}))

    async def xrange(self, stream: str, min: bytes = b"-", count: int | None = None) -> list[Any]:
        after = min.removeprefix(b"(")
        found = [entry for entry in self.entries if min == b"-" or entry[0] > after or (entry[0] == after and min == after)]

        return found[:count]

    async def eval(self, script: str, keys: int, stream: str, min: bytes) -> list[bytes]:
        assert IDS == script

        return [id for id, _ in await self.xrange(stream, min)]

    async def time(self) -> tuple[int, int]:
        return self.now, 0


async def test_the_witness_sees_what_is_twice_and_what_lies_wrongly() -> None:
    """Each entry once, however often it looks."""
    stream, witness = Stream(), Witness()
    for id, mark in (("1000-0", "p0-0"), ("1001-0", "p0-2"), ("1002-0", "p1-0")):
        stream.add(id, mark)
    await witness.read(stream)
    await witness.read(stream)
    assert (3, [], []) == (len(witness.seen), witness.twice, witness.disorder)

    stream.add("1003-0", "p0-2")
    stream.add("1004-0", "p0-1")
    await witness.read(stream)
    assert ["p0-2"] == witness.twice
    assert ["p0-1 (1004-0) behind p0-2"] == witness.disorder


@pytest.mark.parametrize("now", [9, 30])
async def test_the_witness_takes_back_what_a_server_forgot(now: int) -> None:
    """And not what was trimmed, however long the server was away; what comes again after that is not twice."""
    stream, witness = Stream(), Witness()
    stream.now = now
    for number, id in enumerate(("2000-0", "8001-0", "8002-0", "8003-0")):
        stream.add(id, f"p0-{number}")
    await witness.read(stream)
    stream.entries = stream.entries[1:3]
    await witness.look_again(stream, 6.0)
    assert [(0, 0, 1), (0, 1, 1), (0, 2, 1)] == list(witness.seen)

    stream.add("8009-0", "p0-3")
    await witness.read(stream)
    assert (4, [], 1) == (len(witness.seen), witness.twice, witness.taken_back)


async def test_the_witness_takes_back_a_whole_stream_that_began_anew() -> None:
    """What lies there now is later than all that was: nothing of that was trimmed."""
    stream, witness = Stream(), Witness()
    stream.add("8000-0", "p0-0")
    await witness.read(stream)
    stream.entries.clear()
    stream.add("8500-0", "p0-1")
    await witness.look_again(stream, 6.0)
    await witness.read(stream)

    assert [(0, 1, 1)] == list(witness.seen)
