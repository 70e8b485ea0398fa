"""Great Expectations: the judge of frames, and the only place that knows it.

It takes 2.5 seconds and 140 MB to import, so nothing here does until a `Judge` is made.
"""

import functools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from freshet.schemas.finding import Check, Finding, Outcome, Verdict, worst

_ENOUGH = "lines_are_enough"
_EVIDENCE_LINES = 10


class Judge:
    """Runs a suite of expectations over a frame and says what it means.

    One judge a process, and one thread: a context of Great Expectations is the process's own, and threads that share
    one get each other's frames without an error.
    """

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx  # noqa: PLC0415  # see the top

        self._gx = gx
        self._own = {"ExpectOnlineToEqualOffline": _online_equals_offline(), "ExpectToAgreeWithin": _agrees_within()}
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        self._store = context.validation_results_store
        self._source = context.data_sources.add_pandas("frames")
        self._batches: dict[str, Any] = {}

    @property
    def results_count(self) -> int:
        """How many results Great Expectations keeps in memory: none, whatever was judged."""
        return len(self._store.list_keys())

    def judge(self, view_name: str, frame: pd.DataFrame, checks: Sequence[Check], minimum_rows: int) -> Verdict:
        """Judge a frame by checks that are all about it.

        A check that does not hold is a finding, or, if it has no cause, a reason to be inconclusive; so are fewer lines
        than `minimum_rows`. What could not be computed, or has no result, makes a `validator_error`.
        """
        assert len({check.frame for check in checks}) == 1, "checks of several frames"
        try:
            results = self._run(view_name, frame, checks, minimum_rows)
        except (self._gx.exceptions.GreatExpectationsError, KeyError, TypeError, ValueError) as error:
            # The last three are pandas', of a frame with values that it cannot hold or hash.
            reason = f"{view_name}: the suite could not be run: {type(error).__name__}: {error}"
            return Verdict(view_name, Outcome.VALIDATOR_ERROR, 0, reasons=(reason,))
        by_name = {check.name: check for check in checks}
        errors = [f"{name}: has no result" for name in (*by_name, _ENOUGH) if name not in results]
        findings: list[Finding] = []
        reasons: list[str] = []
        for name, result in results.items():
            check, raised = by_name.get(name), [*_raised(result.exception_info)]
            if raised:
                errors.append(f"{name}: {raised[0]}")
            elif result.success:
                continue
            elif check is None:
                reasons.append(f"{view_name}: {len(frame)} lines to judge, fewer than {minimum_rows}")
            elif check.cause is None:
                reasons.append(_message(check, result.result))
            else:
                lines = result.result.get("partial_unexpected_index_list", ())
                evidence = tuple(_plain(line, _named(check)) for line in lines)
                message, count = _message(check, result.result), int(result.result["unexpected_count"])
                made = Finding(view_name, name, check.cause, check.features, evidence, message, count, check.rounds)
                findings.append(made)
        said = {Outcome.VALIDATOR_ERROR: errors, Outcome.VIOLATED: findings, Outcome.INCONCLUSIVE: reasons}
        outcome = worst([Outcome.OK, *(outcome for outcome, found in said.items() if found)])
        return Verdict(view_name, outcome, len(frame), tuple(findings), (*errors, *reasons))

    def _run(self, view_name: str, frame: pd.DataFrame, checks: Sequence[Check], minimum_rows: int) -> dict[str, Any]:
        """Return the results by check; their order is not the suite's, so they are told by `meta`."""
        name = f"{view_name}.{checks[0].frame}"
        if name not in self._batches:
            self._batches[name] = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("round")
        enough = self._gx.expectations.ExpectTableRowCountToBeBetween(min_value=minimum_rows, meta={"check": _ENOUGH})
        suite = self._gx.ExpectationSuite(name=name, expectations=[enough, *map(self._expectation, checks)])
        # Not through a ValidationDefinition: that keeps every result in memory for ever.
        report = (
            self._batches[name]
            .get_batch({"dataframe": frame})
            .validate(
                suite,
                result_format={
                    "result_format": "SUMMARY",
                    "unexpected_index_column_names": list(checks[0].frame.identity),
                    "partial_unexpected_count": _EVIDENCE_LINES,
                },
            )
        )
        return {result.expectation_config.meta["check"]: result for result in report.results}

    def _expectation(self, check: Check) -> Any:
        kind = self._own.get(check.expectation) or getattr(self._gx.expectations, check.expectation)
        arguments = dict(check.arguments)
        if check.given:
            from great_expectations.expectations.row_conditions import Column  # noqa: PLC0415  # see the top

            arguments["row_condition"] = Column(check.given).is_not_null()
        meta = {"check": check.name}
        return kind(**arguments, description=check.description, severity=check.severity, meta=meta)


@functools.cache
def _online_equals_offline() -> Any:
    """Make the expectation that pairs of values agree; once, since Great Expectations registers what it sees."""
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

    return ExpectOnlineToEqualOffline


@functools.cache
def _agrees_within() -> Any:
    """Make the expectation that two values agree within what a third says; once, as above."""
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


def _message(check: Check, result: Mapping[str, Any]) -> str:
    """Say what should hold, and of how many lines it does not."""
    return (
        f"{check.name}: {check.description}; not so in {result['unexpected_count']} of {result['element_count']} lines"
    )


def _named(check: Check) -> list[Any]:
    """Return the columns that a check is about."""
    return [*check.arguments.values(), *check.arguments.get("column_list", ())]


def _plain(line: Mapping[str, Any], asked_for: Collection[Any]) -> Mapping[str, Any]:
    """Return a line in Python's own values; of what only tells about which row it is, without what is not known."""
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in line.items()}
    missing = {name for name, value in values.items() if value is None or value != value}  # noqa: PLR0124  # NaN
    return {
        name: None if name in missing else value
        for name, value in values.items()
        if name not in missing or name in asked_for
    }
