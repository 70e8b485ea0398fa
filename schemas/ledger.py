"""The ledger: the one record of what is durable, replaced as a whole at each commit.

A run goes on from it: source positions, the clocks of partitions and shards, and the names of the parts that the last
commit made visible. It stands in the offline store, whose parts it speaks for (`<offlineStore>/_ledger.json`); state
too large to be written at each commit is in snapshots in the recovery folder, which the ledger names. What came after
a snapshot is in the event archive.

Its size depends on the numbers of partitions and shards, never on the state.
"""

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict

from freshet.schemas.event import NEVER_US

FORMAT = 2
"""Of the ledger and of all that it names; another one is refused."""


def source_key(stream: str, partition: int) -> str:
    """Name a source partition, such that names sort like numbers."""
    return f"{stream}/{partition:06d}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartitionMark(_Record):
    """How far a Kafka partition was judged: its clocks as `PartitionJudge` has them, and how many were accepted."""

    newest_us: int = NEVER_US
    accepted_us: int = NEVER_US
    accepted_count: int = 0
    partitions_count: int = 1


class ShardMark(_Record):
    """How far a shard's rows go: its clock, the newest `created`, and how many events it was given in all."""

    clock_us: int = NEVER_US
    created_us: int = 0
    events_count: int = 0


class SnapshotMark(_Record):
    """A state in the recovery folder: its file, and the epoch at whose end it was taken."""

    file: str
    epoch: int


class Pending(_Record):
    """A declaration that is decided on, and not yet in force everywhere: its id, and the views that are new or changed.

    `generations` has the folder of each of them, as `schemas.generations` numbers them. Whoever holds the ledger next
    makes it so.
    """

    declaration: str
    generations: Mapping[str, int] = {}


class Update(_Record):
    """What one part of the flow tells of an epoch. Keys are those of `Ledger`.

    `offsets` and `through` are by epoch, too: a source may close the next epoch while this one is not yet durable.
    `through` is the instant (µs) by which all that Kafka had in a source partition was read; the ledger keeps none.
    """

    offsets: Mapping[int, Mapping[str, int]] = {}
    through: Mapping[int, Mapping[str, int]] = {}
    partitions: Mapping[str, PartitionMark] = {}
    shards: Mapping[str, ShardMark] = {}
    snapshots: Mapping[str, SnapshotMark] = {}
    parts: Mapping[str, Mapping[str, int]] = {}
    rejected_in_a_row: Mapping[str, int] = {}
    online_writes_count: int = 0


class Ledger(_Record):
    """What is durable after `epoch`, the number of the last commit; 0 before the first.

    `id` ties the recovery folder to it. `offsets` and `partitions` are by source partition (`source_key`): the offset
    of the first message that is not durable, and its judge's mark. `shards` is by `<view>/<shard>`; `snapshots` by
    either. `parts` has, by folder of the offline store, the parts that the last commit makes visible, each with its
    number of rows: a crash may have left some of them staged. `rows_counts` is how many rows all visible parts of a
    folder have, if none was dropped by compaction; `generations` is the number of what the parts were published by
    (schemas/generations.py): every part since is in each generation that was alive then. `views` says, by name, what
    each view computed, as a digest; `expired`, by stream, up to which event time (µs since the epoch) archived events
    may have been dropped; `dropped`, by folder, the parts of them that are counted no more, of which some may be
    there still. `taken_over`, by view, before which event time (µs since the epoch) its rows were made by an
    earlier declaration and are as they were. `pending` is a change that was made, and of which the stores do not all
    know.
    """

    format: int = FORMAT
    id: str
    epoch: int = 0
    shards_count: int
    views: Mapping[str, str] = {}
    offsets: Mapping[str, int] = {}
    partitions: Mapping[str, PartitionMark] = {}
    shards: Mapping[str, ShardMark] = {}
    snapshots: Mapping[str, SnapshotMark] = {}
    parts: Mapping[str, Mapping[str, int]] = {}
    rows_counts: Mapping[str, int] = {}
    generations: int = 0
    expired: Mapping[str, int] = {}
    dropped: Mapping[str, tuple[str, ...]] = {}
    taken_over: Mapping[str, int] = {}
    rejected_in_a_row: Mapping[str, int] = {}
    online_writes_count: int = 0
    pending: Pending | None = None

    def partitions_of(self, stream: str) -> dict[int, PartitionMark]:
        """Return the marks of a stream's partitions, by their numbers.

        >>> marks = {source_key("clicks", 12): PartitionMark(accepted_count=5), source_key("views", 3): PartitionMark()}
        >>> found = Ledger(id="", shards_count=1, partitions=marks).partitions_of("clicks")
        >>> {number: mark.accepted_count for number, mark in found.items()}
        {12: 5}
        """
        names = {key: key.rpartition("/") for key in self.partitions}
        return {int(number): self.partitions[key] for key, (of, _, number) in names.items() if of == stream}

    def after(
        self, epoch: int, offsets: Mapping[str, int], updates: Iterable[Update], generations: int = 0
    ) -> "Ledger":
        """Return the ledger at the end of an epoch of which all parts of the flow have told.

        >>> before = Ledger(id="a", shards_count=1, offsets={"clicks/0": 5}, rows_counts={"by_user": 3})
        >>> told = [Update(parts={"by_user": {"b": 2}}, online_writes_count=7), Update(parts={"by_user": {"c": 1}})]
        >>> after = before.after(4, {"clicks/1": 2}, told)
        >>> after.epoch, dict(after.offsets), after.online_writes_count
        (4, {'clicks/0': 5, 'clicks/1': 2}, 7)
        >>> dict(after.parts), dict(after.rows_counts)
        ({'by_user': {'b': 2, 'c': 1}}, {'by_user': 6})
        """
        told = merged(updates)
        more = {name: self.rows_counts.get(name, 0) + sum(parts.values()) for name, parts in told.parts.items()}
        return self.model_copy(
            update={
                "epoch": epoch,
                "offsets": {**self.offsets, **offsets},
                "partitions": {**self.partitions, **told.partitions},
                "shards": {**self.shards, **told.shards},
                "snapshots": {**self.snapshots, **told.snapshots},
                "parts": told.parts,
                "rows_counts": {**self.rows_counts, **more},
                "generations": generations,
                "rejected_in_a_row": {**self.rejected_in_a_row, **told.rejected_in_a_row},
                "online_writes_count": max(self.online_writes_count, told.online_writes_count),
            }
        )


def merged(updates: Iterable[Update]) -> Update:
    """Return several updates as one: of a key told twice the later word holds, parts are gathered."""
    whole = Update()
    for update in updates:
        names = [*whole.parts, *(name for name in update.parts if name not in whole.parts)]
        parts = {name: {**whole.parts.get(name, {}), **update.parts.get(name, {})} for name in names}
        whole = Update.model_construct(
            offsets=_joined(whole.offsets, update.offsets),
            through=_joined(whole.through, update.through),
            partitions={**whole.partitions, **update.partitions},
            shards={**whole.shards, **update.shards},
            snapshots={**whole.snapshots, **update.snapshots},
            parts=parts,
            rejected_in_a_row={**whole.rejected_in_a_row, **update.rejected_in_a_row},
            online_writes_count=max(whole.online_writes_count, update.online_writes_count),
        )
    return whole


def _joined(one: Mapping[int, Mapping[str, int]], other: Mapping[int, Mapping[str, int]]) -> dict[int, dict[str, int]]:
    """Return what was told of epochs, twice, as told once."""
    return {epoch: {**one.get(epoch, {}), **other.get(epoch, {})} for epoch in one.keys() | other.keys()}
