"""Whether the bench of whole pipelines runs, on a few events, and what it makes of what it recorded."""

import doctest
import json
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pipeline
import pipeline_limits
import pipeline_results
import pipeline_rig
import pipeline_work
import pytest
from pipeline_results import KINDS, report
from pipeline_work import FEATURES, PARTITIONS, STEP_MS, Visits, features_of

EVENTS = 3000


@pytest.mark.parametrize("module", [pipeline_work, pipeline_rig, pipeline_results], ids=lambda module: module.__name__)
def test_examples_are_so(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)

    assert attempted > 0
    assert failed == 0


def test_the_same_visits_are_made_again_and_others_of_another_seed() -> None:
    made = list(Visits(2000, 100).messages())

    assert made == list(Visits(2000, 100).messages())
    assert made != list(Visits(2000, 100, seed=2).messages())


def test_a_visit_is_what_the_contract_says_and_kafka_has_its_own_time() -> None:
    made = list(Visits(500, 100).messages())

    first_ms = made[0][2]
    for number, (key, value, ms) in enumerate(made):
        visit = json.loads(value)
        assert key == visit["user"].encode()
        assert ms == first_ms + number * STEP_MS
        assert visit["at"].endswith(f".{ms % 1000:03d}Z")
    assert len({json.loads(value)["id"] for _, value, _ in made}) == len(made)


@pytest.mark.parametrize("step_ms", [0.25, 60_000])
def test_visits_may_last_for_any_time_and_none_lies_in_kafkas_future(step_ms: float) -> None:
    made = list(Visits(1000, 100, step_ms=step_ms).messages())

    times_ms = [datetime.fromisoformat(json.loads(value)["at"]).timestamp() * 1000 for _, value, _ in made]
    assert abs(times_ms[-1] - times_ms[0] - 999 * step_ms) < 1
    assert times_ms == sorted(times_ms)
    assert all(at_ms <= kafka_ms for at_ms, (_, _, kafka_ms) in zip(times_ms, made, strict=True))
    assert [ms for *_, ms in made] == [ms for *_, ms in Visits(1000, 100).messages()]


def test_half_of_all_visits_are_one_users_if_so_asked() -> None:
    made = [key for key, _, _ in Visits(4000, 1000, hot_share=0.5).messages()]

    assert 0.45 < made.count(b"u0") / len(made) < 0.55
    assert b"u0" not in {key for key, _, _ in Visits(4000, 1000).messages()}


def test_features_differ_however_many_there_are() -> None:
    for count in (1, 4, 16, 64):
        made = features_of(count, ("10 minutes", "1 hour"))

        assert len({one.sql for one in made}) == count
        assert len({one.name for one in made}) == count


def lines_of(*words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], str]:
    """Run the bench on embedded parts, and return what it recorded, and its page."""
    results = folder / "results.md"
    monkeypatch.setattr(
        sys, "argv", ["pipeline", "--embedded", "--repeat", "1", "--entities", "200", "--results", str(results), *words]
    )
    monkeypatch.delenv("FRESHET_TEST_KAFKA", raising=False)
    assert pipeline.main() == 0
    recorded = [json.loads(line) for line in results.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert recorded.pop(0)["kind"] == "run"
    return recorded, results.read_text(encoding="utf-8")


def test_a_backlog_goes_through_and_its_parts_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--only", "end-to-end,limits", "--events", str(EVENTS))

    recorded, page = lines_of(*words, folder=tmp_path, monkeypatch=monkeypatch)

    assert [line["kind"] for line in recorded] == ["end-to-end", "end-to-end", "limits"]
    for line in recorded:
        assert line["events_count"] == EVENTS
        assert line["rows_count"] == EVENTS  # each at an instant of its own, and none leaves a window so soon
    whole, _, parts = recorded
    assert 200 >= whole["entities_count"] > 100
    assert 0 < whole["cpu_s"] < 1000
    assert whole["peak_mb"] > 50
    assert set(parts["parts"]) == set(pipeline_limits.PARTS)
    assert all(part["seconds"] > 0 and part["count"] == EVENTS for part in parts["parts"].values())
    assert "- the whole, decay on: " in page
    assert KINDS["end-to-end"] in page
    assert KINDS["growth"] not in page


def test_one_thing_grows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--only", "growth", "--axes", "share of one user", "--growth-events", str(EVENTS))

    recorded, page = lines_of(*words, folder=tmp_path, monkeypatch=monkeypatch)

    few, hot = recorded
    assert (few["value"], hot["value"]) == ("0%", "50%")
    assert hot["rows_count"] == few["rows_count"] == EVENTS
    assert hot["online_count"] < few["online_count"]  # of one user only the newest row of a batch is written
    assert "| share of one user | 50% | 3,000 | 1 |" in page


def test_a_start_restores_what_a_run_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, page = lines_of("--only", "start", "--restored", str(EVENTS), folder=tmp_path, monkeypatch=monkeypatch)

    assert [line["restored_count"] for line in recorded] == [0, EVENTS]
    for line in recorded:
        assert line["events_count"] == line["rows_count"] == 100  # only those that came after
        assert line["entities_count"] >= line["restored_count"]
        assert 0 < line["first_row_s"] < line["whole_s"]
    assert f"| {EVENTS:,} | 1 | " in page


def test_a_replay_makes_the_rows_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, page = lines_of(
        "--only", "replay", "--growth-events", str(EVENTS), folder=tmp_path, monkeypatch=monkeypatch
    )

    assert [line["file"] for line in recorded] == ["parquet", "ndjson"]
    assert all(line["rows_count"] == EVENTS for line in recorded)
    assert "| ndjson | 3,000 | 1 | " in page


def test_rows_are_seen_as_soon_as_they_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--only", "freshness", "--rate", "400", "--shares", "0.5", "--seconds", "2")

    recorded, page = lines_of(*words, folder=tmp_path, monkeypatch=monkeypatch)

    assert {line["of"] for line in recorded} == {"event", "correction", "decay"}
    for line in recorded:
        assert line["rate"] == 200
        assert line["count"] == (200 if line["of"] == "decay" else 100)  # each second event is watched
        assert 0 < line["p50_ms"] <= line["p99_ms"] <= line["max_ms"]
    assert "| 50% | 200 | decay | 200 | " in page


def test_a_page_holds_medians_and_ratios_of_what_was_measured_in_one_turn() -> None:
    whole = {"events_count": 1000, "rows_count": 2000, "online_count": 500, "peak_mb": 300.0, "first_row_s": 2.0}
    whole |= {"kind": "end-to-end", "redis_cpu_s": 0.1, "whole_s": 9.0, "cpu_s": 3.0, "start_cpu_s": 2.0}
    lines = [
        {**whole, "decay": "on", "repeat": 0, "events_per_s": 100.0},
        {**whole, "decay": "off", "repeat": 0, "events_per_s": 200.0},
        {**whole, "decay": "on", "repeat": 1, "events_per_s": 300.0},
        {**whole, "decay": "off", "repeat": 1, "events_per_s": 300.0},
    ]
    part = {"seconds": 1.0, "cpu_s": 0.5, "count": 1000}
    parts = dict.fromkeys(pipeline_limits.PARTS, part) | {"fold": {**part, "seconds": 2.0}}
    limit = {"kind": "limits", "decay": "on", "repeat": 0, "events_count": 1000, "turn_events": 10, "commit_events": 20}

    page = report([*lines, {**limit, "parts": parts}])

    assert "| on | 1,000 | 2 | 200 (100-300) | 1,000 | 100 | 300 | 2.00 | 9.00 | 2.00 | 0.500 |\n" in page
    assert "- events/s, decay on by decay off: 0.750 (0.500-1.00)\n" in page
    # Eleven parts one after another, of which one takes twice as long.
    assert "- the slowest part: 500 events/s; one after another, 1/Σ(1/limit): 83.3 events/s\n" in page
    assert "- the whole, decay on: 0.200 of the slowest part, 1.20 of 1/Σ(1/limit); its CPU is 0.182 times" in page
    assert PARTITIONS == 8
    assert len(FEATURES) == 8


def test_what_cannot_be_measured_is_answered_with_what_can(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pipeline.arguments().parse_args(["--only", "limits,latency"])

    assert "there is no latency; there is end-to-end, limits, " in capsys.readouterr().err
