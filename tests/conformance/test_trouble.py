"""Trouble with the server"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis

from eventbus import Delivery, Reject, Retry
from eventbus.embedded import EmbeddedServer
from eventbus.errors import PublishError, Refused, TransportError, Unavailable
from eventbus.redis import RedisTransport
from tests.conformance.club import (
    GROUP,
    STREAM,
    Reader,
    Registered,
    envelopes,
    nothing_left,
    once,
    only,
    publish,
)
from tests.conformance.moods import moody
from tests.conformance.places import Place

in_this_process = pytest.mark.not_on("memory", because="there is no server between publisher and reader, and no line to it")
a_server = pytest.mark.not_on("memory", "fakeredis", because="a server of its own is restarted, promoted, or made to say no")


@a_server
async def test_076_a_server_that_is_restarted_loses_nothing(place: Place) -> None:
    """10,000 envelopes, 100 publishers, the server restarted at a third and at a half: all arrive."""
    with tempfile.TemporaryDirectory(prefix="eventbus-") as folder:
        server = EmbeddedServer(Path(folder), executable=os.fspath(place.executable))
        published = 0

        async def publish_many(publisher: int) -> None:
            nonlocal published
            for start in range(publisher * 100, publisher * 100 + 100, 10):
                batch = envelopes(range(start, start + 10))
                while batch:
                    try:
                        await transport.publish(batch)
                        batch = []
                    except PublishError as exc:
                        batch = list(exc.envelopes)
                published += 10

        async def restart() -> None:
            for when in (3_333, 5_000):
                await place.wait_until(lambda when=when: published >= when, description=f"{when} are published", within=30)
                await anyio.to_thread.run_sync(server.stop)
                await anyio.to_thread.run_sync(server.start)

        with server:
            async with RedisTransport(server.url) as transport:
                reader = Reader(transport, lease=5.0)
                async with reader.running():
                    async with only() as tasks:
                        tasks.start_soon(restart)
                        for publisher in range(100):
                            tasks.start_soon(publish_many, publisher)
                    await place.wait_until(lambda: len(set(reader.handled)) == 10_000, description="all have come", within=30)
                    await place.wait_until(lambda: nothing_left(transport), description="all is settled")

                assert 10_000 == place_length(server.url)

    assert set(range(10_000)) == set(reader.handled)
    assert reader.statistics.buried == 0


def place_length(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.xlen(STREAM))


CUT = [
    "hello",
    "publish",
    "join",
    "client",
    "due",
    "glance",
    "sweep",
    "xreadgroup",
    "ack",
    "retry",
    "bury",
    "renew",
    "release",
    "reap",
]


@in_this_process
async def test_077_the_line_may_be_cut_at_every_command(place: Place) -> None:
    """The connection cut before and after every command: nothing lost."""
    handled: dict[tuple[str, bool], set[int]] = {}

    async def cut(command: str, after: bool) -> None:
        stream = f"{command}-{after}"

        async def does(event: Registered, delivery: Delivery) -> None:
            if event.number % 10 == 3 and delivery.attempt == 1:
                raise Retry(after=0.01)
            if event.number % 10 == 7:
                raise Reject("never")
            if event.number == 19 and command in ("renew", "sweep"):  # where nothing is in hand, nothing is renewed or swept
                await place.wait_until(lambda: line.pending_cuts == 0, description=f"{stream}: the line was cut")
            if event.number == 19 and command == "release" and not run_is_over:
                await anyio.sleep_forever()

        async with place.line() as (transport, line):
            line.cut(command, after=after)
            await transport.publish(envelopes(range(20), stream=stream))
            reader = Reader(transport, does, streams=[stream], lease=place.lease, grace=0.0)
            run_is_over = False
            async with reader.running():
                await place.wait_until(lambda: len(reader.handled) >= 17, description=f"{stream}: it has handled most")
            run_is_over = True
            async with reader.running():
                await place.wait_until(lambda: nothing_left(transport, stream=stream), description=f"{stream}: nothing is left")
            handled[command, after] = set(reader.handled)

            assert {7, 17} == {_number(letter) for letter in await transport.dead_letters(stream, GROUP)}
            assert 2 == len(await transport.dead_letters(stream, GROUP))
            assert 20 == place.client.xlen(stream)
            assert 0 == line.pending_cuts, stream

    async with only() as tasks:
        for command in CUT:
            for after in (False, True):
                tasks.start_soon(cut, command, after)

    assert {(command, after): set(range(20)) - {7, 17} for command in CUT for after in (False, True)} == handled


def _number(letter: Any) -> int:
    return int(letter.envelope.payload.split(b":")[1].split(b",")[0])


@pytest.mark.not_on("memory", because="its streams cannot be deleted")
@pytest.mark.not_on("fakeredis", because="its blocked reads do not notice")
@pytest.mark.parametrize("loss", ["the stream", "everything"])
async def test_078_a_reader_survives_its_stream(place: Place, caplog: pytest.LogCaptureFixture, loss: str) -> None:
    """The stream deleted under a blocked reader: it resumes, and reports."""
    transport = await place.connect()
    reader = Reader(transport)
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with reader.running():
            await publish(transport, *range(3))
            await place.wait_until(lambda: nothing_left(transport), description="the reader waits for more")
            if loss == "everything":
                place.client.flushall()
            else:
                place.client.delete(STREAM)
            await publish(transport, *range(10, 13))
            await place.wait_until(lambda: {10, 11, 12} <= set(reader.handled), description="it goes on")

    assert once([0, 1, 2, 10, 11, 12]) == once(reader.handled)
    assert 1 == sum("begins again at" in message for message in caplog.messages)


@pytest.mark.not_on("memory", because="its groups cannot be destroyed")
@pytest.mark.not_on("fakeredis", because="its blocked reads do not notice")
async def test_079_a_destroyed_group_begins_again_at_its_checkpoint(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A destroyed group is created again at its checkpoint: no gap, bounded repeats."""
    transport = await place.connect()
    reader = Reader(transport, lease=place.lease)
    with caplog.at_level(logging.ERROR, "eventbus"):
        async with reader.running():
            await publish(transport, *range(100))
            await place.wait_until(lambda: _checkpoint(place), description="a sweep has noted where it stands")
            await publish(transport, *range(100, 200))
            place.client.xgroup_destroy(STREAM, GROUP)
            await publish(transport, *range(200, 300))
            await place.wait_until(lambda: set(range(300)) == set(reader.handled), description="all have come")
            await place.wait_until(lambda: nothing_left(transport), description="all is settled")

    assert once(range(100)) == once(number for number in reader.handled if number < 100)
    assert max(once(reader.handled).values()) <= 2
    assert 1 == sum("begins again at its checkpoint" in message for message in caplog.messages)


def _checkpoint(place: Place) -> bool:
    """Whether the group's checkpoint is the last entry of the stream."""
    newest = place.client.xrevrange(STREAM, count=1)

    return bool(newest) and place.client.hget(f"{{{STREAM}}}:group:{GROUP}", "checkpoint") == newest[0][0]


@a_server
async def test_080_a_replica_that_lags_is_gone_on_with(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Failover to a replica that lags: repeats allowed, loss reported."""
    held, go_on = anyio.Event(), anyio.Event()

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number == 19 and not go_on.is_set():
            held.set()
            await go_on.wait()

    with caplog.at_level(logging.ERROR, "eventbus"), replicated(place) as (url, master, replica, fail_over):
        async with RedisTransport(url) as transport:
            reader = Reader(transport, does, lease=5.0)
            async with reader.running():
                await publish(transport, *range(20))
                with anyio.fail_after(10):
                    await held.wait()
                await place.wait_until(lambda: len(reader.handled) == 19, description="one handler runs, the rest is handled")
                await place.wait_until(lambda: _follows(master, replica), description="the replica has it all")
                replica.replicaof("no", "one")  # from here on it hears nothing
                go_on.set()
                await publish(transport, *range(20, 30))
                await place.wait_until(lambda: set(range(30)) == set(reader.handled), description="the master goes on")
                fail_over()
                await publish(transport, *range(30, 40))
                await place.wait_until(lambda: set(range(40)) == set(reader.handled), description="it goes on with the replica")
                await place.wait_until(lambda: nothing_left(transport), description="all is settled")

        assert 30 == replica.xlen(STREAM)  # what was published between is not there, though the master's readers had it

    assert max(once(reader.handled).values()) <= 2
    assert 1 == sum("the server has forgotten what was published last" in message for message in caplog.messages)


@contextmanager
def replicated(place: Place) -> Iterator[tuple[str, Any, Any, Any]]:
    """A URL that leads to a master, clients of the master and of its replica, and what lets it lead to the replica."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    executable = os.fspath(place.executable)
    with (
        tempfile.TemporaryDirectory(prefix="eventbus-") as folder,
        EmbeddedServer(executable=executable, options=["--port", str(port), "--repl-diskless-sync-delay", "0"]) as first,
        EmbeddedServer(executable=executable) as second,
        redis.Redis.from_url(first.url) as master,
        redis.Redis.from_url(second.url) as replica,
    ):
        link = Path(folder) / "server.sock"
        link.symlink_to(first.socket)
        replica.replicaof("127.0.0.1", str(port))

        def fail_over() -> None:
            link.unlink()
            link.symlink_to(second.socket)
            os.kill(first.pid, signal.SIGKILL)

        yield f"unix://{link}?db=0", master, replica, fail_over


def _follows(master: Any, replica: Any) -> bool:
    there, here = master.info("replication"), replica.info("replication")

    return bool(here.get("master_link_status") == "up" and there["master_repl_offset"] == here["slave_repl_offset"])


SAID: dict[str, tuple[type[TransportError], str]] = {
    "LOADING Redis is loading the dataset in memory": (Unavailable, "not sent"),
    "READONLY You can't write against a read only replica.": (Unavailable, "not sent"),
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": (Unavailable, "not sent"),
    "MOVED 3999 127.0.0.1:6381": (Unavailable, "not sent"),
    "ASK 3999 127.0.0.1:6381": (Unavailable, "not sent"),
    "CLUSTERDOWN The cluster is down": (Unavailable, "not sent"),
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": (Unavailable, "not sent"),
    "NOPERM this user has no permissions to run the 'xadd' command": (Refused, "not sent"),
}


@a_server
async def test_081_each_error_of_a_server_has_its_outcome(place: Place) -> None:
    """OOM, LOADING, READONLY, NOSCRIPT, BUSY, MOVED and ASK each have a defined outcome."""
    handled: dict[str, list[int]] = {}

    async def hear(said: str) -> None:
        (error, outcome), stream = SAID[said], said.split()[0].lower()
        [first, second] = envelopes([1, 2], stream=stream)
        async with moody(place.server.url) as (url, mood), RedisTransport(url, patience=0.1) as transport:
            await transport.publish([first])
            mood.says = said
            with pytest.raises(error) as caught:
                await transport.publish([second])

            assert isinstance(caught.value, PublishError)
            assert ((second,), outcome) == (caught.value.envelopes, caught.value.outcome), said

            reader = Reader(transport, streams=[stream])
            asked = mood.said

            async def relent() -> None:
                if error is Unavailable:
                    await place.wait_until(lambda: mood.said >= asked + 2, description=f"{said}: it was asked twice more")
                mood.says = None
                await transport.publish([second])

            if error is Refused:
                with pytest.raises(Refused):
                    await reader.subscriber.run()
            async with only() as tasks:
                tasks.start_soon(relent)
                async with reader.running():
                    await place.wait_until(lambda: set(reader.handled) == {1, 2}, description=f"{said}: both are handled")
            handled[said] = sorted(reader.handled)

    async with only() as tasks:
        for said in SAID:
            tasks.start_soon(hear, said)

    assert {said: [1, 2] for said in SAID} == handled


@a_server
async def test_081_a_server_that_has_forgotten_the_scripts_is_told_again(place: Place) -> None:
    """OOM, LOADING, READONLY, NOSCRIPT, BUSY, MOVED and ASK each have a defined outcome."""
    transport = await place.connect()

    async def does(event: Registered, delivery: Delivery) -> None:
        place.client.script_flush()
        if delivery.attempt == 1:
            raise Retry(after=0.0)

    reader = Reader(transport, does)
    async with reader.running():
        for number in range(10):
            await publish(transport, number)
        await place.wait_until(lambda: nothing_left(transport), description="all is settled")

    assert once(range(10)) == once(reader.handled)


@a_server
async def test_081_a_server_without_memory_goes_on_when_it_has_some(place: Place) -> None:
    """OOM, LOADING, READONLY, NOSCRIPT, BUSY, MOVED and ASK each have a defined outcome."""
    transport = await place.connect()
    await publish(transport, *range(10))

    async def does(event: Registered, delivery: Delivery) -> None:
        if event.number % 2 and delivery.attempt == 1:
            raise Retry(after=0.0)

    reader = Reader(transport, does, lease=place.lease)
    async with reader.running():
        await place.wait_until(lambda: nothing_left(transport), description="there is room")
        await publish(transport, *range(10, 20))
        place.client.config_set("maxmemory", 1)
        await place.wait_until(lambda: len(reader.starts) >= 25, description="they are read, and half of them is handled")
        place.client.config_set("maxmemory", 0)
        await place.wait_until(lambda: nothing_left(transport), description="there is room again")

    assert once(range(20)) == once(reader.handled)


@in_this_process
async def test_083_trouble_is_told_now_and_then(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Repeated errors are logged at a bounded rate."""
    async with place.line() as (transport, line):
        reader = Reader(transport, lease=place.lease)
        with caplog.at_level(logging.INFO, "eventbus"):
            async with reader.running():
                await publish(transport, 1)
                await place.wait_until(lambda: nothing_left(transport), description="all is well")
                before = line.connections
                line.refusing = True
                line.reset()
                await place.wait_until(lambda: line.connections >= before + 3, description="it has tried again and again")
                line.refusing = False
                await publish(transport, 2)
                await place.wait_until(lambda: 2 in reader.handled, description="all is well again")

    assert 1 <= sum("trying again" in message for message in caplog.messages) <= 2  # one for each of its two connections
    assert 1 <= sum("going on after" in message for message in caplog.messages) <= 2
    assert [1, 2] == reader.handled
