"""The `eventbus` command. Each subcommand has a module of its own, imported when it is called.

Exit codes: 0 well done, 1 something failed, 2 the call is wrong (usage, a missing module, a missing extra), 3 the server cannot be
reached, 130 ended by a second signal.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_FORCED = 130


def main() -> None:
    """Run the command that the arguments name, and exit."""
    if find_spec("click") is None or find_spec("rich") is None:
        print("the eventbus command needs the extra \"cli\": pip install 'eventbus[cli]'", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    from eventbus.cli.commands import eventbus

    eventbus(prog_name="eventbus", auto_envvar_prefix="EVENTBUS")
