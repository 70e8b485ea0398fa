import html
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest

from freshet.flows.edges import quality
from freshet.flows.edges.quality import Judge, agree
from freshet.flows.steps.checks import checks_of
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.expected import Expected
from freshet.schemas.finding import Cause, Check, Frame, Outcome, Question, Verdict
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, View

VIEW = "edits_by_user"
EQUAL = Check(
    "edits_by_user.edits.online_equals_offline",
    "the values are equal",
    Frame.ROWS,
    "ExpectOnlineToEqualOffline",
    {"column_A": "on", "column_B": "off", "relative_tolerance": 1e-9},
    Cause.VALUE_MISMATCH,
    features=("edits",),
)
NOT_NULL = Check(
    "edits_by_user.edits.online_is_not_null",
    "the value is there",
    Frame.ROWS,
    "ExpectColumnValuesToNotBeNull",
    {"column": "on"},
    Cause.NULL_ONLINE,
    features=("edits",),
    given="off",
)
SETTLED = Check(
    "edits_by_user.online_row_is_settled",
    "the row is settled",
    Frame.ROWS,
    "ExpectColumnValuesToNotBeInSet",
    {"column": "on", "value_set": ["pending"]},
    None,
    "warning",
)
CHECKS = (EQUAL, NOT_NULL, SETTLED)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def frame(*pairs: tuple[Any, Any]) -> pd.DataFrame:
    lines = [(f"user {n}", "2026-03-01T12:00:00", n, *pair) for n, pair in enumerate(pairs)]
    known = pd.DataFrame(lines, columns=["entity", "event_timestamp", "version", "on", "off"], dtype=object)
    return known.reindex(columns=dict.fromkeys([*known, *Frame.ROWS.identity]))


def answer(judge: Judge, lines: pd.DataFrame, checks: Sequence[Check], minimum_rows: int) -> Verdict:
    (verdict,) = judge.judge([Question(VIEW, lines, checks, minimum_rows)])
    return verdict


def test_importing_the_judge_does_not_import_great_expectations() -> None:
    code = "import sys, freshet.flows.edges.quality; print('great_expectations' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_holds_of_every_line_is_ok(judge: Judge) -> None:
    verdict = answer(judge, frame((1, 1), (None, None), (0.1 + 0.2, 0.3), ("", "")), CHECKS, 1)

    assert (verdict.outcome, verdict.compared, verdict.findings, verdict.reasons) == (Outcome.OK, 4, (), ())


def test_a_finding_names_cause_feature_and_lines(judge: Judge) -> None:
    verdict = answer(judge, frame((1, 1), (2, 3), (None, 4), (5, None)), CHECKS, 1)

    assert Outcome.VIOLATED is verdict.outcome
    unequal, null = sorted(verdict.findings, key=lambda finding: finding.cause, reverse=True)
    assert (EQUAL.name, Cause.VALUE_MISMATCH, ("edits",)) == (unequal.check, unequal.cause, unequal.features)
    assert [*unequal.evidence] == [
        {"entity": "user 1", "event_timestamp": "2026-03-01T12:00:00", "version": 1, "on": 2, "off": 3},
        {"entity": "user 3", "event_timestamp": "2026-03-01T12:00:00", "version": 3, "on": 5, "off": None},
    ]
    assert (NOT_NULL.name, Cause.NULL_ONLINE, "user 2") == (null.check, null.cause, null.evidence[0]["entity"])
    assert f"{EQUAL.name}: the values are equal; not so in 2 of 4 lines" == unequal.message


def test_evidence_is_a_part_and_the_message_counts_the_whole(judge: Judge) -> None:
    (finding,) = answer(judge, frame(*[(1, 2)] * 300), CHECKS, 1).findings

    assert len(finding.evidence) == 10
    assert finding.message.endswith("300 of 300 lines")


def test_an_empty_frame_is_inconclusive(judge: Judge) -> None:
    verdict = answer(judge, frame(), CHECKS, 1)

    assert Outcome.INCONCLUSIVE is verdict.outcome
    assert verdict.reasons == ("edits_by_user: 0 lines to judge, fewer than 1",)


def test_a_column_of_nulls_is_not_ok_where_nulls_are_not_tolerated(judge: Judge) -> None:
    wanted = replace(NOT_NULL, given=None)
    between = replace(NOT_NULL, name="range", expectation="ExpectNumbersToBeBetween", given=None)

    assert Outcome.OK is answer(judge, frame((None, None)), [between], 1).outcome
    assert Outcome.VIOLATED is answer(judge, frame((None, None)), [between, wanted], 1).outcome


FEW = Check(
    "edits_by_user.edits.nulls_are_few",
    "the value is there but for < 1%",
    Frame.POOL,
    "ExpectNullsToBeFew",
    {"column": "on", "rate": 0.01, "alpha": 1e-6},
    Cause.NULL_ONLINE,
)


def test_a_rate_is_judged_by_its_exact_bound_and_by_too_few_lines_not_at_all(judge: Judge) -> None:
    some = answer(judge, frame(*[(None, 1)] * 25, *[(1, 1)] * 975), [FEW], 1)
    many = answer(judge, frame(*[(None, 1)] * 40, *[(1, 1)] * 960), [FEW], 1)
    few = answer(judge, frame(*[(None, 1)] * 3), [FEW], 1)

    assert [Outcome.OK, Outcome.VIOLATED, Outcome.INCONCLUSIVE] == [some.outcome, many.outcome, few.outcome]
    assert (40, 10) == (many.findings[0].count, len(many.findings[0].evidence))
    assert many.findings[0].message.endswith("not so in 40 of 1000 lines, at least 0.0169 of all")
    assert few.reasons == (f"{FEW.name}: 3 lines to judge, fewer than 4",)


def test_what_could_not_be_told_is_named(judge: Judge) -> None:
    broken = replace(EQUAL, name="broken", arguments={**EQUAL.arguments, "column_A": "nowhere"})

    assert answer(judge, frame((1, 1)), CHECKS, 1).untold == ()
    assert answer(judge, frame(), CHECKS, 1).untold == tuple(check.name for check in CHECKS)
    assert answer(judge, frame((1, 2)), (*CHECKS, broken), 2).untold == (NOT_NULL.name, SETTLED.name, "broken")
    assert answer(judge, frame((1, 2)), (*CHECKS, broken), 1).untold == ("broken",)


def test_too_few_lines_are_inconclusive_but_a_violation_among_them_is_one(judge: Judge) -> None:
    assert Outcome.INCONCLUSIVE is answer(judge, frame((1, 1)), CHECKS, 2).outcome
    assert Outcome.VIOLATED is answer(judge, frame((1, 2)), CHECKS, 2).outcome


def test_a_check_without_a_cause_makes_it_inconclusive(judge: Judge) -> None:
    verdict = answer(judge, frame(("pending", "pending")), CHECKS, 1)

    assert (verdict.outcome, verdict.findings) == (Outcome.INCONCLUSIVE, ())
    assert verdict.reasons == ("edits_by_user.online_row_is_settled: the row is settled; not so in 1 of 1 lines",)


@pytest.mark.parametrize("column", ["on", "off", "entity"])
def test_a_frame_without_a_column_is_an_error_of_the_validator(judge: Judge, column: str) -> None:
    verdict = answer(judge, frame((1, 2)).drop(columns=column), CHECKS, 1)

    assert Outcome.VALIDATOR_ERROR is verdict.outcome
    assert column in "\n".join(verdict.reasons)


def test_a_frame_of_values_that_cannot_be_hashed_is_an_error_of_the_validator(judge: Judge) -> None:
    verdict = answer(judge, frame(((1, 2), (1, 2)), (3, None)), CHECKS, 1)

    assert Outcome.VALIDATOR_ERROR is verdict.outcome
    assert verdict.reasons


def test_a_check_that_raises_hides_no_other_check_s_finding(judge: Judge) -> None:
    broken = Check("broken", "…", Frame.ROWS, "ExpectColumnValuesToNotBeNull", {"column": "nowhere"}, Cause.DTYPE)

    verdict = answer(judge, frame((1, 2)), (*CHECKS, broken), 1)

    assert Outcome.VALIDATOR_ERROR is verdict.outcome
    assert [finding.cause for finding in verdict.findings] == [Cause.VALUE_MISMATCH]
    assert verdict.reasons[0].startswith("broken: ")


ALL = (
    *CHECKS,
    replace(EQUAL, name="same", expectation="ExpectColumnPairValuesToBeEqual", arguments={
        "column_A": "on", "column_B": "off", "ignore_row_if": "neither"
    }),
    replace(EQUAL, name="not older", expectation="ExpectColumnPairValuesAToBeGreaterThanB", arguments={
        "column_A": "on", "column_B": "off", "or_equal": True, "ignore_row_if": "either_value_is_missing"
    }),
    replace(NOT_NULL, name="there", given=None),
    replace(NOT_NULL, name="between", expectation="ExpectColumnValuesToBeBetween", arguments={
        "column": "version", "max_value": 2
    }),
    replace(NOT_NULL, name="range", expectation="ExpectNumbersToBeBetween", given=None, arguments={
        "column": "on", "minimum": 1, "maximum": 2.5
    }),
    replace(NOT_NULL, name="known", expectation="ExpectColumnValuesToBeInSet", arguments={
        "column": "off", "value_set": [1, 2]
    }),
    replace(NOT_NULL, name="near", expectation="ExpectToAgreeWithin", arguments={
        "column_list": ["on", "off", "version"]
    }),
)  # fmt: skip
"""One check of every kind that is judged together with others like it."""
FRAMES: dict[str, tuple[tuple[Any, Any], ...]] = {
    "right": ((1, 1), (2, 2)),
    "wrong": ((1, 1), (2, 3), (None, 4), (5, None), (1.5, 1.5), (2**53 + 1, 2**53), (True, 1), (None, None)),
    "of nothing": (),
    "of nulls": ((None, None), (None, None)),
    "of text": (("a", "a"), ("b", "c"), ("pending", "pending"), ("", None)),
    "of much that is wrong": ((7, 8),) * 300,
    "of mixed values": ((1, "a"), ("a", 1), ("pending", None)),
}


def test_what_is_judged_together_is_what_is_judged_alone(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Question(VIEW, frame(*pairs), ALL, 2) for pairs in FRAMES.values()]

    together = judge.judge(asked)

    assert {one.expectation for one in ALL} == quality.BY_LINE
    monkeypatch.setattr(quality, "BY_LINE", frozenset())
    assert together == judge.judge(asked)
    assert {*Outcome} == {verdict.outcome for verdict in together}


def test_a_frame_that_cannot_be_judged_hides_nothing_of_another(judge: Judge) -> None:
    asked = [Question(name, frame(*pairs), CHECKS) for name, pairs in (("a", ((1, 2),)), ("b", (((1, 2), 1), (3, 1))))]

    wrong, failed = judge.judge(asked)

    assert [Outcome.VIOLATED, Outcome.VALIDATOR_ERROR] == [wrong.outcome, failed.outcome]
    assert [EQUAL.name] == [finding.check for finding in wrong.findings]


def test_the_checks_of_lines_are_all_judged_together() -> None:
    view = View("v", ("s",), (), (Feature("f", DTYPES["int64"], "…", expected=Expected(0, 9, (1, 2), nulls=0)),))
    kinds = {one.expectation for one in checks_of(view, Objective(99, timedelta(seconds=1)))}

    assert kinds == quality.BY_LINE


def test_nothing_judged_is_kept(judge: Judge) -> None:
    for _ in range(3):
        answer(judge, frame((1, 2)), CHECKS, 1)
        answer(judge, frame((1, 2)), [FEW], 1)

    assert judge.results_count == 0


@pytest.mark.parametrize(
    ("online", "offline", "tolerance", "same"),
    [
        (2**53 + 1, 2**53, 0.0, False),
        (1.0 + 1e-10, 1.0, 1e-9, True),
        (1.0 + 1e-8, 1.0, 1e-9, False),
        (0.0, 1e-300, 1e-9, False),
        (-0.0, 0.0, 1e-9, True),
        (math.inf, math.inf, 1e-9, True),
        (math.inf, 1e308, 1e-9, False),
        ("3.5", 3.5, 1e-9, False),
        ("", None, 0.0, False),
        (False, None, 0.0, False),
        (None, "", 0.0, True),
    ],
)
def test_values_agree_within_their_tolerance(online: object, offline: object, tolerance: float, same: object) -> None:
    assert same is agree(online, offline, tolerance)


def page_of(judge: Judge, *pairs: tuple[Any, Any], above: str = "") -> str:
    answer(judge, frame(*pairs), CHECKS, 1)
    return judge.page(VIEW, "shop: edits <by> user", above)


def test_a_page_shows_what_great_expectations_said_of_each_check(judge: Judge) -> None:
    page = page_of(judge, (1, 1), (2, 3), (None, 4), above="<p>above</p>")

    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "the values are equal" in text
    assert "(2, 3)" in text
    assert "the value is there" in text
    assert page.index("<p>above</p>") < page.index("the values are equal")
    assert page.count('class="fas fa-check-circle text-success"') >= 1
    assert "<title>shop: edits &lt;by&gt; user</title>" in page


def test_a_page_loads_and_runs_nothing(judge: Judge) -> None:
    page = page_of(judge, (1, 2))

    assert not re.findall(r"<(?:script|link|img|iframe|object|embed|form|base)\b", page, re.IGNORECASE)
    assert not re.findall(r"\s(?:href|src|srcset|on\w+|style|action)\s*=", page, re.IGNORECASE)
    assert not re.findall(r"url\(|@import|https?://|javascript:", page, re.IGNORECASE)
    assert "Content-Security-Policy\" content=\"default-src 'none'" in page


def elements(page: str) -> set[str]:
    return set(re.findall(r"<\s*([a-zA-Z!/][^\s>]*)", page))


@pytest.mark.parametrize(
    "value",
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "$column <b>", "&lt;b&gt;",
        "</table><footer>", "${x} $$ {{ y }} {% z %}", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_a_value_on_a_page_is_text_whatever_it_holds(judge: Judge, value: str) -> None:
    page = page_of(judge, (value, None), (value, "other"))

    assert elements(page) == elements(page_of(judge, ("plain", None), ("plain", "other")))
    assert value in html.unescape(page)


def test_a_page_of_a_check_that_raised_says_so(judge: Judge) -> None:
    broken = Check("broken", "…", Frame.ROWS, "ExpectColumnValuesToNotBeNull", {"column": "nowhere"}, Cause.DTYPE)
    answer(judge, frame((1, 1)), (broken,), 1)

    assert "raised an exception" in judge.page(VIEW, "shop", "")


def test_of_a_view_that_was_not_judged_there_is_a_page_all_the_same(judge: Judge) -> None:
    assert "<p>why</p>" in judge.page("unknown", "shop", "<p>why</p>")


def test_pages_keep_nothing_in_memory(judge: Judge) -> None:
    page_of(judge, (1, 2))
    kept_count = len(judge._newest[VIEW])  # noqa: SLF001  # what could grow

    for number in range(5):
        page_of(judge, (number, 2))

    assert kept_count == len(judge._newest[VIEW])  # noqa: SLF001
    assert judge.results_count == 0


def test_evidence_shows_both_values_of_a_feature_though_the_check_is_about_one(judge: Judge) -> None:
    lines = frame((None, 4), (5, 5)).rename(columns={"on": "on_edits", "off": "off_edits"})
    check = replace(NOT_NULL, arguments={"column": "on_edits"}, given="off_edits", severity="warning")

    (finding,) = answer(judge, lines, (check,), 1).findings

    assert [("user 0", None, 4)] == [(e["entity"], e["on_edits"], e["off_edits"]) for e in finding.evidence]
    assert "entity" == next(iter(finding.evidence[0]))
    assert finding.severity == "warning"
