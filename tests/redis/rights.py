"""The rights of users, as docs/operations.md gives them."""

import re

from tests.processes import ROOT

PUBLISHER, CONSUMER = "club-publisher", "club-consumer"
STREAM = "reading-club"


def rights_of(user: str) -> list[str]:
    """What the page lets this user do, as words of ACL SETUSER."""
    page = (ROOT / "docs" / "operations.md").read_text()
    [rule] = re.findall(rf"^ACL SETUSER {user} (.*?)^```$", page, re.MULTILINE | re.DOTALL)

    return rule.split()


def commands_of(user: str) -> set[str]:
    return {word[1:] for word in rights_of(user) if word.startswith("+")}
