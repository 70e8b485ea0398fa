"""The faults do what their account says, and nothing where no rule strikes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from freshet.flows.edges.parquet import MemoryOfflineStore, OfflineStore
from freshet.flows.edges.recovery import MemoryLedger
from freshet.flows.edges.redis import OnlineStore
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.finding import Cause
from freshet.schemas.ledger import Ledger
from freshet.schemas.view import Feature, View
from freshet.scripts.faults.deeds import Choice, Deeds
from freshet.scripts.faults.files import FileFault
from freshet.scripts.faults.materializer import obey, order
from freshet.scripts.faults.online import REPLAY_AFTER_S, OnlineFault
from freshet.scripts.faults.proxy import Passed, Proxy
from freshet.scripts.faults.sink import FaultyLedger, FaultyOffline, Sink

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
VIEW = View(
    "by_user",
    ("edits",),
    (pa.field("user", pa.string()),),
    (Feature("edits", DTYPES["int64"], ""), Feature("name", DTYPES["string"], "")),
)


def rows(*found: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"user": user, "event_timestamp": NOON + timedelta(seconds=second), "edits": second, "name": user}
            | {"created": NOON, "_version": 1, "_partition": 0, "_offset": 0}
            for user, second in found
        ],
        schema=VIEW.row_schema,
    )


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def server(valkey_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def deeds(tmp_path: Path) -> Deeds:
    made = Deeds(tmp_path / "deeds")
    made.command("one", "any")
    return made


def done(deeds: Deeds) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    account = deeds.account()
    assert account is not None
    assert (account.first_effective_at is None) == (account.affected_count == 0)
    return account.affected_count, account.entities, account.features


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_proxy_without_a_rule_answers_as_the_server_does(valkey_url: str, protocol: int) -> None:
    def conversation(port: int) -> list[Any]:
        client = redis.Redis(port=port, protocol=protocol)
        client.flushall()
        found: list[Any] = []
        with client.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.hset("h", str(number), b"\r\n" * number)
                pipeline.hget("h", str(number))
            pipeline.hgetall("h")
            pipeline.execute_command("EVALSHA", "0" * 40, 0)
            pipeline.scan(0, count=10)
            pipeline.get("nothing")
            found += pipeline.execute(raise_on_error=False)
        client.set("big", b"$-1\r\n" * 1_000_000)
        return [*map(repr, found), client.get("big"), client.ping()]

    with Proxy(port_of(valkey_url)) as proxy:
        direct, through = conversation(port_of(valkey_url)), conversation(proxy.port)

    assert direct == through


@pytest.mark.usefixtures("server")
def test_an_online_store_reads_and_writes_through_a_proxy_as_directly(valkey_url: str) -> None:
    table = rows(*((f"user {number % 700}", number) for number in range(2500)))
    with Proxy(port_of(valkey_url)) as proxy:
        through, direct = (OnlineStore(url, "p", [VIEW]) for url in (proxy.url, valkey_url))

        assert through.write(VIEW, table) == 2500
        entities = [(f"user {number}",) for number in range(701)]
        assert direct.read(VIEW, entities) == through.read(VIEW, entities)
        assert through.counted_writes() == direct.counted_writes() == 3


def fault_at(url: str, cause: Cause, deeds: Deeds, choice: Choice) -> tuple[OnlineFault, Proxy, OnlineStore]:
    fault = OnlineFault(cause, choice, deeds, [VIEW])
    proxy = Proxy(port_of(url), fault)
    return fault, proxy, OnlineStore(proxy.url, "p", [VIEW])


ALL = Choice(1.0)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("ttl", [timedelta(days=1), timedelta(0)])
def test_only_a_row_that_expires_can_be_kept_for_ever(valkey_url: str, deeds: Deeds, ttl: timedelta) -> None:
    view = replace(VIEW, ttl=ttl)
    fault = OnlineFault(Cause.EXPIRED_TTL, ALL, deeds, [view])
    with Proxy(port_of(valkey_url), fault) as proxy:
        store = OnlineStore(proxy.url, "p", [view])
        store.write(view, rows(("ada", 1)))
        [row] = store.read(view, [("ada",)])
        assert row is not None
        assert (row.expires_at is not None) is bool(ttl)
        fault.begin()
        store.write(view, rows(("ada", 2)))

        [row] = store.read(view, [("ada",)])
    assert row is not None
    assert (row.features["edits"], row.expires_at) == (2, None)
    assert done(deeds) == ((1, ("ada",), ()) if ttl else (0, (), ()))


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("cause", "left", "noted"),
    [
        (Cause.LOST_ONLINE_WRITE, {"edits": 1, "name": "ada"}, ()),
        (Cause.MISSING_ENTITY, None, ()),
        (Cause.NULL_ONLINE, {"edits": None, "name": None}, ("edits", "name")),
        (Cause.DTYPE, {"edits": 2.0, "name": "ada"}, ("edits",)),
        (Cause.VALUE_MISMATCH, {"edits": 3, "name": "ada?"}, ("edits", "name")),
    ],
)
def test_a_write_that_is_struck_is_answered_and_noted(
    valkey_url: str, deeds: Deeds, cause: Cause, left: Any, noted: tuple[str, ...]
) -> None:
    fault, proxy, store = fault_at(valkey_url, cause, deeds, ALL)
    with proxy:
        store.write(VIEW, rows(("ada", 1)))
        assert done(deeds) == (0, (), ())
        fault.begin()

        assert store.write(VIEW, rows(("ada", 2))) == 1

        [row] = OnlineStore(valkey_url, "p", [VIEW]).read(VIEW, [("ada",)])
    assert (None if row is None else dict(row.features)) == left
    assert done(deeds) == (1, ("ada",), noted)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("cause", [Cause.LOST_ONLINE_WRITE, Cause.MISSING_ENTITY])
def test_an_entity_that_was_never_online_is_spared_until_it_was(valkey_url: str, deeds: Deeds, cause: Cause) -> None:
    fault, proxy, store = fault_at(valkey_url, cause, deeds, ALL)
    with proxy:
        fault.begin()
        store.write(VIEW, rows(("ada", 1)))
        [first] = OnlineStore(valkey_url, "p", [VIEW]).read(VIEW, [("ada",)])
        assert first is not None
        assert done(deeds) == (0, (), ())

        store.write(VIEW, rows(("ada", 2)))

    assert done(deeds) == (1, ("ada",), ())


@pytest.mark.usefixtures("server")
def test_an_older_write_comes_again_past_the_rule(valkey_url: str, deeds: Deeds) -> None:
    fault, proxy, store = fault_at(valkey_url, Cause.OUT_OF_ORDER_OVERWRITE, deeds, ALL)
    with proxy:
        store.write(VIEW, rows(("ada", 1)))
        fault.begin()
        store.write(VIEW, rows(("ada", 2)))
        [row] = store.read(VIEW, [("ada",)])
        assert row is not None
        assert row.features["edits"] == 2
        assert done(deeds) == (0, (), ())

        assert fault.replay(proxy.send) == 0
        assert fault.replay(proxy.send, now=float("inf")) == 1

        [row] = store.read(VIEW, [("ada",)])
    assert row is not None
    assert row.features["edits"] == 1
    assert done(deeds) == (1, ("ada",), ())
    assert REPLAY_AFTER_S > 0


@pytest.mark.usefixtures("server")
def test_a_rate_strikes_about_so_many_and_the_account_names_them(valkey_url: str, deeds: Deeds) -> None:
    users = [f"user {number}" for number in range(1000)]
    fault, proxy, store = fault_at(valkey_url, Cause.LOST_ONLINE_WRITE, deeds, Choice(0.1, 3))
    with proxy:
        store.write(VIEW, rows(*((user, 0) for user in users)))
        fault.begin()
        store.write(VIEW, rows(*((user, number + 1) for number, user in enumerate(users))))
        found = store.read(VIEW, [(user,) for user in users])

    lost = {user for user, row in zip(users, found, strict=True) if row is not None and row.features["edits"] == 0}
    assert 50 < len(lost) < 150
    assert done(deeds) == (len(lost), tuple(sorted(lost)), ())


@pytest.mark.usefixtures("server")
def test_a_fault_that_ended_becomes_another_that_knows_what_came_by(valkey_url: str, deeds: Deeds) -> None:
    fault, proxy, store = fault_at(valkey_url, Cause.NULL_ONLINE, deeds, ALL)
    with proxy:
        fault.begin()
        store.write(VIEW, rows(("ada", 1), ("bob", 1)))
        fault.end()
        store.write(VIEW, rows(("ada", 2), ("bob", 2)))
        assert done(deeds) == (2, ("ada", "bob"), ("edits", "name"))

        other = Deeds(deeds.path.with_name("other"))
        other.command("two", "lost_online_write")
        fault.aim(Cause.LOST_ONLINE_WRITE, Choice(1.0, entities=frozenset({"bob"})), other)
        fault.begin()
        store.write(VIEW, rows(("ada", 3), ("bob", 3)))

        found = store.read(VIEW, [("ada",), ("bob",)])
    assert [row and row.features["edits"] for row in found] == [3, 2]
    assert done(other) == (1, ("bob",), ())
    assert done(deeds)[0] == 2


def test_what_comes_by_a_proxy_is_counted(valkey_url: str) -> None:
    with Proxy(port_of(valkey_url)) as proxy, redis.Redis.from_url(proxy.url, protocol=2) as client:
        client.ping()
        before = proxy.passed
        client.echo("12345")

        assert Passed(1, 25, 11) == proxy.passed.since(before)


@pytest.mark.parametrize("choice", [Choice(0.5, 7, frozenset({"ada", "bob"})), Choice(1.0)])
def test_a_sink_is_what_it_was_ordered_to_be_until_the_order_is_gone(tmp_path: Path, choice: Choice) -> None:
    sink, deeds = Sink(Cause.LOST_OFFLINE_WRITE, Choice(0.0), Deeds(tmp_path), {}), Deeds(tmp_path / "deeds")

    obey(order(Cause.DUPLICATE_OFFLINE, choice, deeds), sink)

    assert (sink.begun, sink.cause, sink.choice) == (True, Cause.DUPLICATE_OFFLINE, choice)
    assert sink.deeds.path == deeds.path
    obey("", sink)
    assert not sink.begun


def committed(cause: Cause, deeds: Deeds) -> tuple[Ledger, int]:
    """Stage four rows of a part through a faulty sink; return the ledger, and how many rows are there."""
    store, sink = MemoryOfflineStore(), Sink(cause, ALL, deeds, {VIEW.name: VIEW}, begun=True)
    sink.choice = Choice(0.5, 1)
    store.prepare(VIEW.name, VIEW.row_schema)
    offline, ledger = FaultyOffline(store, sink), FaultyLedger(MemoryLedger(), sink)
    part = offline.stage(VIEW.name, rows(*((f"user {number}", number) for number in range(20))))
    assert part is not None
    assert done(deeds)[0] == 0
    ledger.write(Ledger(id="", shards_count=1, parts={VIEW.name: {part: 20}}, rows_counts={VIEW.name: 20}))
    store.publish({VIEW.name: [part]})
    told = ledger.read()
    assert told.parts[VIEW.name][part] == told.rows_counts[VIEW.name]
    return told, store.read(VIEW.name).num_rows


@pytest.mark.parametrize("cause", [Cause.LOST_OFFLINE_WRITE, Cause.DUPLICATE_OFFLINE])
def test_a_faulty_sink_stages_other_rows_and_its_ledger_counts_those(cause: Cause, deeds: Deeds) -> None:
    told, there = committed(cause, deeds)

    count = done(deeds)[0]
    assert 0 < count < 20
    assert there == (20 + count if cause is Cause.DUPLICATE_OFFLINE else 20 - count)
    assert told.rows_counts[VIEW.name] == there


def test_a_damaged_part_has_half_its_rows(deeds: Deeds, tmp_path: Path) -> None:
    store = OfflineStore(tmp_path / "offline")
    store.prepare(VIEW.name, VIEW.row_schema)
    fault = FileFault(Cause.PARTIAL_BATCH, ALL, deeds, store.root)
    store.append(VIEW.name, rows(("ada", 1), ("bob", 1)))
    fault.pass_over(VIEW)
    store.append(VIEW.name, rows(("ada", 2), ("bob", 2)))

    assert fault.strike(VIEW) == 1
    assert fault.strike(VIEW) == 0

    assert store.read(VIEW.name).num_rows == 3
    assert done(deeds)[0] == 1


def test_a_part_of_another_schema_is_a_drift(deeds: Deeds, tmp_path: Path) -> None:
    store = OfflineStore(tmp_path / "offline")
    store.prepare(VIEW.name, VIEW.row_schema)
    part = store.append(VIEW.name, rows(("ada", 1)))

    FileFault(Cause.SCHEMA_DRIFT, ALL, deeds, store.root).strike(VIEW)

    assert part is not None
    summary = store.summary(VIEW.name, part)
    assert summary is not None
    assert summary.schema.field("edits").type == pa.float64()
    assert done(deeds)[0] == 1


def test_an_account_is_plain_json(deeds: Deeds) -> None:
    account = deeds.account()

    assert account is not None
    assert json.loads(json.dumps(account.as_json()))["fault_id"] == "one"
