"""The parts that aggregates are made of: what of an event's input is kept, how neighbours merge, how frames fold.

Each is a monoid over the inputs of one argument: `lift` makes an event's element, `merge` combines neighbours into a
pane, a fold combines those of a frame. Aggregates that need the same part of the same argument share it, whatever their
frames. A NULL input is the identity everywhere.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.windows import digits
from freshet.flows.steps.windows.columns import ValueColumn, doubles, integers, present
from freshet.flows.steps.windows.folds import PaneFold, Spans, SumFold
from freshet.flows.steps.windows.segments import Changed, Column, Columns, Ints, Segments, ranges, run_begins

Bools: TypeAlias = npt.NDArray[np.bool_]
Dtypes: TypeAlias = Mapping[str, np.dtype[np.generic]]

_GATHERED_MAX = 1 << 22


class Part(Protocol):
    """One kept part of one argument: made from the argument's name and type."""

    def __init__(self, name: str, kind: pa.DataType) -> None: ...

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Return the columns to keep of a batch's inputs; may add columns that earlier events have zeros in."""

    def columns(self) -> Dtypes:
        """Return the columns this part keeps in the segments as they are."""

    def sums(self) -> Collection[str]:
        """Return those of whole numbers of which the segments keep the running sums."""

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring folds up to date after an insert."""

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Return the columns of panes, each of the elements from one of `firsts` to the next."""


class _Summed:
    """A part that is some sums of whole numbers: nothing has to be brought up to date, or merged."""

    def folds(self) -> Collection[SumFold]:
        """Return the sums."""
        raise NotImplementedError

    def columns(self) -> Dtypes:
        """Nothing else is kept."""
        return {}

    def sums(self) -> Collection[str]:
        """The numbers."""
        return [fold.column for fold in self.folds()]

    def update(self, segments: Segments, changed: Changed) -> None:
        """Segments keep the sums."""

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Segments merge the sums."""
        del columns, firsts
        return {}


class _Sumless:
    """A part that needs no sums."""

    def sums(self) -> Collection[str]:
        """There are none."""
        return ()


class _Paned(_Sumless):
    """A part that is one fold over panes."""

    panes: PaneFold
    dtype: npt.DTypeLike

    def columns(self) -> Dtypes:
        """What is folded."""
        return self.panes.columns(self.dtype)

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring the panes up to date."""
        self.panes.update(segments, changed)

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Combine."""
        return {self.panes.column: self.panes.combine.reduceat(columns[self.panes.column], firsts)}


class _Unfolded(_Sumless):
    """A part that is kept as it comes: there is nothing to bring up to date."""

    def update(self, segments: Segments, changed: Changed) -> None:
        """There is no fold."""


class Present(_Summed):
    """How many inputs are not NULL."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        del kind
        self._fold = SumFold(f"{name}.present")

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep 1 or 0."""
        return {self._fold.column: present(values).astype(np.int64)}

    def folds(self) -> Collection[SumFold]:
        """Return the count."""
        return (self._fold,)

    def counts(self, spans: Spans) -> Ints:
        """Return the number in each frame."""
        return self._fold.fold(spans)


class Digits(_Summed):
    """The sum of the inputs, exactly, or of their squares."""

    squares: ClassVar[bool] = False

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.kind = kind
        self._prefix = f"{name}.{'square' if self.squares else 'digit'}."
        self._folds: dict[int, SumFold] = {}

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the digits of each input; of doubles those that are finite."""
        if pa.types.is_floating(self.kind):
            numbers = doubles(values)
            found = digits.of_doubles(np.where(np.isfinite(numbers), numbers, 0.0))
        elif pa.types.is_decimal(self.kind) or pa.types.is_uint64(self.kind):
            found = digits.of_decimals(values)
        else:
            found = digits.of_integers(integers(values))
        if self.squares:
            found = digits.squared(found)
        for place in found:
            self._fold(place)
        nothing = np.zeros(len(values), np.int64)
        return {fold.column: found.get(place, nothing) for place, fold in self._folds.items()}

    def _fold(self, place: int) -> SumFold:
        return self._folds.setdefault(place, SumFold(f"{self._prefix}{place}"))

    def folds(self) -> Collection[SumFold]:
        """Return the digits seen so far."""
        return self._folds.values()

    @property
    def usual_bytes(self) -> int:
        """How many bytes an input takes if all are of like size: doubles span three digits, whole numbers one."""
        places = 3 if pa.types.is_floating(self.kind) else 1
        return 8 * (2 * places if self.squares else places)

    def restore(self, names: Mapping[str, Column]) -> None:
        """Know the digits again that saved columns have."""
        for name in names:
            if name.startswith(self._prefix):
                self._fold(int(name.removeprefix(self._prefix)))

    def digits(self, spans: Spans) -> dict[int, Ints]:
        """Return the digits of the sum of each frame."""
        return {place: fold.fold(spans) for place, fold in self._folds.items()}


class Squares(Digits):
    """The sum of the squares of the inputs, exactly."""

    squares = True


class Specials(_Summed):
    """How many inputs are NaN, +inf, -inf; of types that have none, nothing."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self._kept = bool(pa.types.is_floating(kind))
        self._nan, self._positive, self._negative = (
            SumFold(f"{name}.{special}") for special in ("nan", "positive", "negative")
        )

    def folds(self) -> Collection[SumFold]:
        """Return the counts."""
        return (self._nan, self._positive, self._negative) if self._kept else ()

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep a flag for each."""
        if not self._kept:
            return {}
        numbers = doubles(values)
        flags = (np.isnan(numbers), numbers == np.inf, numbers == -np.inf)
        return {fold.column: flag.astype(np.int64) for fold, flag in zip(self.folds(), flags, strict=True)}

    def applied(self, sums: npt.NDArray[np.float64], spans: Spans) -> npt.NDArray[np.float64]:
        """Return sums of finite doubles as they are with those that are not."""
        if not self._kept:
            return sums
        nan, positive, negative = (fold.fold(spans) > 0 for fold in self.folds())
        sums = np.where(positive, np.inf, np.where(negative, -np.inf, sums))
        return np.where(nan | (positive & negative), np.nan, sums)


class Extreme(_Paned):
    """The least or greatest input. Types of fixed width are compared as 64-bit keys that sort alike, else as values."""

    greatest: ClassVar[bool]

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.keys = Keys(kind)
        self.dtype = self.keys.dtype
        bounds = np.iinfo(np.int64)
        self._bound = np.int64(bounds.min if self.greatest else bounds.max)
        identity = self._bound if self.keys.fixed else None
        combine = self.keys.greatest if self.greatest else self.keys.least
        self.panes = PaneFold(f"{name}.{'greatest' if self.greatest else 'least'}", combine, identity)

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the key of each input; the identity stands for NULL."""
        keys = self.keys.of(values)
        if self.keys.fixed:
            keys = np.where(present(values), keys, self._bound)
        return {self.panes.column: keys}

    def fold(self, spans: Spans) -> Column:
        """Return the key of each frame's extreme; the identity where all are NULL."""
        return self.panes.fold(spans)


class Least(Extreme):
    """The least input."""

    greatest = False


class Greatest(Extreme):
    """The greatest input."""

    greatest = True


class _End:
    """The first or last input that is not NULL; inputs are structs of the value `v`, which may be NULL itself."""

    is_last: ClassVar[bool]

    def __init__(self, name: str, kind: pa.DataType) -> None:
        name = f"{name}.{'last' if self.is_last else 'first'}"
        self._present = SumFold(f"{name}.present")
        self._value = ValueColumn(f"{name}.value", kind.field("v").type)

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the value, and whether there is one."""
        there = present(values).astype(np.int64)
        return {self._present.column: there, **self._value.lift(pc.struct_field(values, "v"))}

    def columns(self) -> Dtypes:
        """Values."""
        return self._value.columns()

    def sums(self) -> Collection[str]:
        """Counts of those that are there."""
        return (self._present.column,)

    def update(self, segments: Segments, changed: Changed) -> None:
        """Segments keep the counts."""

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Take the value at the end of each pane."""
        there = columns[self._present.column] != 0
        at = np.arange(len(there))
        if self.is_last:
            chosen = np.maximum(np.maximum.reduceat(np.where(there, at, -1), firsts), 0)
        else:
            chosen = np.minimum(np.minimum.reduceat(np.where(there, at, len(at)), firsts), len(at) - 1)
        return {name: columns[name][chosen] for name in self._value.columns()}

    def values(self, spans: Spans) -> pa.Array:
        """Return the value at the end of each frame."""
        at = self._present.last(spans) if self.is_last else self._present.first(spans)
        return self._value.lower(spans.segments.columns, at)


class First(_End):
    """The first input that is not NULL."""

    is_last = False


class Last(_End):
    """The last input that is not NULL."""

    is_last = True


@dataclass(frozen=True, slots=True)
class Gathered:
    """The inputs of some frames that are not NULL: where each stands, and the index of its frame, both in order."""

    positions: Ints
    frames: Ints
    frames_count: int


def gathered(spans: Spans, column: str) -> Iterator[Gathered]:
    """Gather the inputs of all frames, a bounded number at a time; `column` is true where an input is not NULL."""
    lengths = np.sum([high - low for low, high in spans.runs], axis=0)
    chunks = np.cumsum(lengths) // _GATHERED_MAX
    for chunk in np.unique(chunks):
        some = np.flatnonzero(chunks == chunk)
        positions, frames = [], []
        for low, high in spans.runs:
            counts = np.maximum(high[some] - low[some], 0)
            positions.append(ranges(low[some], counts))
            frames.append(np.repeat(np.arange(len(some)), counts))
        at, owners = np.concatenate(positions), np.concatenate(frames)
        there = spans.segments.columns[column][at].astype(np.bool_)
        at, owners = at[there], owners[there]
        order = np.lexsort((at, owners)) if len(spans.runs) > 1 else slice(None)
        yield Gathered(at[order], owners[order], len(some))


class Values(_Unfolded):
    """The inputs themselves, for aggregates of a frame's whole distribution. Panes cannot be told apart again."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.keys = Keys(kind)
        self.column, self._present = f"{name}.key", f"{name}.kept"

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the key of each."""
        return {self.column: self.keys.of(values), self._present: present(values)}

    def columns(self) -> Dtypes:
        """Keys, and whether each is there."""
        return {self.column: np.dtype(self.keys.dtype), self._present: np.dtype(np.bool_)}

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Keep any: no frame of these aggregates holds a pane of several events."""
        return {name: columns[name][firsts] for name in self.columns()}

    def sorted(self, spans: Spans) -> Iterator[tuple[Column, Ints]]:
        """Give the keys of some frames, sorted in each, and the bounds between frames."""
        for some in gathered(spans, self._present):
            keys = spans.segments.columns[self.column][some.positions]
            codes = keys if self.keys.fixed else np.unique(keys, return_inverse=True)[1]
            order = np.lexsort((codes, some.frames))
            yield keys[order], np.searchsorted(some.frames, np.arange(some.frames_count + 1))


class Listed(_Unfolded):
    """The inputs in order, structs of the value `v`."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self._value, self._present = ValueColumn(f"{name}.listed", kind.field("v").type), f"{name}.is_listed"

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep each value."""
        return {**self._value.lift(pc.struct_field(values, "v")), self._present: present(values)}

    def columns(self) -> Dtypes:
        """Values, and whether each is there."""
        return {**self._value.columns(), self._present: np.dtype(np.bool_)}

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Keep any, as `Values` do."""
        return {name: columns[name][firsts] for name in self.columns()}

    def lists(self, spans: Spans) -> pa.Array:
        """Return each frame's values; NULL if it has none."""
        parts = []
        for some in gathered(spans, self._present):
            bounds = np.searchsorted(some.frames, np.arange(some.frames_count + 1))
            values = self._value.lower(spans.segments.columns, some.positions)
            empty = pa.array(np.append(bounds[1:] == bounds[:-1], False))  # numpy takes values
            parts.append(pa.ListArray.from_arrays(pc.if_else(empty, None, pa.array(bounds, pa.int32())), values))
        return pa.concat_arrays(parts)


class _ArgExtreme(_Unfolded):
    """The value `v` of the input whose `k` is the least or greatest; of several such, the first."""

    greatest: ClassVar[bool]

    def __init__(self, name: str, kind: pa.DataType) -> None:
        name = f"{name}.{'greatest' if self.greatest else 'least'}"
        self.keys = Keys(kind.field("k").type)
        self._best = self.keys.greatest if self.greatest else self.keys.least
        self._value = ValueColumn(f"{name}.value", kind.field("v").type)
        self._key, self._present = f"{name}.key", f"{name}.present"

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep key and value."""
        value, key = (pc.struct_field(values, name) for name in "vk")
        return {**self._value.lift(value), self._key: self.keys.of(key), self._present: present(values)}

    def columns(self) -> Dtypes:
        """Keys, values, and whether each is there."""
        return {
            **self._value.columns(),
            self._key: np.dtype(self.keys.dtype),
            self._present: np.dtype(np.bool_),
        }

    def merge(self, columns: Columns, firsts: Ints) -> Mapping[str, Column]:
        """Take the best of each pane."""
        there = np.flatnonzero(columns[self._present])
        owners = np.searchsorted(firsts, there, "right") - 1
        chosen = firsts.copy()
        if len(there):
            begins = np.flatnonzero(run_begins(owners))
            chosen[owners[begins]] = there[self._first_best(columns[self._key][there], begins)]
        return {name: columns[name][chosen] for name in self.columns()}

    def _first_best(self, keys: Column, begins: Ints) -> Ints:
        """Return the index of the first of the best keys of each stretch that begins at `begins`."""
        best = self._best.reduceat(keys, begins)
        lengths = np.diff(np.append(begins, len(keys)))
        at = np.where(keys == np.repeat(best, lengths), np.arange(len(keys)), len(keys))
        return np.minimum.reduceat(at, begins)

    def values(self, spans: Spans) -> pa.Array:
        """Return the value of each frame."""
        columns, parts = spans.segments.columns, []
        for some in gathered(spans, self._present):
            at = np.full(some.frames_count, -1)
            if len(some.frames):
                begins = np.flatnonzero(run_begins(some.frames))
                best = self._first_best(columns[self._key][some.positions], begins)
                at[some.frames[begins]] = some.positions[best]
            parts.append(self._value.lower(columns, at))
        return pa.concat_arrays(parts)


class ArgLeast(_ArgExtreme):
    """The value of the input whose key is the least."""

    greatest = False


class ArgGreatest(_ArgExtreme):
    """The value of the input whose key is the greatest."""

    greatest = True


class Sketched(_Paned):
    """A sketch of the inputs: made of one value by `of`, combined by `combine`; None for no value."""

    dtype = np.object_

    def __init__(
        self,
        name: str,
        of: Callable[[Column], list[object]],
        combine: Callable[[object, object], object],
    ) -> None:
        def either(left: object, right: object) -> object:
            if left is None or right is None:
                return left if right is None else right
            return combine(left, right)

        self._of = of
        self.panes = PaneFold(name, np.frompyfunc(either, 2, 1), None)

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep a sketch of each input."""
        kept = np.full(len(values), None, object)
        there = np.flatnonzero(present(values))
        for index, made in zip(there, self._of(pc.drop_null(values).to_numpy(zero_copy_only=False)), strict=True):
            kept[index] = made
        return {self.panes.column: kept}

    def fold(self, spans: Spans) -> list[object]:
        """Return the sketch of each frame."""
        return self.panes.fold(spans).tolist()  # type: ignore[no-any-return]  # objects


class Keys:
    """How values of a type become keys that sort as SQL sorts the values: 64-bit integers, or the values themselves.

    DuckDB sorts NaN above +inf, and -0.0 equal to 0.0.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        floating, temporal = pa.types.is_floating(kind), pa.types.is_temporal(kind) and not pa.types.is_interval(kind)
        whole = (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)) or pa.types.is_boolean(kind)
        self.fixed = bool(floating or temporal or whole)
        self.dtype: npt.DTypeLike = np.int64 if self.fixed else object
        self.greatest: np.ufunc = np.maximum if self.fixed else _GREATEST
        self.least: np.ufunc = np.minimum if self.fixed else _LEAST

    def of(self, values: pa.Array) -> Column:
        """Return the keys; anything where a value is NULL."""
        kind = self._kind
        if not self.fixed:
            kept = np.empty(len(values), object)
            kept[:] = values.to_pylist()
            return kept
        if pa.types.is_floating(kind):
            numbers = doubles(values)
            numbers = np.where(np.isnan(numbers), np.nan, numbers + 0.0)  # one NaN, above +inf; one zero
            bits = numbers.view(np.int64)
            return np.where(bits < 0, ~(bits & np.iinfo(np.int64).max), bits)
        if pa.types.is_temporal(kind):
            values = values.cast(pa.int64() if kind.bit_width == 64 else pa.int32())
        return integers(values)

    def doubles(self, keys: Ints) -> npt.NDArray[np.float64]:
        """Return the doubles of keys."""
        return np.where(keys < 0, ~keys | np.iinfo(np.int64).min, keys).view(np.float64)

    def values(self, keys: Column, empty: Bools) -> pa.Array:
        """Return the values of keys; NULL where empty."""
        kind = self._kind
        if not self.fixed:
            return pa.array(keys, kind, mask=empty)
        whole: Ints = np.where(empty, 0, keys)
        if pa.types.is_floating(kind):
            return pa.array(self.doubles(whole), pa.float64(), mask=empty).cast(kind)
        if pa.types.is_boolean(kind):
            return pa.array(whole.astype(np.bool_), mask=empty)
        width = pa.int64() if pa.types.is_integer(kind) or kind.bit_width == 64 else pa.int32()
        return pa.array(whole.astype(width.to_pandas_dtype()), width, mask=empty).cast(kind)


def _greater(left: object, right: object) -> object:
    return right if left is None or (right is not None and right > left) else left  # type: ignore[operator]  # one type


def _lesser(left: object, right: object) -> object:
    return right if left is None or (right is not None and right < left) else left  # type: ignore[operator]  # one type


_GREATEST = np.frompyfunc(_greater, 2, 1)
_LEAST = np.frompyfunc(_lesser, 2, 1)
