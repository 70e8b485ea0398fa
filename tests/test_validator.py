"""The validator on both stores' twins: what is right is never a finding, and each fault is found by its own check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from forgetful import Forgetful
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.flows.edges.feast_memory import MemoryFeastClient
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.recovery import MemoryLedger
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.observer import Observer
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import Freshness, Progress
from freshet.flows.validator import check_once, exit_code
from freshet.flows.watch import Outside, Sampling
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import Cause, Frame, Outcome, Verdict
from freshet.schemas.ledger import Ledger, ShardMark, Update
from freshet.schemas.plan import Oracle, Pipeline, ViewPlan
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET, GRACE, LIMIT = Objective(99, timedelta(seconds=5)), timedelta(seconds=3), timedelta(seconds=20)
TTL = timedelta(hours=1)
Standing = Mapping[tuple[str, int], Progress]
FRESH: Standing = {("edits", 0): Progress(5, 5), ("edits", 1): Progress(7, 7)}
STANDING: Standing = {("edits", 0): Progress(5, 5), ("edits", 1): Progress(7, 9)}
NEVER_COMMITTED: Standing = {("edits", 0): Progress(5, 5), ("edits", 1): Progress(None, 3)}

Row = dict[str, Any]


def view_of(**dtypes: str) -> View:
    features = tuple(Feature(name, DTYPES[dtype], "…") for name, dtype in dtypes.items())
    return View("edits_by_user", ("edits",), (pa.field("user", pa.string()),), features, TTL)


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


def plan_of(view: View) -> ViewPlan:
    return ViewPlan(view, (), pa.schema([]), (), (), "", Oracle((), ""), whole_history=True)


def pipeline_of(view: View) -> Pipeline:
    return Pipeline("test", (plan_of(view),))


@dataclass
class World:
    """Both stores, Feast, the ledger, Kafka's end, the flow's progress, and a clock that moves when the validator waits.

    Every row that is put online is one more message in Kafka; what is put offline is committed up to `behind` messages.
    `serve` changes what the online store answers: the faults that its compare-and-set does not let in. `meanwhile` is
    what happens at the first wait. `feast` stands on both stores, with the view as it is declared.
    """

    view: View = VIEW
    progress: Standing = field(default_factory=lambda: FRESH)
    serve: Callable[[StoredRow | None], StoredRow | None] = lambda stored: stored
    meanwhile: Callable[["World"], object] = lambda _: None
    behind: int = 0
    waits: list[timedelta] = field(default_factory=list)
    end: int = 0
    at: datetime = START + timedelta(minutes=5)

    def __post_init__(self) -> None:
        self.online, self.offline = MemoryOnlineStore("test", [self.view], lambda: self.at), MemoryOfflineStore()
        self.offline.prepare(self.view.name, self.view.row_schema)
        self.ledger = MemoryLedger()
        self.ledger.write(Ledger(id="a", shards_count=2, views={self.view.name: plan_of(self.view).digest}))
        self.feast = MemoryFeastClient(self, self.offline, [self.view])

    def put_online(self, *rows: Row) -> None:
        self.end += len(rows)
        self.online.write(self.view, pa.Table.from_pylist([*rows], self.view.row_schema))

    def put_offline(self, *rows: Row, told: int | None = None) -> None:
        """Commit rows; `told` is how many the ledger says, if not as many."""
        before = self.ledger.read()
        assert before is not None
        epoch = before.epoch + 1
        stamped = [{**line, "created": line["created"] + timedelta(microseconds=line["_version"])} for line in rows]
        part = self.offline.stage(self.view.name, pa.Table.from_pylist(stamped, self.view.row_schema), epoch)
        parts = {self.view.name: {part: len(rows) if told is None else told}} if part else {}
        shards = {f"{self.view.name}/{shard}": ShardMark(clock_us=2**60) for shard in range(2)}
        update = Update(parts=parts, shards=shards, online_writes_count=self.online.counted_writes())
        self.ledger.write(before.after(epoch, {"edits/000000": self.end - self.behind}, [update]))
        self.offline.publish(parts)

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        return self.online.sample(view, size, seed)

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        return [self.serve(stored) for stored in self.online.read(view, entities)]

    def counted_writes(self) -> int:
        return self.online.counted_writes()

    def wait(self, length: timedelta) -> None:
        if not self.waits:
            self.meanwhile(self)
        self.waits.append(length)
        self.at += length

    def outside(self, **changes: Any) -> Outside:
        parts = {
            "online": self, "offline": self.offline, "ledger": self.ledger, "ends": lambda: {"edits/000000": self.end},
            "progress": lambda: self.progress, "now": lambda: self.at, "feast": lambda: self.feast,
        }  # fmt: skip
        return Outside(**{**parts, **changes})

    def observer(self, **changes: Any) -> Observer:
        sampling = Sampling(rows_count=100, keys_count=100, grace=GRACE, limit=LIMIT, seed=1)
        return Observer(pipeline_of(self.view), self.outside(**changes), sampling, Freshness(TARGET))

    def check(self, judge: Any, **changes: Any) -> Verdict:
        (verdict,) = check_once(self.observer(**changes), judge, TARGET, self.wait, grace=GRACE)
        return verdict


ROWS = (
    row("ann", 0, edits=1, share=0.5),
    row("ann", 10, edits=2, share=0.25),
    row("bob", 20, edits=5, share=0.75),
    row("bob", 20, 2, edits=6, share=1.0),
    row("cid", 30, edits=None, share=None),
)
BOB = {"entity": "bob", "event_timestamp": "2026-03-01T12:00:20.000000+00:00", "version": 2}
NEWER = row("bob", 25, edits=7, share=0.6)
DAN_S = row("dan", 25, edits=7, share=0.6)


def right(**changes: Any) -> World:
    world = World(**changes)
    world.put_online(*ROWS)
    world.put_offline(*ROWS[:3])
    world.put_offline(*ROWS[3:])
    return world


def served(**values: Any) -> World:
    """A world that is right but for what the online store holds of bob."""

    return changed(lambda stored: replace(stored, features={**stored.features, **values}))


def changed(change: Callable[[StoredRow], StoredRow]) -> World:
    """A world that is right but for bob's online row."""
    return right(serve=lambda stored: change(stored) if stored and stored.entity == ("bob",) else stored)


def without_offline_row() -> World:
    world = right()
    world.put_online(NEWER)
    world.put_offline()
    return world


def with_a_row_not_yet_committed() -> World:
    world = right()
    world.put_online(NEWER)
    return world


def altered_offline() -> World:
    world = World()
    world.put_online(*ROWS)
    world.put_offline(*(line | {"share": 1.0000001} if line["_version"] == 2 else line for line in ROWS))
    return world


def older_online(newer: Row = NEWER) -> World:
    world = right()
    world.put_offline(newer)
    return world


def overwritten_meanwhile() -> World:
    def overwrite(world: World) -> None:
        world.serve = lambda stored: stored and replace(stored, event_timestamp=START)

    return right(meanwhile=overwrite)


def emptied_by_the_second_look() -> World:
    def vanish(world: World) -> None:
        world.serve = lambda stored: None if stored and stored.entity == ("bob",) else stored

    return right(meanwhile=vanish)


def doubled_offline() -> World:
    world = right()
    world.put_offline(ROWS[3])
    return world


def copied_part() -> World:
    world = right()
    world.offline.append(VIEW.name, pa.Table.from_pylist([ROWS[2]], VIEW.row_schema))
    return world


def cut_part() -> World:
    world = right()
    world.put_online(DAN_S)
    world.put_offline(DAN_S, told=2)
    return world


def cut_part_of_long_ago() -> World:
    world = cut_part()
    world.put_offline(row("eve", 26, edits=1, share=0.1))
    world.put_online(row("eve", 26, edits=1, share=0.1))
    world.put_offline()
    return world


def gone_part() -> World:
    """Only of a row that newer ones have followed."""
    world = right()
    world.put_offline(row("ann", 5, edits=1, share=0.5), row("ann", 6, edits=1, share=0.5))
    (part,) = world.ledger.read().parts[VIEW.name]  # type: ignore[union-attr]
    world.offline.delete(VIEW.name, [part])
    return world


def restored() -> World:
    world = right()
    world.online.forget()
    return world


def ahead() -> World:
    world = right()
    late = row("dan", 60 * 6, edits=7, share=0.6)
    world.put_online(late)
    world.put_offline(late)
    return world


def drifted() -> World:
    world = right()
    schema = view_of(edits="int32", share="float64").row_schema
    world.offline._visible[VIEW.name]["part-0000000009-other-000000.parquet"] = schema.empty_table()  # noqa: SLF001
    return world


def standing_still() -> World:
    """A flow that commits nothing, and a row that waits for it, so that the validator does, too."""
    world = with_a_row_not_yet_committed()
    world.progress = STANDING
    return world


def superseded_in_history(**values: Any) -> World:
    """Feast chooses by `created` alone, and the older version was made last."""
    world = right()
    older, newer = NEWER | values, NEWER | {"_version": 2}
    world.put_online(older, newer)
    world.put_offline(older | {"created": older["created"] + timedelta(seconds=1)}, newer)
    return world


def served_from(*rows: Row) -> World:
    """Feast's clients read another online store than the flow writes."""
    world = right()
    other = World()
    other.put_online(*rows)
    world.feast = MemoryFeastClient(other, world.offline, [VIEW])
    return world


class Losing:
    """An offline store in which readers see no row of bob."""

    def __init__(self, offline: MemoryOfflineStore) -> None:
        self._offline = offline

    def read_parts(self, *words: Any) -> pa.Table:
        rows = self._offline.read_parts(*words)
        return rows.filter(pa.array([user != "bob" for user in rows["user"].to_pylist()], pa.bool_()))


def without_history() -> World:
    world = right()
    world.feast = MemoryFeastClient(world, Losing(world.offline), [VIEW])  # type: ignore[arg-type]
    return world


def registered(view: View | None) -> World:
    world = right()
    world.feast = MemoryFeastClient(world, world.offline, [view] if view else [])
    return world


DAN, ALL = {"entity": "dan"}, {"part": "all"}
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
    "a part that is gone": (
        gone_part, "offline_parts_are_there", Cause.LOST_OFFLINE_WRITE, (), {"committed": 2, "visible": None}
    ),
    "a part with fewer rows than were committed": (
        cut_part, "offline_parts_are_whole", Cause.PARTIAL_BATCH, (), {"committed": 2, "visible": 1}
    ),
    "a part that lost rows long ago": (
        cut_part_of_long_ago, "offline_parts_are_whole", Cause.PARTIAL_BATCH, (), ALL | {"committed": 8, "visible": 7}
    ),
    "an online row older than offline": (older_online, "online_follows_offline", Cause.LOST_ONLINE_WRITE, (), BOB),
    "an online version older than offline": (
        lambda: older_online(row("bob", 20, 3, edits=7, share=0.6)), "online_follows_offline",
        Cause.LOST_ONLINE_WRITE, (), BOB
    ),
    "an online row replaced by an older one": (
        overwritten_meanwhile, "online_does_not_go_back", Cause.OUT_OF_ORDER_OVERWRITE, (), BOB
    ),
    "an entity never written online": (
        lambda: older_online(DAN_S), "first_row_is_online", Cause.LOST_ONLINE_WRITE, (), DAN
    ),
    "an entity written more than once that is not online": (
        lambda: older_online(DAN_S | {"_version": 3}), "entity_is_online", Cause.MISSING_ENTITY, (), DAN
    ),
    "an entity that went away": (emptied_by_the_second_look, "entity_is_online", Cause.MISSING_ENTITY, (), BOB),
    "a row that is kept for ever": (
        lambda: changed(lambda stored: replace(stored, expires_at=None)), "online_row_expires", Cause.EXPIRED_TTL, (),
        BOB | {"expires_at": "never"}
    ),
    "a row that is kept for too long": (
        lambda: changed(lambda stored: replace(stored, expires_at=START + timedelta(minutes=66))),
        "online_row_expires", Cause.EXPIRED_TTL, (), BOB
    ),
    "an online store that lost everything": (
        restored, "online_store_is_the_same", Cause.STALE_ONLINE, (), {"committed": 1, "counted": 0}
    ),
    "an offline row doubled": (doubled_offline, "offline_rows_are_single", Cause.DUPLICATE_OFFLINE, (), BOB),
    "a part that the flow did not make": (
        copied_part, "offline_parts_are_the_flow_s", Cause.DUPLICATE_OFFLINE, (),
        ALL | {"committed": 5, "visible": 6}
    ),
    "a row of the future": (ahead, "online_row_is_of_the_past", Cause.CLOCK_SKEW, (), DAN),
    "another type offline": (
        drifted, "offline_schema_is_declared", Cause.SCHEMA_DRIFT, (), {"column": "edits", "found": "int32"}
    ),
    "a partition that stands still while events wait": (
        standing_still, "no_partition_is_stalled", Cause.STALE_ONLINE, ("edits", "share"),
        {"stream": "edits", "partition": 1, "committed": 7, "end": 9, "waiting_count": 2}
    ),
    "an event that has waited longer than the target": (
        lambda: right(progress=STANDING), "freshness_is_within_objective", Cause.STALE_ONLINE, ("edits", "share"),
        {"stream": "edits", "partition": 1, "state": "breached"}
    ),
    "an integer that a trainer gets in an older version": (
        lambda: superseded_in_history(edits=5), "edits.online_api_equals_historical", Cause.VALUE_MISMATCH, ("edits",),
        {"entity": "bob", "version": 2, "api_edits": 7, "pit_edits": 5}
    ),
    "a float that a trainer gets in an older version": (
        lambda: superseded_in_history(share=None), "share.online_api_equals_historical", Cause.VALUE_MISMATCH,
        ("share",), {"entity": "bob", "version": 2, "api_share": 0.6, "pit_share": None}
    ),
    "a row that Feast does not serve": (
        lambda: served_from(ROWS[1], ROWS[4]), "online_api_serves_the_row", Cause.MISSING_ENTITY, (), BOB
    ),
    "a row that Feast serves as it was": (
        lambda: served_from(ROWS[0], *ROWS[3:]), "online_api_serves_the_newest", Cause.STALE_ONLINE, (),
        {"entity": "ann", "served_at": "2026-03-01T12:00:00.000000+00:00"}
    ),
    "a row that Feast's history lacks": (
        without_history, "history_gives_the_row", Cause.LOST_OFFLINE_WRITE, (), BOB
    ),
    "a registry with another ttl": (
        lambda: registered(replace(VIEW, ttl=timedelta(days=1))), "registry_is_declared", Cause.SCHEMA_DRIFT, (),
        {"entry": "ttl", "declared": "1:00:00", "registered": "1 day, 0:00:00"}
    ),
    "a registry without a feature": (
        lambda: registered(replace(VIEW, features=VIEW.features[:1])), "registry_is_declared", Cause.SCHEMA_DRIFT, (),
        {"entry": "feature share", "declared": "Float64", "registered": None}
    ),
    "a registry without the view": (
        lambda: registered(None), "registry_is_declared", Cause.SCHEMA_DRIFT, (),
        {"entry": "entity user", "registered": None}
    ),
}  # fmt: skip
DOUBTS: dict[str, tuple[Callable[[], World], str]] = {
    "a row that may not have been written yet": (with_a_row_not_yet_committed, "online_row_is_settled"),
    "a partition of which nothing was ever committed": (lambda: right(progress=NEVER_COMMITTED), "freshness_is_known"),
}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_stores_that_agree_are_ok(judge: Judge) -> None:
    world = right()

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.compared, verdict.findings, verdict.reasons) == (Outcome.OK, 3, (), ())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_its_cause_its_feature_and_its_entity(judge: Judge, fault: str) -> None:
    plant, check, cause, features, evidence = FAULTS[fault]
    world = plant()

    verdict = world.check(judge)

    assert Outcome.VIOLATED is verdict.outcome
    (finding,) = (finding for finding in verdict.findings if finding.check == f"edits_by_user.{check}")
    assert ("edits_by_user", cause, features) == (finding.view, finding.cause, finding.features)
    assert any(evidence.items() <= line.items() for line in finding.evidence)


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_is_not_known_is_inconclusive(judge: Judge, doubt: str) -> None:
    make, check = DOUBTS[doubt]

    verdict = make().check(judge)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())
    assert f"edits_by_user.{check}" in [reason.partition(":")[0] for reason in verdict.reasons]


ELSEWHERE = {Frame.RECOMPUTED, Frame.ARCHIVE, Frame.CANARIES}
HERE = [check.name for check in checks_of(VIEW, TARGET) if check.frame not in ELSEWHERE]
"""The checks of rows that are made by hand here; test_recompute.py and test_canaries.py have those of what a flow makes."""


@pytest.mark.parametrize("check", HERE)
def test_without_any_one_check_something_goes_unseen(judge: Judge, check: str) -> None:
    made = [fault[0] for fault in FAULTS.values() if f"edits_by_user.{fault[1]}" == check]
    made += [make for make, name in DOUBTS.values() if f"edits_by_user.{name}" == check]

    verdicts = [make().check(Forgetful(judge, check)) for make in made]

    assert any(not verdict.findings and verdict.outcome is not Outcome.VALIDATOR_ERROR for verdict in verdicts)


def damaged_meanwhile(change: Callable[[pa.Table], pa.Table | None]) -> World:
    """The newest part is damaged after it was met."""

    def damage(world: World) -> None:
        (part,) = world.ledger.read().parts[VIEW.name]  # type: ignore[union-attr]
        parts = world.offline._visible[VIEW.name]  # noqa: SLF001
        changed = change(parts.pop(part))
        if changed is not None:
            parts[part] = changed

    return right(meanwhile=damage)


DAMAGES: dict[str, tuple[Callable[[], World], Cause]] = {
    "cut": (lambda: damaged_meanwhile(lambda table: table.slice(0, 0)), Cause.PARTIAL_BATCH),
    "gone": (lambda: damaged_meanwhile(lambda _: None), Cause.LOST_OFFLINE_WRITE),
    "of other columns": (lambda: damaged_meanwhile(lambda table: table.drop_columns(["share"])), Cause.SCHEMA_DRIFT),
    "cut before it was met": (lambda: cut_rows(DAN_S), Cause.PARTIAL_BATCH),
}


def cut_rows(*rows: Row) -> World:
    """Rows that are online, and none of which is in the part that should have them."""
    world = right()
    world.put_online(*rows)
    world.put_offline(row("eve", 26, edits=1, share=0.1), told=1 + len(rows))
    world.put_online(row("eve", 26, edits=1, share=0.1))
    return world


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_that_parts_lack_are_found_once(judge: Judge, damage: str) -> None:
    make, cause = DAMAGES[damage]

    verdict = make().check(judge)

    assert {cause} == {finding.cause for finding in verdict.findings}
    assert not any(finding.check.endswith("online_row_is_offline") for finding in verdict.findings)


def test_no_more_rows_are_excused_than_parts_lack(judge: Judge) -> None:
    world = cut_rows(DAN_S)
    world.put_online(NEWER)
    world.put_offline()

    verdict = world.check(judge)

    assert {Cause.PARTIAL_BATCH, Cause.LOST_OFFLINE_WRITE} == {finding.cause for finding in verdict.findings}


def test_a_check_that_looked_at_no_line_is_untold(judge: Judge) -> None:
    verdict = right().check(judge)
    world = World()
    world.put_online(row("cid", 30, edits=None, share=None))
    world.put_offline(row("cid", 30, edits=None, share=None))

    of_nulls = world.check(judge)

    named = f"{VIEW.name}.edits.online_equals_offline"
    assert named not in verdict.untold
    assert named in of_nulls.untold


def test_a_few_entities_are_looked_at_in_every_round() -> None:
    world = right()
    observer = world.observer()
    lines = []
    for number in range(6):
        (seen,) = observer.look(number)
        lines.append(len(seen.frames[Frame.ROWS]))
        world.at += timedelta(seconds=5)

    assert lines[:2] == [0, 0]
    assert lines[2:] == [3] * 4


def test_a_row_that_becomes_visible_offline_during_the_grace_is_no_finding(judge: Judge) -> None:
    world = with_a_row_not_yet_committed()
    world.meanwhile = lambda world: world.put_offline(NEWER)

    assert Outcome.OK is world.check(judge).outcome


def test_a_lost_write_that_the_next_one_heals_is_still_found(judge: Judge) -> None:
    """Rows are online before they are committed: at the first look it is too late already."""
    world = older_online()
    world.meanwhile = lambda world: world.put_online(row("bob", 28, edits=8, share=0.6))

    assert [Cause.LOST_ONLINE_WRITE] == [finding.cause for finding in world.check(judge).findings]


def test_an_online_store_that_loses_its_rows_while_they_are_looked_at_is_called_stale(judge: Judge) -> None:
    world = right()
    read = world.read

    def lose(view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        world.online.forget()
        return read(view, entities)

    world.read = lose  # type: ignore[method-assign]

    assert {Cause.STALE_ONLINE} == {finding.cause for finding in world.check(judge).findings}


def test_a_validator_that_hung_between_its_looks_calls_nothing_missing(judge: Judge) -> None:
    def hang(world: World) -> None:
        world.at += 10 * LIMIT

    assert (Outcome.OK, ()) == ((verdict := right(meanwhile=hang).check(judge)).outcome, verdict.findings)


def test_an_entity_that_never_rests_is_still_compared(judge: Judge) -> None:
    def go_on(world: World) -> None:
        world.put_offline(NEWER)
        world.put_online(row("bob", 28, edits=8, share=0.6))
        world.put_offline(row("bob", 28, edits=8, share=0.6))

    world = with_a_row_not_yet_committed()
    world.meanwhile = go_on
    assert Outcome.OK is world.check(judge).outcome

    world = with_a_row_not_yet_committed()
    world.serve = lambda stored: stored and replace(stored, features={"edits": 9, "share": 0.6})
    world.meanwhile = go_on
    assert Cause.VALUE_MISMATCH in {finding.cause for finding in world.check(judge).findings}


def test_a_version_that_a_crash_made_the_flow_skip_is_no_finding(judge: Judge) -> None:
    world = right()
    world.put_online(row("bob", 25, 1, edits=7, share=0.6))
    later = row("bob", 25, 2, edits=8, share=0.6)
    world.meanwhile = lambda world: (world.put_online(later), world.put_offline(later))

    assert Outcome.OK is world.check(judge).outcome


def test_a_part_that_a_crash_left_staged_is_no_finding(judge: Judge) -> None:
    world = right()
    world.put_online(DAN_S)
    world.put_offline(DAN_S)
    (part,) = world.ledger.read().parts[VIEW.name]  # type: ignore[union-attr]
    world.offline._staged[VIEW.name][part] = world.offline._visible[VIEW.name].pop(part)  # noqa: SLF001

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())


def test_an_entity_that_has_outlived_its_ttl_may_be_gone(judge: Judge) -> None:
    world = right(at=START + TTL)
    assert world.online.read(VIEW, [("ann",), ("bob",)]).count(None) == 0

    world.at += timedelta(seconds=25)  # after all but one of the three

    assert [] == [finding.cause for finding in world.check(judge).findings]
    assert [row is not None for row in world.online.read(VIEW, [("ann",), ("bob",), ("cid",)])] == [False, False, True]


def test_an_entity_that_outlives_its_ttl_between_the_looks_is_not_missing(judge: Judge) -> None:
    world = right()
    world.at = START + TTL + timedelta(seconds=28)  # cid's row is of second 30, and the grace is 3 s

    assert [] == [finding.cause for finding in world.check(judge).findings]
    assert world.online.read(VIEW, [("cid",)]) == [None]


def test_replayed_rows_of_long_ago_that_are_kept_for_their_ttl_are_no_finding(judge: Judge) -> None:
    world = right(at=START + timedelta(days=3000))

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.compared, verdict.findings) == (Outcome.OK, 3, ())


def test_a_row_that_lasts_with_another_one_is_no_finding(judge: Judge) -> None:
    world = changed(lambda stored: replace(stored, expires_at=START + 2 * TTL, kept_for=2 * TTL))
    assert Outcome.OK is world.check(judge).outcome

    world = changed(lambda stored: replace(stored, expires_at=None, kept_for=None))
    assert Outcome.OK is world.check(judge).outcome


def test_of_a_flow_that_stands_still_no_row_is_called_lost(judge: Judge) -> None:
    verdict = standing_still().check(judge)

    assert [finding.cause for finding in verdict.findings] == [Cause.STALE_ONLINE]
    assert any(reason.startswith("edits_by_user.online_row_is_settled") for reason in verdict.reasons)


def test_an_idle_stream_is_fresh(judge: Judge) -> None:
    assert (
        Outcome.OK is right(progress={("edits", 0): Progress(0, 0), ("edits", 1): Progress(7, 7)}).check(judge).outcome
    )


def test_a_flow_that_commits_in_time_is_fresh(judge: Judge) -> None:
    world = right(progress=STANDING)
    world.meanwhile = lambda world: setattr(world, "progress", {("edits", 0): Progress(9, 11)})

    assert Outcome.OK is world.check(judge).outcome


def test_a_flow_that_moves_but_lags_is_found_by_a_single_check(judge: Judge) -> None:
    world = standing_still()
    world.progress = {("edits", 0): Progress(0, 900)}
    wait = world.wait

    def wait_and_move(length: timedelta) -> None:
        wait(length)
        (one,) = world.progress.values()
        world.progress = {("edits", 0): Progress((one.committed or 0) + 10, one.end + 10)}

    (verdict,) = check_once(world.observer(), judge, TARGET, wait_and_move, grace=GRACE)

    assert [finding.check for finding in verdict.findings] == ["edits_by_user.freshness_is_within_objective"]


def test_what_waits_is_looked_at_until_something_can_be_said_of_it(judge: Judge) -> None:
    world = right(progress=STANDING)

    world.check(judge)

    assert TARGET.bound < sum(world.waits, timedelta()) < LIMIT


def test_what_may_wait_for_longer_than_a_check_goes_on_is_inconclusive(judge: Judge) -> None:
    world = right(progress=STANDING)
    observer = world.observer()
    observer.freshness = Freshness(Objective(99, timedelta(minutes=1)))

    (verdict,) = check_once(observer, judge, TARGET, world.wait, grace=GRACE)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())
    assert sum(world.waits, timedelta()) <= LIMIT + timedelta(seconds=1)


def test_another_stream_s_partitions_are_not_this_view_s(judge: Judge) -> None:
    assert Outcome.OK is right(progress={**FRESH, ("views", 0): Progress(1, 900)}).check(judge).outcome


@pytest.mark.parametrize("progress", [{}, {("views", 0): Progress(3, 3)}])
def test_a_stream_of_which_no_progress_is_known_is_inconclusive(judge: Judge, progress: Standing) -> None:
    assert Outcome.INCONCLUSIVE is right(progress=progress).check(judge).outcome


def test_empty_stores_are_inconclusive(judge: Judge) -> None:
    verdict = World().check(judge)

    assert (verdict.outcome, verdict.compared) == (Outcome.INCONCLUSIVE, 0)
    assert "edits_by_user: 0 lines to judge, fewer than 1" in verdict.reasons


def test_stores_before_the_first_commit_are_inconclusive(judge: Judge) -> None:
    world = World()
    world.ledger = MemoryLedger()

    verdict = world.check(judge)

    assert (verdict.outcome, verdict.reasons) == (Outcome.INCONCLUSIVE, ("edits_by_user: nothing is committed",))


def away(*_: object) -> Any:
    raise Unavailable("kafka is away")


@pytest.mark.parametrize("part", ["online", "offline", "ledger", "ends", "progress", "feast"])
def test_what_cannot_be_read_is_the_validator_s_error(judge: Judge, part: str) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            return away

        __call__ = staticmethod(away)

    verdict = right().check(judge, **{part: Away()})

    assert (verdict.outcome, verdict.findings) == (Outcome.VALIDATOR_ERROR, ())
    assert verdict.reasons == ("edits_by_user: kafka is away",)


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
