"""Exact arithmetic for whole columns: numbers as digits to the base 2**32 (a Kulisch accumulator, of digits in use).

A column of numbers is a mapping from the place of a digit to a column of digits, each a signed 64-bit integer; the
value is the sum of digit · 2**(32 · place), in a unit that the caller knows. Digits of different numbers are added one
by one, so a sum is exact and the same in every order; only reading it rounds, once.
"""

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.windows.segments import Ints, distinct

Digits: TypeAlias = Mapping[int, Ints]

DIGIT_BITS = 32
FLOAT_UNIT = -1074
"""The last bit of the smallest double is 2**-1074: the unit that all doubles are whole multiples of."""

_HALF, _BASE = 1 << (DIGIT_BITS - 1), 1 << DIGIT_BITS
_DECIMAL_DIGITS = 38
_EXACT = Context(prec=_DECIMAL_DIGITS)  # the usual one rounds to 28 digits


def balanced(values: Ints) -> tuple[Ints, Ints]:
    """Split into a digit in [-2**31, 2**31) and what is carried to the next.

    >>> [part.tolist() for part in balanced(np.array([5, -1, 2**31, 2**40 + 3]))]
    [[5, -1, -2147483648, 3], [0, 0, 1, 256]]
    """
    carried: Ints = (values + _HALF) >> DIGIT_BITS
    return values - (carried << DIGIT_BITS), carried


def of_integers(values: Ints) -> dict[int, Ints]:
    """Return the digits that are not all zero; unlike `balanced`, right up to the ends of int64."""
    low = ((values & (_BASE - 1)) ^ _HALF) - _HALF
    high = (values >> DIGIT_BITS) + (low < 0)
    return {place: digit for place, digit in enumerate((low, high)) if digit.any()}


def of_decimals(values: pa.Array) -> dict[int, Ints]:
    """Return the digits of decimals as whole numbers of their last place, from their 128 bits (Arrow's format)."""
    scale = values.type.scale if pa.types.is_decimal(values.type) else 0
    wide = pc.fill_null(values.cast(pa.decimal128(_DECIMAL_DIGITS, scale)), Decimal(0))
    wide = wide.combine_chunks() if isinstance(wide, pa.ChunkedArray) else wide
    words = np.frombuffer(wide.buffers()[1], np.int64)[2 * wide.offset : 2 * (wide.offset + len(wide))].reshape(-1, 2)
    carried = np.zeros(len(wide), np.int64)
    found: dict[int, Ints] = {}
    for place in range(4):
        word = words[:, place // 2]
        raw = (word >> DIGIT_BITS) if place % 2 else (word & (_BASE - 1))
        if place < 3:
            raw = raw & (_BASE - 1)
        digit, carried = (raw + carried, carried) if place == 3 else balanced(raw + carried)
        if digit.any():
            found[place] = digit
    return found


def of_doubles(values: npt.NDArray[np.float64]) -> dict[int, Ints]:
    """Return the digits of finite doubles as whole multiples of 2**-1074."""
    fraction, exponent = np.frexp(values)
    mantissa = (fraction * 2.0**53).astype(np.int64)
    bit = exponent.astype(np.int64) - 53 - FLOAT_UNIT
    below = np.minimum(bit, 0)
    mantissa, bit = mantissa >> -below, bit - below  # a subnormal's last bits are zeros
    place, shift = bit // DIGIT_BITS, bit % DIGIT_BITS
    low, high = balanced(mantissa)
    first, carried_first = balanced(low << shift)
    second, carried_second = balanced((high << shift) + carried_first)
    found: dict[int, Ints] = {}
    for base in distinct(place[values != 0]).tolist():
        mine = (place == base) & (values != 0)
        for step, digit in enumerate((first, second, carried_second)):
            column = found.setdefault(base + step, np.zeros(len(values), np.int64))
            column += np.where(mine, digit, 0)
    return {place: digit for place, digit in found.items() if digit.any()}


def squared(digits: Digits) -> dict[int, Ints]:
    """Return the digits of the squares of balanced numbers; the unit is the square of theirs."""
    found: dict[int, Ints] = {}
    for one in digits:
        for other in (place for place in digits if place >= one):
            product = digits[one] * digits[other]
            if not product.any():
                continue
            for step, digit in enumerate(balanced(product)):
                column = found.setdefault(one + other + step, np.zeros(len(product), np.int64))
                column += digit if one == other else 2 * digit
    return {place: digit for place, digit in found.items() if digit.any()}


def carried(digits: Digits, count: int) -> dict[int, Ints]:
    """Return the one representation with every digit in [-2**31, 2**31), whatever the digits were."""
    over, result = np.zeros(count, np.int64), dict[int, Ints]()
    place = min(digits, default=0)
    while place <= max(digits, default=-1) or over.any():
        digit, over = balanced(digits.get(place, np.zeros(count, np.int64)) + over)
        if digit.any():
            result[place] = digit
        place += 1
    return result


def nearest_double(digits: Digits, count: int, unit: int) -> npt.NDArray[np.float64]:
    """Return the double nearest to each number, ties to even; the unit is 2**unit.

    The leading 64 bits of each number are cut out; that anything stands below them is kept in the last, which is
    enough to round right.
    """
    canonical = carried(digits, count)
    if not canonical:
        return np.zeros(count)
    lowest, highest = min(canonical), max(canonical)
    nothing = np.zeros(count, np.int64)
    rows = [nothing, nothing, *(canonical.get(place, nothing) for place in range(lowest, highest + 1))]
    sign = np.zeros(count, np.int64)
    for row in rows:
        sign = np.where(row != 0, np.sign(row), sign)
    borrowed = nothing
    positive = []
    for row in rows:
        digit = row * sign + borrowed
        borrowed = digit >> DIGIT_BITS
        positive.append((digit & (_BASE - 1)).astype(np.uint64))
    places = np.zeros(count, np.int64)
    below = np.zeros((len(rows) + 1, count), np.bool_)  # whether anything stands below a place
    for place, unsigned in enumerate(positive):
        places = np.where(unsigned != 0, place, places)
        below[place + 1] = below[place] | (unsigned != 0)
    places = np.maximum(places, 2)
    matrix, index = np.array(positive), np.arange(count)
    first, second, third = (matrix[places - step, index] for step in range(3))
    room = (DIGIT_BITS - np.frexp(first.astype(np.float64))[1]).astype(np.uint64)
    rest = np.uint64(DIGIT_BITS) - room
    leading = (((first << np.uint64(DIGIT_BITS)) | second) << room) | (third >> rest)
    lost = ((third & ((np.uint64(1) << rest) - np.uint64(1))) != 0) | below[places - 2, index]
    exponent = (places - 3 + lowest) * DIGIT_BITS - room.astype(np.int64) + unit
    with np.errstate(over="ignore"):
        nearest: npt.NDArray[np.float64] = np.ldexp((leading | lost).astype(np.float64), exponent) * sign
    return nearest


def decimals(digits: Digits, empty: npt.NDArray[np.bool_], scale: int | None) -> pa.Array:
    """Return whole numbers exactly: int64 if all fit and have no scale, else 38 digits; NULL beyond, or if empty."""
    canonical = carried(digits, len(empty))
    top = canonical.get(1, np.zeros(len(empty), np.int64))
    if scale is None and max(canonical, default=0) <= 1 and bool(np.all(np.abs(top) < _HALF - 1)):
        total = canonical.get(0, np.zeros(len(empty), np.int64)) + top * _BASE
        return pa.array(total, pa.int64(), mask=empty)
    values = [
        None if nothing or abs(total) >= 10**_DECIMAL_DIGITS else _EXACT.scaleb(Decimal(total), -(scale or 0))
        for total, nothing in zip(whole(canonical, len(empty), 0), empty, strict=True)
    ]
    return pa.array(values, pa.decimal128(_DECIMAL_DIGITS, scale or 0))


def whole(digits: Digits, count: int, lowest: int) -> list[int]:
    """Return each number as a Python integer, in units of 2**(32 · lowest); no digit stands below that."""
    totals = [0] * count
    for place, digit in digits.items():
        shift = (place - lowest) * DIGIT_BITS
        totals = [total + (part << shift) for total, part in zip(totals, digit.tolist(), strict=True)]
    return totals


def quotient(numerator: int, denominator: int, exponent: int) -> float:
    """Return numerator / denominator · 2**exponent, within two roundings.

    >>> quotient(3 << 5000, 2, -5000)
    1.5
    """
    over = max(0, numerator.bit_length() - 1000)
    with np.errstate(over="ignore"):
        return float(np.ldexp((numerator >> over) / denominator, exponent + over))
