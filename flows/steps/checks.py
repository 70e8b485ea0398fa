"""What the validator looks at, and what must hold of it: pure.

`checks_of` turns a view's declaration into checks; `joined` and `lagging` make the frames that the checks are about. Of
an entity the frame compares one version in both stores: the key is (entity, event_timestamp, `_version`), since a
version never changes and only its becoming visible is a race (notes on validation, §2.6).
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from freshet.schemas.dtypes import Dtype
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.finding import Cause, Check, Frame
from freshet.schemas.units import Objective
from freshet.schemas.view import VERSION, Feature, StoredRow, View

RELATIVE_TOLERANCE = 1e-9
"""Both stores are given the same float; this leaves room for another reader's last digit, not for another value."""

Entity = tuple[Any, ...]


# --- what must hold ---------------------------------------------------------------------------------------------------


def checks_of(view: View, freshness_target: Objective) -> tuple[Check, ...]:
    """Return every check that a view's declaration implies; names are stable, `<view>[.<feature>].<property>`."""
    features = (check for feature in view.features for check in _feature_checks(view, feature))
    return (_schema_check(view), *_row_checks(view), *features, *_lag_checks(view, freshness_target))


def _schema_check(view: View) -> Check:
    return Check(
        f"{view.name}.offline_schema_is_declared",
        "the offline store has the declared columns and types",
        Frame.SCHEMA,
        "ExpectColumnPairValuesToBeEqual",
        {"column_A": "declared", "column_B": "found", "ignore_row_if": "neither"},
        Cause.SCHEMA_DRIFT,
    )


def _row_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.offline_entity_is_online",
        "an entity with offline rows has an online row",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "online_at"},
        Cause.MISSING_ENTITY,
        given="offline_at",
    )
    yield Check(
        f"{view.name}.online_is_not_older",
        "the online row is at least as new as the newest offline row",
        Frame.ROWS,
        "ExpectColumnPairValuesAToBeGreaterThanB",
        {
            "column_A": "online_at",
            "column_B": "offline_at",
            "or_equal": True,
            "ignore_row_if": "either_value_is_missing",
        },
        Cause.STALE_ONLINE,
    )
    yield Check(
        f"{view.name}.online_row_is_offline",
        "an online row that the flow has committed is in the offline store",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "offline_row", "value_set": ["absent"]},
        Cause.LOST_OFFLINE_WRITE,
    )
    yield Check(
        f"{view.name}.online_row_is_settled",
        "whether the online row is in the offline store is known",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "offline_row", "value_set": ["pending"]},
        None,
        "warning",
    )
    yield Check(
        f"{view.name}.offline_rows_are_single",
        "each version of a row stands once in the offline store",
        Frame.ROWS,
        "ExpectColumnValuesToBeBetween",
        {"column": "offline_copies", "max_value": 1},
        Cause.DUPLICATE_OFFLINE,
    )


def _feature_checks(view: View, feature: Feature) -> Iterator[Check]:
    name, online, offline = f"{view.name}.{feature.name}", f"on_{feature.name}", f"off_{feature.name}"
    tolerance = RELATIVE_TOLERANCE if feature.dtype.is_float else 0.0
    yield Check(
        f"{name}.online_equals_offline",
        "the online value equals the offline value of the same version",
        Frame.ROWS,
        "ExpectOnlineToEqualOffline",
        {"column_A": online, "column_B": offline, "relative_tolerance": tolerance},
        Cause.VALUE_MISMATCH,
        features=(feature.name,),
    )
    yield Check(
        f"{name}.online_is_not_null",
        "the online value is there if the offline value of the same version is",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": online},
        Cause.NULL_ONLINE,
        features=(feature.name,),
        given=offline,
    )
    yield Check(
        f"{name}.online_has_dtype",
        f"the online value is a {feature.dtype.name}",
        Frame.ROWS,
        "ExpectColumnValuesToBeInSet",
        {"column": f"type_{feature.name}", "value_set": list(_types(feature.dtype))},
        Cause.DTYPE,
        features=(feature.name,),
    )


def _lag_checks(view: View, freshness_target: Objective) -> Iterator[Check]:
    yield Check(
        f"{view.name}.lag_is_known",
        "the lag of every partition of the source is known",
        Frame.LAG,
        "ExpectColumnValuesToNotBeNull",
        {"column": "lag_seconds"},
        None,
        "warning",
    )
    yield Check(
        f"{view.name}.lag_is_within_target",
        f"no event waits longer than the freshness target, {freshness_target}",
        Frame.LAG,
        "ExpectColumnValuesToBeBetween",
        {"column": "lag_seconds", "max_value": freshness_target.bound.total_seconds()},
        Cause.BREACHED,
        features=tuple(feature.name for feature in view.features),
    )


# --- what is looked at ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Both stores at one time: a view's offline rows, read first, then the online row of each sampled entity."""

    offline: pa.Table
    online: Sequence[StoredRow | None]


def sample(view: View, offline: pa.Table, size: int, seed: int) -> list[Entity]:
    """Return up to `size` entities that have offline rows, the same ones for the same seed and table."""
    names = list(view.entity_names)
    found = offline.select(names).group_by(names, use_threads=False).aggregate([])
    chosen = random.Random(seed).sample(range(found.num_rows), min(size, found.num_rows))  # noqa: S311  # not a secret
    return [tuple(row[name] for name in names) for row in found.take(pa.array(chosen, pa.int64())).to_pylist()]


def joined(view: View, entities: Sequence[Entity], looks: Sequence[Look], *, committed: bool) -> pd.DataFrame:
    """Return one line for each entity: one version of its row, in both stores.

    `looks` are one look or two, the second after a grace; `committed` says that between them the flow has made durable
    everything that was online at the first. Columns:

    | column | meaning |
    | --- | --- |
    | `entity`, `event_timestamp`, `version` | the online row compared, null where there is none |
    | `online_at`, `offline_at` | the newest online row at the last look, the newest offline row at the first |
    | `offline_row` | `found`; `absent`: it should be there; `pending`: it may come yet; null without an online row |
    | `offline_copies` | how often one version of this entity stands offline, at most |
    | `on_<feature>`, `off_<feature>` | the values of a row that was found, as `comparable` makes them |
    | `type_<feature>` | the online value's own type |

    The online row of the last look is compared if it is offline already, else that of the first: on a busy entity
    the newest row never is, and a version stays what it was when newer ones have come.

    All columns hold Python objects: pandas would turn integers beside nulls into floats.
    """
    first, last = looks[0], looks[-1]
    begun, ended = (_History(view, look.offline, entities) for look in (first, last))
    rows, reached = ended.versions([row for look in looks for row in look.online if row])
    lines: list[dict[str, Any]] = []
    for entity, before, now in zip(entities, first.online, last.online, strict=True):
        newest = begun.newest.get(entity)
        if before is None and now is None and newest is None:
            continue  # it went away between sampling and reading, and was never offline
        row = next((row for row in (now, before) if row and _key(row) in rows), before or now)
        found = rows.get(_key(row)) if row else None
        line: dict[str, Any] = {
            "entity": " / ".join(map(str, entity)),
            "event_timestamp": row and _instant(row.event_timestamp),
            "version": row and row.version,
            "online_at": now and _place(now.event_timestamp, now.version),
            "offline_at": newest and _place(*newest),
            "offline_row": None,
            "offline_copies": ended.copies.get(entity, 0),
        }
        if row:
            superseded = reached.get((entity, row.event_timestamp), -1) > row.version
            lost = committed and row is before and not superseded
            line["offline_row"] = "found" if found else "absent" if lost else "pending"
        stored: Mapping[str, Any] = row.features if row else {}
        for feature in view.features:
            name, value = feature.name, stored.get(feature.name)
            line[f"on_{name}"] = comparable(value) if found else None
            line[f"off_{name}"] = comparable(found[name]) if found else None
            line[f"type_{name}"] = type_of(value)
        lines.append(line)
    return pd.DataFrame(lines, columns=_columns(view), dtype=object)


def schemas(view: View, offline: pa.Table) -> pd.DataFrame:
    """Return one line for each column that a view's offline rows have or should have: `column`, `declared`, `found`."""
    declared, found = ({field.name: field.type for field in s} for s in (view.row_schema, offline.schema))
    lines = []
    for name in {**declared, **found}:
        ours, theirs = declared.get(name), found.get(name)
        # Arrow does not compare the names of list elements, but it writes them, and parquet has its own.
        lines.append((name, str(ours), str(ours if ours == theirs else theirs)))
    return pd.DataFrame(lines, columns=["column", "declared", "found"], dtype=object)


def lagging(view: View, lag_seconds: Mapping[tuple[str, int], float | None]) -> pd.DataFrame:
    """Return one line for each partition of a view's sources: `stream`, `partition`, `lag_seconds`.

    The lag of (stream, partition) is how long the oldest event has waited that the flow has not committed: 0 when
    nothing waits, so an idle stream is fresh; None when it is not known. A stream of which nothing is known has one
    line without a partition.
    """
    lines: list[tuple[str, int | None, float | None]] = [
        (stream, partition, lag_seconds[stream, partition])
        for stream, partition in sorted(lag_seconds)
        if stream in view.sources
    ]
    known = {stream for stream, _, _ in lines}
    lines += [(stream, None, None) for stream in view.sources if stream not in known]
    return pd.DataFrame(lines, columns=["stream", "partition", "lag_seconds"], dtype=object)


def _columns(view: View) -> list[str]:
    own = ["entity", "event_timestamp", "version", "online_at", "offline_at", "offline_row", "offline_copies"]
    return own + [f"{prefix}_{feature.name}" for feature in view.features for prefix in ("on", "off", "type")]


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _place(at: datetime, version: int) -> str:
    """Write (event_timestamp, version) as text that sorts like it."""
    return f"{_instant(at)} version {version:019d}"


_Key = tuple[Entity, datetime, int]


def _key(row: StoredRow) -> _Key:
    return row.entity, row.event_timestamp, row.version


class _History:
    """The offline rows of some entities. A busy entity has very many, so they are grouped before Python sees them.

    `newest` is an entity's greatest (event_timestamp, version), `copies` how often one of its versions stands, at most.
    """

    def __init__(self, view: View, offline: pa.Table, entities: Sequence[Entity]) -> None:
        self._view, self._offline, names = view, offline, list(view.entity_names)
        keys = offline.select([*names, EVENT_TIME, VERSION])
        keys = keys.append_column("_row", pa.array(np.arange(offline.num_rows)))
        for place, column in enumerate(view.entity):
            values = pa.array([entity[place] for entity in entities], column.type)
            keys = keys.filter(pc.is_in(keys[column.name], values))
        keys = keys.group_by([*names, EVENT_TIME, VERSION]).aggregate([("_row", "min"), ("_row", "count")])
        self._keys = keys.sort_by([(EVENT_TIME, "ascending"), (VERSION, "ascending")])
        newest = self._keys.group_by(names, use_threads=False).aggregate(
            [(EVENT_TIME, "last"), (VERSION, "last"), ("_row_count", "max")]
        )
        self.newest: dict[Entity, tuple[datetime, int]] = {}
        self.copies: dict[Entity, int] = {}
        for row in newest.to_pylist():
            entity = tuple(row[name] for name in names)
            self.newest[entity] = (row[f"{EVENT_TIME}_last"], row[f"{VERSION}_last"])
            self.copies[entity] = row["_row_count_max"]

    def versions(
        self, seen: Sequence[StoredRow]
    ) -> tuple[dict[_Key, dict[str, Any]], dict[tuple[Entity, datetime], int]]:
        """Return the rows at the times of rows seen online, by key, and the greatest version at each time."""
        names = list(self._view.entity_names)
        lines = [{**dict(zip(names, row.entity, strict=True)), EVENT_TIME: row.event_timestamp} for row in seen]
        times = [*self._view.entity, self._view.row_schema.field(EVENT_TIME)]
        wanted = pa.Table.from_pylist(lines, pa.schema(times))
        near = self._keys.join(wanted, [*names, EVENT_TIME], join_type="left semi")
        rows: dict[_Key, dict[str, Any]] = {}
        reached: dict[tuple[Entity, datetime], int] = {}
        for row in self._offline.take(near["_row_min"]).to_pylist():
            entity, at, version = tuple(row[name] for name in names), row[EVENT_TIME], row[VERSION]
            rows[entity, at, version] = row
            reached[entity, at] = max(version, reached.get((entity, at), version))
        return rows, reached


# --- values -----------------------------------------------------------------------------------------------------------


def comparable(value: Any) -> Any:
    r"""Return what a value is compared as: NaN is null, instants are whole seconds, lists and bytes are text.

    >>> comparable(float("nan")), comparable([1, 2]), comparable(b"\x00a"), comparable("")
    (None, '[1, 2]', '0061', '')
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(microsecond=0).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):  # pandas can't hash a list, and Great Expectations has it hash every value
        return json.dumps([comparable(item) for item in value])
    return value


def type_of(value: Any) -> str | None:
    """Return the type that a stored value has by itself; None for null. The width of a number can't be told.

    >>> type_of(3), type_of(3.0), type_of(True), type_of(["a"]), type_of([]), type_of(None)
    ('int', 'float', 'bool', 'array(string)', 'array()', None)
    """
    if isinstance(value, list):
        return f"array({', '.join(sorted({type_of(item) or '' for item in value} - {''}))})"
    return None if value is None else _TYPES.get(type(value), type(value).__name__)


_TYPES = {str: "string", datetime: "unix_timestamp"}  # bool, bytes, float and int are called what Python calls them


def _types(dtype: Dtype) -> tuple[str, ...]:
    """Return what `type_of` may say of values of a declared type."""
    if dtype.element:
        return (f"array({_types(dtype.element)[0]})", "array()")
    return (dtype.name.rstrip("0123456789"),)
