"""What Apache Druid's tutorial publishes for a day of Wikipedia's edits comes out of declared tumbling windows."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import AwareDatetime

from freshet.flows.testing import Given, Run, microseconds, poll, spell
from freshet.schemas.event import EVENT_TIME, Event, Stream

pytestmark = pytest.mark.data

BATCH_EVENTS = 5000
BUCKET = "OVER (PARTITION BY {}, time_bucket(INTERVAL '1 {}', event_timestamp) ORDER BY event_timestamp)"
DECLARED = {
    "featureDefinitions": [
        {"name": name, "dtype": "int64", "source": "edits", "transformation": f"{sql} {BUCKET.format(entity, width)}"}
        for name, sql, entity, width in [
            ("deleted_this_hour", "sum(deleted)", "wiki", "hour"),
            ("page_edits_today", "count(*)", "page", "day"),
            ("channel_added_today", "sum(added)", "channel", "day"),
        ]
    ],
    "servingRequirements": {},
}


class Edit(Event):
    """An edit; `wiki` is the same in all, since what is summed over everything needs an entity too."""

    stream = Stream("edits", "user", "time")

    time: AwareDatetime
    wiki: Literal["all"] = "all"
    user: str
    page: str
    channel: str
    added: int
    deleted: int


@pytest.fixture(scope="module")
def told(data: Path) -> Mapping[str, Any]:
    return json.loads((data / "wikipedia" / "druid_tutorial_expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(data: Path) -> Run:
    values = gzip.decompress((data / "wikipedia" / "edits-2015-09-12.json.gz").read_bytes()).splitlines()
    given = Given.declared(json.dumps(DECLARED), {"edits": Edit})
    run = given.start()
    for start in range(0, len(values), BATCH_EVENTS):
        run.take(poll(given.contracts["edits"], 0, 1, values[start : start + BATCH_EVENTS], offset=start))
    run.pass_time(microseconds("2015-09-13T00:00:00Z") - 1)
    assert not run.rejects
    return run


def newest(run: Run, entity: str, feature: str) -> Iterator[tuple[str, int]]:
    """Give the value of each entity at the end of the day, the greatest first."""
    rows = {row[entity]: row[feature] for row in run.final(f"edits_by_{entity}").to_pylist()}
    yield from sorted(rows.items(), key=lambda row: -row[1])


def test_the_deleted_bytes_of_each_hour(run: Run, told: Mapping[str, Any]) -> None:
    hours: dict[str, int] = {}
    for row in run.final("edits_by_wiki").to_pylist():
        hours[spell(row[EVENT_TIME].replace(minute=0, second=0, microsecond=0))] = row["deleted_this_hour"]

    assert [tuple(hour) for hour in told["tumble_1h_sum_deleted"]] == sorted(hours.items())


def test_the_ten_pages_with_most_edits(run: Run, told: Mapping[str, Any]) -> None:
    pages = [*newest(run, "page", "page_edits_today")]
    top = told["top10_pages_by_edits"]

    assert [count for _, count in top] == [count for _, count in pages[: len(top)]]
    assert dict(top).items() <= dict(pages).items()


def test_the_five_channels_with_most_bytes_added(run: Run, told: Mapping[str, Any]) -> None:
    assert [tuple(channel) for channel in told["top5_channels_by_sum_added"]] == [
        *newest(run, "channel", "channel_added_today")
    ][:5]


def test_all_of_it_is_what_duckdb_says(run: Run) -> None:
    for view in run.given.pipeline.views:
        run.check(view.name)
