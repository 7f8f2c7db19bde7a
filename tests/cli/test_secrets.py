"""A password in the address of a server is in nothing that the command prints."""

from pathlib import Path

import pytest

from tests.cli.conftest import Command

CANARY = "c4n4ry!pass"
SERVICE = """
import logging
from eventbus import MessageBus, Subscriber, connect

logging.basicConfig(level=logging.DEBUG)
subscriber = Subscriber(bus=MessageBus(), transport=connect("{url}"), streams=["club"], group="g")
"""


@pytest.mark.parametrize("command", ["run", "audit", "demo"])
@pytest.mark.parametrize(
    ("address", "code"),
    [("127.0.0.1:1/0", 3), ("127.0.0.1:nonsense/0", 2), ("127.0.0.1:1/0?nonsense=1", 2)],
    ids=["nobody listens", "a port that is none", "an option that is none"],
)
def test_what_it_cannot_reach(eventbus: Command, tmp_path: Path, command: str, address: str, code: int) -> None:
    url = f"redis://club:{CANARY}@{address}"
    (tmp_path / "service.py").write_text(SERVICE.format(url=url))
    words = {"run": ["service:subscriber"], "audit": ["club", "--url", url], "demo": ["--url", url]}[command]
    done = eventbus(command, *words)

    assert code == done.returncode
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["run", "run --url", "audit", "demo"])
@pytest.mark.parametrize(
    "url",
    [
        f"club:{CANARY}@127.0.0.1:1/0",
        f":{CANARY}@127.0.0.1:1",
        f"redis://club:[{CANARY}]@127.0.0.1:1/0",
        f"redis://club:{CANARY}/x@127.0.0.1:1/0",
        f"redis://club:{CANARY}#x@127.0.0.1:1/0",
        f"redis://club:{CANARY}?x@127.0.0.1:1/0",
    ],
    ids=["no scheme", "no scheme and no user", "brackets", "a slash", "a hash", "a question mark"],
)
def test_what_is_no_url(eventbus: Command, tmp_path: Path, command: str, url: str) -> None:
    """Neither is a part of it, which the standard library would tell."""
    (tmp_path / "service.py").write_text(SERVICE.format(url="memory://" if command == "run --url" else url))
    words = {
        "run": ["run", "service:subscriber"],
        "run --url": ["run", "service:subscriber", "--url", url],
        "audit": ["audit", "club", "--url", url],
        "demo": ["demo", "--url", url],
    }[command]
    done = eventbus(*words)

    assert 2 == done.returncode
    assert "Traceback" not in done.stderr
    assert CANARY[:6] not in done.stdout + done.stderr
