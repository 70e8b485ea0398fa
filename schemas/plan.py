"""What a declaration compiles to: for each view the SQL of its row-level parts and the windows between them.

An event passes three stages: `inputs_sql` computes what the windows need of it, the windows fold that per entity, and
`finish_sql` computes the features from the folds. Stages one and three are row-level and run in DuckDB; stage two is
ours.
"""

from dataclasses import dataclass

import pyarrow as pa

from freshet.schemas.view import View


@dataclass(frozen=True, slots=True)
class Range:
    """RANGE BETWEEN this much PRECEDING AND CURRENT ROW: the frame of q is [q - preceding, q], ties included."""

    preceding_us: int


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One distinct window aggregate of a view. `argument` is the input column `_a<argument>`; None for count(*)."""

    function: str
    argument: int | None
    result_type: str
    frame: Range


@dataclass(frozen=True)
class ViewPlan:
    """One view, compiled.

    `inputs_sql` reads `events` (a contract's accepted events) and gives `inputs`: the entity, `event_timestamp`,
    `_partition`, `_offset`, `_available_at`, the aggregates' arguments `_a0`… with their FILTER folded in, and the
    `payload`, `_p0`…: definitions without a window, and plain columns around windows. `finish_sql` reads `rows`, where
    the arguments have become window values `_w0`… in the order of `aggregates`, and gives the view's `row_schema`.
    `reach_us` is the longest frame; None where a row depends on everything up to its time. `argument_features` names,
    for each argument and then each value of the payload, the features that need it.
    """

    view: View
    inputs_sql: str
    inputs: pa.Schema
    aggregates: tuple[Aggregate, ...]
    payload: tuple[str, ...]
    finish_sql: str
    oracle_sql: str
    reach_us: int | None
    argument_features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """Every view of a project."""

    project: str
    plans: tuple[ViewPlan, ...]

    @property
    def views(self) -> tuple[View, ...]:
        """The feature views."""
        return tuple(plan.view for plan in self.plans)

    def plan(self, view_name: str) -> ViewPlan:
        """Return the plan of a view that is known to exist."""
        return next(plan for plan in self.plans if plan.view.name == view_name)

    def of_source(self, source: str) -> tuple[ViewPlan, ...]:
        """Return the plans of the views that a stream feeds."""
        return tuple(plan for plan in self.plans if plan.view.source == source)
