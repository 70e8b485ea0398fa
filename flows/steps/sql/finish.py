"""From a view's outer expressions to its features, as both stores keep them."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

from collections.abc import Sequence

from freshet.flows.steps.sql.parse import quoted
from freshet.schemas.dtypes import Dtype
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.plan import IN_CALENDAR
from freshet.schemas.view import View


def finish_sql(view: View, outers: Sequence[str], table: str, rest: Sequence[str]) -> str:
    """Return the SQL of the features from their outer expressions over `table`.

    An expression that fails on a row is NULL there (TRY); so is a cast to the dtype that does not fit.
    """
    entity = [quoted(name) for name in view.entity_names]
    typed = [
        f"TRY(CAST({outer} AS {feature.dtype.duckdb})) AS _f{index}"
        for index, (feature, outer) in enumerate(zip(view.features, outers, strict=True))
    ]
    kept = [
        f"{_kept(f'_f{index}', feature.dtype)} AS {quoted(feature.name)}" for index, feature in enumerate(view.features)
    ]
    inner = f"SELECT {', '.join([*entity, EVENT_TIME, *typed, *rest])} FROM {table}"
    return f"SELECT {', '.join([*entity, EVENT_TIME, *kept, *rest])} FROM ({inner})"


def _kept(value: str, dtype: Dtype) -> str:
    """Return a value as both stores keep it: no NaN, and times as whole seconds of the years 1 to 9999."""
    if dtype.element is not None:
        kept = _kept("_x", dtype.element)
        return value if kept == "_x" else f"list_transform({value}, lambda _x: {kept})"
    if dtype.is_float:
        return f"CASE WHEN NOT isnan({value}) THEN {value} END"
    if dtype.name == "unix_timestamp":
        return f"CASE WHEN {value} {IN_CALENDAR} THEN date_trunc('second', {value}) END"
    return value
