"""Canaries into Kafka: a few records, each confirmed with the place that the cluster gave it."""

from collections.abc import Callable, Sequence
from functools import partial

from freshet.flows.edges.kafka import Kafka, Outbox
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.record import Record


class CanaryWriter:
    """Publishes the validator's own events."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._outbox: Outbox | None = None

    def publish(self, records: Sequence[Record], delivered: Callable[[int, int, int], object]) -> None:
        """Return once the cluster has answered for every record.

        `delivered` hears, of each that the cluster has, its index, partition and offset. Raises `Unavailable` and
        `Refused` for those that it has not, after it was told of the others.
        """
        # One that has lost a record goes on for ever saying so: it is not kept.
        outbox, self._outbox = self._outbox or Outbox(self._kafka, "event"), None
        problems = list[Problem]()
        for index, record in enumerate(records):
            try:
                outbox.send(record, f"canary of {record.topic}", partial(delivered, index))
            except Refused as refusal:
                problems += refusal.problems
        outbox.flush()
        outbox.raise_failed()
        self._outbox = outbox
        if problems:
            raise Refused(problems)
