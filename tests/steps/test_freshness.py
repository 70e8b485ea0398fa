"""Whether a view keeps up: idle and stuck are told apart from offsets, never from a timer."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.freshness import (
    CHECKS_MIN,
    STALLED_AFTER,
    Counts,
    Freshness,
    Line,
    Progress,
    Source,
    State,
    without_history,
)
from freshet.schemas.units import Objective

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET_S, ROUND_S = 2.0, 5.0
STALLED_S = STALLED_AFTER.total_seconds()
ONE, OTHER = ("edits", 0), ("edits", 1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def p99(seconds: float = TARGET_S) -> Objective:
    return Objective(99, timedelta(seconds=seconds))


def tracked(objective: Objective | None = None, commit_interval_s: float = 0.0) -> Freshness:
    return Freshness(objective or p99(), timedelta(seconds=commit_interval_s))


def look(freshness: Freshness, seconds: float, progress: Mapping[Source, Progress], answered_s: float = 0.0) -> None:
    """Look once, and be answered `answered_s` later."""
    freshness.look(progress, at(seconds), at(seconds + answered_s))


def line(freshness: Freshness, source: Source = ONE) -> Line:
    (found,) = (one for one in freshness.lines([source[0]]) if one.partition == source[1])
    return found


def states(freshness: Freshness, looks: Iterable[tuple[float, int | None, int]]) -> list[State]:
    """Look at one partition at some seconds, when so much is committed and it ends there."""
    found = []
    for seconds, committed, end in looks:
        look(freshness, seconds, {ONE: Progress(committed, end)})
        found.append(line(freshness).state)
    return found


# --- idle, fresh, lagging, stalled ------------------------------------------------------------------------------------


def test_a_partition_with_nothing_new_is_idle() -> None:
    assert states(tracked(), [(0, 9, 9), (5, 9, 9), (3600, 9, 9)]) == [State.IDLE] * 3


def test_an_empty_partition_of_which_nothing_was_committed_is_idle() -> None:
    assert states(tracked(), [(0, None, 0), (5, None, 0)]) == [State.IDLE] * 2


def test_what_came_and_is_committed_is_fresh_then_idle() -> None:
    assert states(tracked(), [(0, 9, 9), (5, 12, 12), (10, 12, 12)]) == [State.IDLE, State.FRESH, State.IDLE]


def test_the_first_message_after_a_silence_is_as_old_as_it_is_not_as_the_silence() -> None:
    freshness = tracked()

    assert states(freshness, [(0, 9, 9), (5, 9, 9), (3600, 9, 10)])[-1] is State.FRESH
    assert line(freshness).lag_seconds == 0.0


def test_a_message_waits_at_least_since_the_end_was_first_seen_past_it() -> None:
    freshness = tracked(p99(60))
    states(freshness, [(0, 9, 9), (5, 9, 12), (10, 9, 15), (15, 11, 20)])

    assert (line(freshness).lag_seconds, line(freshness).waiting_count) == (10.0, 9)

    states(freshness, [(20, 12, 20)])
    assert line(freshness).lag_seconds == 10.0


def test_of_a_message_that_stays_the_last_one_the_age_grows() -> None:
    freshness = tracked(p99(600))
    states(freshness, [(0, 9, 9), *((5.0 * number, 9, 10) for number in range(1, 11))])

    assert line(freshness).lag_seconds == 45.0


def test_a_partition_that_is_late_and_moves_lags_however_long() -> None:
    late = [(ROUND_S * number, 10 * number, 100 + 10 * number) for number in range(40)]

    assert {*states(tracked(), late)[1:]} == {State.LAGGING}


def test_a_partition_that_stands_still_while_messages_wait_lags_then_is_stalled() -> None:
    looks = [(0, 9, 9), *((5.0 * number, 9, 10) for number in range(1, 6))]

    assert [State.IDLE, State.FRESH, State.LAGGING, State.LAGGING, State.STALLED, State.STALLED] == states(
        tracked(), looks
    )


def test_a_stalled_partition_that_moves_again_is_not_stalled() -> None:
    looks = [(0, 9, 9), *((5.0 * number, 9, 30) for number in range(1, 6)), (30, 10, 30), (35, 30, 30), (40, 30, 30)]

    assert [State.STALLED, State.LAGGING, State.IDLE, State.IDLE] == states(tracked(), looks)[-4:]


def test_a_partition_is_not_stalled_before_its_target() -> None:
    looks = [(0, 9, 9), *((5.0 * number, 9, 10) for number in range(1, 14))]

    assert {State.FRESH} == {*states(tracked(p99(60)), looks)[1:]}
    assert states(tracked(p99(30)), looks)[-1] is State.STALLED


def test_two_looks_are_not_enough_to_be_stalled() -> None:
    """The whole machine may have slept between them."""
    assert states(tracked(), [(0, 9, 9), (5, 9, 10), (605, 9, 10)])[-1] is State.LAGGING


def test_a_message_that_is_online_and_not_yet_committed_is_not_late() -> None:
    looks = [(0, 9, 9), (5, 9, 10), (8, 9, 10)]

    assert states(tracked(), looks)[-1] is State.LAGGING
    assert states(tracked(commit_interval_s=1.0), looks)[-1] is State.FRESH


def test_an_answer_that_took_long_makes_no_message_older() -> None:
    """The committed offset was asked before the validator was held up, the end after it."""
    freshness = tracked()
    look(freshness, 0, {ONE: Progress(9, 9)})
    look(freshness, 5, {ONE: Progress(9, 10)})
    look(freshness, 6, {ONE: Progress(9, 500)}, answered_s=60)

    assert line(freshness).state is State.FRESH


# --- unknown ----------------------------------------------------------------------------------------------------------


def test_of_a_partition_of_which_nothing_was_ever_committed_nothing_is_known() -> None:
    freshness = tracked()

    assert states(freshness, [(0, None, 5), (60, None, 9)]) == [State.UNKNOWN] * 2
    assert freshness.undecided_count(["edits"]) == 0


def test_what_waited_before_the_first_look_is_unknown_until_it_is_late_or_committed() -> None:
    late, in_time = tracked(), tracked()

    assert states(late, [(0, 7, 9), (2, 7, 9), (2.5, 7, 9)]) == [State.UNKNOWN, State.UNKNOWN, State.LAGGING]
    assert states(in_time, [(0, 7, 9), (2, 9, 12)]) == [State.UNKNOWN, State.FRESH]


def test_it_is_told_how_many_partitions_are_undecided() -> None:
    freshness = tracked()
    look(freshness, 0, {ONE: Progress(7, 9), OTHER: Progress(9, 9), ("views", 0): Progress(1, 9)})
    assert freshness.undecided_count(["edits"]) == 1

    look(freshness, 3, {ONE: Progress(7, 9), OTHER: Progress(9, 9)})
    assert freshness.undecided_count(["edits"]) == 0


def test_a_stream_that_was_not_heard_is_unknown() -> None:
    freshness = tracked()
    assert freshness.lines(["edits"]) == [Line("edits", None, State.UNKNOWN)]

    look(freshness, 0, {("views", 0): Progress(3, 3)})
    assert [State.UNKNOWN, State.IDLE] == [one.state for one in freshness.lines(["edits"]) + freshness.lines(["views"])]


def test_a_partition_that_is_not_heard_any_more_is_told_no_more() -> None:
    freshness = tracked()
    look(freshness, 0, {ONE: Progress(3, 3), OTHER: Progress(3, 3)})
    look(freshness, 5, {ONE: Progress(3, 3)})

    assert [one.partition for one in freshness.lines(["edits"])] == [0]


def test_offsets_committed_past_the_end_are_of_another_topic() -> None:
    freshness = tracked()

    assert states(freshness, [(0, 900, 900), (5, 900, 10), (6, 5, 12)]) == [State.IDLE, State.UNKNOWN, State.UNKNOWN]
    assert states(freshness, [(7, 12, 14)]) == [State.FRESH]


def test_a_view_has_the_partitions_of_its_own_streams() -> None:
    freshness = tracked()
    look(freshness, 0, {("views", 0): Progress(3, 3), OTHER: Progress(3, 3), ONE: Progress(3, 3)})

    assert [("edits", 0), ("edits", 1)] == [(one.stream, one.partition) for one in freshness.lines(["edits"])]
    assert len(freshness.lines(["edits", "views"])) == 3


def test_one_check_has_no_history_so_what_lags_is_a_breach() -> None:
    lines = [Line("edits", number, state) for number, state in enumerate(State)]

    before, after = [one.state for one in lines], [one.state for one in without_history(lines)]

    assert [State.BREACHED if state is State.LAGGING else state for state in before] == after


# --- the objective ----------------------------------------------------------------------------------------------------


def run(
    freshness: Freshness, late: Iterable[bool], begin_s: float = 0.0, round_s: float = ROUND_S, source: Source = ONE
) -> float:
    """Look at a partition that is never idle, and late at some looks; return when the next look would be."""
    seconds = begin_s
    for is_late in late:
        end = 100 * (1 + round(seconds / round_s))
        look(freshness, seconds, {source: Progress(max(0, end - 250) if is_late else end, end)})  # it moves, too
        seconds += round_s
    return seconds


MINUTES_5, HOUR = 60, 720
"""In looks."""


def test_an_objective_of_which_too_much_burns_in_an_hour_and_now_is_breached() -> None:
    freshness = tracked()
    run(freshness, [False] * HOUR + [True] * (HOUR // 5))

    assert (line(freshness).state, line(freshness).burning) == (State.BREACHED, "page")


def test_a_breach_is_over_once_the_short_windows_are() -> None:
    freshness = tracked()
    now = run(freshness, [False] * HOUR + [True] * (HOUR // 4) + [False] * 20)
    assert line(freshness).state is State.BREACHED

    run(freshness, [False] * 7 * MINUTES_5, now)
    assert line(freshness).state is State.FRESH


def test_a_short_trouble_within_the_budget_is_no_breach() -> None:
    freshness = tracked()
    run(freshness, [False] * HOUR + [True] * 6)

    assert line(freshness).state is State.LAGGING


def test_nothing_is_said_before_the_shortest_window_has_passed() -> None:
    freshness = tracked()
    now = run(freshness, [True] * MINUTES_5)
    assert line(freshness).state is State.LAGGING

    run(freshness, [True] * 2, now)
    assert line(freshness).state is State.BREACHED


def test_nothing_is_said_of_too_few_checks() -> None:
    freshness = tracked()
    now = run(freshness, [True] * (CHECKS_MIN - 1), round_s=30)
    assert line(freshness).state is State.LAGGING

    run(freshness, [True] * 2, now, round_s=30)
    assert line(freshness).state is State.BREACHED


def test_a_low_rate_over_days_is_a_ticket() -> None:
    freshness = tracked()
    late = [number % 50 == 0 for number in range(3 * 24 * 60)]  # 2 %, once a minute
    run(freshness, late, round_s=60)

    assert (line(freshness).state, line(freshness).burning) == (State.BREACHED, "ticket")


def test_a_rate_within_the_objective_is_fresh_for_ever() -> None:
    freshness = tracked()
    run(freshness, [number % 125 == 0 for number in range(4 * 24 * 60)], round_s=60)

    assert line(freshness).burning is None


def test_a_weaker_objective_allows_more() -> None:
    late = [number % 4 == 0 for number in range(HOUR)]
    strict, weak = tracked(), tracked(Objective(50, timedelta(seconds=TARGET_S)))
    for freshness in (strict, weak):
        run(freshness, late)

    assert (line(strict).burning, line(weak).burning) == ("page", None)


def test_only_the_partitions_that_were_late_are_breached() -> None:
    freshness = tracked()
    for number in range(1, HOUR):
        end = 100 * number
        look(freshness, ROUND_S * number, {ONE: Progress(max(0, end - 250), end), OTHER: Progress(end, end)})

    assert (line(freshness).state, line(freshness, OTHER).state) == (State.BREACHED, State.FRESH)


def test_a_stalled_partition_stays_stalled_though_the_objective_is_broken() -> None:
    freshness = tracked()
    states(freshness, [(0, 9, 9), *((ROUND_S * number, 9, 10) for number in range(1, HOUR))])

    assert (line(freshness).state, line(freshness).burning) == (State.STALLED, "page")


def test_what_is_to_be_exported_counts_checks_that_had_something_to_be_fresh_with() -> None:
    freshness = tracked()
    states(freshness, [(0, 9, 9), (5, 9, 9), (10, 12, 12), (15, 12, 14), (20, 12, 14), (25, 14, 14)])

    reading = freshness.reading(["edits"])

    assert (reading.checked_count, reading.stale_count) == (3, 1)
    assert [*reading.burn_rates] == ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]
    assert reading.burn_rates["5m"] == pytest.approx(100 / 3)
    assert freshness.reading(["views"]).checked_count == 0


def test_only_three_days_are_kept_and_the_totals_of_all() -> None:
    counts, minutes = Counts(), 10 * 24 * 60
    for minute in range(minutes):
        counts.add(60.0 * minute, stale=minute % 10 == 0)

    now = 60.0 * (minutes - 1)
    assert counts.totals == (minutes, minutes // 10)
    assert counts.since(now - 3 * 86400) == (3 * 1440, 3 * 144)
    assert counts.since(now - 300)[0] == 5
    assert len(counts._minutes) < 2 * 3 * 1440  # noqa: SLF001  # the bound is the promise


# --- laws -------------------------------------------------------------------------------------------------------------

PAUSES = st.floats(0.5, 30.0)
ALARMING = {State.LAGGING, State.STALLED, State.BREACHED}


@given(pauses=st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50), end=st.integers(0, 2**40))
def test_idle_never_alarms_however_long(pauses: list[float], end: int) -> None:
    freshness, seconds = tracked(), 0.0
    for pause in pauses:
        seconds += pause
        look(freshness, seconds, {ONE: Progress(end, end)})

        assert line(freshness).state is State.IDLE
    look(freshness, seconds + 1, {ONE: Progress(end, end + 1)})
    assert line(freshness).state is State.FRESH


@given(
    before=st.lists(PAUSES, max_size=5),
    pauses=st.lists(PAUSES, min_size=1, max_size=8),
    arrivals=st.lists(st.integers(0, 5), min_size=8, max_size=8),
    target_s=st.floats(0.1, 60),
)
def test_a_partition_that_never_moves_while_messages_wait_is_found_within_a_bound(
    before: list[float], pauses: list[float], arrivals: list[int], target_s: float
) -> None:
    """The bound: the target or 15 s, a look until it is seen, three to be sure, and one until it is said."""
    freshness, seconds, end = tracked(p99(target_s)), 0.0, 9
    for pause in before:
        look(freshness, seconds, {ONE: Progress(9, 9)})
        seconds += pause
    arrived_s, longest = seconds, max(before[-1:] + pauses)
    bound_s = max(target_s, STALLED_S) + 4 * longest
    found_s, number = None, 0
    while seconds <= arrived_s + bound_s + longest and found_s is None:
        end += 1 if number == 0 else arrivals[number % len(arrivals)]
        seconds += pauses[number % len(pauses)]
        look(freshness, seconds, {ONE: Progress(9, end)})
        found_s = seconds if line(freshness).state is State.STALLED else None
        number += 1

    assert found_s is not None
    assert max(target_s, STALLED_S) <= found_s - arrived_s <= bound_s


@given(
    gaps=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=80),
    delays=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=10),
    pauses=st.lists(st.floats(0.5, 30.0), min_size=1, max_size=10),
    slow=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=10),
)
def test_a_flow_within_its_target_is_never_called_anything_but_fresh_or_idle(
    gaps: list[float], delays: list[float], pauses: list[float], slow: list[float]
) -> None:
    """Messages come at any pace, each is committed within the target, and the validator is answered at any pace."""
    arrivals, seconds = list[float](), 0.0
    for gap in gaps:
        seconds += gap
        arrivals.append(seconds)
    done = [at_s + TARGET_S * delays[number % len(delays)] for number, at_s in enumerate(arrivals)]

    def committed(at_s: float) -> int:
        return next((number for number, done_s in enumerate(done) if done_s > at_s), len(done))

    freshness, now, number = tracked(), -1.0, 0
    while now < seconds + 60:
        answered_s = slow[number % len(slow)]
        ended = sum(arrived <= now + answered_s for arrived in arrivals)
        look(freshness, now, {ONE: Progress(committed(now), ended)}, answered_s)
        if committed(now) >= (freshness._clocks[ONE].first_end or 0):  # noqa: SLF001  # else it is not known yet
            assert line(freshness).state in {State.FRESH, State.IDLE}
        else:
            assert line(freshness).state is State.UNKNOWN
        now += answered_s + pauses[number % len(pauses)]
        number += 1


LOOKS = st.lists(
    st.tuples(PAUSES, *[st.tuples(st.integers(0, 9), st.integers(0, 9)) for _ in range(3)]), min_size=1, max_size=30
)


@given(looks=LOOKS, order=st.permutations(range(3)))
def test_the_order_of_partitions_does_not_matter(
    looks: list[tuple[float, *tuple[tuple[int, int], ...]]], order: list[int]
) -> None:
    one, other, seconds = tracked(), tracked(), 0.0
    ends, committed = [0, 0, 0], [0, 0, 0]
    for pause, *steps in looks:
        seconds += pause
        for part, (came, done) in enumerate(steps):
            ends[part] += came
            committed[part] = min(ends[part], committed[part] + done)
        found = {("edits", part): Progress(committed[part], ends[part]) for part in range(3)}
        look(one, seconds, found)
        look(other, seconds, {("edits", part): found["edits", part] for part in order})

        assert one.lines(["edits"]) == other.lines(["edits"])
    assert one.reading(["edits"]) == other.reading(["edits"])


@given(looks=LOOKS)
def test_what_is_said_to_wait_has_waited_at_least_that_long(
    looks: list[tuple[float, *tuple[tuple[int, int], ...]]],
) -> None:
    freshness, seconds, end, committed = tracked(), 0.0, 0, 0
    came_s = list[float]()
    for pause, (came, done), *_ in looks:
        seconds += pause
        end += came
        came_s += [seconds - pause / 2] * came
        committed = min(end, committed + done)
        look(freshness, seconds, {ONE: Progress(committed, end)})
        waited = line(freshness).lag_seconds

        if waited is not None:
            assert waited <= (seconds - came_s[committed] if committed < end else 0.0)
