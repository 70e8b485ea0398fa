"""A month of real earthquakes, replayed as they were reported: three of four are late, by sixteen hours in the median."""

import csv
import gzip
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import AwareDatetime
from pydantic_core import to_json

from freshet.flows.testing import Given, Run, microseconds, poll
from freshet.schemas.event import EVENT_TIME, Event, Stream
from freshet.schemas.rejects import Reason

pytestmark = pytest.mark.data

BATCH_EVENTS = 1500
FEATURES = {
    "n_1h": "count(*) OVER net_1h",
    "n_mag_1h": "count(mag) OVER net_1h",
    "max_mag_1h": "max(mag) OVER net_1h",
    "n_1d": "count(*) OVER net_1d",
    "avg_mag_1d": "avg(mag) OVER net_1d",
    "min_depth_1d": "min(depth) OVER net_1d",
    "max_depth_1d": "max(depth) OVER net_1d",
    "sd_mag_1d": "stddev_samp(mag) OVER net_1d",
}
WINDOW = "PARTITION BY net ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 {}' PRECEDING AND CURRENT ROW"


class Quake(Event):
    time: AwareDatetime
    net: str
    id: str
    mag: float | None
    depth: float


def features(lateness: timedelta) -> Given:
    promises = Stream("quakes", "net", "time", lateness=lateness)
    model = type("Quake", (Quake,), {"__module__": __name__, "stream": promises})
    definitions = [
        f"  - {{name: {name}, dtype: {'int64' if name.startswith('n_') else 'float64'}, source: quakes, transformation: {sql}}}"
        for name, sql in FEATURES.items()
    ]
    windows = [f"  net_1h: {WINDOW.format('hour')}", f"  net_1d: {WINDOW.format('day')}"]
    text = ["servingRequirements: {}", "windows:", *windows, "featureDefinitions:", *definitions]
    return Given.declared("\n".join(text), {"quakes": model})


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def quakes(data: Path) -> Sequence[Mapping[str, Any]]:
    """The events in the order in which they were last revised: that is when they came."""
    rows = read(data / "earthquakes" / "all_month.csv.gz")
    return sorted(rows, key=lambda row: (row["updated"], row["id"]))


@pytest.fixture(scope="module")
def expected(data: Path) -> Mapping[str, Mapping[str, str]]:
    return {row["id"]: row for row in read(data / "earthquakes" / "network_features.csv.gz")}


def replayed(given: Given, quakes: Sequence[Mapping[str, Any]]) -> Run:
    run, known = given.start(shards_count=2), given.contracts["quakes"]
    for start in range(0, len(quakes), BATCH_EVENTS):
        batch = quakes[start : start + BATCH_EVENTS]
        values = [
            to_json(
                {
                    "time": row["time"],
                    "net": row["net"],
                    "id": row["id"],
                    "mag": float(row["mag"]) if row["mag"] else None,
                    "depth": float(row["depth"]),
                }
            )
            for row in batch
        ]
        updated_ms = np.array([microseconds(row["updated"]) // 1000 for row in batch])
        made = poll(known, 0, 1, values, offset=start)
        made.timestamps_ms[:] = updated_ms
        run.take(made)
    return run


def test_with_thirty_days_of_lateness_every_final_row_is_the_expected_one(
    quakes: Sequence[Mapping[str, Any]], expected: Mapping[str, Mapping[str, str]]
) -> None:
    run = replayed(features(timedelta(days=30)), quakes)

    assert not run.rejects
    rows: dict[tuple[str, datetime], dict[str, Any]] = {}
    for row in run.final("quakes_by_net").to_pylist():
        rows[row["net"], row[EVENT_TIME]] = row
    wrong = []
    for quake in quakes:
        row = rows[quake["net"], datetime.fromisoformat(quake["time"])]
        for name in FEATURES:
            told = expected[quake["id"]][name]
            same = row[name] is None if told == "" else row[name] is not None and math.isclose(row[name], float(told))
            if not same:
                wrong.append((quake["id"], name, told, row[name]))
    assert len(quakes) == 11_842
    assert wrong == []


def test_with_an_hour_of_lateness_the_rule_names_the_late_ones_and_the_rest_is_duckdb_s(
    quakes: Sequence[Mapping[str, Any]],
) -> None:
    newest_us, late = 0, set()
    for offset, quake in enumerate(quakes):
        at_us = microseconds(quake["time"])
        if at_us < newest_us - 3_600_000_000:
            late.add(offset)
        newest_us = max(newest_us, at_us)

    run = replayed(features(timedelta(hours=1)), quakes)

    assert {Reason.LATE} == {reject.reason for reject in run.rejects}
    assert late == {reject.offset for reject in run.rejects}
    assert run.events("quakes").num_rows == len(quakes) - len(late)
    run.pass_time(newest_us + 2 * 86_400_000_000)
    run.check("quakes_by_net")
