"""Canaries through the whole flow on twins: what is right is never a finding, and each fault is found by its own check."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pytest
from pydantic import AwareDatetime
from simulated import GIVEN, START, STREAM, World

from freshet.flows import settings
from freshet.flows.canaries import Canaries, agreed
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.project import Project
from freshet.flows.edges.quality import Judge
from freshet.flows.live_validator import templates_of
from freshet.flows.observer import Observer
from freshet.flows.steps.canaries import Template
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import Freshness
from freshet.flows.testing import Given
from freshet.flows.watch import Outside, Sampling
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Refused
from freshet.schemas.event import CANARY_HEADER, Event, Stream, archive_name
from freshet.schemas.finding import Cause, Frame, Outcome, Question, Verdict
from freshet.schemas.ledger import Ledger, PartitionMark
from freshet.schemas.record import header
from freshet.schemas.units import Objective, instant_us
from freshet.schemas.view import StoredRow, View

TARGET, LIMIT = Objective(99, timedelta(seconds=2)), timedelta(seconds=15)
TEMPLATES = agreed(
    {STREAM: {"user": "canary-{canary}", "id": "canary-{sequence}", "cost": "1"}}, GIVEN.contracts, GIVEN.pipeline
)
(VIEW,) = GIVEN.pipeline.views
CHECKS = [check for check in checks_of(VIEW, TARGET) if check.frame is Frame.CANARIES]
NAMES = [check.name.partition(".")[2] for check in CHECKS]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@dataclass
class Aviary:
    """A flow that runs when it is told to, on twins, and a validator whose rounds are five seconds apart.

    `serve` changes what the online store answers.
    """

    templates: Sequence[Template] = TEMPLATES
    serve: Callable[[StoredRow | None], StoredRow | None] = lambda stored: stored
    seen: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world = World(seed=7, events_count=6, shards_count=1, is_live=False)
        for part in range(self.world.partitions_count):
            self.publish(part, START + timedelta(seconds=60))
        self.world.run()
        self.numbers = itertools.count(1)
        self.observer = self.validator()

    def validator(self) -> Observer:
        log, counts = self.world.log, {STREAM: self.world.partitions_count}
        outside = Outside(self, self.world.offline, self.world.ledger, dict, dict, self.now)
        canaries = Canaries(
            self.templates, GIVEN.pipeline, counts, log.canaries(), self.now, LIMIT,
            lambda partition, store, at_s: self.seen.update({(partition, store): at_s}),
        )  # fmt: skip
        return Observer(GIVEN.pipeline, outside, Sampling(), Freshness(TARGET), canaries if self.templates else None)

    def now(self) -> datetime:
        return START + timedelta(microseconds=self.world.now_us - int(START.timestamp() * 1e6))

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        return self.world.online.sample(view, size, seed)

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        return [self.serve(stored) for stored in self.world.online.read(view, entities)]

    def counted_writes(self) -> int:
        return self.world.online.counted_writes()

    def round(self) -> pd.DataFrame | None:
        """Look once; return the frame of canaries."""
        self.world.now_us += 5_000_000
        (seen,) = self.observer.look(next(self.numbers))
        assert seen.error == ""
        return seen.frames.get(Frame.CANARIES)

    def marks(self) -> dict[int, int]:
        """Up to which event time each partition is."""
        ledger = self.world.ledger.read()
        assert ledger is not None
        return {partition: mark.newest_us for partition, mark in ledger.partitions_of(STREAM).items()}

    def sent(self) -> list[tuple[int, int, bytes, datetime]]:
        """Every canary in Kafka: its partition, offset, key and event time."""
        return [
            (poll.partition, int(offset), key or b"", datetime.fromisoformat(json.loads(value or b"")["at"]))
            for poll in self.world.log.records(STREAM)
            for offset, key, value, headers in zip(
                poll.offsets, poll.keys, poll.values, poll.headers or [None] * len(poll.values), strict=True
            )
            if header(headers, CANARY_HEADER) is not None
        ]

    def publish(self, partition: int, at: datetime, user: str = "a") -> None:
        """A user's event."""
        event = {"at": at.isoformat(), "user": user, "id": f"{partition} {at}", "cost": "1"}
        self.world.log.append(STREAM, partition, json.dumps(event).encode())


def judged(judge: Judge, frame: pd.DataFrame | None, lacks: str = "") -> Verdict:
    assert frame is not None, "there is nothing to judge"
    checks = [check for check in CHECKS if check.name != f"{VIEW.name}.{lacks}"]
    (verdict,) = judge.judge([Question(VIEW.name, frame, checks)])
    return verdict


# --- what is right ----------------------------------------------------------------------------------------------------


def test_without_consent_nothing_is_ever_published() -> None:
    aviary = Aviary(())
    before = [len(poll.values) for poll in aviary.world.log.records(STREAM)]

    frames = [aviary.round() for _ in range(5)]

    assert frames == [None] * 5
    assert before == [len(poll.values) for poll in aviary.world.log.records(STREAM)]


def test_a_validator_without_the_setting_has_no_consent(project: Path) -> None:
    assert () == templates_of(Workspace.open(settings.Settings(project=project)))


def test_a_flow_that_keeps_up_is_ok_round_after_round(judge: Judge) -> None:
    aviary = Aviary()
    verdicts = []
    aviary.round()

    for _ in range(3):
        aviary.world.run()
        verdicts.append(judged(judge, aviary.round()))

    assert [(Outcome.OK, 2)] * 3 == [(verdict.outcome, verdict.compared) for verdict in verdicts]


def test_each_partition_has_a_canary_of_its_own_and_the_next_one_once_it_was_judged() -> None:
    aviary = Aviary()

    for _ in range(3):
        aviary.round()
    first = aviary.sent()
    aviary.world.run()
    for _ in range(3):
        aviary.round()

    assert [0, 1] == [partition for partition, *_ in first]
    assert 4 == len(aviary.sent())
    assert 2 == len({key for _, _, key, _ in aviary.sent()})


def test_the_next_validator_goes_on_with_the_same_entities_at_later_times() -> None:
    aviary = Aviary()
    aviary.round()
    aviary.world.run()

    aviary.observer = aviary.validator()
    aviary.round()

    by_key = [[at for _, _, key, at in aviary.sent() if key == of] for of in {key for _, _, key, _ in aviary.sent()}]
    assert all(before < after for before, after in by_key)


def test_a_canary_makes_no_event_late() -> None:
    """A producer that was away for an hour tells what it gathered meanwhile."""
    aviary = Aviary()
    marks = aviary.marks()
    aviary.world.now_us += 3_600_000_000
    aviary.round()
    aviary.world.run()
    assert aviary.round() is not None

    assert marks == aviary.marks()
    before = len(aviary.world.letters)
    for part, newest_us in marks.items():
        aviary.publish(part, datetime.fromtimestamp(newest_us / 1e6, UTC) - timedelta(seconds=19))
    aviary.world.run()
    assert before == len(aviary.world.letters)


def test_a_canary_is_archived_and_in_both_stores_like_any_event() -> None:
    aviary = Aviary()
    aviary.round()

    aviary.world.run()

    for partition, offset, key, at in aviary.sent():
        user = key.decode()
        assert (partition, offset) in aviary.world.archived()
        events = aviary.world.offline.read(archive_name(STREAM))
        assert [at] == events.filter(pc.equal(events["user"], user))["at"].to_pylist()
        rows = aviary.world.offline.final(VIEW)
        assert at in rows.filter(pc.equal(rows["user"], user))["event_timestamp"].to_pylist()
        (stored,) = aviary.world.online.read(VIEW, [(user,)])
        assert stored is not None
        assert stored.event_timestamp >= at


def test_the_metric_says_when_the_newest_canary_was_sent_that_a_store_has() -> None:
    aviary = Aviary()
    places = {(f"{STREAM}/{part}", store) for part in (0, 1) for store in ("online", "offline")}
    assert dict.fromkeys(places, 0.0) == aviary.seen

    aviary.round()
    sent_at = aviary.now()
    aviary.world.run()
    aviary.round()

    assert dict.fromkeys(places, sent_at.timestamp()) == aviary.seen


def test_a_partition_into_which_nobody_published_yet_gets_no_canary() -> None:
    """Its first event is its users': of whatever time that is, a canary's could make it late."""
    aviary = Aviary()
    ledger = aviary.world.ledger.read()
    assert ledger is not None
    marks = {key: mark for key, mark in ledger.partitions.items() if not key.endswith("1")}
    aviary.world.ledger.write(ledger.model_copy(update={"partitions": marks}))

    aviary.round()

    assert {0} == {partition for partition, *_ in aviary.sent()}


# --- what is wrong ----------------------------------------------------------------------------------------------------


def standing_still() -> pd.DataFrame | None:
    """A flow that takes nothing, and nobody but the canaries publishes."""
    aviary = Aviary()
    for _ in range(5):
        frame = aviary.round()
    return frame


def with_an_online_store_that(serve: Callable[[StoredRow], StoredRow | None]) -> pd.DataFrame | None:
    aviary = Aviary()
    aviary.round()
    aviary.world.run()
    aviary.serve = lambda stored: stored and serve(stored)
    return aviary.round()


def older_online() -> pd.DataFrame | None:
    return with_an_online_store_that(lambda stored: replace(stored, event_timestamp=START))


def absent_online() -> pd.DataFrame | None:
    return with_an_online_store_that(lambda _: None)


def absent_offline() -> pd.DataFrame | None:
    aviary = Aviary()
    aviary.round()
    aviary.world.run()
    parts = aviary.world.offline._visible[VIEW.name]  # noqa: SLF001  # what no flow does
    for part, rows in parts.items():
        parts[part] = rows.filter(pc.invert(pc.starts_with(rows["user"], "canary")))
    return aviary.round()


def unreachable() -> pd.DataFrame | None:
    aviary = Aviary()
    aviary.world.log.well = False
    aviary.round()
    return aviary.round()


def overtaken() -> pd.DataFrame | None:
    """An event an hour ahead stands before the canary, so that the flow rejects it as late."""
    aviary = Aviary()
    for part in (0, 1):
        aviary.publish(part, START + timedelta(hours=1))
    aviary.round()
    aviary.world.run()
    return aviary.round()


FAULTS: Mapping[str, tuple[Callable[[], pd.DataFrame | None], str, Cause]] = {
    "a flow that stands still": (standing_still, "no_canary_is_stalled", Cause.STALE_ONLINE),
    "a canary that is not online": (absent_online, "canaries_are_online", Cause.LOST_ONLINE_WRITE),
    "an online row older than its canary": (older_online, "canaries_are_online", Cause.LOST_ONLINE_WRITE),
    "a canary that is not offline": (absent_offline, "canaries_are_offline", Cause.LOST_OFFLINE_WRITE),
}
DOUBTS: Mapping[str, Callable[[], pd.DataFrame | None]] = {
    "kafka takes no canary": unreachable,
    "the flow may have rejected it": overtaken,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_its_cause_by_its_own_check_alone(judge: Judge, fault: str) -> None:
    plant, check, cause = FAULTS[fault]
    frame = plant()

    verdict = judged(judge, frame)

    (finding,) = verdict.findings
    assert (f"{VIEW.name}.{check}", cause, 2) == (finding.check, finding.cause, finding.count)
    assert finding.evidence[0]["entity"].startswith("canary-")
    assert finding.as_json()["source"]["offset"] is not None
    assert () == judged(judge, frame, lacks=check).findings


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_canary_that_cannot_tell_is_inconclusive_and_no_finding(judge: Judge, doubt: str) -> None:
    frame = DOUBTS[doubt]()

    verdict = judged(judge, frame)

    assert (Outcome.INCONCLUSIVE, ()) == (verdict.outcome, verdict.findings)
    assert Outcome.OK is judged(judge, frame, lacks="canaries_are_under_way").outcome


def test_every_check_of_canaries_has_something_that_only_it_sees() -> None:
    assert {*NAMES} == {check for _, check, _ in FAULTS.values()} | {"canaries_are_under_way"}


def test_what_was_lost_is_told_once_and_the_next_canary_is_right_again(judge: Judge) -> None:
    aviary = Aviary()
    aviary.round()
    aviary.world.run()
    aviary.serve = lambda _: None
    assert judged(judge, aviary.round()).findings

    aviary.serve = lambda stored: stored
    aviary.world.run()

    assert Outcome.OK is judged(judge, aviary.round()).outcome


def test_a_validator_that_slept_finds_no_flow_standing_still_at_its_first_look(judge: Judge) -> None:
    aviary = Aviary()
    aviary.round()
    aviary.world.now_us += 3_600_000_000

    assert () == judged(judge, aviary.round()).findings


def test_an_online_store_that_lost_everything_is_no_canary_s_matter() -> None:
    aviary = Aviary()
    aviary.round()
    aviary.world.run()
    aviary.world.online.forget()

    assert aviary.round() is None


# --- what is agreed ---------------------------------------------------------------------------------------------------


class Ride(Event):
    stream = Stream("rides", "rider", "at", "id")

    at: AwareDatetime
    rider: int
    id: int
    city: str
    fare: str


WINDOW = "ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 minute' PRECEDING AND CURRENT ROW"
RIDES = Given.declared(
    json.dumps(
        {
            "featureDefinitions": [
                {"name": name, "dtype": "int64", "source": "rides", "transformation": transformation}
                for name, transformation in (
                    ("rides_1m", f"count(*) OVER (PARTITION BY rider {WINDOW})"),
                    ("fare_1m", f"sum(CAST(fare AS BIGINT)) OVER (PARTITION BY city {WINDOW})"),
                )
            ],
            "servingRequirements": {},
        }
    ),
    {"rides": Ride},
)
RIDE = {"rider": "{canary:9000}", "id": "{sequence:-5}", "city": "nowhere-{canary}", "fare": "1"}


def test_places_of_integers_count_from_their_base_and_become_integers() -> None:
    (template,) = agreed({"rides": RIDE}, RIDES.contracts, RIDES.pipeline)

    event = template.filled(3, 17, START)

    assert {"rider": 9003, "id": 12, "city": "nowhere-3", "fare": "1", "at": START} == event


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "an unknown stream": ({"ride": RIDE}, 'canary "ride" is of no declared stream. Hint: did you mean rides?'),
    "no event": ({"rides": "all"}, "is no event; got 'all'"),
    "an unknown field": (
        {"rides": {**RIDE, "citty": "x"}},
        "has an unknown field; got citty. Hint: did you mean city?",
    ),
    "a missing field": ({"rides": {**RIDE, "fare": None}}, "breaks the contract of rides"),
    "an expression that fails": ({"rides": {**RIDE, "fare": "much"}}, "would be rejected as transform"),
    "a key that is always the same": ({"rides": {**RIDE, "rider": 7}}, "has the same key in every partition; got 7"),
    "an id that is always the same": ({"rides": {**RIDE, "id": 7}}, "repeats its event id"),
    "an entity of somebody's own": (
        {"rides": {**RIDE, "city": "Rome"}},
        "would be an event of an entity of rides_by_city that may be somebody's own; got Rome",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_consent_that_cannot_be_used_is_refused_with_the_reason(case: str) -> None:
    told, reason = REFUSED[case]

    with pytest.raises(Refused) as refusal:
        agreed(told, RIDES.contracts, RIDES.pipeline)

    assert reason in str(refusal.value)


def test_a_stream_without_lateness_is_refused() -> None:
    contract = RIDES.contracts["rides"]
    strict = type("Ride", (Ride,), {"stream": replace(Ride.stream, lateness=timedelta(0)), "__module__": __name__})

    with pytest.raises(Refused, match="too little lateness"):
        agreed({"rides": RIDE}, {"rides": replace(contract, model=strict)}, RIDES.pipeline)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "is neither YAML nor JSON"),
        ("- rides", "has no events by stream"),
        ("", "has no events by stream"),
        (b"\xff", "is not UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_consent_that_cannot_be_read_is_refused(
    tmp_path: Path, text: str | bytes | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "canaries.yaml").write_bytes(text.encode() if isinstance(text, str) else text)

    with pytest.raises(Refused, match=f'canaries "canaries.yaml" {reason}'):
        Project(tmp_path).canaries(Path("canaries.yaml"))


def test_a_file_of_consent_gives_events_by_stream(tmp_path: Path) -> None:
    (tmp_path / "canaries.yaml").write_text('clicks:\n  user: "canary-{canary}"\n  cost: "1"\n')

    assert {"clicks": {"user": "canary-{canary}", "cost": "1"}} == Project(tmp_path).canaries(Path("canaries.yaml"))


def test_a_view_that_cannot_be_looked_at_holds_up_no_other() -> None:
    log = MemoryLog()
    log.create_topics({"rides": 2})
    templates = agreed({"rides": RIDE}, RIDES.contracts, RIDES.pipeline)
    canaries = Canaries(templates, RIDES.pipeline, {"rides": 2}, log.canaries(), lambda: START, LIMIT)
    marks = {f"rides/00000{part}": PartitionMark(newest_us=instant_us(START)) for part in (0, 1)}
    ledger = Ledger(id="a", shards_count=1, partitions=marks, offsets=dict.fromkeys(marks, 1))
    by_rider, by_city = RIDES.pipeline.views

    canaries.send(ledger)
    for probe in canaries.probes(by_rider):
        probe.look(ledger, START, START)
        probe.let_go()
    canaries.send(ledger)
    canaries.send(ledger)

    assert [2, 2] == [len(poll.values) for poll in log.records("rides")]
    assert [1, 1] == [probe.canary and probe.canary.offset for probe in canaries.probes(by_rider)]
    assert [0, 0] == [probe.canary and probe.canary.offset for probe in canaries.probes(by_city)]
