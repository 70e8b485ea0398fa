"""The house keeps its own rules: who may import whom, one edge an outside system, names that say something."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("schemas", "flows", "scripts") for path in (REPO / folder).rglob("*.py"))

MAY_IMPORT = {
    "schemas": ("schemas",),
    "flows.steps": ("schemas", "flows.steps"),
    "flows.edges": ("schemas",),
    "flows": ("schemas", "flows.steps", "flows.edges", "flows"),
    "scripts": ("schemas", "flows.steps", "flows.edges", "flows", "scripts"),
}
"""Which rooms of the house a room may import from; data travels one way."""

BEHIND_ONE_EDGE = {
    "feast": {"flows/edges/feast.py"},
    "great_expectations": {"flows/edges/quality.py"},
    "confluent_kafka": {"flows/edges/kafka.py", "flows/edges/broker.py"},
    "redis": {"flows/edges/redis.py", "flows/edges/feast.py", "flows/edges/valkey.py"},
    "bytewax": {"flows/edges/bytewax.py", "flows/materializer.py", "flows/live.py"},
    "prometheus_client": {"flows/edges/metrics.py", "flows/edges/feast.py", "flows/live.py", "scripts/demo.py"},
}
"""Outside systems, and the files that know them. A flow's file names Bytewax's operators, live.py our own metrics."""

NAMELESS = {"utils", "helpers", "common", "manager", "base", "misc"}


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    return max((room for room in MAY_IMPORT if dotted == room or dotted.startswith(f"{room}.")), key=len)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_run_one_way(path: Path) -> None:
    own = room(name(path).removesuffix(".py").replace("/", "."))
    for dotted in imported(path):
        first, _, rest = dotted.partition(".")
        assert first not in {"tests", "feature_repo", "schemas", "flows", "scripts"}, f"{name(path)} imports {dotted}"
        twin_of = name(path).removesuffix("_memory.py").replace("/", ".")
        if first == "freshet" and not rest.startswith(f"{twin_of}."):  # a twin speaks its edge's words
            assert room(rest) in MAY_IMPORT[own], f"{name(path)} imports {dotted}"


@pytest.mark.parametrize("system", sorted(BEHIND_ONE_EDGE))
def test_an_outside_system_is_known_to_its_edge_alone(system: str) -> None:
    knowing = {name(path) for path in SOURCES if any(dotted.split(".")[0] == system for dotted in imported(path))}

    assert knowing <= BEHIND_ONE_EDGE[system]


def test_no_file_is_named_after_nothing() -> None:
    assert [] == [name(path) for path in SOURCES if path.stem in NAMELESS]


def test_steps_know_no_clock_log_environment_or_network() -> None:
    outside = {"time", "logging", "os", "socket", "urllib", "random", "subprocess", "requests"}
    allowed = {("flows/steps/checks.py", "random"), ("flows/steps/sql/engine.py", "time")}  # a seed, a deadline
    found = {
        (name(path), dotted.split(".")[0])
        for path in SOURCES
        if name(path).startswith("flows/steps/")
        for dotted in imported(path)
        if dotted.split(".")[0] in outside
    }

    assert found <= allowed


def test_every_broad_except_says_why() -> None:
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type is not None else "everything"
                if caught in ("everything", "Exception", "BaseException"):
                    assert "#" in lines[node.lineno - 1], (
                        f"{name(path)}:{node.lineno} catches {caught} without a reason"
                    )


def test_importing_any_module_does_nothing() -> None:
    modules = [
        "freshet." + name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in SOURCES
    ]
    script = (
        "import importlib, sys, threading\n"
        "seen = []\n"
        "def watch(event, args):\n"
        "    if event == 'socket.connect' or (event == 'open' and any(mark in str(args[1]) for mark in 'wax+')\n"
        "            and '__pycache__' not in str(args[0]) and '/dev/' not in str(args[0])):\n"
        "        seen.append((event, str(args[:2])))\n"
        f"modules = {modules!r}\n"
        "import feast, duckdb, pandas, bytewax.run, confluent_kafka\n"
        "before = threading.active_count()\n"
        "sys.addaudithook(watch)\n"
        "for module in modules: importlib.import_module(module)\n"
        "assert threading.active_count() == before, threading.enumerate()\n"
        "assert not seen, seen\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr


def test_no_path_or_registry_of_a_machine_is_named() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout.split()
    assert listed
    for path in listed:
        text = (REPO / path).read_text(encoding="utf-8", errors="replace")
        for word in ("pypi" + ".org", "python" + "hosted", "repo1.ma" + "ven", "/wo" + "rk/", "/ro" + "ot/"):
            assert word not in text, f"{path} names {word}"
