"""Why a value is what it is: what `freshet explain` says where all is well, where it is not, and where parts are away."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import simulated
from pydantic import AwareDatetime
from test_explain_law import deployed

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.explain import Explainer, Outside
from freshet.flows.steps.explain import (
    Explanation,
    as_json,
    asked_entity,
    asked_plan,
    explain,
    screen,
)
from freshet.flows.testing import Given, Run, microseconds, poll
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.event import EVENT_TIME, Event, Stream, archive_name
from freshet.schemas.finding import Outcome
from freshet.schemas.ledger import Ledger
from freshet.schemas.rejects import Reason
from freshet.schemas.units import instant_us
from freshet.scripts import cli

STREAM, VIEW = "clicks", "clicks_by_user"
TEN_MINUTES = "PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW"
DECLARED = {
    "featureDefinitions": [
        {"name": name, "dtype": dtype, "source": STREAM, "transformation": sql}
        for name, dtype, sql in (
            ("clicks_10m", "int64", f"count(*) OVER ({TEN_MINUTES})"),
            ("paid_10m", "float64", f"sum(amount) FILTER (WHERE page = 'pay') OVER ({TEN_MINUTES})"),
            ("others_10m", "int64", f"count(*) OVER ({TEN_MINUTES} EXCLUDE CURRENT ROW)"),
            ("last_page", "string", "page"),
            ("share", "float64", f"sum(amount) OVER ({TEN_MINUTES}) / count(*) OVER ({TEN_MINUTES})"),
        )
    ],
    "servingRequirements": {"freshnessTarget": "p99 < 2s"},
}


class Click(Event):
    stream = Stream(STREAM, key="user", event_time="at", event_id="id", lateness=timedelta(minutes=10))

    at: AwareDatetime
    user: str
    page: str | None = None
    amount: float | None = None
    id: str | None = None


GIVEN = Given.declared(json.dumps(DECLARED), {STREAM: Click})
(PLAN,) = GIVEN.pipeline.plans
EVENTS = [
    ("12:00:00", "ada", "shoes", 1.0, "a"),
    ("12:30:00", "ada", "pay", 10.0, "b"),
    ("12:35:00", "ada", "hats", 2.0, "c"),
    ("12:35:00", "bob", "hats", 4.0, "d"),
    ("12:30:00", "ada", "pay", 10.0, "b"),
    ("12:33:00", "ada", "pay", 20.0, "e"),
    ("12:20:00", "ada", "shoes", 7.0, "f"),
]
"""The fifth repeats the second, the sixth comes out of order, the last is late."""
UNTIL = "12:50:00"


def at(time: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-01T{time}+00:00")


def value(time: str, user: str, page: str, amount: float, event_id: str) -> bytes:
    return json.dumps(
        {"at": at(time).isoformat(), "user": user, "page": page, "amount": amount, "id": event_id}
    ).encode()


@dataclass
class Deployment:
    """A deployment on twins after a run: all that explain asks can be changed."""

    outside: Outside
    run: Run

    @property
    def offline(self) -> MemoryOfflineStore:
        assert isinstance(self.outside.offline, MemoryOfflineStore)
        return self.outside.offline

    @property
    def online(self) -> MemoryOnlineStore:
        online = self.outside.online()
        assert isinstance(online, MemoryOnlineStore)
        return online

    @property
    def log(self) -> MemoryLog:
        log = self.outside.log()
        assert isinstance(log, MemoryLog)
        return log

    @property
    def ledger(self) -> Ledger:
        ledger = self.outside.ledger.read()
        assert ledger is not None
        return ledger

    def change_ledger(self, **update: Any) -> None:
        self.outside.ledger.write(self.ledger.model_copy(update=update))  # type: ignore[attr-defined]  # the twin's

    def change(self, name: str, alter: Callable[[pa.Table], pa.Table]) -> None:
        """Change what a folder of the offline store has."""
        parts = self.offline._visible[name]  # noqa: SLF001  # what stands outside of the flow
        for part in parts:
            parts[part] = alter(parts[part])

    def forget(self) -> None:
        """Empty the online store, so that nobody notices."""
        self.online.forget()
        self.online.writes_count = 0

    def gather(self, feature: str = "clicks_10m", user: str = "ada", asked: datetime | None = None) -> Explanation:
        explainer = Explainer("shop", PLAN, GIVEN.contracts, self.outside, sleep=lambda _: None)
        return explain(explainer.gather(feature, (user,), asked))


def ran(*events: tuple[str, str, str, float, str], now: str = UNTIL) -> Deployment:
    run, values = GIVEN.start(), [value(*event) for event in events]
    for offset, message in enumerate(values):  # each a batch of its own, so that corrections are seen
        run.take(poll(GIVEN.contracts[STREAM], 0, 1, [message], offset=offset))
    run.pass_time(microseconds(at(UNTIL)))
    outside = deployed(run, {(STREAM, 0): values}, instant_us(at(UNTIL)))
    return Deployment(replace(outside, now=lambda: at(now)), run)


@pytest.fixture
def deployment() -> Deployment:
    return ran(*EVENTS)


def left(told: Explanation) -> list[tuple[int, str]]:
    """Which events do not count, by offset, and why."""
    return sorted((one.origin.offset, str(one.why)) for one in told.left)


def counted(told: Explanation, window: int = 0) -> list[int]:
    return [event.origin.offset for event in told.windows[window].events]


# What is said


def test_events_count_or_are_left_out_each_for_its_reason(deployment: Deployment) -> None:
    told = deployment.gather("paid_10m", asked=at("12:36:00"))

    assert at("12:35:00") == told.at
    assert [1, 5] == counted(told)
    assert [{"amount": 10.0, "page = 'pay'": True}, {"amount": 20.0, "page = 'pay'": True}] == [
        {name.replace("(", "").replace(")", ""): one for name, one in event.inputs.items()}
        for event in told.windows[0].events
    ]
    assert [(0, "outside"), (2, "filtered"), (4, "duplicate")] == left(told)
    assert [30.0, 30.0] == [row.value for row in (told.offline, told.duckdb) if row]
    assert (Outcome.OK, 0) == (told.outcome, told.exit_code)


def test_a_late_event_is_told_where_it_would_have_counted(deployment: Deployment) -> None:
    told = deployment.gather("clicks_10m", asked=at("12:30:00"))

    assert [1] == counted(told)
    assert (6, "late") in left(told)
    assert "behind its partition's newest" in next(one.detail for one in told.left if one.why == Reason.LATE)
    assert (6, "late") not in left(deployment.gather("clicks_10m"))


def test_what_exclude_leaves_out_is_said(deployment: Deployment) -> None:
    told = deployment.gather("others_10m", asked=at("12:35:00"))

    assert [1, 5] == counted(told)
    assert (2, "excluded") in left(told)


def test_a_plain_column_is_of_the_newest_event_and_nothing_else(deployment: Deployment) -> None:
    told = deployment.gather("last_page")

    assert told.is_decay
    assert told.newest is not None
    assert (2, {"page": "hats"}) == (told.newest.origin.offset, dict(told.newest.inputs))
    assert not told.windows


def test_each_window_of_a_feature_has_its_events_and_value(deployment: Deployment) -> None:
    told = deployment.gather("share", asked=at("12:35:00"))

    assert [32.0, 3] == [window.value for window in told.windows]
    assert [[1, 5, 2]] * 2 == [counted(told, number) for number in range(2)]


def test_corrections_of_the_row_and_decay_since_are_listed(deployment: Deployment) -> None:
    told = deployment.gather("clicks_10m", asked=at("12:35:00"))

    assert [2, 3] == [row.value for row in told.versions]
    assert [("12:40:06", 2, True), ("12:43:06", 1, True), ("12:45:06", 0, True)] == [
        (f"{one.row.at:%H:%M:%S}", one.row.value, one.is_decay) for one in told.after
    ]


def test_without_a_time_the_newest_row_is_explained_in_both_stores(deployment: Deployment) -> None:
    told = deployment.gather()

    assert (at("12:45:06"), True) == (told.at, told.is_decay)
    assert [0, 0, 0] == [row.value for row in (told.online, told.offline, told.duckdb) if row]


@pytest.mark.parametrize("seed", range(4))
def test_what_a_flow_left_after_many_commits_and_crashes_agrees(seed: int) -> None:
    logging.disable(logging.WARNING)
    fates = simulated.Fates({60 + 7 * seed: "dies after", 140 + seed: "dies before"})
    world = simulated.World(seed, events_count=100, is_live=False, fates=fates)
    world.run_until_done()
    logging.disable(logging.NOTSET)
    (plan,) = simulated.GIVEN.pipeline.plans
    outside = Outside(lambda: world.online, world.offline, world.ledger, lambda: world.log, lambda: at("23:00:00"))
    rows = world.offline.final(plan.view).to_pylist()
    events = world.offline.read(archive_name(simulated.STREAM)).to_pylist()
    for row in rows[:: max(1, len(rows) // 12)]:
        explainer = Explainer("simulated", plan, simulated.GIVEN.contracts, outside)
        told = explain(explainer.gather("clicks_1m", (row["user"],), row[EVENT_TIME]))

        begin = row[EVENT_TIME] - timedelta(minutes=1)
        inside = [one for one in events if one["user"] == row["user"] and begin <= one[EVENT_TIME] <= row[EVENT_TIME]]
        assert ((), (), 0) == (told.findings, told.reasons, told.exit_code)
        assert {(one["_partition"], one["_offset"]) for one in inside} == {
            (event.origin.partition, event.origin.offset) for event in told.windows[0].events
        }


# Where they disagree


def other_values(name: str, other: Any) -> Callable[[pa.Table], pa.Table]:
    def alter(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        column = pa.array([other] * table.num_rows, table.schema.field(place).type)
        return table.set_column(place, table.schema.field(place), column)

    return alter


def test_a_value_that_differs_by_duckdb_is_a_finding(deployment: Deployment) -> None:
    deployment.change(VIEW, other_values("clicks_10m", 77))
    deployment.forget()
    deployment.online.write(PLAN.view, deployment.offline.newest(PLAN.view))

    told = deployment.gather()

    assert ("clicks_10m is 77 offline and 0 by DuckDB, at 2026-03-01T12:45:06Z",) == told.findings
    assert (Outcome.VIOLATED, 1) == (told.outcome, told.exit_code)


def test_a_value_that_differs_between_the_stores_is_a_finding(deployment: Deployment) -> None:
    deployment.forget()
    deployment.online.write(PLAN.view, other_values("clicks_10m", 77)(deployment.offline.newest(PLAN.view)))

    assert ("clicks_10m is 77 online and 0 offline, at 2026-03-01T12:45:06Z",) == deployment.gather().findings


def test_an_online_row_that_is_older_or_gone_is_a_finding(deployment: Deployment) -> None:
    deployment.forget()
    assert ["the online store has no row; the newest offline is of 2026-03-01T12:45:06Z"] == [
        *deployment.gather().findings
    ]

    rows = deployment.offline.final(PLAN.view)
    deployment.online.write(PLAN.view, rows.slice(0, 1))

    (found,) = deployment.gather().findings
    assert "the online row is of 2026-03-01T12:00:00Z, older than" in found


def test_an_offline_row_that_is_lost_is_a_finding(deployment: Deployment) -> None:
    lost = at("12:45:06")
    deployment.change(VIEW, lambda table: table.filter(pc.not_equal(table[EVENT_TIME], lost)))

    told = deployment.gather()

    assert "the offline store has no row at 2026-03-01T12:45:06Z, which DuckDB makes" in told.findings[0]
    assert told.offline is None


def test_a_row_that_no_event_makes_is_a_finding(deployment: Deployment) -> None:
    deployment.change(archive_name(STREAM), lambda table: table.slice(0, 0))

    assert "which no archived event makes" in deployment.gather().findings[0]


def test_a_value_is_served_no_longer_than_its_ttl_and_that_is_no_finding(deployment: Deployment) -> None:
    deployment.forget()
    view = replace(PLAN.view, ttl=timedelta(minutes=1))
    explainer = Explainer("shop", replace(PLAN, view=view), GIVEN.contracts, deployment.outside)

    assert () == explain(explainer.gather("clicks_10m", ("ada",), None)).findings


# Where not all can be said


def test_events_that_wait_make_it_inconclusive(deployment: Deployment) -> None:
    deployment.log.append(STREAM, 0, value("12:51:00", "bob", "hats", 1.0, "g"), key=b"bob")
    assert 0 == deployment.gather().exit_code

    deployment.log.append(STREAM, 0, value("12:51:00", "ada", "hats", 1.0, "h"), key=b"ada")
    told = deployment.gather()

    assert (("1 events of it wait in Kafka",), 3) == (told.reasons, told.exit_code)
    assert (8, "waiting") in left(told)
    assert 0 == deployment.gather(asked=at("12:45:06")).exit_code


def test_an_entity_all_of_whose_events_wait_is_inconclusive(deployment: Deployment) -> None:
    deployment.log.append(STREAM, 0, value("12:51:00", "zoe", "hats", 1.0, "g"), key=b"zoe")

    told = deployment.gather(user="zoe")

    assert (("1 events of it wait in Kafka",), 3) == (told.reasons, told.exit_code)
    assert "not durable yet" in screen(told)


def test_an_online_row_that_is_not_durable_yet_is_inconclusive(deployment: Deployment) -> None:
    newest = at("12:45:06")
    deployment.change(VIEW, lambda table: table.filter(pc.not_equal(table[EVENT_TIME], newest)))
    clock = {
        key: mark.model_copy(update={"clock_us": instant_us(newest) - 1})
        for key, mark in deployment.ledger.shards.items()
    }
    deployment.change_ledger(shards=clock)

    told = deployment.gather()

    assert 3 == told.exit_code
    assert "is newer than what is durable" in told.reasons[0]
    assert 0 == deployment.gather(asked=at("12:36:00")).exit_code


def test_events_that_the_archive_has_dropped_are_said_to_be_missing(deployment: Deployment) -> None:
    deployment.change(archive_name(STREAM), lambda table: table.slice(0, 0))
    deployment.change_ledger(expired={STREAM: instant_us(at("12:40:00"))})

    told = deployment.gather()

    assert 3 == told.exit_code
    assert "archived events of clicks up to 2026-03-01T12:40:00Z may have been dropped" in told.reasons[0]
    assert "FRESHET_ARCHIVE_RETENTION" in told.reasons[0]


def test_a_row_of_all_of_the_past_whose_events_are_all_there_is_explained_whatever_was_dropped(
    deployment: Deployment,
) -> None:
    assert deployment.run.given.pipeline.plan(VIEW).reach_us is None
    deployment.change_ledger(expired={STREAM: instant_us(at("12:40:00"))})

    assert 0 == deployment.gather().exit_code


def test_a_row_that_was_taken_over_from_an_earlier_declaration_is_not_held_against_the_one_in_force(
    deployment: Deployment,
) -> None:
    deployment.change(VIEW, other_values("clicks_10m", 77))
    newest = deployment.gather().at
    deployment.change_ledger(taken_over={VIEW: instant_us(newest) + 1})

    told = deployment.gather()
    deployment.change_ledger(taken_over={VIEW: instant_us(newest)})
    own = deployment.gather()

    assert told.reasons[0].startswith("the row is of an earlier declaration, whose rows before ")
    assert not any("by DuckDB" in one for one in told.findings)
    assert own.reasons == ()
    assert any("by DuckDB" in one for one in own.findings)


def test_before_the_first_commit_what_is_online_is_shown(deployment: Deployment) -> None:
    outside = replace(deployment.outside, ledger=NoLedger())
    told = Deployment(outside, deployment.run).gather()

    assert (3, None, None) == (told.exit_code, told.offline, told.duckdb)
    assert told.online is not None
    assert "nothing is durable yet" in told.reasons[0]


class NoLedger:
    def read(self) -> None:
        return None


def test_stores_that_change_while_they_are_read_are_no_finding(deployment: Deployment) -> None:
    deployment.change(VIEW, other_values("clicks_10m", 77))
    ledger = deployment.ledger

    class Moving:
        def __init__(self) -> None:
            self.epoch = 0

        def read(self) -> Ledger:
            self.epoch += 1
            return ledger.model_copy(update={"epoch": self.epoch})

    told = Deployment(replace(deployment.outside, ledger=Moving()), deployment.run).gather()

    assert ((), 3) == (told.findings, told.exit_code)
    assert "but the stores changed while they were read" in told.reasons[0]


def away() -> Any:
    raise Unavailable("it is away. Hint: start it")


def test_without_the_online_store_the_offline_value_is_explained(deployment: Deployment) -> None:
    told = Deployment(replace(deployment.outside, online=away), deployment.run).gather("paid_10m", asked=at("12:35:00"))

    assert ({"online store": "it is away. Hint: start it"}, 5) == (told.troubles, told.exit_code)
    assert [1, 5] == counted(told)
    assert re.search(r"^online +\(not known\)", screen(told), re.MULTILINE)


def test_without_kafka_all_but_what_is_not_accepted_is_explained(deployment: Deployment) -> None:
    deployment.log.well = False

    told = deployment.gather("paid_10m", asked=at("12:35:00"))

    assert (["kafka"], 5) == ([*told.troubles], told.exit_code)
    assert [(0, "outside"), (2, "filtered")] == left(told)


def test_a_finding_is_one_though_a_system_is_away(deployment: Deployment) -> None:
    deployment.change(VIEW, other_values("clicks_10m", 77))

    told = Deployment(replace(deployment.outside, online=away), deployment.run).gather()

    assert 1 == told.exit_code


# What is refused


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        call()
    return str(refused.value)


def test_an_entity_that_is_nowhere_is_refused_and_its_dead_letters_are_counted(deployment: Deployment) -> None:
    assert 'entity "user=zoe" has no row of clicks_by_user. Hint: check how it is spelled' == refusal(
        lambda: deployment.gather(user="zoe")
    )
    late = ran(*EVENTS[2:3], ("12:00:00", "zoe", "hats", 1.0, "z"))

    said = refusal(lambda: late.gather(user="zoe"))

    assert "got 1 events that are late. Hint: `freshet dlq list` says why" in said


def test_a_time_before_the_first_row_is_refused_with_that_row_s_time(deployment: Deployment) -> None:
    said = refusal(lambda: deployment.gather(asked=at("11:59:59")))

    assert "has no row of clicks_by_user at that time; got 2026-03-01T11:59:59Z" in said
    assert "its first row is of 2026-03-01T12:00:00Z" in said


def test_a_view_or_feature_that_is_unknown_is_refused_with_what_was_meant() -> None:
    assert "did you mean clicks_by_user?" in refusal(lambda: asked_plan(GIVEN.pipeline, "click_by_user", "clicks_10m"))
    assert "did you mean clicks_10m?" in refusal(lambda: asked_plan(GIVEN.pipeline, VIEW, "clicks_1m"))
    assert "clicks_by_user has clicks_10m, paid_10m" in refusal(lambda: asked_plan(GIVEN.pipeline, VIEW, "zzz"))


def test_a_key_is_words_in_order_or_by_name() -> None:
    view = replace(PLAN.view, entity=(pa.field("room", pa.int32()), pa.field("device", pa.string())))

    assert (-2, "a") == asked_entity(view, ["-2", "a"]) == asked_entity(view, ["device=a", "room=-2"])
    assert (1, "b=c") == asked_entity(view, ["1", "b=c"])
    assert ("user",) == asked_entity(PLAN.view, ["user"])
    assert ("a=b",) == asked_entity(PLAN.view, ["a=b"]) == asked_entity(PLAN.view, ["user=a=b"])
    for words in (["1"], ["1", "a", "b"], ["room=1", "room=2"], ["x", "a"], ["99999999999", "a"]):
        assert "Hint: write " in refusal(lambda words=words: asked_entity(view, words))


# How it is shown


def test_the_screen_shows_the_values_the_sql_the_events_and_those_left_out(deployment: Deployment) -> None:
    shown = screen(deployment.gather("paid_10m", asked=at("12:36:00")))

    assert "clicks_by_user.paid_10m of user=ada, at 2026-03-01T12:35:00Z, made by an event" in shown
    assert "all that can be compared agrees" in shown
    assert "sum(amount) FILTER (WHERE page = 'pay')" in shown
    assert "of 2 events, from 2026-03-01T12:25:00Z to 2026-03-01T12:35:00Z" in shown
    assert "left out: 1 before the frame, 3 after the row" not in shown
    assert "its id came before" in shown
    assert "corrected 1 times:" in shown
    assert "rows since: 3" in shown


def test_what_stands_in_events_cannot_act_on_a_terminal() -> None:
    deployment = ran(("12:00:00", "ada\x1b[31m", "\x07\n", 1.0, "a"))

    shown = screen(deployment.gather("last_page", user="ada\x1b[31m"))

    assert all(one.isprintable() or one == "\n" for one in shown)
    assert r"ada\x1b[31m" in shown


def test_as_json_it_is_whole(deployment: Deployment) -> None:
    told = json.loads(json.dumps(as_json(deployment.gather("paid_10m", asked=at("12:36:00"))), allow_nan=False))

    assert ("ok", "event") == (told["outcome"], told["made_by"])
    (window,) = told["windows"]
    assert [1, 5] == [event["offset"] for event in window["events"]]
    assert {"filtered", "outside", "duplicate"} == {one["why"] for one in told["left"]}


# The command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wiki_edits_by_usr", "user_edits_10m", "ada"), "did you mean wiki_edits_by_user?"),
        (("wiki_edits_by_user", "page_edits_1h", "ada"), "wiki_edits_by_page has it"),
        (("wiki_edits_by_user", "user_edits_10m", "ada", "bob"), "write user=…"),
        (("wiki_edits_by_user", "user_edits_10m", "ada", "--at", "noon"), "write a time such as"),
        (("wiki_edits_by_user", "user_edits_10m", "ada", "--events", "-1"), "write a number of at least 0"),
    ],
)
def test_wrong_words_are_wrong_use(
    words: tuple[str, ...], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == cli.main(["-C", str(project), "explain", *words])

    assert said in capsys.readouterr().err
