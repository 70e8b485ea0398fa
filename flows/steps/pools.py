"""Rows of many rounds, gathered until there are enough to judge what is tolerated in a few: pure.

Windows do not overlap: what was judged is let go. A pool that does not fill is judged after so many rounds all the
same, so that it is said that nothing can be said.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from freshet.schemas.finding import Check, Frame

POOL_ROWS_COUNT = 1000
POOL_ROUNDS_COUNT = 60

_KEYS = ("column", "column_A", "column_B")


@dataclass
class _Pool:
    """The lines of some checks, by key: of one entity the newest where each is to be there once."""

    checks: tuple[Check, ...]
    lines: dict[Any, Mapping[Hashable, Any]] = field(default_factory=dict)
    rounds_count: int = 0

    @property
    def columns(self) -> list[str]:
        """What the checks name, and what tells about which row it is."""
        named = [check.arguments[key] for check in self.checks for key in _KEYS if key in check.arguments]
        return [*dict.fromkeys((*self.checks[0].frame.identity, *named))]

    def add(self, rows: pd.DataFrame) -> None:
        """Take the rows that were found in both stores, and those of them that the checks are about."""
        frame, given = self.checks[0].frame, self.checks[0].given
        kept = rows[(rows["offline_row"] == "found") & (rows[given].notna() if given else True)]
        for line in kept[self.columns].to_dict("records"):
            self.lines[line["entity"] if frame is Frame.VALUES else len(self.lines)] = line
        self.rounds_count += 1


class Pools:
    """The pools of one view's checks of `Frame.POOL`, and of each feature's of `Frame.VALUES`."""

    def __init__(
        self, checks: Iterable[Check], *, rows_count: int = POOL_ROWS_COUNT, rounds_count: int = POOL_ROUNDS_COUNT
    ) -> None:
        self._rows_count, self._rounds_count = rows_count, rounds_count
        own = [check for check in checks if check.frame in {Frame.POOL, Frame.VALUES}]
        kinds = dict.fromkeys((check.frame, check.given) for check in own)
        self._pools = [_Pool(tuple(check for check in own if (check.frame, check.given) == kind)) for kind in kinds]

    def take(self, rows: pd.DataFrame) -> list[tuple[pd.DataFrame, list[Check]]]:
        """Add a round's rows, as `frames.joined` makes them; return each pool that is to be judged, and by what.

        >>> from freshet.schemas.finding import Check
        >>> few = Check("v.f.nulls_are_few", "", Frame.POOL, "", {"column": "on_f"}, None)
        >>> row = {"entity": "ann", "event_timestamp": "", "version": 1, "offline_row": "found", "on_f": None}
        >>> pools = Pools([few], rows_count=3)
        >>> [len(pools.take(pd.DataFrame([row, row]))) for _ in range(4)]
        [0, 1, 0, 1]
        """
        taken: list[tuple[pd.DataFrame, list[Check]]] = []
        for pool in self._pools:
            pool.add(rows)
            if len(pool.lines) >= self._rows_count or pool.rounds_count >= self._rounds_count:
                frame = pd.DataFrame([*pool.lines.values()], columns=pool.columns, dtype=object)
                taken.append((frame, [*pool.checks]))
                pool.lines, pool.rounds_count = {}, 0
        return taken
