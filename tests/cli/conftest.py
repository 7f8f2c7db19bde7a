"""The `eventbus` command as its users meet it: a process with arguments, output and an exit code."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.processes import Process, environment


class Command(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]": ...


class Start(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> Process: ...


@pytest.fixture
def eventbus(tmp_path: Path) -> Command:
    """Run the command to its end, in a directory of its own."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "eventbus", *arguments]

        return subprocess.run(
            command, cwd=tmp_path, env=environment(**variables), capture_output=True, text=True, timeout=50, check=False
        )

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in the same directory; it is gone when the test ends."""
    with ExitStack() as started:

        def begin(*arguments: str, **variables: str) -> Process:
            return started.enter_context(
                Process([sys.executable, "-m", "eventbus", *arguments], tmp_path, environment(**variables))
            )

        yield begin


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Put a module where the command looks for it."""

    def module(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return module
