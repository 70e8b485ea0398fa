import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
import yaml
from feast import FeatureStore, PushSource, RepoConfig
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from freshet.flows.edges import feast
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.store_config import store_config, write_store_config
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.view import Feature, StoredRow, View

PROJECT = "shop"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SCALARS = {name: dtype for name, dtype in DTYPES.items() if dtype.element is None}
FEATURES = tuple(Feature(f"f{place}", dtype, "x") for place, dtype in enumerate(DTYPES.values()))
ENTITIES: dict[str, dict[str, pa.DataType]] = {
    "by_text": {"user": pa.string()},
    "by_long": {"item": pa.int64()},
    "by_int": {"shop_no": pa.int32()},
    "by_many": {"user": pa.string(), "item": pa.int64(), "shop_no": pa.int32()},
}
VIEWS = tuple(
    View(
        name, ("orders",), tuple(pa.field(column, kind) for column, kind in entity.items()), FEATURES, timedelta(days=1)
    )
    for name, entity in ENTITIES.items()
)
BY_TEXT, BY_LONG, _, BY_MANY = VIEWS


def one_nan(value: float) -> float:
    """A NaN's other bits are nobody's value; a cast to 32 bits changes them."""
    return value if value == value else float("nan")  # noqa: PLR0124  # what NaN is


TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.binary(min_size=1, max_size=200),  # Feast pushes b"" as null unless another row of the batch has more
    "string": st.text(max_size=200),
    "int32": st.sampled_from([-(2**31), 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1),
    "int64": st.sampled_from([-(2**63), 2**63 - 1, 0, 127, 128]) | st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32).map(one_nan),
    "float64": st.floats().map(one_nan),
    "bool": st.booleans(),
    "unix_timestamp": TIMES,
}


def strategy(name: str) -> st.SearchStrategy[Any]:
    element = DTYPES[name].element
    return st.none() | (VALUES[name] if element is None else st.lists(VALUES[element.name], max_size=4))


ROWS = st.tuples(*(strategy(feature.dtype.name) for feature in FEATURES))
EXTREMES: tuple[Any, ...] = (
    b"\0\xff", [], "", ["", "é"], -(2**31), [2**31 - 1], 2**63 - 1, [-(2**63), 0], float("inf"), [-0.0], -0.0,
    [float("nan"), float("-inf")], False, [True, False], datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), NOON],
)  # fmt: skip


def row(view: View, entity: tuple[Any, ...], at: datetime, values: tuple[Any, ...], version: int = 1) -> pa.Table:
    system = {"event_timestamp": at, "created": at, "_version": version, "_partition": 0, "_offset": 0}
    named = {feature.name: value for feature, value in zip(view.features, values, strict=True)}
    return pa.Table.from_pylist([dict(zip(view.entity_names, entity, strict=True)) | system | named], view.row_schema)


def frame(view: View, rows: pa.Table) -> pd.DataFrame:
    """Make what a user would push, without NaT: Feast keeps it as the smallest int64, and reads that as null."""
    names = [*view.entity_names, "event_timestamp", *(feature.name for feature in view.features), "created"]
    made = rows.select(names).to_pandas()
    return made.astype({name: object for name in names if rows[name].null_count == len(rows)}).replace({pd.NaT: None})


def plain(values: Any) -> Any:
    """Make values comparable: NaN by its bits, and -0.0 apart from 0.0."""
    return np.float64(values).tobytes() if isinstance(values, float) else values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feast")


@pytest.fixture(scope="module")
def config(folder: Path, online_url: str) -> dict[str, Any]:
    made = store_config(PROJECT, online_url.replace("/0", "/1"), folder / "state" / "registry.db")
    feast.apply(made, feast.repo_objects(PROJECT, VIEWS, folder / "offline"))
    return made


@pytest.fixture(scope="module")
def store(config: dict[str, Any]) -> FeatureStore:
    return feast.open_store(config)


@pytest.fixture(scope="module")
def client(online_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(online_url.replace("/0", "/1")) as made:
        yield made


@pytest.fixture
def online(client: redis.Redis) -> OnlineStore:
    client.flushdb()
    return OnlineStore(client, PROJECT, VIEWS)


def emptied(client: redis.Redis, online: OnlineStore) -> None:
    client.flushdb()
    online.writes_count = 0  # as a new process, which knows of no write


def hashes(client: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    rows = (key for key in client.scan_iter() if not key.startswith(b"freshet:"))  # the other key counts writes
    return {key: client.hgetall(key) for key in rows}


IN_TEST = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@IN_TEST
@given(
    st.sampled_from(VIEWS),
    st.tuples(st.text(max_size=20), VALUES["int64"], VALUES["int32"]),
    TIMES.filter(lambda at: at.timestamp() != 0),
    ROWS.filter(lambda values: any(value is not None and value == value for value in values)),  # noqa: PLR0124
)
@example(BY_TEXT, ("ada", 0, 0), NOON, EXTREMES)
@example(BY_MANY, ("", -1, -1), NOON + timedelta(microseconds=1), EXTREMES)
@example(BY_LONG, ("", 2**63 - 1, 0), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), EXTREMES)
def test_redis_holds_byte_for_byte_what_feast_pushes(
    store: FeatureStore,
    client: redis.Redis,
    online: OnlineStore,
    view: View,
    parts: tuple[str, int, int],
    at: datetime,
    values: tuple[Any, ...],
) -> None:
    named = dict(zip(("user", "item", "shop_no"), parts, strict=True))
    rows = row(view, tuple(named[name] for name in view.entity_names), at, values)
    client.flushdb()
    store.push(f"{view.name}_push_source", frame(view, rows))
    pushed = hashes(client)
    emptied(client, online)

    online.write(view, rows)

    written = hashes(client)
    (fields,) = written.values()
    version = fields.pop(f"_v:{view.name}".encode())
    assert pushed == written
    assert version == fields[f"_ts:{view.name}".encode()] + (1).to_bytes(8)


def test_many_rows_at_once_are_what_feast_pushes_at_once(
    store: FeatureStore, client: redis.Redis, online: OnlineStore
) -> None:
    rows = pa.concat_tables(
        row(BY_MANY, (f"user {n}", n - 50, n), NOON + timedelta(microseconds=n), (b"x" * (n % 3), *EXTREMES[1:]))
        for n in range(100)
    )
    store.push("by_many_push_source", frame(BY_MANY, rows))
    pushed = hashes(client)
    emptied(client, online)

    online.write(BY_MANY, rows)

    written = hashes(client)
    for fields in written.values():
        fields.pop(b"_v:by_many")
    assert pushed == written


@IN_TEST
@given(TIMES.filter(lambda at: at.timestamp() != 0), ROWS)
@example(NOON + timedelta(microseconds=1), EXTREMES)
def test_feast_reads_what_was_written_as_our_own_reader_does(
    store: FeatureStore, client: redis.Redis, online: OnlineStore, at: datetime, values: tuple[Any, ...]
) -> None:
    emptied(client, online)
    online.write(BY_MANY, row(BY_MANY, ("ada", 1, 2), at, values))
    entities = [("ada", 1, 2), ("bob", 1, 2)]

    (theirs, missing), (ours, nothing) = feast.read_online(store, BY_MANY, entities), online.read(BY_MANY, entities)

    assert missing is None
    assert nothing is None
    assert theirs is not None
    assert ours is not None
    assert (theirs.entity, theirs.event_timestamp) == (ours.entity, ours.event_timestamp)
    for feature in FEATURES:
        their, our = theirs.features[feature.name], ours.features[feature.name]
        if isinstance(our, list):
            assert [plain(value) for value in our] == [plain(value) for value in their]
        else:
            assert plain(our) == plain(their)


def test_a_push_in_between_counts_as_version_0(store: FeatureStore, online: OnlineStore) -> None:
    later = NOON + timedelta(seconds=1)
    values: dict[int, tuple[Any, ...]] = {n: (*EXTREMES[:6], n, *EXTREMES[7:]) for n in (1, 2, 3, 4)}
    online.write(BY_TEXT, row(BY_TEXT, ("ada",), NOON, values[1], version=9))
    store.push("by_text_push_source", frame(BY_TEXT, row(BY_TEXT, ("ada",), later, values[2])))
    (pushed,) = online.read(BY_TEXT, [("ada",)])

    older = online.write(BY_TEXT, row(BY_TEXT, ("ada",), NOON, values[3], version=10))
    corrected = online.write(BY_TEXT, row(BY_TEXT, ("ada",), later, values[4], version=1))

    assert pushed is not None
    assert (pushed.event_timestamp, pushed.version, pushed.features["f6"]) == (later, 0, 2)
    assert (older, corrected) == (0, 1)
    (final,) = online.read(BY_TEXT, [("ada",)])
    assert final is not None
    assert (final.event_timestamp, final.version, final.features["f6"]) == (later, 1, 4)


# Dask breaks ties of time with a sort that is not stable, so it may give a superseded version.
@pytest.mark.parametrize(("engine", "versions"), [("duckdb", (1, 2)), ("dask", (2,))])
def test_history_is_read_from_our_folder(
    config: dict[str, Any], folder: Path, engine: str, versions: tuple[int, ...]
) -> None:
    offline, name = OfflineStore(folder / "offline"), f"ada {engine}"
    offline.prepare("by_text", BY_TEXT.row_schema)
    for version, minutes in [*((version, 0) for version in versions), (1, 10)]:
        values = (*EXTREMES[:6], minutes + version, *EXTREMES[7:])
        rows = row(BY_TEXT, (name,), NOON + timedelta(minutes=minutes), values, version)
        created = pa.array([NOON + timedelta(hours=version)], pa.timestamp("us", "UTC"))
        offline.append("by_text", rows.set_column(rows.schema.get_field_index("created"), "created", created))
    (folder / "offline" / "by_text" / ".part-x.parquet.inprogress").write_bytes(b"torn")
    store = feast.open_store({**config, "offline_store": {"type": engine}})
    asked = pd.DataFrame({"user": name, "event_timestamp": [NOON + timedelta(minutes=m) for m in (0, 9, 10, 60 * 24)]})

    found = feast.read_history(store, BY_TEXT, asked).sort_values("event_timestamp")
    served = feast.read_history(store, BY_TEXT, asked, as_served=True).sort_values("event_timestamp")

    assert found["f6"].to_list() == [2, 2, 11, 11]
    assert found["f2"].to_list() == [""] * 4
    assert served["f6"].isna().to_list() == [True, True, True, False]


def test_applying_twice_changes_nothing_and_leaves_one_registry_file(config: dict[str, Any], folder: Path) -> None:
    objects = feast.repo_objects(PROJECT, VIEWS, folder / "offline")

    feast.apply(config, objects)

    store = feast.open_store(config)
    assert {view.name for view in store.list_feature_views()} == set(ENTITIES)
    assert [service.name for service in store.list_feature_services()] == [PROJECT]
    assert {entity.name for entity in store.list_entities()} >= {"user", "item", "shop_no"}
    assert [path.name for path in (folder / "state").iterdir()] == ["registry.db"]
    assert (folder / "state" / "registry.db").stat().st_mode & 0o777 == 0o600


def test_views_no_longer_declared_leave_and_the_users_own_stay(tmp_path: Path) -> None:
    config = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db")
    (_, _, theirs, _) = feast.repo_objects(PROJECT, [View("theirs", ("orders",), BY_LONG.entity, FEATURES)], tmp_path)
    theirs.tags = {}
    feast.apply(config, [*feast.repo_objects(PROJECT, [BY_TEXT, BY_LONG], tmp_path), theirs])

    feast.apply(config, feast.repo_objects(PROJECT, [BY_LONG], tmp_path))

    store = feast.open_store(config)
    assert {view.name for view in store.list_feature_views()} == {"by_long", "theirs"}
    assert {source.name for source in store.list_data_sources()} == {
        "by_long_files", "by_long_push_source", "theirs_files", "theirs_push_source",
    }  # fmt: skip


class Moved:
    """Folders, one of which has moved."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def paths(self, name: str) -> list[Path]:
        """Return where it is now, and was."""
        return [self.root / f"{name}-3", self.root / name] if name == "by_text" else [self.root / name]


def test_the_registry_is_pointed_to_another_folder_and_nothing_else_changes(tmp_path: Path) -> None:
    config, files = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db"), Moved(tmp_path)
    assert feast.point(config, files, [BY_TEXT]) == set()  # nothing was applied yet
    feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT, BY_LONG], tmp_path))
    before = feast.open_store(config)

    assert feast.point(config, files, [BY_TEXT, BY_LONG]) == {"by_text"}

    after = feast.open_store(config)
    pushed = after.get_data_source("by_text_push_source")
    assert isinstance(pushed, PushSource)
    assert pushed.batch_source is not None
    places = (
        pushed.batch_source.path,
        after.get_data_source("by_text_files").path,
        after.get_feature_view("by_text").batch_source.path,
        after.get_feature_view("by_text").stream_source.batch_source.path,
    )
    assert places == (str(tmp_path / "by_text-3"),) * 4
    assert after.get_feature_view("by_long") == before.get_feature_view("by_long")
    assert after.get_feature_view("by_text").schema == before.get_feature_view("by_text").schema
    assert feast.point(config, files, [BY_TEXT, BY_LONG]) == set()
    assert (tmp_path / "registry.db").stat().st_mode & 0o777 == 0o600


def test_while_a_folder_moves_either_place_is_as_declared(tmp_path: Path) -> None:
    config = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db")
    feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT], tmp_path))
    client = feast.FeastClient(config, Moved(tmp_path))

    assert all(entry.is_declared for entry in client.registration(BY_TEXT))
    feast.point(config, Moved(tmp_path), [BY_TEXT])
    assert all(entry.is_declared for entry in client.registration(BY_TEXT))
    strange = feast.FeastClient(config, tmp_path).registration(BY_TEXT)
    assert [entry.name for entry in strange if not entry.is_declared] == ["files"]


def test_a_torn_or_missing_registry_is_named(tmp_path: Path) -> None:
    config = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db")
    with pytest.raises(Unavailable, match=r"registry.db is not there"):
        feast.open_store(config)
    feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT], tmp_path))
    whole = (tmp_path / "registry.db").read_bytes()
    (tmp_path / "registry.db").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(Unavailable, match=r"registry.db cannot be read"):
        feast.open_store(config)
    with pytest.raises(Unavailable, match=r"registry.db cannot be read"):
        feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT], tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_registry_of_another_user_is_refused(tmp_path: Path) -> None:
    config = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db")
    feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT], tmp_path))
    os.chown(tmp_path / "registry.db", 12345, -1)

    with pytest.raises(Refused, match="belongs to another user; got uid 12345"):
        feast.open_store(config)


def test_one_entity_of_two_types_is_refused(tmp_path: Path) -> None:
    other = View("other", ("orders",), (pa.field("user", pa.int64()),), FEATURES)

    with pytest.raises(Refused, match='entity "user" has two types'):
        feast.repo_objects(PROJECT, [BY_TEXT, other], tmp_path)


@pytest.mark.parametrize(
    "password", ["a,b=c d", "$HOME", "${HOME", "0123", "1e5", "true", "q\"uo\\te's", "é:#{}", "null"]
)
def test_any_password_reaches_redis_as_it_was(tmp_path: Path, online_url: str, password: str) -> None:
    port = int(online_url.rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port) as admin:
        admin.acl_setuser(
            "guest", enabled=True, reset=True, passwords=[f"+{password}"], categories=["+@all"], keys=["*"]
        )
        quoted = "".join(f"%{octet:02x}" for octet in password.encode())
        config = store_config(
            PROJECT, f"redis://guest:{quoted}@127.0.0.1:{port}/2?socket_timeout=5", tmp_path / "registry.db"
        )
        write_store_config(tmp_path / "feature_store.yaml", config)

        read = load_repo_config(tmp_path, tmp_path / "feature_store.yaml")

        feast.apply(config, feast.repo_objects(PROJECT, [BY_TEXT], tmp_path))
        store = FeatureStore(config=read)
        assert feast.read_online(store, BY_TEXT, [("ada",)]) == [None]
        assert (tmp_path / "feature_store.yaml").stat().st_mode & 0o777 == 0o600
        admin.acl_deluser("guest")


def test_a_credential_may_stay_in_the_environment(
    tmp_path: Path, online_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHET_TEST_PASSWORD", "00 secret")
    config = store_config(PROJECT, "redis://:${FRESHET_TEST_PASSWORD}@localhost:1/0", tmp_path / "registry.db")
    write_store_config(tmp_path / "feature_store.yaml", config)

    read = load_repo_config(tmp_path, tmp_path / "feature_store.yaml")

    assert "secret" not in (tmp_path / "feature_store.yaml").read_text()
    assert 'password="00 secret"' in read.online_store.connection_string
    assert online_url


@pytest.mark.parametrize(
    ("url", "string"),
    [
        ("redis://cache:6380/3", "cache:6380,db=3"),
        ("rediss://u:p@cache/0", 'cache:6379,username="u",password="p",db=0,ssl=true'),
        ("unix:///run/s?db=2", 'localhost:6379,db=2,unix_socket_path="/run/s"'),
    ],
)
def test_redis_urls_become_feasts_connection_strings(tmp_path: Path, url: str, string: str) -> None:
    assert store_config(PROJECT, url, tmp_path / "r")["online_store"]["connection_string"] == string


@pytest.mark.parametrize("url", ["dynamodb://x", "redis://[::1]:6379/0", "redis://u:pa/secret@h:1/0"])
def test_a_url_of_no_known_store_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(Refused, match="is not an online store that Freshet knows") as raised:
        store_config(PROJECT, url, tmp_path / "r")

    assert "secret" not in str(raised.value)


def test_feast_apply_collects_the_objects_from_definitions_py(
    tmp_path: Path, online_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = store_config(PROJECT, online_url, tmp_path / "registry.db")
    write_store_config(tmp_path / "feature_store.yaml", config)
    (tmp_path / "definitions.py").write_text(
        "from pathlib import Path\n"
        "import pyarrow as pa\n"
        "from freshet.flows.edges.feast import repo_objects\n"
        "from freshet.schemas.dtypes import DTYPES\n"
        "from freshet.schemas.view import Feature, View\n"
        'views = [View("by_user", ("s",), (pa.field("user", pa.string()),), (Feature("n", DTYPES["int64"], "1"),))]\n'
        'objects = repo_objects("shop", views, Path("offline"))\n'
        'globals().update({f"{type(made).__name__}_{made.name}": made for made in objects})\n'
    )

    monkeypatch.chdir(tmp_path)  # Feast goes there, and does not come back
    monkeypatch.syspath_prepend(tmp_path)

    apply_total(load_repo_config(tmp_path, tmp_path / "feature_store.yaml"), tmp_path, skip_source_validation=False)

    assert [view.name for view in feast.open_store(config).list_feature_views()] == ["by_user"]


@pytest.fixture
def sqlite(tmp_path: Path) -> FeatureStore:
    config = store_config(PROJECT, f"sqlite://{tmp_path}/online.db", tmp_path / "registry.db")
    feast.apply(config, feast.repo_objects(PROJECT, VIEWS, tmp_path / "offline"))
    return feast.open_store(config)


def test_another_online_store_holds_the_same_values(sqlite: FeatureStore, online: OnlineStore) -> None:
    other = feast.FeastOnlineStore(sqlite, VIEWS)
    nulls = (None,) * len(FEATURES)
    rows = pa.concat_tables(
        [
            row(BY_MANY, ("ada", 1, 2), NOON, EXTREMES),
            row(BY_MANY, ("bob", 1, 2), NOON + timedelta(microseconds=5), nulls),
        ]
    )
    entities = [("ada", 1, 2), ("bob", 1, 2), ("eve", 1, 2)]

    assert other.write(BY_MANY, rows) == 2
    online.write(BY_MANY, rows)

    def told(row: StoredRow | None) -> object:
        return row and (row.entity, repr(row.features))  # SQLite keeps times as whole local seconds

    assert [told(row) for row in online.read(BY_MANY, entities)] == [told(row) for row in other.read(BY_MANY, entities)]
    assert other.write(BY_MANY, rows.slice(0, 0)) == 0


def test_a_batch_of_nulls_and_a_correction_reach_sqlite(sqlite: FeatureStore) -> None:
    other = feast.FeastOnlineStore(sqlite, VIEWS)
    other.write(BY_TEXT, row(BY_TEXT, ("ada",), NOON, EXTREMES))

    other.write(BY_TEXT, row(BY_TEXT, ("ada",), NOON, (None,) * len(FEATURES), version=2))

    (stored,) = other.read(BY_TEXT, [("ada",)])
    assert stored is not None
    assert set(stored.features.values()) == {None}


def test_a_broken_sqlite_is_named(sqlite: FeatureStore, tmp_path: Path) -> None:
    other = feast.FeastOnlineStore(sqlite, [BY_TEXT])
    (tmp_path / "online.db").unlink()

    with pytest.raises(Unavailable, match="online store sqlite cannot be written: OperationalError"):
        other.write(BY_TEXT, row(BY_TEXT, ("ada",), NOON, EXTREMES))


def test_the_configuration_is_what_feast_takes(config: dict[str, Any], folder: Path) -> None:
    write_store_config(folder / "feature_store.yaml", config)

    assert yaml.safe_load((folder / "feature_store.yaml").read_text()) == config
    assert RepoConfig(**config).entity_key_serialization_version == 3


def test_what_a_process_starts_after_feast_s_import_counts_for_itself() -> None:
    said = "import os, freshet.flows.edges.feast; print([name for name in os.environ if 'MULTIPROC' in name])"
    environment = {name: value for name, value in os.environ.items() if "MULTIPROC" not in name}

    done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


IMPORTS = """
import typeguard
before = typeguard.typechecked
import freshet.flows.edges.feast
import feast
print(typeguard.typechecked is before, "typeguard" in feast.Entity.__init__.__code__.co_names)
"""


def test_feast_alone_is_imported_without_typeguards_rewriting() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)

    assert done.stdout == "True False\n"
