"""From a poll to what the windows need: an event is accepted by all views of its stream, or by none."""

import json
import pickle
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
from pydantic import AwareDatetime

from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.fold import ShardInput
from freshet.flows.steps.intake import Intake, Taken
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.event import CANARY_HEADER, Event, Stream, contract
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason

WINDOW = "ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW"
DECLARED = {
    "featureDefinitions": [
        {
            "name": "clicks_1h",
            "dtype": "int64",
            "source": "clicks",
            "transformation": f"count(*) OVER (PARTITION BY user {WINDOW})",
        },
        {
            "name": "cost_1h",
            "dtype": "int64",
            "source": "clicks",
            "transformation": f"sum(CAST(cost AS BIGINT)) OVER (PARTITION BY page {WINDOW})",
        },
    ],
    "servingRequirements": {},
}


class Click(Event):
    stream = Stream("clicks", "user", "at", "id", lateness=timedelta(seconds=10))

    at: AwareDatetime
    user: str
    id: str
    page: str | None
    cost: str


MADE, _ = contract("clicks", Click)
assert MADE is not None
CONTRACT = MADE
PIPELINE = compile_views(declaration.read(json.dumps(DECLARED)), {"clicks": CONTRACT})


def click(number: int, **changes: Any) -> bytes:
    at = f"2026-03-01T12:00:{number:02d}Z"
    return json.dumps({"at": at, "user": "ada", "id": str(number), "page": "home", "cost": "1", **changes}).encode()


def poll(*values: bytes | None, partition: int = 1) -> Poll:
    count = len(values)
    nothing: list[bytes | None] = [None] * count
    keys: list[bytes | None] = [b"k%d" % index for index in range(count)]
    offsets = np.arange(70, 70 + count)
    times = np.full(count, -1)
    return Poll("clicks", partition, 3, list(values), keys, nothing, times, offsets, 70 + count, at_end=True)


def archived(one: Poll) -> Poll:
    """Return a poll as one of an archive: decoded already."""
    return replace(one, values=[None] * len(one.values), events=Decoder(CONTRACT).decode(one).events)


def take(*values: bytes | None, judge: PartitionJudge | None = None) -> Taken:
    return Intake(CONTRACT, PIPELINE.plans).take(judge or PartitionJudge(CONTRACT.stream), poll(*values))


def test_each_message_is_an_event_a_reject_or_a_duplicate() -> None:
    taken = take(click(1), b"{", click(30), click(2), click(30), click(31, cost="much"), click(32))

    assert taken.events.column("_offset").to_pylist() == [70, 72, 76]
    assert taken.duplicates_count == 1
    assert {reject.offset: reject.reason for reject in taken.rejects} == {
        71: Reason.UNDECODABLE,
        73: Reason.LATE,
        75: Reason.TRANSFORM,
    }
    assert (taken.stream, taken.partition, taken.partitions_count) == ("clicks", 1, 3)


def test_an_expression_that_fails_rejects_its_event_in_all_views_and_no_other() -> None:
    taken = take(click(1), click(2, cost="much"), click(3))

    (reject,) = taken.rejects
    assert (reject.offset, reject.reason, reject.key) == (71, Reason.TRANSFORM, b"k1")
    assert reject.detail.startswith("cost_1h: ")
    assert "'much'" in reject.detail
    assert set(taken.inputs) == {"clicks_by_user", "clicks_by_page"}
    for inputs in taken.inputs.values():
        assert inputs.column("_offset").to_pylist() == [70, 72]


def test_of_very_many_events_the_one_on_which_an_expression_fails_is_rejected() -> None:
    values = [click(number % 60, at="2026-03-01T12:00:00Z", id=str(number)) for number in range(20_500)]
    values[20_123] = click(1, at="2026-03-01T12:00:00Z", id="bad", cost="much")

    taken = take(*values)

    (reject,) = taken.rejects
    assert (reject.offset, reject.reason) == (70 + 20_123, Reason.TRANSFORM)
    offsets = [offset for offset in range(70, 70 + 20_500) if offset != reject.offset]
    assert taken.events.column("_offset").to_pylist() == offsets
    for inputs in taken.inputs.values():
        assert inputs.column("_offset").to_pylist() == offsets


def test_an_event_without_a_views_entity_is_accepted_and_stays_in_that_views_inputs_as_null() -> None:
    taken = take(click(1, page=None))

    assert taken.rejects == ()
    assert taken.inputs["clicks_by_page"].column("page").to_pylist() == [None]
    assert taken.inputs["clicks_by_user"].num_rows == 1


def test_a_poll_in_which_nothing_is_good_gives_empty_inputs() -> None:
    taken = take(b"{", None)

    assert taken.events.num_rows == 0
    assert [inputs.num_rows for inputs in taken.inputs.values()] == [0, 0]
    assert len(taken.rejects) == 2


def test_a_failed_event_moves_the_clock_and_uses_up_its_id_however_batches_are_cut() -> None:
    """It was judged before it was computed: another cutting must not judge its neighbours otherwise."""
    values = [click(1), click(40, cost="much"), click(2), click(40)]
    judge = PartitionJudge(CONTRACT.stream)
    one_by_one = [take(value, judge=judge) for value in values]
    together = take(*values)

    assert [taken.events.num_rows for taken in one_by_one] == [1, 0, 0, 0]
    assert together.events.num_rows == 1
    assert together.newest_us == one_by_one[-1].newest_us
    assert together.duplicates_count == sum(taken.duplicates_count for taken in one_by_one) == 1


def test_polls_that_are_read_together_are_read_as_each_alone() -> None:
    cases = (
        [poll(click(1), b"{", click(2)), poll(partition=2), poll(click(3), partition=0)],
        [
            poll(click(1), click(2, cost="much")),
            poll(partition=2),
            poll(click(3, cost="more"), partition=0),
            poll(click(4), click(5)),
        ],
        [poll(), poll(partition=2)],
        [archived(poll(click(1), click(2))), poll(click(3), b"{", partition=2), archived(poll(click(4)))],
        [archived(poll(click(1))), poll(partition=2)],
    )
    for polls in cases:
        together = Intake(CONTRACT, PIPELINE.plans).read(polls)

        for read, one in zip(together, polls, strict=True):
            (alone,) = Intake(CONTRACT, PIPELINE.plans).read([one])
            assert (read.poll, read.rejects, read.failed) == (one, alone.rejects, alone.failed)
            assert read.at.tolist() == alone.at.tolist()
            assert read.events.equals(alone.events)
            assert read.inputs == alone.inputs


def test_of_the_accepted_events_those_with_the_header_are_canaries() -> None:
    values: list[bytes | None] = [click(1), b"{", click(30), click(2), click(30), click(31, cost="much"), click(32)]
    nothing: list[bytes | None] = [None] * 7
    headers = [None, *([(CANARY_HEADER, b"1")] for _ in range(5)), [("trace", b"1")]]
    given = Poll(
        "clicks", 1, 3, values, nothing, nothing, np.full(7, -1), np.arange(7), 7, at_end=True, headers=headers
    )  # fmt: skip

    taken = Intake(CONTRACT, PIPELINE.plans).take(PartitionJudge(CONTRACT.stream), given)

    assert (3, {2}) == (taken.events.num_rows, taken.canary_offsets)


def test_every_reject_keeps_the_headers_and_the_time_of_its_message() -> None:
    noon_ms = 1_772_366_400_000
    values: list[bytes | None] = [b"{", click(30), click(1), click(31, cost="much")]
    nothing: list[bytes | None] = [None] * 4
    headers = [[("trace", b"%d" % index), ("empty", None)] for index in range(4)]
    times = np.array([noon_ms + index for index in range(4)])
    given = Poll("clicks", 1, 3, values, nothing, nothing, times, np.arange(4), 4, at_end=True, headers=headers)

    taken = Intake(CONTRACT, PIPELINE.plans).take(PartitionJudge(CONTRACT.stream), given)

    kept = {reject.offset: (reject.reason, reject.headers, reject.timestamp_ms - noon_ms) for reject in taken.rejects}
    assert kept == {
        0: (Reason.UNDECODABLE, (("trace", b"0"), ("empty", None)), 0),
        2: (Reason.LATE, (("trace", b"2"), ("empty", None)), 2),
        3: (Reason.TRANSFORM, (("trace", b"3"), ("empty", None)), 3),
    }


def test_what_goes_to_another_process_is_the_same_and_takes_nothing_along_that_it_was_read_with() -> None:
    polls = [poll(*(click(number) for number in range(60)), partition=partition) for partition in range(3)]
    intake = Intake(CONTRACT, PIPELINE.plans)
    given = [
        ShardInput("clicks_by_user", 0, 1, "clicks", read.poll.partition, 3, 7, None, rows)
        for read in intake.read(polls)
        for rows in read.inputs.values()
    ]

    for sent in (*given, replace(given[0], inputs=None)):
        text = pickle.dumps(sent)
        arrived = pickle.loads(text)
        assert arrived == sent
        assert pickle.dumps(arrived) == text
    alone = [rows for poll in polls for read in intake.read([poll]) for rows in read.inputs.values()]
    for sent, rows in zip(given, alone, strict=True):
        assert len(pickle.dumps(sent)) == len(pickle.dumps(replace(sent, inputs=rows)))
    assert len(pickle.dumps(given)) < 4 * len(pickle.dumps(given[: len(PIPELINE.plans)]))
