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
