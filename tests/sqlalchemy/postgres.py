"""A PostgreSQL server of our own: a new cluster in a temporary directory, on a unix socket, with no TCP port."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USERS = ("postgres", "nobody")
"""Who runs it when we are root, whom it refuses."""

# Beside us in a session of its own. Its input is a pipe that we hold: when that closes, because we ended in whatever way, so does the server.
_GUARDIAN = """
directory=$1
shift
exec 3<&0 </dev/null
"$@" 3<&- >"$directory/log" 2>&1 &
server=$!
trap '' HUP INT TERM
read -r _ <&3
kill -INT "$server" 2>/dev/null
wait "$server"
"""


class NoPostgres(Exception):
    """There is none that could be started; the text says why."""


def find_programs() -> Path:
    """The directory with `initdb` and `postgres`; Debian's are not on PATH."""
    found = shutil.which("postgres")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    for candidate in candidates:
        if all(os.access(candidate / name, os.X_OK) for name in ("initdb", "postgres")):
            return candidate

    raise NoPostgres("PostgreSQL's initdb and postgres are neither on PATH nor in /usr/lib/postgresql")


@contextmanager
def postgres() -> Iterator[str]:
    """A server while the block runs; what follows the driver in the URL of its database. `NoPostgres` if none can be started."""
    programs = find_programs()
    user = _user()
    directory = Path(tempfile.mkdtemp(prefix="eventbus-pg-", dir="/tmp"))  # short: a socket's name may have 107 bytes
    try:
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        how = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        initdb = [
            programs / "initdb",
            "-D",
            directory / "data",
            "-U",
            "club",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        made = subprocess.run(initdb, cwd="/", capture_output=True, text=True, check=False, **how)
        if made.returncode:
            raise NoPostgres(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
        command = [programs / "postgres", "-D", directory / "data", "-k", directory, "-h", "", "-c", "max_connections=200"]
        command += ["-c", "fsync=off", "-c", "full_page_writes=off"]
        guardian = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, "guardian", directory, *command],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            **how,
        )
        assert guardian.stdin is not None
        try:
            _wait(directory, guardian)
            yield f"://club@/postgres?host={directory}"
        finally:
            guardian.stdin.close()
            guardian.wait(20)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue

    raise NoPostgres(f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}")


def _wait(directory: Path, guardian: "subprocess.Popen[bytes]") -> None:
    """Until it has said that it is ready."""
    log, deadline = directory / "log", time.monotonic() + 30
    while time.monotonic() < deadline:
        said = log.read_text() if log.exists() else ""
        if "ready to accept connections" in said:
            return
        if guardian.poll() is not None or "FATAL" in said:
            raise NoPostgres(f"postgres did not start: {said[-500:]}")
        time.sleep(0.01)

    raise NoPostgres("postgres did not start within 30 s")
