"""Forks the processes of the harness: it has everything imported already, so that a start takes milliseconds.

It reads a job a line, as JSON, and writes ``started PID`` for it, in order; and ``ended PID STATUS`` when a process has ended, with minus
the signal that ended it, or its exit code. When its input ends, whoever started it is gone: it kills what is left, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path

import msgspec

from eventbus.cli import service
from eventbus.cli.commands import run
from eventbus.cli.program import execute
from tests.faults import broken, consumer, publisher

Job = consumer.ConsumerJob | publisher.PublisherJob

_decoder = msgspec.json.Decoder(Job)
_imported = (run, service)
"""What `execute` would import in each process."""


def main() -> None:
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    alive: set[int] = set()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                if key.fd == woken:
                    _reap(alive)
                    continue
                if not data:
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    pid = _fork(line)
                    alive.add(pid)
                    _say("started", pid)


def _reap(alive: set[int]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        alive.discard(pid)
        _say("ended", pid, os.waitstatus_to_exitcode(status))


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _fork(line: bytes) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        job = _decoder.decode(line)
        log = os.open(Path(job.directory) / f"{job.name}.{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for ours, descriptor in ((null, 0), (log, 1), (log, 2)):
            os.dup2(ours, descriptor)
        code = _become(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(job: Job) -> int:
    broken.apply(job.broken)
    if isinstance(job, publisher.PublisherJob):
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        asyncio.run(publisher.publish(job))
        return 0
    os.environ[consumer.VARIABLE] = msgspec.json.encode(job).decode()

    return execute(["run", f"{consumer.__name__}:subscriber", "--wait", "60", "--log-level", "info"])


if __name__ == "__main__":
    main()
