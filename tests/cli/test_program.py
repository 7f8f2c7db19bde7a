"""The command itself: help, version, mistakes, and what it needs."""

import json
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

import eventbus as package
from eventbus.cli import commands
from tests.cli.conftest import Command
from tests.processes import environment


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(eventbus: Command, flag: str) -> None:
    shown = eventbus(flag)

    assert (0, "") == (shown.returncode, shown.stderr)
    for module in iter_modules(commands.__path__):
        assert f"  {module.name.replace('_', '-')} " in shown.stdout


@pytest.mark.parametrize("module", [module.name for module in iter_modules(commands.__path__)])
def test_each_module_of_commands_is_a_command_with_help(eventbus: Command, module: str) -> None:
    """A new command is a new file; nothing else has to be told."""
    shown = eventbus(module.replace("_", "-"), "--help")

    assert (0, "") == (shown.returncode, shown.stderr)
    assert callable(import_module(f"{commands.__name__}.{module}").command)


def test_the_version_is_that_of_the_package(eventbus: Command) -> None:
    shown = eventbus("--version")

    assert (0, f"eventbus {package.__version__}\n", "") == (shown.returncode, shown.stdout, shown.stderr)


def test_an_unknown_command_is_told_with_what_is_near(eventbus: Command) -> None:
    shown = eventbus("rum")

    assert 2 == shown.returncode
    assert "there is no command 'rum'; did you mean run?" in shown.stderr


def test_help_is_quick() -> None:
    """It imports neither the driver nor what draws tables: whoever asks for help is not kept waiting."""
    code = "import json, sys; from eventbus.cli.program import execute; execute(['--help']); print(); print(json.dumps(list(sys.modules)))"
    loaded = json.loads(python(code).stdout.splitlines()[-1])

    assert "click" in loaded
    assert [] == [name for name in ("redis", "rich", "eventbus.cli.service", "eventbus.cli.demo") if name in loaded]


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(module: str) -> None:
    shown = python(f"import sys; sys.modules[{module!r}] = None; from eventbus.cli import main; sys.exit(main())")

    assert 2 == shown.returncode
    assert "the eventbus command needs the \"cli\" extra: pip install 'eventbus[cli]'\n" == shown.stderr
