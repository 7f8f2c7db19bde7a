"""The tables in the migrations of a service, as docs/transactions.md shows it: what Alembic makes of them is what `create_all` makes."""

from __future__ import annotations

import os
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, inspect, text

from eventbus.sqlalchemy import TABLES, tables
from tests.processes import ROOT, environment
from tests.sqlalchemy.club import METADATA
from tests.sqlalchemy.conftest import Database

ALEMBIC = """
import sys

from alembic.config import main

for command in sys.argv[1:]:
    main(command.split())
"""

pytestmark = pytest.mark.one_driver


def snippet(file: str) -> str:
    """The lines that the documentation puts there."""
    [found] = re.findall(rf"```python\n(# {re.escape(file)}.*?)```", (ROOT / "docs" / "transactions.md").read_text(), re.DOTALL)

    return str(found)


async def alembic(folder: Path, *commands: str) -> str:
    """Run these, one after another; what they print."""
    variables = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    ran = await anyio.run_process([sys.executable, "-c", ALEMBIC, *commands], cwd=folder, env=variables, check=False)
    assert 0 == ran.returncode, ran.stderr.decode()

    return ran.stdout.decode()


def add(file: Path, line: str, instead: str) -> None:
    """A line of what Alembic has generated becomes others."""
    generated = file.read_text()
    assert 1 == generated.count(line)
    file.write_text(generated.replace(line, instead))


DEFINITIONS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE tbl_name LIKE 'club_%'",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'club_%'",
}


def described(connection: Connection) -> dict[str, Any]:
    """What the database says of the tables and their indexes."""
    asked = inspect(connection)
    names = [name for name in asked.get_table_names() if name.startswith("club_")]
    columns = {name: [column | {"type": repr(column["type"])} for column in asked.get_columns(name)] for name in names}
    definitions = connection.execute(text(DEFINITIONS[connection.dialect.name]))

    return {**columns, **{f"{name} is": (definition or "").split() for name, definition in definitions}}


async def test_the_migration_of_the_documentation(database: Database, tmp_path: Path) -> None:
    """Up, down and up again: then Alembic finds nothing to add, and the tables are as `create_all` makes them."""
    command.init(Config(tmp_path / "alembic.ini", stdout=StringIO()), str(tmp_path / "migrations"), template="async")
    (tmp_path / "myservice").mkdir()
    (tmp_path / "myservice" / "models.py").write_text(snippet("myservice/models.py"))
    add(tmp_path / "migrations" / "env.py", "target_metadata = None\n", snippet("migrations/env.py"))
    imports = "import sqlalchemy as sa\n"
    add(tmp_path / "migrations" / "script.py.mako", imports, snippet("migrations/script.py.mako") + imports)
    add(tmp_path / "alembic.ini", "driver://user:pass@localhost/dbname", database.url)
    ours = tables("club_", MetaData())
    async with database.engine.begin() as connection:
        for other in (METADATA, TABLES.metadata):
            await connection.run_sync(other.drop_all)
        await ours.create_all(connection)
        expected = await connection.run_sync(described)
        await connection.run_sync(ours.metadata.drop_all)

    said = await alembic(tmp_path, "revision --autogenerate -m outbox", "upgrade head", "downgrade base", "upgrade head", "check")

    assert "No new upgrade operations detected." in said
    async with database.engine.begin() as connection:
        assert expected == await connection.run_sync(described)
    assert {table.name for table in ours.all} <= set(expected)
