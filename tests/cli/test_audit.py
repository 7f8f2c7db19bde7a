"""`eventbus audit`: it adds up, or says what is lost, and the exit code says it too."""

import json
from collections.abc import Iterator

import anyio
import pytest
import redis

from eventbus import Event, MessageBus, Metadata, Subscriber, UnitOfWork
from eventbus.redis import RedisTransport
from eventbus.testing import drain
from eventbus.testing.servers import LiveServer
from tests.cli.conftest import Command

S = "audited-club"


class Ticked(Event):
    metadata = Metadata(name="ticked", published=True, stream=S)
    number: int


async def _history(url: str) -> None:
    """Ten events, of which the mailer has handled the first six."""
    bus = MessageBus()

    @bus.listen
    async def tick(event: Ticked) -> None: ...

    async with RedisTransport(url) as transport:
        for count in (6, 4):
            async with UnitOfWork(transport=transport) as uow:
                for number in range(count):
                    uow.emit(Ticked(number))
                await uow.commit()
            if count == 6:
                await drain(Subscriber(bus=bus, transport=transport, streams=[S], group="mailer"))


async def _forget(url: str) -> None:
    async with RedisTransport(url) as transport:
        await transport.delete(S)


@pytest.fixture
def url(redis_server: LiveServer) -> Iterator[str]:
    anyio.run(_history, redis_server.url)
    yield redis_server.url
    anyio.run(_forget, redis_server.url)


def test_what_adds_up_is_said_in_a_line_for_each_group(eventbus: Command, url: str) -> None:
    """Exit code 0."""
    done = eventbus("audit", S, "--url", url)

    assert (0, "") == (done.returncode, done.stderr)
    assert f"{S}/mailer: added 10 = settled 6 + pending 0 + unread 4: adds up\n" == done.stdout


def test_what_is_lost_is_counted_and_placed(eventbus: Command, url: str) -> None:
    """Exit code 4, whoever removed it."""
    with redis.Redis.from_url(url) as client:
        entries = [id.decode() for id, _ in client.xrange(S)]
        client.xdel(S, entries[7], entries[8])

    done = eventbus("audit", S, "mailer", "--url", url)
    assert 4 == done.returncode
    assert f"{S}/mailer: added 10 = settled 6 + pending 0 + unread 2: 2 LOST between " in done.stdout
    found = json.loads(eventbus("audit", S, "--json", "--url", url).stdout)
    assert (2, 6, 2) == (found["lost"], found["settled"], found["unread"])
    assert found["after"] <= entries[7] <= found["before"]


def test_retries_that_are_lost_are_told(eventbus: Command, url: str) -> None:
    """Exit code 4, as for anything that was lost."""
    with redis.Redis.from_url(url) as client:
        client.hincrby(f"{{{S}}}:group:mailer", "delayed", 2)
    done = eventbus("audit", S, "--url", url)

    retries = "retries: delayed 2, moved 0, waiting 0: 2 LOST, removed by something else"
    assert 4 == done.returncode
    assert f"{S}/mailer: added 10 = settled 6 + pending 0 + unread 4: adds up; {retries}\n" == done.stdout


def test_of_a_group_of_another_program_nothing_is_known(eventbus: Command, url: str) -> None:
    """What it has settled only it can tell: no alarm."""
    with redis.Redis.from_url(url) as client:
        client.xgroup_create(S, "theirs", "$")
    done = eventbus("audit", S, "theirs", "--url", url)

    assert (0, f"{S}/theirs: pending 0, unread 0: not counted, for no subscriber has joined it\n") == (
        done.returncode,
        done.stdout,
    )
    assert json.loads(eventbus("audit", S, "theirs", "--json", "--url", url).stdout)["counted"] is False


def test_a_group_or_stream_that_is_not_there_is_one_line(eventbus: Command, url: str) -> None:
    """With the names that are near."""
    done = eventbus("audit", S, "mialer", "--url", url)
    assert (2, f"eventbus: stream {S!r} has no group 'mialer'; did you mean mailer?\n") == (done.returncode, done.stderr)

    done = eventbus("audit", "nowhere", "--url", url)
    assert 2 == done.returncode
    assert "has no stream 'nowhere'" in done.stderr


def test_a_group_that_is_none_of_ours_is_left_out(eventbus: Command, url: str) -> None:
    """Other programs may read the stream too, in groups whose names ours could not have."""
    with redis.Redis.from_url(url) as client:
        for name in (b"\xff", b"w g"):
            client.xgroup_create(S, name, "0")
    done = eventbus("audit", S, "--url", url)

    assert (0, 1) == (done.returncode, done.stdout.count("\n"))
    assert [
        f"stream {S!r} has a group 'w g' too, which is none of ours: left out",
        f"stream {S!r} has a group '\N{REPLACEMENT CHARACTER}' too, which is none of ours: left out",
    ] == done.stderr.splitlines()
    assert "" == eventbus("audit", S, "mailer", "--url", url).stderr


def test_a_server_that_does_not_answer_is_one_line(eventbus: Command) -> None:
    """Exit code 3, and the password is not in it."""
    done = eventbus("audit", S, "--url", "redis://user:canary@127.0.0.1:1/0")

    assert 3 == done.returncode
    assert 1 == done.stderr.count("\n")
    assert "canary" not in done.stderr
