"""Late, future, duplicate: one partition's judgement, the same for every cutting into batches."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.accept import PartitionJudge
from freshet.schemas.event import NEVER_US, Stream
from freshet.schemas.rejects import Reason

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
STREAM = Stream("clicks", "user", "at", "id", lateness=10 * SECOND, max_future=3 * SECOND)
NO_IDS = Stream("clicks", "user", "at", None, lateness=10 * SECOND, max_future=3 * SECOND)

Seen = tuple[float, float, str | None]
"""An event: its time and its Kafka time, in seconds after noon, and its id."""


def table(*events: Seen) -> pa.Table:
    kind = pa.timestamp("us", "UTC")
    columns = {
        "event_timestamp": pa.array([NOON + time * SECOND for time, _, _ in events], kind),
        "_available_at": pa.array([NOON + at * SECOND for _, at, _ in events], kind),
        "id": pa.array([event_id for _, _, event_id in events], pa.string()),
    }
    return pa.table(columns)


def judged(*events: Seen, stream: Stream = STREAM) -> list[str]:
    """What becomes of each event of one batch."""
    return words(PartitionJudge(stream), events)


def words(judge: PartitionJudge, events: tuple[Seen, ...]) -> list[str]:
    found = judge.judge(table(*events))
    said = dict.fromkeys(found.accepted.tolist(), "accepted")
    said |= dict.fromkeys(found.duplicates.tolist(), "duplicate")
    said |= {index: reason.value for index, reason, _ in found.rejected}
    assert len(said) == len(found.accepted) + len(found.duplicates) + len(found.rejected)
    return [said[index] for index in range(len(events))]


def test_an_event_exactly_as_old_as_allowed_is_accepted() -> None:
    assert judged((10, 10, None), (0, 10, None), (-0.000001, 10, None)) == ["accepted", "accepted", "late"]


def test_an_event_exactly_as_far_ahead_as_allowed_is_accepted() -> None:
    assert judged((3, 0, None), (3.000001, 0, None)) == ["accepted", "future"]


def test_a_future_event_makes_nobody_late() -> None:
    assert judged((0, 0, None), (99, 0, None), (0, 0, None)) == ["accepted", "future", "accepted"]


def test_lateness_is_judged_by_what_came_before_and_not_by_what_comes_after() -> None:
    assert judged((0, 50, None), (50, 50, None), (0, 50, None)) == ["accepted", "accepted", "late"]


def test_of_one_id_the_lowest_offset_wins() -> None:
    assert judged((0, 0, "a"), (1, 1, "a"), (2, 2, "b")) == ["accepted", "duplicate", "accepted"]


def test_events_without_an_id_are_never_duplicates() -> None:
    assert judged((0, 0, None), (0, 0, None)) == ["accepted", "accepted"]


def test_a_stream_without_ids_has_no_duplicates() -> None:
    assert judged((0, 0, "a"), (0, 0, "a"), stream=NO_IDS) == ["accepted", "accepted"]


def test_a_rejected_event_does_not_use_up_its_id() -> None:
    events: list[Seen] = [(0, 0, None), (99, 0, "a"), (1, 1, "a"), (50, 50, None), (2, 50, "b"), (51, 51, "b")]

    assert judged(*events) == ["accepted", "future", "accepted", "accepted", "late", "accepted"]


def test_late_comes_before_duplicate() -> None:
    assert judged((0, 0, "a"), (50, 50, "b"), (0, 50, "a")) == ["accepted", "accepted", "late"]


def test_an_id_is_forgotten_once_its_event_would_be_late() -> None:
    assert judged((0, 0, "a"), (10, 10, "b"), (10, 10, "a"))[2] == "duplicate"
    assert judged((0, 0, "a"), (10.1, 11, "b"), (10.1, 11, "a"))[2] == "accepted"


def test_what_is_remembered_stays_within_twice_what_is_not_late() -> None:
    judge = PartitionJudge(STREAM)
    for batch in range(200):
        judge.judge(table(*((batch, batch, f"{batch}/{index}") for index in range(5))))
        assert len(judge.seen) <= 2 * 11 * 5 + 5


def test_an_empty_batch_changes_nothing() -> None:
    judge = PartitionJudge(STREAM)

    assert words(judge, ()) == []
    assert judge.newest_us == NEVER_US


def test_a_judgement_says_how_far_off_an_event_was() -> None:
    found = PartitionJudge(STREAM).judge(table((60, 60, None), (0, 60, None), (99, 60, None)))

    assert found.rejected == (
        (
            1,
            Reason.LATE,
            "2026-03-01T12:00:00+00:00 is 0:01:00 behind its partition's newest event; the stream allows 0:00:10",
        ),
        (2, Reason.FUTURE, "2026-03-01T12:01:39+00:00 is 0:00:39 past its Kafka time; the stream allows 0:00:03"),
    )


@pytest.mark.parametrize("end", [datetime.min, datetime.max])
def test_the_ends_of_the_calendar_can_be_judged(end: datetime) -> None:
    at = pa.array([end.replace(tzinfo=UTC)], pa.timestamp("us", "UTC"))
    judge = PartitionJudge(STREAM)
    judge.judge(table((0, 0, None)))

    found = judge.judge(
        pa.table({"event_timestamp": at, "_available_at": table((0, 0, None)).column(1), "id": pa.array(["a"])})
    )

    assert len(found.rejected) == 1


def reference(events: list[Seen]) -> list[str]:
    """The rules, one event at a time, with all of history at hand."""
    said: list[str] = []
    clock = float("-inf")
    kept: list[Seen] = []
    for time, at, event_id in events:
        if time - at > 3:
            said.append("future")
            continue
        clock = max(clock, time)
        if time < clock - 10:
            said.append("late")
        elif event_id is not None and any(other == event_id and when >= clock - 10 for when, _, other in kept):
            said.append("duplicate")
        else:
            said.append("accepted")
            kept.append((time, at, event_id))
    return said


@settings(max_examples=500, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from([None, "a", "b", "c"])), max_size=40
    ),
    cuts=st.sets(st.integers(1, 39), max_size=6),
)
def test_every_cutting_into_batches_gives_the_judgement_of_one_by_one(events: list[Seen], cuts: set[int]) -> None:
    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    judge = PartitionJudge(STREAM)

    said = [word for start, end in itertools.pairwise(bounds) for word in words(judge, tuple(events[start:end]))]

    accepted = [time for (time, at, _), word in zip(events, said, strict=True) if word != "future"]
    assert reference(events) == said
    assert judge.newest_us == (NEVER_US if not accepted else np.int64((NOON.timestamp() + max(accepted)) * 1e6))
