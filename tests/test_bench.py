"""What the validator's bench makes of what it recorded, and of what it is asked for."""

import json
import subprocess
from pathlib import Path
from typing import Any

import peers_results
import pipeline_results
import pytest
import serving_results
from results import ANY, COLD, HOT, Case, cases_of, interval, is_localised, report
from rig import Traffic, regimes
from validator import arguments, chosen

from freshet.flows import settings
from freshet.flows.workspace import Workspace
from freshet.schemas.finding import Cause
from freshet.scripts.faults import breaks
from freshet.scripts.faults.deeds import Account

REPO = Path(__file__).parent.parent
SPENT = {"seconds": 20.0, "sum": 8.0, "count": 4.0} | {
    f"{who}_{name}": amount
    for who, share in (("validator", 0.5), ("materializer", 1.0))
    for name, amount in {
        "cpu_s": 10 * share,
        "commands_count": 4000 * share,
        "asked_bytes": 4e6 * share,
        "answered_bytes": 2e6 * share,
    }.items()
}


def case(cause: str, found_s: float | None, causes: list[str], **more: Any) -> dict[str, Any]:
    own = {"kind": "case", "cause": cause, "rate": 1.0, "entities": HOT, "seed": 1, "affected_count": 3, "false": []}
    return {**own, "found_s": found_s, "causes": causes, "is_localised": True, "load": 1.0, "spent": SPENT, **more}


def test_the_exact_bounds_of_a_share_are_those_of_the_books() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert interval(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert interval(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)


def test_a_table_has_a_line_for_each_cause_and_rate() -> None:
    lines = [
        case("dtype", 9.0, ["dtype"]),
        case("dtype", 31.0, ["value_mismatch", "dtype"], entities=COLD, false=["a_view.a_check"]),
        case("dtype", None, [], seed=2, is_localised=None),
        case("dtype", None, [], seed=3, affected_count=0, is_localised=None),
        case("dtype", 12.5, ["null_online"], rate=0.01, is_localised=False),
    ]

    page = report(lines)

    assert "| dtype | 1 % | 1 | 1/1 (2%-100%) | 12.5 | 12.5 | 12.5 | 4 | 0/1 | 0/1 | 0/1 |\n" in page
    assert "| dtype | 100 % | 3 | 2/3 (9%-99%) | 9.0 | 31.0 | 31.0 | 4 | 1/2 | 2/2 | 2/2 |\n" in page
    assert "- all of a kind struck, found within 30 s: 1/3 " in page
    assert "- 1 % of a kind struck, found within 120 s: 1/1 " in page
    assert "- the right cause first: 1/3 " in page
    assert "- findings before a fault had an effect: 1: a_view.a_check\n" in page
    assert "had no effect in 240 s: 1\n" in page
    assert "a round took 2.0 s" in page
    assert "| validator | 25.0% | 100 | 100.0 | 50.0 |\n" in page


def test_a_clean_run_is_told_with_its_bound_and_one_that_is_not_with_its_findings() -> None:
    run = {
        "kind": "clean",
        "seconds": 60,
        "rounds_count": 12.0,
        "events_count": 6000,
        "outage_s": 9.5,
        "shocks": {"kill": 2},
    }
    counts = {"judged_count": 1_500_000, "skew_inconclusive": 1.0, "validator_errors": 0.0}

    silent, loud = (report([{**run, **counts, "false": false}]) for false in ([], ["a_view.a_check: no"]))

    assert (
        "1,500,000 judgements, 0 false findings; with 95 % confidence, fewer than 2.0e-06 of them are wrong." in silent
    )
    assert "confidence" not in loud
    assert "\n- a_view.a_check: no\n" in loud


def test_every_way_to_break_is_a_case_and_none_is_there_twice() -> None:
    cases = chosen(arguments().parse_args(["--rates", "0.01,1", "--seeds", "2"]))

    assert {case.cause for case in cases} == set(breaks.CAUSES)
    assert len(cases) == len(set(cases))
    assert [case for case in cases if case.cause == Cause.STALE_ONLINE] == [
        Case("stale_online", 1.0, ANY, 1),
        Case("stale_online", 1.0, ANY, 2),
    ]
    assert {case.entities for case in cases if case.cause == Cause.PARTIAL_BATCH} == {ANY}
    assert {case.entities for case in cases if case.cause == Cause.DTYPE} == {HOT, COLD}
    assert cases_of(["dtype"], [0.01], [COLD], 1) == [Case("dtype", 0.01, COLD, 1)]
    assert Case("dtype", 0.001, COLD, 1).limit_s > Case("dtype", 0.01, COLD, 1).limit_s


def test_an_unknown_cause_ends_it_before_anything_runs() -> None:
    with pytest.raises(SystemExit, match="no way to break gremlins"):
        chosen(arguments().parse_args(["--causes", "gremlins"]))


@pytest.mark.parametrize(
    ("changed", "localised"),
    [
        ({}, True),
        ({"feature_view": "by_page"}, False),
        ({"features": ["deletes"]}, False),
        ({"features": []}, True),
        ({"evidence": [{"entity": "ada"}, {"entity": "eve"}]}, False),
        ({"evidence": [{"part": "part-1.parquet"}]}, True),
    ],
)
def test_a_finding_is_localised_if_all_that_it_names_was_struck(changed: dict[str, Any], *, localised: bool) -> None:
    account = Account("one", "value_mismatch", 0.0, 1.0, 2, ("by_user",), ("ada", "bob"), ("edits",))
    alarm = {"feature_view": "by_user", "features": ["edits"], "evidence": [{"entity": "ada"}, {"entity": None}]}

    assert is_localised(alarm | changed, account) is localised


def test_half_of_all_events_are_about_hot_entities_and_no_entity_is_both(project: Path) -> None:
    found = regimes(Workspace.open(settings.Settings(project=project)).pipeline.views, 4000)
    hot, cold = found[HOT], found[COLD]

    assert hot is not None
    assert cold is not None
    assert {"Bot0", "#en.wikipedia", "Page 0"} <= hot
    assert not hot & cold
    assert len(hot) < len(cold)
    assert found[ANY] is None


def test_a_bench_that_is_not_there_is_answered_with_those_that_are() -> None:
    done = subprocess.run([REPO / "scripts" / "bench", "nothing"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "there is: commits peers pipeline serving validator windows\n" in done.stderr


@pytest.mark.parametrize("recorded", sorted((REPO / "tests/bench").glob("results-*.jsonl")), ids=lambda path: path.stem)
def test_recorded_results_make_the_page_that_stands_beside_them(recorded: Path) -> None:
    reports = {
        "results-peers": peers_results.report,
        "results-pipeline": pipeline_results.report,
        "results-serving": serving_results.report,
        "results-validator": report,
    }
    lines = recorded.read_text(encoding="utf-8").splitlines()
    page = recorded.with_suffix(".md").read_text(encoding="utf-8")

    assert reports[recorded.stem]([json.loads(line) for line in lines]) == page


def test_traffic_does_as_it_is_told_while_it_flows() -> None:
    class Whole:
        def sent(self, event: dict[str, Any]) -> dict[str, Any]:
            return event

    traffic = Traffic(rate=10.0, at_once_count=1)
    timed = traffic.timed(Whole())  # type: ignore[arg-type]  # nothing is broken
    first_s, _ = next(timed)
    second_s, _ = next(timed)
    traffic.only = "Bot0"
    _, third = next(timed)

    assert first_s == 0
    assert second_s > 0
    assert third["user"] == "Bot0"
