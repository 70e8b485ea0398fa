"""Whether no event is lost or doubled on its way into the archive, partition by partition: pure.

The ledger says how many events of each source partition were accepted in all; the archive has them, one by one. Both
counts are exact, so they are held to be equal at the end of an epoch, and no rate is tolerated.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from freshet.schemas.event import archive_name
from freshet.schemas.ledger import Ledger, source_key
from freshet.schemas.part import epoch_of


@dataclass(frozen=True, slots=True)
class Conserved:
    """How many events of a partition were accepted, and how many are archived; and how far it is read.

    `durable` is the offset that the ledger has of it, `committed` the one that Kafka has; None if there is none.
    """

    stream: str
    partition: int
    accepted: int
    archived: int
    durable: int | None
    committed: int | None


@dataclass
class Conservation:
    """Holds the archive of one stream against the ledger, look after look."""

    stream: str
    _expired_us: int | None = None
    _dropped: Counter[int] = field(default_factory=Counter)
    """Accepted events that the archive has dropped by their age, by partition."""

    def look(
        self, ledger: Ledger, parts: Mapping[str, Mapping[int, int]], committed: Mapping[int, int | None]
    ) -> list[Conserved]:
        """Return how each partition stands at the end of the ledger's epoch.

        `parts` are all visible parts, those of the ledger's epoch among them: how many events of each partition they
        have. `committed` is what Kafka had before the ledger was read, None if nothing.
        """
        archived = Counter[int]()
        dropped = {*ledger.dropped.get(archive_name(self.stream), ())}  # some may be there still
        for part, counts in parts.items():
            if (epoch_of(part) or 0) <= ledger.epoch and part not in dropped:
                archived.update(counts)
        marks = ledger.partitions_of(self.stream)
        expired_us = ledger.expired.get(self.stream)
        if expired_us != self._expired_us:  # parts went, and some may have come and gone unseen
            self._expired_us = expired_us
            self._dropped = Counter({number: mark.accepted_count - archived[number] for number, mark in marks.items()})
        return [
            Conserved(
                self.stream,
                number,
                marks[number].accepted_count if number in marks else 0,
                archived[number] + self._dropped[number],
                ledger.offsets.get(source_key(self.stream, number)),
                committed.get(number),
            )
            for number in sorted(marks.keys() | archived.keys())
        ]
