"""What tests share: the parts they run on. Real ones; a test is skipped, loudly, for want of one it needs.

FRESHET_REQUIRE=kafka,data,promtool turns the lack of what it names into a failure.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from freshet.flows.edges.broker import Broker
from freshet.flows.edges.valkey import Valkey

REPO = Path(__file__).parent.parent


def absent(what: str, hint: str) -> None:
    """Skip the test, or fail it where the environment says that nothing may be missing."""
    if what in os.environ.get("FRESHET_REQUIRE", "").split(","):
        pytest.fail(f"{what} is required but absent: {hint}")
    pytest.skip(f"{what} is absent: {hint}")


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    with Broker.start() as started:
        yield started


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with Valkey.start() as started:
        yield started.url


@pytest.fixture(scope="session")
def real_kafka() -> str:
    address = os.environ.get("FRESHET_TEST_KAFKA", "")
    if not address:
        absent("kafka", "run scripts/kafka start, and name it in FRESHET_TEST_KAFKA")
    return address


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(os.environ.get("FRESHET_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        absent("data", "real events stand in FRESHET_DATA, or in shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        absent("promtool", "apt-get install prometheus")
    return str(found)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this repository's own project."""
    hidden = shutil.ignore_patterns("__pycache__", "*store.yaml")
    for folder in ("feature_repo", "schemas/events", "schemas/samples"):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=hidden)
    return tmp_path
