"""Processes that a test starts: with an environment of their own, and output that can be waited for."""

import os
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """That of this process without what speaks to the command, and with this source tree importable from anywhere.

    Python keeps what it compiled, also where it was told not to: hundreds of processes would compile everything again.
    """
    ours = ("EVENTBUS_", "NO_COLOR", "FORCE_COLOR", "TTY_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours) or name == "EVENTBUS_CI_MARK"}

    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


class Process:
    """A process whose output is waited for line by line. What it writes to stdout and stderr comes as one."""

    def __init__(self, command: list[str], directory: Path, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._come = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def line(self, text: str, *, seconds: float = 30) -> str:
        """Wait for a line with this text."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [line for line in self.lines if text in line]
            return bool(found) or self._ended

        with self._come:
            self._come.wait_for(there, seconds)
        assert found, f"no line with {text!r} in\n{self.output}"

        return found[0]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def end(self, *, seconds: float = 30) -> int:
        """Wait for its end; the exit code."""
        code = self._process.wait(seconds)
        self._reader.join()

        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with self._come:
                    self.lines.append(line.rstrip("\n"))
                    self._come.notify_all()
        with self._come:
            self._ended = True
            self._come.notify_all()
