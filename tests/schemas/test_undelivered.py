"""Events that Kafka did not take are named so that they can be found at their source."""

from datetime import datetime

import pytest
from pydantic import AwareDatetime

from freshet.schemas.event import Contract, Event, Stream, contract
from freshet.schemas.undelivered import named


class Click(Event):
    stream = Stream("clicks", "user", "at", event_id="id")
    at: AwareDatetime
    user: str
    id: int


class Local(Event):
    stream = Stream("clicks", "user", "at")
    at: datetime
    user: str


def made(model: type[Event]) -> Contract:
    found, problems = contract("clicks", model)
    assert found is not None, problems
    return found


def click(number: int, at: str = "") -> bytes:
    at = at or f"2026-01-02T03:04:{number:02}Z"
    return f'{{"at": "{at}", "user": "ada", "id": {number}}}'.encode()


@pytest.mark.parametrize(
    ("model", "events", "said"),
    [
        (Click, [click(5)], "1 event of clicks (of 2026-01-02T03:04:05Z; id 5)"),
        (
            Click,
            [click(2), click(1, "2026-01-02T05:00:00+05:45")],
            "2 events of clicks (of 2026-01-01T23:15:00Z to 2026-01-02T03:04:02Z; id 1, 2)",
        ),
        (
            Click,
            [click(number) for number in range(13)],
            "13 events of clicks (of 2026-01-02T03:04:00Z to 2026-01-02T03:04:12Z; id 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more)",
        ),
        (Local, [click(5, "2026-01-02T03:04:05")], "1 event of clicks (of 2026-01-02T03:04:05Z)"),
    ],
)
def test_events_are_named_by_stream_times_and_a_few_ids(model: type[Event], events: list[bytes], said: str) -> None:
    assert named(made(model), events) == said
