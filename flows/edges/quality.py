"""Great Expectations: the judge of frames, and the only place that knows it.

It takes 2.5 seconds and 140 MB to import, so nothing here does until a `Judge` is made.

Its Data Docs load scripts, styles, fonts and pictures from seven hosts, which so learn who looks at them, and show some
values without escaping them. What `Judge.page` returns loads nothing, runs nothing, and holds values as text.
"""

import functools
import html
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from freshet.flows.steps import statistics
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.expected import Distance, Reference
from freshet.schemas.finding import Cause, Check, Finding, Frame, Outcome, Question, Verdict, worst

_ENOUGH = "lines_are_enough"
_EVIDENCE_LINES = 10
_LEAST, _SAID, _EVIDENCE = "least_count", "said", "evidence"
"""What our own expectations add to their results: how many lines would be enough, and what was seen."""

BY_LINE = frozenset(
    {
        "ExpectColumnPairValuesAToBeGreaterThanB",
        "ExpectColumnPairValuesToBeEqual",
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnValuesToBeInSet",
        "ExpectColumnValuesToNotBeInSet",
        "ExpectColumnValuesToNotBeNull",
        "ExpectNumbersToBeBetween",
        "ExpectOnlineToEqualOffline",
        "ExpectToAgreeWithin",
    }
)
"""Expectations that hold of a frame if they hold of each line by itself: lines of many checks can be one frame."""


@dataclass(frozen=True)
class _Told:
    """What Great Expectations said of a check; `raised` is why it could say nothing."""

    success: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    raised: str = ""


@dataclass(frozen=True, eq=False)
class _Part:
    """The lines that one check is about, as a part of a frame of many checks; `number` is its question's."""

    number: int
    check: Check
    lines: pd.DataFrame


class Judge:
    """Runs expectations over frames and says what they mean.

    One judge a process, and one thread: a context of Great Expectations is the process's own, and threads that share
    one get each other's frames without an error.

    An expectation costs milliseconds however few lines it is about, so checks that differ in their columns alone are
    one expectation, over all their lines; if that does not hold, it is asked once more, of which lines.
    """

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        try:
            import great_expectations as gx  # noqa: PLC0415  # see the top
        except ImportError as error:
            hint = "install freshet[validator]; of the images, the validator's has it"
            raise Refused([Problem("package", "great_expectations", "cannot be imported", str(error), hint)]) from error

        self._gx = gx
        self._own = _own_expectations()
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        self._store = context.validation_results_store
        frames = context.data_sources.add_pandas("frames").add_dataframe_asset("frames")
        self._frames = frames.add_batch_definition_whole_dataframe("frames")
        self._newest: dict[str, dict[Frame, Question]] = {}
        """By view, what it was asked last of each frame: what `page` shows the answers to."""

    @property
    def results_count(self) -> int:
        """How many results Great Expectations keeps in memory: none, whatever was judged."""
        return len(self._store.list_keys())

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answer each question: whether its frame is as its checks say.

        A check that does not hold is a finding, or, if it has no cause, a reason to be inconclusive; so are fewer lines
        than are asked for, or than an expectation itself needs. What could not be computed, or has no result, makes a
        `validator_error`.
        """
        told: list[dict[str, _Told]] = [{} for _ in questions]
        for parts in _grouped(questions):
            for part, answer in self._together(parts):
                told[part.number][part.check.name] = answer
        for number, question in enumerate(questions):
            left = [check for check in question.checks if check.name not in told[number]]
            if left or _ENOUGH not in told[number]:
                told[number] |= self._alone(question, left)
            self._newest.setdefault(question.view, {})[question.frame] = question
        return [_verdict(question, own) for question, own in zip(questions, told, strict=True)]

    def _together(self, parts: Sequence[_Part]) -> list[tuple[_Part, _Told]]:
        """Judge lines of several checks as one frame; nothing is said if that raises."""
        check, columns = parts[0].check, zip(*(_columns(part.check) for part in parts), strict=True)
        values = [
            np.concatenate([part.lines[name].to_numpy(object) for part, name in zip(parts, names, strict=True)])
            for names in columns
        ]
        frame = pd.DataFrame(dict(zip("ABC", values, strict=False)))
        expectation = self._kind(check)(**_renamed(check.arguments, [*frame]))
        try:
            batch = self._frames.get_batch({"dataframe": frame})
            report = batch.validate(expectation, result_format="BOOLEAN_ONLY")
            if report.success:
                return [(part, _Told(success=True)) for part in parts]
            report = batch.validate(expectation, result_format="COMPLETE")
        except Exception:  # noqa: BLE001  # whatever it raises, it raises again where each check is judged alone
            return []
        bad = np.array(report.result.get("unexpected_index_list", ()), int)
        if not len(bad) or len(bad) != report.result["unexpected_count"]:
            return []
        told, start = [], 0
        for part in parts:
            end = start + len(part.lines)
            told.append((part, _of_lines(part, bad[(start <= bad) & (bad < end)] - start)))
            start = end
        return told

    def _alone(self, question: Question, checks: Sequence[Check]) -> dict[str, _Told]:
        """Judge checks each by itself."""
        try:
            report = self._report(question, checks)
        except Exception as error:  # noqa: BLE001  # whatever so large a library raises is its failure, not a finding
            raised = f"{question.view}: the suite could not be run: {type(error).__name__}: {error}"
            return {name: _Told(success=False, raised=raised) for name in (_ENOUGH, *(check.name for check in checks))}
        told = {}
        for one in report.results:  # their order is not the suite's
            name = one.expectation_config.meta["check"]
            raised = next((f"{name}: {message}" for message in _raised(one.exception_info)), "")
            told[name] = _Told(one.success, one.result, raised)
        return told

    def _report(self, question: Question, checks: Sequence[Check]) -> Any:
        """Have a suite of checks run over a frame."""
        enough = self._gx.expectations.ExpectTableRowCountToBeBetween(
            min_value=question.minimum_rows, meta={"check": _ENOUGH}
        )
        suite = self._gx.ExpectationSuite(name=question.view, expectations=[enough, *map(self._expectation, checks)])
        shown = dict.fromkeys(name for check in checks for name in check.columns)
        known = [name for name in shown if name in question.lines or name in question.frame.identity]
        # Not through a ValidationDefinition: that keeps every result in memory for ever.
        return self._frames.get_batch({"dataframe": question.lines}).validate(
            suite,
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": known,
                "partial_unexpected_count": _EVIDENCE_LINES,
            },
        )

    def page(self, view_name: str, title: str, above: str) -> str:
        """Return what Great Expectations says of a view's newest frames, as a page of HTML that loads and runs nothing.

        `above` is HTML that stands before it.
        """
        try:
            shown = [*self._rendered(view_name)]
        except Exception as error:  # noqa: BLE001  # a page is no reason for which the validator may fail
            shown = [f"<p>It cannot be shown: {html.escape(f'{type(error).__name__}: {error}')}</p>"]
        return _PAGE.format(title=html.escape(title), above=above, below="\n".join(shown))

    def _rendered(self, view_name: str) -> Iterator[str]:
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer  # noqa: PLC0415
        from great_expectations.render.view import DefaultJinjaPageView  # noqa: PLC0415

        for question in self._newest.get(view_name, {}).values():
            report = self._report(question, question.checks)
            copy = report.__class__(
                success=report.success,
                results=[_guarded_result(result) for result in report.results],
                suite_name=report.suite_name,
                statistics=report.statistics,
                meta={},
            )
            page = DefaultJinjaPageView().render(
                ValidationResultsPageRenderer().render(copy), show_how_to_buttons=False
            )
            yield _self_contained(page)

    def _expectation(self, check: Check) -> Any:
        arguments = dict(check.arguments)
        if check.given:
            from great_expectations.expectations.row_conditions import Column  # noqa: PLC0415  # see the top

            arguments["row_condition"] = Column(check.given).is_not_null()
        meta = {"check": check.name}
        return self._kind(check)(**arguments, description=check.description, severity=check.severity, meta=meta)

    def _kind(self, check: Check) -> Any:
        return self._own.get(check.expectation) or getattr(self._gx.expectations, check.expectation)


def _grouped(questions: Sequence[Question]) -> list[list[_Part]]:
    """Put together the checks that differ in their columns alone; what has to be judged alone is left out."""
    groups: dict[tuple[str, int, str], list[_Part]] = {}
    for number, question in enumerate(questions):
        count = pd.DataFrame({"lines_count": [len(question.lines)]})
        words = {"column": "lines_count", "min_value": question.minimum_rows}
        enough = Check(_ENOUGH, "", question.frame, "ExpectColumnValuesToBeBetween", words, None)
        parts = [_Part(number, enough, count)]
        for check in question.checks:
            needed = {*_columns(check), *question.frame.identity, *([check.given] if check.given else [])}
            if check.expectation in BY_LINE and needed <= {*question.lines}:
                lines = question.lines[question.lines[check.given].notna()] if check.given else question.lines
                parts.append(_Part(number, check, lines))
        for part in parts:
            rest = {name: value for name, value in part.check.arguments.items() if name not in _COLUMNS}
            key = part.check.expectation, len(_columns(part.check)), repr(sorted(rest.items()))
            groups.setdefault(key, []).append(part)
    return [*groups.values()]


_COLUMNS = ("column", "column_A", "column_B", "column_list")
"""The arguments that name columns."""


def _columns(check: Check) -> list[str]:
    """Return the columns that a check is about."""
    named = check.arguments
    return [*(named[key] for key in _COLUMNS[:-1] if key in named), *named.get("column_list", ())]


def _looks(lines: pd.DataFrame, check: Check) -> bool:
    """Say whether a check looks at any line of a frame."""
    if not check.needed:
        return len(lines) > 0
    values = zip(*(lines[name] for name in check.needed), strict=True)
    return any(not any(value is None or value != value for value in line) for line in values)  # noqa: PLR0124  # NaN


def _renamed(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a check's arguments with other names for its columns."""
    if "column_list" in arguments:
        return {**arguments, "column_list": [*names]}
    return {**arguments, **dict(zip([key for key in _COLUMNS if key in arguments], names, strict=True))}


def _of_lines(part: _Part, bad: Any) -> _Told:
    """Return what is to be said of a check that does not hold in some lines, if in any."""
    if not len(bad):
        return _Told(success=True)
    shown = [name for name in dict.fromkeys((*part.check.columns, *_columns(part.check))) if name in part.lines]
    lines = part.lines.iloc[bad[:_EVIDENCE_LINES]][shown].to_dict("records")
    counts = {"element_count": len(part.lines), "unexpected_count": len(bad)}
    return _Told(success=False, result={**counts, "partial_unexpected_index_list": lines})


def _verdict(question: Question, told: Mapping[str, _Told]) -> Verdict:
    """Say what follows from all that was said of a frame."""
    view_name = question.view
    errors: list[str] = []
    findings: list[Finding] = []
    reasons: list[str] = []
    held = set[str]()
    for name, check in ((_ENOUGH, None), *((check.name, check) for check in question.checks)):
        one = told.get(name) or _Told(success=False, raised=f"{name}: has no result")
        if one.raised:
            errors.append(one.raised)
        elif one.success:
            held |= {name} if check is None or _looks(question.lines, check) else set()
        elif check is None:
            reasons.append(f"{view_name}: {len(question.lines)} lines to judge, fewer than {question.minimum_rows}")
        elif (least := one.result.get(_LEAST)) is not None:
            reasons.append(f"{name}: {one.result['element_count']} lines to judge, fewer than {least}")
        elif check.cause is None:
            reasons.append(_message(check, one.result))
        else:
            findings.append(_finding(view_name, check, check.cause, one.result))
    known = {finding.check for finding in findings} | (held if _ENOUGH in held else set())
    said = {Outcome.VALIDATOR_ERROR: errors, Outcome.VIOLATED: findings, Outcome.INCONCLUSIVE: reasons}
    outcome = worst([Outcome.OK, *(outcome for outcome, found in said.items() if found)])
    untold = tuple(check.name for check in question.checks if check.name not in known)
    words = (*dict.fromkeys(errors), *reasons)
    return Verdict(view_name, outcome, len(question.lines), tuple(findings), words, untold)


@functools.cache
def _own_expectations() -> Mapping[str, Any]:
    """Make our own expectations; once, since Great Expectations registers what it sees.

    What they need as arguments must be among a metric's `value_keys`, and `ignore_row_if` a field and a success key, or
    nothing can be computed. A success must be Python's own bool.
    """
    made = [_numbers_between(), _nulls_few(), *_online_equals_offline(), _agrees_within(), _distribution_near()]
    return {kind.__name__: kind for kind in made}


def _online_equals_offline() -> tuple[Any, Any]:
    """Make the expectations that all pairs of values agree, and that all but few do."""
    from great_expectations.execution_engine import PandasExecutionEngine  # noqa: PLC0415  # see the top
    from great_expectations.expectations.expectation import ColumnPairMapExpectation  # noqa: PLC0415
    from great_expectations.expectations.metrics.map_metric_provider import (  # noqa: PLC0415
        ColumnPairMapMetricProvider,
        column_pair_condition_partial,
    )

    class OnlineEqualsOffline(ColumnPairMapMetricProvider):  # type: ignore[misc]  # untyped base
        condition_metric_name = "column_pair_values.online_equals_offline"
        condition_value_keys = ("relative_tolerance",)

        @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column_A: Any, column_B: Any, relative_tolerance: float, **_: Any) -> Any:  # noqa: N803, N805
            pairs = zip(column_A, column_B, strict=True)
            return pd.Series([agree(*pair, relative_tolerance) for pair in pairs], column_A.index, bool)

    class ExpectOnlineToEqualOffline(ColumnPairMapExpectation):  # type: ignore[misc]  # untyped base
        """Expect an online value, where there is one, to agree with the offline value."""

        relative_tolerance: float = 0.0
        ignore_row_if: str = "both_values_are_missing"
        map_metric = "column_pair_values.online_equals_offline"
        success_keys = ("column_A", "column_B", "ignore_row_if", "mostly", "relative_tolerance")

    class ExpectMismatchesToBeFew(ExpectOnlineToEqualOffline):
        """Expect all but a tolerated rate of online values to agree with the offline values."""

        rate: float
        alpha: float

        def _validate(self, *metrics: Any, **words: Any) -> Any:
            return _few(super()._validate(*metrics, **words), self.rate, self.alpha)

    return ExpectOnlineToEqualOffline, ExpectMismatchesToBeFew


def _nulls_few() -> Any:
    """Make the expectation that nulls are no more than a tolerated rate."""
    from great_expectations.expectations import ExpectColumnValuesToNotBeNull  # noqa: PLC0415  # see the top

    class ExpectNullsToBeFew(ExpectColumnValuesToNotBeNull):  # type: ignore[misc]  # untyped base
        """Expect all but a tolerated rate of values to be there."""

        rate: float
        alpha: float

        def _validate(self, *metrics: Any, **words: Any) -> Any:
            return _few(super()._validate(*metrics, **words), self.rate, self.alpha)

    return ExpectNullsToBeFew


def _few(response: dict[str, Any], rate: float, alpha: float) -> dict[str, Any]:
    """Decide anew by the exact binomial bound, of what a map expectation counted."""
    result = response["result"]
    count, bad_count = result["element_count"] - result.get("missing_count", 0), result["unexpected_count"]
    least = statistics.least_count(rate, alpha)
    bound = statistics.lower_bound(bad_count, count, alpha)
    result |= {"element_count": count, _SAID: f"not so in {bad_count} of {count} lines, at least {bound:.3g} of all"}
    if count < least:
        result[_LEAST] = least
    success = count >= least and not statistics.is_above(bad_count, count, rate, alpha)
    return {**response, "success": success}


def _numbers_between() -> Any:
    """Make the expectation that numbers are in a range; Great Expectations' own raises at other values among them."""
    from great_expectations.execution_engine import PandasExecutionEngine  # noqa: PLC0415  # see the top
    from great_expectations.expectations.expectation import ColumnMapExpectation  # noqa: PLC0415
    from great_expectations.expectations.metrics.map_metric_provider import (  # noqa: PLC0415
        ColumnMapMetricProvider,
        column_condition_partial,
    )

    class NumbersBetween(ColumnMapMetricProvider):  # type: ignore[misc]  # untyped base
        condition_metric_name = "column_values.numbers_between"
        condition_value_keys = ("minimum", "maximum")

        @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column: Any, minimum: Any = None, maximum: Any = None, **_: Any) -> Any:  # noqa: N805
            return pd.Series([is_between(value, minimum, maximum) for value in column], column.index, bool)

    class ExpectNumbersToBeBetween(ColumnMapExpectation):  # type: ignore[misc]  # untyped base
        """Expect numbers to be in a range; what is no number is the type's matter."""

        minimum: int | float | None = None
        maximum: int | float | None = None
        map_metric = "column_values.numbers_between"
        success_keys = ("mostly", "minimum", "maximum")

    return ExpectNumbersToBeBetween


def _distribution_near() -> Any:
    """Make the expectation that values are distributed as a reference."""
    from great_expectations.execution_engine import PandasExecutionEngine  # noqa: PLC0415  # see the top
    from great_expectations.expectations.expectation import ColumnAggregateExpectation  # noqa: PLC0415
    from great_expectations.expectations.metrics import (  # noqa: PLC0415
        ColumnAggregateMetricProvider,
        column_aggregate_value,
    )

    arguments = ("reference", "distance", "limit", "alpha")

    class DistributionJudgement(ColumnAggregateMetricProvider):  # type: ignore[misc]  # untyped base
        metric_name = "column.distribution_judgement"
        value_keys = arguments

        @column_aggregate_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column: Any, **words: Any) -> Any:  # noqa: N805
            reference, distance, limit, alpha = (words[name] for name in arguments)
            known = Reference(**{name: _tupled(value) for name, value in reference.items()})
            return statistics.judge_distribution(column.tolist(), known, Distance(distance), limit, alpha)

    class ExpectDistributionToBeNear(ColumnAggregateExpectation):  # type: ignore[misc]  # untyped base
        """Expect values to be no further from a reference than a limit, or than chance makes them."""

        reference: Any
        distance: str
        limit: float
        alpha: float
        least_count: int
        metric_dependencies = ("column.distribution_judgement",)
        success_keys = arguments

        def _validate(self, metrics: Any, *_: Any, **__: Any) -> Any:
            seen = metrics["column.distribution_judgement"]
            line = {"values": seen.count, "distance": seen.distance, "threshold": seen.threshold}
            said = (
                f"a {self.distance} distance of {seen.distance:.3g}, over {seen.threshold:.3g}, of {seen.count} values"
            )
            result = {"element_count": seen.count, "unexpected_count": seen.count, _SAID: said, _EVIDENCE: [line]}
            if seen.count < self.least_count:
                result[_LEAST] = self.least_count
            return {"success": bool(seen.count >= self.least_count and not seen.is_drifted), "result": result}

    return ExpectDistributionToBeNear


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def is_between(value: Any, minimum: float | None, maximum: float | None) -> bool:
    """Say whether a number is in a range; of what is none, nothing is said.

    >>> is_between(5, 1, None), is_between(0.5, 1, None), is_between("x", 1, 2), is_between(True, 5, None)
    (True, False, True, True)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return bool((minimum is None or value >= minimum) and (maximum is None or value <= maximum))


def _agrees_within() -> Any:
    """Make the expectation that two values agree within what a third says."""
    from great_expectations.execution_engine import PandasExecutionEngine  # noqa: PLC0415  # see the top
    from great_expectations.expectations.expectation import MulticolumnMapExpectation  # noqa: PLC0415
    from great_expectations.expectations.metrics.map_metric_provider import (  # noqa: PLC0415
        MulticolumnMapMetricProvider,
        multicolumn_condition_partial,
    )

    class AgreesWithin(MulticolumnMapMetricProvider):  # type: ignore[misc]  # untyped base
        condition_metric_name = "multicolumn_values.agree_within"

        @multicolumn_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column_list: pd.DataFrame, **_: Any) -> Any:  # noqa: N805
            lines = column_list.itertuples(index=False, name=None)
            return pd.Series([agree_within(*line) for line in lines], column_list.index, bool)

    class ExpectToAgreeWithin(MulticolumnMapExpectation):  # type: ignore[misc]  # untyped base
        """Expect two values to be both null, equal, or as near as the third column says."""

        ignore_row_if: str = "never"
        map_metric = "multicolumn_values.agree_within"
        success_keys = ("column_list", "ignore_row_if", "mostly")

    return ExpectToAgreeWithin


def agree_within(one: Any, other: Any, distance: float) -> bool:
    """Say whether two values are equal, or numbers not farther apart than so much.

    >>> agree_within(3, 3, 0), agree_within(0.5, 0.75, 0.2), agree_within(None, 0.5, 1.0), agree_within(None, None, 0)
    (True, False, False, True)
    """
    missing = [value is None or value != value for value in (one, other)]  # noqa: PLR0124  # NaN
    if any(missing):
        return all(missing)
    if distance and isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or abs(one - other) <= distance
    return bool(one == other)


def agree(online: Any, offline: Any, relative_tolerance: float) -> bool:
    """Say whether an online value is the offline one; a null online is another check's matter.

    >>> agree(0.1 + 0.2, 0.3, 1e-9), agree(3, 4, 0.0), agree(None, 4, 0.0), agree(4, None, 0.0)
    (True, False, True, False)
    """
    if online is None:
        return True
    if relative_tolerance and isinstance(online, int | float) and isinstance(offline, int | float):
        return math.isclose(online, offline, rel_tol=relative_tolerance)
    return bool(online == offline)


def _raised(info: Mapping[str, Any] | None) -> Iterator[str]:
    """Find the messages of what an expectation raised; they lie flat, or below the names of metrics."""
    for entry in (info, *(info or {}).values()):
        if isinstance(entry, Mapping) and entry.get("raised_exception"):
            yield str(entry["exception_message"])


def _finding(view_name: str, check: Check, cause: Cause, result: Mapping[str, Any]) -> Finding:
    lines = result.get("partial_unexpected_index_list", ())
    evidence = tuple(result.get(_EVIDENCE) or (_plain(line, check) for line in lines))
    count = int(result["unexpected_count"])
    words = (evidence, _message(check, result), count, check.rounds, check.of_rounds, check.severity)
    return Finding(view_name, check.name, cause, check.features, *words)


def _message(check: Check, result: Mapping[str, Any]) -> str:
    """Say what should hold, and of how many lines it does not, or what was seen instead."""
    said = result.get(_SAID) or f"not so in {result['unexpected_count']} of {result['element_count']} lines"
    return f"{check.name}: {check.description}; {said}"


def _plain(line: Mapping[str, Any], check: Check) -> Mapping[str, Any]:
    """Return what a check shows of a line, in Python's own values; what only says which line it is, if it is known."""
    compared = (*_columns(check), *check.columns[len(check.frame.identity) :])
    values = {
        name: line[name].item() if isinstance(line[name], np.generic) else line[name]
        for name in dict.fromkeys((*check.columns, *line))
        if name in line and (name in check.columns or name in compared)
    }
    missing = {name for name, value in values.items() if value is None or value != value}  # noqa: PLR0124  # NaN
    return {
        name: None if name in missing else value
        for name, value in values.items()
        if name not in missing or name in compared
    }


# --- pages ------------------------------------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; }}
table {{ border-collapse: collapse; }} td, th {{ border: 1px solid #bbb; padding: 0.2em 0.6em; text-align: left; }}
.text-success::before {{ content: "✓"; }} .text-danger::before, .text-warning::before {{ content: "✗"; }}
</style>
</head>
<body>
<h1>{title}</h1>
{above}
{below}
</body>
</html>
"""
_GUARDED = {ord(sign): ord(guard) for sign, guard in zip("<>&$\"'", "﹤﹥﹠﹩＂＇", strict=True)}  # noqa: RUF001
"""Signs that markup and templates are made of: until a page is done, others that look like them stand for them."""
_TEXT = {guard: f"&#{sign};" for sign, guard in _GUARDED.items()}
_ACTIVE = re.compile(
    r"<(script|style|iframe|object)\b.*?</\1\s*>|</?(?:link|img|meta|base|form|input|script|iframe|object)\b[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTES = re.compile(r"\s(?:href|src|srcset|style|on\w+|data-[\w-]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')", re.IGNORECASE)


def _self_contained(page: str) -> str:
    """Return the sections of a page of Great Expectations, without all that would be loaded or run."""
    _, begin, rest = page.partition('<div id="section-1"')
    body, _, _ = rest.partition("<footer")
    return _ATTRIBUTES.sub("", _ACTIVE.sub("", begin + body)).translate(_TEXT)


def _guarded_result(result: Any) -> Any:
    """Return a copy of an expectation's result in which no value is markup."""
    config = result.expectation_config
    own = {"type": config.type, "kwargs": _guarded(config.kwargs), "meta": _guarded(config.meta)}
    return result.__class__(
        success=result.success,
        expectation_config=config.__class__(**own, description=_guarded(config.description), severity=config.severity),
        result=_guarded(result.result),
        exception_info=_guarded(result.exception_info),
        meta={},
    )


def _guarded(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_GUARDED)
    if isinstance(value, Mapping):
        return {_guarded(name): _guarded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_guarded, value))
    return value
