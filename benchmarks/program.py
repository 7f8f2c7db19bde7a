"""The command: which rows, how many rounds, and what is shown of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.environments import missing, python_for
from benchmarks.plot import plot
from benchmarks.rows import Goal, Result, Run, goals, without_goals
from benchmarks.server import VARIABLE, Server
from benchmarks.side import MARK

PATIENCE = 300
"""Seconds that one run may take."""
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
"""The marks in a page of Markdown between which the tables are put."""
Round = dict[Run, Result]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    chosen = [goal for goal in goals(quick=options.quick) if _is_chosen(goal, options.case)]
    runs = list(dict.fromkeys(run for goal in chosen for run in goal.runs))
    cases = {*(goal.case for goal in chosen), *(options.case or without_goals())}
    runs += [run for case, beside in without_goals(quick=options.quick).items() if case in cases for run in beside]
    pythons = {side: python_for(side, options.peers) for side in dict.fromkeys(run.side for run in runs)}
    for side in [side for side, python in pythons.items() if python is None]:
        _say(f"skipped: {missing(side)}")
    runs = [run for run in runs if pythons[run.side] is not None]

    rounds: list[Round] = []
    with _server(options.server) as server:
        about = _about(server)
        _say(", ".join(about.values()))
        for number in range(1, options.rounds + 1):
            found: Round = {}
            rounds.append(found)
            for run in runs:
                began = time.monotonic()
                result = _result(run, str(pythons[run.side]))
                if result is not None:
                    found[run] = result
                told = "failed" if result is None else _told(result)
                _say(f"round {number}/{options.rounds}  {run!s:64} {time.monotonic() - began:5.1f} s  {told}")

    _print_runs(runs, rounds)
    judged = _print_goals(chosen, rounds) if chosen else []
    if options.json is not None:
        options.json.write_text(json.dumps(_kept(about, chosen, runs, rounds), indent=1) + "\n")
        _say(f"written: {options.json}")
    if options.markdown is not None:
        _put(_markdown(about, chosen, runs, rounds), options.markdown)
        _say(f"written: {options.markdown}")
    if options.plot is not None:
        options.plot.write_text(plot([(goal, values(goal, rounds)) for goal in chosen], ", ".join(about.values())))
        _say(f"written: {options.plot}")

    return 1 if "FAIL" in judged or "nothing measured" in judged else 0


def values(goal: Goal, rounds: Iterable[Round]) -> list[float]:
    """The figure of each round in which all was measured that it needs."""
    found: list[float] = []
    for results in rounds:
        try:
            found.append(goal.figure(results))
        except KeyError:
            continue

    return found


# ----------------------------------------------------------------------------------------------------------------- runs


def _result(run: Run, python: str) -> Result | None:
    """What a run measured, on an empty server; None, and the end of what it said, if it failed."""
    with Server() as server:
        server("FLUSHALL")
        server("CONFIG", "RESETSTAT")
    command = [python, "-m", "benchmarks.side", run.side, run.case, json.dumps(dict(run.options))]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PATIENCE, cwd=Path(__file__).parent.parent
        )
    except subprocess.TimeoutExpired:
        _say(f"{run}: nothing within {PATIENCE} s")
        return None
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not found:
        _say(f"{run}:\n{done.stderr[-2000:]}")
        return None
    result: Result = json.loads(found[-1])

    return result


@contextmanager
def _server(executable: str | None) -> Iterator[str]:
    """A server of our own on a free port, without persistence; the sides find it by the environment. Its version."""
    from eventbus.embedded import EmbeddedServer

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chosen = executable or shutil.which("redis-server") or shutil.which("valkey-server")
    with EmbeddedServer(executable=chosen, options=["--port", str(port), "--bind", "127.0.0.1"]) as server:
        os.environ[VARIABLE] = f"redis://127.0.0.1:{port}/0"
        try:
            yield server.version_text
        finally:
            del os.environ[VARIABLE]


def _about(server: str) -> dict[str, str]:
    """When and on what it was measured."""
    cpus = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    packages = ("redis", "hiredis", "msgspec", "anyio")

    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} × {cpus[0] if cpus else platform.machine()}",
        "python": f"Python {platform.python_version()}",
        "server": server,
        "packages": " ".join(f"{package} {version(package)}" for package in packages),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# ---------------------------------------------------------------------------------------------------------------- shown


def _print_runs(runs: Sequence[Run], rounds: Sequence[Round]) -> None:
    """Medians and spread of each run, and what it cost."""
    _print_table([("", "a second", "from", "to", "client µs", "server µs", ""), *(_row(run, rounds) for run in runs)])


def _row(run: Run, rounds: Sequence[Round]) -> tuple[str, ...]:
    """Its name; messages a second, their least and most; CPU of the client and of the server for each; what else was measured."""
    results = [found[run] for found in rounds if run in found]
    if not results:
        return (str(run), "failed", "", "", "", "", "")
    rates = [result["per_second"] for result in results if "per_second" in result]
    shown = [f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))] if rates else [""] * 3
    costs = [f"{_median(results, name):.2f}" if name in results[0] else "" for name in ("client_us", "server_us")]
    known = {"n", "per_second", "client_us", "server_us", "both_us", "nanoseconds"}
    more = ", ".join(f"{name} {_median(results, name):.4g}" for name in results[0] if name not in known)

    return (str(run), *shown, *costs, more)


def _print_goals(chosen: Sequence[Goal], rounds: Sequence[Round]) -> list[str]:
    """The figures against what is asked of them; the verdicts."""
    judged = [_judged(goal, rounds) for goal in chosen]
    _print_table([("row", "", "median", "from", "to", "at least", "goal", ""), *judged])

    return [row[-1] for row in judged]


def _put(text: str, file: Path) -> None:
    """Write it, or put it between the marks if the file has some."""
    before, mark, rest = (file.read_text() if file.exists() else "").partition(BEGIN)
    _, end, after = rest.partition(END)
    file.write_text(f"{before}{mark}\n\n{text}\n{end}{after}" if end else text)


def _judged(goal: Goal, rounds: Sequence[Round]) -> tuple[str, ...]:
    """Row, text, median, least and most of the rounds, what is asked at least, the goal, and the verdict."""
    found = values(goal, rounds)
    bound = "≤ " if goal.less_is_better else "≥ "
    asked = (f"{bound}{goal.least:g}{goal.unit}", f"{bound}{goal.goal:g}{goal.unit}")
    if not found:
        absent = [run.side for run in goal.runs if python_for(run.side, None) is None]
        return (str(goal.row), goal.text, "", "", "", *asked, "skipped" if absent else "nothing measured")
    figures = [f"{figure:.3g}{goal.unit}" for figure in (statistics.median(found), min(found), max(found))]

    return (str(goal.row), goal.text, *figures, *asked, goal.judge(statistics.median(found)))


def _markdown(about: dict[str, str], chosen: Sequence[Goal], runs: Sequence[Run], rounds: Sequence[Round]) -> str:
    """The tables for `docs/performance.md`."""
    judged = [_judged(goal, rounds) for goal in chosen]
    lines = [f"{', '.join(about.values())}; medians of {len(rounds)} rounds, and their range.", ""]
    if chosen:
        lines += [
            "| # | measured | `python -m benchmarks` | median | range | at least | goal | |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for goal, (row, text, median, least, most, *asked, verdict) in zip(chosen, judged, strict=True):
        spread = f"{least} to {most}" if median else ""
        lines.append(f"| {row} | {text} | `{goal.case}` | {median} | {spread} | {' | '.join(asked)} | {verdict} |")
    if chosen:
        lines.append("")
    lines += ["| run | a second | range | client µs | server µs | |", "|---|---|---|---|---|---|"]
    for name, middle, least, most, client, server, more in (_row(run, rounds) for run in runs):
        spread = f"{least} to {most}" if least else ""
        lines.append(f"| {name} | {middle} | {spread} | {client} | {server} | {more} |")

    return "\n".join(lines) + "\n"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = {
        column for column in range(len(rows[0])) if not any(cell[:1].isdigit() for cell in (row[column] for row in rows[1:]))
    }
    lines = [
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    sys.stdout.write("\n" + "\n".join(line.rstrip() for line in lines) + "\n")
    sys.stdout.flush()


def _kept(about: dict[str, str], chosen: Sequence[Goal], runs: Sequence[Run], rounds: Sequence[Round]) -> dict[str, Any]:
    """What `--json` keeps: every result of every round."""
    return {
        "about": about,
        "goals": [
            {
                "row": goal.row,
                "case": goal.case,
                "text": goal.text,
                "least": goal.least,
                "goal": goal.goal,
                "unit": goal.unit.strip(),
                "less_is_better": goal.less_is_better,
                "values": values(goal, rounds),
            }
            for goal in chosen
        ],
        "runs": [{"run": str(run), "results": [found[run] for found in rounds if run in found]} for run in runs],
    }


def _told(result: Result) -> str:
    """A result in a few words, while others are still to come."""
    names = [name for name in result if name not in ("n", "both_us")][:4]

    return "  ".join(f"{name} {result[name]:,.4g}" for name in names)


def _median(results: Sequence[Result], name: str) -> float:
    return statistics.median(float(result[name]) for result in results)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


# -------------------------------------------------------------------------------------------------------------- options


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cases = list(dict.fromkeys([*(goal.case for goal in goals()), *without_goals()]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure eventbus beside the limit and the peers.",
        epilog="Exit code 1: a figure is below what is asked at least, or could not be measured.",
    )  # fmt: skip
    parser.add_argument(
        "case", nargs="*", help=f"what to measure: {', '.join(cases)}, or the number of a row; all of them, by default"
    )
    parser.add_argument("--rounds", type=int, help="how often everything is measured in turn (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages: to see that it runs, not to compare")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the figures against their goals")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the tables, or put them in docs/performance.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every result")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where the environments of the peers are")
    parser.add_argument("--server", metavar="EXECUTABLE", help="the server to start (redis-server or valkey-server on PATH)")
    options = parser.parse_args(arguments)
    known = {*cases, *(str(goal.row) for goal in goals())}
    for case in options.case:
        if case not in known:
            parser.error(f"there is no case {case!r}; there are {', '.join(cases)}, and the rows 1 to 14")
    if options.rounds is None:
        options.rounds = 1 if options.quick else 5
    if options.rounds < 1:
        parser.error("--rounds is 1 or more")

    return options


def _is_chosen(goal: Goal, cases: Sequence[str]) -> bool:
    return not cases or goal.case in cases or str(goal.row) in cases
