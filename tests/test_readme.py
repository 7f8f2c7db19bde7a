"""What the README says is so: its code runs, its output is what comes out, and its commands are the ones that the gate runs."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from eventbus.cli.endings import Code
from eventbus.connect import connect
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.errors import ConfigurationError
from tests.processes import ROOT, Process, environment

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

needs_server = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to embed")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The Python blocks, by the file name in their first line."""
    return {
        re.findall(r"\A# (\w+\.py)$", code, re.MULTILINE)[0]: code for language, code in blocks(README) if language == "python"
    }


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory with the files of the README."""
    for name, code in files().items():
        (tmp_path / name).write_text(code)

    return tmp_path


def test_it_opens_with_the_two_commands() -> None:
    language, first = blocks(README)[0]

    assert "sh" == language
    assert [
        "python3 -m venv .venv && .venv/bin/pip install -qe '.[demo]' && .venv/bin/eventbus demo",
        "python3 -m venv .venv && .venv/bin/pip install -qe '.[test]' && .venv/bin/python -m pytest -q",
    ] == first.splitlines()


def test_the_example_prints_what_it_says(shelf: Path) -> None:
    found = blocks(README)
    [expected] = [
        output for (_, code), (language, output) in pairwise(found) if code.startswith("# library.py") and language == "text"
    ]
    ran = subprocess.run(
        [sys.executable, "library.py"], cwd=shelf, env=environment(), capture_output=True, text=True, timeout=30, check=False
    )

    assert (0, "", expected) == (ran.returncode, ran.stderr, ran.stdout)


def test_the_test_passes(shelf: Path) -> None:
    """In a project that is configured for nothing, on every backend of anyio that is installed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", "test_mailer.py"]
    (shelf / "conftest.py").write_text(plugin_unless_installed())
    ran = subprocess.run(command, cwd=shelf, env=environment(), capture_output=True, text=True, timeout=50, check=False)

    assert 0 == ran.returncode, ran.stdout + ran.stderr
    assert re.search(r"^\d passed", ran.stdout, re.MULTILINE), ran.stdout


def plugin_unless_installed() -> str:
    """Where the package is only on the path, and not installed, pytest has to be told of its plugin."""
    from importlib.metadata import entry_points

    installed = any(entry.value == "eventbus.testing.plugin" for entry in entry_points(group="pytest11"))

    return "" if installed else "pytest_plugins = ['eventbus.testing.plugin']\n"


@needs_server
def test_the_service_runs(shelf: Path) -> None:
    """`eventbus run mailer`, and a message that is published where it listens."""
    publish = (
        "import anyio, sys\nfrom eventbus import UnitOfWork, connect\nfrom library import BookRegistered\n"
        "async def main():\n"
        "    async with connect(sys.argv[1]) as transport, UnitOfWork(transport=transport) as uow:\n"
        "        uow.emit(BookRegistered(title='Dune'))\n"
        "        await uow.commit()\n"
        "anyio.run(main)\n"
    )
    with EmbeddedServer() as server:
        command = [sys.executable, "-m", "eventbus", "run", "mailer", "--url", server.url]
        with Process(command, shelf, environment()) as mailer:
            mailer.line("mailer reads reading-club")
            subprocess.run([sys.executable, "-c", publish, server.url], cwd=shelf, env=environment(), check=True, timeout=30)
            mailer.line("letter: new on the shelf, Dune")
            mailer.signal(15)

            assert 0 == mailer.end()


# ---------------------------------------------------------------------------------------------------------------- the demo


@needs_server
def test_the_demo_prints_what_is_shown() -> None:
    """The same steps and the same table; who does them, when and in which order is new each time."""
    [shown] = [text for language, text in blocks(README) if language == "text" and "published = acked" in text]
    ran = subprocess.run(
        [sys.executable, "-m", "eventbus", "demo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert steps(ran.stdout) == steps(shown)
    assert "again: the first was not acked" in shown, "what the README says about it is to be seen in it"


def steps(output: str) -> set[str]:
    """The lines without what is new each time: times, process ids, entry ids, and what had to be done again."""
    lines: set[str] = set()
    for line in output.splitlines():
        line = re.sub(r"^ *\d+\.\d\d s +", "", line).strip()
        line = re.sub(r"(mailer|catalog) \d+\b", r"\1 N", line)
        line = re.sub(r"\d{13}-\d+", "ID", line)
        line = re.sub(r"again in [\d.]+ s", "again in X s", line)
        line = re.sub(r"(Valkey|Redis) [\d.]+", "a server", line)
        if line and "again: the first was not acked" not in line:
            lines.add(re.sub(r" +", " ", line))

    return lines


# ---------------------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    """Files that are there, and headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path) if path else page

        assert linked.exists(), target
        if heading:
            headings = [
                re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            ]

            assert heading in headings, target


def test_the_urls_are_those_that_connect_knows() -> None:
    rows = re.findall(r"^\| `(\w+)://", README, re.MULTILINE)
    with pytest.raises(ConfigurationError) as told:
        connect("nonsense://")

    assert sorted(rows) == sorted(re.findall(r"^  (\w+)://", str(told.value), re.MULTILINE))


def test_the_exit_codes_are_those_of_the_command() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)] == list(Code)


def test_every_file_of_the_package_is_found_in_the_architecture() -> None:
    """Each module, or the folder it is in, is named in the table."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\((\.\./eventbus[^)]*)\)", page)}
    package = ROOT / "eventbus"
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*.py")
        if not linked & {path, *path.parents} and path.name not in ("__init__.py", "__main__.py")
    ]

    assert [] == missing
