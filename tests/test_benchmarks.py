"""That the benchmarks run. What they measure is no test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import goals
from eventbus.testing.servers import find_servers

ROOT = Path(__file__).parents[1]


def test_every_row_has_its_figures() -> None:
    """Fourteen of them; a goal asks for no less than what is asked at least."""
    assert set(range(1, 15)) == {goal.row for goal in goals()}
    assert [] == [goal for goal in goals() if (goal.goal > goal.least) == goal.less_is_better]


@pytest.mark.skipif(not find_servers(), reason="no server is here")
def test_a_row_is_measured_and_kept(tmp_path: Path) -> None:
    """In processes of its own, on a server of its own."""
    kept, tables, drawing = tmp_path / "all.json", tmp_path / "all.md", tmp_path / "all.svg"
    where = ["--server", str(find_servers()[0]), "--json", str(kept), "--markdown", str(tables), "--plot", str(drawing)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "size", *where], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert kept.exists(), done.stderr
    [row] = json.loads(kept.read_text())["goals"]

    assert 14 == row["row"]
    assert 0.5 < row["values"][0] < 2
    assert "| 14 | memory of a stream, against one field |" in tables.read_text()
    assert drawing.read_text().startswith("<svg")
