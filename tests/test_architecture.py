"""The house keeps its own rules: who may import whom, one edge an outside system, names that say something."""

import ast
import os
import re
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
    "flows.edges": ("schemas", "flows.edges.disk"),
    "flows.edges.disk": (),
    "flows": ("schemas", "flows.steps", "flows.edges", "flows"),
    "scripts": ("schemas", "flows.steps", "flows.edges", "flows", "scripts"),
}
"""Which rooms of the house a room may import from; data travels one way."""

MAY_ALSO = {"flows/edges/quality.py": "freshet.flows.steps.statistics"}
"""The one step that an edge knows: the judge counts with our own arithmetic."""

PARTS = {
    "kafka": ("canaries", "dead_letters", "findings", "partitions", "publisher", "standings"),
    "redis": ("redis_reads",),
    "parquet": ("compaction", "served"),
}
PART_OF = {f"flows/edges/{part}.py": f"flows.edges.{edge}" for edge, parts in PARTS.items() for part in parts}
"""A part of an edge in a file of its own, and the edge."""

BEHIND_ONE_EDGE = {
    "feast": {"flows/edges/feast.py"},
    "great_expectations": {"flows/edges/quality.py"},
    "confluent_kafka": {
        f"flows/edges/{part}.py" for part in ("kafka", "broker", "partitions", "publisher", "standings")
    },
    "redis": {f"flows/edges/{part}.py" for part in ("redis", "redis_reads", "store_config", "valkey")},
    "httptools": {"flows/edges/http.py"},
    "bytewax": {
        "flows/edges/bytewax.py",
        "flows/materializer.py",
        "flows/live.py",
        "flows/validator.py",
        "flows/live_validator.py",
    },
    "prometheus_client": {"flows/edges/metrics.py", "flows/edges/feast.py", "flows/edges/scrape.py", "flows/lag.py"},
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


def module(path: Path) -> str:
    return "freshet." + name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(dotted: str) -> str:
    rooms = [room for room in MAY_IMPORT if dotted == room or dotted.startswith(f"{room}.")]
    return max(rooms, key=len, default="outside")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_run_one_way(path: Path) -> None:
    own = room(name(path).removesuffix(".py").replace("/", "."))
    for dotted in imported(path):
        first, _, rest = dotted.partition(".")
        assert first not in {"tests", "feature_repo", *MAY_IMPORT}, f"{name(path)} imports {dotted}"
        twin_of = PART_OF.get(name(path)) or name(path).removesuffix("_memory.py").replace("/", ".")
        if dotted == MAY_ALSO.get(name(path)):
            continue
        if first == "freshet" and not rest.startswith(f"{twin_of}."):  # a twin speaks its edge's words
            assert room(rest) in MAY_IMPORT[own], f"{name(path)} imports {dotted}"


@pytest.mark.parametrize("system", sorted(BEHIND_ONE_EDGE))
def test_an_outside_system_is_known_to_its_edge_alone(system: str) -> None:
    knowing = {name(path) for path in SOURCES if any(dotted.split(".")[0] == system for dotted in imported(path))}

    assert knowing == BEHIND_ONE_EDGE[system]


def test_flows_know_bytewax_by_its_dataflow_and_operators_alone() -> None:
    for path in (REPO / "flows").glob("*.py"):
        known = {dotted for dotted in imported(path) if dotted.split(".")[0] == "bytewax"}

        assert known <= {"bytewax.operators", "bytewax.dataflow.Dataflow"}, name(path)


def test_no_file_or_folder_is_named_after_nothing() -> None:
    assert [] == [name(path) for path in SOURCES if NAMELESS & {path.stem, *path.relative_to(REPO).parts}]


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


def broadly_caught(node: ast.AST) -> bool:
    """Say whether this catches, or suppresses, more than it can name."""
    match node:
        case ast.ExceptHandler(type=None):
            return True
        case ast.ExceptHandler(type=ast.expr() as caught):
            names = list(ast.walk(caught))
        case ast.Call(func=ast.Name("suppress") | ast.Attribute(attr="suppress"), args=args):
            names = [name for arg in args for name in ast.walk(arg)]
        case _:
            return False
    return any(isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"} for name in names)


def test_every_broad_except_says_why() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if broadly_caught(node):
                place = node.lineno - 1  # type: ignore[attr-defined]  # both kinds of node have one
                reason = re.sub(r"# noqa: \S+", "", lines[place])
                assert "#" in reason, f"{name(path)}:{place + 1} catches all without a reason"


WATCH = """
import importlib, os, sys, threading
import feast, duckdb, pandas, bytewax.run, confluent_kafka  # what libraries do while imported is theirs

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEEDS = ("socket.", "subprocess.", "os.system", "os.mkdir", "os.rename", "os.remove", "shutil.", "tempfile.")
seen = []

def watch(event, args):
    written = event == "open" and args[2] & WRITING and not str(args[0]).startswith("/dev/")
    if event.startswith(DEEDS) or written:
        seen.append((event, args))

before = threading.active_count()
sys.addaudithook(watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert threading.active_count() == before, threading.enumerate()
assert not seen, seen
"""


def test_importing_any_module_does_nothing() -> None:
    command = [sys.executable, "-B", "-c", WATCH, *map(module, SOURCES)]  # -B: no byte code is written

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["run", "repair", "dlq", "plan", "replay", "check"])
def test_a_verb_that_can_do_without_feast_and_great_expectations_does_not_wait_for_them(verb: str) -> None:
    command = f"import sys, freshet.scripts.{verb}; print({{'feast', 'great_expectations'}} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout == "set()\n"


def files() -> Iterator[Path]:
    """Yield every file of the repository, but what tools and runs leave behind."""
    left = re.compile(r"build|data|__pycache__|\.git|\.freshet|\.hypothesis|\.venv.*|\..+_cache|.+\.egg-info")
    for folder, folders, names in os.walk(REPO):
        folders[:] = [name for name in folders if not left.fullmatch(name)]
        yield from (Path(folder, name) for name in names if not left.fullmatch(name))


def test_no_path_or_registry_of_a_machine_is_named() -> None:
    words = ("pypi" + ".org", "python" + "hosted", "repo1.ma" + "ven", "/wo" + "rk/", "/ro" + "ot/")
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        for word in words:
            assert word not in text, f"{name(path)} names {word}"
