"""One contract for Feast itself, on a real Valkey and parquet, and for its twin in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from freshet.flows.edges import feast
from freshet.flows.edges.feast_memory import MemoryFeastClient
from freshet.flows.edges.parquet import MemoryOfflineStore, OfflineStore
from freshet.flows.edges.redis import MemoryOnlineStore, OnlineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.steps.frames import comparable
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.registration import Entry
from freshet.schemas.view import Feature, StoredRow, View

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = tuple(Feature(name.replace("(", "_").rstrip(")"), dtype, "…") for name, dtype in DTYPES.items())
ENTITY = (pa.field("user", pa.string()), pa.field("item", pa.int64()), pa.field("shop_no", pa.int32()))
VIEW = View("by_many", ("orders",), ENTITY, FEATURES, DAY)
ADA, BOB, EVE = ("ada", 2**53 + 1, 1), ("", -1, -(2**31)), ("eve", 0, 0)
SOME: dict[str, Any] = {
    "bytes": b"\0\xff", "string": "é", "int32": -(2**31), "int64": 2**53 + 1, "float32": 0.1, "float64": 0.1 + 0.2,
    "bool": False, "unix_timestamp": NOON, "array_int64": [2**53 + 1, 0], "array_string": ["", "é"], "array_bool": [],
}  # fmt: skip


@dataclass
class Project:
    """Both stores, and a registry."""

    online: Any
    offline: Any
    client: feast.FeastClient | MemoryFeastClient
    register: Callable[[Sequence[View]], None]

    def put(self, entity: tuple[Any, ...], minutes: float, version: int = 1, **values: Any) -> str:
        """Store a row in both stores, made at its time; return its part."""
        at = NOON + timedelta(minutes=minutes)
        system = {"event_timestamp": at, "created": at + timedelta(seconds=version), "_version": version}
        line = {**dict(zip(VIEW.entity_names, entity, strict=True)), **system, "_partition": 0, "_offset": 0, **values}
        rows = pa.Table.from_pylist([line], VIEW.row_schema)
        self.online.write(VIEW, rows)
        part = self.offline.append(VIEW.name, rows)
        assert part is not None
        return str(part)

    def history(self, at: datetime, parts: Sequence[str], *entities: tuple[Any, ...]) -> list[Any]:
        """Return the whole numbers that are given."""
        return [line["int64"] for line in self.client.history(VIEW, entities, at, parts)]


def on_real_parts(online_url: str, folder: Path) -> Project:
    url = online_url.replace("/0", "/3")
    with redis.Redis.from_url(url) as admin:
        admin.flushdb()
    config = store_config("shop", url, folder / "registry" / "registry.db")

    def register(views: Sequence[View]) -> None:
        feast.apply(config, feast.repo_objects("shop", views, folder))

    register([VIEW])
    return Project(OnlineStore(url, "shop", [VIEW]), OfflineStore(folder), feast.FeastClient(config, folder), register)


def in_memory() -> Project:
    online, offline = MemoryOnlineStore("shop", [VIEW]), MemoryOfflineStore()
    project = Project(online, offline, MemoryFeastClient(online, offline, [VIEW]), lambda _: None)

    def register(views: Sequence[View]) -> None:
        project.client = MemoryFeastClient(online, offline, views)

    project.register = register
    return project


@pytest.fixture(params=["feast", "memory"])
def project(request: pytest.FixtureRequest, online_url: str, tmp_path: Path) -> Iterator[Project]:
    made = on_real_parts(online_url, tmp_path) if request.param == "feast" else in_memory()
    made.offline.prepare(VIEW.name, VIEW.row_schema)
    yield made
    made.online.close()


def told(row: StoredRow | None) -> object:
    return row and (row.entity, row.event_timestamp, row.version, *map(comparable, row.features.values()))


def test_values_of_every_type_are_the_same_from_both_apis(project: Project) -> None:
    parts = [project.put(ADA, 0, **SOME), project.put(BOB, 1)]

    ada, bob, eve = project.client.online(VIEW, [ADA, BOB, EVE])
    history = project.client.history(VIEW, [ADA, BOB, EVE], NOON + timedelta(hours=1), parts)

    assert (ada and ada.event_timestamp, bob and bob.event_timestamp, eve) == (NOON, NOON + timedelta(minutes=1), None)
    for stored, given in zip((ada, bob), history[:2], strict=True):
        assert stored is not None
        assert {name: comparable(value) for name, value in stored.features.items()} == {
            name: comparable(value) for name, value in given.items()
        }
    assert history[0]["int64"] == 2**53 + 1  # which no float is
    assert set(history[1].values()) == set(history[2].values()) == {None}


def test_our_own_reader_and_the_online_api_tell_the_same_but_for_the_version(project: Project) -> None:
    project.put(ADA, 0, 5, **SOME)

    (own,), (theirs,) = project.online.read(VIEW, [ADA]), project.client.online(VIEW, [ADA])

    assert told(replace(own, version=0)) == told(theirs)


def test_history_is_as_of_a_time_of_the_newest_version_and_within_the_ttl(project: Project) -> None:
    parts = [
        project.put(ADA, 0, 1, int64=1),
        project.put(ADA, 0, 2, int64=2),
        project.put(ADA, 10, 1, int64=3),
        project.put(BOB, 10, 1, int64=4),
    ]

    minutes = [timedelta(minutes=count) for count in (-1, 0, 9, 10)]
    assert [None, 2, 2, 3] == [project.history(NOON + after, parts, ADA)[0] for after in minutes]
    assert [4, 3] == project.history(NOON + timedelta(minutes=10) + DAY, parts, BOB, ADA)
    assert [None, None] == project.history(NOON + timedelta(minutes=11) + DAY, parts, BOB, ADA)


def test_history_is_of_the_parts_that_are_shown(project: Project) -> None:
    older = project.put(ADA, 0, int64=1)
    newer = project.put(ADA, 10, int64=2)
    at = NOON + timedelta(minutes=30)

    assert [[1], [2], [2]] == [project.history(at, parts, ADA) for parts in ([older], [newer], [older, newer])]


def test_a_registry_that_is_as_declared_has_the_same_entries_on_both_sides(project: Project) -> None:
    entries = project.client.registration(VIEW)

    assert all(entry.is_declared for entry in entries)
    assert {"ttl", "entity user", "feature int64"} <= {entry.name for entry in entries}


def test_a_registry_that_says_something_else_is_told_entry_by_entry(project: Project) -> None:
    text = replace(FEATURES[0], dtype=DTYPES["string"])
    project.register([replace(VIEW, features=(text, *FEATURES[2:]), ttl=2 * DAY)])

    other = {entry for entry in project.client.registration(VIEW) if not entry.is_declared}

    assert {
        Entry("ttl", "1 day, 0:00:00", "2 days, 0:00:00"),
        Entry(f"feature {FEATURES[0].name}", FEATURES[0].dtype.feast, "String"),
        Entry(f"feature {FEATURES[1].name}", FEATURES[1].dtype.feast, None),
    } == other


def test_of_a_view_that_is_not_registered_all_entries_are_missing(project: Project) -> None:
    entries = project.client.registration(replace(VIEW, name="other"))

    assert entries
    assert all(entry.registered is None and entry.declared is not None for entry in entries)


# --- Feast alone ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(online_url: str, tmp_path: Path) -> Project:
    made = on_real_parts(online_url, tmp_path)
    made.offline.prepare(VIEW.name, VIEW.row_schema)
    return made


def test_a_registry_that_is_gone_names_the_command_that_makes_it(real: Project, tmp_path: Path) -> None:
    part = real.put(ADA, 0, **SOME)
    (tmp_path / "registry" / "registry.db").unlink()

    for ask in (
        lambda: real.client.registration(VIEW),
        lambda: real.client.online(VIEW, [ADA]),
        lambda: real.client.history(VIEW, [ADA], NOON, [part]),
    ):
        with pytest.raises(Unavailable, match=r"registry.db is not there. Hint: run `freshet apply`"):
            ask()


def test_what_feast_raises_is_an_outage_in_its_own_words(real: Project, tmp_path: Path) -> None:
    part = real.put(ADA, 0, **SOME)
    (tmp_path / VIEW.name / part).write_bytes(b"torn")

    with pytest.raises(Unavailable, match="Feast cannot give the history of by_many: "):
        real.client.history(VIEW, [ADA], NOON, [part])
    with pytest.raises(Unavailable, match="Feast cannot serve other online: FeatureViewNotFoundException: "):
        real.client.online(replace(VIEW, name="other"), [ADA])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_registry_of_another_user_is_refused(real: Project, tmp_path: Path) -> None:
    os.chown(tmp_path / "registry" / "registry.db", 12345, -1)

    with pytest.raises(Refused, match="belongs to another user"):
        real.client.registration(VIEW)


def test_asking_leaves_nothing_behind(real: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, between = real.put(ADA, 0, **SOME), tmp_path / "between"
    between.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(between))
    registry = (tmp_path / "registry" / "registry.db").read_bytes()

    real.history(NOON, [part], ADA)

    assert [] == list(between.iterdir())
    assert registry == (tmp_path / "registry" / "registry.db").read_bytes()
