"""The aggregates: what each lifts from an event, how it folds, and how it lowers the fold to a SQL value.

All follow SQL: NULLs are skipped, and nothing to aggregate gives NULL (0 for count). A sum never subtracts floats. It
is kept as digits to the base 2**32 (a Kulisch accumulator, with the digits that a column really uses), so it is exact,
and the same for every order of the same events: 1e16 + 1 - 1e16 is 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.windows.folds import PaneFold, PrefixFold
from freshet.flows.steps.windows.segments import Changed, Column, Ints, Segments

Bools = npt.NDArray[np.bool_]

_DIGIT_BITS = 32
_HALF, _BASE = 1 << (_DIGIT_BITS - 1), 1 << _DIGIT_BITS
_FLOAT_UNIT = -1074
"""The last bit of the smallest double is 2**-1074: the unit that all doubles are whole multiples of."""


class AggregateState(Protocol):
    """One aggregate over one input column, for all windows that ask for it."""

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Return the columns to keep of a batch's inputs; may add columns that earlier events have zeros in."""

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """Return all columns this aggregate keeps in the segments."""

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring folds up to date after an insert."""

    def rebuild(self, segments: Segments) -> None:
        """Bring folds up to date after the segments moved."""

    def fold(self, segments: Segments, low: Ints, high: Ints) -> pa.Array:
        """Return the SQL value over each range [low, high)."""


class CountAll:
    """count(*): the length of the range; nothing is kept."""

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep nothing."""
        del values
        return {}

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """Keep nothing."""
        return {}

    def update(self, segments: Segments, changed: Changed) -> None:
        """Do nothing."""

    def rebuild(self, segments: Segments) -> None:
        """Do nothing."""

    def fold(self, segments: Segments, low: Ints, high: Ints) -> pa.Array:
        """Return how many events each range holds."""
        del segments
        return pa.array(high - low, pa.int64())


@dataclass
class Count:
    """count(x): how many inputs are not NULL."""

    name: str

    def __post_init__(self) -> None:
        self._present = PrefixFold(f"{self.name}.present")

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep whether each input is there."""
        return {self._present.column: _present(values)}

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """One flag and its prefix."""
        return self._present.columns(np.bool_)

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring the prefix up to date."""
        self._present.update(segments, changed)

    def rebuild(self, segments: Segments) -> None:
        """Prefixes move with their segments."""

    def fold(self, segments: Segments, low: Ints, high: Ints) -> pa.Array:
        """Return the number of inputs that are there."""
        return pa.array(self.counts(segments, low, high), pa.int64())

    def counts(self, segments: Segments, low: Ints, high: Ints) -> Ints:
        """Return the same as plain integers."""
        return self._present.fold(segments, low, high)


@dataclass
class Sum:
    """sum(x), and avg(x) = sum(x) / count(x), of integers, decimals and doubles; exact until lowered.

    A sum of integers lowers to int64 where every sum of the batch fits, else to decimal128(38, 0); a sum of decimals to
    decimal128(38, scale). One that does not fit 38 digits is NULL.
    """

    name: str
    input_type: pa.DataType
    average: bool = False
    _digits: dict[int, PrefixFold] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._count = Count(self.name)
        self._nan = PrefixFold(f"{self.name}.nan")
        self._infinite = PrefixFold(f"{self.name}.infinite")
        self._positive = PrefixFold(f"{self.name}.positive")

    @property
    def _is_float(self) -> bool:
        return bool(pa.types.is_floating(self.input_type))

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the digits of each input, and of doubles whether it is NaN, infinite, positive infinity."""
        kept: dict[str, Column] = {**self._count.lift(values)}
        if self._is_float:
            numbers = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
            finite = np.isfinite(numbers)
            nan = np.isnan(numbers)
            kept[self._nan.column] = nan
            kept[self._infinite.column] = ~finite & ~nan
            kept[self._positive.column] = numbers == np.inf
            digits = _digits_of_doubles(np.where(finite, numbers, 0.0))
        elif pa.types.is_decimal(self.input_type) or pa.types.is_uint64(self.input_type):
            digits = _digits_of_decimals(values)
        else:
            digits = _digits_of_integers(_integers(values))
        for index in digits:
            self._digits.setdefault(index, PrefixFold(f"{self.name}.digit{index}"))
        zeros = np.zeros(len(values), np.int64)
        for index, fold in self._digits.items():
            kept[fold.column] = digits.get(index, zeros)
        return kept

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """Digits seen so far, whether an input is there, and the special doubles."""
        kept = {**self._count.columns()}
        for fold in self._digits.values():
            kept |= fold.columns(np.int64)
        if self._is_float:
            for fold in (self._nan, self._infinite, self._positive):
                kept |= fold.columns(np.bool_)
        return kept

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring all prefixes up to date."""
        self._count.update(segments, changed)
        for fold in self._digits.values():
            fold.update(segments, changed)
        if self._is_float:
            for fold in (self._nan, self._infinite, self._positive):
                fold.update(segments, changed)

    def rebuild(self, segments: Segments) -> None:
        """Prefixes move with their segments."""

    def fold(self, segments: Segments, low: Ints, high: Ints) -> pa.Array:
        """Return sums, or averages, as SQL has them."""
        counts = self._count.counts(segments, low, high)
        digits = {index: fold.fold(segments, low, high) for index, fold in self._digits.items()}
        empty = counts == 0
        if self._is_float:
            sums = _double(digits, len(low), _FLOAT_UNIT)
            nan = self._nan.fold(segments, low, high) > 0
            positive = self._positive.fold(segments, low, high)
            negative = self._infinite.fold(segments, low, high) - positive
            sums = np.where(positive > 0, np.inf, np.where(negative > 0, -np.inf, sums))
            sums = np.where(nan | ((positive > 0) & (negative > 0)), np.nan, sums)
        elif self.average:
            sums = _double(digits, len(low), 0)
            if pa.types.is_decimal(self.input_type):
                sums /= 10.0**self.input_type.scale
        else:
            return _exact(digits, empty, self.input_type)
        if self.average:
            sums = np.divide(sums, counts, out=np.zeros(len(low)), where=~empty)
        return pa.array(sums, pa.float64(), mask=empty)


@dataclass
class Extreme:
    """min(x) or max(x). Types of fixed width are compared as 64-bit keys that sort alike; others as Python values."""

    name: str
    input_type: pa.DataType
    greatest: bool

    def __post_init__(self) -> None:
        self._count = Count(self.name)
        self._keyed = _keys_of(self.input_type) is not None
        if self._keyed:
            bounds = np.iinfo(np.int64)
            ufunc, self._bound = (np.maximum, bounds.min) if self.greatest else (np.minimum, bounds.max)
            self._panes = PaneFold(f"{self.name}.key", ufunc, self._bound)
        else:
            self._panes = PaneFold(f"{self.name}.value", _GREATEST if self.greatest else _LEAST, None)

    def lift(self, values: pa.Array) -> Mapping[str, Column]:
        """Keep the key of each input; the identity stands for NULL."""
        column: Column
        present = _present(values)
        if self._keyed:
            to_keys = _keys_of(self.input_type)
            assert to_keys is not None
            column = np.where(present, to_keys(values), np.int64(self._bound))
        else:
            column = np.empty(len(values), object)
            column[:] = values.to_pylist()
        return {**self._count.lift(values), self._panes.column: column}

    def columns(self) -> Mapping[str, np.dtype[np.generic]]:
        """The keys, and whether an input is there."""
        return {**self._count.columns(), **self._panes.columns(np.int64 if self._keyed else object)}

    def update(self, segments: Segments, changed: Changed) -> None:
        """Bring prefixes and panes up to date."""
        self._count.update(segments, changed)
        self._panes.update(segments, changed)

    def rebuild(self, segments: Segments) -> None:
        """Fold all panes anew."""
        self._panes.rebuild(segments)

    def fold(self, segments: Segments, low: Ints, high: Ints) -> pa.Array:
        """Return the least or greatest input of each range."""
        folded = self._panes.fold(segments, low, high)
        if not self._keyed:
            return pa.array(folded, self.input_type)
        empty = self._count.counts(segments, low, high) == 0
        return _values_of_keys(np.where(empty, 0, folded), self.input_type, empty)


AGGREGATES: Mapping[str, Callable[[str, pa.DataType], AggregateState]] = {
    "count": lambda name, _: Count(name),
    "sum": Sum,
    "avg": lambda name, input_type: Sum(name, input_type, average=True),
    "min": lambda name, input_type: Extreme(name, input_type, greatest=False),
    "max": lambda name, input_type: Extreme(name, input_type, greatest=True),
}
"""How to make the state of an aggregate: from the name of its columns and the type of its input."""


def _present(values: pa.Array) -> Bools:
    return values.is_valid().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped


def _integers(values: pa.Array) -> Ints:
    """Return whole numbers, booleans as 0 and 1, NULL as 0."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    return pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]  # as above


def _balanced(values: Ints) -> tuple[Ints, Ints]:
    """Split into a digit in [-2**31, 2**31) and what is carried to the next.

    >>> [part.tolist() for part in _balanced(np.array([5, -1, 2**31, 2**40 + 3]))]
    [[5, -1, -2147483648, 3], [0, 0, 1, 256]]
    """
    carried: Ints = (values + _HALF) >> _DIGIT_BITS
    return values - (carried << _DIGIT_BITS), carried


def _digits_of_integers(values: Ints) -> dict[int, Ints]:
    """Return the digits that are not all zero; unlike `_balanced`, right up to the ends of int64."""
    low = ((values & (_BASE - 1)) ^ _HALF) - _HALF
    high = (values >> _DIGIT_BITS) + (low < 0)
    return {index: digit for index, digit in enumerate((low, high)) if digit.any()}


def _digits_of_decimals(values: pa.Array) -> dict[int, Ints]:
    """Return the digits of decimals as whole numbers of their last place, from their 128 bits (Arrow's format)."""
    scale = values.type.scale if pa.types.is_decimal(values.type) else 0
    wide = pc.fill_null(values.cast(pa.decimal128(38, scale)), Decimal(0))
    wide = wide.combine_chunks() if isinstance(wide, pa.ChunkedArray) else wide
    words = np.frombuffer(wide.buffers()[1], np.int64)[2 * wide.offset : 2 * (wide.offset + len(wide))].reshape(-1, 2)
    carried = np.zeros(len(wide), np.int64)
    found: dict[int, Ints] = {}
    for index in range(4):
        word = words[:, index // 2]
        raw = (word >> _DIGIT_BITS) if index % 2 else (word & (_BASE - 1))
        if index < 3:
            raw = raw & (_BASE - 1)
        digit, carried = (raw + carried, carried) if index == 3 else _balanced(raw + carried)
        if digit.any():
            found[index] = digit
    return found


def _digits_of_doubles(values: npt.NDArray[np.float64]) -> dict[int, Ints]:
    """Return the digits of finite doubles as whole multiples of 2**-1074."""
    fraction, exponent = np.frexp(values)
    mantissa = (fraction * 2.0**53).astype(np.int64)
    place = exponent.astype(np.int64) - 53 - _FLOAT_UNIT
    below = np.minimum(place, 0)
    mantissa, place = mantissa >> -below, place - below  # a subnormal's last bits are zeros
    index, shift = place // _DIGIT_BITS, place % _DIGIT_BITS
    low, high = _balanced(mantissa)
    first, carried_first = _balanced(low << shift)
    second, carried_second = _balanced((high << shift) + carried_first)
    found: dict[int, Ints] = {}
    for base in np.unique(index[values != 0]):
        mine = (index == base) & (values != 0)
        for step, digit in enumerate((first, second, carried_second)):
            column = found.setdefault(int(base) + step, np.zeros(len(values), np.int64))
            column += np.where(mine, digit, 0)
    return {index: digit for index, digit in found.items() if digit.any()}


def _carried(digits: Mapping[int, Ints], count: int) -> dict[int, Ints]:
    """Return the one representation with every digit in [-2**31, 2**31), whatever the digits were."""
    carried, result = np.zeros(count, np.int64), dict[int, Ints]()
    index = min(digits, default=0)
    while index <= max(digits, default=-1) or carried.any():
        digit, carried = _balanced(digits.get(index, np.zeros(count, np.int64)) + carried)
        if digit.any():
            result[index] = digit
        index += 1
    return result


def _double(digits: Mapping[int, Ints], count: int, unit: int) -> npt.NDArray[np.float64]:
    """Return the double nearest to each number, within one unit in the last place.

    It depends on the number alone: the digits are carried first, and added from the least.
    """
    carried = _carried(digits, count)
    total = np.zeros(count)
    highest = np.full(count, -1)
    scaled = np.zeros(count)  # the same, 2**-128 as large, for numbers whose parts overflow though their sum does not
    for index in sorted(carried):
        digit = carried[index].astype(np.float64)
        with np.errstate(over="ignore"):
            total += np.ldexp(digit, index * _DIGIT_BITS + unit)
        scaled += np.ldexp(digit, index * _DIGIT_BITS + unit - 128)
        highest = np.where(digit != 0, index, highest)
    large = highest * _DIGIT_BITS + unit > 900
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(large, np.ldexp(scaled, 128), total)


def _exact(digits: Mapping[int, Ints], empty: Bools, input_type: pa.DataType) -> pa.Array:
    """Return whole numbers exactly: int64 if all fit, else decimals of 38 digits, NULL beyond."""
    carried = _carried(digits, len(empty))
    decimal = pa.types.is_decimal(input_type)
    if (
        not decimal
        and max(carried, default=0) <= 1
        and np.all(np.abs(carried.get(1, np.zeros(1, np.int64))) < _HALF - 1)
    ):
        nothing = np.zeros(len(empty), np.int64)
        total = carried.get(0, nothing) + carried.get(1, nothing) * _BASE
        return pa.array(total, pa.int64(), mask=empty)
    totals = [0] * len(empty)
    for index, digit in carried.items():
        totals = [total + (int(part) << (index * _DIGIT_BITS)) for total, part in zip(totals, digit, strict=True)]
    scale = input_type.scale if decimal else 0
    fits = 10**38
    values = [
        None if nothing or abs(total) >= fits else Decimal(total).scaleb(-scale)
        for total, nothing in zip(totals, empty, strict=True)
    ]
    return pa.array(values, pa.decimal128(38, scale))


def _keys_of(kind: pa.DataType) -> Callable[[pa.Array], Ints] | None:
    """Return how values of a type become 64-bit keys that sort as SQL sorts the values; None where they cannot.

    DuckDB sorts NaN above +inf, and -0.0 equal to 0.0.
    """
    if pa.types.is_floating(kind):
        return _keys_of_doubles
    if pa.types.is_uint64(kind):
        return None
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return _integers
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return lambda values: _integers(values.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
    return None


def _keys_of_doubles(values: pa.Array) -> Ints:
    numbers = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    numbers = np.where(np.isnan(numbers), np.nan, numbers + 0.0)  # one NaN, above +inf; one zero
    bits = numbers.view(np.int64)
    return np.where(bits < 0, ~(bits & np.iinfo(np.int64).max), bits)


def _values_of_keys(keys: Ints, kind: pa.DataType, empty: Bools) -> pa.Array:
    if pa.types.is_floating(kind):
        bits = np.where(keys < 0, ~keys | np.iinfo(np.int64).min, keys)
        return pa.array(bits.view(np.float64), pa.float64(), mask=empty).cast(kind)
    if pa.types.is_boolean(kind):
        return pa.array(keys.astype(np.bool_), mask=empty)
    width = pa.int64() if pa.types.is_integer(kind) or kind.bit_width == 64 else pa.int32()
    return pa.array(keys.astype(width.to_pandas_dtype()), width, mask=empty).cast(kind)


def _greater(left: object, right: object) -> object:
    return right if left is None or (right is not None and right > left) else left  # type: ignore[operator]  # one type


def _lesser(left: object, right: object) -> object:
    return right if left is None or (right is not None and right < left) else left  # type: ignore[operator]  # one type


_GREATEST = np.frompyfunc(_greater, 2, 1)
_LEAST = np.frompyfunc(_lesser, 2, 1)
