"""What is measured, and what is asked of it: the fourteen rows, each a few runs and a figure made of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Result = Mapping[str, Any]
Results = Mapping["Run", Result]


@dataclass(frozen=True)
class Run:
    """One case of one side: a process of its own."""

    side: str
    case: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.side} {self.case}" + "".join(
            f" {name}={value if isinstance(value, str) else format(value, ',')}" for name, value in self.options
        )


@dataclass(frozen=True)
class Goal:
    """A figure, and what it is to be at least (or at most, where less is better)."""

    row: int
    case: str
    text: str
    runs: tuple[Run, ...]
    figure: Callable[[Results], float] = field(repr=False)
    least: float
    goal: float
    unit: str = "×"
    less_is_better: bool = False

    def judge(self, value: float) -> str:
        """``goal``, ``pass`` or ``FAIL``."""
        reached = [value <= bound if self.less_is_better else value >= bound for bound in (self.goal, self.least)]

        return "goal" if reached[0] else "pass" if reached[1] else "FAIL"


PEERS: Final = {"faststream": "faststream", "messagebus": "messagebus"}
"""The sides that need a library of their own, and what they import."""


def goals(*, quick: bool = False) -> list[Goal]:
    """The rows. `quick` asks for a tenth of the messages: to see that everything runs, not to compare."""

    def run(side: str, case: str, **options: Any) -> Run:
        return Run(side, case, tuple(options.items()))

    def scaled(n: int) -> int:
        return n // 10 if quick else n

    drain = {
        "ours": run("ours", "drain", n=scaled(100_000)),
        "hand": run("hand", "drain", n=scaled(200_000)),
        "raw": run("raw", "drain", n=scaled(100_000)),
        "faststream": run("faststream", "drain", n=scaled(5_000)),
    }
    slow = {k: run("ours", "drain", n=scaled(100 * k * 2), concurrency=k, seconds=0.005) for k in (10, 50)}
    publish = {side: run(side, "publish", n=scaled(10_000)) for side in ("ours", "raw", "hand", "faststream")}
    commit = {side: run(side, "publish", n=scaled(50_000), batch=100) for side in ("raw", "hand", "faststream")}
    commit["ours"] = run("ours", "commit", n=scaled(50_000), batch=100)
    one = run("ours", "commit", n=scaled(10_000), batch=1)
    tasks = {"ours": run("ours", "tasks", n=scaled(50_000), tasks=50), "raw": run("raw", "tasks", n=scaled(20_000), tasks=50)}
    dispatch = {side: run(side, "dispatch", n=scaled(20_000)) for side in ("ours", "plain", "messagebus")}
    latency = {side: run(side, "latency", rate=200, seconds=1 if quick else 10) for side in ("ours", "raw", "hand", "faststream")}
    memory = run("ours", "memory", n=scaled(1_000_000), warm_up=scaled(100_000))
    few, many = {"n": scaled(10_000), "times": 5}, {"n": scaled(400_000)}
    small, usual = run("ours", "drain", **few), run("ours", "drain", **many)
    grown = {
        "backlog 10 k → 1 M": (small, run("ours", "drain", **few, backlog=scaled(1_000_000))),
        "pending 0 → 100 k": (usual, run("ours", "drain", **many, pending=scaled(100_000))),
        "streams 1 → 100": (usual, run("ours", "drain", **many, streams=100)),
        "consumers 1 → 16": (usual, run("ours", "drain", **many, consumers=16)),
    }
    idle = run("ours", "idle", seconds=12 if quick else 60)
    start = run("ours", "start")
    size = {"ours": run("ours", "entries", n=scaled(20_000)), "hand": run("hand", "one_field", n=scaled(20_000))}

    def ratio(what: str, over: Run, under: Run) -> Callable[[Results], float]:
        return lambda results: float(results[over][what] / results[under][what])

    def of(what: str, one: Run) -> Callable[[Results], float]:
        return lambda results: float(results[one][what])

    def ideal(k: int) -> Callable[[Results], float]:
        return lambda results: float(results[slow[k]]["per_second"] / (k / 0.005))

    def later(results: Results) -> float:
        return float(results[latency["ours"]]["p99_ms"] - results[latency["raw"]]["p99_ms"])

    def both(case: Mapping[str, Run], *others: str) -> tuple[Run, ...]:
        return (case["ours"], *(case[other] for other in others))

    return [
        Goal(1, "drain", "drain, against a loop by hand", both(drain, "hand"), ratio("per_second", drain["ours"], drain["hand"]), 0.3, 0.5),
        Goal(2, "drain", "drain, against redis-py", both(drain, "raw"), ratio("per_second", drain["ours"], drain["raw"]), 0.6, 1.0),
        Goal(
            3, "drain", "drain, against FastStream",
            both(drain, "faststream"), ratio("per_second", drain["ours"], drain["faststream"]), 20, 40,
        ),
        Goal(4, "concurrency", "handlers of 5 ms, 10 at once, of the ideal", (slow[10],), ideal(10), 0.8, 0.9),
        Goal(4, "concurrency", "handlers of 5 ms, 50 at once, of the ideal", (slow[50],), ideal(50), 0.7, 0.85),
        Goal(
            5, "publish", "publish one by one, against redis-py",
            (*both(publish, "raw", "hand", "faststream"), one), ratio("per_second", publish["ours"], publish["raw"]), 0.9, 1.2,
        ),
        Goal(
            6, "commit", "commit of 100 events, against a pipeline of redis-py",
            both(commit, "raw", "hand", "faststream"), ratio("per_second", commit["ours"], commit["raw"]), 1.0, 1.5,
        ),
        Goal(
            7, "tasks", "50 tasks publish, against redis-py's pool",
            both(tasks, "raw"), ratio("per_second", tasks["ours"], tasks["raw"]), 3, 8,
        ),
        Goal(
            8, "dispatch", "dispatch, against plain calls",
            both(dispatch, "plain"), ratio("nanoseconds", dispatch["ours"], dispatch["plain"]), 3.0, 2.0, less_is_better=True,
        ),
        Goal(
            8, "dispatch", "dispatch, against messagebus",
            both(dispatch, "messagebus"), ratio("nanoseconds", dispatch["ours"], dispatch["messagebus"]), 0.33, 0.2,
            less_is_better=True,
        ),
        Goal(
            9, "latency", "publish to handler at 200/s, p50, against redis-py",
            both(latency, "raw", "hand", "faststream"), ratio("p50_ms", latency["ours"], latency["raw"]), 1.1, 0.75,
            less_is_better=True,
        ),
        Goal(
            9, "latency", "publish to handler at 200/s, p99, over redis-py's",
            both(latency, "raw"), later, 0.5, 0.2, " ms", less_is_better=True,
        ),
        Goal(
            10, "memory", f"memory growth over {scaled(1_000_000):,} messages", (memory,), of("growth_mib", memory), 2, 0.5, " MiB",
            less_is_better=True,
        ),
        *(
            Goal(
                11, "growth", f"CPU per message, {name}", (base, other), ratio("both_us", other, base), 1.3, 1.15, less_is_better=True,
            )
            for name, (base, other) in grown.items()
        ),
        Goal(12, "idle", "idle, commands a minute", (idle,), of("commands", idle), 60, 35, "", less_is_better=True),
        Goal(12, "idle", "idle, CPU", (idle,), of("client_percent", idle), 0.2, 0.1, " %", less_is_better=True),
        Goal(13, "start", "import eventbus", (start,), of("import_ms", start), 150, 80, " ms", less_is_better=True),
        Goal(13, "start", "eventbus --help", (start,), of("help_ms", start), 300, 200, " ms", less_is_better=True),
        Goal(
            14, "size", "memory of a stream, against one field",
            (size["ours"], size["hand"]), ratio("bytes", size["ours"], size["hand"]), 1.15, 1.05, less_is_better=True,
        ),
    ]  # fmt: skip


def without_goals(*, quick: bool = False) -> dict[str, tuple[Run, ...]]:
    """What is measured beside the rows and has no goal, by case: it belongs to a row's case, or is one of its own."""
    n = 200 if quick else 2_000
    of_a_session = [
        Run("transactions", case, (("n", n), ("database", database)))
        for database in ("sqlite", "postgresql")
        for case in ("bare", "stored", "published")
    ]
    of_a_relay = [Run("transactions", "relay", (("n", n * 10), ("database", database))) for database in ("sqlite", "postgresql")]

    return {"drain": (Run("ours", "calls", (("n", 5_000),)),), "transactions": (*of_a_session, *of_a_relay)}
