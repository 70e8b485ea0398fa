import errno
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dask import dataframe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.flows.edges.parquet import MemoryOfflineStore, OfflineStore
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.part import PartSummary
from freshet.schemas.view import Feature, View

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
VIEW = View(
    "by_user",
    ("edits",),
    (pa.field("user", pa.string()), pa.field("page", pa.int64())),
    (Feature("edits", DTYPES["int64"], ""), Feature("words", DTYPES["array(string)"], "")),
)


class Store(Protocol):
    def prepare(self, name: str, schema: pa.Schema) -> None: ...

    def append(self, name: str, table: pa.Table) -> str | None: ...

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None: ...

    def publish(self, parts: Mapping[str, Iterable[str]]) -> None: ...

    def bytes_counts(self, parts: Mapping[str, Iterable[str]]) -> dict[str, int]: ...

    def discard_staged(self, name: str) -> int: ...

    def parts_after(self, name: str, epoch: int) -> list[tuple[int, str]]: ...

    def visible_parts(self, name: str) -> list[str]: ...

    def summary(self, name: str, part: str) -> PartSummary | None: ...

    def is_staged(self, name: str, part: str) -> bool: ...

    def read_parts(self, name: str, parts: Iterable[str]) -> pa.Table: ...

    def read(self, name: str) -> pa.Table: ...

    def matching(
        self, name: str, schema: pa.Schema, values: Mapping[str, Any], since: datetime | None = None
    ) -> pa.Table: ...

    def final(self, view: View) -> pa.Table: ...

    def newest(self, view: View) -> pa.Table: ...

    def expirable(self, name: str, column: str, older_than: datetime, epoch: int) -> dict[str, int]: ...

    def delete(self, name: str, parts: Iterable[str]) -> None: ...


def rows(*found: tuple[str, int, int, int]) -> pa.Table:
    """Make rows from (user, minutes after noon, version, edits)."""
    return pa.Table.from_pylist(
        [
            {
                "user": user, "page": 1, "event_timestamp": NOON + timedelta(minutes=minutes), "edits": edits,
                "words": ["é"], "created": NOON + timedelta(microseconds=edits), "_version": version,
                "_partition": 0, "_offset": edits,
            }
            for user, minutes, version, edits in found
        ],
        schema=VIEW.row_schema,
    )  # fmt: skip


def edits(table: pa.Table) -> list[int]:
    return table["edits"].to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(params=["parquet", "memory"])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    def made() -> Store:
        return OfflineStore(tmp_path_factory.mktemp("offline")) if request.param == "parquet" else MemoryOfflineStore()

    return made


@pytest.fixture
def store(fresh: Callable[[], Store]) -> Store:
    made = fresh()
    made.prepare("by_user", VIEW.row_schema)
    return made


def test_a_prepared_folder_has_a_schema_and_no_rows(store: Store) -> None:
    store.prepare("by_user", VIEW.row_schema)

    assert store.read("by_user").schema == VIEW.row_schema
    assert store.read("by_user").num_rows == 0
    assert store.final(VIEW).num_rows == 0
    assert store.newest(VIEW).num_rows == 0


def test_appended_rows_are_all_there(store: Store) -> None:
    first = store.append("by_user", rows(("ada", 0, 1, 1), ("ada", 1, 1, 2)))
    second = store.append("by_user", rows(("bob", 0, 1, 3)))
    nothing = store.append("by_user", rows())

    assert first != second
    assert nothing is None
    assert store.read("by_user") == rows(("ada", 0, 1, 1), ("ada", 1, 1, 2), ("bob", 0, 1, 3))


def test_rows_of_one_entity_are_given_in_every_version_from_a_time_on(store: Store) -> None:
    store.append("by_user", rows(("ada", 0, 1, 1), ("ada", 5, 1, 2), ("bob", 5, 1, 3)))
    store.append("by_user", rows(("ada", 5, 2, 4), ("ada", 9, 1, 5)))

    of_ada = store.matching("by_user", VIEW.row_schema, {"user": "ada", "page": 1})
    since = store.matching("by_user", VIEW.row_schema, {"user": "ada"}, NOON + timedelta(minutes=5))

    assert [1, 2, 4, 5] == sorted(edits(of_ada))
    assert [2, 4, 5] == sorted(edits(since))
    assert VIEW.row_schema == since.schema
    assert 0 == store.matching("by_user", VIEW.row_schema, {"user": "ada", "page": 2}).num_rows
    assert 0 == store.matching("by_nobody", VIEW.row_schema, {"user": "ada"}).num_rows


def test_a_visible_part_says_what_is_in_it(store: Store) -> None:
    part = store.append("by_user", rows(("ada", 5, 1, 1), ("ada", 1, 1, 2), ("bob", 9, 1, 3)))
    assert part is not None

    assert part in store.visible_parts("by_user")
    assert store.visible_parts("by_page") == []
    times = NOON + timedelta(minutes=1), NOON + timedelta(minutes=9)
    assert store.summary("by_user", part) == PartSummary(3, VIEW.row_schema, *times)
    store.delete("by_user", [part])
    assert part not in store.visible_parts("by_user")
    assert store.summary("by_user", part) is None


def test_a_staged_part_is_not_visible_and_says_that_it_waits(store: Store) -> None:
    part = store.stage("by_user", rows(("ada", 0, 1, 1)), 4)
    assert part is not None

    assert (store.is_staged("by_user", part), part in store.visible_parts("by_user")) == (True, False)
    store.publish({"by_user": [part]})
    assert (store.is_staged("by_user", part), part in store.visible_parts("by_user")) == (False, True)


def test_the_greatest_version_is_final_wherever_it_stands(store: Store) -> None:
    store.append("by_user", rows(("ada", 0, 2, 1), ("ada", 0, 1, 2), ("bob", 5, 1, 3)))
    store.append("by_user", rows(("ada", 1, 1, 4), ("ada", 0, 1, 5), ("bob", 4, 9, 6)))

    assert edits(store.final(VIEW)) == [1, 4, 6, 3]
    assert edits(store.newest(VIEW)) == [4, 3]


def test_of_equal_versions_the_last_made_is_final(store: Store) -> None:
    store.append("by_user", rows(("ada", 0, 1, 7)))
    store.append("by_user", rows(("ada", 0, 1, 8)))
    store.append("by_user", rows(("ada", 0, 1, 6)))

    assert edits(store.final(VIEW)) == [8]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["", "ada", "bob"]), st.integers(0, 2), st.integers(1, 3)), max_size=6),
        max_size=4,
    )
)
def test_final_and_newest_are_what_sorting_by_hand_gives(
    fresh: Callable[[], Store], batches: list[list[tuple[str, int, int]]]
) -> None:
    store = fresh()
    store.prepare("by_user", VIEW.row_schema)
    final: dict[tuple[str, int], tuple[int, int]] = {}
    number = 0
    for batch in batches:
        numbered = [(*found, number := number + 1) for found in batch]
        store.append("by_user", rows(*numbered))
        for user, minutes, version, edit in numbered:
            final[user, minutes] = max(final.get((user, minutes), (0, 0)), (version, edit))

    newest = {user: final[user, minutes] for user, minutes in sorted(final)}

    assert edits(store.final(VIEW)) == [edit for _, (_, edit) in sorted(final.items())]
    assert edits(store.newest(VIEW)) == [edit for _, (_, edit) in sorted(newest.items())]


def test_only_parts_that_are_wholly_old_and_made_early_enough_expire(store: Store) -> None:
    store.prepare("_events/edits", VIEW.row_schema)
    parts = {}
    for epoch, minutes in enumerate([(0, 1), (1, 5), (5, 6), (0, 2)], start=1):
        staged = store.stage("_events/edits", rows(*(("ada", minute, 1, minute) for minute in minutes)), epoch)
        assert staged is not None
        parts[epoch] = staged
        store.publish({"_events/edits": [staged]})

    gone = store.expirable("_events/edits", "event_timestamp", NOON + timedelta(minutes=5), 3)

    assert gone == {parts[1]: 2}
    store.delete("_events/edits", gone)
    store.delete("_events/edits", gone)  # as after a crash
    assert edits(store.read("_events/edits")) == [1, 5, 5, 6, 0, 2]
    rest = store.expirable("_events/edits", "event_timestamp", NOON + timedelta(days=1), 9)
    assert set(rest) == {parts[2], parts[3], parts[4]}
    store.delete("_events/edits", rest)
    assert store.read("_events/edits").schema == VIEW.row_schema


def test_staged_rows_are_seen_by_nobody_until_they_are_published(store: Store) -> None:
    part = store.stage("by_user", rows(("ada", 0, 1, 1)), 4)
    assert part is not None
    assert store.stage("by_user", rows(), 4) is None
    assert edits(store.read("by_user")) == []
    assert store.parts_after("by_user", 3) == []

    for _ in range(2):  # a crash may have it done again
        store.publish({"by_user": [part]})

    assert edits(store.read("by_user")) == edits(store.read_parts("by_user", [part])) == [1]
    assert store.parts_after("by_user", 3) == [(4, part)]
    assert store.parts_after("by_user", 4) == []


def test_only_visible_parts_have_a_size(store: Store) -> None:
    few = store.stage("by_user", rows(("ada", 0, 1, 1)), 1)
    many = store.stage("by_user", rows(*((f"user {number}", number, 1, number) for number in range(500))), 1)
    assert few is not None
    assert many is not None
    assert store.bytes_counts({"by_user": [few, many]}) == {"by_user": 0}

    store.publish({"by_user": [few, many]})

    sizes = [store.bytes_counts({"by_user": [part]})["by_user"] for part in (few, many)]
    assert 0 < sizes[0] < sizes[1]
    assert store.bytes_counts({"by_user": [few, many, "part-gone.parquet"]}) == {"by_user": sum(sizes)}


def test_what_was_staged_and_never_published_is_discarded(store: Store) -> None:
    kept, lost = store.stage("by_user", rows(("ada", 0, 1, 1))), store.stage("by_user", rows(("ada", 0, 1, 2)))
    assert kept is not None
    assert lost is not None
    store.publish({"by_user": [kept]})

    assert store.discard_staged("by_user") == 1

    assert edits(store.read("by_user")) == [1]
    for use in (lambda: store.publish({"by_user": [lost]}), lambda: store.read_parts("by_user", [lost])):
        with pytest.raises(Unavailable, match=f"{lost} is not there"):
            use()


def test_a_folder_of_another_schema_is_refused(store: Store) -> None:
    with pytest.raises(Refused, match=r"by_user.*has another schema; got more int64"):
        store.prepare("by_user", VIEW.row_schema.append(pa.field("more", pa.int64())))


def test_a_folder_that_was_never_prepared_is_named(store: Store) -> None:
    with pytest.raises(Unavailable, match="other"):
        store.read("other")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "offline"


def prepared(root: Path) -> OfflineStore:
    store = OfflineStore(root)
    store.prepare("by_user", VIEW.row_schema)
    return store


def written(store: OfflineStore, root: Path) -> Path:
    part = store.append("by_user", rows(("ada", 0, 1, 1)))
    assert part is not None
    return root / "by_user" / part


def test_two_instances_never_use_one_name(root: Path) -> None:
    one, other = prepared(root), prepared(root)

    for number in range(3):
        one.append("by_user", rows(("ada", number, 1, number)))
        other.append("by_user", rows(("bob", number, 1, number)))

    assert one.read("by_user").num_rows == 6
    assert len(list((root / "by_user").iterdir())) == 7


def test_parts_in_progress_are_seen_by_nobody(root: Path) -> None:
    store = prepared(root)
    part = store.append("by_user", rows(("ada", 0, 1, 1)))
    assert part is not None
    folder = root / "by_user"
    (folder / f".{part}.x.inprogress").write_bytes((folder / part).read_bytes()[:100])
    store.stage("by_user", rows(("ada", 1, 1, 2)))

    assert store.read("by_user").num_rows == 1
    assert len(dataframe.read_parquet(folder)) == 1
    assert duckdb.sql(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchall() == [(1,)]
    assert store.discard_staged("by_user") == 2


def test_of_a_parts_columns_only_those_have_a_dictionary_that_it_makes_smaller(root: Path) -> None:
    schema = pa.schema([("user", pa.string()), ("id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64())])
    numbers = np.arange(10_000)
    users = np.random.default_rng(1).integers(0, 4000, 10_000)
    columns = [[f"user {number}" for number in users], [f"id {number}" for number in numbers]]
    store = OfflineStore(root)
    store.prepare("events", schema)

    part = store.append("events", pa.table([*columns, numbers % 8, numbers], schema=schema))

    assert part is not None
    group = pq.ParquetFile(root / "events" / part).metadata.row_group(0)
    found = {group.column(place).path_in_schema: group.column(place).has_dictionary_page for place in range(4)}
    assert found == {"user": True, "id": False, "shard": True, "offset": False}


def test_times_stay_microseconds_in_utc(root: Path) -> None:
    part = written(prepared(root), root)

    assert pq.read_schema(part).field("event_timestamp").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize("tear", [lambda whole: whole[:-20], lambda whole: whole[:4] + bytes(400) + whole[404:]])
def test_a_torn_part_is_named(root: Path, tear: Callable[[bytes], bytes]) -> None:
    store = prepared(root)
    part = written(store, root)
    part.write_bytes(tear(part.read_bytes()))

    with pytest.raises(Unavailable, match=rf"{part} is torn or not parquet"):
        store.read("by_user")
    with pytest.raises(Unavailable, match=rf"{root / 'by_user'} cannot be read: .*"):
        store.matching("by_user", VIEW.row_schema, {"user": "ada"})


def test_a_part_whose_text_is_not_utf_8_is_torn_too(tmp_path: Path) -> None:
    offsets, octets = pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    table = pa.table({"user": pa.Array.from_buffers(pa.string(), 1, [None, offsets, octets])})
    (tmp_path / "by_user").mkdir()
    pq.write_table(table, tmp_path / "by_user" / "part-1.parquet")

    with pytest.raises(Unavailable, match=r"part-1.parquet is torn or not parquet"):
        OfflineStore(tmp_path).read_parts("by_user", ["part-1.parquet"])


def test_a_part_without_an_end_is_named_at_the_start(root: Path) -> None:
    part = written(prepared(root), root)
    part.write_bytes(part.read_bytes()[:-20])

    with pytest.raises(Unavailable, match=rf"{part} is torn or not parquet"):
        prepared(root)


def test_a_foreign_part_is_named(root: Path) -> None:
    store = prepared(root)
    foreign = root / "by_user" / "part-foreign.parquet"
    pq.write_table(rows(("ada", 0, 1, 1)).drop_columns(["words"]), foreign)

    for use in (lambda: store.read("by_user"), lambda: prepared(root)):
        with pytest.raises(Refused, match=rf"{foreign}.*has another schema; got words list"):
            use()


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(Refused, match=os.strerror(errno.ENOTDIR)):
        prepared(tmp_path / "file")


def test_a_full_disk_is_named_and_nothing_of_the_part_is_seen(root: Path) -> None:
    store = prepared(root)
    resource: Any = pytest.importorskip("resource")
    signals: Any = pytest.importorskip("signal")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(Unavailable, match=f"{root}/by_user cannot be written: {os.strerror(errno.EFBIG)}"):
            store.append("by_user", rows(*(("ada", number, 1, number) for number in range(1000))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signals.signal(signals.SIGXFSZ, handler)

    assert [path.name for path in (root / "by_user").iterdir()] == ["part-0.parquet"]
    assert store.append("by_user", rows(("ada", 0, 1, 1))) is not None
