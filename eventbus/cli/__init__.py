"""The `eventbus` command, from the extra ``cli``.

Each module of `eventbus.cli.commands` is one command; `program` finds them, and `endings` says how they may end. Nothing here is imported
by the rest of the package.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Do what the command line of this process says; the exit code, as `eventbus.cli.endings.Code` lists them."""
    if find_spec("click") is None or find_spec("rich") is None:
        sys.stderr.write("the eventbus command needs the \"cli\" extra: pip install 'eventbus[cli]'\n")
        return 2

    from eventbus.cli.program import execute

    return execute()
