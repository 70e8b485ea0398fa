"""Apache Flink's own cases of windows: where the declared language can say them, the rows are those Flink publishes.

Three things differ by rule, not by accident:

- A row is of an instant, so events tied in time give one row. Over RANGE all tied rows of Flink are equal anyway; over
  ROWS and with LAG the last of them is ours. (Flink's LAG gives all tied rows the last one's values.)
- Late is judged for each event once, by the greatest event time of its partition: for the window cases that cannot be
  said which let an event into one window and out of another.
- A NULL entity has no rows.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import AwareDatetime

from freshet.flows.testing import Given, Run, microseconds, spell
from freshet.schemas.event import EVENT_TIME, Event, Stream

pytestmark = pytest.mark.data


# OVER


class Row(Event):
    """An event of the OVER cases; `everything` is the entity of windows that Flink does not partition.

    A watermark is an event without entity: it makes no row, and moves its partition's clock.
    """

    at: AwareDatetime
    everything: int | None = None
    a: int | None = None
    b: int | None = None
    c: str | None = None
    key: int = 0


LATENESS_MS = {
    "testRowTimeBoundedPartitionedRangeOver": 600,
    "testRowTimeBoundedPartitionedRowsOver": 13,
    "testRowTimeBoundedNonPartitionedRangeOver": 600,
    "testRowTimeBoundedNonPartitionedRowsOver": 17,
    "testRowTimeUnBoundedPartitionedRangeOver": 5,
    "testRowTimeUnBoundedPartitionedRowsOver": 5,
    "testRowTimeUnBoundedNonPartitionedRangeOver": 5,
    "testRowTimeUnBoundedNonPartitionedRowsOver": 5,
    "testRowTimeUnBoundedPartitionedRowsOver2": 5,
    "testLagFunction": 5,
}
"""How far events may be behind. Flink drops what is not after its watermark; over bounded frames, what is not after the
key's last row: there its watermark says nothing."""
COLUMNS = ("a", "b", "c")
"""Of Flink's output, what is the event's own; the rest are features."""


def sql(output: str, over: str) -> str:
    """A feature in our words: Flink's COUNT_IF is a FILTER, its AVG of integers drops the fraction."""
    function, _, argument = output.removesuffix(")").partition("(")
    if function == "count_if":
        return f"count(*) FILTER (WHERE {argument}) OVER {over}"
    if function == "avg_int":
        return f"sum({argument}) OVER {over} // count({argument}) OVER {over}"
    return f"{output} OVER {over}"


def declared(case: Mapping[str, Any]) -> str:
    frame, entity = case["frame"], case["partition_by"] or "everything"
    over = f"PARTITION BY {entity} ORDER BY event_timestamp"
    if not case["name"].startswith("testLag"):
        length = next(value for name, value in frame.items() if name.startswith("preceding"))
        unit = "INTERVAL '{} milliseconds'" if frame["type"] == "RANGE" else "{}"
        start = "UNBOUNDED" if length is None else unit.format(length)
        over += f" {frame['type']} BETWEEN {start} PRECEDING AND CURRENT ROW"
    outputs = [output for output in case["output"] if output not in COLUMNS]
    made = [
        {
            "name": f"f{number}",
            "dtype": "int64",
            "source": "rows",
            "decay": "off",
            "transformation": sql(output, f"({over})"),
        }
        for number, output in enumerate(outputs)
    ]
    return json.dumps({"featureDefinitions": made, "servingRequirements": {}})


@pytest.fixture(scope="module")
def over_cases(data: Path) -> Mapping[str, Mapping[str, Any]]:
    found = json.loads((data / "flink" / "over_aggregate_cases.json").read_text(encoding="utf-8"))
    return {case["name"]: case for case in found["cases"]}


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def documents(case: Mapping[str, Any], lateness_ms: int) -> list[dict[str, Any]]:
    """The events and watermarks as events of ours: one at or before the watermark is late."""
    found: list[dict[str, Any]] = []
    for event in case["events"]:
        if "watermark" not in event:
            found.append({"at": at(event["ts"]), "everything": 0, **{name: event[name] for name in COLUMNS}})
        elif case["late_rule"] == "ts<=watermark":
            found.append({"at": at(event["watermark"] + 1 + lateness_ms)})
    return found


@pytest.mark.parametrize("name", LATENESS_MS)
def test_over_windows_give_flink_s_rows(over_cases: Mapping[str, Mapping[str, Any]], name: str) -> None:
    case, lateness_ms = over_cases[name], LATENESS_MS[name]
    entity, is_range = case["partition_by"] or "everything", case["frame"]["type"] == "RANGE"
    promises = Stream("rows", "key", "at", lateness=timedelta(milliseconds=lateness_ms))
    given = Given.declared(declared(case), {"rows": type("Row", (Row,), {"__module__": __name__, "stream": promises})})
    events, run = documents(case, lateness_ms), given.start()

    run.take(*given.polls("rows", events))

    run.check(f"rows_by_{entity}")
    late = {reject.offset for reject in run.rejects}
    accepted = [event for number, event in enumerate(events) if number not in late and "b" in event]
    values = {(row[entity], row[EVENT_TIME]): row for row in run.final(f"rows_by_{entity}").to_pylist()}
    last = {(event[entity], event["at"]): event for event in accepted}
    ours: Counter[tuple[Any, ...]] = Counter()
    for event in accepted if is_range else last.values():
        row = values[event[entity], event["at"]]
        features = (row[made.name] for made in given.pipeline.views[0].features)
        ours[(*(event[column] for column in case["output"] if column in COLUMNS), *features)] += 1
    theirs = Counter(tuple(row) for row in case["expected"])
    assert theirs.total() == len(accepted)
    assert theirs == ours if is_range else theirs >= ours


# Windows


class Sale(Event):
    ts: AwareDatetime
    everything: int = 0
    int_: int
    double: float | None
    float_: float | None
    bigdec: Decimal | None
    string: str | None
    name: str | None


class Cut(NamedTuple):
    """How a kind of window is said, the value being read where each window ends: its SQL, and the lateness."""

    window: str
    resolution: str | None
    lateness_s: int
    differing: tuple[tuple[str, str], ...] = ()
    """Entity and end of windows that Flink had closed before an event came that it let into another."""


BUCKET = "(PARTITION BY name, time_bucket({}) ORDER BY event_timestamp)"
SAWTOOTH = "(PARTITION BY name ORDER BY event_timestamp RANGE BETWEEN INTERVAL '{}' PRECEDING AND CURRENT ROW)"
CUTS = {
    "testEventTimeTumbleWindow": Cut(BUCKET.format("INTERVAL '5 seconds', event_timestamp"), None, 1),
    "testEventTimeTumbleWindowWithOffset": Cut(
        BUCKET.format("INTERVAL '1 day', event_timestamp, INTERVAL '8 hours'"), None, 4
    ),
    "testEventTimeTumbleWindowWithNegativeOffset": Cut(
        BUCKET.format("INTERVAL '1 day', event_timestamp, INTERVAL '-8 hours'"), None, 4
    ),
    "testEventTimeHopWindow": Cut(SAWTOOTH.format("5 seconds"), "5s", 4, (("a", "2020-10-10T00:00:05Z"),)),
    "testEventTimeHopWindowWithOffset": Cut(SAWTOOTH.format("20 hours"), "4h", 4),
    "testEventTimeCumulateWindow": Cut(
        BUCKET.format("INTERVAL '15 seconds', event_timestamp"), None, 4, (("a", "2020-10-10T00:00:05Z"),)
    ),
}
SALES = {
    "sales_count": ("count(*)", "int64"),
    "bigdec_sum": ("sum(bigdec)", "float64"),
    "double_max": ("max(double)", "float64"),
    "float_min": ("min(float_)", "float64"),
    "strings_count": ("approx_count_distinct(string)", "int64"),
}
"""Flink's last output, the distinct strings joined, can't be said: it grows without bound."""


@pytest.fixture(scope="module")
def window_cases(data: Path) -> Mapping[str, Any]:
    return json.loads((data / "flink" / "window_tvf_cases.json").read_text(encoding="utf-8"))


def sales(cases: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [f"{name}_" if name in ("int", "float") else name for name in cases["columns"]]
    events = [dict(zip(names, event, strict=True)) for event in cases["events"]]
    return [{**event, "ts": event["ts"].replace(" ", "T") + "Z"} for event in events]


@pytest.mark.parametrize("name", CUTS)
def test_windows_read_where_they_end_give_flink_s_rows(window_cases: Mapping[str, Any], name: str) -> None:
    case = next(case for case in window_cases["cases"] if case["name"] == name)
    window, resolution, lateness_s, differing = CUTS[name]
    made = [
        {"name": feature, "dtype": dtype, "source": "sales", "transformation": f"{aggregate} OVER {window}"}
        | ({"resolution": resolution} if resolution else {})
        for feature, (aggregate, dtype) in SALES.items()
    ]
    promises = Stream("sales", "everything", "ts", lateness=timedelta(seconds=lateness_s))
    model = type("Sale", (Sale,), {"__module__": __name__, "stream": promises})
    given = Given.declared(json.dumps({"featureDefinitions": made, "servingRequirements": {}}), {"sales": model})
    run = given.start()

    run.take(*given.polls("sales", sales(window_cases)))
    ends = sorted({microseconds(f"{row[2]}Z") for row in case["expected"]})
    run.pass_time(ends[-1])

    run.check("sales_by_name")
    theirs = {
        (row[0], spell(instant(f"{row[2]}Z"))): [
            None if value is None else float(value) for value in row[3 : 3 + len(SALES)]
        ]
        for row in case["expected"]
        if row[0] is not None
    }
    ours = read_at(run, ends)
    for key in differing:
        assert ours[key][0] == theirs[key][0] + 1
        ours[key] = theirs[key]
    assert theirs == ours


def instant(text: str) -> datetime:
    return at(microseconds(text) // 1000)


def read_at(run: Run, ends: Sequence[int]) -> dict[tuple[str, str], list[float | None]]:
    """The windows that hold something: what each entity's newest row before the end says."""
    found: dict[tuple[str, str], list[float | None]] = {}
    rows = run.final("sales_by_name").to_pylist()
    for end in ends:
        newest = {row["name"]: row for row in rows if row[EVENT_TIME] < at(end // 1000)}
        for entity, row in newest.items():
            if row["sales_count"]:
                values = [row[feature] for feature in SALES]
                found[entity, spell(at(end // 1000))] = [None if value is None else float(value) for value in values]
    return found
