"""Arrow values as numpy columns, and back."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.windows.segments import Column, Columns, Ints
from freshet.schemas.dtypes import INSTANT


def microseconds(column: pa.ChunkedArray) -> Ints:
    """Return instants, none of them NULL, as µs since the epoch."""
    if column.type != INSTANT:
        column = column.cast(INSTANT)
    return column.to_numpy().view(np.int64)  # type: ignore[no-any-return]  # pyarrow is untyped


def timestamps(instants: Ints) -> pa.Array:
    """Return µs since the epoch as instants."""
    return pa.array(instants, pa.int64()).view(INSTANT)


def present(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which values are not NULL."""
    return values.is_valid().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped


def integers(values: pa.Array) -> Ints:
    """Return whole numbers, booleans as 0 and 1, NULL as 0."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if values.null_count:
        values = pc.fill_null(values, 0)
    return values.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]  # as above


def doubles(values: pa.Array) -> npt.NDArray[np.float64]:
    """Return numbers as doubles, NULL as 0."""
    values = values.cast(pa.float64())
    if values.null_count:
        values = pc.fill_null(values, 0.0)
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # as above


class ValueColumn:
    """One column of values of any type: their bits and a flag for NULL, or Python values where the width varies."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.name, self.kind, self._null = name, kind, f"{name}.null"
        self._plain = _storage(kind)

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """The columns to keep in the segments."""
        if self._plain is None:
            return {self.name: np.dtype(object)}
        return {self.name: np.dtype(self._plain.to_pandas_dtype()), self._null: np.dtype(np.bool_)}

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Return the columns of a batch."""
        if self._plain is None:
            kept = np.empty(len(values), object)
            kept[:] = values.to_pylist()
            return {self.name: kept}
        zero = False if pa.types.is_boolean(self._plain) else pa.scalar(0).cast(self._plain)
        plain = values.cast(self._plain).fill_null(zero).to_numpy(zero_copy_only=False)
        return {self.name: plain, self._null: values.is_null().to_numpy(zero_copy_only=False)}

    def lower(self, columns: Columns, positions: Ints) -> pa.Array:
        """Return the values at positions; NULL at -1."""
        nowhere = positions < 0
        values = columns[self.name][positions]
        if self._plain is None:
            return pa.array(values, self.kind, mask=nowhere)
        missing = columns[self._null][positions].astype(np.bool_) | nowhere
        return pa.array(values, self._plain, mask=missing).cast(self.kind)


def _storage(kind: pa.DataType) -> pa.DataType | None:
    """Return the plain type whose bits a column of fixed width is kept as."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pa.int64() if kind.bit_width == 64 else pa.int32()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return kind
    return None
