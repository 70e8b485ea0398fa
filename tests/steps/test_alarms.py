"""When a failing check is news, and when it is over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.alarms import Alarms
from freshet.schemas.finding import Cause, Finding, Outcome, Status, Verdict

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUIET = timedelta(seconds=60)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def finding(name: str = "entity_is_online", view: str = "edits_by_user", rounds: int = 1, count: int = 1) -> Finding:
    check = f"{view}.{name}"
    return Finding(view, check, Cause.MISSING_ENTITY, (), (), f"{check}: …", count, rounds)


def verdict(*found: Finding, view: str = "edits_by_user", reasons: tuple[str, ...] = ()) -> Verdict:
    outcome = Outcome.VIOLATED if found else Outcome.INCONCLUSIVE if reasons else Outcome.OK
    return Verdict(view, outcome, 9, found, reasons)


FAILED = Verdict("edits_by_user", Outcome.VALIDATOR_ERROR, 0, reasons=("edits_by_user: redis is away",))


def news(alarms: Alarms, said: Verdict, seconds: float) -> list[tuple[Status, str]]:
    _, told = alarms.heed(said, at(seconds))
    return [(alarm.status, alarm.finding.check) for alarm in told]


OPENED = [(Status.OPENED, "edits_by_user.entity_is_online")]
RESOLVED = [(Status.RESOLVED, "edits_by_user.entity_is_online")]


def test_a_finding_is_news_once() -> None:
    alarms = Alarms(QUIET)

    assert [news(alarms, verdict(finding()), seconds) for seconds in (0, 5, 10)] == [OPENED, [], []]


def test_a_finding_that_wants_several_rounds_opens_with_the_last_of_them() -> None:
    alarms, patient = Alarms(QUIET), finding(rounds=3)

    assert [news(alarms, verdict(patient), seconds) for seconds in (0, 5, 10)] == [[], [], OPENED]


def test_a_round_in_which_it_held_starts_the_count_anew() -> None:
    alarms, patient = Alarms(QUIET), finding(rounds=2)
    rounds = [verdict(patient), verdict(), verdict(patient), verdict(patient)]

    assert [news(alarms, said, 5 * number) for number, said in enumerate(rounds)] == [[], [], [], OPENED]


def test_what_is_not_yet_confirmed_is_no_violation() -> None:
    alarms = Alarms(QUIET)

    one, _ = alarms.heed(verdict(finding(rounds=2)), at(0))
    other, _ = alarms.heed(verdict(finding("x", rounds=2), reasons=("too few",)), at(5))

    assert (one.outcome, one.findings) == (Outcome.OK, ())
    assert (other.outcome, other.findings, other.reasons) == (Outcome.INCONCLUSIVE, (), ("too few",))


def test_what_is_confirmed_stays_in_the_verdict_beside_what_is_not() -> None:
    at_once = finding("a")

    kept, _ = Alarms(QUIET).heed(verdict(at_once, finding("b", rounds=2)), at(0))

    assert (kept.outcome, kept.findings) == (Outcome.VIOLATED, (at_once,))


def test_an_open_finding_needs_no_second_confirmation() -> None:
    alarms, patient = Alarms(QUIET), finding(rounds=2)
    for number in range(2):
        alarms.heed(verdict(patient), at(number))
    alarms.heed(verdict(), at(2))

    again, told = alarms.heed(verdict(patient), at(3))

    assert (again.findings, told) == ((patient,), ())


def test_a_finding_is_over_once_its_check_has_held_for_the_quiet() -> None:
    alarms = Alarms(QUIET)
    alarms.heed(verdict(finding()), at(0))

    assert [news(alarms, verdict(), seconds) for seconds in (5, 59, 60, 65)] == [[], [], RESOLVED, []]
    assert not alarms.open


def test_a_check_that_fails_again_during_the_quiet_begins_it_anew() -> None:
    alarms = Alarms(QUIET)
    alarms.heed(verdict(finding()), at(0))
    alarms.heed(verdict(finding()), at(50))

    assert [news(alarms, verdict(), seconds) for seconds in (60, 109, 110)] == [[], [], RESOLVED]


def test_an_alarm_tells_when_it_opened_and_the_newest_that_was_found() -> None:
    alarms = Alarms(QUIET)
    alarms.heed(verdict(finding(count=1)), at(0))
    alarms.heed(verdict(finding(count=7)), at(10))

    _, (alarm,) = alarms.heed(verdict(), at(70))

    assert (alarm.since, alarm.at, alarm.finding.count) == (at(0), at(70), 7)


def test_what_was_over_may_open_again() -> None:
    alarms = Alarms(QUIET)
    rounds = [(verdict(finding()), 0), (verdict(), 60), (verdict(finding()), 65)]

    assert [news(alarms, *one) for one in rounds] == [OPENED, RESOLVED, OPENED]


def test_a_check_that_looked_at_nothing_neither_resolves_its_finding_nor_starts_its_count_anew() -> None:
    alarms, patient = Alarms(QUIET), finding("x", rounds=2)
    alarms.heed(verdict(finding(), patient), at(0))
    nothing = replace(verdict(), untold=(finding().check, patient.check))

    assert news(alarms, nothing, 6000) == []
    assert news(alarms, verdict(patient), 6005) == [(Status.OPENED, "edits_by_user.x"), *RESOLVED]


def test_an_error_of_the_validator_resolves_nothing() -> None:
    alarms = Alarms(QUIET)
    alarms.heed(verdict(finding()), at(0))

    assert [news(alarms, FAILED, seconds) for seconds in (30, 60, 6000)] == [[], [], []]
    assert "edits_by_user.entity_is_online" in alarms.open


def test_an_error_of_the_validator_stays_an_error() -> None:
    assert Alarms(QUIET).heed(FAILED, at(0)) == (FAILED, ())


def test_another_view_neither_resolves_a_finding_nor_starts_its_count_anew() -> None:
    alarms, patient = Alarms(QUIET), finding(rounds=2)
    other = verdict(view="edits_by_page")
    alarms.heed(verdict(patient), at(0))
    alarms.heed(other, at(1))

    assert news(alarms, verdict(patient), 2) == OPENED
    assert news(alarms, other, 6000) == []
    assert news(alarms, verdict(), 6001) == RESOLVED


def test_a_view_whose_name_begins_like_another_s_is_not_that_one() -> None:
    alarms = Alarms(QUIET)
    alarms.heed(verdict(finding(view="edits_by_user_2"), view="edits_by_user_2"), at(0))

    assert news(alarms, verdict(), 6000) == []


def test_a_finding_of_a_check_that_is_no_more_is_over_and_others_stay_open_until_theirs_hold() -> None:
    alarms, gone = Alarms(QUIET), finding("old_feature.online_equals_offline")
    alarms.heed(verdict(finding(), gone, finding("patient", rounds=2)), at(0))

    over = alarms.keep({finding().check, finding("patient").check}, at(5))

    assert [(one.status, one.finding, one.since, one.at) for one in over] == [(Status.RESOLVED, gone, at(0), at(5))]
    assert news(alarms, verdict(finding(), finding("patient", rounds=2)), 10) == []
    assert [*alarms.open] == [finding().check]
    assert news(alarms, verdict(), 70) == RESOLVED


@pytest.mark.parametrize("rounds", [1, 2, 3])
@given(failing=st.lists(st.booleans(), max_size=60))
def test_opened_and_resolved_take_turns_and_tell_what_is_open(rounds: int, failing: list[bool]) -> None:
    alarms, told = Alarms(timedelta(seconds=15)), list[Status]()
    for number, fails in enumerate(failing):
        _, made = alarms.heed(verdict(*([finding(rounds=rounds)] if fails else [])), at(5 * number))
        told += [alarm.status for alarm in made]

        assert bool(alarms.open) is bool(told and told[-1] is Status.OPENED)

    assert told == [Status.OPENED, Status.RESOLVED] * (len(told) // 2) + [Status.OPENED] * (len(told) % 2)
