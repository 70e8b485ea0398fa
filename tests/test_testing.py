"""The helper with which users test features: in five lines, and wrong use is told in words."""

import shutil
from pathlib import Path

import pytest

from freshet.flows.testing import Given
from freshet.schemas.errors import Refused

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def given() -> Given:
    return Given.project(REPO)


def test_an_edit_counts_for_ten_minutes(given: Given) -> None:
    rows = given.rows("user_edits_10m", [{"user": "ada", "time": "2026-03-01T12:00:00Z"}], until="2026-03-01T12:11:00Z")

    assert rows == [("ada", "2026-03-01T12:00:00Z", 1), ("ada", "2026-03-01T12:10:06Z", 0)]


def test_keys_left_out_are_those_of_the_stream_s_first_good_sample(given: Given) -> None:
    sample = given.samples["wiki_edits"]
    event = {"user": "ada", "time": "2026-03-01T12:00:00Z"}

    assert given.rows("page_edits_1h", [event]) == [(sample["page"], "2026-03-01T12:00:00Z", 1)]
    assert given.rows("page_edits_1h", [event | {"page": "кот"}]) == [("кот", "2026-03-01T12:00:00Z", 1)]


def test_rows_are_sorted_by_entity_and_instant_and_events_may_be_out_of_order(given: Given) -> None:
    times = [("bob", "12:00:00"), ("ada", "12:05:00"), ("ada", "12:01:00.000001")]
    rows = given.rows("user_edits_10m", [{"user": user, "time": f"2026-03-01T{time}Z"} for user, time in times])

    assert rows == [
        ("ada", "2026-03-01T12:01:00.000001Z", 1),
        ("ada", "2026-03-01T12:05:00Z", 2),
        ("bob", "2026-03-01T12:00:00Z", 1),
    ]


def test_an_event_that_is_not_accepted_is_refused_with_the_reason(given: Given) -> None:
    times = ["2026-03-01T12:00:00Z", "2026-03-01T11:00:00Z"]

    with pytest.raises(Refused) as late:
        given.rows("user_edits_10m", [{"user": "ada", "time": time} for time in times])
    with pytest.raises(Refused) as wrong:
        given.rows("user_edits_10m", [{"user": "ada", "time": times[0], "added": "many"}])

    assert str(late.value) == (
        'event "wiki_edits 2" is not accepted: late; got 2026-03-01T11:00:00+00:00 is 1:00:00 behind its partition\'s'
        " newest event; the stream allows 0:10:00"
    )
    assert 'event "wiki_edits 1" is not accepted: contract; got added: ' in str(wrong.value)


def test_what_is_not_there_is_refused_with_the_nearest_there_is(given: Given) -> None:
    with pytest.raises(Refused, match='feature "user_edits_10" is not declared. Hint: did you mean user_edits_10m?'):
        given.rows("user_edits_10", [])
    with pytest.raises(Refused, match='event "wiki_edits 1" has an unknown key; got usr. Hint: did you mean user?'):
        given.rows("user_edits_10m", [{"usr": "ada"}])
    with pytest.raises(Refused, match='stream "edits" feeds no feature. Hint: there is wiki_edits'):
        given.rows("user_edits_10m", {"edits": [{"user": "ada"}]})


def test_a_project_without_samples_needs_whole_events(tmp_path: Path) -> None:
    for folder in ("feature_repo", "schemas/events"):
        shutil.copytree(REPO / folder, tmp_path / folder)

    with pytest.raises(Refused, match="is not accepted: contract; got channel: Field required"):
        Given.project(tmp_path).rows("user_edits_10m", [{"user": "ada", "time": "2026-03-01T12:00:00Z"}])
