"""One screen that says how a deployment does, and its JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from freshet.flows.steps.burrow import Status
from freshet.flows.steps.freshness import State
from freshet.flows.steps.lag import Lag
from freshet.flows.steps.status import Part, Report, StreamStatus, ViewStatus, as_json, screen, state_of
from freshet.schemas.applied import DeclarationStatus
from freshet.scripts.status import exit_code

TARGET_S = 2.0
CAUSE = "stale_online"
WELL = Lag(500, 0, 0.0, True, Status.OK, 0.0, math.inf, math.inf)
BEHIND = Lag(900, 120, 9.5, True, Status.WARN, math.inf, 0.0, 3600.0)


def stream(*lags: Lag, **changes: Any) -> StreamStatus:
    ages_s = {number: 12.0 + number for number, _ in enumerate(lags)}
    return replace(StreamStatus("edits", "wiki.edits", dict(enumerate(lags)), 40.0, 38.0, 3, ages_s), **changes)


def report(*streams: StreamStatus, **changes: Any) -> Report:
    view = ViewStatus("edits_by_user", State.FRESH, 4, 80.0, 0.15, 1200, {})
    made = Report(
        project="shop",
        at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        parts=[Part("kafka", "localhost:9092"), Part("validator", "127.0.0.1:9307")],
        streams=streams or (stream(WELL),),
        views=[view],
        target_s=TARGET_S,
        checkpoint_age_s=0.4,
        epoch=77,
        rejects={"late": 2},
        validated_age_s=3.0,
    )
    return replace(made, **changes)


def test_a_stream_is_as_its_worst_partition() -> None:
    found = stream(WELL, BEHIND, replace(WELL, status=Status.STOP, messages_count=1, age_s=4.0, drain_s=None))

    assert (found.status, found.messages_count, found.age_s) == (Status.STOP, 121, 9.5)
    assert (found.drain_s, found.breach_s, found.retention_left_s) == (None, 0.0, 3600.0)


def test_of_a_stream_that_kafka_does_not_tell_of_nothing_is_known() -> None:
    found = stream()

    assert (found.status, found.messages_count, found.age_s, found.drain_s, found.breach_s) == (None,) * 5
    assert found.last_event_age_s is None


@pytest.mark.parametrize(
    ("lag", "changes", "findings", "expected"),
    [
        (None, {}, {}, State.UNKNOWN),
        (WELL, {"in_per_s": 0.0}, {}, State.IDLE),
        (WELL, {}, {}, State.FRESH),
        (replace(BEHIND, age_s=1.9), {}, {}, State.FRESH),
        (BEHIND, {}, {}, State.LAGGING),
        (BEHIND, {}, None, State.LAGGING),
        (replace(BEHIND, status=Status.STALL), {}, {}, State.STALLED),
        (replace(BEHIND, status=Status.STOP, age_s=1.0), {}, {}, State.FRESH),
        (BEHIND, {}, {CAUSE: 1}, State.BREACHED),
        (WELL, {}, {"value_mismatch": 1}, State.FRESH),
    ],
)
def test_a_view_keeps_up_as_its_streams_do(
    lag: Lag | None, changes: Mapping[str, Any], findings: Mapping[str, int] | None, expected: State
) -> None:
    lags = [] if lag is None else [WELL, lag]

    assert state_of([stream(*lags, **changes)], TARGET_S, findings, CAUSE) is expected


def test_all_is_well_only_if_nothing_is_down_late_stopped_or_found() -> None:
    well = report()
    assert (well.is_down, well.is_unwell) == (False, False)
    assert report(parts=[Part("kafka", "localhost:9092", "connection refused")]).is_down
    assert report(stream(replace(BEHIND, status=Status.REWIND))).is_unwell
    assert report(views=[replace(well.views[0], state=State.LAGGING)]).is_unwell
    assert report(views=[replace(well.views[0], findings={"dtype": 1})]).is_unwell
    assert not report(views=[replace(well.views[0], findings=None)]).is_unwell


def test_the_screen_has_what_is_known_and_a_dash_for_the_rest() -> None:
    shown = screen(
        report(
            stream(WELL, BEHIND),
            stream(stream="visits", in_per_s=None, done_per_s=None, dead_letters_count=None),
            parts=[Part("kafka", "localhost:9092"), Part("validator", "127.0.0.1:9307", "connection refused")],
            views=[
                ViewStatus("edits_by_user", State.LAGGING, 4, 80.0, 0.15, 1200, {"dtype": 2, "missing_entity": 1}),
                ViewStatus("visits_by_page", State.UNKNOWN, 1),
            ],
        )
    )

    assert (
        shown.partition("\n\n")[2]
        == """\
part             where
kafka      ok    localhost:9092
validator  DOWN  connection refused

durable up to epoch 77, 400 ms ago; last validation unknown: no answer from the validator at 127.0.0.1:9307; rejects 2 late

stream  is    last event  in/s  done/s  waiting  oldest  done in  late in  lost in  dead letters
edits   warn    12 s ago    40      38      120    10 s    never      0 s   60 min  3
visits  -              -     -       -        -       -        -        -        -  -

view            is       rows/s     p99  entities  features  findings
edits_by_user   lagging      80  150 ms     1,200         4  2 dtype, 1 missing_entity
visits_by_page  unknown       -       -         -         1  -

rows should be online within 2 s"""
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "durable up to epoch 77, 400 ms ago; validated 3 s ago;"),
        ({"validated_age_s": None}, "; not validated yet;"),
        ({"parts": [Part("kafka", "localhost:9092")], "validated_age_s": None}, "; no validator;"),
        ({"checkpoint_age_s": None, "epoch": None}, "nothing durable yet;"),
        (
            {"parts": [Part("offline store", "rows", "no such disk")], "checkpoint_age_s": None, "epoch": None},
            "last commit unknown: no answer from the offline store at rows;",
        ),
        (
            {"parts": [Part("validator", "127.0.0.1:9307", "connection refused")], "validated_age_s": None},
            "last validation unknown: no answer from the validator at 127.0.0.1:9307;",
        ),
    ],
)
def test_what_nobody_answers_is_unknown_and_not_said_never_to_have_been(changes: Mapping[str, Any], said: str) -> None:
    assert said in screen(report(**changes))


def test_the_screen_says_in_how_many_partitions_a_stream_stands_still() -> None:
    stopped = stream(WELL, replace(BEHIND, status=Status.STOP), WELL)
    view = ViewStatus("edits_by_user", State.STALLED, 4, stalled_count=stopped.stalled_count, partitions_count=3)

    lasting = replace(view, age_s=720.0)
    lines = screen(report(stopped, views=[view, lasting])).splitlines()

    assert any(line.startswith("edits   stop (1 of 3)  ") for line in lines), lines
    assert any(line.startswith("edits_by_user  STALLED (1 of 3 partitions)  ") for line in lines), lines
    assert any("  STALLED for 12 min (1 of 3 partitions)  " in line for line in lines), lines
    assert "stop  " in screen(report(stream(replace(BEHIND, status=Status.STOP)))), "one partition is all there is"


def test_a_part_that_answers_and_says_what_is_wrong_is_unwell_and_not_down() -> None:
    failing = report(parts=[Part("validator", "127.0.0.1:9307", complaint="by_user: no such part")])

    assert "\nvalidator  UNWELL  by_user: no such part\n" in screen(failing)
    assert (failing.is_down, failing.is_unwell, failing.is_ailing) == (False, False, True)
    assert exit_code(failing) == 4
    assert exit_code(replace(failing, streams=[stream(replace(BEHIND, status=Status.STOP))])) == 1
    assert exit_code(replace(failing, parts=[*failing.parts, Part("kafka", "localhost:9092", "refused")])) == 5
    assert exit_code(report()) == 0


def test_a_message_whose_producers_clock_is_ahead_is_said_to_be() -> None:
    assert " 50 min ahead " in screen(report(stream(WELL, last_event_ages_s={0: -3000.0})))


def test_the_json_has_all_of_it_and_is_json_whatever_is_infinite_or_unknown() -> None:
    found = json.loads(json.dumps(as_json(report(stream(WELL, BEHIND))), allow_nan=False))

    (one,) = found["streams"]
    assert one["last_event_age_s"] == 12.0
    assert [part["last_event_age_s"] for part in one["partitions"]] == [12.0, 13.0]
    assert (one["status"], one["messages_count"], one["drain_s"], one["breach_s"]) == ("WARN", 120, "never", 0.0)
    assert [part["status"] for part in one["partitions"]] == ["OK", "WARN"]
    assert (found["at"], found["is_down"], found["is_unwell"]) == ("2026-01-02T03:04:05.000+00:00", False, False)
    assert found["views"][0]["state"] == "fresh"


DECLARED = DeclarationStatus(
    id="d40cdb3e5e09", place="feature_repo/features.yaml", is_applied=True, since=datetime(2026, 1, 2, 3, tzinfo=UTC)
)


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        (DECLARED, "declaration d40cdb3e5e09 in force since 2026-01-02T03:00:00+00:00\ndurable"),
        (
            DECLARED.model_copy(update={"edited": ("feature_repo/features.yaml",)}),
            "since 2026-01-02T03:00:00+00:00; feature_repo/features.yaml edited, not applied: `freshet plan`\ndurable",
        ),
        (
            DeclarationStatus(id="d40cdb3e5e09", place="feature_repo/features.yaml"),
            "declaration d40cdb3e5e09 as it is written; none was applied yet\ndurable",
        ),
        (None, "\n\ndurable"),
    ],
    ids=["in force", "edited since", "never applied", "unknown"],
)
def test_which_declaration_is_in_force_is_said_and_whether_its_file_says_another_one(
    declaration: DeclarationStatus | None, expected: str
) -> None:
    assert expected in screen(report(declaration=declaration))


def test_which_declaration_is_in_force_is_in_the_json() -> None:
    told = json.loads(json.dumps(as_json(report(declaration=DECLARED))))["declaration"]

    assert told == {
        "id": "d40cdb3e5e09",
        "place": "feature_repo/features.yaml",
        "is_applied": True,
        "since": "2026-01-02T03:00:00Z",
        "edited": [],
    }
    assert as_json(report())["declaration"] is None
