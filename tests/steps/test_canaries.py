"""One partition's canary, look after look: what is committed, what stands still, and what nobody can tell."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from freshet.flows.steps.canaries import Canary, CanaryLine, CanaryState, Probe, event_time
from freshet.schemas.ledger import Ledger, PartitionMark, source_key
from freshet.schemas.units import instant_us
from freshet.schemas.view import StoredRow, View

START, LATENESS, LIMIT = datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(minutes=10), timedelta(seconds=15)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
VIEW = View("by_user", ("clicks",), (pa.field("user", pa.string()),), ())
CANARY = Canary(7, START, START - 5 * timedelta(minutes=1), {"by_user": ("canary-1",)})


def ledger(committed: int, newest: datetime = START) -> Ledger:
    key = source_key("clicks", 1)
    marks = {key: PartitionMark(newest_us=instant_us(newest))}
    return Ledger(id="a", shards_count=1, offsets={key: committed}, partitions=marks)


def sent(view: View = VIEW, canary: Canary | None = CANARY) -> Probe:
    probe = Probe(view, "clicks", 1, LATENESS, LIMIT)
    probe.send(canary, ledger(5))
    return probe


def after(probe: Probe, *looks: tuple[float, int]) -> Probe:
    """Look at a probe at some seconds, so much being committed then."""
    for seconds, committed in looks:
        probe.look(ledger(committed), START + seconds * SECOND, START + seconds * SECOND)
    return probe


def states(*looks: tuple[float, int]) -> list[CanaryState | None]:
    probe = sent()
    return [after(probe, look).state for look in looks]


def test_a_canary_is_committed_once_the_offset_after_it_is() -> None:
    assert [CanaryState.WAITING, CanaryState.COMMITTED] == states((5, 7), (10, 8))


def test_it_is_stalled_once_nothing_of_its_partition_was_committed_for_the_limit() -> None:
    assert [CanaryState.WAITING] * 2 + [CanaryState.STALLED] == states((5, 5), (10, 5), (15, 5))


def test_a_flow_that_is_on_its_way_to_it_is_not_stalled() -> None:
    assert [CanaryState.WAITING] * 6 == states(*((5 * number, number) for number in range(1, 7)))


def test_a_single_late_look_says_nothing_of_the_flow() -> None:
    assert [CanaryState.WAITING] * 2 + [CanaryState.STALLED] == states((3600, 5), (3605, 5), (3610, 5))


def test_a_canary_behind_events_far_ahead_may_have_been_rejected() -> None:
    probe = sent()

    probe.look(ledger(8, START + LATENESS), START, START)

    assert CanaryState.LATE is probe.state
    assert (None, None) == rows(probe.line(None, is_offline=False))


def rows(line: CanaryLine) -> tuple[str | None, str | None]:
    return line.online_row, line.offline_row


@pytest.mark.parametrize(
    ("seconds", "found"), [(0, "found"), (60, "found"), (-1, "older"), (None, "absent")], ids=str
)  # a tick may have made a newer row
def test_of_a_committed_canary_the_online_row_must_be_as_new(seconds: float | None, found: str) -> None:
    probe = after(sent(), (5, 8))
    wanted = probe.wanted
    assert wanted is not None
    at = None if seconds is None else CANARY.event_timestamp + seconds * SECOND

    line = probe.line(None if at is None else replace(wanted, event_timestamp=at, version=3), is_offline=True)

    assert (found, "found") == rows(line)
    assert line.online_at == (None if at is None else (at, 3))


def test_a_row_that_has_outlived_its_ttl_need_not_be_online() -> None:
    probe = after(sent(replace(VIEW, ttl=timedelta(minutes=5))), (5, 8))

    assert (None, "found") == rows(probe.line(None, is_offline=True))


def test_where_parts_cannot_be_read_as_declared_nothing_is_said_of_the_offline_row() -> None:
    assert ("absent", None) == rows(after(sent(), (5, 8)).line(None, is_offline=None))


def test_of_a_waiting_canary_no_row_is_wanted() -> None:
    probe = after(sent(), (5, 7))

    assert probe.wanted is None
    assert (None, None) == rows(probe.line(None, is_offline=False))


def test_a_canary_that_was_not_sent_is_told_and_nothing_more() -> None:
    probe = after(sent(canary=None), (5, 7))

    assert CanaryLine("clicks", 1, CanaryState.UNSENT) == probe.line(None, is_offline=False)


def test_a_canary_is_kept_until_all_is_said_of_it() -> None:
    waiting, committed = after(sent(), (5, 7)), after(sent(), (5, 8))

    waiting.let_go()
    committed.let_go()

    assert CANARY == waiting.canary
    assert committed.canary is None


def test_event_times_rise_and_stay_behind_the_partition() -> None:
    newest_us, before = instant_us(START), list[datetime]()
    for seconds in (0, 0, 1, 5, 3600, 3600):
        before.append(event_time(newest_us, LATENESS, START + DAY + seconds * SECOND, before[-1] if before else None))

    assert sorted({*before}) == before
    assert START - LATENESS < before[0]
    assert before[-1] < START


def test_a_partition_ahead_of_the_clock_gets_no_event_of_the_future() -> None:
    assert START == event_time(instant_us(START + DAY), LATENESS, START, None)


def test_the_line_says_what_the_stored_row_is() -> None:
    stored = StoredRow(("canary-1",), START, 2, {})
    line = after(sent(), (5, 8)).line(stored, is_offline=True)

    assert ("canary-1", 7, 5.0, 8) == (line.entity, line.source_offset, line.waited_seconds, line.committed)
