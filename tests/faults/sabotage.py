"""``python -m tests.faults.sabotage``: break the library on purpose, one variant after another, and see whether the harness notices.

Each variant of `tests.faults.broken` runs under the workload that is meant to catch it, in the size of the test suite; the same workloads
must hold when nothing is broken. Exit code 1 if a variant goes unnoticed, or the sound library does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time

from tests.faults.broken import VARIABLE, VARIANTS
from tests.processes import ROOT

CAUGHT_IN = {
    "ack-before-handling": "kills",
    "renewal-without-owner-check": "freezes",
    "own-pending-not-read-again": "cuts",
    "crashes-counted-at-fetch": "poison",
    "crashes-not-counted": "poison",
    "consumers-removed-without-check": "kills",
    "trimmed-by-length": "kills",
    "plain-xadd": "cuts",
    "group-recreated-at-its-end": "storms",
    "buried-without-owner-check": "freezes",
    "retried-without-owner-check": "freezes",
    "acks-counted-as-asked": "cuts",
    "not-released-on-drain": "drains",
    "leases-not-renewed": "patience",
    "settled-by-others-not-told": "pauses",
    "started-unasked-after-a-pause": "pauses",
}
AT_ONCE = 2
SOUND = "(sound)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sabotage", description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"some of {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    unknown = set(options.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"there is no variant {', '.join(sorted(unknown))}")

    return asyncio.run(_all(options.variants or list(VARIANTS), options.seed))


async def _all(variants: list[str], seed: int) -> int:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(variant: str, workload: str) -> tuple[str, str, int, list[str], float]:
        async with slots:
            began = time.monotonic()
            code, checks = await _run(variant, workload, seed)
            print(f"{variant or SOUND} under {workload}: {', '.join(checks) or 'nothing noticed'}", file=sys.stderr, flush=True)

            return variant or SOUND, workload, code, checks, time.monotonic() - began

    workloads = dict.fromkeys(CAUGHT_IN[variant] for variant in variants)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one("", workload)) for workload in workloads]
        running += [tasks.create_task(one(variant, CAUGHT_IN[variant])) for variant in variants]
    print(f"{'variant':34}{'workload':12}{'seconds':>8}  caught by")
    failed = 0
    for task in running:
        variant, workload, code, checks, seconds = task.result()
        as_wanted = code == 0 if variant == SOUND else code == 1 and bool(checks)
        failed += not as_wanted
        verdict = ", ".join(checks) or ("nothing, as it should be" if as_wanted else "NOTHING")
        print(f"{variant:34}{workload:12}{seconds:8.1f}  {verdict}{'' if as_wanted else '   <-- FAILED'}")

    return 1 if failed else 0


async def _run(variant: str, workload: str, seed: int) -> tuple[int, list[str]]:
    """The exit code, and which checks were violated, each once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults", "--workload", workload, "--short", "--quiet", "--seed", str(seed),
        cwd=ROOT, env=os.environ | {VARIABLE: variant}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    found = [line.split(":")[0].split("VIOLATED ")[1] for line in output.decode().splitlines() if "VIOLATED " in line]
    if process.returncode not in (0, 1) or (process.returncode == 1 and not found):
        print(errors.decode(), file=sys.stderr)

    return process.returncode or 0, list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
