"""One shard's part in the flow: it keeps its clock, forgets what cannot matter, and folds what comes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from freshet.flows.steps.sql import Arguments
from freshet.flows.steps.windows.shard import WindowedRows, WindowShard
from freshet.schemas.event import NEVER_US, Contract
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import count_us


@dataclass(frozen=True, slots=True)
class ShardInput:
    """Events for one shard of a view, and how far the partition is that they come from.

    It comes to every shard, events or not: what a shard may forget depends on the slowest partition. `newest_us` is the
    partition's greatest event time; `caught_up_us` the wall time when it was last at its end, None if it is not.
    `epoch` is as in `Poll`.
    """

    view: str
    shard: int
    epoch: int
    stream: str
    partition: int
    partitions_count: int
    newest_us: int
    caught_up_us: int | None
    inputs: pa.Table | None

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process makes the same: a slice of a table, pickled as it is, takes all rows along."""
        told = [getattr(self, one.name) for one in fields(self)]
        inputs = told.pop()
        alone = None if inputs is None else inputs.take(pa.array(np.arange(inputs.num_rows)))
        return type(self), (*told, alone)


class ShardFold:
    """Folds the inputs of one shard of one view. `lateness_us` is what each stream of the view allows.

    Its clock is the greatest of the event times that its partitions have shown, and of the wall time once all of them
    are at their end. It never goes back. While a topic is caught up with, or a file replayed, the clock is event time.
    """

    def __init__(self, plan: ViewPlan, lateness_us: Mapping[str, int]) -> None:
        self.shard = WindowShard(plan, Arguments(plan).compute if plan.lags else None)
        self._lateness_us = dict(lateness_us)
        self._newest: dict[tuple[str, int], int] = {}
        self._caught_up: dict[tuple[str, int], int] = {}
        self._counts: dict[str, int] = {}
        self.events_count = 0
        """How many events it was given in all."""

    @classmethod
    def of(cls, plan: ViewPlan, contracts: Mapping[str, Contract]) -> "ShardFold":
        """Return the fold of a shard that has seen nothing."""
        return cls(plan, {name: count_us(contracts[name].stream.lateness) for name in plan.view.sources})

    def _complete(self, clocks: Mapping[tuple[str, int], int]) -> bool:
        """Say whether every partition of every stream has told its clock."""
        return len(self._counts) == len(self._lateness_us) and len(clocks) >= sum(self._counts.values())

    def horizon_us(self) -> int:
        """Return the event time before which no event will be accepted any more, of whatever partition."""
        if not self._complete(self._newest):
            return NEVER_US
        oldest = (newest - self._lateness_us[stream] for (stream, _), newest in self._newest.items())
        return max(NEVER_US, min(oldest))

    def clock_us(self) -> int:
        """Return the time that the inputs so far have shown."""
        event_us = max(self._newest.values(), default=NEVER_US)
        return max(event_us, min(self._caught_up.values())) if self._complete(self._caught_up) else event_us

    def fold(self, items: Sequence[ShardInput], now_us: int) -> Iterator[WindowedRows]:
        """Take what waits; give the rows it makes or corrects.

        The horizon of before decides what is forgotten: these events may be as old as that allows.
        """
        horizon_us, inputs = self.horizon_us(), self._hear(items)
        return self.shard.add(inputs, clock_us=self.clock_us(), horizon_us=horizon_us, now_us=now_us)

    def absorb(self, items: Sequence[ShardInput]) -> None:
        """Take what another run has taken and written, after that run's state; `resume` must follow."""
        horizon_us, inputs = self.horizon_us(), self._hear(items)
        if inputs is not None:
            self.shard.absorb(inputs, horizon_us)

    def resume(self, clock_us: int, created_us: int, partitions: Mapping[tuple[str, int], tuple[int, int]]) -> None:
        """Go on where another run's rows end: its clock, its newest `created`, µs since the epoch.

        `partitions` has, by stream and partition, the partition's greatest event time and its topic's partitions.
        """
        for (stream, partition), (newest_us, partitions_count) in partitions.items():
            self._newest[stream, partition] = newest_us
            self._counts[stream] = partitions_count
        self.shard.pass_to(clock_us, created_us)

    def _hear(self, items: Sequence[ShardInput]) -> pa.Table | None:
        """Note how far the partitions are; return all events."""
        for item in items:
            place = (item.stream, item.partition)
            self._counts[item.stream] = item.partitions_count
            self._newest[place] = max(item.newest_us, self._newest.get(place, NEVER_US))
            if item.caught_up_us is not None:
                self._caught_up[place] = max(item.caught_up_us, self._caught_up.get(place, NEVER_US))
        tables = [item.inputs for item in items if item.inputs is not None]
        inputs = pa.concat_tables(tables) if tables else None
        self.events_count += 0 if inputs is None else inputs.num_rows
        return inputs

    def state(self) -> dict[str, Any]:
        """Return all that must be kept to go on elsewhere."""
        return {
            "shard": self.shard.state(),
            "newest": dict(self._newest),
            "caught_up": dict(self._caught_up),
            "counts": dict(self._counts),
            "events_count": self.events_count,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.shard.restore(state["shard"])
        self._newest, self._caught_up = dict(state["newest"]), dict(state["caught_up"])
        self._counts, self.events_count = dict(state["counts"]), state["events_count"]
