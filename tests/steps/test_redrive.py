"""Dead letters: each event once, those that are meant, and of these only what the flow would accept now is sent."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.intake import Intake
from freshet.flows.steps.redrive import Gathered, Judged, Wanted, gather, in_order, judge
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.event import Event, Stream, contract
from freshet.schemas.poll import Poll
from freshet.schemas.record import Record, partition_of
from freshet.schemas.rejects import Reason, Reject, dead_letter, receipt, redriven
from freshet.schemas.units import instant_us

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_US = instant_us(NOON)
MINUTE_US = 60 * 10**6
ANY = Wanted()


class Click(Event):
    stream = Stream(
        topic="clicks_v1",
        key="user",
        event_time="at",
        event_id="id",
        lateness=timedelta(minutes=10),
        version=3,
        unsigned_version=3,
    )

    at: AwareDatetime
    user: str
    id: str | None = None
    cost: str = "1"


CONTRACT, PROBLEMS = contract("clicks", Click)
assert CONTRACT is not None, PROBLEMS
WINDOW = "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW)"
DECLARED = {
    "featureDefinitions": [
        {
            "name": "cost_1h",
            "dtype": "int64",
            "source": "clicks",
            "transformation": f"sum(CAST(cost AS INTEGER)) {WINDOW}",
        }
    ],
    "servingRequirements": {},
}
PIPELINE = compile_views(declaration.read(json.dumps(DECLARED)), {"clicks": CONTRACT})
INTAKE = Intake(CONTRACT, PIPELINE.plans)


def click(minutes: float = 0, user: str = "ada", **more: Any) -> bytes:
    return json.dumps({"at": (NOON + timedelta(minutes=minutes)).isoformat(), "user": user, **more}).encode()


def reject(offset: int, value: bytes | None, key: bytes | None = b"ada", **changes: Any) -> Reject:
    made = Reject("clicks_v1", 0, offset, Reason.CONTRACT, "it was broken", key, value, (), 1_000 + offset)
    return replace(made, **changes)


def polls(records: Iterable[Record], cut: int = 2) -> Iterable[Poll]:
    """Give records as a dead-letter topic would, some a poll."""
    left = [*records]
    for start in range(0, len(left), cut):
        part = left[start : start + cut]
        nothing: list[bytes | None] = [None] * len(part)
        headers = [made.headers or None for made in part]
        yield Poll(
            part[0].topic, 0, 1, [made.value for made in part], [made.key for made in part], nothing,
            np.array([made.timestamp_ms for made in part]), np.arange(start, start + len(part)), len(left), at_end=False,
            headers=headers if any(headers) else None,
        )  # fmt: skip


def letters(*records: Record, wanted: Wanted = ANY, cut: int = 2) -> Gathered:
    return gather("clicks_v1", polls(records, cut), wanted)


def judged(
    *rejects: Reject, newest_us: Mapping[tuple[str, int], int] | None = None, count: int = 1, now_us: int = NOON_US
) -> Judged:
    return judge(rejects, INTAKE, newest_us or {}, count, now_us)


def offsets(of: Sequence[Reject]) -> list[int]:
    return [one.offset for one in of]


ONE, TWO = reject(1, click()), reject(2, None)


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_each_event_is_one_letter_and_the_later_word_holds(cut: int) -> None:
    later = replace(ONE, reason=Reason.LATE, detail="old")

    found = letters(dead_letter(ONE, "g"), dead_letter(TWO, "g"), dead_letter(later, "g"), cut=cut)

    assert [letter.reject for letter in found.letters] == [later, TWO]
    assert [letter.redriven for letter in found.letters] == [False, False]


def test_a_letter_without_a_value_is_no_receipt() -> None:
    assert [letter.reject for letter in letters(dead_letter(TWO, "g")).letters] == [TWO]


@pytest.mark.parametrize("first", [0, 1])
def test_a_receipt_tells_of_its_letter_wherever_it_stands(first: int) -> None:
    both = [dead_letter(ONE, "g"), receipt(ONE)]
    records = [both[first], dead_letter(TWO, "g"), both[1 - first]]

    assert [letter.reject for letter in letters(*records).letters] == [TWO]
    shown = letters(*records, wanted=Wanted(redriven_too=True)).letters
    assert {letter.reject.offset: letter.redriven for letter in shown} == {1: True, 2: False}


def test_an_event_that_failed_again_is_a_letter_of_its_own() -> None:
    back = replace(ONE, offset=77, headers=redriven(ONE).headers)

    found = letters(dead_letter(ONE, "g"), receipt(ONE), dead_letter(back, "g"))

    assert [letter.reject.offset for letter in found.letters] == [77]


def test_what_others_wrote_is_counted_and_passed_over() -> None:
    elsewhere = dead_letter(replace(ONE, topic="orders"), "g")

    found = letters(Record("clicks_v1.dlq", b"k", b"v"), dead_letter(ONE, "g"), elsewhere)

    assert ([letter.reject for letter in found.letters], found.others_count) == ([ONE], 2)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), [1, 2, 3]),
        (Wanted(reasons=frozenset({Reason.LATE})), [2]),
        (Wanted(reasons=frozenset({Reason.LATE, Reason.NULL_KEY})), [2, 3]),
        (Wanted(since_ms=1002), [2, 3]),
        (Wanted(until_ms=1002), [1]),
        (Wanted(since_ms=1002, until_ms=1003), [2]),
        (Wanted(reasons=frozenset()), []),
    ],
)
def test_only_what_is_meant_is_gathered(wanted: Wanted, expected: list[int]) -> None:
    made = [ONE, replace(TWO, reason=Reason.LATE), reject(3, b"{", reason=Reason.NULL_KEY)]

    found = letters(*(dead_letter(one, "g") for one in made), wanted=wanted)

    assert [letter.reject.offset for letter in found.letters] == expected


def test_the_limit_takes_the_first_by_time_over_all_topics() -> None:
    early = letters(dead_letter(reject(9, None, timestamp_ms=5), "g"))
    late = letters(dead_letter(reject(7, None, timestamp_ms=8), "g"), dead_letter(reject(8, None, timestamp_ms=6), "g"))

    assert [letter.reject.offset for letter in in_order([late, early], 2)] == [9, 8]
    assert len(in_order([late, early], None)) == 3


def test_what_would_be_accepted_now_is_fit() -> None:
    found = judged(reject(1, click(-1)), reject(2, click(-2), key=None))

    assert (offsets(found.fit), found.again) == ([2, 1], ())


def test_nothing_is_judged_as_nothing() -> None:
    assert judged() == Judged((), ())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (reject(1, b"{"), Reason.UNDECODABLE),
        (reject(1, None), Reason.UNDECODABLE),
        (reject(1, b'{"user": "ada"}'), Reason.CONTRACT),
        (reject(1, click(), headers=(("freshet-version", b"2"),)), Reason.UNKNOWN_VERSION),
        (reject(1, click(cost="much")), Reason.TRANSFORM),
        (reject(1, click(6)), Reason.FUTURE),
    ],
)
def test_what_would_be_rejected_again_stays_with_its_reason(bad: Reject, reason: Reason) -> None:
    found = judged(reject(0, click()), bad, reject(2, click()))

    assert offsets(found.fit) == [0, 2]
    assert [(one.reject, one.reason) for one in found.again] == [(bad, reason)]
    assert all(one.detail for one in found.again)


def test_an_event_of_todays_version_is_fit() -> None:
    assert offsets(judged(reject(1, click(), headers=(("freshet-version", b"3"),))).fit) == [1]


def test_an_event_that_was_of_the_future_is_judged_by_the_present() -> None:
    future = reject(1, click(6), reason=Reason.FUTURE)

    assert offsets(judged(future, now_us=NOON_US + MINUTE_US).fit) == [1]


def test_lateness_is_judged_by_the_partition_that_the_key_has_now() -> None:
    count = 3
    home = partition_of(b"ada", count)
    newest = {("clicks", part): NOON_US if part == home else NOON_US + 60 * MINUTE_US for part in range(count)}
    newest["others", home] = NOON_US + 60 * MINUTE_US

    found = judged(reject(1, click(-10)), reject(2, click(-10.5)), newest_us=newest, count=count)

    assert offsets(found.fit) == [1]
    assert [(one.reject.offset, one.reason) for one in found.again] == [(2, Reason.LATE)]


def test_an_event_without_a_key_must_fit_every_partition() -> None:
    newest = {("clicks", 0): NOON_US - 5 * MINUTE_US, ("clicks", 1): NOON_US + 5 * MINUTE_US}

    found = judged(reject(1, click(-6), key=None), reject(2, click(-4), key=None), newest_us=newest, count=2)

    assert (offsets(found.fit), [one.reject.offset for one in found.again]) == ([2], [1])


def test_none_of_the_sent_makes_another_late() -> None:
    hours = [reject(offset, click(minutes)) for offset, minutes in enumerate([0, -180, -60, -120])]

    assert offsets(judged(*hours).fit) == [1, 3, 2, 0]


def test_repeated_events_are_sent_for_the_flow_to_count() -> None:
    assert offsets(judged(reject(1, click(id="a")), reject(2, click(id="a"))).fit) == [1, 2]
