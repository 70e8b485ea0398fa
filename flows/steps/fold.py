"""One shard's part in the flow: it keeps the stream's clocks, forgets what cannot matter, and folds what comes."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from freshet.flows.steps.accept import NEVER_US
from freshet.flows.steps.windows.shard import WindowedRows, WindowShard
from freshet.schemas.plan import ViewPlan


@dataclass(frozen=True, slots=True)
class ShardInput:
    """Events for one shard of a view, and the clock of the partition they come from.

    The clock comes to every shard, events or not: what a shard may forget depends on the slowest partition.
    """

    view: str
    partition: int
    partitions_count: int
    newest_us: int
    inputs: pa.Table | None


class ShardFold:
    """Folds the inputs of one shard of one view."""

    def __init__(self, plan: ViewPlan, lateness_us: int) -> None:
        self.shard = WindowShard(plan)
        longest = max((aggregate.frame.preceding_us for aggregate in plan.aggregates), default=0)
        self._memory_us = lateness_us + longest
        self._clocks: dict[int, int] = {}

    def horizon_us(self, partitions_count: int) -> int:
        """Return the event time before which nothing can matter: the slowest partition's clock, less all memory."""
        if len(self._clocks) < partitions_count:
            return NEVER_US
        return max(NEVER_US, min(self._clocks.values()) - self._memory_us)

    def fold(self, items: Sequence[ShardInput], now_us: int) -> WindowedRows | None:
        """Take what waits; return the rows it makes or corrects.

        The clocks of before decide what is forgotten: these events may be as old as those allow.
        """
        tables: list[pa.Table] = []
        horizon_us = self.horizon_us(items[-1].partitions_count)
        for item in items:
            self._clocks[item.partition] = max(item.newest_us, self._clocks.get(item.partition, NEVER_US))
            if item.inputs is not None:
                tables.append(item.inputs)
        if not tables:
            return None
        return self.shard.add(pa.concat_tables(tables), horizon_us=horizon_us, now_us=now_us)
