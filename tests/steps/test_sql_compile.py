"""What each form of the language compiles to: its frame, what its windows are given, and what comes of it."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.sql import Finisher, Projector, compile_views, engine
from freshet.flows.steps.sql.rows import Arguments
from freshet.schemas import declaration
from freshet.schemas.errors import Refused
from freshet.schemas.event import Contract, Event, Stream, contract
from freshet.schemas.plan import Exclude, Lag, Range, Rows, ViewPlan

SECOND, HOUR, DAY = 10**6, 3600 * 10**6, 86_400 * 10**6


class Click(Event):
    stream = Stream(topic="clicks", key="user", event_time="time")
    time: AwareDatetime
    user: str
    page: str | None
    price: int | None
    share: float | None
    seen: bool | None
    amount: Decimal | None


class Buy(Event):
    stream = Stream(topic="buys", key="user", event_time="paid_at", event_id="number")
    paid_at: AwareDatetime
    user: str
    number: int
    price: int | None


class Like(Event):
    stream = Stream(topic="likes", key="user", event_time="time", event_id="uid")
    time: AwareDatetime
    user: str
    uid: str


class Wrong(Event):
    stream = Stream(topic="wrong", key="user", event_time="time")
    time: AwareDatetime
    user: str
    price: float


def contracts() -> dict[str, Contract]:
    models: dict[str, type[Event]] = {"clicks": Click, "buys": Buy, "likes": Like, "wrong": Wrong}
    return {name: made for name, model in models.items() for made in [contract(name, model)[0]] if made is not None}


def plan(
    sql: str, dtype: str = "int64", target: str = "2s", more: dict[str, Any] | None = None, **keys: Any
) -> ViewPlan:
    definition = {"name": "f", "dtype": dtype, "source": "clicks", "transformation": sql} | keys
    document = {"featureDefinitions": [definition], "servingRequirements": {"freshnessTarget": target}} | (more or {})
    [made] = compile_views(declaration.read(json.dumps(document)), contracts()).plans
    return made


def events(stream: str, *rows: dict[str, Any]) -> pa.Table:
    schema = contracts()[stream].schema
    at = datetime(2026, 3, 1, tzinfo=UTC)
    times = {field.name: at for field in schema if pa.types.is_timestamp(field.type)}
    given = {"user": "u", "number": 1, "uid": "a", "_partition": 0} | times
    filled = [given | {"_offset": place} | row for place, row in enumerate(rows)]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in filled], schema=schema)


# Frames

OVER = "PARTITION BY user ORDER BY event_timestamp"
FRAMES = [
    ("", Range(None)),
    ("RANGE UNBOUNDED PRECEDING", Range(None)),
    ("RANGE INTERVAL 1 HOUR PRECEDING", Range(HOUR, decay_us=36 * SECOND)),
    ("RANGE INTERVAL 10 SECONDS PRECEDING", Range(10 * SECOND, decay_us=2 * SECOND)),
    (
        "RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND INTERVAL 1 HOUR PRECEDING EXCLUDE TIES",
        Range(DAY, HOUR, exclude=Exclude.TIES, decay_us=864 * SECOND),
    ),
    ("RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND INTERVAL 0 HOURS PRECEDING", Range(HOUR, decay_us=36 * SECOND)),
    ("RANGE BETWEEN UNBOUNDED PRECEDING AND INTERVAL 1 HOUR PRECEDING", Range(None, HOUR, decay_us=36 * SECOND)),
    ("RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP", Range(None, exclude=Exclude.GROUP)),
    ("ROWS 5 PRECEDING", Rows(5)),
    ("ROWS 10000 PRECEDING", Rows(10_000)),
    ("ROWS UNBOUNDED PRECEDING", Rows(None)),
    ("ROWS BETWEEN 9 PRECEDING AND 2 PRECEDING", Rows(9, 2)),
    ("ROWS BETWEEN 2 + 3 PRECEDING AND CURRENT ROW EXCLUDE CURRENT ROW", Rows(5, 0, Exclude.CURRENT_ROW)),
]


@pytest.mark.parametrize(("words", "frame"), FRAMES, ids=[words for words, _ in FRAMES])
def test_a_frame_is_what_sql_says_it_is_and_decays_in_a_hundred_steps(words: str, frame: Range | Rows) -> None:
    [made] = plan(f"count(*) OVER ({OVER} {words})").aggregates

    assert made.frame == frame


BUCKETS = [
    "INTERVAL 1 HOUR, event_timestamp",
    "INTERVAL 7 DAYS, time",
    "INTERVAL '7 hours', time",
    "INTERVAL '1 day', time, INTERVAL '5 hours'",
    "INTERVAL '11 minutes', time, INTERVAL '-1 second'",
    "INTERVAL '7 hours', time, TIMESTAMPTZ '2026-02-28 23:59:59.5+00'",
    "INTERVAL '90 seconds', time, TIMESTAMP '1900-01-01 00:00:01'",
]


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_tumbling_window_begins_where_duckdbs_time_bucket_does(bucket: str) -> None:
    made = plan(f"count(*) OVER (PARTITION BY time_bucket({bucket}), user ORDER BY time)")
    [frame] = made.ranges
    instants = [-7 * DAY - 1, 0, 1_772_323_199_500_000, 1_772_323_199_499_999, 1_772_366_403_123_456]
    text = bucket.replace("event_timestamp", "time")
    with engine() as duckdb:
        rows = [
            duckdb.sql(f"SELECT epoch_us(time_bucket({text})) FROM (SELECT make_timestamp({at})::TIMESTAMPTZ AS time)")
            for at in instants
        ]
        starts = [row.fetchall()[0][0] for row in rows]

    assert (frame.preceding_us, frame.ending_us, frame.decay_us) == (0, 0, 1)
    assert starts == [at - (at - frame.origin_us) % frame.resolution_us for at in instants]
    assert made.view.entity_names == ("user",)


def test_a_resolution_is_taken_by_windows_of_a_duration_and_by_no_other() -> None:
    windows = ["RANGE INTERVAL 1 HOUR PRECEDING", "ROWS 5 PRECEDING", ""]
    made = plan(" + ".join(f"count(*) OVER ({OVER} {frame})" for frame in windows), resolution="5 minutes")

    assert [one.frame for one in made.aggregates] == [
        Range(HOUR, resolution_us=300 * SECOND, decay_us=1),
        Rows(5),
        Range(None),
    ]


VIEWS = {"views": {"clicks_by_user": {"decay": "7 minutes"}}}
DECAYS = [
    ({}, 36 * SECOND),
    ({"target": "2 minutes"}, 120 * SECOND),
    ({"more": VIEWS}, 420 * SECOND),
    ({"more": VIEWS, "decay": "30s"}, 30 * SECOND),
    ({"more": VIEWS, "decay": "off"}, None),
    ({"more": {"views": {"clicks_by_user": {"decay": "off"}}}}, None),
    ({"decay": "30s", "resolution": "5 minutes"}, 30 * SECOND),
]


@pytest.mark.parametrize(("keys", "decay_us"), DECAYS, ids=[str(keys) for keys, _ in DECAYS])
def test_decay_is_the_definitions_own_else_its_views_else_the_windows(
    keys: dict[str, Any], decay_us: int | None
) -> None:
    [frame] = plan(f"count(*) OVER ({OVER} RANGE INTERVAL 1 HOUR PRECEDING)", **keys).ranges

    assert frame.decay_us == decay_us


def test_over_gives_each_duration_to_the_windows_that_have_no_frame() -> None:
    made = plan(f"count(*) OVER ({OVER}) - count(*) OVER ({OVER} ROWS 3 PRECEDING)", over=["1h", "2 days"], decay="off")

    assert [feature.name for feature in made.view.features] == ["f_1h", "f_2d"]
    assert [one.frame for one in made.aggregates] == [Range(HOUR), Rows(3), Range(2 * DAY)]


def test_what_is_expected_reaches_every_feature_of_over_and_changes_nothing_that_is_computed() -> None:
    def compiled(**more: Any) -> ViewPlan:
        made = {"name": "n", "dtype": "int64", "source": "clicks", "over": ["1h", "1d"], **more}
        made["transformation"] = "count(*) OVER (PARTITION BY user ORDER BY event_timestamp)"
        text = json.dumps({"servingRequirements": {}, "featureDefinitions": [made]})
        return compile_views(declaration.read(text), contracts()).plans[0]

    expected = compiled(expect={"min": 0, "nulls": 0})

    assert [(0, 0.0), (0, 0.0)] == [(one.expected.minimum, one.expected.nulls) for one in expected.view.features]
    assert str(expected.oracle) == str(compiled().oracle)


def test_the_judge_counts_without_filter_which_duckdb_counts_row_by_row_of_each_frame() -> None:
    hour = f"({OVER} RANGE INTERVAL 1 HOUR PRECEDING)"

    for sql in ("count(*) OVER", "count(price) OVER", "count(*) FILTER (WHERE price > 1) OVER"):
        assert "FILTER" not in plan(f"{sql} {hour}").oracle.windowed


def test_a_tick_s_cause_lies_up_to_an_interval_before_its_reach() -> None:
    hour = f"({OVER} RANGE INTERVAL 1 HOUR PRECEDING)"

    assert plan(f"count(*) OVER {hour}", decay="1m").lookback_us == HOUR + 60 * SECOND
    assert plan(f"count(*) OVER {hour}", decay="off").lookback_us == HOUR
    assert plan(f"first_value(price) OVER {hour}").lookback_us is None


def test_reach_is_the_longest_frame_unless_something_depends_on_all_of_the_past() -> None:
    hour = f"({OVER} RANGE INTERVAL 1 HOUR PRECEDING)"

    assert plan(f"count(*) OVER {hour}").reach_us == HOUR
    assert plan(f"count(*) OVER {hour}", resolution="5m").reach_us == HOUR + 300 * SECOND - 1
    for sql in ("first_value(price) OVER", "price + count(*) OVER", "lag(price) OVER"):
        assert plan(f"{sql} {hour}").reach_us is None
    for frame in ("", "ROWS 3 PRECEDING"):
        assert plan(f"count(*) OVER ({OVER} {frame})").reach_us is None


# Functions

ROW = {"page": "p", "price": 3, "share": -0.0, "seen": True, "amount": Decimal("1.5")}
FUNCTIONS = [
    ("count(price)", "int64", "count", None, [True, None]),
    ("count(price) FILTER (WHERE seen)", "int64", "count", None, [True, None]),
    ("sum(price)", "int64", "sum", None, [3, None]),
    ("mean(amount)", "float64", "avg", None, [Decimal("1.500000000"), None]),
    ("min(page) FILTER (WHERE NOT seen)", "string", "min", None, [None, None]),
    ("bool_and(seen)", "bool", "min", None, [True, None]),
    ("bool_or(seen)", "bool", "max", None, [True, None]),
    ("stddev(price)", "float64", "stddev_samp", None, [3.0, None]),
    ("variance(amount)", "float64", "var_samp", None, [1.5, None]),
    ("var_pop(share)", "float64", "var_pop", None, [-0.0, None]),
    ("stddev_pop(share)", "float64", "stddev_pop", None, [-0.0, None]),
    ("count(DISTINCT page)", "int64", "count_distinct", None, ["p", None]),
    ("median(price)", "float64", "quantile_cont", Fraction(1, 2), [3.0, None]),
    ("quantile_cont(price, 0.95)", "float64", "quantile_cont", Fraction(19, 20), [3.0, None]),
    ("quantile(page, 0.1)", "string", "quantile_disc", Fraction(1, 10), ["p", None]),
    ("mode(page)", "string", "mode", None, ["p", None]),
    ("first(price)", "int64", "first_value", None, [{"v": 3}, {"v": None}]),
    ("last_value(price IGNORE NULLS)", "int64", "last_value", None, [{"v": 3}, None]),
    ("min_by(page, price)", "string", "arg_min", None, [{"v": "p", "k": 3}, None]),
    ("argmax(page, price) FILTER (WHERE seen)", "string", "arg_max", None, [{"v": "p", "k": 3}, None]),
    ("approx_quantile(share, 0.5)", "float64", "approx_quantile", Fraction(1, 2), [-0.0, None]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "dtype", "function", "parameter", "values"), FUNCTIONS, ids=[call for call, *_ in FUNCTIONS]
)
def test_a_function_is_given_what_it_folds_and_null_where_it_skips_an_event(
    call: str, dtype: str, function: str, parameter: Fraction | None, values: list[Any]
) -> None:
    made = plan(f"{call} OVER ({OVER} RANGE INTERVAL 1 HOUR PRECEDING)", dtype)
    [aggregate] = made.aggregates

    inputs, failures = Projector(made, "clicks").project(events("clicks", ROW, {"seen": None}))

    assert (aggregate.function, aggregate.parameter, failures) == (function, parameter, [])
    assert inputs.column("_a0").to_pylist() == values


def test_count_of_all_needs_no_argument_and_a_list_keeps_nulls() -> None:
    rows = f"({OVER} ROWS 2 PRECEDING)"
    made = plan(f"list_append(list(price) OVER {rows}, count(*) OVER {rows})", "array(int64)")

    assert [(one.function, one.argument) for one in made.aggregates] == [("list", 0), ("count", None)]
    assert Projector(made, "clicks").project(events("clicks", {"price": None}))[0].column("_a0").to_pylist() == [
        {"v": None}
    ]


def test_distinct_values_are_told_by_their_digests_and_both_zeros_are_one() -> None:
    made = plan(f"approx_count_distinct(share) OVER ({OVER})")

    inputs, _ = Projector(made, "clicks").project(events("clicks", {"share": -0.0}, {"share": 0.0}, {"share": None}))

    first, second, none = inputs.column("_a0").to_pylist()
    assert (first, none) == (second, None)
    assert inputs.schema.field("_a0").type == pa.uint64()


def test_an_argument_is_not_computed_where_filter_drops_the_event_also_where_null_is_asked_for() -> None:
    made = plan(f"count(CAST(page AS INT)) FILTER (WHERE page <> 'x') OVER ({OVER})")

    inputs, failures = Projector(made, "clicks").project(events("clicks", {"page": "1"}, {"page": "x"}, {}))

    assert failures == []
    assert inputs.column("_a0").to_pylist() == [True, None, None]


def finished(made: ViewPlan, **columns: tuple[pa.DataType, list[Any]]) -> list[Any]:
    """The feature, from window values and the payload."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    count = len(next(iter(columns.values()))[1])
    own: dict[str, Any] = {
        "user": "u",
        "event_timestamp": at,
        "created": at,
        "_version": 1,
        "_partition": 0,
        "_offset": 0,
    }
    schema = made.view.row_schema
    arrays = {name: pa.array([value] * count, schema.field(name).type) for name, value in own.items()}
    arrays |= {name: pa.array(values, kind) for name, (kind, values) in columns.items()}
    rows: list[Any] = Finisher(made).finish(pa.table(arrays)).column("f").to_pylist()
    return rows


def test_lag_is_the_first_of_one_row_and_its_default_is_for_events_that_are_not_there() -> None:
    made = plan(f"lag(price, 2, -price) OVER ({OVER})")

    assert [(one.function, one.argument, one.frame) for one in made.aggregates] == [
        ("first_value", 0, Rows(2, 2)),
        ("count", None, Rows(2, 2)),
    ]
    whole = pa.int64()
    assert [8, None, -5] == finished(made, _w0=(whole, [8, None, None]), _w1=(whole, [1, 1, 0]), _p0=(whole, [5, 5, 5]))


# Columns


def test_a_row_level_column_is_put_in_the_place_of_its_name() -> None:
    columns = {"columns": {"double": "price * 2", "more": "double + 1"}}
    made = plan(f"sum(More) OVER ({OVER})", more=columns)

    assert made.lags == ()
    assert Projector(made, "clicks").project(events("clicks", ROW))[0].column("_a0").to_pylist() == [7]


def test_a_column_with_lag_gives_windows_the_values_of_earlier_events() -> None:
    windows = {"w": OVER}
    columns = {"rise": "price - lag(price) OVER w", "before": "lag(share, 2, 0.5) OVER w"}
    more = {"columns": columns, "windows": windows}
    made = plan("sum(rise) FILTER (WHERE rise > 0) OVER w + count(before) OVER w + count(*) OVER w", more=more)

    inputs, _ = Projector(made, "clicks").project(events("clicks", ROW))
    raw = {name: inputs.column(name).to_pylist() for name in inputs.column_names if name.startswith("_r")}
    assert {lag.rows: (raw[lag.column], lag.default and raw[lag.default]) for lag in made.lags} == {
        1: ([3], None),
        2: ([-0.0], [0.5]),
    }
    assert [field.name for field in made.arguments] == ["_a0", "_a1"]
    assert not {"_a0", "_a1"} & {*inputs.column_names}
    assert made.reach_us is None


def test_arguments_of_earlier_events_values_are_computed_and_what_fails_is_null() -> None:
    columns = {"columns": {"number": f"CAST(lag(page) OVER ({OVER}) AS INT) + price"}}
    made = plan(f"sum(number) OVER ({OVER})", more=columns)
    [lag] = made.lags
    other = next(f"_r{place}" for place in range(2) if f"_r{place}" != lag.column)
    page, price = pa.array(["7", "x", None]), pa.array([1, 1, 1], pa.int64())
    lagged = pa.table({lag.column: page, other: price, "_l0": page})

    assert made.lags == (Lag(lag.column, 1),)
    assert Arguments(made).compute(lagged).column("_a0").to_pylist() == [8, None, None]


def test_a_column_with_lag_outside_of_windows_is_the_lag_itself() -> None:
    columns = {"columns": {"rise": f"price - lag(price) OVER ({OVER})"}}
    made = plan("rise", more=columns)

    assert made.lags == ()
    assert [(one.function, one.frame) for one in made.aggregates] == [("first_value", Rows(1, 1))]
    assert made.payload == ("_p0",)


# Streams


def test_several_streams_are_one_view_in_which_each_has_its_own_inputs() -> None:
    sources = ["clicks", "buys", "likes"]
    made = plan(f"sum(price) OVER ({OVER}) + count(page) OVER ({OVER})", source=sources)
    tables = {
        "clicks": events("clicks", ROW),
        "buys": events("buys", {"price": 5, "number": 7, "_partition": 2}),
        "likes": events("likes", {"uid": "b", "_partition": 1}),
    }

    inputs = {name: Projector(made, name).project(table)[0] for name, table in tables.items()}

    assert (made.view.name, made.view.sources) == ("clicks_buys_likes_by_user", tuple(sources))
    assert [table.schema for table in inputs.values()] == [made.inputs] * 3
    assert [inputs[name].select(["_partition", "_id", "_a0", "_a1"]).to_pylist()[0] for name in sources] == [
        {"_partition": 0, "_id": None, "_a0": 3, "_a1": True},
        {"_partition": (1 << 20) + 2, "_id": "7", "_a0": 5, "_a1": None},
        {"_partition": (2 << 20) + 1, "_id": "b", "_a0": None, "_a1": None},
    ]


def test_ids_of_one_type_keep_it_and_a_stream_without_any_has_none() -> None:
    sql = f"count(*) OVER ({OVER})"

    assert plan(sql, source=["clicks", "buys"]).inputs.field("_id").type == pa.int64()
    assert plan(sql, source="buys").inputs.field("_id").type == pa.int64()
    assert "_id" not in plan(sql).inputs.names


def test_streams_whose_fields_differ_in_type_are_refused_with_both() -> None:
    with pytest.raises(Refused) as refused:
        plan(f"count(*) OVER ({OVER})", source=["clicks", "wrong"])

    assert [str(problem) for problem in refused.value.problems] == [
        (
            'features.yaml:1: feature "f" joins streams whose price differs in type; got int64 in clicks and double in wrong. '
            "Hint: rename one, or give both one type"
        )
    ]
