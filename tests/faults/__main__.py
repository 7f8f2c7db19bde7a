"""``python -m tests.faults``: run the workloads, watch them, and see the ledger."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.faults import broken
from tests.faults.rig import Rig, Size, say_on_stderr
from tests.faults.workloads import WORKLOADS, Workload, carry_out


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.list:
        for chosen in WORKLOADS.values():
            print(f"{chosen.name:12} {chosen.shows}")
        return 0
    logging.getLogger("eventbus").addHandler(logging.NullHandler())  # what is said in this process is expected
    logging.getLogger("eventbus").propagate = False
    broken.apply(os.environ.get(broken.VARIABLE, ""))
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    names = options.workload or list(WORKLOADS)
    until = time.monotonic() + 60 * (options.minutes or 0)
    failed = 0
    while True:
        for name in names:
            failed += not asyncio.run(_run(WORKLOADS[name], seed, options))
        seed += 1
        if time.monotonic() >= until:
            return 1 if failed else 0


async def _run(chosen: Workload, seed: int, options: argparse.Namespace) -> bool:
    """Whether it held."""
    size = size_of(chosen, options)
    variant = os.environ.get(broken.VARIABLE, "")
    say_on_stderr(f"{chosen.name}: {chosen.shows} (seed {seed}, {size.messages:,} messages, {size.faults:,} faults)")
    began = time.monotonic()
    asyncio.get_running_loop().call_later((60 if options.short else 600) + 10 * size.seconds, _give_up)
    async with Rig.assembled(
        chosen.name, size, seed, broken=variant, executable=options.server, keep=options.keep, say=None if options.quiet else say_on_stderr
    ) as rig:  # fmt: skip
        account = await carry_out(rig, chosen)
        version = rig.server.version
    print(f"{chosen.name}, seed {seed}, {version}: {sum(rig.faults.values()):,} faults in {time.monotonic() - began:.0f} s")
    print(account.table())
    for kind, count in sorted(rig.faults.items()):
        print(f"  fault: {count:,} x {kind}")
    for note in rig.notes:
        print(f"  {note}")
    if options.keep:
        print(f"  journals and logs are in {rig.directory}")
    for violation in rig.violations:
        print(f"  VIOLATED {violation}")
    if rig.violations:
        print(f"  again: {repeat_command(chosen, size, seed, variant)}")

    return not rig.violations


def _give_up() -> None:
    """A run that does not end says where it stands. Its processes end with this one."""
    print("VIOLATED stuck: the run does not end; its tasks wait here:", flush=True)
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    sys.stdout.flush()
    os._exit(1)


def size_of(chosen: Workload, options: argparse.Namespace) -> Size:
    size = chosen.short if options.short else chosen.full
    if options.messages is not None:
        size = replace(size, messages=options.messages, seconds=size.seconds * max(0.5, options.messages / size.messages))
    if options.minutes is not None and chosen.name == "mix":
        size = replace(size, faults=int(size.faults * 60 * options.minutes / size.seconds), seconds=60 * options.minutes)
    if options.faults is not None:
        size = replace(size, faults=options.faults)
    if options.seconds is not None:
        size = replace(size, seconds=options.seconds)

    return size


def repeat_command(chosen: Workload, size: Size, seed: int, variant: str = "") -> str:
    prefix = f"{broken.VARIABLE}={variant} " if variant else ""

    return (
        f"{prefix}python -m tests.faults --workload {chosen.name} --seed {seed} "
        f"--messages {size.messages} --faults {size.faults} --seconds {size.seconds:g}"
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="one of them, or several; all by default")
    parser.add_argument("--seed", type=int, help="what makes a run repeatable (default: a random one, which is said)")
    parser.add_argument(
        "--minutes", type=float, help="how long `mix` goes on; the others are repeated with the next seeds until then"
    )
    parser.add_argument("--messages", type=int, help="how many are published")
    parser.add_argument("--faults", type=int, help="how many there are")
    parser.add_argument("--seconds", type=float, help="how long the publishers take")
    parser.add_argument("--short", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--server", type=Path, metavar="PATH", help="the server to start (default: redis-server on PATH)")
    parser.add_argument("--keep", action="store_true", help="leave the journals and logs, and say where")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--list", action="store_true", help="the workloads and what each must show")

    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
