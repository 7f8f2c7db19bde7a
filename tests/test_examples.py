"""Every example runs, and prints what it says that it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.embedded import EmbeddedServer, find_executable
from tests.processes import ROOT, Process, environment

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))

needs_server = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to embed")


def test_they_are_numbered_without_a_gap() -> None:
    assert [f"{number:02}" for number in range(1, len(EXAMPLES) + 1)] == [path.name[:2] for path in EXAMPLES]
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[needs_server] if "embedded://" in path.read_text() else []) for path in EXAMPLES],
)
def test_an_example_prints_what_it_says(path: Path) -> None:
    """What follows ``# Output:`` at its end."""
    _, comment = path.read_text().split("\n# Output:\n")
    expected = [line.removeprefix("#").removeprefix(" ") for line in comment.splitlines()]

    ran = subprocess.run(
        [sys.executable, "-W", "error", str(path)], env=environment(), capture_output=True, text=True, timeout=30, check=False
    )

    assert (0, "", expected) == (ran.returncode, ran.stderr, ran.stdout.splitlines())


@needs_server
def test_the_services_of_the_reading_club_are_processes() -> None:
    """A book is registered in one process, and the mailer, the catalog and the authors hear of it in theirs."""
    with EmbeddedServer() as server:
        variables = environment(EVENTBUS_URL=server.url)
        run = [sys.executable, "-m", "eventbus", "run"]
        register = [sys.executable, "-m", "examples.reading_club.publisher", "9780441172719", "Dune", "Frank Herbert"]
        with (
            Process([*run, "examples.reading_club.catalog:catalog"], ROOT, variables) as catalog,
            Process([*run, "examples.reading_club.mailer"], ROOT, variables) as mailer,
            Process([*run, "examples.reading_club.authors:authors"], ROOT, variables) as authors,
        ):
            registered = subprocess.run(register, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30, check=True)

            assert "registered 'Dune'\n" == registered.stdout
            assert "catalog: Frank Herbert: Dune" == catalog.line("catalog: ")
            assert "letter: new on the shelf: Dune by Frank Herbert" == mailer.line("letter: ")

            assert "authors: one more by Frank Herbert" == authors.line("authors: ")

            for process in (catalog, mailer, authors):
                process.signal(15)

                assert 0 == process.end()
                assert re.search(r"stopped; 1 handled, 0 retried, 0 buried", process.output)

            ask = [sys.executable, "-m", "examples.reading_club.authors"]
            counts = subprocess.run(ask, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30, check=True)

            assert "Frank Herbert: 1\n" == counts.stdout


@needs_server
def test_the_desk_registers_in_a_database_and_a_relay_sends_what_was_left(tmp_path: Path) -> None:
    """One book while the server answers, one while nothing does: both are told of, and a book is registered once."""
    database = f"sqlite+aiosqlite:///{tmp_path / 'club.db'}"
    with EmbeddedServer() as server:
        there = environment(EVENTBUS_URL=server.url, READING_CLUB_DATABASE=database)
        away = environment(EVENTBUS_URL=f"unix://{tmp_path / 'nobody'}", READING_CLUB_DATABASE=database)
        eventbus = [sys.executable, "-m", "eventbus"]

        def desk(title: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "examples.reading_club.desk", f"isbn of {title}", title, "Frank Herbert"]

            return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30, check=False)

        assert "registered 'Dune'\n" == desk("Dune", there).stdout
        again = desk("Dune", there)
        assert (1, "'Dune' (isbn of Dune) is registered already\n") == (again.returncode, again.stderr)
        assert "registered 'Dune Messiah'\n" == desk("Dune Messiah", away).stdout

        with Process([*eventbus, "run", "examples.reading_club.catalog:catalog"], ROOT, there) as catalog:
            assert "catalog: Frank Herbert: Dune" == catalog.line("catalog: ")
            drain = [*eventbus, "relay", "examples.reading_club.desk:relay", "--drain"]
            drained = subprocess.run(drain, cwd=ROOT, env=there, capture_output=True, text=True, timeout=30, check=True)

            # A server that it sees for the first time may have lost Dune, which is sent again, and not added twice.
            assert "sent 2\n" == drained.stdout
            assert "catalog: Frank Herbert: Dune, Dune Messiah" == catalog.line("Messiah")

            catalog.signal(15)

            assert 0 == catalog.end()
            assert "stopped; 2 handled, 0 retried, 0 buried" in catalog.output


def test_the_example_modules_are_found_from_where_the_readme_says() -> None:
    """The commands in the docstring of the package name modules that are there."""
    import examples.reading_club as package

    named = re.findall(r"(?:run|relay|-m) (examples\.[\w.]+)", package.__doc__ or "")

    assert 7 == len(named)
    assert all((ROOT / f"{name.replace('.', os.sep)}.py").is_file() for name in named)
