"""The event archive read again: what a view's shards were given, from the events that were kept.

The archive is the log of all state. So a run goes on from it, and a view that is new or changed is made from it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Protocol

import pyarrow as pa

from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.intake import Intake
from freshet.flows.steps.shards import split
from freshet.schemas.event import EVENT_TIME, PARTITION, Contract, archive_name
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us

_EVENTS_AT_ONCE = 100_000


class Archive(Protocol):
    """What keeps accepted events, as `edges.parquet` does."""

    def parts_after(self, name: str, epoch: int) -> list[tuple[int, str]]:
        """Return the parts made after an epoch, each with its epoch."""

    def read_parts(self, name: str, parts: Iterable[str]) -> pa.Table:
        """Return the rows of some parts."""


def archived(
    archive: Archive, streams: Sequence[str], since: Iterable[int], until: int
) -> Iterator[tuple[int, str, pa.Table]]:
    """Give the archived events of epochs after `since` up to `until`, in order, many at a time, each with its newest.

    What comes together lies wholly after, or wholly before, each epoch of `since`.
    """
    bounds = sorted(set(since))
    if not bounds:
        return
    parts = sorted(
        (epoch, stream, part)
        for stream in streams
        for epoch, part in archive.parts_after(archive_name(stream), bounds[0])
        if epoch <= until
    )

    def together(item: tuple[int, str, str]) -> tuple[int, str]:
        return sum(bound < item[0] for bound in bounds), item[1]

    for (_, stream), run in groupby(parts, together):
        waiting: list[pa.Table] = []
        epoch = 0
        for epoch, _, part in run:
            waiting.append(archive.read_parts(archive_name(stream), [part]))
            if sum(table.num_rows for table in waiting) >= _EVENTS_AT_ONCE:
                yield epoch, stream, pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield epoch, stream, pa.concat_tables(waiting)


@dataclass(frozen=True)
class Reread:
    """Archived events as the shards of one view were given them."""

    plan: ViewPlan
    contracts: Mapping[str, Contract]
    shards_count: int

    @cached_property
    def _intakes(self) -> dict[str, Intake]:
        return {name: Intake(self.contracts[name], [self.plan]) for name in self.plan.view.sources}

    def new_folds(self) -> dict[int, ShardFold]:
        """Return the folds of shards that have seen nothing."""
        return {shard: ShardFold.of(self.plan, self.contracts) for shard in range(self.shards_count)}

    def inputs(self, ledger: Ledger, epoch: int, stream: str, events: pa.Table) -> dict[int, list[ShardInput]]:
        """Return what each shard is given of some events: all of its own, and how far each partition is."""
        view = self.plan.view
        parts = split(self._intakes[stream].inputs_of(events)[view.name], view, self.shards_count)
        newest = events.group_by([PARTITION]).aggregate([(EVENT_TIME, "max")]).to_pylist()
        count = partitions_count(ledger, stream)
        found = {}
        for shard in range(self.shards_count):
            clocks = [
                ShardInput(
                    view.name, shard, epoch, stream, row[PARTITION], count,
                    instant_us(row[f"{EVENT_TIME}_max"]), None, None,
                )
                for row in newest
            ]  # fmt: skip
            found[shard] = [*clocks[:-1], replace(clocks[-1], inputs=parts.get(shard))]
        return found


def partitions_count(ledger: Ledger, stream: str) -> int:
    """Return how many partitions a stream's topic had."""
    return max((mark.partitions_count for mark in ledger.partitions_of(stream).values()), default=1)
