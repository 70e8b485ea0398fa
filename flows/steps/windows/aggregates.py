"""The aggregates: of which parts each is made, and how it lowers what they fold to a SQL value.

All follow SQL: NULLs are skipped, and nothing to aggregate gives NULL (0 for counts). Sums never subtract floats: they
are exact until they are read, and then rounded once. 1e16 + 1 - 1e16 is 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.steps.windows import digits
from freshet.flows.steps.windows.folds import Spans
from freshet.flows.steps.windows.parts import (
    ArgGreatest,
    ArgLeast,
    Digits,
    Extreme,
    First,
    Greatest,
    Last,
    Least,
    Listed,
    Part,
    Present,
    Sketched,
    Specials,
    Squares,
    Values,
)
from freshet.flows.steps.windows.segments import Column, Ints, run_begins

P = TypeVar("P", bound=Part)
Doubles = npt.NDArray[np.float64]

_DISTINCT_KEPT = 1024
_HASHES = 2.0**64
_QUANTILE_ERROR = 0.01


@dataclass(frozen=True, slots=True)
class Folded:
    """One argument's parts, its type, and the frames to fold; `parameter` is the aggregate's own."""

    parts: Mapping[type[Part], Part]
    kind: pa.DataType
    spans: Spans
    parameter: Fraction | None

    def part(self, kind: type[P]) -> P:
        """Return one of the parts."""
        found = self.parts[kind]
        assert isinstance(found, kind)
        return found

    @property
    def counts(self) -> Ints:
        """How many inputs of each frame are not NULL."""
        return self.part(Present).counts(self.spans)


@dataclass(frozen=True, slots=True)
class Function:
    """An aggregate of one argument."""

    parts: tuple[type[Part], ...]
    lower: Callable[[Folded], pa.Array]


def _count(of: Folded) -> pa.Array:
    return pa.array(of.counts, pa.int64())


def _sums(of: Folded) -> Doubles:
    """Return sums as doubles, each rounded once."""
    unit = digits.FLOAT_UNIT if pa.types.is_floating(of.kind) else 0
    return digits.nearest_double(of.part(Digits).digits(of.spans), len(of.spans), unit)


def _sum(of: Folded) -> pa.Array:
    """Integers and decimals exactly, NULL where they take more than 38 digits; doubles as doubles."""
    empty = of.counts == 0
    if pa.types.is_floating(of.kind):
        return pa.array(of.part(Specials).applied(_sums(of), of.spans), pa.float64(), mask=empty)
    scale = of.kind.scale if pa.types.is_decimal(of.kind) else None
    return digits.decimals(of.part(Digits).digits(of.spans), empty, scale)


def _avg(of: Folded) -> pa.Array:
    counts, sums = of.counts, of.part(Specials).applied(_sums(of), of.spans)
    if pa.types.is_decimal(of.kind):
        sums = sums / 10.0**of.kind.scale
    return pa.array(sums / np.maximum(counts, 1), pa.float64(), mask=counts == 0)


def _variance(fewer: int, *, root: bool) -> Callable[[Folded], pa.Array]:
    """Return (n · Σx² - (Σx)²) / (n · (n - fewer)), exactly before the division."""

    def lower(of: Folded) -> pa.Array:
        counts = of.counts
        known = counts > fewer
        sums, squares = of.part(Digits).digits(of.spans), of.part(Squares).digits(of.spans)
        lowest = min([*sums, *(place // 2 for place in squares)], default=0)
        exponent = 2 * (lowest * digits.DIGIT_BITS + digits.FLOAT_UNIT)
        numbers = zip(
            counts.tolist(),
            digits.whole(sums, len(counts), lowest),
            digits.whole(squares, len(counts), 2 * lowest),
            strict=True,
        )
        values = np.array(
            [
                digits.quotient(n * square - total * total, n * (n - fewer), exponent) if n > fewer else 0.0
                for n, total, square in numbers
            ]
        )
        if root:
            values = np.sqrt(values)
        finite = of.part(Specials).applied(np.zeros(len(counts)), of.spans) == 0
        return pa.array(np.where(finite, values, np.nan), pa.float64(), mask=~known)

    return lower


def _extreme(kind: type[Extreme]) -> Callable[[Folded], pa.Array]:
    def lower(of: Folded) -> pa.Array:
        part = of.part(kind)
        return part.keys.values(part.fold(of.spans), of.counts == 0)

    return lower


def _sorted(
    of: Folded, choose: Callable[[Folded, Column, Ints, Ints], tuple[Ints, Ints, Doubles]]
) -> tuple[pa.Array, pa.Array, Doubles]:
    """Return two values of each frame and a weight between them, chosen by index among its sorted keys."""
    low: list[Column] = []
    high: list[Column] = []
    weights, empties = list[Doubles](), list[npt.NDArray[np.bool_]]()
    part = of.part(Values)
    for keys, bounds in part.sorted(of.spans):
        counts = np.diff(bounds)
        some = counts > 0
        left, right, weight = choose(of, keys, bounds[:-1][some], counts[some])
        for found, at in ((low, left), (high, right)):
            chosen = np.full(len(counts), None if not part.keys.fixed else 0, part.keys.dtype)
            chosen[some] = keys[at]
            found.append(chosen)
        spread = np.zeros(len(counts))
        spread[some] = weight
        weights.append(spread)
        empties.append(~some)
    empty = np.concatenate(empties)
    return (
        part.keys.values(np.concatenate(low), empty),
        part.keys.values(np.concatenate(high), empty),
        np.concatenate(weights),
    )


def _quantile_disc(of: Folded) -> pa.Array:
    """The input at place ceil(p · n), counted from 1: DuckDB's rule, in exact arithmetic."""

    def choose(of: Folded, _: Column, starts: Ints, counts: Ints) -> tuple[Ints, Ints, Doubles]:
        assert of.parameter is not None
        p = of.parameter
        at = starts + np.array([max(1, n - floor(n - n * p)) - 1 for n in counts.tolist()], np.int64)
        return at, at, np.zeros(len(at))

    return _sorted(of, choose)[0]


def _quantile_cont(of: Folded) -> pa.Array:
    """Between the inputs around place p · (n - 1), counted from 0: DuckDB's interpolation."""

    def choose(of: Folded, _: Column, starts: Ints, counts: Ints) -> tuple[Ints, Ints, Doubles]:
        assert of.parameter is not None
        place = (counts - 1) * float(of.parameter)
        left = np.floor(place)
        return starts + left.astype(np.int64), starts + np.ceil(place).astype(np.int64), place - left

    low, high, weights = _sorted(of, choose)
    left, right = (side.to_numpy(zero_copy_only=False) for side in (low, high))
    with np.errstate(invalid="ignore"):
        between = np.where(weights == 0, left, left * (1.0 - weights) + right * weights)
    return pa.array(between, pa.float64(), mask=low.is_null().to_numpy(zero_copy_only=False))


def _mode(of: Folded) -> pa.Array:
    """The most frequent input; of several such, the smallest."""

    def choose(_: Folded, keys: Column, starts: Ints, counts: Ints) -> tuple[Ints, Ints, Doubles]:
        begins = run_begins(keys)
        begins[starts] = True
        runs = np.flatnonzero(begins)
        lengths = np.diff(np.append(runs, len(keys)))
        owners = np.searchsorted(starts, runs, "right") - 1
        order = np.lexsort((runs, -lengths, owners))
        first = np.searchsorted(owners[order], np.arange(len(starts)))
        at = runs[order[first]]
        return at, at, np.zeros(len(counts))

    return _sorted(of, choose)[0]


def _count_distinct(of: Folded) -> pa.Array:
    found: list[Ints] = []
    for keys, bounds in of.part(Values).sorted(of.spans):
        rises = run_begins(keys)
        rises[bounds[:-1][np.diff(bounds) > 0]] = True
        total = np.append(0, np.cumsum(rises))
        found.append(total[bounds[1:]] - total[bounds[:-1]])
    return pa.array(np.concatenate(found), pa.int64())


class Distinct(Sketched):
    """The 1024 least of the inputs' 64-bit hashes: up to so many distinct values are counted exactly.

    Of more, a standard error of 1/√1022, 3.1 %, is left (Bar-Yossef et al. 2002, "Counting Distinct Elements").
    """

    def __init__(self, name: str, kind: pa.DataType) -> None:
        del kind
        super().__init__(f"{name}.distinct", lambda hashes: list(hashes.reshape(-1, 1)), _least_hashes)


def _least_hashes(left: Any, right: Any) -> object:
    return np.union1d(left, right)[:_DISTINCT_KEPT]


def _approx_count_distinct(of: Folded) -> pa.Array:
    def estimate(hashes: Any) -> int:
        if hashes is None or len(hashes) < _DISTINCT_KEPT:
            return 0 if hashes is None else len(hashes)
        return round((_DISTINCT_KEPT - 1) * _HASHES / (float(hashes[-1]) + 1))

    return pa.array([estimate(hashes) for hashes in of.part(Distinct).fold(of.spans)], pa.int64())


class Quantiles(Sketched):
    """How many inputs fall into each of logarithmic buckets, so wide that a value is known to 1 %.

    DDSketch (Masson, Rim, Lee 2019), without its collapsing of buckets, so that the order of events does not matter.
    """

    def __init__(self, name: str, kind: pa.DataType) -> None:
        del kind
        super().__init__(f"{name}.quantiles", _buckets, _added_buckets)


_GROWTH = (1 + _QUANTILE_ERROR) / (1 - _QUANTILE_ERROR)
_LARGEST = np.log(np.finfo(np.float64).max)
_MIDDLE = 1 << 20
"""More than any bucket's index: ln(1.8e308) / ln(growth) is 35,500."""


def _buckets(values: Column) -> list[object]:
    numbers: Doubles = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.ceil(np.log(np.abs(numbers)) / np.log(_GROWTH))
    index = np.where(np.isinf(numbers), _MIDDLE - 1, np.where(numbers == 0, 0, index))
    codes = np.where(numbers == 0, 0, np.sign(numbers) * (index + _MIDDLE))
    codes = np.where(np.isnan(numbers), 4 * _MIDDLE, codes).astype(np.int64)
    return [np.array([[code, 1]]) for code in codes.tolist()]


def _added_buckets(left: Any, right: Any) -> object:
    both = np.concatenate([left, right])
    codes, inverse = np.unique(both[:, 0], return_inverse=True)
    return np.column_stack([codes, np.bincount(inverse, both[:, 1]).astype(np.int64)])


def _bucket_value(code: int) -> float:
    """Return the value in the middle of a bucket."""
    if code == 0:
        return 0.0
    if code == 4 * _MIDDLE:
        return np.nan
    index = abs(code) - _MIDDLE
    if index == _MIDDLE - 1:
        size = np.inf
    else:
        size = float(np.exp(min(index * np.log(_GROWTH) + np.log(2 / (_GROWTH + 1)), _LARGEST)))
    return size if code > 0 else -size


def _approx_quantile(of: Folded) -> pa.Array:
    assert of.parameter is not None
    p = of.parameter

    def estimate(sketch: Any) -> float | None:
        if sketch is None:
            return None
        totals = np.cumsum(sketch[:, 1])
        n = int(totals[-1])
        place = max(1, n - floor(n - n * p))
        return _bucket_value(int(sketch[np.searchsorted(totals, place), 0]))

    return pa.array([estimate(sketch) for sketch in of.part(Quantiles).fold(of.spans)], pa.float64())


_NUMBER = (Present, Digits, Specials)

FUNCTIONS: Mapping[str, Function] = {
    "count": Function((Present,), _count),
    "count_distinct": Function((Values,), _count_distinct),
    "sum": Function(_NUMBER, _sum),
    "avg": Function(_NUMBER, _avg),
    "var_samp": Function((*_NUMBER, Squares), _variance(1, root=False)),
    "var_pop": Function((*_NUMBER, Squares), _variance(0, root=False)),
    "stddev_samp": Function((*_NUMBER, Squares), _variance(1, root=True)),
    "stddev_pop": Function((*_NUMBER, Squares), _variance(0, root=True)),
    "min": Function((Present, Least), _extreme(Least)),
    "max": Function((Present, Greatest), _extreme(Greatest)),
    "first_value": Function((First,), lambda of: of.part(First).values(of.spans)),
    "last_value": Function((Last,), lambda of: of.part(Last).values(of.spans)),
    "arg_min": Function((ArgLeast,), lambda of: of.part(ArgLeast).values(of.spans)),
    "arg_max": Function((ArgGreatest,), lambda of: of.part(ArgGreatest).values(of.spans)),
    "list": Function((Listed,), lambda of: of.part(Listed).lists(of.spans)),
    "mode": Function((Values,), _mode),
    "quantile_disc": Function((Values,), _quantile_disc),
    "quantile_cont": Function((Values,), _quantile_cont),
    "approx_count_distinct": Function((Distinct,), _approx_count_distinct),
    "approx_quantile": Function((Quantiles,), _approx_quantile),
}
"""Every aggregate of one argument, by the name that plans have for it. count(*) is `count` without an argument."""

MERGEABLE = frozenset(FUNCTIONS) - {
    name for name, function in FUNCTIONS.items() if Values in function.parts or Listed in function.parts
}
"""Those whose frames may hold panes: events merged into one."""


def parts_of(functions: Sequence[str]) -> tuple[type[Part], ...]:
    """Return the distinct parts that some functions of one argument need."""
    return tuple(dict.fromkeys(part for name in functions for part in FUNCTIONS[name].parts))
