"""`eventbus run`: what it finds, what it says, and how it ends."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import pytest
import redis

from eventbus import Event, Metadata, UnitOfWork, connect
from eventbus.embedded import EmbeddedServer, find_executable
from tests.cli.conftest import Command, Start

if TYPE_CHECKING:
    from eventbus.testing.servers import LiveServer

Write = Callable[[str, str], None]

# A service that has work as soon as it runs, and needs no server. Its handlers say when they begin and when they are done.
SERVICE = """
import threading

import anyio

from eventbus import Event, MemoryTransport, MessageBus, Metadata, Subscriber, UnitOfWork, connect


class Tick(Event):
    metadata = Metadata(name="tick", published=True)
    seconds: float


bus = MessageBus()


@bus.listen
async def tick(event: Tick) -> None:
    print(f"begun {event.seconds}", flush=True)
    await anyio.sleep(event.seconds)
    print(f"done {event.seconds}", flush=True)


def subscriber(*seconds, bus=bus, **settings):
    transport = MemoryTransport("ticks")

    async def publish():
        async with UnitOfWork(transport=transport) as uow:
            for each in seconds:
                uow.emit(Tick(seconds=each))
            await uow.commit()

    anyio.run(publish)

    return Subscriber(bus=bus, transport=transport, **{"streams": ["ticks"], "group": "clock", **settings})
"""


@pytest.fixture
def service(write: Write) -> Write:
    """Write a module of services, which has the names of `SERVICE`."""

    def module(name: str, text: str) -> None:
        write(name, SERVICE + text)

    return module


# ------------------------------------------------------------------------------------------------------------- what it finds


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shopp:one", "there is no module 'shopp' here ({here}) or on sys.path; did you mean shop?"),
        ("shop.orders:one", "there is no module 'shop.orders' here ({here}) or on sys.path"),
        ("shop.one", "there is no module 'shop.one' here ({here}) or on sys.path; did you mean shop:one?"),
        ("shop:on", "shop has no 'on'; did you mean one?"),
        ("shop:xyz", "shop has no 'xyz'; its subscribers are one"),
        ("shop:bus", "shop:bus is a MessageBus, not a Subscriber or a list of them; its subscribers are one"),
        ("shop:nothing", "shop:nothing is an empty list, not a Subscriber or a list of them; its subscribers are one"),
        ("shop:needs", "calling shop:needs() failed: TypeError: needs() missing 1 required positional argument: 'what'"),
        ("shop:raises", "calling shop:raises() failed: KeyError: 'isbn' (shop.py:17, in raises)"),
        ("shop:later", "shop:later is an async function: what returns subscribers is called before the event loop runs"),
        ("shop.py:one", "'shop.py:one' names a file: give the module, shop:one"),
        ("redis://:secret@localhost/0", "a URL is no target: give module:attribute, and the URL with --url"),
        (":one", "':one' is no target: give module:attribute, like reading_club.mailer:mailer, or a module"),
        ("shop:", "'shop:' is no target: give module:attribute, like reading_club.mailer:mailer, or a module"),
        ("empty", "empty has no Subscriber at its top level; name what returns one: empty:attribute"),
        ("lacks", "lacks imports 'not_installed', which is not installed or is misspelled (lacks.py:1)"),
        ("breaks", "importing breaks failed: ZeroDivisionError: division by zero (breaks.py:2, in f)"),
        ("leaves", "importing leaves failed: SystemExit: 0 (leaves.py:2)"),
        ("cannot_parse", "importing cannot_parse failed: SyntaxError: '(' was never closed (cannot_parse.py:1)"),
    ],
)
def test_a_wrong_target_is_one_line(eventbus: Command, write: Write, tmp_path: Path, target: str, said: str) -> None:
    """It says what is wrong, where, and what may have been meant."""
    write(
        "shop",
        "from eventbus import MemoryTransport, MessageBus, Subscriber\n"
        "bus = MessageBus()\n"
        "one = Subscriber(bus=bus, transport=MemoryTransport(), streams=['s'], group='g')\n"
        "nothing = []\n"
        "def needs(what): ...\n"
        "async def later(): ...\n" + "\n" * 9 + "def raises():\n    raise KeyError('isbn')\n",
    )
    write("empty", "")
    write("lacks", "import not_installed")
    write("breaks", "def f():\n    1 / 0\nf()")
    write("leaves", "import sys\nsys.exit(0)")
    write("cannot_parse", "print(")

    ended = eventbus("run", target)

    assert (2, "", f"eventbus: {said.format(here=tmp_path)}\n") == (ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("target", ["shop:both", "shop:pair", "shop:make", "shop:make_both", "shop:Holder.both", "shop"])
def test_a_target_may_be_several_subscribers(start: Start, service: Write, target: str) -> None:
    """A list, a tuple, a function that returns either, or a module with all that is at its top level."""
    service(
        "shop",
        "one, two = subscriber(group='one'), subscriber(group='two')\n"
        "both, pair = [one, two], (one, two)\n"
        "def make(): return one\n"
        "def make_both(): return both\n"
        "class Holder:\n    both = both\n",
    )
    running = start("run", target)

    running.line("one reads ticks")
    if target != "shop:make":
        running.line("two reads ticks")
    running.signal(signal.SIGTERM)

    assert 0 == running.end()


def test_what_is_named_twice_runs_once(start: Start, service: Write) -> None:
    service("shop", "one = subscriber()")
    running = start("run", "shop:one", "shop", "shop:one")
    running.line("clock reads ticks")
    running.signal(signal.SIGTERM)

    assert 0 == running.end()
    assert 1 == len([line for line in running.lines if "clock reads ticks" in line])


# --------------------------------------------------------------------------------------------------------------- the server


@pytest.mark.parametrize("how", ["option", "environment", "subscriber"])
def test_a_server_that_is_not_there_is_one_line(eventbus: Command, write: Write, how: str) -> None:
    """It names the server, without the password, says what to do, and does not keep anybody waiting."""
    url = "redis://ada:hunter2@127.0.0.1:1/3"
    named = f"connect({url!r})" if how == "subscriber" else "MemoryTransport()"
    write(
        "shop",
        "from eventbus import MemoryTransport, MessageBus, Subscriber, connect\n"
        f"one = Subscriber(bus=MessageBus(), transport={named}, streams=['s'], group='g')\n",
    )
    begun = time.monotonic()
    options = ["--url", url] if how == "option" else []
    variables = {"EVENTBUS_URL": url} if how == "environment" else {}
    ended = eventbus("run", "shop:one", *options, **variables)

    assert (3, "") == (ended.returncode, ended.stdout)
    [line] = ended.stderr.splitlines()
    assert line.startswith("eventbus: cannot connect to redis://127.0.0.1:1/3: ")
    assert line.endswith("; start a server there, name another with --url or EVENTBUS_URL, or wait for it with --wait SECONDS")
    assert "hunter2" not in line
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--wait", "nan"], "'nan' is not a number of seconds."),
        (["--wait", "-1"], "-1.0 is not in the range x>=0."),
        (["--concurrency", "9" * 20], "concurrency=99999999999999999999): 10000 at the most"),
    ],
)
def test_a_number_without_sense_is_refused(eventbus: Command, write: Write, options: list[str], said: str) -> None:
    """Before it fills the memory, or waits for what never comes."""
    write(
        "shop",
        "from eventbus import MemoryTransport, MessageBus, Subscriber\n"
        "one = Subscriber(bus=MessageBus(), transport=MemoryTransport(), streams=['s'], group='g')\n",
    )
    ended = eventbus("run", "shop:one", *options)

    assert 2 == ended.returncode
    assert said in ended.stderr


def test_a_server_that_says_nothing_counts_as_not_there(eventbus: Command, write: Write) -> None:
    """It accepts the connection, as a stopped process or a firewall's proxy does, and that is all."""
    write(
        "shop",
        "from eventbus import MemoryTransport, MessageBus, Subscriber\n"
        "one = Subscriber(bus=MessageBus(), transport=MemoryTransport(), streams=['s'], group='g')\n",
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        ended = eventbus("run", "shop:one", "--url", f"redis://127.0.0.1:{port}")

    assert 3 == ended.returncode
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"eventbus: no answer from redis://127.0.0.1:{port}/0 within 2.5 s; ")
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("streams", [["s", "no-stream"], ["no-stream", "s"]])
def test_a_key_that_is_no_stream_is_a_failure(
    eventbus: Command, write: Write, redis_server: "LiveServer", streams: list[str]
) -> None:
    """Whichever of the streams it is: the server answers, and lets us in."""
    write(
        "shop",
        "from eventbus import MemoryTransport, MessageBus, Subscriber\n"
        f"one = Subscriber(bus=MessageBus(), transport=MemoryTransport(), streams={streams}, group='g')\n",
    )
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("no-stream", "text")
        try:
            ended = eventbus("run", "shop:one", "--url", redis_server.url)
        finally:
            client.delete("no-stream")

    assert 1 == ended.returncode
    [line] = ended.stderr.splitlines()
    assert "WRONGTYPE" in line
    assert "choose another stream name" in line


@pytest.mark.skipif(find_executable() is None, reason="no Valkey or Redis server found to embed")
def test_it_can_wait_for_the_server(start: Start, service: Write) -> None:
    service("shop", "one = subscriber()")
    with TemporaryDirectory(prefix="eb", dir="/tmp") as home:
        running = start("run", "shop:one", "--url", f"unix://{home}/server.sock?db=0", "--wait", "30")
        running.line("waiting up to 30 s: cannot connect to unix://")
        with EmbeddedServer(Path(home)):
            running.line(f"clock reads ticks at unix://{home}/server.sock?db=0, up to 10 at once")
            running.signal(signal.SIGTERM)

            assert 0 == running.end()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost", "'http://localhost' is not a URL that connect() knows; it knows"),
        ("redis://u:hunter2@localhost:port", "'redis://u:***@localhost:port' is not a Redis URL"),
        ("redis://u:hunter2@localhost?nonsense=1", "redis://localhost:6379/0: the URL has an option that redis-py does not know"),
    ],
)
def test_a_wrong_url_is_a_wrong_option(eventbus: Command, service: Write, url: str, said: str) -> None:
    service("shop", "one = subscriber()")
    ended = eventbus("run", "shop:one", "--url", url)

    assert 2 == ended.returncode
    assert ended.stderr.startswith(f"eventbus: {said}")
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_place_in_memory_cannot_be_several(eventbus: Command, service: Write) -> None:
    """Two default streams on memory:// would be two places that do not hear each other."""
    service(
        "shop",
        "one, two = [Subscriber(bus=bus, transport=MemoryTransport(name), streams=['s'], group='g') for name in ('a', 'b')]",
    )
    ended = eventbus("run", "shop", "--url", "memory://")

    assert 2 == ended.returncode
    assert "memory:// is a place of its own for each transport" in ended.stderr


class Tick(Event):
    metadata = Metadata(name="tick", published=True)
    seconds: float


async def publish(url: str, stream: str, number: int) -> None:
    async with connect(url, stream=stream) as transport, UnitOfWork(transport=transport) as uow:
        for _ in range(number):
            uow.emit(Tick(seconds=0.0))
        await uow.commit()


async def delete(url: str, stream: str) -> None:
    async with connect(url) as transport:
        await transport.delete(stream)  # type: ignore[attr-defined]


def test_two_groups_on_a_real_server(start: Start, service: Write, redis_server: "LiveServer") -> None:
    """`--url` takes the place of what the subscribers name; each of them says what it reads there, and what it did in the end."""
    stream = f"ticks-{os.getpid()}"
    service("shop", f"one, two = [subscriber(group=group, streams=[{stream!r}]) for group in ('one', 'two')]")
    # The module publishes to its own stream in memory; what is on the server comes from here.
    anyio.run(publish, redis_server.url, stream, 3)
    try:
        running = start("run", "shop", "--url", redis_server.url, "--concurrency", "3")
        for group in ("one", "two"):
            line = running.line(f"{group} reads {stream} at ")
            assert line.endswith(", up to 3 at once")
        while sum("done" in line for line in running.lines) < 6:
            assert running.running(), running.output
            time.sleep(0.01)
        running.signal(signal.SIGTERM)

        assert 0 == running.end()
        for group in ("one", "two"):
            running.line(f"{stream}/{group}: stopped; 3 handled, 0 retried, 0 buried")
    finally:
        anyio.run(delete, redis_server.url, stream)


# -------------------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_handlers_end(start: Start, service: Write, number: signal.Signals) -> None:
    """What has begun is finished and acked, what has not is given back; that is a good end."""
    service("shop", "one = subscriber(0.5, 7.0, concurrency=1)")
    running = start("run", "shop:one")
    running.line("begun 0.5")
    running.signal(number)

    assert 0 == running.end()
    running.line(f"stopping on {number.name}, 1 running, up to 25 s for them; a second signal ends at once")
    running.line("done 0.5")
    running.line("ticks/clock: stopped; 1 handled, 0 retried, 0 buried")
    assert "begun 7.0" not in running.output
    assert "Traceback" not in running.output


def test_an_idle_service_stops_at_once(start: Start, service: Write) -> None:
    service("shop", "one = subscriber()")
    running = start("run", "shop:one")
    running.line("clock reads ticks")
    begun = time.monotonic()
    running.signal(signal.SIGINT)

    assert 0 == running.end()
    assert time.monotonic() - begun < 1
    running.line("stopping on SIGINT, none is running")


def test_a_second_signal_ends_at_once(start: Start, service: Write) -> None:
    service("shop", "one = subscriber(60.0)")
    running = start("run", "shop:one")
    running.line("begun 60.0")
    running.signal(signal.SIGINT)
    running.line("stopping on SIGINT")
    running.signal(signal.SIGTERM)

    assert 130 == running.end()
    running.line("ended at once by a second signal, SIGTERM: what was in hand is delivered again")
    assert "done" not in running.output
    assert "Traceback" not in running.output


def test_a_handler_that_blocks_the_loop_can_still_be_ended(start: Start, service: Write) -> None:
    """That is when Ctrl-C is wanted most."""
    service(
        "shop",
        "bus = MessageBus()\n"
        "@bus.listen\n"
        "async def block(event: Tick) -> None:\n"
        "    print('blocking', flush=True)\n"
        "    threading.Event().wait()\n"
        "one = subscriber(0, bus=bus)\n",
    )
    running = start("run", "shop:one")
    running.line("blocking")
    while running.running():
        running.signal(signal.SIGINT)
        time.sleep(0.05)

    assert 130 == running.end()


@pytest.mark.parametrize("how", ["plain", "option", "environment"])
def test_an_error_of_the_program_is_one_line(eventbus: Command, service: Write, how: str) -> None:
    """Its type, text and place; the traceback is for those who ask."""
    service(
        "shop",
        "class Broken(MemoryTransport):\n"
        "    def subscribe(self, request):\n"
        "        raise ValueError('the shelf\\nis full')\n"
        "one = Subscriber(bus=bus, transport=Broken(), streams=['s'], group='g')\n",
    )
    place = SERVICE.count("\n") + 3
    options = ["--traceback"] if how == "option" else []
    ended = eventbus("run", "shop:one", *options, **({"EVENTBUS_DEBUG": "1"} if how == "environment" else {}))

    assert (1, "") == (ended.returncode, ended.stdout)
    *before, line = [line for line in ended.stderr.splitlines() if "stopped; " not in line]
    assert (
        f"eventbus: g: ValueError: the shelf\N{REPLACEMENT CHARACTER}is full (shop.py:{place}, in subscribe); EVENTBUS_DEBUG=1 shows it whole"
        == line
    )
    assert (how != "plain") == bool(before)
    assert (how != "plain") == ("Traceback (most recent call last):" in ended.stderr)


def test_a_failing_handler_is_told_in_the_log_without_a_traceback(start: Start, service: Write) -> None:
    service(
        "shop",
        "bus = MessageBus()\n"
        "@bus.listen\n"
        "async def fail(event: Tick) -> None:\n"
        "    raise KeyError('isbn')\n"
        "one = subscriber(0, bus=bus)\n",
    )
    running = start("run", "shop:one")
    line = running.line("attempt 1 failed")
    running.signal(signal.SIGTERM)

    assert 0 == running.end()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} warning  ticks/clock \d+-0 tick_v1: attempt 1 failed, again in [\d.]+ s: KeyError: 'isbn'", line
    )
    assert "Traceback" not in running.output


def test_the_log_can_be_read_by_machines(start: Start, service: Write) -> None:
    """With `--log-format json` every line on stderr is an object, the first and the last words included."""
    service(
        "shop",
        "import logging\n"
        "bus = MessageBus()\n"
        "@bus.listen\n"
        "async def log(event: Tick) -> None:\n"
        "    try:\n"
        "        {}['isbn']\n"
        "    except KeyError:\n"
        "        logging.getLogger('shop').exception('no\\nbook', extra={'shelf': 3})\n"
        "one = subscriber(0, bus=bus)\n",
    )
    running = start("run", "shop:one", "--log-format", "json")
    running.line('"logger":"shop"')
    running.signal(signal.SIGTERM)

    assert 0 == running.end()
    records = [json.loads(line) for line in running.lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*[set(record) for record in records])
    [told] = [record for record in records if record["logger"] == "shop"]
    assert ("error", "no\nbook", 3) == (told["level"], told["message"], told["shelf"])
    assert told["error"].startswith("KeyError: 'isbn' (shop.py:")
    assert ["ready", "stopping"] == [record["event"] for record in records if "event" in record]


def test_a_quiet_level_is_quiet(start: Start, service: Write) -> None:
    service("shop", "one = subscriber(0.25)")
    running = start("run", "shop:one", EVENTBUS_LOG_LEVEL="warning")
    running.line("done 0.25")
    running.signal(signal.SIGTERM)

    assert 0 == running.end()
    assert ["begun 0.25", "done 0.25"] == running.lines
