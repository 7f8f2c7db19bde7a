"""The hot path of a connection: replies in order, whatever the line does to them, and nothing that waits for ever."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions

from eventbus import Event, Metadata
from eventbus.embedded import EmbeddedServer
from eventbus.envelope import seal
from eventbus.errors import Unavailable
from eventbus.redis import RedisTransport
from eventbus.redis.link import Channel, Endpoint, Link
from eventbus.redis.wire import Wire
from eventbus.testing import wait_until
from eventbus.testing.faults import FaultProxy
from eventbus.testing.servers import LiveServer
from eventbus.transport import Subscribe

PING = b"*1\r\n$4\r\nPING\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class BookRegistered(Event):
    metadata = Metadata(name="book_registered", published=True, stream="club")
    number: int


class Clock:
    """An event loop's time, moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, (), asyncio.get_running_loop())
        self._timers.append(timer)

        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self._timers if timer.when() <= self.now and not timer.cancelled()]
        self._timers = [timer for timer in self._timers if timer.when() > self.now]
        for timer in due:
            timer._run()  # type: ignore[attr-defined]


@asynccontextmanager
async def wire_to(serve: Serve) -> AsyncIterator[Wire]:
    """A wire to a server that does as the test says."""
    served: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, host, port)
    wire = Wire(transport, loop)
    transport.set_protocol(wire)
    try:
        yield wire
    finally:
        wire.close()
        transport.abort()
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await server.wait_closed()


def saying(*parts: bytes) -> Serve:
    """Answers the first command with these parts, each in a packet of its own, and then hears nothing more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PING))
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        await asyncio.Event().wait()

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


# -------------------------------------------------------------------------------------------------------------- replies


async def test_replies_that_come_byte_by_byte() -> None:
    """As they may over a bad line."""
    said = b"*2\r\n$3\r\n\x00\r\n\r\n:7\r\n-ERR no \xff such thing\r\n"
    async with wire_to(saying(*[said[n : n + 1] for n in range(len(said))])) as wire:
        array, error = await wire.ask(PING, 2, 5.0)

    assert [b"\x00\r\n", 7] == array
    assert isinstance(error, redis.exceptions.ResponseError)
    assert "no � such thing" in str(error)


async def test_what_the_server_pushes_is_no_reply() -> None:
    """Under RESP3 it may say something at any time, between two replies too."""
    push = b">2\r\n$7\r\nmessage\r\n$2\r\nhi\r\n"
    async with wire_to(saying(push, b":1\r\n" + push, b":2\r\n" + push)) as wire:
        assert [1, 2] == await wire.ask(PING, 2, 5.0)


async def test_a_large_reply_comes_whole() -> None:
    """A hundred megabytes, in whatever pieces the line makes of them."""
    size = 100 << 20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PING))
        writer.write(b"$%d\r\n" % size + bytes(size) + b"\r\n")
        await asyncio.Event().wait()

    async with wire_to(serve) as wire:
        [reply] = await wire.ask(PING, 1, 30.0)

    assert size == len(reply)


async def test_a_large_command_goes_whole() -> None:
    """Also when the server takes its time to read it."""
    size = 30 << 20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(b":%d\r\n" % len(await reader.readexactly(size)))
        await asyncio.Event().wait()

    async with wire_to(serve) as wire:
        assert [size] == await wire.ask(bytes(size), 1, 30.0)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n:2\r\n"], ids=["no Redis", "one too many"])
async def test_an_answer_that_makes_no_sense_ends_the_connection(said: bytes) -> None:
    """From there on nobody knows which reply belongs to which command."""
    async with wire_to(saying(said)) as wire:
        with pytest.raises(OSError, match=r"Protocol error|nobody asked"):
            await wire.ask(PING, 1, 5.0)
        with pytest.raises(OSError, match=r"Protocol error|nobody asked"):
            await wire.ask(PING, 1, 5.0)


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    """It would be taken for the answer to the next command."""
    async with wire_to(saying(b":1\r\n", b":2\r\n")) as wire:
        assert [1] == await wire.ask(PING, 1, 5.0)
        await wait_until(lambda: wire._lost is not None, description="the second answer has come")
        with pytest.raises(OSError, match="nobody asked"):
            await wire.ask(PING, 1, 5.0)


# --------------------------------------------------------------------------------------------------------- ends and waits


async def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    """Longer than was said; the next call may have another time."""
    async with wire_to(silent) as wire:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await wire.ask(PING, 1, 0.05)
        assert asyncio.get_running_loop().time() - began < 1.0


@pytest.mark.parametrize("said", [b"*2\r\n$2\r\nab\r\n:7\r\n", b"%1\r\n$2\r\nab\r\n:7\r\n"], ids=["RESP2", "RESP3"])
async def test_a_reply_may_take_its_time_while_something_comes(said: bytes) -> None:
    """Or a large one could never be had over a slow line: it is given up when nothing has come for as long as was said."""
    clock = Clock()
    async with wire_to(silent) as wire:
        wire._loop = clock  # type: ignore[assignment]
        asking = asyncio.ensure_future(wire.ask(PING, 1, 0.5))
        await wait_until(lambda: wire._answer is not None, description="it is asked")
        for byte in said:
            clock.advance(0.4)
            assert not asking.done()
            wire.data_received(bytes([byte]))
        [reply] = await asking
        assert reply in ([b"ab", 7], {b"ab": 7})

        asking = asyncio.ensure_future(wire.ask(PING, 1, 0.5))
        await wait_until(lambda: wire._answer is not None, description="it is asked again")
        wire.data_received(said[:-1])
        clock.advance(0.4)
        assert not asking.done()
        clock.advance(0.2)
        with pytest.raises(TimeoutError):
            await asking


async def test_a_short_call_after_a_long_one_has_its_own_time() -> None:
    """There is one timer for all calls: a deadline that comes earlier moves it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PING))
        writer.write(b":1\r\n")
        await asyncio.Event().wait()

    async with wire_to(serve) as wire:
        assert [1] == await wire.ask(PING, 1, 60.0)
        asking = asyncio.ensure_future(wire.ask(PING, 1, 0.05))
        await asyncio.wait([asking], timeout=5.0)
        assert asking.done()
        assert isinstance(asking.exception(), TimeoutError)


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half closed"])
async def test_a_server_that_hangs_up_is_noticed_at_once(half: bool) -> None:
    """While a call waits, and before the next."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PING))
        if half:
            writer.write_eof()
            await asyncio.Event().wait()
        writer.close()

    async with wire_to(serve) as wire:
        for _ in range(2):
            with pytest.raises(OSError, match="closed by the server"):
                await asyncio.wait_for(wire.ask(PING, 1, 60.0), 5.0)


async def test_a_call_that_is_under_way_ends_with_the_wire() -> None:
    """Also when the server reads nothing, so that what was written cannot go out."""
    async with wire_to(silent) as wire:
        asking = asyncio.ensure_future(wire.ask(bytes(30 << 20), 1, 60.0))
        await asyncio.sleep(0)
        wire.close()
        with pytest.raises(OSError, match="it was closed"):
            await asyncio.wait_for(asking, 5.0)


# ------------------------------------------------------------------------------------------------------------------ links


async def test_a_cancelled_call_takes_its_link_with_it(redis_server: LiveServer) -> None:
    """Its reply would be taken for the next one's."""
    link = Link(Endpoint(redis_server.url))
    await link.open()
    waiting = asyncio.ensure_future(link.call(("BLPOP", "nothing", 60), timeout=90.0))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert not link.connected
    with pytest.raises(Unavailable):
        await link.run(("PING",))


async def test_a_link_that_is_closed_while_it_waits_says_so(redis_server: LiveServer) -> None:
    """To the one that waits, at once."""
    link = Link(Endpoint(redis_server.url))
    await link.open()
    waiting = asyncio.ensure_future(link.call(("BLPOP", "nothing", 60), timeout=90.0))
    await asyncio.sleep(0.01)
    await link.close()
    with pytest.raises(Unavailable, match="lost the connection"):
        await asyncio.wait_for(waiting, 5.0)


async def test_a_connection_lost_between_two_calls_is_noticed(redis_server: LiveServer, server: Any) -> None:
    """By the next call, without waiting for its time to run out."""
    link = Link(Endpoint(redis_server.url))
    await link.open()
    server("CLIENT", "KILL", "ID", await link.run(("CLIENT", "ID")))
    with pytest.raises(Unavailable, match="lost the connection"):
        await asyncio.wait_for(link.call(("BLPOP", "nothing", 60), timeout=90.0), 5.0)


async def test_a_connection_lost_before_it_was_taken_over_is_noticed() -> None:
    """redis-py's own protocol was told of it, and ours will not be."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        assert b"" == await reader.read()

        class Connection:
            _reader, _writer = reader, writer

        wire = Wire.over(Connection())  # type: ignore[arg-type]
        assert wire is not None
        with pytest.raises(OSError, match="closed by the server"):
            await asyncio.wait_for(wire.ask(PING, 1, 60.0), 5.0)
        writer.close()


@pytest.mark.parametrize("taken_over", [True, False], ids=["ours", "redis-py"])
@pytest.mark.parametrize(
    ("said", "stale", "command"),
    [("READONLY", "yes", ("SET", "key", "value")), ("MASTERDOWN", "no", ("GET", "key"))],
    ids=["readonly", "masterdown"],
)
async def test_a_server_that_was_demoted_is_left(
    proxy: FaultProxy,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    stale: str,
    command: tuple[str, ...],
    taken_over: bool,
) -> None:
    """After a failover the old master keeps its connections: who stays on them is refused for ever, though the new one is there."""
    if not taken_over:  # as under uvloop
        monkeypatch.setattr(Wire, "over", lambda connection: None)
    channel = Channel(Endpoint(proxy.url))
    await channel.run(("SET", "key", "of the old one"))
    with EmbeddedServer() as promoted:
        server("CONFIG", "SET", "replica-serve-stale-data", stale)
        server("REPLICAOF", "127.0.0.1", "1")
        try:
            proxy._upstream = promoted.url  # for those who connect from now on
            with pytest.raises(Unavailable, match=said):
                await channel.run(command)
            assert 1 == channel.opened

            await channel.run(command)
            assert await channel.run(("ROLE",)) == [b"master", 0, []]
            assert 2 == channel.opened
        finally:
            server("REPLICAOF", "NO", "ONE")
            server("CONFIG", "SET", "replica-serve-stale-data", "yes")
            await channel.close()


async def test_a_server_that_stays_demoted_is_not_connected_to_all_the_time(
    proxy: FaultProxy, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may lead to the new master soon, and it is one more load for whoever is there meanwhile."""
    monkeypatch.setattr("eventbus.redis.link.RECONNECT_EVERY", 60.0)
    channel = Channel(Endpoint(proxy.url))
    server("REPLICAOF", "127.0.0.1", "1")
    try:
        for _ in range(4):
            with pytest.raises(Unavailable, match="READONLY"):
                await channel.run(("SET", "key", "value"))
    finally:
        server("REPLICAOF", "NO", "ONE")
        await channel.close()

    assert 2 == channel.opened


# -------------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that localhost has signed itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
                *("-keyout", str(file), "-out", str(file.with_suffix(".crt"))),
            ],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no certificate without openssl: {exc}")
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())

    return file


@asynccontextmanager
async def encrypted(url: str, certificate: Path) -> AsyncIterator[str]:
    """The server behind TLS; its URL there."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    passing: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(asyncio.current_task())  # type: ignore[arg-type]
        inner, outer = await asyncio.open_connection("127.0.0.1", int(proxy.url.split(":")[2].split("/")[0]))

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(carry(reader, outer), carry(inner, writer))
        outer.transport.abort()
        writer.transport.abort()

    async with FaultProxy(url) as proxy:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        try:
            yield f"rediss://localhost:{server.sockets[0].getsockname()[1]}/0?ssl_ca_certs={certificate}"
        finally:
            server.close()
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            await server.wait_closed()


async def test_all_of_it_works_over_tls(redis_server: LiveServer, server: Any, certificate: Path) -> None:
    """Connecting is left to redis-py; what follows is the same wire, around asyncio's encrypted transport."""
    sent = [seal(BookRegistered(number)) for number in range(300)]
    async with encrypted(redis_server.url, certificate) as url, RedisTransport(url, stream="club") as transport:
        await transport.publish(sent)
        link = Link(transport.endpoint)
        await link.open()
        assert isinstance(link._wire, Wire)
        await link.close()

        received: list[str] = []
        async with transport.subscribe(Subscribe(streams=["club"], group="g")) as subscription:
            while len(received) < len(sent):
                for delivery in await subscription.receive(100):
                    received.append(delivery.envelope.id)
                    subscription.ack(delivery)

        assert [envelope.id for envelope in sent] == received
        assert not await transport.backlog("club", "g")


async def test_a_certificate_that_is_not_trusted_is_refused(redis_server: LiveServer, certificate: Path) -> None:
    """Nothing is sent to whoever has it."""
    async with encrypted(redis_server.url, certificate) as url:
        link = Link(Endpoint(url.partition("?")[0]))
        with pytest.raises(Unavailable, match="certificate"):
            await link.open()
