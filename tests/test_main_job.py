"""The main job on real input: 39,244 real edits through a real Kafka, the dataflow, Redis and parquet."""

import csv
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from freshet.flows import settings
from freshet.flows.edges import feast
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.steps.oracle import compare
from freshet.flows.workspace import Workspace
from freshet.schemas.event import archive_name
from freshet.schemas.view import View

pytestmark = [pytest.mark.kafka, pytest.mark.data]

USER = ("user_edits_10m", "user_added_10m", "user_edits_1h", "user_deleted_1h", "user_max_delta_1h")
CHANNEL = ("chan_edits_1m", "chan_added_1h", "chan_robot_edits_1h")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REPO = Path(__file__).parent.parent


class Truth:
    """What the published features are at any instant, the slow obvious way."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._by: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {"user": {}, "channel": {}}
        for event in events:
            at = round(datetime.fromisoformat(event["time"]).timestamp() * 1000)
            for by, entities in self._by.items():
                entities.setdefault(event[by], []).append((at, event))

    def of(self, by: str, entity: str) -> list[int]:
        """Return the times of an entity's events."""
        return [at for at, _ in self._by[by][entity]]

    def at(self, by: str, entity: str, instant: int) -> tuple[int | None, ...]:
        def last(minutes: int, name: str | None = None) -> list[Any]:
            inside = [event for at, event in self._by[by][entity] if instant - minutes * 60_000 <= at <= instant]
            return [event[name] for event in inside] if name else inside

        def total(values: list[int]) -> int | None:
            return sum(values) if values else None

        if by == "channel":
            return len(last(1)), total(last(60, "added")), sum(last(60, "isRobot"))
        return (
            len(last(10)), total(last(10, "added")), len(last(60)), total(last(60, "deleted")),
            max(last(60, "delta"), default=None),
        )  # fmt: skip


@dataclass(frozen=True)
class Done:
    workspace: Workspace
    offline: OfflineStore
    expected: list[dict[str, str]]
    truth: Truth
    events: Path
    environment: dict[str, str]

    def view(self, by: str) -> View:
        return self.workspace.pipeline.plan(f"wiki_edits_by_{by}").view


def freshet(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "freshet.scripts.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def done(real_kafka: str, valkey_url: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("wikipedia")
    shutil.copytree(REPO / "feature_repo", root / "feature_repo", ignore=shutil.ignore_patterns("*store.yaml", "__*"))
    shutil.copytree(REPO / "schemas" / "events", root / "schemas" / "events", ignore=shutil.ignore_patterns("__*"))
    contract = root / "schemas" / "events" / "wiki_edits.py"
    topic = f"wiki_edits_{uuid.uuid4().hex[:8]}"
    contract.write_text(contract.read_text().replace('topic="wiki_edits"', f'topic="{topic}"'))
    environment = {
        **os.environ,
        "FRESHET_PROJECT": str(root),
        "FRESHET_BROKERS": real_kafka,
        "FRESHET_ONLINE_STORE": valkey_url,
        "FRESHET_METRICS_ADDRESS": "127.0.0.1:0",
    }
    environment.pop("FRESHET_REQUIRE", None)
    events = data / "wikipedia" / "edits-2015-09-12.json.gz"
    freshet(environment, "apply")
    freshet(environment, "produce", str(events))
    freshet(environment, "run", "materializer", "--until-end")
    with gzip.open(data / "wikipedia" / "user_channel_features.csv.gz", "rt", encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    workspace = Workspace.open(settings.read({name: environment[name] for name in environment if name in SETTINGS}))
    with gzip.open(events, "rt", encoding="utf-8") as file:
        truth = Truth([json.loads(line) for line in file])
    return Done(workspace, OfflineStore(workspace.offline_root), expected, truth, events, environment)


SETTINGS = ("FRESHET_PROJECT", "FRESHET_BROKERS", "FRESHET_ONLINE_STORE", "FRESHET_METRICS_ADDRESS")


def answers(rows: pa.Table, entity: str, features: tuple[str, ...]) -> dict[tuple[str, int], tuple[Any, ...]]:
    times = rows.column("event_timestamp").cast(pa.int64()).to_pylist()
    columns = [rows.column(name).to_pylist() for name in features]
    keys = zip(rows.column(entity).to_pylist(), (time // 1000 for time in times), strict=True)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def published(done: Done, entity: str, features: tuple[str, ...]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(row[entity], int(row["ts"])): tuple(int(row[name]) for name in features) for row in done.expected}


@pytest.mark.parametrize(("by", "features"), [("user", USER), ("channel", CHANNEL)])
def test_all_published_values_are_equal_read_back_from_parquet(done: Done, by: str, features: tuple[str, ...]) -> None:
    rows = done.offline.final(done.view(by))

    assert len(done.expected) == 39_244
    assert published(done, by, features).items() <= answers(rows, by, features).items()


@pytest.mark.parametrize(("by", "features"), [("user", USER), ("channel", CHANNEL)])
def test_between_events_values_fall_as_their_windows_pass(done: Done, by: str, features: tuple[str, ...]) -> None:
    rows = answers(done.offline.final(done.view(by)), by, features)
    ticks = sorted(rows.keys() - published(done, by, features).keys())

    assert len(ticks) > 30_000
    for entity, at in random.Random(9).sample(ticks, 2_000):
        assert done.truth.at(by, entity, at) == rows[entity, at], (entity, at)


@pytest.mark.parametrize("by", ["user", "page", "channel"])
def test_every_row_equals_the_declared_sql_over_the_archived_events(done: Done, by: str) -> None:
    events = done.offline.read(archive_name("wiki_edits"))

    until_us = pa.compute.max(events.column("event_timestamp")).cast(pa.int64()).as_py()
    plan = done.workspace.pipeline.plan(f"wiki_edits_by_{by}")

    answer = compare(plan, events, done.offline.final(plan.view), until_us)

    assert events.num_rows == 39_244
    assert answer.rows_count >= 39_000
    assert answer.differing == ()


@pytest.mark.parametrize(("by", "features"), [("user", USER), ("channel", CHANNEL)])
def test_the_newest_row_of_every_entity_is_served_by_feast(done: Done, by: str, features: tuple[str, ...]) -> None:
    newest = dict(sorted(answers(done.offline.final(done.view(by)), by, features)))
    workspace = done.workspace
    store = feast.open_store(config_of(workspace))

    served = feast.read_online(store, done.view(by), [(entity,) for entity in newest])

    got = {row.entity[0]: tuple(row.features[name] for name in features) for row in served if row is not None}
    assert {entity: done.truth.at(by, entity, at) for entity, at in newest.items()} == got


def config_of(workspace: Workspace, offline: str = "duckdb") -> dict[str, Any]:
    project = workspace.pipeline.project
    config = store_config(project, workspace.online_url, workspace.project.registry)
    return {**config, "offline_store": {"type": offline}}


@pytest.mark.parametrize("offline", ["duckdb", "dask"])
@pytest.mark.parametrize(("by", "features"), [("user", USER), ("channel", CHANNEL)])
def test_history_at_random_times_is_the_newest_row_before(
    done: Done, by: str, features: tuple[str, ...], offline: str
) -> None:
    """Dask drops entities without history, and mixes up versions of one row: Feast's own limits."""
    chance = random.Random(500)
    rows = set(answers(done.offline.final(done.view(by)), by, features))
    entities = sorted({entity for entity, _ in rows})
    times = sorted(time for _, time in rows)
    asked = [
        (
            chance.choice([*chance.choices(entities, k=9), f"nobody {number}"]),
            chance.randint(times[0] - 10**6, times[-1]),
        )
        for number in range(250)
    ]
    if offline == "dask":
        versions = (
            done.offline.read(f"wiki_edits_by_{by}").group_by([by, "event_timestamp"]).aggregate([([], "count_all")])
        )
        corrected = {row[by] for row in versions.to_pylist() if row["count_all"] > 1}
        first = {
            entity: min(time for other, time in rows if other == entity) for entity, _ in asked if entity in entities
        }
        asked = [(e, t) for e, t in asked if e in first and t >= first[e] and e not in corrected]
        assert asked
    frame = pd.DataFrame(
        {by: [entity for entity, _ in asked], "event_timestamp": [EPOCH + timedelta(milliseconds=t) for _, t in asked]}
    )
    store = feast.open_store(config_of(done.workspace, offline))

    history = feast.read_history(store, done.view(by), frame)

    got = {
        (row[by], round(row["event_timestamp"].timestamp() * 1000)): tuple(
            None if pd.isna(row[name]) else int(row[name]) for name in features
        )
        for row in history.to_dict("records")
    }
    nothing = (None,) * len(features)
    expected = {
        (entity, at): done.truth.at(by, entity, max(before))
        if (before := [time for other, time in rows if other == entity and time <= at])
        else nothing
        for entity, at in asked
    }
    assert expected == got


def test_replay_of_the_file_gives_the_same_rows_without_broker_and_store(done: Done, tmp_path: Path) -> None:
    freshet(done.environment, "replay", str(done.events), "--out", str(tmp_path / "rows"))
    replayed = OfflineStore(tmp_path / "rows")

    for view in done.workspace.pipeline.views:
        columns = [*view.entity_names, "event_timestamp", *(feature.name for feature in view.features), "_version"]
        assert done.offline.final(view).select(columns).equals(replayed.final(view).select(columns)), view.name


def test_check_finds_nothing_wrong(done: Done) -> None:
    said = freshet(done.environment, "check", "--sample", "500")

    assert said.count(": ok, ") == 3


@pytest.mark.parametrize("by", ["user", "channel"])
def test_explain_shows_the_events_of_the_frame(done: Done, by: str) -> None:
    """Of the busiest entity and some others, at the newest row and at others."""
    feature, minutes = ("user_edits_10m", 10) if by == "user" else ("chan_edits_1m", 1)
    view, chance = done.view(by), random.Random(9)
    newest = done.offline.newest(view).column(by).to_pylist()
    busiest = max(newest, key=lambda entity: len(done.truth.of(by, entity)))
    asked = [(busiest, None), *((chance.choice(newest), None) for _ in range(3))]
    asked += [(busiest, EPOCH + timedelta(milliseconds=chance.choice(done.truth.of(by, busiest)))) for _ in range(3)]
    for entity, at in asked:
        words = [] if at is None else ["--at", at.isoformat()]
        told = json.loads(freshet(done.environment, "explain", view.name, feature, f"{by}={entity}", "--json", *words))

        instant = round(datetime.fromisoformat(told["at"]).timestamp() * 1000)
        times = [time for time in done.truth.of(by, entity) if instant - minutes * 60_000 <= time <= instant]
        (window,) = told["windows"]
        found = [round(datetime.fromisoformat(one["event_timestamp"]).timestamp() * 1000) for one in window["events"]]
        assert times == found
        assert len(times) == told["offline"]["value"] == told["duckdb"]["value"] == window["value"]
        assert ("ok", [], []) == (told["outcome"], told["findings"], told["reasons"])
        assert at is None or told["at"] == at.isoformat().replace("+00:00", "Z")


def test_running_again_adds_no_row_and_loses_none(done: Done) -> None:
    finals = {view.name: done.offline.final(view) for view in done.workspace.pipeline.views}

    freshet(done.environment, "run", "materializer", "--until-end")

    for view in done.workspace.pipeline.views:
        assert finals[view.name].equals(done.offline.final(view))
        rows = done.offline.read(view.name)
        keys = rows.select([*view.entity_names, "event_timestamp", "_version"]).group_by(
            [*view.entity_names, "event_timestamp", "_version"]
        )
        assert rows.num_rows == keys.aggregate([]).num_rows
