"""What a user expects of a feature is held against what is stored, on both stores' twins; each check is needed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from forgetful import Forgetful

from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.recovery import MemoryLedger
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.observer import Observer, Seen
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.frames import joined
from freshet.flows.steps.freshness import Freshness, Progress
from freshet.flows.steps.pools import Pools
from freshet.flows.validator import check_once, judged
from freshet.flows.watch import Outside, Sampling
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.expected import Distance, Distribution, Expected, Reference
from freshet.schemas.finding import Cause, Frame, Outcome, Question, Status, Verdict
from freshet.schemas.ledger import Ledger, ShardMark, Update
from freshet.schemas.plan import Oracle, Pipeline, ViewPlan
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET, GRACE = Objective(99, timedelta(seconds=5)), timedelta(seconds=3)
ROWS_COUNT = 1200
TENTHS = Reference((1.0,) * 10, bins=tuple(n / 10 for n in range(11)))

EXPECTED = {
    "share": ("float64", Expected(minimum=0, maximum=1)),
    "kind": ("string", Expected(allowed=("user", "bot"))),
    "edits": ("int64", Expected(nulls=0.0)),
    "delta": ("int64", Expected(nulls=0.01)),
    "score": ("float64", Expected(tolerance=1e-3, mismatches=0.005)),
    "chance": ("float64", Expected(distribution=Distribution(TENTHS))),
}
VIEW = View(
    "edits_by_user",
    ("edits",),
    (pa.field("user", pa.string()),),
    tuple(Feature(name, DTYPES[dtype], "…", expected=expected) for name, (dtype, expected) in EXPECTED.items()),
)
OWN = (
    "share.value_is_in_range", "kind.value_is_allowed", "edits.value_is_not_null", "delta.nulls_are_few",
    "score.mismatches_are_few", "chance.distribution_is_expected",
)  # fmt: skip

Rows = list[dict[str, Any]]


def right_rows() -> Rows:
    at = START
    return [
        {
            "user": f"user {n}", "event_timestamp": at, "created": at, "_version": 1, "_partition": 0, "_offset": n,
            "share": n / ROWS_COUNT, "kind": ("user", "bot")[n % 2], "edits": n, "delta": -n if n % 200 else None,
            "score": float(n), "chance": (n + 0.5) / ROWS_COUNT,
        }
        for n in range(ROWS_COUNT)
    ]  # fmt: skip


def observer_of(rows: Rows, serve: Callable[[StoredRow | None], StoredRow | None], size: int) -> Observer:
    online, offline, ledger = MemoryOnlineStore("test", [VIEW]), MemoryOfflineStore(), MemoryLedger()
    offline.prepare(VIEW.name, VIEW.row_schema)
    table = pa.Table.from_pylist(rows, VIEW.row_schema)
    online.write(VIEW, table)
    part = offline.stage(VIEW.name, table, 1)
    assert part is not None
    parts = {VIEW.name: {part: len(rows)}}
    shards = {f"{VIEW.name}/{shard}": ShardMark(clock_us=2**60) for shard in range(2)}
    update = Update(parts=parts, shards=shards, online_writes_count=online.counted_writes())
    plan = ViewPlan(VIEW, (), pa.schema([]), (), (), "", Oracle((), ""), whole_history=True)
    ledger.write(
        Ledger(id="a", shards_count=2, views={VIEW.name: plan.digest}).after(1, {"edits/000000": len(rows)}, [update])
    )
    offline.publish(parts)

    class Served:
        sample, counted_writes = online.sample, online.counted_writes

        def read(self, view: View, entities: Any) -> list[StoredRow | None]:
            return [serve(stored) for stored in online.read(view, entities)]

    now = [START + timedelta(minutes=1)]

    def tick() -> datetime:
        now[0] += GRACE
        return now[0]

    ends, progress = {"edits/000000": len(rows)}, {("edits", 0): Progress(len(rows), len(rows))}
    outside = Outside(Served(), offline, ledger, lambda: ends, lambda: progress, tick)
    sampling = Sampling(rows_count=size, keys_count=0, grace=GRACE, limit=timedelta(hours=9))
    return Observer(Pipeline("test", (plan,)), outside, sampling, Freshness(TARGET))


def check(
    judge: Any,
    change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda _, __: {},
    serve: Callable[[StoredRow | None], StoredRow | None] = lambda stored: stored,
    size: int = ROWS_COUNT,
) -> Verdict:
    rows = [row | change(n, row) for n, row in enumerate(right_rows())]
    (verdict,) = check_once(observer_of(rows, serve, size), judge, TARGET, lambda _: None, grace=GRACE)
    return verdict


def untold(verdict: Verdict) -> list[str]:
    """Return the checks of which nothing could be said, but for those of what only a flow, or Feast, makes."""
    others = {Frame.RECOMPUTED, Frame.ARCHIVE, Frame.CANARIES, Frame.REGISTRY, Frame.SERVED}
    unmade = {check.name for check in checks_of(VIEW, TARGET) if check.frame in others}
    return [name for name in verdict.untold if name not in unmade]


def beyond_tolerance(stored: StoredRow | None) -> StoredRow | None:
    assert stored is not None
    n = stored.features["score"]
    return replace(stored, features={**stored.features, "score": n * 1.01 if n % 20 == 0 else n})


FAULTS: dict[str, tuple[Callable[[Any], Verdict], Cause]] = {
    "share.value_is_in_range": (
        lambda judge: check(judge, lambda n, _: {"share": 1.0000001} if n == 700 else {}), Cause.VALUE_MISMATCH
    ),
    "kind.value_is_allowed": (
        lambda judge: check(judge, lambda n, _: {"kind": "robot"} if n == 700 else {}), Cause.VALUE_MISMATCH
    ),
    "edits.value_is_not_null": (
        lambda judge: check(judge, lambda n, _: {"edits": None} if n == 700 else {}), Cause.NULL_ONLINE
    ),
    "delta.nulls_are_few": (
        lambda judge: check(judge, lambda n, _: {"delta": None} if n % 20 == 0 else {}), Cause.NULL_ONLINE
    ),
    "score.mismatches_are_few": (lambda judge: check(judge, serve=beyond_tolerance), Cause.VALUE_MISMATCH),
    "chance.distribution_is_expected": (
        lambda judge: check(judge, lambda _, row: {"chance": row["chance"] ** 2}), Cause.VALUE_MISMATCH
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_what_is_expected_makes_exactly_its_own_checks() -> None:
    plain = replace(VIEW, features=tuple(replace(feature, expected=Expected()) for feature in VIEW.features))

    more = {one.name for one in checks_of(VIEW, TARGET)} - {one.name for one in checks_of(plain, TARGET)}

    assert {f"edits_by_user.{name}" for name in OWN} == more
    assert {*FAULTS} == {*OWN}


def test_values_as_expected_are_ok(judge: Judge) -> None:
    verdict = check(judge)

    assert (verdict.outcome, verdict.findings, verdict.reasons) == (Outcome.OK, (), ())
    assert (verdict.compared, untold(verdict)) == (ROWS_COUNT, [])


@pytest.mark.parametrize("name", OWN)
def test_a_value_against_what_is_expected_is_found_with_its_cause_and_its_feature(judge: Judge, name: str) -> None:
    make, cause = FAULTS[name]

    verdict = make(judge)

    (finding,) = verdict.findings
    assert (Outcome.VIOLATED, f"edits_by_user.{name}", cause) == (verdict.outcome, finding.check, finding.cause)
    assert (name.partition(".")[0],) == finding.features
    assert finding.evidence


@pytest.mark.parametrize("name", OWN)
def test_without_any_one_check_it_goes_unseen(judge: Judge, name: str) -> None:
    make, _ = FAULTS[name]

    verdict = make(Forgetful(judge, f"edits_by_user.{name}"))

    assert (verdict.outcome, verdict.findings) == (Outcome.OK, ())


def test_evidence_names_the_entity_or_the_distance(judge: Judge) -> None:
    (out_of_range,) = FAULTS["share.value_is_in_range"][0](judge).findings
    (drifted,) = FAULTS["chance.distribution_is_expected"][0](judge).findings

    assert [("user 700", 1.0000001)] == [(line["entity"], line["on_share"]) for line in out_of_range.evidence]
    (line,) = drifted.evidence
    assert (line["values"], line["threshold"]) == (ROWS_COUNT, 0.2)
    assert line["distance"] > 0.2


def test_differences_within_the_tolerance_are_none(judge: Judge) -> None:
    def shifted(stored: StoredRow | None) -> StoredRow | None:
        assert stored is not None
        return replace(stored, features={**stored.features, "score": stored.features["score"] * 1.0001})

    assert Outcome.OK is check(judge, serve=shifted).outcome


def test_a_few_mismatches_are_tolerated_where_the_user_says_so(judge: Judge) -> None:
    def one(stored: StoredRow | None) -> StoredRow | None:
        assert stored is not None
        off = 1.0 if stored.features["score"] in {7.0, 8.0, 9.0} else 0.0
        return replace(stored, features={**stored.features, "score": stored.features["score"] + off})

    assert Outcome.OK is check(judge, serve=one).outcome


def test_too_few_values_for_a_distribution_are_inconclusive_and_never_ok(judge: Judge) -> None:
    verdict = check(judge, size=400)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())
    name = "edits_by_user.chance.distribution_is_expected"
    assert verdict.reasons == (f"{name}: 400 lines to judge, fewer than 1000",)
    assert untold(verdict) == [name]


def test_of_a_column_of_nulls_the_distribution_is_inconclusive_and_the_nulls_are_found(judge: Judge) -> None:
    verdict = check(judge, lambda *_: {"chance": None, "delta": None})

    assert Outcome.VIOLATED is verdict.outcome
    assert ["edits_by_user.delta.nulls_are_few"] == [finding.check for finding in verdict.findings]
    of_nulls = {"online_equals_offline", "online_is_not_null", "online_has_dtype"}
    of_nulls = {f"edits_by_user.{feature}.{name}" for feature in ("chance", "delta") for name in of_nulls}
    assert {"edits_by_user.chance.distribution_is_expected", *of_nulls} == {*untold(verdict)}


def test_a_value_of_another_type_is_the_type_s_finding_and_no_error(judge: Judge) -> None:
    def as_text(stored: StoredRow | None) -> StoredRow | None:
        assert stored is not None
        return replace(stored, features={**stored.features, "share": "0.5", "chance": "0.5"})

    verdict = check(judge, serve=as_text)

    assert Outcome.VALIDATOR_ERROR is not verdict.outcome
    assert Cause.DTYPE in {finding.cause for finding in verdict.findings}


# --- over many rounds -------------------------------------------------------------------------------------------------


CHANCE = replace(VIEW, features=VIEW.features[-1:])


def rounds(judge: Judge, change: Callable[[np.ndarray], np.ndarray], count: int) -> list[tuple[Verdict, list[Status]]]:
    """Rounds of 500 entities each, whose chances are drawn and changed."""
    chance = np.random.default_rng(5)
    pools, alarms, made = Pools(checks_of(CHANCE, TARGET)), Alarms(quiet=timedelta(0)), []
    nothing = joined(CHANCE, [])
    for number in range(count):
        lines = [
            {"entity": f"user {500 * number + n}", "event_timestamp": "", "version": 1, "offline_row": "found"}
            | {"on_chance": value, "off_chance": value}
            for n, value in enumerate(change(chance.uniform(size=500)).tolist())
        ]
        frame = pd.DataFrame(lines, columns=nothing.columns, dtype=object)
        at = START + timedelta(seconds=5 * number)
        (found,) = judged(judge, [Seen(CHANCE, at, {Frame.ROWS: frame})], TARGET, {CHANCE.name: pools})
        verdict, news = alarms.heed(found, at)
        made.append((verdict, [alarm.status for alarm in news]))
    return made


def test_a_distribution_is_judged_by_windows_of_many_rounds_and_three_of_five_are_an_alarm(judge: Judge) -> None:
    made = rounds(judge, lambda values: values**2, 8)

    assert [[Status.OPENED] if n == 5 else [] for n in range(8)] == [news for _, news in made]
    assert [n not in {1, 3, 5, 7} for n in range(8)] == [
        "edits_by_user.chance.distribution_is_expected" in verdict.untold for verdict, _ in made
    ]
    assert [n >= 5 and n % 2 == 1 for n in range(8)] == [bool(verdict.findings) for verdict, _ in made]


def test_a_distribution_as_expected_is_no_alarm(judge: Judge) -> None:
    assert all(not verdict.findings and not news for verdict, news in rounds(judge, lambda values: values, 12))


def test_a_pool_that_does_not_fill_is_said_to_be_inconclusive() -> None:
    pools = Pools(checks_of(VIEW, TARGET), rounds_count=3)

    taken = [pools.take(joined(VIEW, [])) for _ in range(3)]

    assert [0, 0, 2] == [len(one) for one in taken]
    assert all(len(frame) == 0 for frame, _ in taken[2])


def test_one_entity_counts_once_in_a_distribution_however_often_it_is_seen() -> None:
    own = [one for one in checks_of(VIEW, TARGET) if one.frame is Frame.VALUES]
    row = {"entity": "ann", "event_timestamp": "", "version": 1, "offline_row": "found", "on_chance": 0.5}
    pools = Pools(own, rounds_count=3)

    taken = [pools.take(pd.DataFrame([row | {"on_chance": n}])) for n in (0.1, 0.2, 0.3)]

    ((frame, _),) = taken[2]
    assert [0.3] == frame["on_chance"].tolist()


@pytest.mark.parametrize("distance", Distance)
def test_every_distance_finds_the_shift(judge: Judge, distance: Distance) -> None:
    expected = Expected(distribution=Distribution(TENTHS, distance, 0.1))
    view = replace(VIEW, features=(Feature("chance", DTYPES["float64"], "…", expected=expected),))
    (own,) = (one for one in checks_of(view, TARGET) if one.frame is Frame.VALUES)

    def frame(power: float) -> pd.DataFrame:
        lines = [("u", "", 1, ((n + 0.5) / ROWS_COUNT) ** power) for n in range(ROWS_COUNT)]
        return pd.DataFrame(lines, columns=["entity", "event_timestamp", "version", "on_chance"], dtype=object)

    asked = [Question(view.name, frame(power), [own]) for power in (1, 3)]

    assert [Outcome.OK, Outcome.VIOLATED] == [verdict.outcome for verdict in judge.judge(asked)]
