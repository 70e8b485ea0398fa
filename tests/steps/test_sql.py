"""Declared SQL at work: against plain DuckDB, against a slow window in Python, and against attacks."""

import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime
from stack import until

from freshet.flows.steps.sql import Finisher, Projector, compile_views, engine
from freshet.flows.steps.sql.engine import connected, deadline
from freshet.flows.steps.sql.functions import ALLOWED
from freshet.flows.steps.sql.rows import _Prepared
from freshet.schemas import declaration
from freshet.schemas.errors import Refused
from freshet.schemas.event import Contract, Event, Stream, contract
from freshet.schemas.plan import IN_CALENDAR, Aggregate, Pipeline, Range, ViewPlan

TIME = pa.timestamp("us", "UTC")


class Click(Event):
    stream = Stream(topic="clicks", key="user", event_time="time", lateness=timedelta(minutes=1))
    time: AwareDatetime
    user: str | None
    order: int
    text: str | None
    share: float | None
    isSeen: bool | None


def clicks() -> Contract:
    found, problems = contract("clicks", Click)
    assert found is not None, problems
    return found


def compiled(*features: tuple[str, str]) -> Pipeline:
    lines = ["servingRequirements: {}", "windows:", "  w: >-", f"    {WINDOW}", "featureDefinitions:"]
    for number, (dtype, text) in enumerate(features):
        lines += [f"- name: f{number}", f"  dtype: {dtype}", "  source: clicks", "  transformation: |-", f"    {text}"]
    return compile_views(declaration.read("\n".join(lines)), {"clicks": clicks()})


WINDOW = "PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '5 microseconds' PRECEDING AND CURRENT ROW"


def events(rows: Sequence[dict[str, Any]]) -> pa.Table:
    filled = [
        {"user": "u", "order": 0, "text": None, "share": None, "isSeen": None, "_partition": 0, "_offset": index}
        | {"at": index}
        | row
        for index, row in enumerate(rows)
    ]
    times = pa.array([row["at"] for row in filled], pa.int64()).cast(TIME)
    columns = {
        field.name: times
        if pa.types.is_timestamp(field.type)
        else pa.array([row[field.name] for row in filled], field.type)
        for field in clicks().schema
    }
    return pa.table(columns, schema=clicks().schema)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 20),
            "user": st.sampled_from(["a", "B", None]),
            "order": st.integers(-3, 3) | st.integers(-(2**62), 2**62),
            "text": st.none() | st.sampled_from(["1", "20", "x", "é", ""]),
            "share": st.none() | st.floats(-1e6, 1e6) | st.just(float("nan")),
            "isSeen": st.none() | st.booleans(),
            "_partition": st.integers(0, 1),
        }
    ),
    max_size=12,
)


# The row-level part

LEAVES = st.sampled_from(
    ["order", "length(text)", "7", "NULL", "CAST(isSeen AS INT)", "CAST(text AS INT)", "epoch_us(time)"]
)
NUMBERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "%", "//"]), inner).map(lambda three: f"({' '.join(three)})"),
        inner.map(lambda one: f"coalesce({one}, 0)"),
        inner.map(lambda one: f"-{one}"),
        st.tuples(inner, inner, inner).map(lambda three: "CASE WHEN {} > {} THEN {} END".format(*three)),
        inner.map(lambda one: f"list_sum([x + {one} for x in [1, 2] if x > 1])"),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, ROWS)
def test_row_level_expressions_equal_plain_duckdb_and_failing_events_are_found_exactly(
    text: str, rows: list[Any]
) -> None:
    try:
        [plan] = compiled(("float64", f"max(CAST({text} AS DOUBLE)) OVER w")).plans
    except Refused:
        return  # such as // of something that has no such operator
    table = events(rows)
    expected, failing = [], []
    with engine() as plain:
        for row in range(table.num_rows):
            plain.register("events", table.slice(row, 1))
            try:
                expected += plain.sql(f"SELECT CAST({text} AS DOUBLE) FROM events").fetchall()
            except duckdb.Error:
                failing.append(row)

    inputs, failures = Projector(plan, "clicks").project(table)

    assert failing == [failure.row for failure in failures]
    assert {"f0"} >= {failure.features for failure in failures}
    assert [value for (value,) in expected] == inputs.column("_a0").to_pylist()


def test_an_event_that_fails_is_named_with_its_feature_and_its_error_and_the_others_go_on() -> None:
    [plan] = compiled(("int64", "sum(CAST(text AS INT)) OVER w"), ("int64", "count(*) OVER w")).plans

    inputs, failures = Projector(plan, "clicks").project(events([{"text": "1"}, {"text": "x"}, {"text": "3"}]))

    error = "Could not convert string 'x' to INT32 when casting from source column text"
    assert [(1, "f0", error)] == failures
    assert inputs.column("_a0").to_pylist() == [1, 3]


def test_an_argument_is_not_computed_where_filter_drops_the_event() -> None:
    [plan] = compiled(("int64", "sum(CAST(text AS INT)) FILTER (WHERE text <> 'x') OVER w")).plans

    inputs, failures = Projector(plan, "clicks").project(events([{"text": "1"}, {"text": "x"}]))

    assert failures == []
    assert inputs.column("_a0").to_pylist() == [1, None]


# The split

FEATURES = [
    ("int64", "count(*) OVER w"),
    ("int64", "count(text) FILTER (WHERE isSeen) OVER w"),
    ("int64", 'sum("order") OVER w'),
    ("float64", "avg(share) OVER w / nullif(count(share) OVER w, 1)"),
    ("string", "max(text) OVER w || lower(user)"),
    ("bool", "min(isSeen) OVER w"),
    ("int32", 'CAST(sum("order") FILTER (WHERE NOT isSeen) OVER w AS INTEGER)'),
    ("string", "Text"),
    ("int64", "CAST(min(text) OVER w AS INT)"),
    ("float64", "share"),
    ("unix_timestamp", "max(time) OVER w"),
    ("array(float64)", "[share, sum(share) OVER w]"),
    ("int64", "sum(TRY_CAST(text AS INT)) FILTER (WHERE CAST(nullif(text, 'x') AS VARCHAR) <> 'é') OVER w"),
]  # fmt: skip


def windowed(plan: ViewPlan, inputs: pa.Table) -> pa.Table:
    """The windows, slowly: every frame of every row, folded over a list."""
    given = [row for row in inputs.to_pylist() if row["user"] is not None]
    last: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in sorted(given, key=lambda row: (row["event_timestamp"], row["_partition"], row["_offset"])):
        last[row["user"], row["event_timestamp"]] = row
    rows = []
    for (user, at), row in last.items():
        values = {}
        for index, aggregate in enumerate(plan.aggregates):
            assert isinstance(aggregate.frame, Range)
            reach = timedelta(microseconds=aggregate.frame.preceding_us or 0)
            frame = [one for one in given if one["user"] == user and at - reach <= one["event_timestamp"] <= at]
            values[f"_w{index}"] = fold(aggregate, frame)
        rows.append({**row, "created": at, "_version": len(values), **values})
    system = [("created", TIME), ("_version", pa.int64())]
    kinds = {"BIGINT": pa.int64(), "HUGEINT": pa.decimal128(38, 0), "DOUBLE": pa.float64(), "VARCHAR": pa.string()}
    kinds |= {"BOOLEAN": pa.bool_(), "TIMESTAMP WITH TIME ZONE": TIME}
    folds = [(f"_w{index}", kinds[aggregate.result_type]) for index, aggregate in enumerate(plan.aggregates)]
    kept = [field for field in plan.inputs if not field.name.startswith(("_a",))]
    return pa.Table.from_pylist(rows, schema=pa.schema([*kept, *system, *folds]))


def fold(aggregate: Aggregate, frame: list[dict[str, Any]]) -> Any:
    if aggregate.argument is None:
        return len(frame)
    values = [row[f"_a{aggregate.argument}"] for row in frame if row[f"_a{aggregate.argument}"] is not None]
    if aggregate.function == "count":
        return len(values)
    if not values:
        return None
    if aggregate.function in ("min", "max"):
        return {"min": min, "max": max}[aggregate.function](values)
    total = sum(values)
    if aggregate.function == "avg":
        return total / len(values)
    return Decimal(total) if aggregate.result_type == "HUGEINT" else float(total)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_inputs_then_windows_then_finish_equal_duckdbs_own_windows(rows: list[Any]) -> None:
    table = events(rows)
    inputs, failures = PROJECTOR.project(table)
    assert failures == []
    with engine() as plain:
        plain.register("events", table)
        without_ticks = {"until_us": -(2**62)}
        answer = plain.sql(str(PLAN.oracle), params=without_ticks).to_arrow_table()
    expected = answer.drop(["_version"]).to_pylist()

    finished = FINISHER.finish(windowed(PLAN, inputs))

    assert PLAN.view.row_schema == finished.schema
    names = ["user", "event_timestamp", *(feature.name for feature in PLAN.view.features)]
    assert by_key(expected) == by_key(finished.select(names).to_pylist())


def by_key(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    found = {(row["user"], row["event_timestamp"]): {name: close(value) for name, value in row.items()} for row in rows}
    assert len(found) == len(rows)
    return found


def close(value: Any) -> Any:
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, rel=1e-9, abs=1e-3) if isinstance(value, float) else value


[PLAN] = compiled(*FEATURES).plans
PROJECTOR, FINISHER = Projector(PLAN, "clicks"), Finisher(PLAN)


def test_what_fails_or_does_not_fit_is_null_nan_is_null_and_times_are_whole_seconds() -> None:
    table = events([{"text": "x", "share": float("nan"), "order": 2**40, "isSeen": False, "at": 1_500_000}])

    [row] = FINISHER.finish(windowed(PLAN, PROJECTOR.project(table)[0])).to_pylist()

    assert (row["f6"], row["f8"], row["f9"], row["f11"]) == (None, None, None, [None, None])
    assert (row["f10"].second, row["f10"].microsecond) == (1, 0)


@pytest.mark.parametrize("order", [1_772_366_400_000, -(10**11)])
def test_a_time_that_is_not_between_the_years_1_and_9999_is_null(order: int) -> None:
    time = 'to_timestamp(max("order") OVER w)'
    [plan] = compiled(("unix_timestamp", time), ("array(unix_timestamp)", f"[{time}]")).plans
    made = events([{"order": order, "at": 0}, {"order": 1_772_366_400, "at": 1_000_000}])

    rows = Finisher(plan).finish(windowed(plan, Projector(plan, "clicks").project(made)[0])).to_pylist()

    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert [(row["f0"], row["f1"]) for row in rows] == [(None, [None]), (noon, [noon])]


def test_the_digest_of_a_view_with_times_is_that_of_before_times_were_bounded() -> None:
    features = [("unix_timestamp", "max(time) OVER w"), ("array(unix_timestamp)", "[time]"), ("float64", "share")]
    [plan] = compiled(*features).plans

    assert IN_CALENDAR in str(plan.oracle)
    assert plan.digest == "4c6d2ba963d8b81e"


def test_features_share_inputs_aggregates_and_columns() -> None:
    text = "sum(share) OVER w"
    [plan] = compiled(("float64", text), ("float64", f"{text} + avg(share) OVER W + share + SHARE")).plans

    assert tuple(aggregate.function for aggregate in plan.aggregates) == ("sum", "avg")
    assert tuple(plan.inputs.names[-2:]) == ("_a0", "_p0")
    assert plan.argument_features == ("f0, f1", "f1")


def test_an_event_that_a_definition_without_window_fails_on_is_that_event_s_reject() -> None:
    [plan] = compiled(("int64", "CAST(text AS BIGINT)"), ("int64", "count(*) OVER w")).plans

    inputs, failures = Projector(plan, "clicks").project(events([{"text": "1"}, {"text": "one"}, {"text": None}]))

    assert inputs.num_rows == 2
    assert [(failure.row, failure.features) for failure in failures] == [(1, "f0")]
    assert "one" in failures[0].error


def test_the_reach_is_the_longest_frame_unless_a_row_depends_on_more() -> None:
    longer = "count(*) OVER (PARTITION BY user ORDER BY time RANGE INTERVAL 1 DAY PRECEDING)"

    assert [plan.reach_us for plan in compiled(("int64", "count(*) OVER w"), ("int64", longer)).plans] == [
        86_400_000_000
    ]
    assert [plan.reach_us for plan in compiled(("int64", "count(*) OVER w"), ("string", "text")).plans] == [None]
    assert [plan.reach_us for plan in compiled(("int64", 'count(*) OVER w + "order"')).plans] == [None]
    assert [plan.reach_us for plan in compiled(("int64", "1")).plans] == [None]


def test_a_view_is_named_after_its_source_and_entity() -> None:
    by_two = "count(*) OVER (PARTITION BY ORDERER, user ORDER BY time RANGE INTERVAL 1 DAY PRECEDING)"
    pipeline = compiled(("string", "text"), ("int64", by_two.replace("ORDERER", '"Order"')))

    assert [view.name for view in pipeline.views] == ["clicks_by_user", "clicks_by_order_user"]
    assert pipeline.plan("clicks_by_order_user").view.entity_names == ("order", "user")


# The locked engine

ATTACKS = [
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('https://127.0.0.1:1/x.parquet')",
    "SELECT getenv('HOME')",
    "COPY (SELECT 1) TO '/tmp/freshet-attack.csv'",
    "ATTACH '/tmp/freshet-attack.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "EXPORT DATABASE '/tmp/freshet-attack'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "PRAGMA threads = 8",
    "SELECT * FROM secret",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_locked_engine_reaches_nothing_outside_itself(attack: str) -> None:
    secret = pa.table({"a": [1]})  # a Python variable is not a table

    with engine() as connection, connected(connection) as beside:
        for one in (connection, beside):
            with pytest.raises(duckdb.Error):
                one.execute(attack).fetchall()
    assert secret.num_rows == 1
    assert not [name for name in os.listdir("/tmp") if name.startswith("freshet-attack")]  # noqa: PTH208


def test_a_connection_beside_another_has_its_settings_and_sees_nothing_that_it_was_given() -> None:
    names = (
        "TimeZone",
        "errors_as_json",
        "threads",
        "python_enable_replacements",
        "lock_configuration",
        "memory_limit",
    )
    settings = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)

    with engine() as connection, connected(connection) as beside:
        connection.register("events", pa.table({"a": [1]}))
        connection.execute("PREPARE one AS SELECT 1")

        assert beside.execute(settings).fetchone() == connection.execute(settings).fetchone()
        for statement in ("SELECT a FROM events", "EXECUTE one"):
            with pytest.raises(duckdb.Error):
                beside.execute(statement)
        beside.register("events", pa.table({"a": [2]}))
        assert [one.execute("SELECT a FROM events").fetchall() for one in (connection, beside)] == [[(1,)], [(2,)]]


@pytest.mark.parametrize(
    "text",
    [
        "now()", "current_timestamp", "current_date", "today()", "random()", "uuid()", "gen_random_uuid()",
        "sleep_ms(1)",
        "current_setting('threads')", "getenv('HOME')", "getvariable('x')", "nextval('s')", "current_user", "version()",
        "query('SELECT 1')", "read_csv('/etc/passwd')", "glob('*')", "range(1000000000)", "repeat('x', 1000000000)",
        "generate_series(1, 9)", "unnest([1])", "error('x')", "write_log('x')", "json_serialize_sql('SELECT 1')",
        "hash(1)",
        "list_aggregate([1], 'approx_count_distinct')", "age(time)", "lpad(text, 1000000000, 'x')", "main.now()",
        "[now() for x in [1]]", "CASE WHEN true THEN random() END", "count(random()) OVER w",
        "count(*) FILTER (WHERE random() > 0.5) OVER w", "(FROM query('SELECT 1'))", "EXISTS(FROM '/etc/passwd')",
        "CAST(text AS ENUM(SELECT 'a'))",
    ],
)  # fmt: skip
def test_what_is_not_pure_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(Refused) as refused:
        compiled(("string", text))

    assert not [problem for problem in refused.value.problems if "another type" in problem.fact]


def test_every_allowed_function_is_one_that_duckdb_calls_consistent() -> None:
    with engine() as connection:
        found = connection.sql("SELECT function_name, stability FROM duckdb_functions()").fetchall()
    known = {name for name, _ in found}
    changing = {name for name, stability in found if stability not in ("CONSISTENT", None)}

    assert set() == ALLOWED & changing
    assert {"ifnull", "coalesce", "->"} >= ALLOWED - known  # DuckDB's grammar has these


def test_a_query_that_takes_too_long_is_interrupted_and_the_connection_goes_on() -> None:
    long = "SELECT sum(sin(a.range) * cos(b.range)) FROM range(100000000) a, range(100000) b"

    with engine() as connection:
        with pytest.raises(duckdb.InterruptException), deadline(connection, 0.2):
            connection.sql(long).fetchall()

        assert connection.sql("SELECT 1").fetchall() == [(1,)]
        until(lambda: all(thread.name != "sql-deadlines" for thread in threading.enumerate()))  # nothing has one now
        with pytest.raises(duckdb.InterruptException), deadline(connection, 0.2):
            connection.sql(long).fetchall()


def test_a_batch_that_takes_too_long_is_interrupted_and_the_next_one_is_not() -> None:
    numbers = pa.table({"number": range(100_000)})
    sql = "SELECT sum(sin(a.number) * cos(b.number)) AS total FROM numbers a, numbers b, numbers c"

    with engine() as connection:
        prepared = _Prepared(connection, "numbers", sql, 0.2)  # no view may ask for so much
        with pytest.raises(duckdb.InterruptException):
            prepared.run(numbers)

        assert prepared.run(numbers[:1]).to_pylist() == [{"total": 0.0}]
