"""A contract gains a field and an upcast between two runs: state, archive, validator and replays go on right."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import AwareDatetime

from freshet.flows.archives import Budget, indexes_of
from freshet.flows.edges.applied import MemoryApplied
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.metrics import Metrics
from freshet.flows.edges.parquet import MemoryOfflineStore, OfflineStore
from freshet.flows.edges.recovery import MemoryLedger, MemoryRecovery
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.live import Outside, Run, assemble
from freshet.flows.recompute import Recompute
from freshet.flows.replay import replay
from freshet.flows.steps.archived import ArchiveForm
from freshet.flows.steps.intake import Intake
from freshet.flows.steps.redrive import Judged, judge
from freshet.flows.testing import Given
from freshet.schemas.errors import Refused
from freshet.schemas.event import VERSION_HEADER, Document, Event, Stream, archive_name, as_is
from freshet.schemas.rejects import Reason, Reject, redriven

STREAM, START = "visits", datetime(2026, 3, 1, 12, tzinfo=UTC)
START_US = int(START.timestamp()) * 10**6
ARCHIVE = archive_name(STREAM)


def in_seconds(event: Document) -> Document:
    return {**event, "seconds": event["milliseconds"] / 1000, "milliseconds": None}


class Visit1(Event):
    stream = Stream(STREAM, "user", "at")

    at: AwareDatetime
    user: str
    milliseconds: int


class Visit2(Event):
    stream = Stream(STREAM, "user", "at", version=2, upcasts={1: in_seconds})

    at: AwareDatetime
    user: str
    seconds: float
    device: str = "web"
    tags: list[str] | None = None


class Visit3(Event):
    """One more field, and no need of an upcast."""

    stream = Stream(STREAM, "user", "at", version=3, upcasts={1: in_seconds, 2: as_is})

    at: AwareDatetime
    user: str
    seconds: float
    device: str = "web"
    tags: list[str] | None = None
    country: str | None = None
    score: int = 7


def given(model: type[Event], **features: tuple[str, str]) -> Given:
    made = [
        {"name": name, "dtype": dtype, "source": STREAM, "transformation": transformation}
        for name, (dtype, transformation) in features.items()
    ]
    needed = {"freshnessTarget": "p99 < 2s"}
    return Given.declared(
        json.dumps({"project": "evolved", "featureDefinitions": made, "servingRequirements": needed}), {STREAM: model}
    )


def over(entity: str) -> str:
    return f"OVER (PARTITION BY {entity} ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW)"


COUNT = {"visits_1h": ("int64", f"count(*) {over('user')}")}
SECONDS = {"device_seconds_1h": ("float64", f"sum(seconds) {over('device')}")}
FIRST = given(Visit1, **COUNT)
SECOND = given(Visit2, **COUNT, **SECONDS)
THIRD = given(Visit3, **COUNT, **SECONDS, country_visits_1h=("int64", f"count(*) {over('country')}"))


@dataclass
class Kept:
    """What outlives a run."""

    log: MemoryLog = field(default_factory=lambda: MemoryLog(lambda: START_US // 1000))
    offline: MemoryOfflineStore = field(default_factory=MemoryOfflineStore)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    states: MemoryRecovery = field(default_factory=MemoryRecovery)
    rejects: list[Reject] = field(default_factory=list)
    minutes: int = 0

    def __post_init__(self) -> None:
        self.log.create_topics({STREAM: 2, f"{STREAM}.dlq": 2})

    def put(self, rejects: Any) -> None:
        self.rejects += rejects

    def flush(self) -> None:
        """They are kept."""

    def send(self, version: int | None, **document: Any) -> None:
        """Send an event, a minute after the last one."""
        self.minutes += 1
        at = START + timedelta(minutes=self.minutes)
        value = json.dumps({"at": at.isoformat(), "user": "ada", **document}).encode()
        sign = None if version is None else str(version).encode()
        self.log.append(STREAM, self.minutes % 2, value, version=sign, timestamp_ms=int(at.timestamp() * 1000))

    def run(self, made: Given, **changes: Any) -> None:
        """Deploy a contract and its features, and run up to the end of what is there."""
        self.offline.forms = {archive_name(name): ArchiveForm(known) for name, known in made.contracts.items()}
        outside = Outside(
            partitions_count=self.log.partitions_count,
            open_partition=lambda topic, part, _, start: self.log.reader(topic, part, start),
            offsets=self.log.offsets("g"),
            dead_letters=self,
            online=MemoryOnlineStore("evolved", made.pipeline.views),
            offline=self.offline,
            ledger=self.ledger,
            states=self.states,
            applied=MemoryApplied(),
            now_us=lambda: START_US + self.minutes * 60 * 10**6,
        )
        settings = Run(2, timedelta(0), until_end=True, **changes)
        metrics = Metrics([STREAM], [view.name for view in made.pipeline.views])
        assemble(made.pipeline, made.contracts, outside, settings, metrics, beside=False).run()

    def newest(self, made: Given, feature: str) -> Mapping[str, Any]:
        view = made.view_of(feature)
        rows = self.offline.newest(view).to_pylist()
        return {row[view.entity_names[0]]: row[feature] for row in rows}


def evolved(*deployed: Given) -> Kept:
    """Run the first contract, then the others, with events of all versions so far before each."""
    kept = Kept()
    for version, made in enumerate(deployed, start=1):
        kept.send(None, milliseconds=1000)
        kept.send(1, milliseconds=2000)
        if version > 1:
            kept.send(2, seconds=4.0, device="app")
            kept.send(2, seconds=8.0)
        if version > 2:
            kept.send(3, seconds=16.0, country="nz")
        kept.run(made)
    assert kept.rejects == []
    return kept


def test_state_goes_on_and_a_new_view_knows_the_events_of_before() -> None:
    kept = evolved(FIRST, SECOND)

    assert kept.newest(SECOND, "visits_1h") == {"ada": 6}
    assert kept.newest(SECOND, "device_seconds_1h") == {"web": 1 + 2 + 1 + 2 + 8, "app": 4}


def test_old_archived_events_are_read_in_the_newest_form() -> None:
    kept = evolved(FIRST, SECOND, THIRD)

    events = kept.offline.read(ARCHIVE).sort_by("event_timestamp").to_pylist()

    assert [event["seconds"] for event in events] == [1, 2, 1, 2, 4, 8, 1, 2, 4, 8, 16]
    assert [event["device"] for event in events] == [*["web"] * 4, "app", *["web"] * 3, "app", "web", "web"]
    assert [event["country"] for event in events] == [*[None] * 10, "nz"]
    assert {event["score"] for event in events} == {7}
    assert [event["event_timestamp"] for event in events] == [event["at"] for event in events]
    assert {(event["_partition"], event["_offset"]) for event in events} == {
        (n % 2, (n - 1) // 2) for n in range(1, 12)
    }


def test_lost_state_is_rebuilt_from_an_archive_of_several_versions() -> None:
    kept = evolved(FIRST, SECOND, THIRD)
    expected = {name: kept.newest(THIRD, name) for name in ("visits_1h", "device_seconds_1h", "country_visits_1h")}

    kept.states = MemoryRecovery()
    kept.send(3, seconds=32.0, device="app", country="nz")
    kept.run(THIRD, rebuild=True)

    assert expected["visits_1h"]["ada"] + 1 == kept.newest(THIRD, "visits_1h")["ada"]
    assert kept.newest(THIRD, "device_seconds_1h")["app"] == expected["device_seconds_1h"]["app"] + 32
    assert expected["country_visits_1h"] == {"nz": 1}
    assert kept.newest(THIRD, "country_visits_1h") == {"nz": 2}


@pytest.mark.parametrize("feature", ["visits_1h", "device_seconds_1h", "country_visits_1h"])
def test_the_validator_recomputes_rows_from_parts_of_all_versions(feature: str) -> None:
    kept = evolved(FIRST, SECOND, THIRD)
    plan = THIRD.pipeline.plan(THIRD.view_of(feature).name)
    indexes = indexes_of([plan], kept.offline, Budget())
    for index in indexes.values():
        index.learn()
    ledger = kept.ledger.read()
    assert ledger is not None
    rows = [{**row, "_part": "any"} for row in kept.offline.newest(plan.view).to_pylist()]

    frame = Recompute(plan, kept.offline, indexes, Budget()).frame(ledger, rows)

    assert frame is not None
    assert len(frame) == len(rows) > 0
    assert (frame[f"off_{feature}"] == frame[f"sql_{feature}"]).all(), frame.T


def test_an_event_of_a_version_to_come_waits_among_the_rejects() -> None:
    kept = Kept()
    kept.send(2, seconds=1.0)
    kept.send(1, milliseconds=1)

    kept.run(FIRST)

    ((reason, detail),) = {(reject.reason, reject.detail) for reject in kept.rejects}
    assert (reason, detail) == (Reason.UNKNOWN_VERSION, "version b'2'; this flow knows 1")
    assert kept.rejects[0].headers == ((VERSION_HEADER, b"2"),)
    assert kept.newest(FIRST, "visits_1h") == {"ada": 1}


def test_an_event_of_a_version_to_come_is_fit_after_the_upgrade_and_not_before() -> None:
    kept = Kept()
    kept.send(2, seconds=4.0, device="app")
    kept.send(1, milliseconds=1000)
    kept.run(FIRST)
    rejects = [*kept.rejects]

    def judged(made: Given) -> Judged:
        intake = Intake(made.contracts[STREAM], made.pipeline.plans)
        return judge(rejects, intake, {}, 2, START_US + kept.minutes * 60 * 10**6)

    assert [again.reason for again in judged(FIRST).again] == [Reason.UNKNOWN_VERSION]
    assert judged(SECOND).fit == tuple(rejects)
    for reject in judged(SECOND).fit:
        sent = redriven(reject)
        kept.log.append(STREAM, 1, sent.value, headers=sent.headers, timestamp_ms=START_US // 1000)
    kept.run(SECOND)
    assert kept.rejects == rejects
    assert kept.newest(SECOND, "device_seconds_1h") == {"app": 4.0}


class Changed(Event):
    """Another field, and no other version."""

    stream = Stream(STREAM, "user", "at")

    at: AwareDatetime
    user: str
    milliseconds: int
    device: str | None = None


class Dropped(Event):
    """A version that does not say how the one before it is read."""

    stream = Stream(STREAM, "user", "at", version=2)

    at: AwareDatetime
    user: str


class Broken(Event):
    """An upcast that makes nothing of what there is."""

    stream = Stream(STREAM, "user", "at", version=2, upcasts={1: as_is})

    at: AwareDatetime
    user: str
    seconds: float


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Changed, "has another schema than version 1 of visits; got device string. Hint: a changed contract is a new version: set `version=2`, and `upcasts` with one from 1, such as `as_is`; or take the change back"),
        (Dropped, "was written under a version of visits that is not read any more; got version 1. Hint: give its stream `upcasts` from version 1 on up to 2"),
        (Broken, 'event archive "visits" has 2 of 2 events of version 1 that 2 cannot read; got partition 0, offset 0: seconds: Field required. Hint: mend the upcasts from version 1 on in schemas/events/visits.py'),
    ],
)  # fmt: skip
def test_a_contract_that_the_archive_does_not_fit_is_refused_with_what_to_do(model: type[Event], said: str) -> None:
    kept = evolved(FIRST)
    kept.states = MemoryRecovery()
    kept.send(model.stream.version)

    with pytest.raises(Refused) as refused:
        kept.run(given(model, **COUNT), rebuild=True)

    assert said in str(refused.value)


def test_going_back_to_an_older_contract_is_refused() -> None:
    kept = evolved(FIRST, SECOND)

    with pytest.raises(Refused, match="newer contract of visits than version 1; got version 2. Hint: deploy version 2"):
        kept.run(FIRST)


def test_parts_on_disk_keep_the_version_they_were_written_under(tmp_path: Path) -> None:
    kept = evolved(FIRST, SECOND)
    (old, *_), (known,) = kept.offline.parts_after(ARCHIVE, 0), SECOND.contracts.values()
    first = OfflineStore(tmp_path)
    first.prepare(ARCHIVE, FIRST.contracts[STREAM].schema)
    row = {"at": START, "user": "ada", "milliseconds": 1500, "event_timestamp": START}
    placed = row | {"_partition": 0, "_offset": 3, "_available_at": START}
    part = first.append(ARCHIVE, pa.Table.from_pylist([placed], FIRST.contracts[STREAM].schema))
    assert part is not None

    store = OfflineStore(tmp_path, {ARCHIVE: ArchiveForm(known)})
    store.prepare(ARCHIVE, known.schema)

    assert store.read(ARCHIVE)["seconds"].to_pylist() == [1.5]
    assert store.read_parts(ARCHIVE, [part], ["device", "_partition"]).to_pylist() == [
        {"device": "web", "_partition": 0}
    ]
    store.append(ARCHIVE, store.read(ARCHIVE))
    assert store.matching(ARCHIVE, known.schema, {"user": "ada"})["seconds"].to_pylist() == [1.5, 1.5]
    assert store.matching(ARCHIVE, known.schema, {"user": "bob"}).num_rows == 0
    found = store.summary(ARCHIVE, part)
    assert found is not None
    assert (found.rows_count, found.schema) == (1, known.schema)
    assert old


def test_a_replay_of_an_archived_part_knows_its_version(tmp_path: Path) -> None:
    kept = evolved(FIRST, SECOND)
    kept.offline.forms = {}
    old = [kept.offline.read_parts(ARCHIVE, [part]) for _, part in kept.offline.parts_after(ARCHIVE, 0)]
    counts = []
    for number, events in enumerate(old):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(events, file)
        done = replay(
            SECOND.pipeline, SECOND.contracts, {STREAM: str(file)}, tmp_path / f"rows{number}", now_us=lambda: 0
        )
        assert done.rejects == []
        counts.append(events.num_rows)
    assert sum(counts) == 6


def test_a_file_of_lines_follows_the_version_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps({"at": START.isoformat(), "user": "ada", "seconds": 1.5}) + "\n")

    def rejected(version: int | None) -> int:
        out = tmp_path / f"rows-{version}"
        files, known = {STREAM: str(file)}, SECOND.contracts
        return len(replay(SECOND.pipeline, known, files, out, now_us=lambda: 0, version=version).rejects)

    assert [rejected(None), rejected(2)] == [1, 0]
