"""The validator on both stores' twins: what is right is never a finding, and each fault is found by its own check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.steps.checks import checks_of
from freshet.flows.validator import check_round, exit_code
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.finding import Cause, Check, Outcome, Verdict
from freshet.schemas.plan import Oracle, Pipeline, ViewPlan
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET, GRACE = Objective(99, timedelta(seconds=5)), timedelta(seconds=3)
FRESH: Mapping[tuple[str, int], float | None] = {("edits", 0): 0.0, ("edits", 1): 0.8}
SLOW: Mapping[tuple[str, int], float | None] = {("edits", 0): 0.0, ("edits", 1): 4.0}
"""Within the target, but what was online a grace ago need not be committed."""
BREACHED: Mapping[tuple[str, int], float | None] = {("edits", 0): 0.0, ("edits", 1): 5.5}
UNKNOWN: Mapping[tuple[str, int], float | None] = {("edits", 0): 0.0, ("edits", 1): None}

Row = dict[str, Any]


def view_of(**dtypes: str) -> View:
    features = tuple(Feature(name, DTYPES[dtype], "…") for name, dtype in dtypes.items())
    return View("edits_by_user", ("edits",), (pa.field("user", pa.string()),), features)


VIEW = view_of(edits="int64", share="float64")
VIEW_OF_ALL = view_of(
    **{
        name.replace("(", "_").rstrip(")"): name
        for name in (
            "int32", "int64", "float32", "float64", "bool", "string", "bytes", "unix_timestamp", "array(int64)",
            "array(string)",
        )
    }
)  # fmt: skip


def row(user: str, seconds: float, version: int = 1, **values: Any) -> Row:
    at = START + timedelta(seconds=seconds)
    return {
        "user": user,
        "event_timestamp": at,
        "created": at,
        "_version": version,
        "_partition": 0,
        "_offset": 0,
        **values,
    }


def pipeline_of(view: View) -> Pipeline:
    return Pipeline("test", (ViewPlan(view, (), pa.schema([]), (), (), "", Oracle((), ""), whole_history=True),))


@dataclass
class World:
    """Both stores, what the flow's lag is, and what happens while the validator waits.

    `serve` changes what the online store answers: the faults that its compare-and-set does not let in.
    """

    view: View = VIEW
    lags: Mapping[tuple[str, int], float | None] = field(default_factory=lambda: FRESH)
    serve: Callable[[StoredRow | None], StoredRow | None] = lambda stored: stored
    meanwhile: Callable[["World"], object] = lambda _: None
    waits: list[timedelta] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.online, self.offline = MemoryOnlineStore("test", [self.view]), MemoryOfflineStore()
        self.offline.prepare(self.view.name, self.view.row_schema)

    def put_online(self, *rows: Row) -> None:
        self.online.write(self.view, pa.Table.from_pylist([*rows], self.view.row_schema))

    def put_offline(self, *rows: Row) -> None:
        self.offline.append(self.view.name, pa.Table.from_pylist([*rows], self.view.row_schema))

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        return self.online.sample(view, size, seed)

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        self.log.append("look")
        return [self.serve(stored) for stored in self.online.read(view, entities)]

    def lag_seconds(self) -> Mapping[tuple[str, int], float | None]:
        self.log.append("lag")
        return self.lags

    def wait(self, length: timedelta) -> None:
        self.waits.append(length)
        self.log.append("wait")
        self.meanwhile(self)

    def check(self, judge: Any) -> Verdict:
        (verdict,) = check_round(
            pipeline_of(self.view), self, self.offline, self.lag_seconds, judge,
            freshness_target=TARGET, sample_count=100, seed=1, grace=GRACE, wait=self.wait,
        )  # fmt: skip
        return verdict


ROWS = (
    row("ann", 0, edits=1, share=0.5),
    row("ann", 10, edits=2, share=0.25),
    row("bob", 20, edits=5, share=0.75),
    row("bob", 20, 2, edits=6, share=1.0),
    row("cid", 30, edits=None, share=None),
)
BOB = {"entity": "bob", "event_timestamp": "2026-03-01T12:00:20.000000+00:00", "version": 2}


def right() -> World:
    world = World()
    world.put_online(*ROWS)
    world.put_offline(*ROWS[:3])
    world.put_offline(*ROWS[3:])
    return world


def served(**values: Any) -> World:
    """A world that is right but for what the online store holds of bob."""

    def serve(stored: StoredRow | None) -> StoredRow | None:
        if stored is None or stored.entity != ("bob",):
            return stored
        return replace(stored, features={**stored.features, **values})

    world = right()
    world.serve = serve
    return world


def without_offline_row() -> World:
    world = right()
    world.put_online(row("bob", 25, edits=7, share=0.6))
    return world


def altered_offline() -> World:
    world = World()
    world.put_online(*ROWS)
    world.put_offline(*(line | {"share": 1.0000001} if line["_version"] == 2 else line for line in ROWS))
    return world


def older_online() -> World:
    world = right()
    world.put_offline(row("bob", 25, edits=7, share=0.6))
    return world


def older_version_online() -> World:
    world = right()
    world.put_offline(row("bob", 20, 3, edits=7, share=0.6))
    return world


def missing_online() -> World:
    world = right()
    world.put_offline(row("dan", 25, edits=7, share=0.6))
    return world


def doubled_offline() -> World:
    world = right()
    world.put_offline(ROWS[2])
    return world


def drifted() -> World:
    world = right()
    world.offline = MemoryOfflineStore()
    schema = view_of(edits="int32", share="float64").row_schema
    world.offline.prepare(VIEW.name, schema)
    world.offline.append(VIEW.name, pa.Table.from_pylist([*ROWS], schema))
    return world


def lagging(lags: Mapping[tuple[str, int], float | None]) -> Callable[[], World]:
    def make() -> World:
        world = right()
        world.lags = lags
        return world

    return make


def ahead_of_a_slow_flow() -> World:
    world = without_offline_row()
    world.lags = SLOW
    return world


DAN = {"entity": "dan"}
FAULTS: dict[str, tuple[Callable[[], World], str, Cause, tuple[str, ...], Mapping[str, Any]]] = {
    "an integer altered online": (
        lambda: served(edits=7), "edits.online_equals_offline", Cause.VALUE_MISMATCH, ("edits",), BOB
    ),
    "a float altered offline": (
        altered_offline, "share.online_equals_offline", Cause.VALUE_MISMATCH, ("share",), BOB
    ),
    "an integer null online": (
        lambda: served(edits=None), "edits.online_is_not_null", Cause.NULL_ONLINE, ("edits",), BOB
    ),
    "a float null online": (
        lambda: served(share=None), "share.online_is_not_null", Cause.NULL_ONLINE, ("share",), BOB
    ),
    "an integer that is a float online": (
        lambda: served(edits=6.0), "edits.online_has_dtype", Cause.DTYPE, ("edits",), BOB
    ),
    "a float that is an integer online": (
        lambda: served(share=1), "share.online_has_dtype", Cause.DTYPE, ("share",), BOB
    ),
    "a row missing offline": (
        without_offline_row, "online_row_is_offline", Cause.LOST_OFFLINE_WRITE, (), {"entity": "bob", "version": 1}
    ),
    "an online row older than offline": (older_online, "online_is_not_older", Cause.STALE_ONLINE, (), BOB),
    "an online version older than offline": (older_version_online, "online_is_not_older", Cause.STALE_ONLINE, (), BOB),
    "an entity missing online": (missing_online, "offline_entity_is_online", Cause.MISSING_ENTITY, (), DAN),
    "an offline row doubled": (doubled_offline, "offline_rows_are_single", Cause.DUPLICATE_OFFLINE, (), BOB),
    "another type offline": (
        drifted, "offline_schema_is_declared", Cause.SCHEMA_DRIFT, (), {"column": "edits", "found": "int32"}
    ),
    "lag over the target": (
        lagging(BREACHED), "lag_is_within_target", Cause.BREACHED, ("edits", "share"),
        {"stream": "edits", "partition": 1}
    ),
}  # fmt: skip
DOUBTS: dict[str, tuple[Callable[[], World], str]] = {
    "a row that a slow flow may not have written yet": (ahead_of_a_slow_flow, "online_row_is_settled"),
    "a partition whose lag is not known": (lagging(UNKNOWN), "lag_is_known"),
}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@dataclass
class Forgetful:
    """A judge whose suite lacks one check."""

    judge_of_all: Judge
    lacks: str

    def judge(self, view_name: str, frame: pd.DataFrame, checks: Sequence[Check], minimum_rows: int) -> Verdict:
        kept = [check for check in checks if check.name != self.lacks]
        if not kept:
            return Verdict(view_name, Outcome.OK, len(frame))
        return self.judge_of_all.judge(view_name, frame, kept, minimum_rows)


def test_stores_that_agree_are_ok_at_once(judge: Judge) -> None:
    world = right()

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.compared, verdict.findings, verdict.reasons) == (Outcome.OK, 3, (), ())
    assert world.waits == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_its_cause_its_feature_and_its_entity(judge: Judge, fault: str) -> None:
    plant, check, cause, features, evidence = FAULTS[fault]
    world = plant()

    verdict = world.check(judge)

    assert (verdict.outcome, world.waits) == (Outcome.VIOLATED, [GRACE])
    (finding,) = (finding for finding in verdict.findings if finding.check == f"edits_by_user.{check}")
    assert ("edits_by_user", cause, features) == (finding.view, finding.cause, finding.features)
    assert len(finding.evidence) == 1
    assert evidence.items() <= finding.evidence[0].items()


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_is_not_known_is_inconclusive(judge: Judge, doubt: str) -> None:
    make, check = DOUBTS[doubt]

    verdict = make().check(judge)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())
    assert [f"edits_by_user.{check}"] == [reason.partition(":")[0] for reason in verdict.reasons]


@pytest.mark.parametrize("check", [check.name for check in checks_of(VIEW, TARGET)])
def test_without_any_one_check_something_goes_unseen(judge: Judge, check: str) -> None:
    made = [fault[0] for fault in FAULTS.values() if f"edits_by_user.{fault[1]}" == check]
    made += [make for make, name in DOUBTS.values() if f"edits_by_user.{name}" == check]

    assert any(make().check(Forgetful(judge, check)).outcome is Outcome.OK for make in made)


def test_the_lag_is_asked_for_between_the_looks(judge: Judge) -> None:
    world = without_offline_row()

    world.check(judge)

    assert world.log == ["look", "lag", "wait", "lag", "look"]


def test_a_row_that_becomes_visible_offline_during_the_grace_is_no_finding(judge: Judge) -> None:
    world = without_offline_row()
    world.meanwhile = lambda world: world.put_offline(row("bob", 25, edits=7, share=0.6))

    assert (world.check(judge).outcome, world.waits) == (Outcome.OK, [GRACE])


def test_a_row_that_becomes_visible_online_during_the_grace_is_no_finding(judge: Judge) -> None:
    world = missing_online()
    world.meanwhile = lambda world: world.put_online(row("dan", 25, edits=7, share=0.6))

    assert Outcome.OK is world.check(judge).outcome


def test_an_entity_that_never_rests_is_still_compared(judge: Judge) -> None:
    def go_on(world: World) -> None:
        world.put_offline(row("bob", 25, edits=7, share=0.6))
        world.put_online(row("bob", 28, edits=8, share=0.6))

    world = without_offline_row()
    world.meanwhile = go_on

    assert Outcome.OK is world.check(judge).outcome

    world = without_offline_row()
    world.serve = lambda stored: stored and replace(stored, features={"edits": 9, "share": 0.6})
    world.meanwhile = go_on

    assert Cause.VALUE_MISMATCH in {finding.cause for finding in world.check(judge).findings}


def test_of_a_flow_that_stands_still_no_row_is_called_lost(judge: Judge) -> None:
    world = without_offline_row()
    world.lags = BREACHED

    verdict = world.check(judge)

    assert [finding.cause for finding in verdict.findings] == [Cause.BREACHED]
    assert verdict.reasons[0].startswith("edits_by_user.online_row_is_settled")


def test_an_idle_stream_is_fresh(judge: Judge) -> None:
    world = right()
    world.lags = {("edits", 0): 0.0}

    assert Outcome.OK is world.check(judge).outcome


def test_the_lag_of_another_stream_is_not_this_view_s(judge: Judge) -> None:
    world = right()
    world.lags = {**FRESH, ("views", 0): 900.0}

    assert Outcome.OK is world.check(judge).outcome


@pytest.mark.parametrize("lags", [{}, {("views", 0): 0.0}])
def test_a_stream_of_which_no_lag_is_known_is_inconclusive(judge: Judge, lags: Mapping[tuple[str, int], float]) -> None:
    world = right()
    world.lags = lags

    assert Outcome.INCONCLUSIVE is world.check(judge).outcome


def test_empty_stores_are_inconclusive(judge: Judge) -> None:
    verdict = World().check(judge)

    assert (verdict.outcome, verdict.compared) == (Outcome.INCONCLUSIVE, 0)
    assert verdict.reasons == ("edits_by_user: 0 lines to judge, fewer than 1",)


def test_the_worst_verdict_is_the_exit_code() -> None:
    verdicts = [Verdict("v", outcome, 1) for outcome in Outcome]

    assert [exit_code([verdict]) for verdict in verdicts] == [0, 3, 1, 4]
    assert [exit_code([*reversed(verdicts[:count])]) for count in (1, 2, 3, 4)] == [0, 3, 1, 4]
    assert exit_code([]) == 3


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "bool": st.booleans(),
    "string": st.text(),
    "bytes": st.binary(),
    "unix_timestamp": st.integers(-(2**31), 2**33).map(
        lambda s: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=s)
    ),
    "array_int64": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    "array_string": st.lists(st.text(), max_size=3),
}
HISTORIES = st.lists(
    st.builds(
        row,
        user=st.text(max_size=3),
        seconds=st.integers(0, 4),
        **{name: st.none() | values for name, values in VALUES.items()},
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES, st.integers(0, 30))
def test_of_a_right_history_there_is_no_finding(judge: Judge, rows: list[Row], late: int) -> None:
    seen: dict[tuple[str, datetime], int] = {}
    for line in rows:
        key = line["user"], line["event_timestamp"]
        line["_version"] = seen[key] = seen.get(key, 0) + 1
    world = World(VIEW_OF_ALL)
    for line in rows:
        world.put_online(line)
    world.put_offline(*rows[late:])
    world.meanwhile = lambda world: world.put_offline(*rows[:late])

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.findings, verdict.reasons) == (Outcome.OK, (), ())


@dataclass
class Live:
    """A flow at work: whenever a store is touched it has written a little more, online always before offline.

    Of each step it takes the number of rows to write online, and of those waiting to write offline.
    """

    rows: list[Row]
    steps: list[tuple[int, int]]

    def __post_init__(self) -> None:
        self.world = World()
        self.online_count = self.offline_count = self.looked_at_count = 0

    def go_on(self) -> None:
        more_online, more_offline = self.steps.pop() if self.steps else (0, 0)
        behind, self.online_count = self.online_count, min(len(self.rows), self.online_count + more_online)
        self.world.put_online(*self.rows[behind : self.online_count])
        behind, self.offline_count = self.offline_count, min(self.online_count, self.offline_count + more_offline)
        self.world.put_offline(*self.rows[behind : self.offline_count])

    def lag_seconds(self) -> Mapping[tuple[str, int], float | None]:
        self.go_on()
        if not self.world.waits:
            self.looked_at_count = self.online_count
        return FRESH if self.offline_count >= self.looked_at_count else SLOW

    def wait(self, length: timedelta) -> None:
        self.go_on()
        self.world.wait(length)

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        self.go_on()
        return self.world.sample(view, size, seed)

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        self.go_on()
        return self.world.read(view, entities)


@dataclass
class LiveOffline:
    flow: Live

    def read(self, name: str) -> pa.Table:
        self.flow.go_on()
        return self.flow.world.offline.read(name)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 3)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9),
)
def test_a_flow_at_work_is_never_accused(
    judge: Judge, events: list[tuple[str, int]], steps: list[tuple[int, int]]
) -> None:
    rows = [row(user, seconds, version, edits=version, share=0.5) for version, (user, seconds) in enumerate(events, 1)]
    flow = Live(rows, steps)

    (verdict,) = check_round(
        pipeline_of(VIEW), flow, LiveOffline(flow), flow.lag_seconds, judge,
        freshness_target=TARGET, sample_count=100, seed=1, grace=GRACE, wait=flow.wait,
    )  # fmt: skip

    assert verdict.findings == ()
    assert verdict.outcome in {Outcome.OK, Outcome.INCONCLUSIVE}
