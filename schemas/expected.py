"""What a user expects of a feature's values, beside their being the same in both stores.

It changes nothing that is computed: the validator holds the stored values against it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Distance(StrEnum):
    """How far one distribution is from another: population stability index, Kolmogorov-Smirnov, Jensen-Shannon."""

    PSI = "psi"
    KS = "ks"
    JS = "js"


@dataclass(frozen=True)
class Reference:
    """A distribution to compare with: shares of bins of numbers, or of single values.

    With `bins`, rising edges, `weights` has a share for each bin [edge, next edge), the last one with its end. With
    `categories`, it has one for each of those values. `weights` are relative to each other. `count` is how many values
    they were counted from; None where the shares are exact.
    """

    weights: tuple[float, ...]
    bins: tuple[float, ...] = ()
    categories: tuple[Any, ...] = ()
    count: int | None = None


@dataclass(frozen=True)
class Distribution:
    """Values must lie no further than `limit` from a reference: known, or in a file of the project."""

    reference: Reference | str
    distance: Distance = Distance.PSI
    limit: float = 0.2


@dataclass(frozen=True)
class Expected:
    """What is expected of a feature. None of it is where it says None.

    `nulls` is the share of nulls and `mismatches` the share of values differing between the stores that is tolerated,
    `tolerance` how far, relatively, two floats may be apart and still be the same.
    """

    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[Any, ...] | None = None
    nulls: float | None = None
    tolerance: float | None = None
    mismatches: float = 0.0
    distribution: Distribution | None = None


NOTHING = Expected()
