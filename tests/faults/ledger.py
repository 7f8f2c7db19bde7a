"""What was attempted, acknowledged, handled and settled.

Every process of the harness writes a journal of its own, a line at a time and each with one call, so that whatever kills it, what it said
is there. The ledger reads all journals as they grow.

| line | of | means |
|---|---|---|
| ``attempted P FIRST COUNT TIME`` | a publisher | it is about to commit these messages |
| ``refused ERROR OUTCOME TIME`` | a publisher | it was told no, and will ask again |
| ``acknowledged P FIRST COUNT TIME`` | a publisher | it was told that they are in the stream |
| ``life GROUP CONCURRENCY MS TIME`` | a consumer | it begins, at this time of the wall clock |
| ``began MARK ATTEMPT ENTRY SUSPECT TIME`` | a consumer | a handler begins |
| ``handled MARK ATTEMPT TIME`` | a consumer | it has done its work |
| ``failed MARK ATTEMPT TIME`` | a consumer | it is about to raise, as it was told to |
| ``cancelled MARK ATTEMPT TIME`` | a consumer | it was cancelled |

Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from tests.faults.messages import parts_of


class Journal:
    """What one process writes."""

    def __init__(self, directory: Path, name: str) -> None:
        path = directory / f"{name}.{os.getpid()}.journal"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        line = " ".join(map(str, words))
        os.write(self._file, f"{line} {time.monotonic():.6f}\n".encode())


class Tally:
    """How often each mark came: a byte for each, so that a million take a megabyte. 255 stands for that and more."""

    def __init__(self) -> None:
        self._counts: dict[int, bytearray] = {}

    def add(self, publisher: int, number: int, count: int = 1) -> int:
        """How often it has come, now."""
        counts = self._counts.get(publisher)
        if counts is None:
            counts = self._counts[publisher] = bytearray()
        if number >= len(counts):
            counts.extend(bytes(max(1024, number + 1 - len(counts))))
        now = counts[number] = min(255, max(0, counts[number] + count))

        return now

    def __call__(self, publisher: int, number: int) -> int:
        counts = self._counts.get(publisher, b"")

        return counts[number] if number < len(counts) else 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Publisher, number and count of what has come."""
        for publisher, counts in sorted(self._counts.items()):
            for number, count in enumerate(counts):
                if count:
                    yield publisher, number, count

    def __len__(self) -> int:
        """How many different ones."""
        return sum(len(counts) - counts.count(0) for counts in self._counts.values())

    def total(self) -> int:
        return sum(map(sum, self._counts.values()))

    def repeated(self) -> int:
        """How many came too often."""
        return self.total() - len(self)


class Acknowledged:
    """What the publishers were told is in the stream, and when."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.batches: list[tuple[float, float, int, int, int]] = []
        """Attempted at, acknowledged at, publisher, first number, how many."""


class Group:
    """What the consumers of a group say they did."""

    def __init__(self) -> None:
        self.began = self.failed = self.cancelled = self.suspects = 0
        self.handled = Tally()
        self.last_handled = 0.0
        self.tried_again = Tally()
        """Begun as a second attempt, or a later one."""
        self.overruns: list[str] = []
        """Handlers that went on though another consumer had taken their delivery over."""
        self.disorder: list[str] = []
        """Deliveries that a consumer with one handler at a time began in another order than that of the stream."""
        self.under_way: dict[tuple[str, str], list[_Handling]] = {}
        """By mark and attempt: the handlers that run, and those that ended beside them."""


class Ledger:
    """All journals in a directory, as far as they were read."""

    def __init__(self, directory: Path) -> None:
        self.attempted = Tally()
        self.acknowledged = Acknowledged()
        self.refusals: Counter[str] = Counter()
        self.groups: dict[str, Group] = {}
        self.patience = float("inf")
        """Seconds for which a handler may go on after another consumer has begun the same; without those in which it was frozen."""
        self._directory = directory
        self._journals: dict[str, _Reader] = {}
        self._frozen: list[tuple[int, float, float]] = []
        self._attempted_at: dict[tuple[int, int], float] = {}
        self._takes = {
            "attempted": self._attempted,
            "refused": self._refused,
            "acknowledged": self._acknowledged,
            "life": self._life,
            "began": self._began,
            "handled": self._handled,
            "failed": self._failed,
            "cancelled": self._cancelled,
        }

    def read(self) -> None:
        """Take in what was written since the last time."""
        lines: list[tuple[float, _Reader, list[str]]] = []
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".journal"):
                reader = self._journals.get(entry.name)
                if reader is None:
                    reader = self._journals[entry.name] = _Reader(Path(entry.path))
                if entry.stat().st_size > reader.position:
                    lines += [(float(words[-1]), reader, words) for words in reader.lines()]
        lines.sort(key=itemgetter(0))
        takes = self._takes
        for at, reader, words in lines:
            takes[words[0]](reader, at, *words[1:-1])

    def freeze(self, pid: int, since: float, until: float) -> None:
        """Note that a process was stopped for a while."""
        self._frozen.append((pid, since, until))

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def _attempted(self, reader: _Reader, at: float, publisher: str, first: str, count: str) -> None:
        for number in range(int(first), int(first) + int(count)):
            self.attempted.add(int(publisher), number)
        self._attempted_at[int(publisher), int(first)] = at

    def _refused(self, reader: _Reader, at: float, error: str, outcome: str) -> None:
        self.refusals[f"{error}, {outcome}"] += 1

    def _acknowledged(self, reader: _Reader, at: float, publisher: str, first: str, count: str) -> None:
        key = int(publisher), int(first)
        for number in range(int(first), int(first) + int(count)):
            self.acknowledged.tally.add(key[0], number)
        self.acknowledged.batches.append((self._attempted_at.pop(key, at), at, *key, int(count)))

    def _life(self, reader: _Reader, at: float, group: str, concurrency: str, began: str) -> None:
        reader.group = self.group(group)
        reader.in_order = concurrency == "1"
        reader.began = int(began)

    def _began(self, reader: _Reader, at: float, mark: str, attempt: str, entry: str, suspect: str) -> None:
        group = reader.group
        group.began += 1
        group.suspects += suspect == "1"
        if attempt != "1":
            group.tried_again.add(*parts_of(mark))
        group.under_way.setdefault((mark, attempt), []).append(_Handling(reader.pid, at))
        if reader.in_order and attempt == "1" and suspect == "0":
            ms, _, sequence = entry.partition("-")
            position = int(ms), int(sequence)
            if position[0] > reader.began and reader.seen.add(*parts_of(mark)) == 1:
                if position < reader.last:
                    group.disorder.append(f"{mark} ({entry}) after {reader.last[0]}-{reader.last[1]}")
                reader.last = max(position, reader.last)

    def _handled(self, reader: _Reader, at: float, mark: str, attempt: str) -> None:
        group = reader.group
        group.handled.add(*parts_of(mark))
        group.last_handled = at
        self._ended(reader, at, mark, attempt)

    def _failed(self, reader: _Reader, at: float, mark: str, attempt: str) -> None:
        reader.group.failed += 1
        self._ended(reader, at, mark, attempt)

    def _cancelled(self, reader: _Reader, at: float, mark: str, attempt: str) -> None:
        reader.group.cancelled += 1
        self._ended(reader, at, mark, attempt, by_itself=False)

    def _ended(self, reader: _Reader, at: float, mark: str, attempt: str, *, by_itself: bool = True) -> None:
        under_way = reader.group.under_way
        handlings = under_way.get((mark, attempt), [])
        if len(handlings) == 1 and handlings[0].pid == reader.pid:  # as most are: nobody was beside it
            del under_way[mark, attempt]
            return
        mine = next((one for one in handlings if one.pid == reader.pid and one.running), None)
        if mine is None:
            return
        mine.running = False
        others = [one for one in handlings if one.pid != reader.pid and one.since > mine.since]
        if by_itself and others:
            awake = at - others[0].since - self._frozen_within(reader.pid, others[0].since, at)
            if awake > self.patience:
                reader.group.overruns.append(
                    f"{mark}: process {reader.pid} went on with it for {awake:.2f} s after {others[0].pid} had begun it"
                )
        if not any(one.running for one in handlings):
            del under_way[mark, attempt]

    def _frozen_within(self, pid: int, since: float, until: float) -> float:
        return sum(max(0.0, min(end, until) - max(begin, since)) for frozen, begin, end in self._frozen if frozen == pid)


@dataclass(slots=True)
class _Handling:
    """One run of a handler."""

    pid: int
    since: float
    running: bool = True


class _Reader:
    """One journal, and what is known of the process that writes it."""

    def __init__(self, path: Path) -> None:
        self.pid = int(path.name.split(".")[-2])
        self.group = Group()
        self.in_order = False
        self.began = 0
        self.seen = Tally()
        self.last = (0, 0)
        self.position = 0
        """How far it was read, in bytes."""
        self._path = path
        self._rest = b""

    def lines(self) -> list[list[str]]:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self.position)
            data = file.read()
        self.position += len(data)
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")

        return [line.split(" ") for line in whole.decode().split("\n")] if whole else []
