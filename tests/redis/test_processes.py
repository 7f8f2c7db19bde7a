"""Groups of processes on a real server, started as a user starts them."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventbus import UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.testing import wait_until
from eventbus.testing.servers import LiveServer
from tests.redis.recorder import STREAM, Counted

MESSAGES = 20_000
GROUPS = ("mailer", "catalog")


@contextmanager
def process(group: str, url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "RECORD_GROUP": group,
        "RECORD_TO": str(folder),
        "EVENTBUS_URL": url,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "eventbus", "run", "tests.redis.recorder:recorder"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


def recorded(folder: Path, group: str) -> Counter[int]:
    return Counter(int(line) for file in folder.glob(f"{group}-*") for line in file.read_text().splitlines())


async def publish(transport: RedisTransport, first: int, count: int) -> None:
    for start in range(first, first + count, 500):
        async with UnitOfWork(transport=transport) as uow:
            for number in range(start, start + 500):
                uow.emit(Counted(number))
            await uow.commit()


async def test_each_group_of_two_processes_handles_each_message(redis_server: LiveServer, server: Any, tmp_path: Path) -> None:
    """20,000 messages, two groups, two processes each: every id in each group, none pending, none left; SIGTERM ends them well."""
    async with RedisTransport(redis_server.url) as transport:
        with (
            process("mailer", redis_server.url, tmp_path) as one,
            process("mailer", redis_server.url, tmp_path) as two,
            process("catalog", redis_server.url, tmp_path) as three,
            process("catalog", redis_server.url, tmp_path) as four,
        ):
            await publish(transport, 0, MESSAGES)
            await wait_until(
                lambda: all(len(recorded(tmp_path, group)) == MESSAGES for group in GROUPS),
                description="each group has handled each id",
                timeout=40,
            )
            for group in GROUPS:
                await wait_until(
                    lambda group=group: _nothing_left(transport, group), description=f"{group} has settled everything"
                )
            for running in (one, two, three, four):
                running.send_signal(signal.SIGTERM)
            assert [0, 0, 0, 0] == [running.wait(10) for running in (one, two, three, four)]

    for group in GROUPS:
        assert set(range(MESSAGES)) == set(recorded(tmp_path, group))
        assert 1 == max(recorded(tmp_path, group).values())
        assert 0 == server.client.xpending(STREAM, group)["pending"]
        assert [] == server.client.xinfo_consumers(STREAM, group)


async def test_what_a_killed_process_held_is_finished_by_another(redis_server: LiveServer, server: Any, tmp_path: Path) -> None:
    """kill -9 again and again: nothing is lost."""
    async with RedisTransport(redis_server.url) as transport:
        with process("mailer", redis_server.url, tmp_path):
            for round in range(4):
                with process("mailer", redis_server.url, tmp_path) as victim:
                    await publish(transport, round * 2000, 2000)
                    await wait_until(
                        lambda victim=victim: (tmp_path / f"mailer-{victim.pid}").exists(), description="the victim is at work"
                    )
                    victim.kill()
            await wait_until(lambda: len(recorded(tmp_path, "mailer")) == 8000, description="everything was handled", timeout=40)
            await wait_until(lambda: _nothing_left(transport, "mailer"), description="everything was settled", timeout=40)


async def _nothing_left(transport: RedisTransport, group: str) -> bool:
    return not await transport.backlog(STREAM, group)
