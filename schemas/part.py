"""A part of the offline store: one parquet file, as a reader finds it."""

import re
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

DECLARED = b"freshet.declared"
"""In a part's metadata: by what its rows were made, the digest of their view's plan (`ViewPlan.digest`)."""

_NAMED = re.compile(r"part-(\d{10})-(.+)-\d+\.parquet")


@dataclass(frozen=True)
class PartSummary:
    """What a part's footer says: its rows' number, its columns, and between which event times its rows lie.

    The times are None for a part without rows or without known times.
    """

    rows_count: int
    schema: pa.Schema
    oldest: datetime | None = None
    newest: datetime | None = None


def epoch_of(part: str) -> int | None:
    """Return the epoch that made a part, by its name; None for a name that the flow does not give.

    >>> epoch_of("part-0000000012-a1b2c3d4-000001.parquet"), epoch_of("part-0.parquet")
    (12, None)
    """
    known = _NAMED.fullmatch(part)
    return None if known is None else int(known[1])


def run_of(part: str) -> str | None:
    """Return the run that made a part, by its name; None for a name that the flow does not give.

    >>> run_of("part-0000000012-a1b2c3d4-000001.parquet"), run_of("part-0.parquet")
    ('a1b2c3d4', None)
    """
    known = _NAMED.fullmatch(part)
    return None if known is None else known[2]
