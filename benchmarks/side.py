"""One case of one side, in a process of its own: ``python -m benchmarks.side hand drain '{"n": 100000}'`` prints its result as JSON.

With ``--profile`` it prints where the time went instead, by package and by function, and how many Python functions were called.
"""

from __future__ import annotations

import asyncio
import collections
import cProfile
import json
import os
import pstats
import sys
import sysconfig
from importlib import import_module
from inspect import isawaitable
from pathlib import Path
from typing import Any

from benchmarks import meter

MARK = "RESULT "


def main(arguments: list[str]) -> None:
    profiled = "--profile" in arguments
    side, case, *options = [argument for argument in arguments if argument != "--profile"]
    function = getattr(import_module(f"benchmarks.{side}"), case)
    asyncio.run(_measure(function, json.loads(options[0]) if options else {}, _profile_what_is_metered() if profiled else None))


async def publisher(side: str, **options: Any) -> asyncio.subprocess.Process:
    """A process that publishes: the function `publisher` of a side."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.side", side, "publisher", json.dumps(options), stdout=asyncio.subprocess.DEVNULL
    )


async def _measure(function: Any, options: dict[str, Any], profile: cProfile.Profile | None) -> None:
    result = function(**options)
    if isawaitable(result):
        result = await result
    sys.stdout.write(MARK + json.dumps(result) + "\n")
    if profile is not None:
        _report(profile, result.get("n", 1))
    sys.stdout.flush()
    os._exit(0)  # from within: some peers leave threads behind, or tasks that do not end when they are cancelled


def _profile_what_is_metered() -> cProfile.Profile:
    profile = cProfile.Profile()
    enter, leave = meter.Meter.__enter__, meter.Meter.__exit__

    def entered(self: meter.Meter) -> meter.Meter:
        enter(self)
        profile.enable()
        return self

    def left(self: meter.Meter, *exc: Any) -> None:
        profile.disable()
        leave(self, *exc)

    meter.Meter.__enter__, meter.Meter.__exit__ = entered, left  # type: ignore[method-assign, assignment]

    return profile


def _report(profile: cProfile.Profile, n: int) -> None:
    own: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    by_function: list[tuple[float, float, str]] = []
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, line, name), (_, count, seconds, *_) in stats.items():
        package = _package(file, name)
        own[package] += seconds
        calls[package] += count
        by_function.append((seconds, count / n, f"{Path(file).name}:{line} {name}" if line else name))
    total = sum(own.values())
    out = [f"{sum(calls.values()) / n:.1f} calls and {total / n * 1e6:.2f} µs (profiled) per message", ""]
    out += [f"{seconds / total:6.1%} {calls[package] / n:8.2f} calls  {package}" for package, seconds in own.most_common(12)]
    out += ["", *(f"{t / total:6.1%} {count:8.2f} calls  {name}" for t, count, name in sorted(by_function, reverse=True)[:40])]
    sys.stdout.write("\n".join(out) + "\n")


def _package(file: str, name: str) -> str:
    if file == "~":
        return "sockets and epoll" if "socket" in name or "epoll" in name else "built in"
    for place in (f"site-packages{os.sep}", f"{os.sep}eventbus{os.sep}"):
        if place in file:
            rest = file.split(place)[1]
            return rest.split(os.sep)[0] if place.startswith("site") else f"eventbus/{rest}"
    if f"{os.sep}asyncio{os.sep}" in file:
        return "asyncio"

    return "standard library" if file.startswith(sysconfig.get_path("stdlib")) else "benchmarks"


if __name__ == "__main__":
    main(sys.argv[1:])
