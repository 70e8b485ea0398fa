"""How a consumer does, by Burrow's rules; and by Burrow itself, whose verdicts tests/record_burrow.py has recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

from freshet.flows.steps.burrow import Commits, Status

RECORDED = json.loads(Path(__file__).with_name("burrow.json").read_text(encoding="utf-8"))["cases"]


def after(*looks: tuple[int, int]) -> Commits:
    """Return what is known after one commit a second, each of an offset while the partition ended where it says."""
    made = Commits()
    for second, (offset, end) in enumerate(looks):
        made.ends(end)
        made.commits(offset, float(second))
    return made


def test_a_consumer_that_never_committed_is_not_judged() -> None:
    made = Commits()
    made.ends(100)

    assert made.status(1e9) is Status.OK


def test_one_that_has_everything_is_well_however_long_ago_it_committed() -> None:
    assert after((10, 10), (20, 20)).status(1e9) is Status.OK


def test_one_that_was_done_at_any_of_its_last_commits_is_well() -> None:
    assert after((10, 20), (20, 20), (21, 90), (22, 200)).status(4.0) is Status.OK


def test_one_that_goes_on_and_never_has_less_to_do_is_slow() -> None:
    assert after((10, 20), (20, 40), (30, 60)).status(3.0) is Status.WARN
    assert after((10, 20), (20, 40), (35, 50), (40, 70)).status(4.0) is Status.OK


def test_one_that_commits_the_same_offset_stalls() -> None:
    assert after((10, 20), (10, 30), (10, 30)).status(3.0) is Status.STALL


def test_one_that_went_back_is_told_so_though_it_goes_on() -> None:
    assert after((50, 60), (20, 70), (30, 80)).status(3.0) is Status.REWIND


def test_one_that_has_committed_nothing_for_longer_than_its_last_commits_took_has_stopped() -> None:
    made = after((10, 100), (20, 120), (30, 140))

    assert made.status(4.0) is Status.WARN
    assert made.status(4.1) is Status.STOP


def test_one_that_had_everything_lately_has_not_stopped_yet() -> None:
    made = after((10, 10), (20, 20))
    made.ends(25)
    assert made.status(60.0) is Status.OK
    for _ in range(10):
        made.ends(25)

    assert made.status(60.0) is Status.STOP


def test_what_lies_longer_back_than_ten_commits_is_forgotten() -> None:
    made = after((500, 600), *((offset, 1000 + 2 * offset) for offset in range(10, 110, 10)))

    assert made.status(11.0) is Status.WARN


def replayed(steps: list[dict[str, Any]]) -> list[str]:
    """Return what ours says wherever Burrow was asked, given the same commits, and the end once a second."""
    commits, looked_at, said = Commits(), -3.0, []

    def look_until(at_s: float) -> None:
        nonlocal looked_at
        while looked_at + 1.0 < at_s:
            looked_at += 1.0
            commits.ends(max((step["end"] for step in steps if step["came_at"] <= looked_at), default=0))

    for step in steps:
        look_until(step["committed_at"])
        if step["committed"] is not None:
            commits.commits(step["committed"], step["committed_at"])
        look_until(step["asked_at"])
        said.append(commits.status(step["asked_at"]).value)
    return said


@pytest.mark.parametrize("case", RECORDED)
def test_ours_says_what_burrow_says(case: str) -> None:
    assert replayed(RECORDED[case]) == [step["status"] for step in RECORDED[case]]


def test_what_was_recorded_has_every_status_and_is_asked_often() -> None:
    said = [step["status"] for steps in RECORDED.values() for step in steps]

    assert set(said) == set(Status)
    assert len(said) > 200
