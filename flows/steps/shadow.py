"""How a view's rows differ between two declarations, feature by feature: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshet.schemas.event import EVENT_TIME

EXAMPLES_MAX = 3
_OLD, _NEW = "_old", "_new"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Example:
    """One row whose value differs."""

    entity: Mapping[str, Any]
    at: datetime
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Differing:
    """How a feature's values differ in the rows that both declarations have; `was` is its name before.

    The differences are of numbers, without their signs, in the rows where they differ; None where there are none.
    `nulls_count` is in how many rows a value became NULL.
    """

    feature: str
    was: str
    rows_count: int
    differing_count: int
    median: float | None
    largest: float | None
    nulls_count: int
    examples: tuple[Example, ...]

    @property
    def share(self) -> float:
        """The share of rows that differ."""
        return self.differing_count / self.rows_count if self.rows_count else 0.0


@dataclass(frozen=True, slots=True)
class Differences:
    """How the rows of a view differ: which have the instants of both, and of one alone, and their features."""

    rows_count: int
    gone_count: int
    come_count: int
    features: tuple[Differing, ...]


def differences(entity: Sequence[str], old: pa.Table, new: pa.Table, names: Mapping[str, str]) -> Differences:
    """Compare final rows of a view; `names` has the features to compare, by their names in `new` those in `old`.

    Values are the same if they are equal to the last bit, or both NULL; of different types, if they are so as floats,
    or as text.
    """
    keys = [*entity, EVENT_TIME]
    numbered = [
        rows.select(keys).append_column(name, pa.array(np.arange(rows.num_rows)))
        for rows, name in ((old, _OLD), (new, _NEW))
    ]
    both = numbered[1].join(numbered[0], keys, join_type="inner").sort_by([(key, "ascending") for key in keys])
    before, after = old.take(both.column(_OLD)), new.take(both.column(_NEW))
    found = tuple(
        _differing(name, was, before.column(was), after.column(name), both.select(keys)) for name, was in names.items()
    )
    return Differences(both.num_rows, old.num_rows - both.num_rows, new.num_rows - both.num_rows, found)


def _differing(feature: str, was: str, before: pa.ChunkedArray, after: pa.ChunkedArray, keys: pa.Table) -> Differing:
    old, new = _alike(before.combine_chunks(), after.combine_chunks())
    mask = _unequal(old, new)
    count = int(mask.sum())
    shown, median, largest = np.flatnonzero(mask), None, None
    if _is_number(old.type) and count:
        far = np.abs(_numbers(new)[mask] - _numbers(old)[mask])
        known = far[~np.isnan(far)]
        if len(known):
            median, largest = float(np.median(known)), float(np.max(known))
        shown = shown[np.argsort(-np.nan_to_num(far, nan=-1.0, posinf=np.inf), kind="stable")]
    return Differing(
        feature,
        was,
        keys.num_rows,
        count,
        median,
        largest,
        int(np.sum(_valid(old) & ~_valid(new))),
        tuple(_example(keys, before, after, int(index)) for index in shown[:EXAMPLES_MAX]),
    )


def _example(keys: pa.Table, before: pa.ChunkedArray, after: pa.ChunkedArray, index: int) -> Example:
    key = keys.slice(index, 1).to_pylist()[0]
    return Example(key, key.pop(EVENT_TIME), before[index].as_py(), after[index].as_py())


def _alike(old: pa.Array, new: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Bring values to one type."""
    if old.type == new.type:
        return old, new
    if _is_number(old.type) and _is_number(new.type):
        return old.cast(pa.float64(), safe=False), new.cast(pa.float64(), safe=False)
    texts = ([None if value is None else str(value) for value in values.to_pylist()] for values in (old, new))
    before, after = (pa.array(text, pa.string()) for text in texts)
    return before, after


def _unequal(old: pa.Array, new: pa.Array) -> Mask:
    if pa.types.is_nested(old.type):
        pairs = zip(old.to_pylist(), new.to_pylist(), strict=True)
        return np.array([before != after for before, after in pairs], np.bool_)
    values: Mask = np.asarray(pc.fill_null(pc.not_equal(old, new), fill_value=False), np.bool_)
    unequal: Mask = values | (_valid(old) ^ _valid(new))
    return unequal


def _valid(values: pa.Array) -> Mask:
    return np.asarray(values.is_valid(), np.bool_)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _numbers(values: pa.Array) -> npt.NDArray[np.float64]:
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
