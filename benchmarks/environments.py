"""Which Python runs a side: this one, or that of an environment that has the peer."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.rows import PEERS

FOLDER = "BENCHMARK_PEERS"
"""The environment variable that names a folder with an environment for each peer."""


def python_for(side: str, folder: Path | None) -> str | None:
    """The interpreter; None if there is none that has what the side needs."""
    if side not in PEERS:
        return sys.executable
    named = os.environ.get(variable(side))
    if named:
        return named
    if folder is None and (variable_folder := os.environ.get(FOLDER)):
        folder = Path(variable_folder)
    if folder is not None and (python := folder.absolute() / side / "bin" / "python").exists():
        return str(python)

    return sys.executable if find_spec(PEERS[side]) is not None else None


def variable(side: str) -> str:
    """The environment variable that names the interpreter of a peer."""
    return f"BENCHMARK_PYTHON_{side.upper()}"


def missing(side: str) -> str:
    return (
        f"{side} is not here: set {variable(side)} to a Python that has it, or --peers to a folder with an environment of that name "
        "(benchmarks/README.md)"
    )
