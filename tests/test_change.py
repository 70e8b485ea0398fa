"""A change of the declaration on twins: rows made anew are DuckDB's, and a crash at any moment harms nothing."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from simulated import DECLARED, GIVEN, SOAK, START_US, STREAM, WINDOW, Click, Crash, World, touches
from test_recompute import look

from freshet.flows.edges.quality import Judge
from freshet.flows.testing import Given
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.finding import Outcome

FATES = ("fails", "dies before", "dies after")
VIEW = "clicks_by_user"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def declared(*definitions: tuple[str, str, str, str | None]) -> Given:
    made = [
        {"name": name, "dtype": dtype, "source": STREAM, "transformation": sql} | ({"view": view} if view else {})
        for name, dtype, sql, view in definitions
    ]
    return Given.declared(json.dumps({**DECLARED, "featureDefinitions": made}), {STREAM: Click})


CLICKS = ("clicks_1m", "int64", f"count(*) OVER {WINDOW.format('1 minute')}", None)
COST = ("cost_10s", "int64", f"sum(CAST(cost AS BIGINT)) OVER {WINDOW.format('10 seconds')}", None)
FIRST = ("first_cost", "string", "first_value(cost) OVER (PARTITION BY user ORDER BY event_timestamp)", None)
WIDER = ("cost_10s", "int64", f"sum(CAST(cost AS BIGINT)) OVER {WINDOW.format('30 seconds')}", None)
RENAMED = ("cost_of_10s", *COST[1:])
ADDED = ("greatest_1m", "int64", f"max(CAST(cost AS BIGINT)) OVER {WINDOW.format('1 minute')}", None)
ELSEWHERE = (
    "cost_text",
    "string",
    f"CAST(sum(CAST(cost AS BIGINT)) OVER {WINDOW.format('10 seconds')} AS VARCHAR)",
    "v2",
)

CHANGES = {
    "a feature is added": (CLICKS, COST, FIRST, ADDED),
    "a feature is dropped": (CLICKS, COST),
    "a window is changed": (CLICKS, WIDER, FIRST),
    "a feature is renamed": (CLICKS, RENAMED, FIRST),
    "a view is added": (CLICKS, COST, FIRST, ELSEWHERE),
    "all of it": (WIDER, ADDED, ELSEWHERE),
    "a view is gone": (ELSEWHERE,),
}


@pytest.mark.parametrize("given", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", range(SOAK))
def test_after_a_change_all_rows_are_what_the_new_sql_says_and_the_flow_goes_on_from_them(
    seed: int, given: tuple[Any, ...]
) -> None:
    world = World(seed, events_count=60, is_live=False, at_first=0.6, shards_count=seed % 2 + 1)
    world.run()

    done = world.change(declared(*given))

    assert done is not None
    before = {plan.view.name: plan.digest for plan in GIVEN.pipeline.plans}
    assert {*done.rows_counts} == {
        plan.view.name for plan in world.given.pipeline.plans if plan.digest != before.get(plan.view.name)
    }
    world.check_rows()
    world._append(len(world.coming))  # noqa: SLF001
    world.run()
    world.check_done()


def test_what_the_flow_did_before_is_proved_by_duckdb() -> None:
    world = World(2, events_count=60, is_live=False)
    world.run()

    done = world.change(declared(*CHANGES["a feature is added"]))

    assert done is not None
    assert done.checked_count > 20


def test_rows_of_before_stay_where_their_readers_know_them() -> None:
    world = World(3, events_count=40, is_live=False)
    world.run()
    before = world.offline.read(VIEW)

    world.change(declared(CLICKS, WIDER))

    assert world.offline.folder(VIEW) == f"{VIEW}-1"
    assert world.offline._visible[VIEW]  # noqa: SLF001
    world.offline.switch({VIEW: 0})
    assert world.offline.read(VIEW).equals(before)


def test_state_that_was_spread_over_other_shards_meanwhile_is_left_alone() -> None:
    world = World(3, events_count=40, is_live=False)
    world.run()
    before = world.ledger.read()
    assert before is not None
    spread = before.model_copy(update={"shards_count": 5})

    def meanwhile() -> None:
        if world.fates.names[-1] == "ledger.lock":
            world.ledger.write(spread)

    world.fates.meanwhile = meanwhile
    with pytest.raises(Refused, match=r'shards "2" became 5 meanwhile. Hint: run the same command again'):
        world.change(declared(CLICKS, WIDER))

    assert world.ledger.read() == spread
    assert world.applied.read() is None


def test_what_is_the_same_needs_no_rows() -> None:
    world = World(3, events_count=40, is_live=False)
    world.run()

    assert world.change(declared(CLICKS, COST, FIRST), is_same=True) is None
    assert world.offline.folder(VIEW) == VIEW
    world.run()
    world.check_done()


def test_history_from_a_time_on_takes_over_what_was_before_with_new_features_empty() -> None:
    world = World(5, events_count=60, is_live=False)
    world.run()
    since_us = START_US + 50 * 10**6
    old = [row for row in world.offline.final(GIVEN.pipeline.views[0]).to_pylist() if _us(row) < since_us]

    world.change(
        declared(CLICKS, RENAMED, ADDED),
        since_us=since_us,
        carried={VIEW: {"clicks_1m": "clicks_1m", "cost_of_10s": "cost_10s"}},
    )

    rows = world.offline.final(world.given.pipeline.views[0]).to_pylist()
    carried = [row for row in rows if _us(row) < since_us]
    assert len(old) > 10
    assert [(r["user"], r["clicks_1m"], r["cost_of_10s"]) for r in carried] == [
        (r["user"], r["clicks_1m"], r["cost_10s"]) for r in old
    ]
    assert {row["greatest_1m"] for row in carried} == {None}
    assert all(row["greatest_1m"] is not None for row in rows if _us(row) >= since_us and row["clicks_1m"])


def test_rows_that_were_taken_over_are_no_finding_of_a_validator_and_those_that_were_made_are_recomputed() -> None:
    """Of a user who was idle since, the newest row is one that was taken over."""
    world = World(3, events_count=120, is_live=False)
    world.run()
    newest = sorted(map(_us, world.offline.newest(GIVEN.pipeline.views[0]).to_pylist()))
    since_us = newest[len(newest) // 2]
    world.change(declared(CLICKS, COST, FIRST, ADDED), since_us=since_us, carried={VIEW: {"clicks_1m": "clicks_1m"}})

    judge = Judge()
    found = [look(world, judge, rows_count=500, seed=seed)[0] for seed in range(4)]

    assert newest[0] < since_us
    assert [one.findings for one in found] == [()] * 4
    assert found[0].outcome is Outcome.OK
    assert any(f"{VIEW}.{ADDED[0]}.offline_equals_sql" not in one.untold for one in found), "nothing was recomputed"


def _us(row: dict[str, Any]) -> int:
    return round(row["event_timestamp"].timestamp() * 10**6)


def test_history_that_was_left_out_is_made_later_and_rows_before_a_time_may_stay() -> None:
    """At first the new feature is empty before an instant, then before an earlier one, at last nowhere."""
    world = World(5, events_count=60, is_live=False)
    world.run()
    given, carried = declared(CLICKS, COST, FIRST, ADDED), {VIEW: {"clicks_1m": "clicks_1m", "cost_10s": "cost_10s"}}
    world.change(given, since_us=START_US + 50 * 10**6, carried=carried)
    whole = {VIEW: {name: name for name in ("clicks_1m", "cost_10s", "first_cost", "greatest_1m")}}

    def empty() -> list[int]:
        rows = world.offline.final(given.pipeline.views[0]).to_pylist()
        return [_us(row) - START_US for row in rows if row["greatest_1m"] is None and row["clicks_1m"]]

    before = empty()
    for since_us in (START_US + 20 * 10**6, START_US + 40 * 10**6):
        done = world.change(given, is_same=True, anew=frozenset({VIEW}), since_us=since_us, carried=whole)
        assert done is not None
        assert empty() == [us for us in before if us < 20 * 10**6]
        ledger = world.ledger.read()
        assert ledger is not None
        assert ledger.taken_over == {VIEW: START_US + 20 * 10**6}
    done = world.change(given, is_same=True, anew=frozenset({VIEW}), carried=whole)

    assert len(before) > 10
    assert done is not None
    assert done.checked_count > 20
    assert empty() == []
    world.check_rows()
    world.run()
    world.check_done()


def test_rows_made_anew_from_a_time_on_are_none_that_another_declaration_made() -> None:
    world = World(5, events_count=60, is_live=False)
    world.run()
    before = world.offline.final(GIVEN.pipeline.views[0])

    since_us, same = START_US + 40 * 10**6, {VIEW: {name: name for name in ("clicks_1m", "cost_10s", "first_cost")}}
    world.change(GIVEN, is_same=True, anew=frozenset({VIEW}), since_us=since_us, carried=same)

    ledger = world.ledger.read()
    assert ledger is not None
    assert ledger.taken_over == {}
    keys = [(name, "ascending") for name in ("user", "event_timestamp")]
    features = ["user", "event_timestamp", "clicks_1m", "cost_10s", "first_cost"]
    after = world.offline.final(GIVEN.pipeline.views[0])
    assert after.sort_by(keys).select(features).equals(before.sort_by(keys).select(features))
    world.check_rows()


WANTED: dict[str, tuple[Given, dict[str, Any]]] = {
    "another declaration": (declared(*CHANGES["all of it"]), {}),
    "the same one, anew": (GIVEN, {"is_same": True, "anew": frozenset({VIEW})}),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("wanted", WANTED)
def test_a_crash_at_any_single_touch_of_a_change_harms_nothing(wanted: str, fate: str) -> None:
    """The Nth call fails, or the process dies before or after it; then the flow is started, or it is applied again."""
    given, asked = WANTED[wanted]
    for turn, number in enumerate(touches(fate)):
        world = World(1, events_count=25, is_live=False, at_first=0.6)
        world.run()
        begun = len(world.fates.names)
        world.fates.at = {begun + number: fate}
        try:
            world.change(given, **asked)
        except (Crash, Unavailable):
            world.fates.at = {}
            if turn % 2:
                world.run()  # whatever is in force by now
        whole, world.fates.at = len(world.fates.names) < begun + number, {}
        world.change(given, **asked)
        world._append(len(world.coming))  # noqa: SLF001
        world.run()
        world.check_done()
        if whole:
            break

    assert number > 20


def test_an_archive_with_a_gap_is_refused_and_nothing_is_changed() -> None:
    world = World(4, events_count=60, is_live=False)
    world.run()
    ledger = world.ledger.read()
    assert ledger is not None
    events = f"_events/{STREAM}"
    before = ledger.model_copy(update={"rows_counts": {**ledger.rows_counts, events: ledger.rows_counts[events] + 1}})
    world.ledger.write(before)

    with pytest.raises(Refused, match="event archive .* events in the ledger, and"):
        world.change(declared(CLICKS, WIDER))

    assert world.ledger.read() == before
    assert world.offline.folder(VIEW) == VIEW


def test_history_that_needs_dropped_events_is_refused_with_the_time_from_which_it_can_be_made() -> None:
    world = World(4, events_count=60, is_live=False)
    world.run()
    ledger = world.ledger.read()
    assert ledger is not None
    world.ledger.write(ledger.model_copy(update={"expired": {STREAM: START_US}}))

    with pytest.raises(Refused, match="needs all events from the beginning, and the archive has dropped some"):
        world.change(declared(CLICKS, WIDER, FIRST))
    with pytest.raises(Refused, match="the archive has a gap before it") as refusal:
        world.change(declared(CLICKS, WIDER), since_us=START_US)

    assert "its rows are whole from 2026-03-01T00:01:02.000001+00:00 on" in str(refusal.value)


def test_an_expression_that_fails_on_an_archived_event_is_refused_by_its_place() -> None:
    world = World(4, events_count=60, is_live=False)
    world.run()
    fails = ("share", "float64", f"sum(CAST(cost || 'x' AS BIGINT)) OVER {WINDOW.format('10 seconds')}", None)

    with pytest.raises(Refused, match="fails on the archived event") as refusal:
        world.change(declared(CLICKS, fails))

    assert "share" in str(refusal.value)
