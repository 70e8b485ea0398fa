"""What tests stand on: real parts where they are there, and a loud word where they are not.

A test that needs something absent is skipped, unless FRESHET_REQUIRE (a list, such as `kafka,data,promtool,amtool,kcat,burrow,redis,schemathesis,jsonsubschema`)
names it: then it fails.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import prometheus_client  # noqa: F401  # before Feast, which switches a later import to multiprocess mode
import pytest
from hypothesis import settings
from monitors import burrow, kafka_jars
from stack import Server

from freshet.flows.edges.broker import Broker
from freshet.flows.edges.valkey import Valkey

REPO = Path(__file__).parent.parent

settings.register_profile("freshet", deadline=None)  # no test depends on a duration
settings.load_profile("freshet")

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell has its background jobs ignore it, and their children


def absent(name: str, why: str) -> None:
    """Fail the test that asks if FRESHET_REQUIRE names what is missing."""
    required = {word.strip() for word in os.environ.get("FRESHET_REQUIRE", "").split(",")}
    if name in required:
        pytest.fail(f"{name} is required and absent: {why}", pytrace=False)


def require(name: str, why: str) -> NoReturn:
    """Skip the test that asks, or fail it where FRESHET_REQUIRE names what is missing."""
    absent(name, why)
    pytest.skip(f"{name}: {why}")


def program(name: str, why: str, *names: str) -> str:
    """Return the path of a program, by the first of its names that is on the PATH; without one, it is required."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        require(name, why)
    return found


def oracle(name: str) -> Path:
    """Return where the programs are that come with an oracle.

    It has an environment of its own inside of ours, made once as its lock file says: what ours is compared with brings
    versions of its own.
    """
    lock = Path(__file__).parent / "oracles" / f"{name}.lock"
    folder = Path(sys.prefix) / "oracles" / name
    folder.mkdir(parents=True, exist_ok=True)
    stamp, wanted = folder / ".freshet-stamp", sys.version + lock.read_text()
    with (folder / ".freshet-making").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)  # another of pytest's processes may make it
        if not stamp.exists() or stamp.read_text() != wanted:
            install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock]
            for command in ([sys.executable, "-m", "venv", folder], install):
                made = subprocess.run(command, capture_output=True, text=True, check=False)
                if made.returncode != 0:
                    require(name, f"it cannot be installed: {(made.stderr or made.stdout).strip()[-500:]}")
            stamp.write_text(wanted)
    return folder / "bin"


LONG_FILES = (
    "test_outages.py",
    "test_kills.py",
    "test_simulation.py",
    "test_semantics_law.py",
    "test_explain_law.py",
    "test_compose.py",
    "test_break.py",
    "test_live_validator.py",
    "test_fault_matrix.py",
    "test_secured.py",
    "test_logs.py",
    "test_serving_faults.py",
    "test_change_kills.py",
    "test_evolution_story.py",
    "test_changes_law.py",
    "test_change.py",
    "test_shadow.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first: files are shared out between processes, and the short ones fill the rest."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with Broker.start() as started:
        yield started


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with Valkey.start() as server:
        yield server.url


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Valkey server of the test's own, to be stopped and started again."""
    made = Server(tmp_path / "valkey")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def real_kafka() -> str:
    address = os.environ.get("FRESHET_TEST_KAFKA")
    if address:
        return address
    said = subprocess.run([REPO / "scripts" / "kafka", "status"], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        require("kafka", "no FRESHET_TEST_KAFKA, and scripts/kafka is not running; start it with `scripts/kafka start`")
    return said.stdout.strip().removeprefix("running at ")


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(os.environ.get("FRESHET_DATA") or REPO.parent / "shared" / "data")
    if not folder.is_dir():
        require("data", f"{folder} is not there; name it with FRESHET_DATA")
    return folder


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool", "it is not on the PATH; it comes with Prometheus", "promtool")


@pytest.fixture(scope="session")
def redis_program() -> str:
    """A Redis that speaks TLS; the wheel's Valkey does not."""
    why = "neither redis-server nor valkey-server is on the PATH; on Debian, apt-get install redis-server"
    return program("redis", why, "redis-server", "valkey-server")


@pytest.fixture(scope="session")
def prometheus() -> str | None:
    """The path of Prometheus, with Alertmanager beside it; without them tests run all the same, and a warning says so."""
    found = shutil.which("prometheus-alertmanager") and shutil.which("prometheus")
    if found is None:
        why = "not on the PATH; on Debian, apt-get install prometheus prometheus-alertmanager"
        absent("promtool", why)
        warnings.warn(f"nothing is watched with Prometheus and Alertmanager: {why}", stacklevel=1)
    return found


@pytest.fixture(scope="session")
def amtool() -> str:
    return program("amtool", "it is not on the PATH; it comes with Alertmanager", "amtool")


@pytest.fixture(scope="session")
def alertmanager() -> str:
    """The path of Alertmanager, by Debian's name or its own."""
    why = "Alertmanager, which it comes with, is not on the PATH"
    return program("amtool", why, "prometheus-alertmanager", "alertmanager")


@pytest.fixture(scope="module")  # it asks Kafka for all topics, once a second
def burrow_url(real_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """The address of a Burrow that watches the real Kafka; without it the tests run all the same, and a warning says so."""
    jars = kafka_jars()
    if jars is None or shutil.which("Burrow") is None:
        why = "it is not on the PATH, or scripts/kafka has fetched no ZooKeeper; on Debian, apt-get install burrow"
        absent("burrow", why)
        warnings.warn(f"committed offsets are not watched with Burrow: {why}", stacklevel=1)
        yield None
    else:
        with burrow(real_kafka, jars, tmp_path_factory.mktemp("burrow")) as url:
            yield url


@pytest.fixture(scope="session")
def kcat() -> str | None:
    """The path of kcat; without it the tests run all the same, and a warning says so."""
    found = shutil.which("kcat")
    if found is None:
        absent("kcat", "it is not on the PATH; on Debian, apt-get install kcat")
        warnings.warn("committed offsets are not watched with kcat: it is not on the PATH", stacklevel=1)
    return found


@pytest.fixture(scope="session")
def schemathesis() -> Path:
    return oracle("schemathesis") / "schemathesis"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the repository's own project."""
    root = tmp_path / "project"
    ignore = shutil.ignore_patterns("feature_store.yaml", "__pycache__")
    shutil.copytree(REPO / "feature_repo", root / "feature_repo", ignore=ignore)
    shutil.copytree(REPO / "schemas" / "events", root / "schemas" / "events", ignore=ignore)
    return root
