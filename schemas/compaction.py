"""What compaction knows of parts, and what it makes of them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """What is in a part that compaction made: it begins the part's run, so its name tells."""

    ALL = "all"
    """Every version of its rows."""
    FINAL = "final"
    """Of each row the final version."""
    CARRIED = "carried"
    """Of each entity the row that holds at the time before which rows are dropped, in its final version."""


@dataclass(frozen=True, slots=True)
class Sized:
    """What is known of a part: how many rows and bytes, between which event times; of the flow's own `kind` is None."""

    rows_count: int
    bytes_count: int
    oldest: datetime | None
    newest: datetime | None
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """All rows of some parts from `begin` on until before `end`, to become one part; None has no bound."""

    begin: datetime | None
    end: datetime | None
    parts: tuple[str, ...]
    carried: bool = False
    """Whether of each entity only its last row is to stay."""


def kind_of(run: str | None) -> Kind | None:
    """Return what is in a part, by the run in its name; None for the flow's own.

    >>> kind_of("final.a1b2"), kind_of("a1b2"), kind_of(None)
    (<Kind.FINAL: 'final'>, None, None)
    """
    word, has_kind, _ = (run or "").partition(".")
    return Kind(word) if has_kind and word in {*map(str, Kind)} else None
