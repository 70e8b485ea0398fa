"""The law: whatever is declared and whatever comes, in whatever order, the final rows are what DuckDB says.

Declarations and events are generated. The events are cut into batches, spread over partitions and shards, interleaved
with pauses, snapshots, crashes and forgetting; the steps are the very ones that production runs. FRESHET_SOAK=N tries N
times 500 examples.
"""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from compacting import compact_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime
from pydantic_core import to_json

from freshet.flows.testing import Given, Run, microseconds, poll
from freshet.schemas.event import EVENT_TIME, Event, Stream
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason
from freshet.schemas.view import CREATED, VERSION

pytestmark = pytest.mark.timeout(3_000)  # hundreds of examples, each of several runs

SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


# Streams


class Reading(Event):
    at: AwareDatetime
    id: str | None = None
    device: str = "a"
    site: str | None = None
    room: int | None = None
    n: int | None = None
    x: float | None = None
    word: str | None = None
    flag: bool | None = None
    price: Decimal | None = None


class Alarm(Event):
    at: AwareDatetime
    id: str | None = None
    device: str = "a"
    n: int | None = None
    word: str | None = None
    level: int | None = None


def streams(lateness_us: int, *event_ids: str | None) -> dict[str, type[Event]]:
    """The two streams, as lenient as one example wants them, each with its event id or without."""

    def made(name: str, model: type[Event], event_id: str | None) -> type[Event]:
        promises = Stream(name, "device", "at", event_id, lateness=timedelta(microseconds=lateness_us))
        return type(model.__name__, (model,), {"__module__": __name__, "stream": promises})

    readings_id, alarms_id = event_ids
    return {"readings": made("readings", Reading, readings_id), "alarms": made("alarms", Alarm, alarms_id)}


def instant(at_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_us)


# Declarations


@dataclass(frozen=True)
class Window:
    """What stands after OVER; `kind` says which aggregates can be kept over it."""

    sql: str
    kind: str


class Aggregate(NamedTuple):
    """An aggregate, the dtype of a feature of it, and the kinds of windows that keep it. `@` is where FILTER may go."""

    sql: str
    dtype: str
    kinds: tuple[str, ...]


ANY = ("sliding", "lifetime", "rows", "all rows", "tumbling")
EXACT = ("sliding", "rows", "tumbling")
"""Where every value can be kept; there a sliding window must be without a resolution."""
WHOLE = (("count(*)@", "int64"), ("count(n)@", "int64"), ("sum(n)@", "int64"), ("max(n)@", "int64"))
AGGREGATES = (
    *(Aggregate(sql, dtype, ANY) for sql, dtype in WHOLE),
    Aggregate("sum(x)@", "float64", ANY),
    Aggregate("avg(x)@", "float64", ANY),
    Aggregate("min(x)@", "float64", ANY),
    Aggregate("max(x * 2)@", "float64", ANY),
    Aggregate("sum(price)@", "float64", ANY),
    Aggregate("avg(n)@", "float64", ANY),
    Aggregate("sum(n + coalesce(length(word), 0))@", "int64", ANY),
    Aggregate("min(word)@", "string", ANY),
    Aggregate("max(upper(word))@", "string", ANY),
    Aggregate("count(CASE WHEN flag THEN n END)@", "int64", ANY),
    Aggregate("stddev_samp(n)@", "float64", ANY),
    Aggregate("stddev_pop(x)@", "float64", ANY),
    Aggregate("var_samp(x)@", "float64", ANY),
    Aggregate("var_pop(n)@", "float64", ANY),
    Aggregate("bool_and(flag)@", "bool", ANY),
    Aggregate("bool_or(flag)@", "bool", ANY),
    Aggregate("first_value(word)", "string", ANY),
    Aggregate("last_value(n)", "int64", ANY),
    Aggregate("first_value(x IGNORE NULLS)", "float64", ANY),
    Aggregate("last_value(word IGNORE NULLS)", "string", ANY),
    Aggregate("arg_min(word, n)@", "string", ANY),
    Aggregate("arg_max(n, x)@", "int64", ANY),
    Aggregate("approx_count_distinct(word)@", "int64", ANY),
    Aggregate("approx_quantile(x, 0.5)@", "float64", ANY),
    Aggregate("max(CAST(n AS TINYINT))@", "int64", ANY),
    Aggregate("sum(gap)@", "int64", ANY),
    Aggregate("min(before)@", "string", ANY),
    Aggregate("max(size) FILTER (WHERE gap > 0)", "int64", ANY),
    Aggregate("count(DISTINCT n)@", "int64", EXACT),
    Aggregate("count(DISTINCT x)@", "int64", EXACT),
    Aggregate("count(DISTINCT word)@", "int64", EXACT),
    Aggregate("median(n)@", "float64", EXACT),
    Aggregate("median(x)@", "float64", EXACT),
    Aggregate("quantile_cont(x, 0.25)@", "float64", EXACT),
    Aggregate("quantile_disc(word, 0.75)@", "string", EXACT),
    Aggregate("quantile_disc(n, 0.1)@", "int64", EXACT),
    Aggregate("mode(n)@", "int64", EXACT),
    Aggregate("mode(word)@", "string", EXACT),
    Aggregate("mode(x)@", "float64", EXACT),
    Aggregate("list(n)@", "array(int64)", ("rows",)),
    Aggregate("array_agg(word)@", "array(string)", ("rows",)),
)
LAGS = (
    ("lag(n)", "int64"),
    ("lag(word, 2)", "string"),
    ("lag(n, 1, 0)", "int64"),
    ("lag(x, 3)", "float64"),
)
FILTERS = st.sampled_from(["", "", " FILTER (WHERE flag)", " FILTER (WHERE n > 0)", " FILTER (WHERE word IS NOT NULL)"])
ENTITIES = ("device", "device", "site", "room", "device, site", "room, device")
EXCLUDES = ("", "", "", " EXCLUDE CURRENT ROW", " EXCLUDE TIES", " EXCLUDE GROUP")


def span(length_us: int) -> str:
    return f"INTERVAL '{length_us} microseconds'"


@st.composite
def windows(draw: st.DrawFn, entity: str, scale: int) -> Window:
    over, length = f"PARTITION BY {entity} ORDER BY event_timestamp", draw(st.integers(1, 12)) * scale
    kind = draw(st.sampled_from(["sliding", "sliding", "sliding", "lifetime", "rows", "all rows", "tumbling"]))
    if kind == "tumbling":
        places = ("", f", {span(3 * scale)}", ", TIMESTAMPTZ '2000-01-01 00:00:00.000001+00'")
        bucket = f"time_bucket({span(length)}, event_timestamp{draw(st.sampled_from(places))})"
        return Window(f"(PARTITION BY {entity}, {bucket} ORDER BY event_timestamp)", kind)
    if kind == "lifetime" and draw(st.booleans()):
        return Window(f"({over})", kind)
    if kind in ("sliding", "lifetime"):
        start = span(length) if kind == "sliding" else "UNBOUNDED"
        ends = ["CURRENT ROW", "CURRENT ROW", f"{span(draw(st.integers(1, max(1, length // 2))))} PRECEDING"]
        frame = f"RANGE BETWEEN {start} PRECEDING AND {draw(st.sampled_from(ends))}"
    else:
        count = draw(st.integers(1, 5))
        start = str(count) if kind == "rows" else "UNBOUNDED"
        ends = ["CURRENT ROW", "CURRENT ROW", f"{draw(st.integers(1, count))} PRECEDING"]
        frame = f"ROWS BETWEEN {start} PRECEDING AND {draw(st.sampled_from(ends))}"
    return Window(f"({over} {frame}{draw(st.sampled_from(EXCLUDES))})", kind)


@st.composite
def definitions(draw: st.DrawFn, name: str, entity: str, sources: Sequence[str], scale: int) -> dict[str, Any]:
    """One feature: a window, or windows with expressions around them, or none."""
    window = draw(windows(entity, scale))
    made: dict[str, Any] = {"name": name, "source": list(sources) if len(sources) > 1 else sources[0]}
    shape = draw(st.sampled_from(["plain"] * 7 + ["over", "sum", "ratio", "root", "case", "lag", "row"]))
    if shape == "over":
        window = Window(f"(PARTITION BY {entity} ORDER BY event_timestamp)", "sliding")
        made["over"] = [f"{width * scale}us" for width in draw(st.permutations([1, 4, 7, 12]))[:2]]
    one = draw(st.sampled_from([made for made in AGGREGATES if window.kind in made.kinds]))
    sums = [f"{draw(st.sampled_from(WHOLE))[0]} OVER {window.sql}".replace("@", draw(FILTERS)) for _ in "ab"]
    if shape in ("plain", "over"):
        sql, dtype = f"{one.sql.replace('@', draw(FILTERS))} OVER {window.sql}", one.dtype
    elif shape == "sum":
        sql, dtype = f"coalesce({sums[0]}, 0) + coalesce({sums[1]}, 0) * coalesce(n % 7, 2)", "int64"
    elif shape == "ratio":
        sql, dtype = f"{sums[0]} / nullif({sums[1]}, 0)", "float64"
    elif shape == "root":
        sql, dtype = f"sqrt({sums[0]} - n)", "float64"
    elif shape == "case":
        sql, dtype = f"CASE WHEN {sums[0]} > 1 THEN word ELSE 'few' END", "string"
    elif shape == "lag" or entity != "device":
        lagged, dtype = draw(st.sampled_from(LAGS))
        sql = f"{lagged} OVER (PARTITION BY {entity} ORDER BY event_timestamp)"
    else:
        sql, dtype = draw(st.sampled_from([("lower(word)", "string"), ("n + 1", "int64"), ("x", "float64")]))
    if shape in ("sum", "ratio", "root", "case") or (shape in ("plain", "over") and one.kinds == ANY):
        rounded = {"resolution": f"{draw(st.integers(2, 7)) * scale}us"}
        made |= draw(st.sampled_from([{}, {}, rounded])) if window.kind == "sliding" else {}
    if "OVER" in sql:
        made |= draw(st.sampled_from([{}, {}, {"decay": "off"}, {"decay": f"{draw(st.integers(1, 9)) * scale}us"}]))
    return made | {"transformation": sql, "dtype": dtype}


@st.composite
def declarations(draw: st.DrawFn, scale: int) -> str:
    """One or two views, each of a few features; `columns:` name values of earlier events."""
    sources = draw(st.sampled_from([["readings"]] * 4 + [["readings", "alarms"], ["alarms", "readings"]]))
    entity = "device" if len(sources) > 1 else draw(st.sampled_from(ENTITIES))
    count = draw(st.integers(1, 3))
    made = [draw(definitions(f"f{number}", entity, sources, scale)) for number in range(count)]
    if draw(st.integers(0, 3)) == 0:
        made.append(draw(definitions("other", entity, sources, scale)) | {"view": "other"})
    order = f"OVER (PARTITION BY {entity} ORDER BY event_timestamp)"
    columns = {"gap": f"n - lag(n) {order}", "before": f"lag(word, 2, 'none') {order}", "size": "length(word)"}
    target = f"p99 < {draw(st.integers(1, 6)) * scale}us"
    return json.dumps(
        {"featureDefinitions": made, "columns": columns, "servingRequirements": {"freshnessTarget": target}}
    )


# Events


WORDS = st.sampled_from([None, "", "a", "b", "B", "ж", "\U0001f30a", "e\u0301", "\u00e9", "zz"])
DOUBLES = st.sampled_from(
    [None, 0.0, -0.0, 1.0, 0.1, 1e16, -1e16, 3.5, 1e-300, 5e-324, 1e300, float("nan"), float("inf"), float("-inf")]
)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "device": st.sampled_from(["a", "a", "a", "b", "", "ж"]),
    "site": st.sampled_from([None, "x", "x", "y"]),
    "room": st.sampled_from([None, 1, 1, -2]),
    "n": st.sampled_from([None, 0, 1, 1, 2, -3, 10**9, -(2**40)]),
    "x": DOUBLES,
    "word": WORDS,
    "flag": st.sampled_from([None, True, False]),
    "price": st.sampled_from([None, Decimal("0.10"), Decimal("-7.000000001"), Decimal(3)]),
    "id": st.sampled_from([None, None, *"abcdefghijklmnopqrstuvwxyz", "ж", ""]),
}
READINGS = st.fixed_dictionaries(COLUMNS)
ALARMS = st.fixed_dictionaries(
    {**{name: COLUMNS[name] for name in ("device", "n", "word", "id")}, "level": COLUMNS["room"]}
)

Place = tuple[str, int]
"""A stream, and one of its partitions."""
Logs = Mapping[Place, Sequence[bytes]]


@st.composite
def logs(draw: st.DrawFn, names: Sequence[str], scale: int) -> Logs:
    """The messages of each partition: in the order of their times, nearly, or in none."""
    base = draw(st.sampled_from([0, 0, 1_772_366_400_000_000]))
    jitter = st.sampled_from([0, 0, 0, 1, -1] if scale > 1 else [0])
    times = st.builds(lambda steps, off: base + steps * scale + off, st.integers(-3, 40), jitter)
    found: dict[Place, list[bytes]] = {}
    for name in names:
        documents = READINGS if name == "readings" else ALARMS
        for partition in range(draw(st.integers(1, 3))):
            events = draw(st.lists(st.tuples(times, documents), max_size=14))
            if draw(st.booleans()):
                events.sort(key=lambda event: event[0])
            found[name, partition] = [message(at, **columns) for at, columns in events]
    return found


def message(at_us: int, **columns: Any) -> bytes:
    return to_json({"at": instant(at_us), **columns}, inf_nan_mode="constants")


# Arrangements

Move = tuple[str, int, int]
"""What happens next, and two numbers about it; see `play`."""

MOVES: st.SearchStrategy[Move] = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 31), st.integers(1, 9)),
    st.tuples(st.just("read"), st.integers(1, 31), st.integers(1, 9)),
    st.tuples(st.just("idle"), st.integers(1, 31), st.integers(-5, 60)),
    st.tuples(st.just("forget"), st.just(0), st.integers(0, 4)),
    st.tuples(st.sampled_from(["move", "save", "crash"]), st.just(0), st.just(0)),
)
ARRANGEMENTS = st.tuples(st.integers(1, 3), st.lists(MOVES, max_size=8))


class Player:
    """Plays the messages of some partitions to a run, as an arrangement says."""

    def __init__(self, features: Given, messages: Logs, shards_count: int) -> None:
        self.run, self._messages = features.start(shards_count), messages
        self._at = dict.fromkeys(messages, 0)
        self._saved = self._state()

    def read(self, mask: int, count: int) -> None:
        """Read so many messages of each partition in a bit mask, in one batch."""
        self.run.take(*self._batch(mask, count))

    def idle(self, mask: int, now_us: int) -> None:
        """Say that some partitions are at their end at a wall time."""
        self.run.take(*(replace(nothing, caught_up_us=now_us) for nothing in self._batch(mask, 0)))

    def forget(self, most: int) -> None:
        """Let go of what can matter no more, and merge into panes what no frame will tell apart; of some, or of all."""
        for fold in self.run.folds.values():
            horizon_us = min(fold.horizon_us(), fold.clock_us())
            if most:
                fold.shard.compact(horizon_us, most)
            else:
                compact_all(fold.shard, horizon_us)

    def move(self) -> None:
        """Save all state, and restore it elsewhere."""
        self._restore(self._state())

    def save(self) -> None:
        """Save all state."""
        self._saved = self._state()

    def crash(self) -> None:
        """Go back to what was saved last; rows written since stay written."""
        self._restore(self._saved)

    def _batch(self, mask: int, count: int) -> list[Poll]:
        polls = []
        for number, (place, values) in enumerate(self._messages.items()):
            if not mask >> number & 1:
                continue
            name, partition = place
            start = self._at[place]
            self._at[place] = min(len(values), start + count)
            known = self.run.given.contracts[name]
            partitions_count = sum(stream == name for stream, _ in self._messages)
            polls.append(poll(known, partition, partitions_count, values[start : self._at[place]], offset=start))
        return polls

    def _state(self) -> bytes:
        run = self.run
        states = {key: fold.state() for key, fold in run.folds.items()}
        lengths = {name: len(tables) for name, tables in run.accepted.items()}
        return pickle.dumps((states, run.judges, lengths, len(run.rejects), run.duplicates_count, self._at))

    def _restore(self, saved: bytes) -> None:
        run = self.run
        states, run.judges, lengths, rejects_count, run.duplicates_count, self._at = pickle.loads(saved)
        run.folds = run.given.start(run.shards_count).folds
        for key, state in states.items():
            run.folds[key].restore(state)
        for name, length in lengths.items():
            del run.accepted[name][length:]
        del run.rejects[rejects_count:]


def play(
    features: Given, messages: Logs, arrangement: tuple[int, Sequence[Move]], until_us: int, unit_us: int = 1
) -> Run:
    """Read all messages, arranged so, and let time pass until the end; return what became of them.

    A move is the name of a deed of `Player`, a bit mask of partitions, and a number: how many messages, how many
    units of time before the end, or how many events to go through, 0 for all.
    """
    shards_count, moves = arrangement
    player = Player(features, messages, shards_count)
    for what, mask, number in moves:
        match what:
            case "read":
                player.read(mask, number)
            case "idle":
                player.idle(mask, until_us - max(0, number) * unit_us)
            case "forget":
                player.forget(number)
            case _:
                getattr(player, what)()
    player.read(-1, 10**6)
    player.run.pass_time(until_us)
    return player.run


def exact(rows: pa.Table) -> list[str]:
    """The rows, told apart to the bit, but for when they were made."""
    return [repr(row) for row in rows.drop([CREATED]).to_pylist()]


def agrees(run: Run) -> None:
    """The final rows are DuckDB's."""
    for view in run.given.pipeline.views:
        assert run.compare(view.name).differing == ()


def serves_the_newest(run: Run) -> None:
    """A store that takes a row unless it has a newer one ends with the newest final row of each entity."""
    for view in run.given.pipeline.views:
        served: dict[tuple[Any, ...], dict[str, Any]] = {}
        for table, newest in zip(run.written[view.name], run.online[view.name], strict=True):
            for row in table.filter(newest).drop([CREATED]).to_pylist():
                key = tuple(row[column] for column in view.entity_names)
                if key not in served or _rank(served[key]) <= _rank(row):
                    served[key] = row
        final = run.final(view.name).drop([CREATED]).to_pylist()
        newest_rows = {tuple(row[column] for column in view.entity_names): row for row in final}
        assert {key: repr(row) for key, row in newest_rows.items()} == {key: repr(row) for key, row in served.items()}


def _rank(row: Mapping[str, Any]) -> tuple[datetime, int]:
    return row[EVENT_TIME], row[VERSION]


def written_once(run: Run) -> None:
    """No version of a row is written twice."""
    for plan in run.given.pipeline.plans:
        keys = run.versions(plan.view.name).select([*plan.view.entity_names, EVENT_TIME, VERSION]).to_pylist()
        assert len({tuple(key.values()) for key in keys}) == len(keys)


# The laws


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, type[Event]], int, list[Logs]]:
    scale = draw(st.sampled_from([1, 1, 1, 1_000_000]))
    declared = draw(declarations(scale))
    names = ["readings", "alarms"] if "alarms" in declared else ["readings"]
    lateness_us = draw(st.sampled_from([0, 4 * scale, 15 * scale, DAY_US]))
    told_by = st.sampled_from(["id", "id", None])
    models = streams(lateness_us, draw(told_by), draw(told_by))
    found = draw(st.lists(logs(names, scale), min_size=1, max_size=3))
    return declared, {name: models[name] for name in names}, scale, found


@settings(max_examples=100 if SOAK == 1 else 500 * SOAK, suppress_health_check=CHECKS)
@given(cases(), ARRANGEMENTS, ARRANGEMENTS, st.integers(0, 60))
def test_final_rows_are_what_duckdb_says_and_the_same_in_every_arrangement(
    case: tuple[str, dict[str, type[Event]], int, list[Logs]],
    one: tuple[int, list[Move]],
    another: tuple[int, list[Move]],
    after: int,
) -> None:
    declared, models, scale, found = case
    features = Given.declared(declared, models)
    for messages in found:
        times = [microseconds(json.loads(value)["at"]) for values in messages.values() for value in values]
        until_us = max(times, default=0) + after * scale
        runs = [play(features, messages, made, until_us, scale) for made in ((1, []), one, another)]

        agrees(runs[0])
        for run, (_, moves) in zip(runs, ((1, []), one, another), strict=True):
            serves_the_newest(run)
            if ("crash", 0, 0) not in moves:
                written_once(run)
            for plan in features.pipeline.plans:
                assert exact(runs[0].final(plan.view.name)) == exact(run.final(plan.view.name))
            assert sorted(map(repr, runs[0].rejects)) == sorted(map(repr, run.rejects))


# Cases that broke earlier wordings of the rules, by their numbers in the notes


def counting(frame: str, *more: str, **keys: Any) -> Given:
    """`f0` counts the readings of a device in a frame, the others are as written; `keys` go to each definition."""
    sqls = [f"count(*) OVER (PARTITION BY device ORDER BY event_timestamp {frame})", *more]
    lateness_us, event_id = keys.pop("lateness_us", DAY_US), keys.pop("event_id", None)
    made = [
        {"name": f"f{number}", "dtype": dtype, "source": "readings", "transformation": sql, **keys}
        for number, (sql, _, dtype) in enumerate(one.partition(" -> ") for one in sqls)
    ]
    for one in made:
        one["dtype"] = one["dtype"] or "int64"
    text = json.dumps({"featureDefinitions": made, "servingRequirements": {"freshnessTarget": "p99 < 1us"}})
    return Given.declared(text, {"readings": streams(lateness_us, event_id, event_id)["readings"]})


def sliding(length_us: int) -> str:
    return f"RANGE BETWEEN {span(length_us)} PRECEDING AND CURRENT ROW"


def final(run: Run, *names: str) -> list[tuple[Any, ...]]:
    """The final rows of the one view: instants in µs, and columns."""
    rows = run.final("readings_by_device").to_pylist()
    return [(microseconds(row[EVENT_TIME]), *(row[name] for name in names)) for row in rows]


def test_case_1_a_version_counts_what_is_in_reach_so_a_crash_leaves_no_row_behind() -> None:
    features = counting(sliding(10), decay="off", lateness_us=30)
    messages = {("readings", 0): [message(100), message(95)], ("readings", 1): [message(50), message(60)]}
    moves = [("save", 0, 0), ("read", 0b10, 2), ("read", 0b01, 1), ("crash", 0, 0), ("read", 0b01, 2)]

    run = play(features, messages, (1, moves), until_us=100)

    agrees(run)
    serves_the_newest(run)
    assert final(run, "f0", VERSION) == [(50, 1, 1), (60, 2, 2), (95, 1, 1), (100, 2, 2)]


def test_case_2_ticks_are_made_by_events_not_by_clocks_or_order() -> None:
    features = counting(sliding(10), decay="5us")
    messages = {("readings", 0): [message(0), message(20)], ("readings", 1): [message(3), message(8)]}
    slow = [
        ("read", 0b01, 1),
        ("idle", 0b11, 30),
        ("save", 0, 0),
        ("idle", 0b11, 10),
        ("crash", 0, 0),
        ("read", 0b10, 1),
    ]

    runs = [play(features, messages, (1, moves), until_us=60) for moves in ([], slow, slow[:2], slow[::-1])]

    for run in runs:
        agrees(run)
        serves_the_newest(run)
        assert final(run, "f0") == [(0, 1), (3, 2), (8, 3), (15, 1), (20, 1), (35, 0)]


def test_case_2_a_frame_that_ends_before_now_gains_events_by_time_alone() -> None:
    features = counting(f"RANGE BETWEEN {span(10)} PRECEDING AND {span(4)} PRECEDING", decay="1us")

    run = play(features, {("readings", 0): [message(0), message(6)]}, (1, []), until_us=30)

    agrees(run)
    assert final(run, "f0") == [(0, 0), (4, 1), (6, 1), (10, 2), (11, 1), (17, 0)]


def test_case_3_a_tick_is_not_written_again_after_a_restart() -> None:
    features = counting(sliding(10), decay="1us")

    run = play(
        features, {("readings", 0): [message(0)]}, (1, [("read", 1, 1), ("idle", 1, 20), ("move", 0, 0)]), until_us=40
    )

    written_once(run)
    assert final(run, "f0", VERSION) == [(0, 1, 1), (11, 0, 0)]


def test_case_4_a_future_is_judged_by_the_record_s_own_time_and_moves_nothing() -> None:
    features = counting(sliding(10))
    lead_us = 5 * 60 * 10**6
    values = [message(1000), message(lead_us + 1_001_000), message(1001)]
    made = poll(features.contracts["readings"], 0, 1, values)
    run = features.start()

    run.take(replace(made, timestamps_ms=np.array([1000, 1000, 1000])))

    assert [Reason.FUTURE] == [reject.reason for reject in run.rejects]
    assert run.clock_us("readings_by_device") == 1001
    agrees(run)


def test_case_5_late_comes_before_duplicate_and_both_are_the_partition_s_own() -> None:
    features = counting("", event_id="id", lateness_us=10)
    messages = {
        ("readings", 0): [message(0, id="a"), message(5, id="a"), message(20, id="b"), message(0, id="a")],
        ("readings", 1): [message(1, id="a")],
    }

    runs = [play(features, messages, (1, moves), until_us=20) for moves in ([], [("read", 1, 1), ("read", 2, 1)])]

    for run in runs:
        assert [Reason.LATE] == [reject.reason for reject in run.rejects]
        assert run.duplicates_count == 1
        assert final(run, "f0") == [(0, 1), (1, 2), (20, 3)]
        agrees(run)


def test_case_6_late_is_judged_by_the_partition_s_own_newest_event() -> None:
    features = counting("", lateness_us=10)
    messages = {("readings", 0): [message(100)], ("readings", 1): [message(3), message(50), message(39)]}

    run = play(features, messages, (2, [("read", 1, 1)]), until_us=100)

    assert [(1, 2)] == [(reject.partition, reject.offset) for reject in run.rejects]
    agrees(run)


@pytest.mark.parametrize("shards_count", [1, 3])
def test_case_7_a_partition_idle_for_a_day_may_deliver_old_events(shards_count: int) -> None:
    features = counting(
        sliding(50), "sum(n) OVER (PARTITION BY device ORDER BY event_timestamp)", decay="7us", lateness_us=10
    )
    busy = [message(at, device="ab"[at % 2], n=at) for at in range(0, DAY_US, DAY_US // 40)]
    messages = {("readings", 0): busy, ("readings", 1): [message(3, device="a", n=7), message(40, device="b", n=9)]}
    moves = [move for _ in range(9) for move in (("read", 0b01, 4), ("forget", 0, 0))] + [("move", 0, 0)]

    runs = [play(features, messages, (shards_count, made), until_us=DAY_US) for made in ([], moves)]

    assert not runs[1].rejects
    for run in runs:
        agrees(run)
        serves_the_newest(run)
    assert exact(runs[0].final("readings_by_device")) == exact(runs[1].final("readings_by_device"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_case_11_a_sum_is_right_when_the_greatest_leaves_and_ties_are_told_apart(order: tuple[int, ...]) -> None:
    tied = [
        f"{sql} OVER (PARTITION BY device ORDER BY event_timestamp {sliding(10)}) -> {dtype}"
        for sql, dtype in [
            ("sum(x)", "float64"), ("first_value(word)", "string"), ("last_value(word)", "string"),
            ("mode(word)", "string"), ("arg_min(word, n)", "string"), ("arg_max(word, n)", "string"),
        ]
    ]  # fmt: skip
    rows = "list(word) OVER (PARTITION BY device ORDER BY event_timestamp ROWS 2 PRECEDING) -> array(string)"
    features = counting(sliding(10), *tied, rows, event_id="id")
    values = [message(0, x=1e16, n=1, word="c", id="3"), message(5, x=1.0, n=1, word="b", id="1")]
    values += [message(5, x=-1e16, n=1, word="a", id="2")]
    messages = {("readings", place): [values[index]] for place, index in enumerate(order)}

    run = play(features, messages, (1, [("read", 1, 1), ("read", 2, 1)]), until_us=30)

    agrees(run)
    names = [f"f{number}" for number in range(1, 8)]
    assert final(run, *names) == [
        (0, 1e16, "c", "c", "c", "c", "c", ["c"]),
        (5, 1.0, "c", "a", "a", "c", "c", ["c", "b", "a"]),
        (11, 1.0 - 1e16, "b", "a", "a", "b", "b", ["c", "b", "a"]),
        (16, None, None, None, None, None, None, ["c", "b", "a"]),
    ]


def test_case_12_an_expression_that_fails_rejects_its_event_and_no_other() -> None:
    whole = f"sum(CAST(word AS BIGINT)) OVER (PARTITION BY device ORDER BY event_timestamp {sliding(10)})"
    features = counting(
        sliding(10), whole, "max(n * 4611686018427387904) OVER (PARTITION BY device ORDER BY event_timestamp)"
    )
    values = [message(0, word="7"), message(1, word="seven"), message(2, n=5), message(3, word="8", n=1)]

    run = play(features, {("readings", 0): values}, (1, []), until_us=3)

    assert [(1, Reason.TRANSFORM), (2, Reason.TRANSFORM)] == [(made.offset, made.reason) for made in run.rejects]
    agrees(run)
    assert final(run, "f0", "f1") == [(0, 1, 7), (3, 2, 15)]


def test_case_12_an_expression_that_fails_around_windows_is_null() -> None:
    features = counting(
        sliding(10), f"CAST(max(word) OVER (PARTITION BY device ORDER BY event_timestamp {sliding(10)}) AS BIGINT)"
    )

    run = play(features, {("readings", 0): [message(0, word="7"), message(1, word="seven")]}, (1, []), until_us=11)

    agrees(run)
    assert final(run, "f1") == [(0, 7), (1, None), (11, None)]


def test_case_13_a_resolution_counts_from_the_epoch_and_all_lose_at_one_instant() -> None:
    features = counting(sliding(10), resolution="4us", decay="4us")
    values = [message(-1, device="a"), message(0, device="b"), message(3, device="c")]

    run = play(features, {("readings", 0): values}, (1, []), until_us=40)

    agrees(run)
    rows = run.final("readings_by_device").to_pylist()
    gone = {row["device"]: microseconds(row[EVENT_TIME]) for row in rows if row["f0"] == 0}
    assert gone == {"a": 12, "b": 16, "c": 16}


def test_a_clock_that_jumps_a_year_ahead_loses_only_what_is_late_by_the_rule() -> None:
    features = counting(sliding(10), decay="3us", lateness_us=20)
    year_us = 365 * DAY_US
    messages = {
        ("readings", 0): [message(0), message(year_us), message(5), message(year_us - 20)],
        ("readings", 1): [message(3), message(8)],
    }
    moves = [
        ("read", 0b01, 2),
        ("idle", 0b11, 0),
        ("forget", 0, 0),
        ("read", 0b01, 9),
        ("move", 0, 0),
        ("read", 0b10, 1),
    ]

    runs = [play(features, messages, (1, made), until_us=2 * year_us) for made in ([], moves)]

    for run in runs:
        assert [(0, 2, Reason.LATE)] == [(made.partition, made.offset, made.reason) for made in run.rejects]
        agrees(run)
        serves_the_newest(run)
    assert exact(runs[0].final("readings_by_device")) == exact(runs[1].final("readings_by_device"))


def test_what_is_forgotten_is_what_no_frame_can_tell_apart_any_more() -> None:
    frame = f"RANGE BETWEEN {span(10)} PRECEDING AND {span(4)} PRECEDING"
    features = counting(frame, resolution="5us", decay="1us", lateness_us=0)
    messages = {("readings", 0): [message(0), message(1), message(3)]}

    run = play(features, messages, (1, [("read", 1, 3), ("forget", 0, 0)]), until_us=40)

    agrees(run)
    assert [(0, 0), (1, 0), (3, 0), (4, 1), (5, 2), (7, 3), (15, 0)] == final(run, "f0")
